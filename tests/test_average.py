"""Averages of checkpoints, against NumPy; and what can and cannot be done with them."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls import average as command
from jaxcls import config as config_lib
from jaxcls.augment import Normalize
from jaxcls.checkpoint import checkpoints as checkpoint
from jaxcls.checkpoint import weights_only
from jaxcls.config import Config, StopEarly
from jaxcls.duration import steps
from jaxcls.errors import UserError
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.inference.trained import load_trained
from jaxcls.models import MODELS
from jaxcls.models.resnet import ResNet
from jaxcls.optim import EMA, ScheduleFreeAdamW
from jaxcls.train import train
from jaxcls.training.weight_average import average, mean
from tests import commands

# One block: half the time to compile of those two that the recipe has.
SHALLOW = "resnet_shallow"
MODELS[SHALLOW] = functools.partial(ResNet, stage_sizes=(1,))


def shallow(**changes: Any) -> Config:
    config = commands.load_config(commands.RECIPES / "narrow.py")
    config.model.name, config.augment = SHALLOW, config.eval_transform
    config.clip, config.log.tensorboard = None, False
    config.checkpoint.every, config.checkpoint.keep = steps(20), 4
    config.evaluation.every = steps(20)
    config.optimizer.learning_rate = 0.3
    given = {"devices": 1, "duration": steps(80), "ema": EMA(decay=0.8), **changes}
    return dataclasses.replace(config, **given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of 80 steps with checkpoints at 20, 40, 60 and 80, and another from other random
    weights."""
    folder = tmp_path_factory.mktemp("runs")
    train(shallow(), folder / "one")
    train(shallow(seed=1, ema=None), folder / "other")
    return {name: folder / name for name in ("one", "other")}


def step(run: Path, number: int) -> Path:
    return run / "checkpoints" / str(number)


def variables(arrays: dict[str, np.ndarray], kind: str = "raw") -> dict[str, Any]:
    """Returns the "params/..." and "batch_stats/..." of a checkpoint."""
    prefix = "ema/" if kind == "ema" else ""
    wanted = (f"{prefix}params/", f"{prefix}batch_stats/")
    return {
        name.removeprefix(prefix): leaf
        for name, leaf in arrays.items()
        if name.startswith(wanted)
    }


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_the_newest_of_a_run_are_averaged_as_numpy_does(
    runs: dict[str, Path], tmp_path: Path, kind: Any
) -> None:
    made = average([runs["one"]], tmp_path / "out", last=3, weights=kind)
    assert made == step(tmp_path / "out", 80)
    found = commands.arrays(made)
    parts = [
        variables(commands.arrays(step(runs["one"], number)), kind)
        for number in (40, 60, 80)
    ]
    assert found.keys() == parts[0].keys()  # nothing else is in it
    for name, leaf in found.items():
        expected = np.mean([np.float64(part[name]) for part in parts], axis=0)
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, expected, rtol=1e-6, atol=1e-9, err_msg=name)
    # They do differ, and each counts.
    kernel = "params/fc/kernel"
    assert np.ptp([part[kernel] for part in parts], axis=0).max() > 1e-3
    said = checkpoint.read_info(made)[weights_only.MADE_BY]
    assert f"the {kind} weights" in said and "/checkpoints/40" in said


