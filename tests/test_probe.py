"""Heads on features, against NumPy and scikit-learn; probes of whole networks."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jaxcls.augment import FlipViews
from jaxcls.checkpoint import checkpoints as checkpoint
from jaxcls.checkpoint import weights_only
from jaxcls.config import Config
from jaxcls.data import ArraySource, CenterSquare, HostRandomResizedCrop, ImageFolder
from jaxcls.data.mixture import Mixture
from jaxcls.data.sources import Source, Split
from jaxcls.duration import steps
from jaxcls.errors import UserError
from jaxcls.inference import features as features_module
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.inference.features import features as features_of
from jaxcls.losses import MultiLabelBinaryCrossEntropy
from jaxcls.models import MODELS
from jaxcls.models.resnet import ResNet
from jaxcls.probe import main as probe_main
from jaxcls.train import train
from jaxcls.training import linear_head
from jaxcls.training.linear_head import Head, fit, held_out, logistic, ridge
from jaxcls.training.linear_probe import probe, without_chance
from tests import commands

CLASSES = 4


def clouds(n: int = 90, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Features of overlapping classes, float32 [n, width], of other means and scales; labels
    in 0..3, of which 3 never occurs."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES - 1, n)
    centres = random.normal(size=(CLASSES, width))
    values = centres[labels] + random.normal(size=(n, width))
    return np.float32(values * np.geomspace(0.3, 5, width) + 7), labels


def penalty(features: np.ndarray, strength: float) -> float:
    """What a strength says, in the units of the features, for one image."""
    return strength * np.float64(features).var(0).mean()


# One block, with as many features as the recipe's network of two.
SHALLOW = "resnet_shallow"
MODELS[SHALLOW] = functools.partial(ResNet, stage_sizes=(1,))
OPTIONS = [f"--config.model.name={SHALLOW}", "--config.model.width=16"]


def shallow(**changes: Any) -> Config:
    config = commands.load_config(commands.RECIPES / "narrow.py")
    config.model.name, config.model.width = SHALLOW, 16
    return dataclasses.replace(config, **{"devices": 1, **changes})


# The heads.


@pytest.mark.parametrize("chunk", [8192, 7])
def test_ridge_solves_the_normal_equations(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(linear_head, "CHUNK", chunk)
    features, labels = clouds()
    x = np.column_stack([np.float64(features), np.ones(len(labels))])
    y = np.float64(labels[:, None] == np.arange(CLASSES))
    strengths = [10.0, 0.1, 1e-6]
    heads = list(ridge(features, labels, CLASSES, strengths))
    for strength, head in zip(strengths, heads, strict=True):
        free_bias = np.diag([1.0] * features.shape[1] + [0.0])
        pull = len(labels) * penalty(features, strength) * free_bias
        solution = np.linalg.solve(x.T @ x + pull, x.T @ y)
        np.testing.assert_allclose(head.kernel, solution[:-1], rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(head.bias, solution[-1], rtol=1e-6, atol=1e-8)
    assert np.abs(heads[0].kernel).max() < 0.3 * np.abs(heads[2].kernel).max()


def test_logistic_is_that_of_scikit_learn() -> None:
    features, labels = clouds()
    strengths = [1.0, 1e-2, 1e-4]
    heads = list(logistic(features, labels, 3, strengths))
    for strength, head in zip(strengths, heads, strict=True):
        reference = LogisticRegression(
            C=1 / (len(labels) * penalty(features, strength)), tol=1e-9, max_iter=100000
        ).fit(np.float64(features), labels)
        expected = reference.predict_proba(np.float64(features))
        logits = features @ head.kernel + head.bias
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(shares, expected, atol=1e-4)
        np.testing.assert_allclose(head.kernel, reference.coef_.T, atol=1e-3, rtol=1e-3)


def test_a_class_without_images_is_never_chosen() -> None:
    features, labels = clouds()
    for kind in linear_head.KINDS:
        head, _ = fit(kind, features, labels, num_classes=CLASSES, strengths=[0.01])
        assert ((features @ head.kernel + head.bias).argmax(1) < 3).all()
        assert head.accuracy(features, labels) > 0.7


def test_a_regression_that_does_not_converge_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minimize = linear_head.scipy.optimize.minimize

    def short(*args: Any, options: Any, **kwargs: Any) -> Any:
        return minimize(*args, options={**options, "maxiter": 1}, **kwargs)

    monkeypatch.setattr(linear_head.scipy.optimize, "minimize", short)
    list(logistic(*clouds(), CLASSES, [1e-3]))
    assert "strength 0.001 has not converged" in capsys.readouterr().err


def test_a_share_of_each_class_is_held_out() -> None:
    labels = np.repeat([0, 1, 2, 4], [100, 10, 2, 1])
    held = held_out(labels, 0.2, seed=0)
    assert [held[labels == label].sum() for label in (0, 1, 2, 4)] == [20, 2, 1, 0]
    np.testing.assert_array_equal(held, held_out(labels, 0.2, seed=0))
    assert (held != held_out(labels, 0.2, seed=1)).any()


def test_the_strength_is_chosen_on_images_held_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stands in for a fit whose heads are right on a known share of the images held out."""
    features, labels = clouds()
    held = held_out(labels, linear_head.HELD_OUT, seed=3)
    right = {10.0: 0.1, 5.0: 0.1, 1.0: 0.9, 0.1: 0.9, 0.01: 0.3, 0.001: 0.2, 1e-4: 1.0}
    seen = []

    class Known(Head):
        def accuracy(self, images: np.ndarray, truth: np.ndarray) -> float:
            np.testing.assert_array_equal(images, features[held])
            np.testing.assert_array_equal(truth, labels[held])
            return right[float(self.bias[0])]

    def known(images: Any, truth: Any, classes: int, strengths: Any) -> Any:
        seen.append((len(truth), list(strengths)))
        return (Known(np.zeros(1), np.array([strength])) for strength in strengths)

    monkeypatch.setitem(linear_head.KINDS, "known", known)
    head, strength = fit(
        "known",
        features,
        labels,
        num_classes=CLASSES,
        strengths=[0.01, 0.1, 10, 1, 1e-4, 0.001, 5],
        seed=3,
    )
    assert strength == 1.0 == head.bias[0]  # of two that are equally good the larger
    # What comes after two that are worse is not looked at any more.
    tried = [10, 5, 1, 0.1, 0.01, 0.001, 1e-4]
    assert seen == [((~held).sum(), tried), (len(labels), [1.0])]
    few = np.arange(3)
    with pytest.raises(UserError, match="give --strength"):
        fit("ridge", features[:3], few, num_classes=3)


