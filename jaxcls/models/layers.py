"""Layers and initial values that the families share."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxcls.errors import UserError
from jaxcls.models.cpu.convolution import Conv

# torchvision's kaiming_normal_(mode="fan_out", nonlinearity="relu"), He et al. 2015
# (https://arxiv.org/abs/1502.01852, equation 14). The fan-out of a grouped convolution counts
# the channels of all groups, as torch counts them: a depthwise kernel starts smaller than in
# TensorFlow.
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KaimingConv = functools.partial(Conv, kernel_init=kaiming_fan_out)


def uniform(bound: float) -> nn.initializers.Initializer:
    """Returns an initialiser that draws uniformly from -bound..bound."""
    return functools.partial(jax.random.uniform, minval=-bound, maxval=bound)


def torch_default(fan_in: int) -> dict[str, Any]:
    """Returns the initialisers of torch.nn.Linear and torch.nn.Conv2d.

    Kernel and bias alike are uniform within 1/sqrt(fan-in): kaiming_uniform_ with a=sqrt(5).

    Args:
      fan_in: inputs of one output value; for a convolution height x width x channels / groups.

    Returns:
      "kernel_init" and "bias_init", for nn.Dense and nn.Conv.
    """
    bound = 1 / math.sqrt(fan_in)
    return {"kernel_init": uniform(bound), "bias_init": uniform(bound)}


def normal_uniform(std: float, fan_in: int) -> dict[str, Any]:
    """Returns the initialisers of the dense layers of torchvision's GoogLeNet and Inception v3:
    kernels normal, biases uniform within 1/sqrt(fan-in).

    torchvision cuts the normal off at -2 and 2. Those are values, not multiples of the standard
    deviation of 0.1 or less, so they cut nothing off.

    Args:
      std: standard deviation of the kernel's values.
      fan_in: inputs of one output value.
    """
    return {
        "kernel_init": nn.initializers.normal(std),
        "bias_init": uniform(fan_in**-0.5),
    }


class BatchNorm(nn.Module):
    """Batch normalisation over the global batch or over groups of it (Ioffe & Szegedy 2015,
    https://arxiv.org/abs/1502.03167).

    With `group=None` the statistics are of all images of the step, on however many devices.
    With `group=32` images 0..31 share statistics, images 32..63 theirs, and so on; when every
    device holds whole groups no statistics travel between devices, and the result still does
    not depend on their number. Statistics, scale and bias are float32.

    The running variance takes the unbiased batch variance, n/(n-1) times the one that
    normalises, as torch.nn.BatchNorm2d does.

    A layer that the collection "frozen" has a variable for (see frozen_collection) works in
    training as in evaluation: it normalises by its running statistics and leaves them as they
    are. In training every other layer sows what it saw into the collection "moments", if that
    is mutable: "mean" and "mean_square" float32 [channels] of all images of the step, and
    "count" float32 [], the values in each channel that they are of.

    Attributes:
      train: whether to normalise by the statistics of the batch and to update the running ones
        ("batch_stats"), or to normalise by the running ones.
      group: images that share statistics in training; must divide the batch.
      momentum: the share of the old running statistics that is kept (torch's is the
        complement: its default 0.1 is 0.9 here).
      epsilon: added to the variance (torch's default 1e-5).
      dtype: dtype of the result; None keeps the input's.
    """

    train: bool
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Normalises [batch, ..., channels] for each channel; updates "batch_stats"."""
        channels = inputs.shape[-1]
        spec = ((channels,), jnp.float32)
        scale = self.param("scale", nn.initializers.ones, *spec)
        bias = self.param("bias", nn.initializers.zeros, *spec)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, *spec)
        running_var = self.variable("batch_stats", "var", jnp.ones, *spec)
        x = inputs.astype(jnp.float32)
        if not self.train or self.has_variable("frozen", "frozen"):
            mean, var = running_mean.value, running_var.value
        else:
            x = self._in_groups(x)
            axes = tuple(range(1, x.ndim - 1))
            # Mean and mean square together are one pass over the images, and one message
            # between devices.
            mean = x.mean(axes, keepdims=True)
            mean_square = (x**2).mean(axes, keepdims=True)
            var = jnp.maximum(mean_square - mean**2, 0)
            if not self.is_initializing():
                count = x[0, ..., 0].size
                unbiased = var * (count / max(count - 1, 1))
                keep = self.momentum
                for running, value in ((running_mean, mean), (running_var, unbiased)):
                    average = value.reshape(-1, channels).mean(0)
                    running.value = keep * running.value + (1 - keep) * average
                self._sow_moments(mean, mean_square, x[..., 0].size)
        normalized = (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return normalized.reshape(inputs.shape).astype(self.dtype or inputs.dtype)

    def _in_groups(self, x: jax.Array) -> jax.Array:
        """Returns [batch, ..., channels] as [groups, images, ..., channels]."""
        batch = x.shape[0]
        group = batch if self.group is None else self.group
        if group < 1 or batch % group:
            raise UserError(
                f"bn_group {group} does not divide the batch of {batch} images: choose "
                "a divisor, or None for statistics of the whole batch."
            )
        return x.reshape(batch // group, group, *x.shape[1:])

    def _sow_moments(self, mean: jax.Array, mean_square: jax.Array, count: int) -> None:
        """Sows the averages over the groups of [groups, ..., channels], and the count of values
        in a channel. Groups are of one size, so that these are the moments of all of them."""
        moments = {
            "mean": mean.reshape(-1, mean.shape[-1]).mean(0),
            "mean_square": mean_square.reshape(-1, mean.shape[-1]).mean(0),
            "count": jnp.float32(count),
        }
        for name, value in moments.items():
            # A single call, a single value, not flax's tuple of those of all calls.
            self.sow("moments", name, value, lambda _, new: new, lambda: None)


def frozen_collection(
    batch_stats: Any, is_frozen: Callable[[str], bool]
) -> dict[str, Any]:
    """Returns the collection "frozen", which tells batch norms to work as in evaluation.

    Args:
      batch_stats: of the network; arrays or their shapes.
      is_frozen: asked for the path of each batch norm, "layer1_0/bn1".

    Returns:
      {"layer1_0": {"bn1": {"frozen": marker}}}; the marker's presence counts, not its value. {}
      if none is frozen.
    """
    paths = traverse_util.flatten_dict(dict(batch_stats), sep="/")
    norms = {path.rpartition("/")[0] for path in paths}
    marked = {f"{norm}/frozen": np.True_ for norm in norms if is_frozen(norm)}
    return traverse_util.unflatten_dict(marked, sep="/")


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU.

    Attributes:
      conv: a convolution without bias, of the network's initial values and dtype.
      norm: a batch norm of the network's groups and dtype.
      features: channels of the result.
      kernel: (height, width) of the kernel.
      stride: of the convolution.
      padding: pixels added on each side, or (above and below, left and right).
    """

    conv: Any
    norm: Any
    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: int | tuple[int, int] = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h', w', features]."""
        window = (self.kernel, self.stride, self.padding)
        x = self.conv(self.features, *window, name="conv")(x)
        return nn.relu(self.norm(name="bn")(x))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382): leaves out a
    residual branch for an image, and scales the others up so that the expectation stays.

    Attributes:
      rate: probability that an image loses the branch, 0..1, below 1.
      train: whether to drop at all. Random numbers come from the stream "dropout".
    """

    rate: float
    train: bool

    @nn.compact
    def __call__(self, branch: jax.Array) -> jax.Array:
        """Maps [batch, ...] to the same shape and dtype."""
        if not self.train or self.rate == 0:
            return branch
        keep = 1 - self.rate
        shape = (len(branch), *(1,) * (branch.ndim - 1))
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, branch / keep, 0)


def check_stem(stem: str, *, image: Sequence[int], minimum: int, name: str) -> None:
    """Checks a network's stem and the size of its images.

    Args:
      stem: "imagenet" or "small".
      image: shape [batch, height, width, channels].
      minimum: smallest height and width that leave the network a pixel.
      name: of the network, for the sentence.

    Raises:
      UserError: for another stem, or images that are too small.
    """
    if stem not in ("imagenet", "small"):
        raise UserError(f"stem must be 'imagenet' or 'small', not {stem!r}.")
    check_size(image, minimum=minimum, name=f"{name} with stem={stem!r}")


def check_size(image: Sequence[int], *, minimum: int, name: str) -> None:
    """Raises UserError where images [batch, height, width, channels] are smaller than
    `minimum` pixels in height or width."""
    height, width = image[1:3]
    if min(height, width) < minimum:
        raise UserError(
            f"{name} takes images of {minimum}x{minimum} or more, not {height}x{width}: put "
            f"Resize(size={minimum}), or larger, into augment and eval_transform."
        )
