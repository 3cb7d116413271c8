"""What a network sees in an image before it decides: the input of its last layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.network import Network


def features(
    model: Network, variables: dict[str, Any], images: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the features of images, and their logits, in evaluation.

    Args:
      model: the network.
      variables: "params" and "batch_stats".
      images: normalised floats [batch, height, width, channels].

    Returns:
      The features float32 [batch, values], with which logits = features @ kernel + bias of the
      last layer, up to its dtype; and those logits float32 [batch, num_classes].
    """
    head = tuple(model.HEADS[0].split("/"))
    inputs: list[jax.Array] = []

    def note(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.module.path == head and context.method_name == "__call__":
            inputs.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        logits: Any = model.apply(variables, images, train=False)
    (found,) = inputs
    return found.astype(jnp.float32), logits
