"""Whole runs: early stopping, estimated statistics, distillation, dry runs, averages."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.augment import HorizontalFlip, Resize
from jaxcls.config import Config, Distillation, StopEarly
from jaxcls.data import Digits
from jaxcls.data.loader import TrainBatches
from jaxcls.data.sources import ArraySource, Source, Split
from jaxcls.duration import fraction, steps
from jaxcls.errors import UserError
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.losses import MultiLabelAsymmetric, MultiLabelBinaryCrossEntropy
from jaxcls.optim import EMA, AdamW, Constant, Group, WarmupCosine
from jaxcls.report.contact_sheet import label_text
from jaxcls.report.writers import read_metrics
from jaxcls.train import dry_run, main, train
from jaxcls.training.preview import preview
from tests import commands
from tests.training.test_loop import train_and_stop


def tiny(**options: Any) -> Config:
    """40 steps on digits, evaluated and logged every 10, saved every 20."""
    config = commands.load_config(commands.RECIPES / "tiny.py")
    config.checkpoint.every, config.log.tensorboard = steps(20), False
    # Runs of any length have one program.
    config.schedule = Constant(warmup=steps(4))
    return dataclasses.replace(config, **options)


def long(length: int, **options: Any) -> Config:
    """More steps, saved and evaluated at their end alone."""
    config = tiny(duration=steps(length), **options)
    config.evaluation.every = config.checkpoint.every = steps(length)
    return config


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ten steps, saved at 5 and 10."""
    workdir = tmp_path_factory.mktemp("ten") / "run"
    config = tiny(duration=steps(10))
    config.checkpoint.every = steps(5)
    train(config, workdir)
    return workdir


def lines(workdir: Path, having: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(workdir / "metrics.jsonl") if having in line]


# -------------------------------------------------------------------------- early stopping


def test_a_plateau_ends_the_run_for_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Nothing rises by 0.9: the second evaluation is one patience after the best, the first.
    config = tiny(stop_early=StopEarly(patience=steps(10), min_delta=0.9))
    config.checkpoint.every = steps(5)
    result = train(config, tmp_path / "run")
    assert (result.complete, result.step) == (True, 20)
    assert "on a plateau at step 20" in capsys.readouterr().out
    folders = {path.name for path in (tmp_path / "run" / "checkpoints").glob("*")}
    assert "20" in folders and "25" not in folders
    again = train(config, tmp_path / "run")
    assert (again.complete, again.step, again.metrics) == (True, 20, result.metrics)
    assert "is complete at step 20" in capsys.readouterr().out
    # More patience is another run.
    config.stop_early = StopEarly(patience=steps(15))
    with pytest.raises(UserError, match=r"stop_early\.patience"):
        train(config, tmp_path / "run")


# ---------------------------------------------------------------------- batch statistics


def flipping() -> Config:
    config = long(20, ema=EMA(decay=0.8), precise_bn=130)
    config.augment = (HorizontalFlip(), *config.augment)
    return config


