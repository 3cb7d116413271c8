"""What the benchmark of the input pipeline measures is what it says."""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcls.benchmarks import input_pipeline as benchmark_input
from jaxcls.benchmarks.input_pipeline import (
    BATCH,
    READY,
    bare,
    compare_photographs,
    compare_records,
    files_of,
    find_photographs,
    in_turns,
    loaded,
    make_photographs,
    memory,
    ratio,
    resident,
    speed,
)
from jaxcls.data.decode import size
from jaxcls.data.encoded_images import DecodedSource
from jaxcls.data.host_crop import HostRandomResizedCrop
from jaxcls.errors import UserError


class Clock:
    """Stands in for the module time: its time passes when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_speed_does_not_count_what_was_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(benchmark_input, "time", clock)

    def batches() -> Iterator[int]:
        for step in itertools.count():
            clock.now += 3 if step < READY else 2
            yield step

    measured = batches()
    assert speed(measured, 10, 6) == 60 / 12
    assert next(measured) == READY + 6


def test_the_first_turn_is_not_counted_and_ratios_are_of_one_turn() -> None:
    values = iter([1.0, 9.0, 2.0, 1.0, 20.0, 10.0, 3.0, 1.0])
    found = in_turns({"a": lambda: next(values), "b": lambda: next(values)}, turns=3)
    assert found == {"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
    assert ratio(found["a"], found["b"]) == 2


def test_photographs_are_found_or_missed(tmp_path: Path) -> None:
    made = make_photographs(tmp_path, BATCH)
    assert find_photographs(tmp_path) == made
    assert {size(path.read_bytes()) for path in made} == {(375, 500)}
    made[0].unlink()
    with pytest.raises(UserError, match=f"must have {BATCH} .* not {BATCH - 1}"):
        find_photographs(tmp_path)


def test_it_loads_as_many_images_as_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(make_photographs(tmp_path, BATCH))
    reads = []

    def read(index: int) -> bytes:
        reads.append(index)
        return type(files).read(files, index)

    monkeypatch.setattr(files, "read", read)
    source = DecodedSource(files, HostRandomResizedCrop(size=32), 3)
    one = next(bare(source))
    assert [image.shape for image in one] == [(32, 32, 3)] * BATCH
    assert len(reads) == BATCH
    with loaded(source, BATCH, 0, 1) as loader:
        assert speed(loader, BATCH, 4) > 0
    # Some more may be ready or under way.
    assert 15 + READY >= len(reads) / BATCH >= 5 + READY


def test_resident_memory_is_counted_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert resident(os.getpid()) == pytest.approx(1024 * int(kilobytes), rel=0.05)


def test_it_prints_what_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No more than one batch of everything.
    monkeypatch.setattr(in_turns, "__defaults__", (1,))
    monkeypatch.setattr(benchmark_input, "READY", 1)
    monkeypatch.setattr(benchmark_input, "BATCH", 2)
    monkeypatch.setattr(benchmark_input.importlib.util, "find_spec", lambda name: None)
    paths = make_photographs(tmp_path, 4)
    compare_photographs(paths, 1)
    compare_records(tmp_path / "records", 8, 20, 4)
    memory(paths, epochs=2)
    printed = capsys.readouterr().out
    for text in (
        "bare, 1 thread",
        "loader, 2 workers",
        "than decoding alone",
        "8 x 8 x 3",
        "MiB, ",
    ):
        assert text in printed
    assert "nothing to compare with" in printed
