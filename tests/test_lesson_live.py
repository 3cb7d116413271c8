"""Our CIFAR-10 recipes beside the lesson's programs in PyTorch and Keras, where those are installed.

pip install torch==2.13.0 torchvision==0.28.0 keras==3.15.1
JAXCLS_CIFAR_FOLDER=cifar10 python -m pytest -m torch tests/test_lesson_live.py

The variable names a folder with CIFAR-10's images in train/CLASS/ and test/CLASS/. Without it the
images are handwritten digits, enlarged and coloured.

At the rates of the first epoch, float32 tells two programs apart. At the peak it does not: Adam
divides gradients by their size, so that those near zero take rounding errors for a direction,
and PyTorch in float32 loses its own way in float64 within ten steps. There both compute in
float64.
"""

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import traverse_util
from PIL import Image

from jaxcls import config as config_lib
from jaxcls.augment import Normalize
from jaxcls.config import Config, Evaluation, Log
from jaxcls.data import CenterSquare, Digits, ImageFolder
from jaxcls.data.loader import TrainBatches
from jaxcls.data.opening import open_split
from jaxcls.duration import RunLength, epochs, steps
from jaxcls.inference.evaluation import Evaluator
from jaxcls.metrics import TrainMetrics
from jaxcls.models import Model
from jaxcls.models.weights.pretrained import from_torch, to_torch
from jaxcls.optim import ClipNorm
from jaxcls.optim.chain import learning_rate
from jaxcls.parallel import make_mesh
from jaxcls.train import train
from jaxcls.training.program import Program
from jaxcls.training.state import TrainState
from tests import commands
from tests.references import jax_models

pytestmark = pytest.mark.torch

STEPS, CLASSES = 20, 10


@pytest.fixture(scope="module")
def lesson_torch() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("tests.references.lesson_torch")


@pytest.fixture(scope="module")
def lesson_keras() -> Any:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("needs keras")
    # The first import, because it chooses Keras's backend.
    return importlib.import_module("tests.references.lesson_keras")


def recipe(name: str = "resnet18_cifar10") -> Config:
    return commands.load_config(commands.ROOT / "configs" / f"{name}.py", "cifar10")


def write_digits(folder: Path, per_class: int) -> None:
    """Writes digits as CIFAR-10 is: 32 x 32 pixels in colour, of which no two are alike."""
    random = np.random.default_rng(0)
    counts: dict[Literal["train", "test"], int] = {"train": per_class, "test": 2}
    for split, count in counts.items():
        source = Digits().source(split)
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
            for index in np.flatnonzero(source.labels == label)[:count]:
                ink = np.asarray(source[int(index)]["image"], np.float32) / 255
                ink = ink.repeat(4, 0).repeat(4, 1)
                paper, colour = random.uniform(0, 255, (2, 3))
                pixels = (
                    paper + (colour - paper) * ink + random.normal(0, 8, (32, 32, 3))
                )
                picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                picture.save(folder / split / str(label) / f"{index}.png")


def images(folder: Path, per_class: int) -> Path:
    """Fills a folder with the first images of each class, CIFAR-10's if there are any."""
    cifar = os.environ.get("JAXCLS_CIFAR_FOLDER")
    if cifar is None:
        write_digits(folder, per_class)
        return folder
    for split, count in (("train", per_class), ("test", 2)):
        for class_folder in sorted((Path(cifar) / split).iterdir()):
            target = folder / split / class_folder.name
            target.mkdir(parents=True)
            for file in sorted(class_folder.iterdir())[:count]:
                shutil.copy(file, target)
    return folder


def initial_weights(config: Config) -> dict[str, np.ndarray]:
    """Returns initial weights of the recipe's network as torchvision's state dict."""
    module = config.model.create(CLASSES)
    variables = jax.jit(module.init)(jax.random.key(1), jnp.zeros((1, 32, 32, 3)))
    return to_torch(config.model.name, variables, stem=config.model.stem)


def without_augmentation(
    config: Config, folder: Path, size: int, **changes: Any
) -> Config:
    """Returns a recipe on the images of a folder as they are, of `size` pixels a side."""
    return dataclasses.replace(
        config,
        augment=tuple(t for t in config.augment if isinstance(t, Normalize)),
        data=ImageFolder(path=str(folder), canvas=CenterSquare(size=size)),
        devices=1,
        **changes,
    )


def batches_of(config: Config) -> list[dict[str, np.ndarray]]:
    """Returns the batch of every step, in the order of the run."""
    batches = TrainBatches(
        open_split(config.data, "train"),
        seed=config.seed,
        batch_size=config.batch_size,
        num_steps=STEPS,
        sampling=config.data.sampling,
    )
    return [batches[step] for step in range(STEPS)]


