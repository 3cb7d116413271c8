"""Metrics as files: what a resumed run keeps, and what can be read back."""

import json
import math
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxcls.errors import UserError
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
    path = tmp_path / "metrics.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert written == [
        {"step": 5, "train/loss": 0.5, "lr": 0.25},
        {"step": 10, "train/loss": None, "eval/top1": 0.75},
    ]
    first, second = read_metrics(path)
    assert first == written[0]
    assert math.isnan(second.pop("train/loss"))
    assert second == {"step": 10, "eval/top1": 0.75}
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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_stays_so(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(tmp_path, step=0, tensorboard=False)
    writer.write({"step": 5, "eval/top1": 0.5, "eval/loss": value})
    writer.close()
    text = path.read_text()
    assert json.loads(text) == {"step": 5, "eval/top1": 0.5, "eval/loss": None}
    writer = MetricWriter(tmp_path, step=5, tensorboard=False)  # reads and rewrites it
    writer.close()
    assert math.isnan(writer.last_evaluation()["eval/loss"])
    assert path.read_text() == text


GOOD = '{"step": 5, "eval/top1": 0.5}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"step": 7, "eval/to',
        "null",
        "3",
        "[]",
        '"step"',
        "{}",
        '{"eval/top1": 0.5}',
        '{"step": null}',
        '{"step": "7"}',
        '{"step": 7.5}',
        '{"step": 7, "eval/top1": "high"}',
        '{"step": 7, "eval/top1": [0.5]}',
        "\0" * 40,  # what a file system leaves of a lost block
        "[" * 100_000,
    ],
    ids=lambda text: text[:20].replace("\0", "0"),
)
@pytest.mark.parametrize("last", ["", GOOD + "\n", GOOD[:9]])
def test_a_damaged_line_is_named(tmp_path: Path, text: str, last: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{GOOD}\n{text}\n{last}")
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        read_metrics(path)
    message = str(error.value)
    assert message.startswith(f"line 2 of {path} is damaged ({text[:40]!r}): ")
    assert "\n" not in message
    with pytest.raises(UserError, match=r"^line 2 of "):
        MetricWriter(tmp_path, step=10, tensorboard=False)
    assert path.read_bytes() == before  # to be mended


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" + GOOD.encode() + b"\n")
    with pytest.raises(UserError, match=r"^line 1 of "):
        read_metrics(path)


@pytest.mark.parametrize("end", ["", "{", GOOD[:-1], GOOD, "\0\0\0"])
def test_an_unfinished_last_line_is_left_out(tmp_path: Path, end: str) -> None:
    path = tmp_path / "metrics.jsonl"
    for lines in (0, 2):
        path.write_text(f"{GOOD}\n" * lines + end)
        assert read_metrics(path) == [json.loads(GOOD)] * lines


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    with pytest.raises(UserError, match=r"^cannot read .*metrics\.jsonl: "):
        read_metrics(path)
