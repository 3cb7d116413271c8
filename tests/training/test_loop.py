"""Several steps in one call: what happens when, and that it changes nothing else."""

import dataclasses
import functools
import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from jaxcls.augment import HorizontalFlip
from jaxcls.config import Config, Plan
from jaxcls.data import ArraySource, Digits
from jaxcls.data.order import record_ids
from jaxcls.data.sources import Split
from jaxcls.duration import RunLength, steps
from jaxcls.errors import Diverged
from jaxcls.optim import EMA
from jaxcls.report.progress import Progress
from jaxcls.train import train
from tests import commands
from tests.programs import to_the_last_bit
from tests.test_train import Poison, PoisonedDigits


def tiny(steps_per_call: int, where: Literal["host", "device"] = "host") -> Config:
    """Returns the tiny recipe with flips and an average of the weights: 40 steps, evaluated
    and logged every 10, saved every 5."""
    config = commands.load_config(commands.RECIPES / "tiny.py")
    config.steps_per_call, config.data.placement = steps_per_call, where
    config.augment = (HorizontalFlip(), *config.augment)
    config.ema = EMA(decay=0.9)
    config.checkpoint.keep = 8
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains tiny(...) to its end, once for each way; returns the folder of the run."""

    @functools.cache
    def workdir(steps_per_call: int, where: Literal["host", "device"] = "host") -> Path:
        folder = tmp_path_factory.mktemp("whole")
        assert train(tiny(steps_per_call, where), folder).complete
        return folder

    return workdir


def plan(evaluate: int, save: int, log: int, total: int, per_call: int) -> Plan:
    return Plan(RunLength(29, 48, total), evaluate, save, log, per_call)


def test_calls_end_where_something_is_due() -> None:
    # Due at 6, 8, 12, 16, 18 and at the end.
    assert list(plan(6, 100, 8, 19, 4).calls(0)) == [4, 1, 1, 1, 1, 4, 4, 1, 1, 1]
    assert list(plan(8, 16, 8, 16, 4).calls(0)) == [4] * 4
    assert list(plan(8, 16, 8, 16, 1).calls(3)) == [1] * 13


def test_calls_are_as_if_there_had_been_no_interruption() -> None:
    draw = random.Random(0)
    for _ in range(200):
        every = [draw.randint(1, 30) for _ in range(3)]
        total = draw.randint(1, 100)
        chosen = plan(*every, total, draw.randint(1, 12))
        calls = list(chosen.calls(0))
        ends = list(itertools.accumulate(calls))
        assert ends[-1] == total
        for n in every:
            assert set(range(n, total, n)) <= set(ends)
        assert set(calls) <= set(chosen.call_lengths(0))
        assert len(chosen.call_lengths(0)) <= 2
        for made, end in enumerate(ends, 1):
            assert list(chosen.calls(end)) == calls[made:]
            assert set(chosen.calls(end)) <= set(chosen.call_lengths(end))


def run(config: Config, workdir: Path) -> list[dict[str, Any]]:
    assert train(config, workdir).complete
    return commands.metrics(workdir)


def assert_close(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Two runs wrote the same lines, up to rounding."""
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            # One image or two may lie on the border between two classes.
            atol = 0.01 if "top" in name else 1e-4
            np.testing.assert_allclose(right[name], value, atol=atol, err_msg=name)


@to_the_last_bit
def test_calls_change_no_line_and_no_checkpoint(
    whole: Callable[..., Path], exact: bool
) -> None:
    """Steps in one program round as XLA likes, on a CPU not as single ones do; but the images,
    the random numbers and what is due at which step are the same."""
    # A call of 4 steps and a single one before each checkpoint.
    single, several, on_devices = whole(1), whole(4), whole(4, "device")
    assert_close(commands.metrics(single), commands.metrics(several))
    one, other = (
        sorted(path.name for path in workdir.glob("checkpoints/*"))
        for workdir in (single, several)
    )
    assert one == other and len(one) == 8
    last = Path("checkpoints", "40")
    weights, others = (commands.arrays(workdir / last) for workdir in (single, several))
    for name, values in weights.items():
        np.testing.assert_allclose(others[name], values, atol=3e-6, err_msg=name)
    if exact:
        assert commands.metrics(on_devices) == commands.metrics(several)
    assert_close(commands.metrics(on_devices), commands.metrics(several))
    atol = 0.0 if exact else 3e-6
    for name, values in commands.arrays(on_devices / last).items():
        np.testing.assert_allclose(
            others[name], values, rtol=0, atol=atol, err_msg=name
        )


