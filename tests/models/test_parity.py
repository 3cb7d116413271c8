"""Every network against torchvision's numbers, without PyTorch.

The weights follow from their names (tests/references/formula.py); what torchvision computes with
them in float64 is in tests/references/goldens.npz.
"""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util

from jaxcls.models import create_model
from jaxcls.models.weights.pretrained import from_torch, to_torch
from tests.references import formula, jax_models

Variables = dict[str, Any]

GOLDENS = np.load(Path(__file__).parent.parent / "references" / "goldens.npz")
NAMES = list(dict.fromkeys(key.split("/")[0] for key in GOLDENS))
TRAINED = [name for name in NAMES if f"{name}/train/loss" in GOLDENS]
NORMED = [name for name in NAMES if GOLDENS[f"{name}/first_norms"].size]
NUM_CLASSES = 100


def golden(name: str, key: str) -> np.ndarray:
    return GOLDENS[f"{name}/{key}"]


@functools.cache
def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The entries of torchvision's state_dict."""
    rows = (row.split(" ") for row in golden(name, "layout"))
    return {key: tuple(map(int, shape)) for key, *shape in rows}


def state_dict(name: str, keys: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The state of torchvision's network when it computed the golden values, or some of it."""
    norms = formula.batch_norms(shapes(name))
    calibration = dict(zip(norms, golden(name, "calibration"), strict=True))
    wanted = {key: shapes(name)[key] for key in keys or shapes(name)}
    return formula.state_dict(wanted, calibration)


# Up to half a gigabyte; tests of one network follow each other.
@functools.lru_cache(maxsize=1)
def variables_of(name: str) -> Variables:
    return from_torch(name, state_dict(name))


def images(name: str, key: str, dtype: Any) -> np.ndarray:
    return formula.images(*golden(name, key)).astype(dtype)


def assert_close(values: Any, expected: np.ndarray, tolerance: float) -> None:
    """Compares by the largest value expected."""
    assert values.shape == expected.shape
    worst = np.abs(values - expected).max() / np.abs(expected).max()
    assert worst <= tolerance, f"off by {worst:.1e} of the largest"


def others_are_slow(names: list[str], *fast: str) -> list[Any]:
    """The names as parameters, all but some of them marked slow."""
    assert set(fast) <= set(names)
    return [
        pytest.param(name, marks=[] if name in fast else [pytest.mark.slow])
        for name in names
    ]


# What suffices day to day: a network of each kind of block and norm whose step of training is not
# compared below.
FAST = ["alexnet", "vgg11_bn", "resnet18", "resnet50", "efficientnet_v2_s"]


# ------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("name", others_are_slow(NAMES, *FAST))
def test_networks_are_torchvisions(name: str) -> None:
    expected = golden(name, "logits")
    # The images' logits differ, or the network would have forgotten what it saw.
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * np.abs(expected).max()
    variables = variables_of(name)
    # Measured on one CPU: up to 1e-5, as PyTorch's own float32.
    x = images(name, "images", np.float32)
    logits = jax_models.evaluate(name, variables, x, NUM_CLASSES)
    assert_close(logits, expected, 1e-4)


# What other tests compare goes there and back too.
@pytest.mark.parametrize(
    "name", others_are_slow(["alexnet", "vgg11_bn", "resnet18"], "resnet18")
)
def test_state_dicts_go_there_and_back(name: str) -> None:
    state = state_dict(name)
    back = to_torch(name, from_torch(name, state))
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


# --------------------------------------------------------------------------------- training


def train(
    name: str, dtype: Any, *, differentiate: bool
) -> tuple[float, np.ndarray, Variables]:
    x = images(name, "train/images", dtype)
    labels = formula.labels(len(x), NUM_CLASSES)
    return jax_models.train_step(
        name, variables_of(name), x, labels, NUM_CLASSES, differentiate=differentiate
    )


def assert_same_tensors(
    name: str, variables: Variables, what: str, tolerance: float
) -> None:
    """Compares tensors by norm and projections (formula.signature).

    Args:
      name: of the network.
      variables: as variables of the network.
      what: "gradients" of all parameters, or the running "statistics".
      tolerance: in units of each tensor's norm.
    """
    statistics = (".running_mean", ".running_var")
    state = to_torch(name, variables)
    keys = [
        key
        for key in shapes(name)
        if key.endswith(statistics) == (what == "statistics")
        and not key.endswith("num_batches_tracked")
    ]
    expected = golden(name, f"train/{what}")
    # Gradients that are zero by arithmetic (of a bias that the next batch norm takes out
    # again) are not zero after rounding.
    floor = 1e-9 * np.linalg.norm(expected[:, 0]) if len(expected) else 0.0
    for key, row in zip(keys, expected, strict=True):
        difference = np.abs(formula.signature(key, state[key]) - row).max()
        assert difference <= tolerance * row[0] + floor, f"{what} of {key}"


# Gradients more than double the time; one network's are those of plain convolutions, batch norm,
# max-pools and shortcuts. Depthwise and grouped convolutions and average pools, which have
# gradients of their own too, are differentiated alone (tests/models/cpu), and test_zoo.py shows
# that a gradient reaches every parameter of a VGG, a bottleneck and a ConvNeXt.
DIFFERENTIATED = ("resnet18",)


@pytest.mark.parametrize(
    ("name", "differentiate"),
    [
        *((name, name in DIFFERENTIATED) for name in TRAINED),
        *(
            pytest.param(name, True, marks=pytest.mark.slow)
            for name in TRAINED
            if name not in DIFFERENTIATED
        ),
    ],
)
def test_losses_statistics_and_gradients_are_torchvisions(
    name: str, differentiate: bool
) -> None:
    loss, logits, new = train(name, np.float64, differentiate=differentiate)
    assert_close(np.array(loss), golden(name, "train/loss"), 1e-10)
    assert_close(logits, golden(name, "train/logits"), 1e-10)
    # to_torch rounds to float32, by 6e-8.
    assert_same_tensors(name, new, "statistics", 1e-6)
    if differentiate:
        assert_same_tensors(name, new, "gradients", 1e-6)


# test_zoo.py has each family's constants by hand, and the steps of training above show what they
# do.
@pytest.mark.slow
@pytest.mark.parametrize("name", NORMED)
def test_the_first_batch_norms_learn_what_torchvisions_do(name: str) -> None:
    """They tell their momentum and epsilon, and so the others', as a network's are alike.

    Nothing behind them is compiled, which makes this cheap.
    """
    variables = variables_of(name)
    norms = formula.batch_norms(shapes(name))[:2]
    paths = [path_of(f"{norm}.running_mean", name, variables) for norm in norms]
    x = images(name, "images", np.float64)

    def learn(variables: Variables) -> list[jax.Array]:
        options = {"dtype": x.dtype, **jax_models.quiet(name)}
        module = create_model(name, num_classes=NUM_CLASSES, **options)
        mutable = ["batch_stats", "aux_logits"]
        _, new = module.apply(variables, x, train=True, mutable=mutable)
        flat = traverse_util.flatten_dict(new["batch_stats"])
        return [flat[*path, field] for *path, _ in paths for field in ("mean", "var")]

    with jax_models.precision(x.dtype):
        learned = jax.jit(learn)(jax_models.cast(variables, x.dtype))
        rows = [np.asarray(values) for values in learned]
    expected = np.split(
        golden(name, "first_norms"), np.cumsum([row.size for row in rows])
    )
    assert not expected.pop().size
    for row, values in zip(rows, expected, strict=True):
        assert_close(row, values, 1e-9)


def path_of(key: str, name: str, variables: Variables) -> tuple[str, ...]:
    """Where in the statistics an entry of the state has gone."""
    values = state_dict(name, [key])[key]
    flat = traverse_util.flatten_dict(variables["batch_stats"])
    (path,) = [path for path, leaf in flat.items() if np.array_equal(leaf, values)]
    return path


def test_losses_and_statistics_are_torchvisions_in_float32() -> None:
    loss, logits, new = train("resnet18", np.float32, differentiate=False)
    assert_close(np.array(loss), golden("resnet18", "train/loss"), 1e-5)
    assert_close(logits, golden("resnet18", "train/logits"), 1e-4)
    assert_same_tensors("resnet18", new, "statistics", 1e-5)
