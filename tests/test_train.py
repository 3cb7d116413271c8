"""Whole runs in this process: devices, workers, evaluation, bad steps, what is kept."""

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import pytest

from jaxcls import config as config_lib
from jaxcls.augment import HorizontalFlip, RandomCrop, Transform
from jaxcls.checkpoint import checkpoints as checkpoint
from jaxcls.config import Config
from jaxcls.data import ArraySource, Digits
from jaxcls.data.order import record_ids
from jaxcls.data.sources import Split
from jaxcls.duration import Duration, steps
from jaxcls.errors import Diverged, UserError
from jaxcls.inference.evaluation import Evaluator, evaluate_checkpoint
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.optim import EMA, ClipNorm
from jaxcls.train import train
from jaxcls.training import loop
from tests import commands
from tests.recipes import narrow  # noqa: F401 (registers a network)

evaluate = Evaluator.evaluate


def bare(**changes: Any) -> Config:
    """Returns the tiny recipe with other values at its root."""
    config = commands.load_config(commands.RECIPES / "tiny.py")
    return dataclasses.replace(config, **changes)


def tiny(**changes: Any) -> Config:
    """Returns it with crops, flips, clipping and an average of the weights."""
    config = bare()
    moves = (RandomCrop(padding=1, mode="edge"), HorizontalFlip())
    everything = {
        "augment": (*moves, *config.augment),
        "loss": SoftmaxCrossEntropy(label_smoothing=0.1),
        "clip": ClipNorm(max_norm=1.0),
        "ema": EMA(decay=0.9),
    }
    return dataclasses.replace(config, **{**everything, **changes})


def train_losses(workdir: Path) -> list[float]:
    lines = commands.metrics(workdir)
    return [line["train/loss"] for line in lines if "train/loss" in line]


# What the network of the run saw does not depend on the machine.


@pytest.mark.parametrize("bn_group", [None, 16])
@pytest.mark.parametrize(
    "model",
    [
        "tiny",
        pytest.param("resnet_narrow", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
    ],
)
def test_devices_and_workers_do_not_change_the_run(
    tmp_path: Path, model: str, bn_group: int | None
) -> None:
    losses, folders = {}, {}
    total = 10 if model == "tiny" else 20
    for devices, workers in ((1, 0), (8, 0), (8, 2)):
        if bn_group is not None and workers:
            continue  # workers and groups have nothing to do with each other
        config = tiny(devices=devices, batch_size=128, duration=steps(total))
        config.model.name = model
        if model != "tiny":
            config.model.stem, config.model.width = "small", 8
        if model == "resnet18":
            # At a rate of 0.05 twenty layers amplify rounding to 0.1 within 20 steps.
            config.optimizer.learning_rate = 0.001
        config.model.bn_group = bn_group
        config.data.workers = workers
        config.log.every = steps(1)
        # Evaluations and saves within the run have tests of their own.
        config.evaluation.every = config.checkpoint.every = config.duration
        folders[devices, workers] = tmp_path / f"{devices}-{workers}"
        train(config, folders[devices, workers])
        losses[devices, workers] = np.array(train_losses(folders[devices, workers]))
    one = losses.pop((1, 0))
    assert len(one) == total and np.ptp(one) > 0.05  # it does train
    for other in losses.values():
        np.testing.assert_allclose(other[:5], one[:5], atol=1e-5)
        np.testing.assert_allclose(other, one, atol=1e-3)
    if bn_group is None:
        # On the same devices, loading cannot make any difference at all.
        last = Path("checkpoints", str(total))
        commands.assert_same_arrays(folders[8, 0] / last, folders[8, 2] / last)


def test_checkpoint_of_eight_devices_serves_on_one_and_two(tmp_path: Path) -> None:
    def config(devices: int) -> Config:
        return tiny(devices=devices, duration=steps(12), batch_size=64)

    whole = train(config(8), tmp_path / "whole")
    with interrupted_after(10):
        assert not train(config(8), tmp_path / "begun").complete
    lines = commands.metrics(tmp_path / "begun")
    logged = next(line for line in lines if "eval/top1" in line)
    for devices in (1, 2):
        workdir = tmp_path / str(devices)
        shutil.copytree(tmp_path / "begun", workdir)
        saved = evaluate_checkpoint(workdir / "checkpoints" / "10", devices=devices)
        assert saved["eval/top1"] == logged["eval/top1"]
        np.testing.assert_allclose(
            saved["eval/loss_ema"], logged["eval/loss_ema"], atol=1e-5
        )
        resumed = train(config(devices), workdir)
        assert resumed.step == 12
        for name in ("eval/loss", "eval/loss_ema"):
            np.testing.assert_allclose(
                resumed.metrics[name], whole.metrics[name], atol=1e-4
            )


@contextlib.contextmanager
def interrupted_after(step: int) -> Any:
    """Sends this process SIGTERM when the loop has made `step` steps."""
    write = loop.MetricWriter.write

    def write_and_signal(self: Any, values: dict[str, Any]) -> None:
        write(self, values)
        if values["step"] == step and "eval/top1" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.MetricWriter, "write", write_and_signal)
        yield


