"""Metrics as files: what a resumed run keeps, and what can be read back."""

import json
import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from jaxcls.report.writers import MetricWriter, read_metrics


def events(folder: Path) -> dict[tuple[str, int], float]:
    """Reads event files by their format: length, its checksum, the event, its checksum."""
    found = {}
    for path in sorted(folder.glob("events*")):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            content = content[12 + size + 4 :]
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    return found


def test_lines_and_events_say_the_same(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, step=0, tensorboard=True)
    writer.write({"step": 5, "train/loss": 0.5, "lr": 0.25})
    writer.write({"step": 10, "train/loss": float("nan"), "eval/top1": 0.75})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 5, "train/loss": 0.5, "lr": 0.25},
        {"step": 10, "train/loss": None, "eval/top1": 0.75},
    ]
    assert events(tmp_path / "tensorboard") == {
        ("train/loss", 5): 0.5,
        ("lr", 5): 0.25,
        ("eval/top1", 10): 0.75,
    }


def test_a_resumed_run_drops_the_lines_that_it_will_write_again(tmp_path: Path) -> None:
    lines = [{"step": step, "eval/top1": step / 100} for step in (5, 10, 15)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    # Killed while it wrote a line.
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 20, "eval/to')
    writer = MetricWriter(tmp_path, step=10, tensorboard=False)
    assert writer.last_evaluation() == lines[1]
    assert writer.evaluated(5) == lines[0]
    assert writer.evaluated(15) == {}
    writer.write({"step": 15, "eval/top1": 0.9})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        *lines[:2],
        {"step": 15, "eval/top1": 0.9},
    ]
    assert not (tmp_path / "tensorboard").exists()


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
