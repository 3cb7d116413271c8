"""Every file of configs/: valid, its network takes its images, its docstring is right.

What a recipe reaches is measured by hand and stands in its docstring.
"""

import functools
import importlib
import inspect
import operator
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jaxcls import config as config_lib
from jaxcls.parallel import make_mesh
from jaxcls.training.program import input_shape, weight_shapes
from tests import commands

RECIPES = sorted((commands.ROOT / "configs").glob("*.py"))
IMAGE_SHAPE = (8, 8, 1)

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def docstring(path: Path) -> str:
    found = re.match(r'"""(.*?)"""', path.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def command_line(path: Path) -> list[str]:
    """The words of the one indented line of a docstring."""
    (line,) = re.findall(r"^    (.*)$", docstring(path), re.MULTILINE)
    return shlex.split(line)


def test_a_recipe_of_each_family_is_found() -> None:
    families = {
        type(commands.load_config(path).model.create(10)).__module__ for path in RECIPES
    }
    everything = {
        f"jaxcls.models.{path.stem}"
        for path in (commands.ROOT / "jaxcls" / "models").glob("*.py")
        if hasattr(importlib.import_module(f"jaxcls.models.{path.stem}"), "VARIANTS")
    }
    assert families == everything and len(families) >= 9


@each_recipe
def test_it_is_valid_and_its_network_takes_its_images(path: Path) -> None:
    config = commands.load_config(path)
    assert config == commands.load_config(path, "digits")
    config_lib.validate(config)
    plan = config_lib.plan(config, 1437)
    assert plan.is_due(plan.evaluate_every, plan.total_steps)
    # Training and test images have one size, and the network has no complaint about it.
    shape = input_shape(config.eval_transform, IMAGE_SHAPE)
    assert shape == input_shape(config.augment, IMAGE_SHAPE)
    model = config.model.create(10)
    params = weight_shapes(config, model, IMAGE_SHAPE, make_mesh(1))["params"]
    # Auxiliary heads are there, and end in the digits' ten classes as the last layer does.
    for head in model.HEADS:
        layer = functools.reduce(operator.getitem, head.split("/"), params)
        assert layer["bias"].shape == (10,)


@each_recipe
def test_its_docstring_has_its_command_its_paper_and_its_figure(path: Path) -> None:
    text = docstring(path)
    own = path.relative_to(commands.ROOT).as_posix()
    assert command_line(path) == ["python", "-m", "jaxcls.train", "--config", own]
    assert re.search(r"test top-1 \d\d\.\d\d %", text)
    assert re.search(r"[Tt]he\s+training\s+is\s+ours", text)
    # The first link is the one that stands in the code of the network, or is ResNet's for
    # the one that only resembles it.
    link = re.findall(r"https://[^\s)]+", text)[0]
    module = type(commands.load_config(path).model.create(10)).__module__
    if module == "jaxcls.models.keras_resnet":
        module = "jaxcls.models.resnet"
    assert link in inspect.getsource(importlib.import_module(module))


@pytest.mark.slow
@each_recipe
def test_its_command_runs(path: Path, tmp_path: Path) -> None:
    shortened = [
        f"--workdir={tmp_path / 'run'}",
        "--config.duration=2 steps",
        "--config.schedule.warmup=0 steps",
    ]
    python, minus_m, *arguments = command_line(path)
    assert (python, minus_m) == ("python", "-m")
    # Large networks compile for minutes.
    done = subprocess.run(**commands.command(*arguments, *shortened), timeout=1200)
    assert done.returncode == 0, done.stderr
    last = commands.metrics(tmp_path / "run")[-1]
    assert last["step"] == 2 and last["eval/examples"] == 360