def test_a_soup_of_runs_evaluates_like_its_weights(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    made = average([runs["one"], step(runs["other"], 60)], tmp_path / "out")
    found = commands.nested(commands.arrays(made))
    config = shallow()
    model = config.model.create(10)
    source = config.data.source("test")
    images = (source.images.astype(np.float32) / 255 - 0.5) / 0.5
    logits = np.asarray(jax.jit(model.apply)(found, images))
    top1 = np.mean(logits.argmax(1) == source.labels)
    results = evaluate_checkpoint(tmp_path / "out")
    assert results["eval/top1"] == pytest.approx(top1, abs=1e-12)
    assert results["step"] == 80
    assert "eval/top1_ema" not in results  # there is but one set of weights


@pytest.mark.parametrize(
    "averaging",
    [
        {"ema": EMA(decay=0.9), "precise_bn": 10},
        {"ema": None, "optimizer": ScheduleFreeAdamW(learning_rate=0.01)},
    ],
)
def test_the_config_of_raw_weights_is_valid_without_an_average(averaging: Any) -> None:
    config = shallow(**averaging, stop_early=StopEarly(metric="eval/top1_ema"))
    config.checkpoint.best = "eval/top1_ema"
    config_lib.validate(config)
    raw = weights_only.without_average(config)
    config_lib.validate(raw)
    assert config.has_average and not raw.has_average
    assert config.checkpoint.best == "eval/top1_ema"  # that of the run stays


def test_equal_weights_are_their_own_mean() -> None:
    tree = {"a": np.float32([0.1, 1e-30, 3e4]), "b": {}}
    found = mean([tree, tree, tree])
    np.testing.assert_array_equal(found["a"], tree["a"])
    assert found["b"] == {}


def test_estimated_statistics_are_no_worse_than_averaged_ones(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """Two networks from different random weights, halfway between which the averaged
    statistics are of neither (Izmailov et al. 2018, section 3.2)."""
    both = [runs["one"], runs["other"]]
    average(both, tmp_path / "averaged")
    average(both, tmp_path / "estimated", precise_bn=1000)
    averaged, estimated = (
        evaluate_checkpoint(tmp_path / name) for name in ("averaged", "estimated")
    )
    print(averaged, estimated)
    assert estimated["eval/top1"] >= averaged["eval/top1"]
    assert estimated["eval/loss"] < averaged["eval/loss"]
    # Nothing but the statistics is another.
    one, two = (
        commands.arrays(step(tmp_path / name, 80)) for name in ("averaged", "estimated")
    )
    for name in one:
        same = np.array_equal(one[name], two[name])
        assert same == name.startswith("params"), name


def test_an_average_begins_a_run_but_is_not_continued(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = average([runs["one"]], out, last=2, weights="ema")
    before = commands.arrays(made)
    for config in (shallow(), shallow(ema=None, duration=steps(81))):
        with pytest.raises(UserError, match="weights alone"):
            train(config, out)
    with pytest.raises(UserError, match=r"weights alone \(the average of the ema.*"):
        weights_only.refuse_training(checkpoint.read_info(made), out)
    weights_only.refuse_training(checkpoint.read_info(step(runs["one"], 80)), out)
    for name, leaf in commands.arrays(made).items():
        np.testing.assert_array_equal(leaf, before[name])
    trained = load_trained(str(out), SHALLOW)
    assert trained.model.num_classes == 10  # type: ignore[attr-defined]
    kernel = trained.variables["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel, before["params/fc/kernel"])


def like(run: Path, out: Path, **changes: Any) -> Path:
    """Writes a checkpoint with the weights of a run that says another thing of itself: its
    classes, eval_transform or options of the network."""
    folder = step(run, 80)
    said = checkpoint.read_info(folder)
    config = weights_only.without_average(config_lib.from_dict(said["config"]))
    for name, value in changes.items():
        if name in said:
            said[name] = value
        else:
            owner = config.model if hasattr(config.model, name) else config
            setattr(owner, name, value)
    said |= {"config": config_lib.to_dict(config), weights_only.MADE_BY: "a test"}
    return weights_only.write(out, commands.nested(commands.arrays(folder)), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"class_names": ["zero", *"123456789"]},
            r"differ in the classes: 0, 1, 2, 3, 4, ... \(10 in all\) and zero, 1, 2",
        ),
        ({"width": 4}, "differ in the options of the network: .*'width': 4"),
        ({"name": "resnet20"}, "differ in model.name: resnet_shallow and resnet20"),
        (
            {"eval_transform": (Normalize(mean=(0.4,), std=(0.5,)),)},
            r"differ in eval_transform: .*mean=\(0.4,\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    runs: dict[str, Path], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    other = like(runs["one"], tmp_path / "different", **change)
    with pytest.raises(UserError, match=said):
        average([runs["one"], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_only_training_reads_may_differ(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    changes = {"drop_path": 0.3, "bn_group": 16, "seed": 9, "dtype": "bfloat16"}
    other = like(runs["one"], tmp_path / "other", **changes)
    made = average([runs["one"], other], tmp_path / "out")
    kernel = "params/conv1/kernel"
    one = commands.arrays(step(runs["one"], 80))
    np.testing.assert_array_equal(commands.arrays(made)[kernel], one[kernel])


def test_mistakes_are_sentences(runs: dict[str, Path], tmp_path: Path) -> None:
    one, out = runs["one"], tmp_path / "out"
    for options, said in (
        ({"paths": []}, "nothing to average"),
        ({"paths": [one]}, "is its own average"),
        ({"paths": [one], "last": 0}, "--last must be 1 or more"),
        ({"paths": [one], "last": 9}, "fewer than --last 9"),
        ({"paths": [one, runs["other"]], "last": 2}, "name the run's folder alone"),
        ({"paths": [step(one, 80)], "last": 2}, "name the run's folder alone"),
        ({"paths": [one, step(one, 80)]}, "is named twice"),
        ({"paths": [one, tmp_path]}, "has no checkpoint in it"),
        ({"paths": [one], "last": 2, "precise_bn": 0}, "precise_bn must be a number"),
        (
            {"paths": [one, runs["other"]], "weights": "ema"},
            "other/checkpoints/80 has no averaged weights",
        ),
    ):
        with pytest.raises(UserError, match=said):
            average(out=out, **options)  # type: ignore[arg-type]
        assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match=f"{out} exists"):
        average([one], out, last=2)


def test_a_write_that_fails_leaves_nothing(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            average([runs["one"]], tmp_path / "out", last=2)
    assert list(tmp_path.iterdir()) == []


def test_the_command(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    arguments = ["--checkpoints", str(runs["one"]), "--last", "2", "--out", str(out)]
    assert command.main(arguments) == 0
    assert f"{step(out, 80)}: the average of the raw weights" in capsys.readouterr().out
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {out} exists")
    with pytest.raises(SystemExit) as left:
        command.main(["--help"])
    assert left.value.code == 0
    assert "--precise_bn" in capsys.readouterr().out