# Evaluation.


class FewDigits(Digits):
    """Digits of which only the first `num_test` images are for testing."""

    num_test: ClassVar[int] = 360

    def source(self, split: Split) -> ArraySource:
        whole = super().source(split)
        if split == "train":
            return whole
        n = self.num_test
        return ArraySource("few", whole.images[:n], whole.labels[:n], whole.class_names)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A config and the folder of its finished run."""
    workdir = tmp_path_factory.mktemp("trained")
    config = tiny(data=FewDigits(), duration=steps(20))
    train(config, workdir)
    return config, workdir


@functools.cache
def network() -> Callable[..., jax.Array]:
    """Returns logits(variables, images) of the tiny network, compiled once."""
    apply = tiny().model.create(10).apply
    return jax.jit(functools.partial(apply, train=False))


def numpy_metrics(config: Config, folder: Path, num_test: int) -> dict[str, float]:
    """Evaluates image by image, in NumPy but for the network itself."""
    state = commands.nested(commands.arrays(folder))
    source = config.data.source("test")
    found: dict[str, float] = {"eval/examples": num_test}
    for suffix, variables in (("", state), ("_ema", state["ema"])):
        weights = {name: variables[name] for name in ("params", "batch_stats")}
        losses, ranks, labels = [], [], []
        for index in range(num_test):
            record = source[index]
            image = (record["image"].astype(np.float32) / 255 - 0.5) / 0.5
            logits = np.asarray(network()(weights, image[None]))[0]
            logits = logits.astype(np.float64)
            label = record["label"]
            labels.append(label)
            losses.append(np.log(np.exp(logits).sum()) - logits[label])
            ranks.append(list(np.argsort(-logits, kind="stable")).index(label))
        found[f"eval/loss{suffix}"] = float(np.mean(losses))
        found[f"eval/top1{suffix}"] = float(np.mean(np.array(ranks) < 1))
        found[f"eval/top5{suffix}"] = float(np.mean(np.array(ranks) < 5))
        right = np.array(ranks) < 1
        recalls = [right[np.array(labels) == label].mean() for label in set(labels)]
        found[f"eval/balanced_top1{suffix}"] = float(np.mean(recalls))
    return found


def check_evaluation(
    trained: tuple[Config, Path],
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    batch: int,
    devices: int,
    workers: int,
) -> None:
    config, workdir = trained
    monkeypatch.setattr(FewDigits, "num_test", n)
    folder = checkpoint.find_checkpoint(workdir)
    results = evaluate_checkpoint(
        workdir, batch_size=batch, devices=devices, workers=workers
    )
    expected = numpy_metrics(config, folder, n)
    assert results.pop("step") == 20
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        exact = "loss" not in name
        np.testing.assert_allclose(
            results[name], value, rtol=1e-12 if exact else 1e-5, err_msg=name
        )


@pytest.mark.parametrize(
    ("n", "batch", "devices", "workers"),
    [(1, 7, 1, 0), (7, 16, 8, 0), (62, 7, 8, 2), (360, 16, 1, 0)],
)
def test_every_image_is_evaluated_once(
    trained: tuple[Config, Path],
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    batch: int,
    devices: int,
    workers: int,
) -> None:
    check_evaluation(trained, monkeypatch, n, batch, devices, workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "batch", "devices", "workers"),
    list(itertools.product((1, 7, 62, 360), (7, 16), (1, 8), (0, 2))),
)
def test_every_image_is_evaluated_once_in_every_way(
    trained: tuple[Config, Path],
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    batch: int,
    devices: int,
    workers: int,
) -> None:
    check_evaluation(trained, monkeypatch, n, batch, devices, workers)


def test_evaluate_gives_what_training_logged(trained: tuple[Config, Path]) -> None:
    _, workdir = trained
    logged = commands.metrics(workdir)[-1]
    logged.pop("epoch")
    assert evaluate_checkpoint(workdir) == logged
    mirrored = evaluate_checkpoint(workdir, views="flip")
    assert mirrored["eval/loss"] != logged["eval/loss"]
    assert evaluate_checkpoint(workdir, views="one") == logged
    with pytest.raises(UserError, match=r"unknown views 'flop'.*Did you mean 'flip'"):
        evaluate_checkpoint(workdir, views="flop")


def test_signal_in_mid_evaluation(
    tmp_path: Path, trained: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = trained
    batches = itertools.count()

    def evaluate_and_signal(self: Any, weights: Any, should_stop: Any) -> Any:
        def stop() -> bool:
            if next(batches) == 3:  # in the middle of the six batches of the first
                os.kill(os.getpid(), signal.SIGTERM)
            return should_stop()

        return evaluate(self, weights, stop)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate_and_signal)
    stopped = train(config, tmp_path)
    assert not stopped.complete and stopped.step == 10
    assert (tmp_path / "checkpoints" / "10").is_dir()
    assert not any("eval/top1" in line for line in commands.metrics(tmp_path))
    assert train(config, tmp_path).complete
    assert commands.metrics(tmp_path) == commands.metrics(whole)
    last = Path("checkpoints", "20")
    commands.assert_same_arrays(tmp_path / last, whole / last)


# Steps that are not finite.


@dataclasses.dataclass(kw_only=True)
class Poison(Transform):
    """Makes a batch NaN where one of its images is `grey` throughout.

    Attributes:
      grey: the grey level that poisons.
    """

    grey: int = 200

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        del rng
        poisoned = (images == self.grey).all((1, 2, 3)).any()
        return jax.numpy.where(poisoned, jax.numpy.nan, images), targets


@dataclasses.dataclass(kw_only=True)
class PoisonedDigits(Digits):
    """Digits of which the records `records` are grey throughout.

    Attributes:
      records: indices into the training split.
    """

    records: tuple[int, ...] = ()

    def source(self, split: Split) -> ArraySource:
        source = super().source(split)
        if split == "train":
            source.images[list(self.records)] = 200
        return source


def poisoned(at: list[int], total: int, **changes: Any) -> Config:
    """Returns a config in which the steps `at`, and none else, are not finite."""
    config = tiny(duration=steps(total), **changes)
    ids = {int(record_ids(config.seed, step, 48, 1437)[0]) for step in at}
    config.data = PoisonedDigits(records=tuple(sorted(ids)))
    config.augment = (Poison(), *config.augment)
    return config


def test_bad_step_changes_nothing(tmp_path: Path) -> None:
    config = poisoned([5], 6)
    config.checkpoint.every = steps(1)
    train(config, tmp_path)
    before = commands.arrays(tmp_path / "checkpoints" / "5")
    after = commands.arrays(tmp_path / "checkpoints" / "6")
    weights = [
        name
        for name in before
        if name.split("/")[0] in ("params", "batch_stats", "opt_state", "ema")
    ]
    assert len(weights) == 19
    for name in weights:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert (before["bad_steps"], after["bad_steps"], after["step"]) == (0, 1, 6)


def test_divergence_ends_the_run_with_a_finite_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = poisoned(list(range(5, 10)), 10, max_bad_steps=4)
    with pytest.raises(Diverged, match=r"4 steps in a row, from step 5 on"):
        train(config, tmp_path)
    newest = checkpoint.find_checkpoint(tmp_path)
    assert newest.name == "5"
    for name, values in commands.arrays(newest).items():
        assert np.isfinite(values).all(), name


def test_newest_and_best_are_kept_when_accuracy_falls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = itertools.count(90, -1)

    def evaluate_falling(*args: Any, **kwargs: Any) -> dict[str, float]:
        results = evaluate(*args, **kwargs)
        assert results is not None
        return {**results, "eval/top1": next(falling) / 100}

    monkeypatch.setattr(Evaluator, "evaluate", evaluate_falling)
    config = bare(duration=steps(6))
    config.evaluation.every = config.checkpoint.every = Duration(1, "steps")
    config.checkpoint.keep = 2
    train(config, tmp_path)
    kept = sorted(int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert kept == [1, 5, 6]
    for step in kept:
        assert evaluate_checkpoint(tmp_path / "checkpoints" / str(step))["step"] == step


def test_fresh_moves_the_old_run_aside(tmp_path: Path) -> None:
    config = bare(duration=steps(6))
    workdir = tmp_path / "run"
    train(config, workdir)
    config.seed = 1
    train(config, workdir, fresh=True)
    old = config_lib.from_dict(
        checkpoint.read_info(tmp_path / "run.old-1" / "checkpoints" / "6")["config"]
    )
    assert old.seed == 0
    assert (
        checkpoint.read_info(checkpoint.find_checkpoint(workdir))["config"]["seed"] == 1
    )
