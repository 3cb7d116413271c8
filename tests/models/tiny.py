"""A small network of each family, for tests that go through all of them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import create_model

Variables = dict[str, Any]

# The smallest of each family that still has all of its parts, and the side of its images.
TINY: dict[str, tuple[dict[str, Any], int]] = {
    "lenet5": ({}, 32),
    "alexnet": ({}, 63),
    "alexnet_2012": ({}, 63),
    "vgg11": ({"stem": "small", "width": 8}, 32),
    "vgg11_bn": ({"stem": "small", "width": 8}, 32),
    "googlenet": ({}, 32),
    "inception_v3": ({}, 75),
    "resnet18": ({"stem": "small", "width": 8}, 16),
    "resnet20": ({"width": 8}, 16),
    "resnet50": (
        {"stem": "small", "width": 16, "stage_sizes": (1, 1, 1, 1)},
        16,
    ),
    "keras_resnet": ({"width": 8}, 16),
    "efficientnet_b0": (
        {"stem": "small", "width_factor": 0.25, "depth_factor": 0.3},
        16,
    ),
    "efficientnet_v2_s": (
        {"stem": "small", "width_factor": 0.25, "depth_factor": 0.1},
        16,
    ),
    "convnext_tiny": ({"stem": "small", "width": 16, "depths": (1, 1, 2, 1)}, 16),
}


def shapes(module: nn.Module, side: int, channels: int = 3) -> Variables:
    """The variables of a network, without computing anything."""
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)


@functools.cache
def trained(name: str, **changed: Any) -> tuple[nn.Module, Variables, np.ndarray]:
    """A tiny network with variables as after some training, and images; nothing is compiled.

    Args:
      name: of the network.
      changed: options other than those of TINY.
    """
    options, side = TINY[name]
    module = create_model(name, num_classes=5, **{**options, **changed})
    random = np.random.default_rng(1)
    images = np.float32(random.normal(size=(4, side, side, 3)))

    def drawn(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.float32(random.uniform(0.5, 1.5, leaf.shape))
        if path[-1].key == "layer_scale":
            return np.full(leaf.shape, 0.1, np.float32)
        if path[-1].key == "kernel":
            std = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            return random.standard_normal(leaf.shape, np.float32) * np.float32(std)
        return np.float32(random.normal(0, 0.1, leaf.shape))  # biases and means

    variables = jax.tree_util.tree_map_with_path(drawn, shapes(module, side))
    return module, variables, images


def apply_in_training(module: nn.Module, variables: Variables, images: Any) -> Any:
    return module.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats", "aux_logits"],
        rngs={"dropout": jax.random.key(2)},
    )


def each_of_tiny(*slow: str, without: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Runs a test with each network but those `without`, marked slow with some of them."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(n, marks=[pytest.mark.slow] if n in slow else [])
            for n in TINY
            if n not in without
        ],
    )


def modules_called(module: nn.Module, side: int) -> tuple[list[Any], Variables]:
    """Every submodule in the order in which training calls it, and the network's variables."""
    found: list[Any] = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__call__":
            found.append(context.module)
        return call(*args, **kwargs)

    def start(images: jax.Array) -> Variables:
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(2)}
        return module.init(keys, images, train=True)

    with nn.intercept_methods(note):
        images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
        return found, jax.eval_shape(start, images)
