"""Every file of configs/: valid on each kind of dataset, with the numbers it says it has.

What a recipe reaches is measured by hand and stands in its docstring.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import operator
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxcls
from jaxcls import config as config_lib
from jaxcls.augment import HorizontalFlip, Normalize, Resize
from jaxcls.config import Config
from jaxcls.config import command_line as flags
from jaxcls.config.recipe import load_recipe
from jaxcls.data import (
    CenterSquare,
    Cifar10,
    Digits,
    HostRandomResizedCrop,
    ImageFolder,
    Mnist,
)
from jaxcls.data.encoded_images import Images
from jaxcls.duration import RunLength, epochs, steps
from jaxcls.errors import UserError
from jaxcls.inference.forward import input_shape
from jaxcls.models import MODELS, Model
from jaxcls.models.efficientnet import Stage
from jaxcls.optim.chain import learning_rate
from jaxcls.parallel import make_mesh
from jaxcls.training.program import Program
from tests import commands

RECIPES = sorted((commands.ROOT / "configs").glob("*.py"))
NAMES = [path.stem for path in RECIPES]


class Example(NamedTuple):
    """A dataset's training images."""

    count: int
    shape: tuple[int, int, int] | None
    classes: int


DATASETS = {
    "digits": Example(1437, (8, 8, 1), 10),
    "cifar10": Example(50_000, (32, 32, 3), 10),
    "imagenet": Example(1_281_167, None, 1000),
}

OF_SMALL_IMAGES = {
    "keras_resnet",
    "keras_resnet_cifar10",
    "lenet5",
    "resnet18_cifar10",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
}

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
each_name = pytest.mark.parametrize("name", NAMES)
each_dataset = pytest.mark.parametrize("dataset", DATASETS)


def load(name: str, dataset: str = "") -> Config:
    """Returns a recipe as the command line loads it; photographs have a path."""
    path = commands.ROOT / "configs" / f"{name}.py"
    config = load_recipe(str(path), dataset)
    if isinstance(config.data, Images):
        config.data.path = "images"  # type: ignore[attr-defined]
    return config


def record_shape(config: Config, example: Example) -> tuple[int, int, int]:
    """Returns the shape of what reaches the devices."""
    if isinstance(config.data, Images):
        return config.data.canvas.shape(config.data.channels)
    assert example.shape is not None
    return example.shape