def test_features_that_do_not_differ_are_refused() -> None:
    for kind in linear_head.KINDS:
        with pytest.raises(UserError, match="does not tell images apart"):
            fit(kind, np.ones((8, 3)), np.arange(8) % 2, num_classes=2, strengths=[1.0])


# Whole networks.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps, with averaged weights."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train(shallow(duration=steps(10)), workdir)
    return workdir


@functools.cache
def features_and_logits() -> Any:
    return jax.jit(functools.partial(features_of, shallow().model.create(10)))


def seen(folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features and logits that the network of a checkpoint gives for a split of the digits,
    without the package's loading and evaluation; and the labels."""
    source = shallow().data.source(split)
    variables = commands.nested(commands.arrays(folder))
    images = (source.images.astype(np.float32) / 255 - 0.5) / 0.5
    found, logits = features_and_logits()(variables, images)
    return np.asarray(found), np.asarray(logits), source.labels


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_probe_of_a_run_is_a_checkpoint_of_its_own(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    out = tmp_path / "probe"
    config = shallow(eval_views=FlipViews())  # which a probe does without
    config.model.weights = str(weights)
    strength = 1e-3 if kind == "logistic" else None
    results = probe(config, out, head=kind, strength=strength)
    said = capsys.readouterr().out
    assert f"a {kind} head of strength" in said and "fitted to 1,437 images" in said
    made = checkpoint.find_checkpoint(out)
    _, logits, labels = seen(made, "test")
    top1 = np.mean(logits.argmax(1) == labels)
    assert results["eval/top1"] == pytest.approx(top1, abs=1e-12)
    assert evaluate_checkpoint(out) == results
    assert top1 > commands.metrics(weights)[-1]["eval/top1_ema"] + 0.3
    # Everything but the head is that of the run, whose averaged weights were taken.
    before, after = (
        commands.arrays(checkpoint.find_checkpoint(weights)),
        commands.arrays(made),
    )
    assert after.keys() == {
        name.removeprefix("ema/") for name in before if name.startswith("ema/")
    }
    for name, leaf in after.items():
        same = np.array_equal(leaf, before[f"ema/{name}"])
        assert same == (not name.startswith("params/fc")), name
    # The head is that of the training images as they are, neither cropped nor flipped.
    found, _, labels = seen(made, "train")
    strengths = linear_head.STRENGTHS if strength is None else [strength]
    head, _ = fit(kind, found, labels, num_classes=10, strengths=strengths)
    size = np.abs(head.kernel).max()
    np.testing.assert_allclose(after["params/fc/kernel"], head.kernel, atol=1e-3 * size)
    np.testing.assert_allclose(after["params/fc/bias"], head.bias, atol=1e-2)
    with pytest.raises(UserError, match="weights alone"):
        weights_only.refuse_training(checkpoint.read_info(made), out)


def test_random_features_serve_too_and_the_user_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = commands.RECIPES / "narrow.py"
    arguments = ["--config", str(recipe), *OPTIONS, "--config.devices=1", "--out"]
    assert probe_main([*arguments, str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "model.weights is None" in said.err
    assert "on 16 features of random weights" in said.out
    top1 = evaluate_checkpoint(tmp_path / "out")["eval/top1"]
    assert f"top-1 {top1:.2%}" in said.out
    assert top1 > 0.6  # chance is 0.1


class Torn(Source):
    """Digits of which every seventh cannot be read."""

    def __init__(self, whole: ArraySource):
        self.whole, self.class_names = whole, whole.class_names
        self.max_bad_share = 1.0

    def __len__(self) -> int:
        return 100

    def __repr__(self) -> str:
        return "torn(100)"

    def gather(
        self, indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        return {
            "image": self.whole.images[indices],
            "label": self.whole.labels[indices],
            "mask": indices % 7 != 0,
        }

    def explain(self, index: int) -> str:
        return f"torn {index}"


def test_images_that_cannot_be_read_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """100 images in batches of 64, of which the last is not full."""
    whole = shallow().data.source("train")
    seen = []

    def step(variables: Any, images: Any) -> Any:
        seen.append(images.shape)
        return images.reshape(len(images), -1)[:, :20].astype(np.float32)

    monkeypatch.setattr(
        features_module, "_features_step", lambda program, variables: step
    )

    class Bound:
        config = shallow()
        mesh = features_module.parallel.make_mesh(1)

    found, labels = features_module.compute_features(Bound(), {}, Torn(whole))  # type: ignore[arg-type]
    good = [index for index in range(100) if index % 7]
    expected = whole.images[good].reshape(len(good), -1)[:, :20]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels, whole.labels[good])
    assert seen == [(64, 8, 8, 1)] * 2


def test_training_images_are_cut_as_test_images_are() -> None:
    crop = HostRandomResizedCrop(size=24)
    folder = ImageFolder(path="there", canvas=crop, workers=3)
    still = without_chance(folder)
    assert still == dataclasses.replace(folder, canvas=crop.evaluation())
    assert isinstance(still.canvas, CenterSquare)  # type: ignore[attr-defined]
    mixed = without_chance(Mixture(datasets=(folder, folder), weights=(1.0, 2.0)))
    assert mixed == Mixture(datasets=(still, still), weights=(1.0, 2.0))
    assert without_chance(shallow().data) == shallow().data


def test_mistakes_are_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tiny = commands.load_config(commands.RECIPES / "tiny.py")
    for config, options, said in (
        (shallow(), {"head": "rigde"}, "unknown head 'rigde'. Did you mean 'ridge'"),
        (shallow(), {"strength": 0.0}, "strength must be a number above 0"),
        (shallow(loss=MultiLabelBinaryCrossEntropy()), {}, "a probe for exactly one"),
        (tiny, {}, "tiny does not say which of its layers"),
    ):
        with pytest.raises(UserError, match=said):
            probe(config, out, **options)  # type: ignore[arg-type]
    assert not out.exists()
    recipe = ["--config", str(commands.RECIPES / "narrow.py")]
    for arguments, said in (
        (recipe, "no folder to write"),
        ([*recipe, "--out", str(tmp_path)], f"{tmp_path} exists"),
        ([*recipe, "--out", str(out), "--fresh"], "--fresh is a flag of jaxcls.train"),
        ([*recipe, "--out", str(out), "--workdir=x"], "--workdir is a flag of"),
        (["--out", str(out)], "no recipe"),
    ):
        assert probe_main(arguments) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        probe_main(["--help"])
    assert left.value.code == 0
    assert "--strength NUMBER" in capsys.readouterr().out
