"""What the loop adds to the bare step, and what it says of waiting for data."""

import collections
import dataclasses
import json
import statistics
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls import config as config_lib
from jaxcls import parallel
from jaxcls.augment import Resize
from jaxcls.data import ArraySource, Digits
from jaxcls.data.loader import TrainBatches
from jaxcls.data.sources import Split
from jaxcls.duration import steps
from jaxcls.inference.evaluation import Evaluator
from jaxcls.train import train
from jaxcls.training import loop
from jaxcls.training.prefetch import DevicePrefetch
from jaxcls.training.program import Program
from tests import commands

NARROW = commands.RECIPES / "narrow.py"


def bare_images_per_second(config: config_lib.Config, num_steps: int) -> float:
    """Times the compiled step on batches that are on the device already."""
    source = config.data.source("train")
    plan = config_lib.plan(config, len(source))
    mesh = parallel.make_mesh(config.devices)
    program = Program(
        config, plan, mesh=mesh, num_classes=10, image_shape=source[0]["image"].shape
    )
    step = program.trace_train_step().compile()
    rows = config.batch_size
    order = TrainBatches(source, seed=0, batch_size=rows, num_steps=num_steps)
    batches = [program.put(order[index % 8]) for index in range(8)]
    state, _ = step(program.init(), batches[0], {})
    jax.block_until_ready(state)
    started = time.perf_counter()
    for index in range(num_steps):
        state, report = step(state, batches[index % 8], {})
    jax.block_until_ready(report)
    return num_steps * rows / (time.perf_counter() - started)


def loop_images_per_second(
    config: config_lib.Config, workdir: Path, log_every: int
) -> float:
    """Returns images over seconds of training, as the run itself logs them."""
    config.log.every = steps(log_every)
    train(config, workdir, fresh=True)
    lines = train_lines(workdir)
    # The first interval also warms up.
    skipped = next(i for i, line in enumerate(lines) if line["step"] >= 20) + 1
    made = lines[-1]["step"] - lines[skipped - 1]["step"]
    seconds, before = 0.0, lines[skipped - 1]["step"]
    for line in lines[skipped:]:
        seconds += (line["step"] - before) * line["seconds_per_step"]
        before = line["step"]
    return made * config.batch_size / seconds


def medians(*measure: Callable[[], float]) -> list[float]:
    """Takes turns between measurements, for a noisy machine; returns their medians."""
    taken: list[list[float]] = [[] for _ in measure]
    for _ in range(5):
        for values, function in zip(taken, measure, strict=True):
            values.append(function())
    return [statistics.median(values) for values in taken]


@dataclasses.dataclass(kw_only=True)
class SlowDigits(Digits):
    """Digits whose batches take their time.

    Attributes:
      seconds: to load a batch.
    """

    seconds: float = 0.0

    def source(self, split: Split) -> ArraySource:
        source = super().source(split)
        gather = source.gather

        def slowly(
            ids: np.ndarray, row_seeds: np.ndarray | None = None
        ) -> dict[str, np.ndarray]:
            if split == "train":
                time.sleep(self.seconds)
            return gather(ids, row_seeds)

        source.gather = slowly  # type: ignore[method-assign]
        return source