def docstring(path: Path) -> str:
    found = re.match(r'"""(.*?)"""', path.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def command_line(path: Path) -> list[str]:
    """The words of the one indented line of a docstring."""
    (line,) = re.findall(r"^    (.*)$", docstring(path), re.MULTILINE)
    return shlex.split(line)


# What there is


def test_a_recipe_of_each_family_is_found() -> None:
    families = {type(load(name).model.create(10)).__module__ for name in NAMES}
    everything = {
        f"jaxcls.models.{path.stem}"
        for path in (commands.ROOT / "jaxcls" / "models").glob("*.py")
        if hasattr(importlib.import_module(f"jaxcls.models.{path.stem}"), "VARIANTS")
    }
    assert families == everything and len(families) >= 9


@each_recipe
def test_its_docstring_has_its_command_its_paper_and_its_figures(path: Path) -> None:
    text = " ".join(docstring(path).split())
    own = path.relative_to(commands.ROOT).as_posix()
    assert command_line(path) == ["python", "-m", "jaxcls.train", "--config", own]
    digits = re.search(r"Digits: (.*?)(?=Other datasets|CIFAR-10, as|A folder)", text)
    assert digits is not None
    measured = r"test top-1 \d\d\.\d\d % .*\(jax \d+\.\d+\.\d+, \d{4}-\d\d-\d\d\)"
    assert re.search(measured, digits[1]) or "not measured here" in digits[1]
    # Nobody has run it on other data here.
    assert re.search(r"not\s+measured here", text[digits.end() :], re.IGNORECASE)
    # It links to the paper that the code of the network names, or is ResNet's for the one that
    # only resembles it.
    module = type(load(path.stem).model.create(10)).__module__
    if module == "jaxcls.models.keras_resnet":
        module = "jaxcls.models.resnet"
    links = re.findall(r"https://[^\s)]+", text)
    source = inspect.getsource(importlib.import_module(module))
    assert any(link in source for link in links)


# What each is, on each kind of dataset


@each_dataset
@each_name
def test_it_is_valid_and_its_durations_fit(name: str, dataset: str) -> None:
    config = load(name, dataset)
    example = DATASETS[dataset]
    config_lib.validate(config)
    plan = config_lib.plan(config, example.count)
    assert plan.is_due(plan.evaluate_every, plan.total_steps)
    # Evaluation has images as large as training, or larger where the recipe says so.
    shape = record_shape(config, example)
    training = input_shape(config.augment, shape)
    evaluation = input_shape(config.eval_transform, shape)
    smaller = {
        "resnet50_new_recipe": (176, 224),
        "resnet50_rsb_a3": (160, 224),
        "effnet_v2_s": (300, 384),
    }
    if dataset == "imagenet" and name in smaller:
        assert (training[1], evaluation[1]) == smaller[name]
    else:
        assert training == evaluation
    # Digits and the like are not mirrored.
    mirrored = HorizontalFlip() in config.augment
    assert mirrored == (dataset != "digits" and name != "lenet5")


@each_name
def test_it_runs_on_digits_unless_told_otherwise(name: str) -> None:
    assert load(name) == load(name, "digits")


@each_name
def test_photographs_are_cropped_from_the_full_image(name: str) -> None:
    config = load(name, "folder")
    assert isinstance(config.data, Images)
    if name in OF_SMALL_IMAGES:
        assert config.data.canvas == CenterSquare(size=32)
        assert config.model.stem != "imagenet"
    else:
        assert isinstance(config.data.canvas, HostRandomResizedCrop)
        assert config.model.stem in (None, "imagenet")
    # And so from all other places that photographs lie in.
    for other in ("imagenet", "records", "webtar", "manifest", "huggingface", "tfds"):
        of_other = load(name, other)
        assert isinstance(of_other.data, Images)
        assert of_other.data.canvas == config.data.canvas
        assert dataclasses.replace(of_other, data=config.data) == config


def shapes_of(name: str, dataset: str) -> tuple[Program, Any]:
    """Returns a recipe's program and the shapes of its state; nothing is computed."""
    config, example = load(name, dataset), DATASETS[dataset]
    program = Program(
        config,
        config_lib.plan(config, example.count),
        mesh=make_mesh(1),
        num_classes=example.classes,
        image_shape=record_shape(config, example),
    )
    return program, program.state_shapes


# A recipe of most families. test_every_network.py traces the other recipes' networks too, and what
# all say of their images, averages and rates is checked below without a network.
FIRST = ["googlenet", "resnet18", "resnet20", "keras_resnet", "effnet_b0"]
# With an average of another kind, LAMB, and weights with rates that fall from layer to layer.
FIRST += ["convnext_tiny", "resnet50_new_recipe", "resnet50_rsb_a3", "finetune"]
# One of each family that refuses small images, which is shown on the smallest: their recipes make
# digits larger.
CHOOSY = ["lenet5", "alexnet", "vgg16", "googlenet", "inception_v3", "convnext_tiny"]


def built() -> Iterator[Any]:
    """Yields (recipe, dataset): some on the published dataset or on the embedded one in every
    test run."""
    for name in NAMES:
        published = "cifar10" if name in OF_SMALL_IMAGES else "imagenet"
        for dataset in DATASETS:
            often = name in FIRST and dataset == published
            often |= name in CHOOSY and dataset == "digits"
            marks = () if often else (pytest.mark.slow,)
            yield pytest.param(name, dataset, marks=marks, id=f"{name}-{dataset}")


@pytest.mark.parametrize(("name", "dataset"), list(built()))
def test_its_network_takes_its_images(name: str, dataset: str) -> None:
    program, state = shapes_of(name, dataset)
    # Auxiliary heads are there, and end in the classes as the last layer does.
    for head in program.model.HEADS:
        layer = functools.reduce(operator.getitem, head.split("/"), state.params)
        assert layer["bias"].shape == (DATASETS[dataset].classes,)
    assert (state.ema is not None) == program.config.has_average
    # There is a momentum of each parameter, or more.
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) >= count