def lessons_losses(
    lesson: Any, config: Config, weights: dict[str, np.ndarray], **options: Any
) -> list[float]:
    """Returns the loss of every step as one of the lesson's programs makes it."""
    batches = [(batch["image"], batch["label"]) for batch in batches_of(config)]
    return lesson.first_losses(weights, batches, **options)


def program_of(config: Config, steps_per_epoch: int, size: int) -> Program:
    plan = config_lib.plan(config, steps_per_epoch * config.batch_size)
    shape = (size, size, 3)
    return Program(
        config, plan, mesh=make_mesh(1), num_classes=CLASSES, image_shape=shape
    )


def losses_of(
    program: Program, state: TrainState, batches: Sequence[dict[str, np.ndarray]]
) -> list[float]:
    """Makes a train step on every batch; returns the loss of each."""
    step = jax.jit(program.train_step)
    losses = []
    for batch in batches:
        taken = {name: batch[name] for name in ("image", "label", "mask")}
        state = dataclasses.replace(state, metrics=TrainMetrics.empty())
        state, _ = step(state, taken, {})
        losses.append(float(state.metrics.loss.compute()))
    return losses


class EnoughError(Exception):
    """The steps that are looked at have been made."""


def test_the_first_losses_of_the_recipe_are_the_lessons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lesson_torch: Any
) -> None:
    """The command's way, in float32: a run of 100 epochs, stopped after its first steps."""
    batch_size = 32
    folder = images(tmp_path / "images", (STEPS + 1) * batch_size // 10 + 1)
    weights = initial_weights(recipe())
    safetensors.numpy.save_file(weights, tmp_path / "initial.safetensors")
    config = without_augmentation(
        recipe(),
        folder,
        32,
        batch_size=batch_size,
        model=dataclasses.replace(
            recipe().model, weights=str(tmp_path / "initial.safetensors")
        ),
        log=Log(every=steps(1), tensorboard=False),
        evaluation=Evaluation(every=steps(STEPS)),
    )

    def enough(*arguments: Any) -> None:
        raise EnoughError

    monkeypatch.setattr(Evaluator, "evaluate", enough)
    with pytest.raises(EnoughError):
        train(config, tmp_path / "run")
    lines = commands.metrics(tmp_path / "run")
    losses = [line["train/loss"] for line in lines]
    rates = [line["lr"] for line in lines]
    np.testing.assert_allclose(rates, [1e-5] * STEPS, rtol=1e-6)
    expected = lessons_losses(lesson_torch, config, weights, steps_per_epoch=STEPS + 1)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-3)


@dataclasses.dataclass(kw_only=True)
class _Float64Model(Model):
    """A network that computes in float64."""

    def create(self, num_classes: int, platform: str = "cpu") -> Any:
        return super().create(num_classes, platform).clone(dtype=jnp.float64)


@dataclasses.dataclass(kw_only=True)
class _TorchClipNorm(ClipNorm):
    """torch.nn.utils.clip_grad_norm_, which divides by norm + 1e-6."""

    def link(self) -> optax.GradientTransformation:
        def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            factor = self.max_norm / (optax.tree.norm(grads) + 1e-6)
            factor = jnp.minimum(factor, 1)
            return jax.tree.map(lambda grad: grad * factor, grads), state

        return optax.GradientTransformation(optax.init_empty_state, update)


def to_the_last_digit(config: Config) -> Config:
    """Returns the recipe in float64, its norm clipped by torch's formula: one in a million is
    what ours gives otherwise, and the steps at the peak multiply it."""
    assert config.clip is not None and type(config.clip) is ClipNorm
    precise: Any = {"momentum_dtype": "float64"}
    return dataclasses.replace(
        config,
        model=_Float64Model(name=config.model.name, stem=config.model.stem),
        optimizer=dataclasses.replace(config.optimizer, **precise),
        clip=_TorchClipNorm(max_norm=config.clip.max_norm),
    )


def losses_in_float64(
    config: Config, weights: dict[str, np.ndarray], steps_per_epoch: int
) -> list[float]:
    """Makes our train step on every batch in float64; returns the loss of each step."""
    options: Any = {"name": config.model.name, "stem": config.model.stem}
    batches = batches_of(config)
    with jax_models.precision(np.float64):
        size = batches[0]["image"].shape[1]
        program = program_of(to_the_last_digit(config), steps_per_epoch, size)
        variables = jax_models.cast(from_torch(state_dict=weights, **options), float)
        state = dataclasses.replace(
            program.init(),
            **variables,
            opt_state=program.optimizer.init(variables["params"]),
        )
        return losses_of(program, state, batches)


