"""From a config to a trained state: step, loop, evaluation, checkpoints."""