# The published numbers, typed from their sources

CLASSIC = {
    "batch_size": 256,
    "duration": epochs(90),
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay": "l2",
    "optimizer.decays": "all",
    "schedule.period": epochs(30),
    "schedule.decay": 0.1,
    "schedule.every": "epoch",
    "loss.label_smoothing": 0.0,
    "data.canvas.size": 224,
    "data.canvas.crop": 224 / 256,
    "data.canvas.interpolation": "bilinear",
}
STRIKES_BACK = {
    "optimizer.decays": "kernels",
    "schedule.warmup": epochs(5),
    "augment[1].magnitude_std": 0.5,
    "augment[1].increasing": True,
    "augment[3].cutmix_alpha": 1.0,
    "loss.over_classes": "mean",
    "clip.max_norm": 1.0,
    "data.canvas.size": 224,
    "data.canvas.crop": 0.95,
    "data.canvas.interpolation": "bicubic",
}
EFFICIENTNET = {
    "batch_size": 4096,
    "duration": epochs(350),
    "optimizer.rho": 0.9,
    "optimizer.momentum": 0.9,
    "optimizer.epsilon": 1e-3,
    "optimizer.weight_decay": 1e-5,
    "optimizer.decays": "kernels",
    "schedule.warmup": epochs(5),
    "schedule.period": epochs(2.4),
    "schedule.decay": 0.97,
    "schedule.staircase": True,
    "loss.label_smoothing": 0.1,
    "ema.decay": 0.9999,
    "model.drop_path": 0.2,
}
CONVNEXT = {
    "batch_size": 4096,
    "duration": epochs(300),
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.weight_decay": 0.05,
    "optimizer.decays": "kernels",
    "schedule.warmup": epochs(20),
    "schedule.end": 1e-6 / 4e-3,
    "augment[1].magnitude": 9,
    "augment[1].magnitude_std": 0.5,
    "augment[1].increasing": True,
    "augment[3].p": 0.25,
    "augment[3].fill": "pixel",
    "augment[4].mixup_alpha": 0.8,
    "augment[4].cutmix_alpha": 1.0,
    "augment[4].switch_prob": 0.5,
    "loss.label_smoothing": 0.1,
    "ema.decay": 0.9999,
    "data.canvas.size": 224,
    "data.canvas.crop": 0.875,
    "data.canvas.interpolation": "bicubic",
}
HE_CIFAR = {
    "batch_size": 128,
    "duration": steps(64_000),
    "optimizer.momentum": 0.9,
    "optimizer.nesterov": False,
    "optimizer.weight_decay": 1e-4,
    "optimizer.decay": "l2",
    "augment[0].padding": 4,
    "augment[1].p": 0.5,
    "loss.label_smoothing": 0.0,
}
# Recipe, dataset, network, peak rate, options.
PUBLISHED: list[tuple[str, str, str, float, dict[str, Any]]] = [
    ("alexnet", "imagenet", "alexnet", 0.01, CLASSIC),
    ("vgg16", "imagenet", "vgg16", 0.01, CLASSIC),
    ("resnet18", "imagenet", "resnet18", 0.1, CLASSIC),
    ("resnet50", "imagenet", "resnet50", 0.1, CLASSIC),
    (
        "googlenet",
        "imagenet",
        "googlenet",
        0.01 * 256 / 32,
        {
            "duration": epochs(60),
            "optimizer.momentum": 0.9,
            "optimizer.weight_decay": 2e-4,
            "optimizer.decay": "l2",
            "schedule.power": 0.5,
            "model.aux_weight": 0.3,
        },
    ),
    (
        "inception_v3",
        "imagenet",
        "inception_v3",
        0.045,
        {
            "batch_size": 1600,
            "duration": epochs(100),
            "optimizer.rho": 0.9,
            "optimizer.epsilon": 1.0,
            "schedule.period": epochs(2),
            "schedule.decay": 0.94,
            "loss.label_smoothing": 0.1,
            "clip.max_norm": 2.0,
            "data.canvas.size": 299,
        },
    ),
    *(
        (f"resnet{depth}", "cifar10", f"resnet{depth}", 0.1, HE_CIFAR)
        for depth in (20, 32, 44, 56, 110)
    ),
    (
        "resnet50_new_recipe",
        "imagenet",
        "resnet50",
        0.5,
        {
            "batch_size": 1024,
            "duration": epochs(600),
            "optimizer.momentum": 0.9,
            "optimizer.nesterov": False,
            "optimizer.weight_decay": 2e-5,
            "optimizer.decay": "l2",
            "optimizer.decays": "kernels",
            "schedule.warmup": epochs(5),
            "schedule.start": 0.01,
            "schedule.end": 0.0,
            "schedule.every": "epoch",
            "data.sampling.repeats": 4,
            "data.canvas.crop": 224 / 232,
            "augment[4].p": 0.1,
            "augment[5].mixup_alpha": 0.2,
            "augment[5].cutmix_alpha": 1.0,
            "loss.label_smoothing": 0.1,
            "ema.every": 32,
            # 1 - 2e-5 * 1024 * 32 / 600
            "ema.decay": pytest.approx(0.9989077333, abs=1e-9),
        },
    ),
    (
        "resnet50_rsb_a1",
        "imagenet",
        "resnet50",
        5e-3,
        {
            **STRIKES_BACK,
            "batch_size": 2016,
            "duration": epochs(600),
            "optimizer.weight_decay": 0.01,
            "schedule.end": 1e-6 / 5e-3,
            "augment[1].magnitude": 7.0,
            "augment[3].mixup_alpha": 0.2,
            "data.sampling.repeats": 3,
            "loss.label_smoothing": 0.1,
            "model.drop_path": 0.05,
        },
    ),
    (
        "resnet50_rsb_a2",
        "imagenet",
        "resnet50",
        5e-3,
        {
            **STRIKES_BACK,
            "batch_size": 2016,
            "duration": epochs(300),
            "optimizer.weight_decay": 0.02,
            "schedule.end": 1e-6 / 5e-3,
            "augment[1].magnitude": 7.0,
            "augment[3].mixup_alpha": 0.1,
            "data.sampling.repeats": 3,
            "loss.label_smoothing": 0.0,
            "model.drop_path": 0.05,
        },
    ),
    (
        "resnet50_rsb_a3",
        "imagenet",
        "resnet50",
        8e-3,
        {
            "batch_size": 2048,
            "duration": epochs(100),
            "optimizer.weight_decay": 0.02,
            "schedule.end": 1e-6 / 8e-3,
            "augment[0].size": 160,
            "augment[2].magnitude": 6.0,
            "augment[4].mixup_alpha": 0.1,
            "data.sampling.repeats": 1,
            "loss.label_smoothing": 0.0,
            "model.drop_path": 0.0,
        },
    ),
    *(
        (
            f"effnet_b{k}",
            "imagenet",
            f"efficientnet_b{k}",
            0.256,
            {
                **EFFICIENTNET,
                "model.dropout": dropout,
                "model.bn_epsilon": 1e-3,
                "model.bn_momentum": 0.99,
                "model.padding": "same",
                "augment[1].policy": "imagenet",
                "data.canvas.size": size,
                "data.canvas.interpolation": "bicubic",
            },
        )
        for k, size, dropout in (
            (0, 224, 0.2),
            (1, 240, 0.2),
            (2, 260, 0.3),
            (3, 300, 0.3),
            (4, 380, 0.4),
            (5, 456, 0.4),
            (6, 528, 0.5),
            (7, 600, 0.5),
        )
    ),
    (
        "effnet_v2_s",
        "imagenet",
        "efficientnet_v2_s",
        0.256,
        {
            **EFFICIENTNET,
            "augment[0].values": (171, 214, 257, 300),
            "augment[2].first": 5.0,
            "augment[2].last": 10.0,
            "augment[2].transform.num_ops": 2,
            "data.canvas.size": 384,
        },
    ),
    *(
        (
            f"convnext_{size}",
            "imagenet",
            f"convnext_{size}",
            4e-3,
            {**CONVNEXT, "model.drop_path": drop_path},
        )
        for size, drop_path in (("tiny", 0.1), ("small", 0.4), ("base", 0.5))
    ),
]
LESSONS = {
    "resnet18_cifar10": {
        "model.name": "resnet18",
        "model.stem": "small",
        "augment[0].padding": 4,
        "augment[0].mode": "constant",
        "augment[0].fill": 0.0,
        "augment[1].p": 0.5,
        "augment[2].brightness": 0.2,
        "augment[2].contrast": 0.2,
        "augment[2].saturation": 0.2,
        "augment[2].hue": 0.0,
        "augment[2].p": 1.0,
        "augment[3].num_ops": 2,
        "augment[3].magnitude": 9,
        "augment[3].bins": 31,
        "augment[4].mean": (0.4914, 0.4822, 0.4465),
        "augment[4].std": (0.2470, 0.2435, 0.2616),
        "augment[5].p": 0.25,
        "augment[5].scale": (0.02, 0.33),
        "augment[5].ratio": (0.3, 3.3),
        "augment[5].fill": "constant",
        "augment[5].value": (0.0,),
        "eval_transform[0].mean": (0.4914, 0.4822, 0.4465),
        "eval_transform[0].std": (0.2470, 0.2435, 0.2616),
        "batch_size": 128,
        "evaluation.batch_size": 256,
        "duration": epochs(100),
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.05,
        "optimizer.decays": "all",
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
        "optimizer.epsilon": 1e-8,
        "schedule.warmup": epochs(5),
        "schedule.start": 0.01,
        "schedule.end": pytest.approx(1e-6 / 1e-3),
        "schedule.every": "epoch",
        "loss.label_smoothing": 0.1,
        "clip.max_norm": 1.0,
        "ema": None,
    },
    "keras_resnet_cifar10": {
        "model.name": "keras_resnet",
        "augment[0].p": 0.5,
        "augment[1].height_factor": 0.1,
        "augment[1].width_factor": 0.1,
        "augment[1].fill_mode": "reflect",
        "augment[1].interpolation": "bilinear",
        "augment[2].height_factor": 0.1,
        "augment[2].width_factor": None,
        "augment[2].fill_mode": "reflect",
        "augment[3].factor": 0.2,
        "augment[4].mean": (0.0,),
        "augment[4].std": (1.0,),
        "eval_transform[0].mean": (0.0,),
        "eval_transform[0].std": (1.0,),
        "batch_size": 128,
        "duration": epochs(100),
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": 0.05,
        "optimizer.decays": "all",
        "optimizer.beta1": 0.9,
        "optimizer.beta2": 0.999,
        "optimizer.epsilon": 1e-7,
        "schedule.warmup": epochs(5),
        "schedule.end": 1e-6,
        "schedule.every": "step",
        "loss.label_smoothing": 0.1,
        "clip": None,
        "ema": None,
    },
}