def train_lines(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of training metrics, clocks included."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "train/loss" in line]


class Clock:
    """A clock that stands still but for what a test adds."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("waits", [0.05, 0.3])
def test_waiting_for_data_is_told_and_explained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    waits: float,
) -> None:
    """Of each second of a step a share is waited for data: lines and a sentence say so;
    evaluation, however slow, is no part of the images per second."""
    clock, evaluate, advance = Clock(), Evaluator.evaluate, DevicePrefetch.next
    counted: list[bool] = []

    def next_batch(self: DevicePrefetch, idle: Any, *, count: bool = True) -> Any:
        counted.append(count)
        # After a pause the devices have nothing to do, and the loop knows it.
        assert count or idle()
        before = self.waited
        batch = advance(self, idle, count=count)
        clock.now += 1.0
        self.waited = before + waits
        return batch

    def evaluate_slowly(*args: Any, **kwargs: Any) -> Any:
        clock.now += 1000.0
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(DevicePrefetch, "next", next_batch)
    monkeypatch.setattr(Evaluator, "evaluate", evaluate_slowly)
    config = commands.load_config(commands.RECIPES / "tiny.py")
    config.duration, config.log.every = steps(16), steps(4)
    config.evaluation.every = config.checkpoint.every = steps(4)
    train(config, tmp_path / "run")
    # No clock runs when a batch is the first, or the first after a pause.
    assert counted == [step % 4 != 0 for step in range(16)]
    lines = train_lines(tmp_path / "run")
    assert len(lines) == 4
    # The clock of a pause stops after the batch that ends it was waited for.
    for line in lines:
        assert 4 * 48 / 4 <= line["img_per_s"] <= 4 * 48 / 3
        assert 0.9 * waits <= line["data_wait"] <= 1.5 * waits
    said = capsys.readouterr().out.count("The devices wait for data")
    assert said == (waits > 0.1)


@dataclasses.dataclass
class Pending:
    """An array that the devices may not have computed yet."""

    ready: bool

    def is_ready(self) -> bool:
        return self.ready


@pytest.mark.parametrize(
    ("ready", "idle"),
    [([], True), ([True], True), ([False], False), ([True, False], False)],
)
def test_devices_are_idle_when_the_last_call_is_done(
    ready: list[bool], idle: bool
) -> None:
    in_flight = collections.deque(
        loop.InFlight(step, 1, {"step": Pending(done)}, None)  # type: ignore[dict-item]
        for step, done in enumerate(ready)
    )
    asked: Any = types.SimpleNamespace(_in_flight=in_flight)
    assert loop.Loop._devices_idle(asked) == idle


@pytest.mark.slow
def test_waiting_for_data_is_measured_and_explained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With slow data the devices wait, and a sentence says what to do; evaluation, however
    slow, is no part of the images per second."""

    evaluate = Evaluator.evaluate

    def evaluate_slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate_slowly)
    waits = {}
    for seconds in (0.0, 0.1):
        config = commands.load_config(NARROW)
        config.devices = 1
        config.data = SlowDigits(seconds=seconds, threads=1)
        config.log.every = steps(10)
        train(config, tmp_path / str(seconds))
        said = "The devices wait for data" in capsys.readouterr().out
        lines = train_lines(tmp_path / str(seconds))
        waited = [line["data_wait"] for line in lines]
        waits[seconds] = statistics.median(waited)
        in_threes = zip(waited, waited[1:], waited[2:], strict=False)
        assert said == any(min(three) > 0.1 for three in in_threes)
        # Ten batches of 48 take 1 s here, and the evaluation between them another.
        assert min(line["img_per_s"] for line in lines[1:]) > 300
    assert waits[0.0] < 0.1
    assert waits[0.1] > 0.5


@pytest.mark.slow
def test_loop_costs_less_than_five_percent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def config() -> config_lib.Config:
        config = commands.load_config(
            commands.RECIPES.parents[1] / "configs/resnet18.py"
        )
        config.model.width = 16
        config.augment = (Resize(size=16), *config.augment)
        config.devices = 1
        config.duration = steps(120)
        # Neither evaluations nor checkpoints count as training: leave them out.
        config.evaluation.every = config.checkpoint.every = steps(120)
        return config

    workdir = tmp_path / "run"
    bare, every_hundred, every_step = medians(
        lambda: bare_images_per_second(config(), 100),
        lambda: loop_images_per_second(config(), workdir, 20),
        lambda: loop_images_per_second(config(), workdir, 1),
    )
    with capsys.disabled():
        print(
            f"\nbare step {bare:,.0f} img/s; loop, logging every 20 steps "
            f"{every_hundred / bare:.1%} of it; every step {every_step / bare:.1%}"
        )
    assert every_hundred > 0.95 * bare
    assert abs(every_step / every_hundred - 1) < 0.05
    assert np.isfinite(bare)
