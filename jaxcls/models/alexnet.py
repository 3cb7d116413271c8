"""AlexNet: as torchvision builds it, and as it won in 2012."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.cpu.pooling import adaptive_avg_pool, max_pool
from jaxcls.models.layers import check_size, torch_default
from jaxcls.models.network import HeadInit, Layers, Network, head, singly


class AlexNet(Network):
    """AlexNet on one device (Krizhevsky 2014, "One weird trick", https://arxiv.org/abs/1404.5997,
    without groups and local response normalisation), equal to torchvision's. 61,100,840
    parameters for 1,000 classes.

    Every weight starts uniform within 1/sqrt(fan-in), as torch's layers do by default.

    Attributes:
      num_classes: length of the logits.
      dropout: probability of dropping an input of the first two dense layers.
      head_init: initial values of the last layer (see jaxcls.models.network.head).
      dtype: dtype of the computation; parameters are float32.
    """

    # (channels, kernel, stride, padding, whether a 3x3 max-pool of stride 2 follows)
    CONVOLUTIONS: ClassVar = (
        (64, 11, 4, 2, True),
        (192, 5, 1, 2, True),
        (384, 3, 1, 1, False),
        (256, 3, 1, 1, False),
        (256, 3, 1, 1, True),
    )

    STEM: ClassVar = "conv1"
    HEADS: ClassVar = ("fc8",)

    num_classes: int
    dropout: float = 0.5
    head_init: HeadInit = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for images smaller than 63 x 63.
        """
        check_size(images.shape, minimum=63, name="alexnet")
        x = images.astype(self.dtype)
        for index, row in enumerate(self.CONVOLUTIONS, start=1):
            channels, kernel, stride, padding, pool = row
            x = Conv(
                channels,
                (kernel, kernel),
                stride,
                padding=padding,
                dtype=self.dtype,
                name=f"conv{index}",
                **torch_default(kernel * kernel * x.shape[-1]),
            )(x)
            x = nn.relu(x)
            if pool:
                x = max_pool(x, 3, 2)
        x = adaptive_avg_pool(x, 6).reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.Dense(
                4096, dtype=self.dtype, name=name, **torch_default(x.shape[-1])
            )(x)
            x = nn.relu(x)
        logits = head(
            self.num_classes,
            self.head_init,
            dtype=self.dtype,
            name="fc8",
            **torch_default(x.shape[-1]),
        )(x)
        return logits.astype(jnp.float32)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: every layer is one."""
        convolutions = (f"conv{i + 1}" for i in range(len(self.CONVOLUTIONS)))
        return singly((*convolutions, "fc6", "fc7", *self.heads()))


class AlexNet2012(Network):
    """The network of Krizhevsky, Sutskever and Hinton 2012, "ImageNet classification with deep
    convolutional neural networks" (NIPS 25, figure 2): convolutions 2, 4 and 5 in two groups,
    one for each of its two GPUs, and local response normalisation. 60,965,224 parameters for
    1,000 classes.

    The paper's 224-pixel images do not give its 55 x 55 maps; two pixels of padding do.
    Weights start normal with standard deviation 0.01; biases at 1 in convolutions 2, 4, 5 and
    the hidden dense layers, at 0 elsewhere (section 5).

    Attributes:
      num_classes: length of the logits.
      dropout: probability of dropping an output of the two hidden dense layers (section 4.2).
      head_init: initial values of the last layer (see jaxcls.models.network.head).
      dtype: dtype of the computation; parameters are float32.
    """

    # (channels, kernel, stride, padding, groups, initial bias, normalise, max-pool 3/2)
    CONVOLUTIONS: ClassVar = (
        (96, 11, 4, 2, 1, 0.0, True, True),
        (256, 5, 1, 2, 2, 1.0, True, True),
        (384, 3, 1, 1, 1, 0.0, False, False),
        (384, 3, 1, 1, 2, 1.0, False, False),
        (256, 3, 1, 1, 2, 1.0, False, True),
    )

    STEM: ClassVar = "conv1"
    HEADS: ClassVar = ("fc8",)

    num_classes: int
    dropout: float = 0.5
    head_init: HeadInit = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for images smaller than 63 x 63.
        """
        check_size(images.shape, minimum=63, name="alexnet_2012")
        x = images.astype(self.dtype)
        normal = nn.initializers.normal(0.01)
        for index, row in enumerate(self.CONVOLUTIONS, start=1):
            channels, kernel, stride, padding, groups, bias, normalise, pool = row
            x = Conv(
                channels,
                (kernel, kernel),
                stride,
                padding=padding,
                feature_group_count=groups,
                kernel_init=normal,
                bias_init=nn.initializers.constant(bias),
                dtype=self.dtype,
                name=f"conv{index}",
            )(x)
            x = nn.relu(x)
            if normalise:
                x = local_response_norm(x)
            if pool:
                x = max_pool(x, 3, 2)
        x = adaptive_avg_pool(x, 6).reshape(len(x), -1)
        for name in ("fc6", "fc7"):
            one = nn.initializers.ones
            x = nn.Dense(
                4096, kernel_init=normal, bias_init=one, dtype=self.dtype, name=name
            )(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        logits = head(
            self.num_classes,
            self.head_init,
            kernel_init=normal,
            dtype=self.dtype,
            name="fc8",
        )(x)
        return logits.astype(jnp.float32)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: every layer is one."""
        convolutions = (f"conv{i + 1}" for i in range(len(self.CONVOLUTIONS)))
        return singly((*convolutions, "fc6", "fc7", *self.heads()))


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    k: float = 2.0,
    alpha: float = 1e-4,
    beta: float = 0.75,
) -> jax.Array:
    """Divides each value by (k + alpha x the sum of squares of `size` neighbouring channels) to
    the power beta (Krizhevsky et al. 2012, section 3.3, with its constants).

    Caffe's and torch's layers of this name divide alpha by `size` besides; the paper does not.

    Args:
      x: [batch, height, width, channels], returned in its dtype.
      size: channels that are summed, odd: the value's own and (size - 1) / 2 on each side.
      k: constant.
      alpha: weight of the sum.
      beta: power.
    """
    half = size // 2
    squares = jnp.pad(x.astype(jnp.float32) ** 2, ((0, 0),) * 3 + ((half, half),))
    channels = x.shape[-1]
    total = sum(squares[..., shift : shift + channels] for shift in range(size))
    return (x * (k + alpha * total) ** -beta).astype(x.dtype)


VARIANTS = {"alexnet": AlexNet, "alexnet_2012": AlexNet2012}