def values(config: Config) -> dict[str, Any]:
    """Returns every option's value, by its path."""
    return {path: value for path, (_, value) in config_lib.options(config).items()}


@pytest.mark.parametrize(
    ("name", "dataset", "network", "peak", "expected"),
    PUBLISHED,
    ids=[row[0] for row in PUBLISHED],
)
def test_it_has_the_published_numbers(
    name: str, dataset: str, network: str, peak: float, expected: dict[str, Any]
) -> None:
    config = load(name, dataset)
    found = values(config)
    assert config.model.name == network
    assert config.optimizer.peak(config.batch_size) == pytest.approx(peak, rel=1e-12)
    assert {path: found[path] for path in expected} == expected


def test_the_published_numbers_of_all_recipes_with_any_stand_here() -> None:
    ours = {"finetune", "keras_resnet", "lenet5"}
    assert {row[0] for row in PUBLISHED} | LESSONS.keys() == {*NAMES} - ours


@pytest.mark.parametrize("dataset", ["cifar10", "folder"])
@pytest.mark.parametrize("name", LESSONS)
def test_it_has_every_number_of_the_lessons_listing(name: str, dataset: str) -> None:
    config = load(name, dataset)
    found = values(config)
    expected = LESSONS[name]
    assert {path: found[path] for path in expected} == expected
    # Nothing else is done to the images.
    stages = {path.split(".")[0] for path in found if path.startswith("augment")}
    assert stages <= {path.split(".")[0] for path in expected}
    assert config.augment[0:1] != (Resize(size=32),) and len(config.eval_transform) == 1
    if dataset == "folder":
        assert isinstance(config.data, Images)
        assert config.data.canvas == CenterSquare(size=32)


