"""What this package computes, in the form in which torch_models.py gives what PyTorch does."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models import create_model, model_options

Variables = dict[str, Any]


@contextlib.contextmanager
def precision(dtype: Any) -> Iterator[None]:
    """With float64, computes in float64 what the package computes in float32.

    Some mistakes are smaller than float32's rounding (an epsilon of 1.001e-5 for 1e-5), and
    gradients of ReLU networks jump where rounding turns a sign.
    """
    if dtype != np.float64:
        yield
        return
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(jnp, "float32", jnp.float64)
        yield


def cast(variables: Variables, dtype: Any) -> Variables:
    """Returns the arrays in another precision."""
    return jax.tree.map(functools.partial(np.asarray, dtype=dtype), variables)


def quiet(name: str) -> dict[str, float]:
    """Returns the options that switch every kind of dropout off."""
    options = ("dropout", "aux_dropout", "drop_path")
    return {option: 0.0 for option in options if option in model_options(name)}


def evaluate(
    name: str,
    variables: Variables,
    images: np.ndarray,
    num_classes: int,
    **options: Any,
) -> np.ndarray:
    """Returns the logits of images, computed in the images' precision."""
    dtype = images.dtype
    with precision(dtype):
        module = create_model(name, num_classes=num_classes, dtype=dtype, **options)
        apply = jax.jit(functools.partial(module.apply, train=False))
        logits = np.asarray(apply(cast(variables, dtype), images))
    assert logits.dtype == dtype
    return logits


def train_step(
    name: str,
    variables: Variables,
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    differentiate: bool,
) -> tuple[float, np.ndarray, Variables]:
    """Computes one step of training without dropout, in the images' precision: mean
    cross-entropy, and that of the auxiliary heads times the network's weight for them.

    Returns:
      The loss; the logits [heads, batch, classes] of the network and its auxiliary heads, in
      the order in which the images reach them; variables with the new running statistics and
      the gradients in the parameters' places (without `differentiate`, the parameters).
    """
    dtype = images.dtype
    with precision(dtype):
        module: Any = create_model(
            name, num_classes=num_classes, dtype=dtype, **quiet(name)
        )
        loss = functools.partial(_loss, module, images, labels)
        stats = cast(variables, dtype)
        params = stats.pop("params")
        if differentiate:
            step = jax.jit(jax.value_and_grad(loss, has_aux=True))
            (value, (logits, stats)), params = step(params, stats)
        else:
            value, (logits, stats) = jax.jit(loss)(params, stats)
        new = jax.tree.map(np.asarray, {"params": params, **stats})
    return float(value), np.asarray(logits), new


def _loss(
    module: Any, images: np.ndarray, labels: np.ndarray, params: Any, stats: Any
) -> tuple[jax.Array, tuple[jax.Array, Any]]:
    """Returns the loss, and the logits of all heads with the new running statistics."""

    def cross_entropy(logits: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()

    logits, new = module.apply(
        {"params": params, **stats},
        images,
        train=True,
        mutable=["batch_stats", "aux_logits"],
    )
    # By name, which is the order in which the images reach them.
    heads = jax.tree.leaves(new.pop("aux_logits", {}))
    total = cross_entropy(logits)
    for head in heads:
        total += module.aux_weight * cross_entropy(head)
    return total, (jnp.stack([logits, *heads]), new)
