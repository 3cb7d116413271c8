"""Several steps in one call: what happens when, and that it changes nothing else."""

import dataclasses
import itertools
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.config import Config, Plan
from jaxcls.data import ArraySource, Digits
from jaxcls.data.sources import Split
from jaxcls.duration import RunLength, steps
from jaxcls.report.progress import Progress
from jaxcls.train import train
from jaxcls.training.loop import Diverged
from tests import commands
from tests.test_train import poisoned


def narrow(steps_per_call: int, **changes: Any) -> Config:
    """Returns the test recipe on one device: 40 steps, evaluated every 10, saved every 5."""
    config = commands.load_config(commands.RECIPES / "narrow.py")
    changes = {"devices": 1, "steps_per_call": steps_per_call, **changes}
    config = dataclasses.replace(config, **changes)
    config.log.every = steps(10)
    return config


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


def test_calls_change_no_line_and_no_checkpoint(tmp_path: Path) -> None:
    """Steps in one program round as XLA likes, on a CPU not as single ones do; but the images,
    the random numbers and what is due at which step are the same."""

    def config(per_call: int) -> Config:
        made = narrow(per_call)
        made.checkpoint.keep = 8
        return made

    single = run(config(1), tmp_path / "1")
    # A single step before each checkpoint.
    assert_close(single, run(config(4), tmp_path / "4"))
    one, other = (
        sorted(path.name for path in (tmp_path / name).glob("checkpoints/*"))
        for name in "14"
    )
    assert one == other
    # Not the last: between steps 25 and 30 of this run any rounding, such as that of a learning
    # rate larger by 2e-7 of itself, grows from 5e-7 to 9e-4.
    weights, others = (
        commands.arrays(tmp_path / name / "checkpoints" / "25") for name in ("1", "4")
    )
    for name, values in weights.items():
        np.testing.assert_allclose(others[name], values, atol=3e-6, err_msg=name)
    on_devices = config(4)
    on_devices.data.placement = "device"
    assert run(on_devices, tmp_path / "device") == commands.metrics(tmp_path / "4")
    commands.assert_same_arrays(
        *(tmp_path / name / "checkpoints" / "40" for name in ("4", "device"))
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
        config = narrow(per_call, duration=steps(8), data=OneDigit())
        config.optimizer.learning_rate = 1e-30
        config.log.every = steps(4)
        lines = run(config, tmp_path / str(per_call))
        losses[per_call] = [line["train/loss"] for line in lines if "lr" in line]
    assert len(set(losses[1])) == 2
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-6)


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_stopped_run_goes_on_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def config() -> Config:
        made = narrow(4)
        made.data.placement = where  # type: ignore[assignment]
        return made

    whole = run(config(), tmp_path / "whole")
    advance = Progress.advance

    def advance_and_signal(self: Progress, step: int) -> None:
        advance(self, step)
        if (
            step == 24
        ):  # four steps after the line at 20, one before the checkpoint at 25
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", advance_and_signal)
    stopped = train(config(), tmp_path / "run")
    assert not stopped.complete and 24 <= stopped.step < 40
    monkeypatch.undo()
    assert run(config(), tmp_path / "run") == whole
    commands.assert_same_arrays(
        *(tmp_path / name / "checkpoints" / "40" for name in ("run", "whole"))
    )


def test_a_run_may_go_on_with_other_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = run(narrow(1), tmp_path / "1")
    advance = Progress.advance

    def advance_and_signal(self: Progress, step: int) -> None:
        advance(self, step)
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", advance_and_signal)
    assert not train(narrow(1), tmp_path / "run").complete
    monkeypatch.undo()
    resumed = narrow(5)
    resumed.data.placement = "device"
    assert_close(run(resumed, tmp_path / "run"), single)


def test_bad_steps_of_a_call_change_nothing(tmp_path: Path) -> None:
    for per_call in (1, 4):
        config = poisoned([5, 6], 12, steps_per_call=per_call)
        config.log.every = config.checkpoint.every = steps(4)
        lines = run(config, tmp_path / str(per_call))
        bad = [line["bad_steps"] for line in lines if "bad_steps" in line]
        assert bad == [0, 2, 2], per_call
    one, other = (
        commands.arrays(tmp_path / name / "checkpoints" / "12") for name in "14"
    )
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-4, err_msg=name)


def test_divergence_is_found_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = poisoned(
        list(range(6, 30)), 30, max_bad_steps=7, steps_per_call=5, ema_decay=None
    )
    done: list[int] = []
    monkeypatch.setattr(Progress, "advance", lambda _, step: done.append(step))
    # Nothing else looks at a step before the end.
    config.log.every = config.evaluation.every = config.checkpoint.every = steps(30)
    with pytest.raises(Diverged, match=r"7 steps in a row, from step 6 on"):
        train(config, tmp_path)
    assert done == [5, 10, 15]  # the thirteenth step is the seventh bad one


def test_images_on_the_devices_are_not_waited_for(tmp_path: Path) -> None:
    config = narrow(1)
    config.data.placement = "device"
    train(config, tmp_path)
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    waited = [line["data_wait"] for line in lines if "data_wait" in line]
    assert len(waited) == 4 and np.median(waited) < 0.1