def test_the_lessons_rates_are_those_of_its_schedulers() -> None:
    """By the formulas of LinearLR, CosineAnnealingLR and CosineDecay, written out."""
    run = RunLength(steps_per_epoch=390, batch_size=128, total_steps=39_000)
    torch = load("resnet18_cifar10", "cifar10")
    rate = learning_rate(torch.optimizer, torch.schedule, run)
    cosine = 1e-6 + (1e-3 - 1e-6) * (1 + np.cos(np.pi * np.arange(95) / 95)) / 2
    line = 1e-3 * (0.01 + 0.99 * np.arange(5) / 5)
    for step in (0, 389):  # the first and the last of each epoch
        rates = [float(rate(390 * epoch + step)) for epoch in range(100)]
        np.testing.assert_allclose(rates, [*line, *cosine], rtol=2e-5)
    assert rates[0] == pytest.approx(1e-5) and rates[5] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1.2731e-6, rel=1e-4)

    keras = load("keras_resnet_cifar10", "cifar10")
    rate = learning_rate(keras.optimizer, keras.schedule, run)
    warmup, decay = 5 * 390, 95 * 390
    at = np.array([1, 100, warmup - 1, warmup, warmup + 1, 20_000, 38_999])
    part = np.clip((at - warmup) / decay, 0, 1)
    falling = 1e-3 * ((1 - 1e-6) * (1 + np.cos(np.pi * part)) / 2 + 1e-6)
    rising = 1e-3 * at / warmup
    rates = [float(rate(step)) for step in at]
    # It rises from a millionth where Keras rises from 0.
    expected = np.where(at < warmup, rising, falling)
    np.testing.assert_allclose(rates, expected, rtol=2e-5, atol=1e-9)
    assert 0 < float(rate(0)) < 1.01e-9