@pytest.fixture(scope="module")
def estimated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run whose statistics are estimated once, at its end."""
    workdir = tmp_path_factory.mktemp("estimated") / "run"
    train(flipping(), workdir)
    return workdir / "checkpoints" / "20"


def test_estimated_statistics_are_those_of_the_images(estimated: Path) -> None:
    config, state = flipping(), commands.nested(commands.arrays(estimated))
    # 130 images are three batches of 48, the first of the run.
    batches = TrainBatches(
        config.data.source("train"), seed=0, batch_size=48, num_steps=3
    )
    pixels = np.concatenate([batches[step]["image"] for step in range(3)])
    x = np.pad(np.float64(pixels) / 255 * 2 - 1, ((0, 0), (0, 1), (0, 1), (0, 0)))
    kernel = np.float64(state["ema"]["params"]["Conv_0"]["kernel"])
    # Stride 2 with "SAME" padding: a window at every second pixel, one row of zeros below.
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::2, ::2]
    seen = np.einsum("nyxchw,hwco->nyxo", windows, kernel).reshape(-1, 8)
    found = state["ema"]["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], seen.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["var"], seen.var(0, ddof=1), rtol=1e-4)
    # The raw weights keep the running ones.
    raw = state["batch_stats"]["BatchNorm_0"]
    assert np.abs(raw["mean"] - found["mean"]).max() > 1e-3


def test_when_statistics_are_estimated_does_not_change_the_run(
    estimated: Path, tmp_path: Path
) -> None:
    config = flipping()
    config.evaluation.every = config.checkpoint.every = steps(5)
    train(config, tmp_path / "run")
    commands.assert_same_arrays(tmp_path / "run" / "checkpoints" / "20", estimated)


# --------------------------------------------------------------------------------- averages


def test_after_a_hundred_steps_the_average_is_as_good(tmp_path: Path) -> None:
    config = long(100, ema=EMA(decay=0.9999))
    config.optimizer.learning_rate = 0.1
    found = train(config, tmp_path / "run").metrics
    assert found["eval/top1"] > 0.8
    assert abs(found["eval/top1_ema"] - found["eval/top1"]) <= 0.02


# -------------------------------------------------------------------------------- schedules


def test_a_stopped_run_goes_on_with_the_same_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        schedule=WarmupCosine(warmup=steps(7), every="epoch", end=0.1),
        decay_schedule=Constant(warmup=fraction(0.5)),
        optimizer=AdamW(learning_rate=0.01, weight_decay=0.1),
    )
    config.log.every = steps(1)
    train(config, tmp_path / "whole")
    assert 17 <= train_and_stop(config, tmp_path / "parts", monkeypatch, at=17) < 40
    assert train(config, tmp_path / "parts").complete
    rates = [
        [(line["step"], line["lr"]) for line in lines(tmp_path / name, "lr")]
        for name in ("whole", "parts")
    ]
    assert rates[0] == rates[1] and len(rates[0]) == 40
    assert rates[0][0][1] > 0


# ----------------------------------------------------------------------------- distillation


def test_a_run_teaches_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = long(100)
    config.optimizer.learning_rate = 0.1
    teacher = train(config, tmp_path / "teacher").metrics["eval/top1"]
    assert teacher > 0.8
    # By the teacher alone: what is learned did not come from labels.
    student = long(
        100,
        distill=Distillation(teacher=str(tmp_path / "teacher"), alpha=1.0),
        seed=1,
    )
    student.optimizer.learning_rate = 0.05
    assert train(student, tmp_path / "student").metrics["eval/top1"] > 0.75
    said = capsys.readouterr().out
    assert "learns from the raw weights of step 100 in" in said
    student.distill = Distillation(teacher=str(tmp_path / "nobody"))
    with pytest.raises(UserError, match="nobody"):
        train(student, tmp_path / "none")
    assert not (tmp_path / "none").exists() or not any((tmp_path / "none").iterdir())


def test_a_run_keeps_its_teacher(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tmp_path / "teacher"
    shutil.copytree(ten, name)
    student = tiny(distill=Distillation(teacher=str(name)), duration=steps(20))
    train_and_stop(student, tmp_path / "student", monkeypatch, at=7)
    # Other weights of the same name and step.
    shutil.rmtree(name)
    train(long(10, seed=1), name)
    with pytest.raises(UserError, match=r"distill\.teacher: its weights are others"):
        train(student, tmp_path / "student")
    shutil.rmtree(name)
    shutil.copytree(ten, name)
    assert train(student, tmp_path / "student").complete


def test_a_teacher_of_other_images_or_in_the_way(ten: Path, tmp_path: Path) -> None:
    shutil.copytree(ten, tmp_path / "teacher")
    student = tiny(distill=Distillation(teacher=str(tmp_path / "teacher")))
    with pytest.raises(UserError, match="lies in the run's own folder"):
        train(student, tmp_path / "teacher", fresh=True)
    assert (tmp_path / "teacher" / "checkpoints" / "10").exists()
    student.augment = (Resize(size=16), *student.augment)
    student.eval_transform = student.augment
    with pytest.raises(UserError, match=r"the teacher .* cannot take .*\(16, 16, 1\)"):
        train(student, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_rate": 10.0}, "attribute HEADS"),
        ({"layer_decay": 0.5}, r"method layers\(\)"),
        ({"accumulate": 48, "devices": 8}, "parts of 1 images"),
        ({"freeze": "nothing"}, "'nothing' is found in none"),
    ],
)
def test_a_mistake_costs_no_earlier_run(
    options: dict[str, Any], words: str, ten: Path, tmp_path: Path
) -> None:
    shutil.copytree(ten, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words):
        train(tiny(**options), tmp_path / "run", fresh=True)
    with pytest.raises(UserError, match=words):
        dry_run(tiny(**options))
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluations_that_decide_about_the_end_may_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(stop_early=StopEarly(patience=steps(20), min_delta=0.9))
    train_and_stop(config, tmp_path / "run", monkeypatch, at=12)
    config.evaluation.every = steps(20)
    with pytest.raises(UserError, match=r"evaluation\.every"):
        train(config, tmp_path / "run")
    config.evaluation.every = steps(10)
    config.evaluation.batch_size = 32
    assert train(config, tmp_path / "run").step == 30


# --------------------------------------------------------------------------------- dry runs


def test_a_dry_run_says_everything_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(
        ema=EMA(decay=0.9),
        groups=(Group(pattern="Dense", rate=0.5),),
        schedule=WarmupCosine(warmup=steps(4)),
    )
    config.optimizer.learning_rate, config.optimizer.rate_per = 0.1, 256
    monkeypatch.chdir(tmp_path)
    dry_run(config)
    assert not list(tmp_path.iterdir())
    said = capsys.readouterr().out
    peak = 0.1 * 48 / 256
    assert f"peak learning rate {peak:g} (0.1 per 256 images, linear scaling)" in said
    assert f"{peak / 2:.4g}" in said and "Dense_0: bias" in said
    # Weights, momentum and average: 1 x 3 x 3 x 8 + 3 x 8 numbers and a layer of 128 x 10 + 10,
    # twice 8 statistics.
    megabytes = (72 + 16 + 1290 + 16) * 4 / 1e6
    assert f"{megabytes:.1f} MB  averaged weights" in said
    assert "temporary, in a step" in said
    assert f"{peak * 0.01:.4g} at step 0" in said and "0 at step 39" in said


def test_a_dry_run_by_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config={commands.RECIPES / 'tiny.py'}", "--dry_run"]
    assert main([*arguments, "--config.freeze=Conv"]) == 0
    assert "never" in capsys.readouterr().out
    assert main([*arguments, "--config.freeze=conv1"]) == 2
    assert "Conv_0" in capsys.readouterr().err
    assert main([*arguments, "--config.model.weights=nonsense"]) == 2
    assert "no file or folder nonsense" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_and_loss_must_be_of_one_kind(tmp_path: Path) -> None:
    config = tiny(loss=MultiLabelBinaryCrossEntropy())
    with pytest.raises(
        UserError, match="have one class each, but the loss is MultiLabel"
    ):
        train(config, tmp_path / "run")


@dataclasses.dataclass(kw_only=True)
class Strokes(Digits):
    """Digits by what they have, of which some have both and some nothing: a loop (0, 6, 8, 9),
    and an even number."""

    def source(self, split: Split) -> Source:
        return ManyLabels(super().source(split))


class ManyLabels(Source):
    class_names = ("loop", "even")

    def __init__(self, digits: ArraySource):
        self.digits = digits
        digit = digits.labels[:, None]
        self.labels = np.concatenate(
            [np.isin(digit, [0, 6, 8, 9]), digit % 2 == 0], axis=1
        ).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.digits.images[index], "label": self.labels[index]}

    def __repr__(self) -> str:
        return repr(self.digits).replace("digits", "strokes")


def test_images_of_any_number_of_classes(tmp_path: Path) -> None:
    losses = {
        "host": MultiLabelBinaryCrossEntropy(positive_weights="auto"),
        "device": MultiLabelAsymmetric(),
    }
    for placement, loss in losses.items():
        config = long(80, data=Strokes(placement=placement), loss=loss)
        config.optimizer.learning_rate = 0.1
        config.checkpoint.best = "eval/mAP"
        found = train(config, tmp_path / placement).metrics
        # By chance it would be the share of the classes, 0.4 and 0.5.
        assert found["eval/mAP"] > 0.9 and found["eval/examples"] == 360
        assert "eval/top5" not in found
        again = evaluate_checkpoint(tmp_path / placement)
        for name in ("eval/mAP", "eval/top1", "eval/loss"):
            assert again[name] == found[name]
    with pytest.raises(UserError, match="any number of classes each, but the loss is"):
        train(tiny(data=Strokes()), tmp_path / "none")


def test_preview_shows_images_of_several_classes() -> None:
    config = tiny(data=Strokes(), loss=MultiLabelBinaryCrossEntropy())
    assert preview(config, count=6).width > 100
    assert label_text(np.array([1.0, 1.0]), ("loop", "even")) == "loop\neven"
    assert label_text(np.array([0.0, 0.0]), ("loop", "even")) == ""


def test_deterministic_is_the_same_run_on_a_cpu(ten: Path, tmp_path: Path) -> None:
    train(long(10, deterministic=True), tmp_path / "run")
    one, other = (run / "checkpoints" / "10" for run in (ten, tmp_path / "run"))
    commands.assert_same_arrays(one, other)
