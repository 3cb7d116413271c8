"""ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385), as torchvision builds it."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.errors import UserError
from jaxcls.models.layers import BatchNorm

# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu").
_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform in -bound..bound: torch.nn.Linear's kernel and bias with 1/sqrt(fan-in)."""

    def init(
        rng: jax.Array,
        shape: Sequence[int],
        dtype: Any = jnp.float32,
        out_sharding: Any = None,
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(rng, shape, dtype, -bound, bound)

    return init


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input (He et al. 2015, figure 2).

    Where the shape changes, the input passes a 1x1 convolution with batch norm (option B).

    Attributes:
      features: channels of the result.
      stride: of the first convolution and the shortcut.
      conv: a convolution of the network's dtype.
      norm: a batch norm of the network's groups and dtype.
    """

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h / stride, w / stride, features]."""
        strides = (self.stride, self.stride)
        y = self.conv(self.features, (3, 3), strides, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        if x.shape != y.shape:
            x = self.conv(self.features, (1, 1), strides, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A residual network of four stages of basic blocks; each after the first halves the
    image and doubles the channels.

    Attributes:
      num_classes: length of the logits.
      stage_sizes: blocks in each stage: (2, 2, 2, 2) is ResNet-18 (table 1).
      stem: "imagenet": 7x7 convolution of stride 2 and 3x3 max-pool of stride 2, so that the
        stages see 1/4, 1/8, 1/16, 1/32 of the image. "small", for 32-pixel images: 3x3
        convolution of stride 1, no pool; the stages see 1, 1/2, 1/4, 1/8.
      width: channels of the first stage.
      bn_group: images that share batch statistics in training (see BatchNorm); None for all.
      dtype: dtype of the computation; parameters and statistics are float32.
    """

    num_classes: int
    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    stem: Literal["imagenet", "small"] = "imagenet"
    width: int = 64
    bn_group: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes]."""
        conv = functools.partial(
            nn.Conv, use_bias=False, kernel_init=_conv_init, padding=0, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, group=self.bn_group, dtype=self.dtype)
        x = images.astype(self.dtype)
        if self.stem not in ("imagenet", "small"):
            raise UserError(f"stem must be 'imagenet' or 'small', not {self.stem!r}.")
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), (2, 2), padding=3, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x, train=train))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        else:
            x = conv(self.width, (3, 3), padding=1, name="conv1")(x)
            x = nn.relu(norm(name="bn1")(x, train=train))
        for stage, num_blocks in enumerate(self.stage_sizes, start=1):
            for block in range(num_blocks):
                x = BasicBlock(
                    features=self.width * 2 ** (stage - 1),
                    stride=2 if stage > 1 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage}_{block}",
                )(x, train=train)
        x = x.mean((1, 2))
        logits = nn.Dense(
            self.num_classes,
            kernel_init=_uniform(x.shape[-1] ** -0.5),
            bias_init=_uniform(x.shape[-1] ** -0.5),
            dtype=self.dtype,
            name="fc",
        )(x)
        return logits.astype(jnp.float32)
