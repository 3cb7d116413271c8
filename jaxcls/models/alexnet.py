"""AlexNet: as torchvision builds it, and as it won in 2012."""

import functools
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.cpu.pooling import adaptive_avg_pool, max_pool
from jaxcls.models.layers import check_size, torch_default
from jaxcls.models.network import Layers, Network, singly


class Convolution(NamedTuple):
    """A row of a network's table.

    Attributes:
      channels: of the result.
      kernel: side of the kernel.
      stride: in pixels.
      padding: pixels added on each side.
      pool: whether a 3x3 max-pool of stride 2 follows.
      groups: groups of channels that are convolved separately.
      bias: initial value of the biases, where the network fixes it.
      normalise: whether local response normalisation follows.
    """

    channels: int
    kernel: int
    stride: int
    padding: int
    pool: bool
    groups: int = 1
    bias: float = 0.0
    normalise: bool = False


class AlexNet(Network):
    """AlexNet on one device (Krizhevsky 2014, "One weird trick", https://arxiv.org/abs/1404.5997,
    without groups and local response normalisation), equal to torchvision's. 61,100,840
    parameters for 1,000 classes.

    Every weight starts uniform within 1/sqrt(fan-in), as torch's layers do by default.

    Attributes, besides those of Network:
      dropout: probability of dropping an input of the first two dense layers.
    """

    NAME: ClassVar = "alexnet"
    CONVOLUTIONS: ClassVar = (
        Convolution(64, 11, 4, 2, pool=True),
        Convolution(192, 5, 1, 2, pool=True),
        Convolution(384, 3, 1, 1, pool=False),
        Convolution(256, 3, 1, 1, pool=False),
        Convolution(256, 3, 1, 1, pool=True),
    )
    DROPS_INPUTS: ClassVar = True
    """Whether dropout comes before the hidden dense layers, not after them."""

    STEM: ClassVar = "conv1"
    HEADS: ClassVar = ("fc8",)

    dropout: float = 0.5

    @nn.nowrap
    def initial(self, fan_in: int, bias: float) -> dict[str, Any]:
        """Returns the initialisers of a layer with `fan_in` inputs for each output."""
        del bias
        return torch_default(fan_in)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for images smaller than 63 x 63.
        """
        check_size(images.shape, minimum=63, name=self.NAME)
        x = images.astype(self.dtype)
        for index, row in enumerate(self.CONVOLUTIONS, start=1):
            initial = self.initial(row.kernel**2 * x.shape[-1] // row.groups, row.bias)
            conv = functools.partial(Conv, feature_group_count=row.groups, **initial)
            window = ((row.kernel, row.kernel), row.stride, row.padding)
            layer = conv(row.channels, *window, dtype=self.dtype, name=f"conv{index}")
            x = nn.relu(layer(x))
            if row.normalise:
                x = local_response_norm(x)
            if row.pool:
                x = max_pool(x, 3, 2)
        x = adaptive_avg_pool(x, 6).reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            initial = self.initial(x.shape[-1], 1.0)
            dropout = nn.Dropout(self.dropout, deterministic=not train)
            if self.DROPS_INPUTS:
                x = dropout(x)
            x = nn.relu(nn.Dense(4096, dtype=self.dtype, name=name, **initial)(x))
            if not self.DROPS_INPUTS:
                x = dropout(x)
        return self.logits(x, **self.initial(x.shape[-1], 0.0))

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: every layer is one."""
        convolutions = (f"conv{i + 1}" for i in range(len(self.CONVOLUTIONS)))
        return singly((*convolutions, "fc6", "fc7", *self.heads()))


class AlexNet2012(AlexNet):
    """The network of Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep
    convolutional neural networks" (NIPS 25, figure 2): convolutions 2, 4 and 5 in two groups,
    one for each of its two GPUs, and local response normalisation. 60,965,224 parameters for
    1,000 classes.

    The paper's 224-pixel images do not give its 55 x 55 maps; two pixels of padding do.
    Weights start normal with standard deviation 0.01; biases at 1 in convolutions 2, 4, 5 and
    the hidden dense layers, at 0 elsewhere (section 5). Dropout follows the two hidden dense
    layers (section 4.2).
    """

    NAME: ClassVar = "alexnet_2012"
    CONVOLUTIONS: ClassVar = (
        Convolution(96, 11, 4, 2, pool=True, normalise=True),
        Convolution(256, 5, 1, 2, pool=True, groups=2, bias=1.0, normalise=True),
        Convolution(384, 3, 1, 1, pool=False),
        Convolution(384, 3, 1, 1, pool=False, groups=2, bias=1.0),
        Convolution(256, 3, 1, 1, pool=True, groups=2, bias=1.0),
    )
    DROPS_INPUTS: ClassVar = False

    @nn.nowrap
    def initial(self, fan_in: int, bias: float) -> dict[str, Any]:
        """Returns the initialisers of a layer whose biases start at `bias`."""
        del fan_in
        return {
            "kernel_init": nn.initializers.normal(0.01),
            "bias_init": nn.initializers.constant(bias),
        }


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides each value of [batch, height, width, channels] by (2 + 1e-4 x the sum of squares of
    five neighbouring channels, its own in the middle) to the power 0.75 (Krizhevsky et al. 2012,
    section 3.3). Returns it in the dtype of x.

    Caffe's and torch's layers of this name divide 1e-4 by 5 besides; the paper does not.
    """
    squares = jnp.pad(x.astype(jnp.float32) ** 2, ((0, 0),) * 3 + ((2, 2),))
    channels = x.shape[-1]
    total = sum(squares[..., shift : shift + channels] for shift in range(5))
    return (x * (2.0 + 1e-4 * total) ** -0.75).astype(x.dtype)


VARIANTS = {"alexnet": AlexNet, "alexnet_2012": AlexNet2012}
