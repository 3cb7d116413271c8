"""What a run leaves behind for people: metrics as lines, curves, tables."""