def test_resnet_110_begins_at_a_tenth_of_its_rate() -> None:
    run = RunLength(steps_per_epoch=390, batch_size=128, total_steps=64_000)
    for depth in (20, 110):
        config = load(f"resnet{depth}", "cifar10")
        rate = learning_rate(config.optimizer, config.schedule, run)
        first = 0.01 if depth == 110 else 0.1
        changes = (0, 399, 400, 31_999, 32_000, 47_999, 48_000, 63_999)
        np.testing.assert_allclose(
            [float(rate(step)) for step in changes],
            [first, first, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
            rtol=1e-6,
        )


def test_fine_tuning_takes_any_folder_by_one_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(commands.ROOT)
    command = flags.parse(["--config=configs/finetune.py", "--config.data.path=/pets"])
    assert command is not None and str(command.workdir) == "runs/finetune-folder"
    config = command.config
    assert config.data.path == "/pets"  # type: ignore[attr-defined]
    assert config.model.weights == "timm/efficientnet_b0.ra_in1k"
    assert config.model.stem == "imagenet" and config.model.head_init == "zero"
    assert config.layer_decay is not None and config.stop_early is not None
    assert config.loss.class_weights == "auto"  # type: ignore[attr-defined]


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_fine_tuning_begins_with_weights_where_they_fit(dataset: str) -> None:
    config = load("finetune", dataset)
    published = dataset == "cifar10"
    assert (config.model.weights is not None) == published
    assert (config.layer_decay is not None) == published
    # Published weights see images as they were trained.
    (normalize,) = (t for t in config.eval_transform if isinstance(t, Normalize))
    assert (normalize.mean == (0.485, 0.456, 0.406)) == published
    assert (Resize(size=224) in config.eval_transform) == published


# Where a recipe may be run, and on what


def test_a_recipe_imports_its_sibling_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "my_recipes"
    mine.mkdir()
    (mine / "first.py").write_text(
        (commands.ROOT / "configs" / "lenet5.py").read_text()
    )
    (mine / "second.py").write_text("from my_recipes.first import get_config\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = list(sys.path)
    try:
        for path in (str(mine / "second.py"), "../my_recipes/second.py"):
            config = load_recipe(path, "mnist")
            assert config == load("lenet5", "mnist")
            assert sys.path == before
    finally:
        for name in ("my_recipes", "my_recipes.first"):
            sys.modules.pop(name, None)


def test_the_path_stays_as_it_was_where_a_recipe_fails(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("1 / 0\n")
    before = list(sys.path)
    with pytest.raises(UserError, match="line 1: ZeroDivisionError"):
        load_recipe(str(tmp_path / "fails.py"), "")
    assert sys.path == before


def parsed(*argv: str) -> flags.Command:
    command = flags.parse(argv)
    assert command is not None
    return command


def test_a_path_alone_names_a_folder_of_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(commands.ROOT)
    recipe, path = "--config=configs/resnet18.py", "--config.data.path=/pets"
    short = parsed(recipe, path, "--config.batch_size=16")
    long = parsed(f"{recipe}:folder", path, "--config.batch_size=16")
    assert short == long
    assert isinstance(short.config.data, ImageFolder)
    assert (short.config.data.path, short.config.batch_size) == ("/pets", 16)
    assert short.workdir == Path("runs/resnet18-folder")
    # Where a dataset is named, it is meant.
    cifar = parsed(f"{recipe}:cifar10", path)
    assert isinstance(cifar.config.data, Cifar10)
    assert cifar.workdir == Path("runs/resnet18-cifar10")
    with pytest.raises(UserError, match=r"no option 'data\.path'"):
        flags.parse([f"{recipe}:digits", path])
    # Without a path nothing changes.
    assert isinstance(parsed(recipe).config.data, Digits)


def test_a_path_is_the_default_datasets_own_if_it_has_one(tmp_path: Path) -> None:
    recipe = tmp_path / "own.py"
    source = (commands.ROOT / "configs" / "lenet5.py").read_text()
    recipe.write_text(
        source.replace('dataset: str = "digits"', 'dataset: str = "mnist"')
    )
    command = parsed(f"--config={recipe}", "--config.data.path=/mnist")
    assert isinstance(command.config.data, Mnist)
    assert command.workdir == Path("runs/own-mnist")


# Every option does something


def names_read(folder: Path) -> set[str]:
    """Returns the names x of all `something.x` and `getattr(something, "x")` that code reads,
    other than to check it."""
    found = set()
    for path in folder.rglob("*.py"):
        waiting: list[ast.AST] = [ast.parse(path.read_text())]
        while waiting:
            node = waiting.pop()
            checks = isinstance(node, ast.FunctionDef) and (
                node.name == "validate" or node.name.startswith("_check")
            )
            if checks:
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
                found |= {
                    name.value for name in node.args if isinstance(name, ast.Constant)
                }
            waiting += ast.iter_child_nodes(node)
    return found


def unread(config: Any, read: set[str]) -> set[str]:
    """Returns the options of a node, or of one in it, whose names nothing reads."""
    return {
        f"{type(node).__name__}.{field.name}"
        for _, node in config_lib.nodes(config)
        for field in dataclasses.fields(node)
        if field.name not in read
    }


def test_every_option_of_every_recipe_is_read_by_something() -> None:
    @dataclasses.dataclass
    class Forgotten:
        size: int = 1
        nobody_reads_this: int = 2

    assert jaxcls.__file__ is not None
    read = names_read(Path(jaxcls.__file__).parent)
    assert unread(Forgotten(), read) == {"Forgotten.nobody_reads_this"}
    found = set()
    for name in NAMES:
        for dataset in DATASETS:
            found |= unread(load(name, dataset), read)
    assert not found


# Each trains


def shrunken(module: nn.Module) -> nn.Module:
    """Returns the least network of a family; a residual one for those that cannot shrink."""
    kind = type(module).__name__
    if kind == "EfficientNet":
        stages = (Stage(1, 3, 2, 4, 1, fused=True), Stage(2, 3, 2, 8, 1))
        least = {"stages": stages, "width_factor": 1.0, "depth_factor": 1.0}
        least |= {"stem_channels": 4, "head_channels": 8, "dropout": 0.2}
        return module.clone(**least, bn_momentum=0.9)
    if kind == "ConvNeXt":
        return module.clone(depths=(1, 1, 1, 1), width=4, drop_path=0.1)
    if kind == "VGG":
        return module.clone(stage_sizes=(1, 1, 1, 1, 1), width=2)
    if kind == "LeNet5":
        return module
    narrow = MODELS["resnet20"](num_classes=module.num_classes)
    return narrow.clone(stage_sizes=(1, 1), width=4)


def trainings() -> dict[str, Config]:
    """Returns the published trainings on CIFAR-10's shapes, each once, by the names of the
    recipes that train one shrunken network so."""
    names: dict[str, list[str]] = {}
    configs = {}
    for name in NAMES:
        config = load(name, "cifar10")
        network = repr(shrunken(config.model.create(10)))
        rest = repr(dataclasses.replace(config, model=Model(name="resnet18")))
        names.setdefault(network + rest, []).append(name)
        configs[network + rest] = config
    return {"=".join(names[key]): configs[key] for key in names}


def marked() -> Iterator[Any]:
    """Yields the trainings; in every test run those that differ most: SGD and its steps, AdamW
    with an average, RMSProp with both an average and a limit, a policy of augmentation."""
    often = {"alexnet", "lenet5", "inception_v3", "resnet18_cifar10"}
    assert often <= set(NAMES)
    for alike, config in trainings().items():
        marks = [] if often & set(alike.split("=")) else [pytest.mark.slow]
        yield pytest.param(config, marks=marks, id=alike)


@pytest.mark.parametrize("config", list(marked()))
def test_it_trains_three_steps(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published training, on CIFAR-10's shapes, of a network of its kind."""
    example = DATASETS["cifar10"]
    config = dataclasses.replace(
        config,
        batch_size=8,
        loss=config.loss.fitted(np.full(10, 5_000), 50_000),
    )
    create = Model.create
    monkeypatch.setattr(
        Model, "create", lambda self, *given: shrunken(create(self, *given))
    )
    # An epoch of a step: warm-ups are of a few.
    program = Program(
        config,
        config_lib.plan(config, 8),
        mesh=make_mesh(1),
        num_classes=example.classes,
        image_shape=record_shape(config, example),
    )
    # Compiled quickly, for code that is slow.
    train_step = program.trace_train_step().lowered.compile(
        compiler_options={"xla_backend_optimization_level": 0}
    )
    state = program.init()
    before = jax.device_get(state.params)  # the step takes the state's memory
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = {
            "image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
            "label": rng.integers(0, 10, 8).astype(np.int32),
            "mask": np.ones(8, bool),
        }
        state, report = train_step(state, program.put(batch), {})
    assert int(report["step"]) == 3 and int(report["bad_steps"]) == 0
    after = jax.device_get(state.params)
    moved = jax.tree.map(lambda old, new: np.any(old != new), before, after)
    assert np.mean(jax.tree.leaves(moved)) > 0.5


@pytest.mark.slow
@each_recipe
def test_its_command_runs(path: Path, tmp_path: Path) -> None:
    shortened = [
        f"--workdir={tmp_path / 'run'}",
        "--config.duration=3 steps",
        "--config.schedule.warmup=0 steps",
    ]
    if commands.load_config(path).ema is not None:
        shortened.append("--config.ema.every=1")
    python, minus_m, *arguments = command_line(path)
    assert (python, minus_m) == ("python", "-m")
    # Large networks compile for minutes.
    done = subprocess.run(**commands.command(*arguments, *shortened), timeout=1200)
    assert done.returncode == 0, done.stderr
    last = commands.metrics(tmp_path / "run")[-1]
    assert last["step"] == 3 and last["eval/examples"] == 360