@pytest.mark.parametrize(("steps_per_epoch", "warmup"), [(2, 5), (STEPS, 0)])
def test_the_losses_at_the_peak_are_the_lessons(
    tmp_path: Path, lesson_torch: Any, steps_per_epoch: int, warmup: int
) -> None:
    """Up the recipe's warm-up and down the first epochs of its cosine, two steps each; and
    without warm-up, from the first step at the peak."""
    batch_size = 10
    folder = images(tmp_path / "images", steps_per_epoch * batch_size // 10)
    config = without_augmentation(
        recipe(),
        folder,
        16,
        batch_size=batch_size,
        schedule=dataclasses.replace(recipe().schedule, warmup=epochs(warmup)),
    )
    weights = initial_weights(config)
    losses = losses_in_float64(config, weights, steps_per_epoch)
    expected = lessons_losses(
        lesson_torch,
        config,
        weights,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=warmup,
        dtype=lesson_torch.torch.float64,
    )
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-12)
    assert np.ptp(expected) > 0.5  # something was learned, or unlearned


def test_the_rates_of_all_epochs_are_the_lessons(lesson_torch: Any) -> None:
    config = recipe()
    length = RunLength(390, config.batch_size, 100 * 390)
    rate = learning_rate(config.optimizer, config.schedule, length)
    optimizer = lesson_torch.optimizer_of(lesson_torch.nn.Linear(1, 1))
    schedule = lesson_torch.schedule_of(optimizer, lesson_torch.EPOCHS)
    for epoch in range(lesson_torch.EPOCHS):
        expected = optimizer.param_groups[0]["lr"]
        for step in (390 * epoch, 390 * epoch + 389):
            np.testing.assert_allclose(rate(step), expected, rtol=2e-6)
        optimizer.step()
        schedule.step()


def test_the_lessons_program_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lesson_torch: Any,
) -> None:
    """The whole of it, augmentation included, on a few images."""
    monkeypatch.setattr(lesson_torch, "BATCH", 8)
    folder = images(tmp_path / "images", 1)
    arguments = ["--data", str(folder), "--epochs", "2", "--workers", "0"]
    assert lesson_torch.main(arguments) == 0
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("epoch 1/2  rate 1.000e-05  loss ")
    assert second.startswith("epoch 2/2  rate 2.080e-04  loss ")
    assert second.endswith("img/s") and "test top-1 " in second


def test_the_first_losses_of_the_keras_recipe_are_the_lessons(
    tmp_path: Path, lesson_keras: Any
) -> None:
    """At the rates of a run on all of CIFAR-10: float32 would not tell at higher ones."""
    batch_size, steps_per_epoch = 8, 390
    folder = images(tmp_path / "images", STEPS * batch_size // 10)
    config = without_augmentation(
        recipe("keras_resnet_cifar10"), folder, 32, batch_size=batch_size
    )
    program = program_of(config, steps_per_epoch, 32)
    state = program.init()
    weights = {
        "/".join(path): np.asarray(leaf)
        for tree in (state.params, state.batch_stats)
        for path, leaf in traverse_util.flatten_dict(tree).items()
    }
    losses = losses_of(program, state, batches_of(config))
    expected = lessons_losses(
        lesson_keras, config, weights, steps_per_epoch=steps_per_epoch
    )
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-3)


def test_the_keras_rates_of_all_epochs_are_the_lessons(lesson_keras: Any) -> None:
    config = recipe("keras_resnet_cifar10")
    length = RunLength(390, config.batch_size, 100 * 390)
    rate = learning_rate(config.optimizer, config.schedule, length)
    schedule = lesson_keras.schedule_of(390, lesson_keras.EPOCHS)
    for step in (0, 1, 500, 1949, 1950, 1951, 10_000, 20_000, 38_000, 38_999):
        # A warm-up from 0 begins at a millionth of the peak here.
        expected = float(schedule(step))
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1.01e-9)


def test_the_lessons_keras_program_runs(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lesson_keras: Any,
) -> None:
    """The whole of it, augmentation included, on a few images."""
    monkeypatch.setattr(lesson_keras, "BATCH", 10)
    folder = images(tmp_path / "images", 1)
    arguments = ["--data", str(folder), "--epochs", "6"]
    assert lesson_keras.main(arguments) == 0
    out = capsys.readouterr().out
    assert "Epoch 6/6" in out and out.count("val_accuracy: ") == 6