class OneDigit(Digits):
    """Digits whose training images are all the first of them."""

    def source(self, split: Split) -> ArraySource:
        source = super().source(split)
        if split == "train":
            source.images[:], source.labels[:] = source.images[0], source.labels[0]
        return source


def test_each_step_of_a_call_draws_anew(tmp_path: Path) -> None:
    """Without a rate and with one image alone, the loss changes with the draws only."""
    losses = {}
    for per_call in (1, 4):
        config = dataclasses.replace(
            tiny(per_call), duration=steps(8), data=OneDigit(), ema=None
        )
        config.optimizer.learning_rate = 1e-30
        config.log.every = steps(4)
        lines = run(config, tmp_path / str(per_call))
        losses[per_call] = [line["train/loss"] for line in lines if "lr" in line]
    assert len(set(losses[1])) == 2
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-6)


def train_and_stop(
    config: Config, workdir: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> int:
    """Sends a signal when the host learns that step `at` is done; returns the last step."""
    advance = Progress.advance

    def advance_and_signal(self: Progress, step: int) -> None:
        advance(self, step)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", advance_and_signal)
        stopped = train(config, workdir)
    assert not stopped.complete
    return stopped.step


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_stopped_run_goes_on_to_the_last_bit(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Path],
    where: Literal["host", "device"],
) -> None:
    # Four steps after the line at 20, one before the checkpoint at 25.
    assert 24 <= train_and_stop(tiny(4, where), tmp_path, monkeypatch, at=24) < 40
    assert run(tiny(4, where), tmp_path) == commands.metrics(whole(4, where))
    last = Path("checkpoints", "40")
    commands.assert_same_arrays(tmp_path / last, whole(4, where) / last)


def test_a_run_may_go_on_with_other_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., Path]
) -> None:
    train_and_stop(tiny(1), tmp_path, monkeypatch, at=12)
    lines = run(tiny(5, "device"), tmp_path)
    assert_close(lines, commands.metrics(whole(1)))


def poisoned(at: Iterable[int], total: int, steps_per_call: int) -> Config:
    """Returns a config in which the steps `at`, and none else, are not finite."""
    config = tiny(steps_per_call)
    config.duration = steps(total)
    ids = {int(record_ids(config.seed, step, 48, 1437)[0]) for step in at}
    config.data = PoisonedDigits(records=tuple(sorted(ids)))
    config.augment = (Poison(), *config.augment)
    return config


def test_bad_steps_of_a_call_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for per_call in (1, 4):
        config = poisoned([5, 6], 12, per_call)
        config.log.every = config.checkpoint.every = steps(4)
        lines = run(config, tmp_path / str(per_call))
        bad = [line["bad_steps"] for line in lines if "bad_steps" in line]
        assert bad == [0, 2, 2], per_call
        shown = capsys.readouterr().out
        assert shown.count("  2 steps that changed nothing") == 2
    one, other = (
        commands.arrays(tmp_path / name / "checkpoints" / "12") for name in "14"
    )
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-4, err_msg=name)


def test_divergence_is_found_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = poisoned(range(6, 30), 30, steps_per_call=5)
    config.max_bad_steps = 7
    done: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda _, step: done.append(step))
    # Nothing else looks at a step before the end.
    config.log.every = config.evaluation.every = config.checkpoint.every = steps(30)
    with pytest.raises(Diverged, match=r"7 steps in a row, from step 6 on"):
        train(config, tmp_path)
    assert done == [5, 10, 15]  # the thirteenth step is the seventh bad one


@pytest.mark.slow  # not that it is long: other work on the machine disturbs it
def test_images_on_the_devices_are_not_waited_for(
    whole: Callable[..., Path],
) -> None:
    file = whole(1, "device") / "metrics.jsonl"
    lines = map(json.loads, file.read_text().splitlines())
    waited = [line["data_wait"] for line in lines if "data_wait" in line]
    assert len(waited) == 4 and np.median(waited) < 0.1
