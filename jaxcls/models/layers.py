"""Layers that the families share."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.errors import UserError


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch or over groups of it (Ioffe & Szegedy 2015,
    https://arxiv.org/abs/1502.03167).

    With `group=None` the statistics are of all images of the step, on however many devices.
    With `group=32` images 0..31 share statistics, images 32..63 theirs, and so on; when every
    device holds whole groups no statistics travel between devices, and the result still does
    not depend on their number. Statistics, scale and bias are float32.

    The running variance takes the unbiased batch variance, n/(n-1) times the one that
    normalises, as torch.nn.BatchNorm2d does.

    Attributes:
      group: images that share statistics in training; must divide the batch.
      momentum: the share of the old running statistics that is kept (torch's is the
        complement: its default 0.1 is 0.9 here).
      epsilon: added to the variance (torch's default 1e-5).
      dtype: dtype of the result; None keeps the input's.
    """

    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> jax.Array:
        """Normalises [batch, ..., channels] for each channel; updates "batch_stats"."""
        channels = inputs.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, (channels,), jnp.float32
        )
        running_var = self.variable(
            "batch_stats", "var", jnp.ones, (channels,), jnp.float32
        )
        x = inputs.astype(jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            batch = inputs.shape[0]
            group = batch if self.group is None else self.group
            if group < 1 or batch % group:
                raise UserError(
                    f"bn_group {group} does not divide the batch of {batch} images: choose "
                    "a divisor, or None for statistics of the whole batch."
                )
            x = x.reshape(batch // group, group, *inputs.shape[1:])
            axes = tuple(range(1, x.ndim - 1))
            # Mean and mean square together are one pass over the images, and one message
            # between devices.
            mean = x.mean(axes, keepdims=True)
            var = (x**2).mean(axes, keepdims=True) - mean**2
            var = jnp.maximum(var, 0)
            if not self.is_initializing():
                count = x[0, ..., 0].size
                unbiased = var * (count / max(count - 1, 1))
                for running, value in ((running_mean, mean), (running_var, unbiased)):
                    average = value.reshape(-1, channels).mean(0)
                    running.value = (
                        self.momentum * running.value + (1 - self.momentum) * average
                    )
        normalized = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return normalized.reshape(inputs.shape).astype(self.dtype or inputs.dtype)
