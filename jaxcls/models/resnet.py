"""ResNet and its kin, as torchvision builds them.

He et al. 2015, "Deep residual learning", https://arxiv.org/abs/1512.03385; Wide ResNet
(Zagoruyko & Komodakis 2016, https://arxiv.org/abs/1605.07146); ResNeXt (Xie et al. 2016,
https://arxiv.org/abs/1611.05431).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.errors import UserError
from jaxcls.models.cpu.pooling import max_pool
from jaxcls.models.layers import DropPath, KaimingConv, check_stem, torch_default
from jaxcls.models.network import BatchNormNetwork, Layers, blocks, places


class Block(nn.Module):
    """What all kinds of residual blocks share: the shortcut and the sum.

    Attributes:
      features: channels of the stage; a bottleneck's result has four times as many.
      stride: of the block.
      conv: a convolution of the network's dtype.
      norm: a batch norm of the network's groups and dtype.
      drop_path: a DropPath of this block's rate.
      shortcut: where the shape changes, a "projection" by a 1x1 convolution with batch norm
        (option B), or "pad": every stride-th pixel, further channels zero (option A).
      groups: of a bottleneck's 3x3 convolution.
      group_width: channels of one of those groups in the first stage; they double as the
        stages' do.
    """

    SHORTCUT_NAME: ClassVar = "downsample"

    features: int
    stride: int
    conv: Any
    norm: Any
    drop_path: Any
    shortcut: Literal["projection", "pad"] = "projection"
    groups: int = 1
    group_width: int = 64

    def add(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        """Returns ReLU of the input, brought to the residual's shape, plus the residual."""
        stride, channels = self.stride, residual.shape[-1]
        if x.shape != residual.shape:
            if self.shortcut == "pad":
                x = x[:, ::stride, ::stride]
                x = jnp.pad(x, ((0, 0),) * 3 + ((0, channels - x.shape[-1]),))
            else:
                name = self.SHORTCUT_NAME
                x = self.conv(channels, (1, 1), stride, name=f"{name}_conv")(x)
                x = self.norm(name=f"{name}_bn")(x)
        return nn.relu(x + self.drop_path()(residual))


class BasicBlock(Block):
    """Two 3x3 convolutions with batch norm (He et al. 2015, figure 5 left)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h / stride, w / stride, features]."""
        y = self.conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3), padding=1, name="conv2")(y)
        return self.add(x, self.norm(name="bn2")(y))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions with batch norm (He et al. 2015, figure 5 right).

    The stride is the 3x3 convolution's, as in torchvision ("v1.5"), not the first 1x1's.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h / stride, w / stride, 4 features]."""
        inner = self.features * self.group_width * self.groups // 64
        y = self.conv(inner, (1, 1), name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        grouped = functools.partial(self.conv, feature_group_count=self.groups)
        y = grouped(inner, (3, 3), self.stride, padding=1, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y))
        y = self.conv(4 * self.features, (1, 1), name="conv3")(y)
        return self.add(x, self.norm(name="bn3")(y))


class ResidualNetwork(BatchNormNetwork):
    """Stages of residual blocks; each stage after the first halves the image and doubles the
    channels.

    Attributes, besides those of BatchNormNetwork:
      width: channels of the first stage.
      dropout: probability of dropping an input of the last layer.
      drop_path: probability of dropping the last block's residual branch for an image; block l
        of L drops with l / L of it (Huang et al. 2016, https://arxiv.org/abs/1603.09382,
        equation 4).
    """

    width: int = 64
    dropout: float = 0.0
    drop_path: float = 0.0

    @nn.nowrap
    def run_stages(
        self, x: jax.Array, block: Any, prefix: str, sizes: Sequence[int], train: bool
    ) -> jax.Array:
        """Returns what the last layer is given, [batch, values]; call it inside the network.

        Args:
          x: what the stem gives, [batch, height, width, channels].
          block: a kind of Block; it lacks features, stride, drop_path and a name.
          prefix: "layer" names the blocks "layer1_0", "layer1_1", ...
          sizes: blocks in each stage.
          train: whether dropout and stochastic depth apply.
        """
        order = places(sizes)
        for number, (stage, index) in enumerate(order, start=1):
            drop_rate = self.drop_path * number / len(order)
            x = block(
                features=self.width * 2 ** (stage - 1),
                stride=2 if stage > 1 and index == 0 else 1,
                drop_path=functools.partial(DropPath, drop_rate, train),
                name=f"{prefix}{stage}_{index}",
            )(x)
        return nn.Dropout(self.dropout, deterministic=not train)(x.mean((1, 2)))


class ResNet(ResidualNetwork):
    """A residual network for photographs or for 32-pixel images.

    Convolutions start as kaiming_fan_out, the last layer uniform within 1/sqrt(fan-in), the
    batch norms at scale 1 (torchvision).

    Attributes, besides those of ResidualNetwork:
      stage_sizes: blocks in each stage: (2, 2, 2, 2) is ResNet-18 (table 1).
      block: BasicBlock or Bottleneck.
      shortcut: how shapes are matched, "projection" or "pad" (see Block).
      groups: of a bottleneck's 3x3 convolution (ResNeXt's cardinality).
      group_width: channels of one of those groups in a first stage of width 64: ResNeXt's 4,
        Wide ResNet-50-2's 128.
      stem: "imagenet": 7x7 convolution of stride 2 and 3x3 max-pool of stride 2, so that the
        stages see 1/4, 1/8, 1/16, 1/32 of the image. "small", for 32-pixel images: 3x3
        convolution of stride 1, no pool; the stages see 1, 1/2, 1/4, 1/8.
    """

    STEM: ClassVar = "conv1"
    HEADS: ClassVar = ("fc",)

    stage_sizes: tuple[int, ...] = (2, 2, 2, 2)
    block: type[Block] = BasicBlock
    shortcut: Literal["projection", "pad"] = "projection"
    groups: int = 1
    group_width: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes]."""
        check_stem(self.stem, image=images.shape, minimum=1, name="resnet")
        inner = self.width * self.group_width * self.groups // 64
        if inner % self.groups or not inner:
            raise UserError(
                f"width {self.width} leaves {inner} channels for {self.groups} groups: use a "
                f"multiple of {64 // math.gcd(64, self.group_width)}."
            )
        conv = functools.partial(
            KaimingConv, padding=0, use_bias=False, dtype=self.dtype
        )
        norm = self.norm_layer(train)
        x = images.astype(self.dtype)
        imagenet = self.stem == "imagenet"
        side, stride, padding = (7, 2, 3) if imagenet else (3, 1, 1)
        x = conv(self.width, (side, side), stride, padding=padding, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x))
        if imagenet:
            x = max_pool(x, 3, 2, padding=1)
        block = functools.partial(
            nn.remat(self.block) if self.remat else self.block,
            conv=conv,
            norm=norm,
            shortcut=self.shortcut,
            groups=self.groups,
            group_width=self.group_width,
        )
        x = self.run_stages(x, block, "layer", self.stage_sizes, train)
        return self.logits(x, **torch_default(x.shape[-1]))

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: the stem, then each block."""
        return (("conv1", "bn1"), *blocks("layer", self.stage_sizes), self.heads())


def _variant(
    block: type[Block], *stage_sizes: int, **options: Any
) -> functools.partial[ResNet]:
    return functools.partial(ResNet, block=block, stage_sizes=stage_sizes, **options)


VARIANTS = {
    "resnet18": _variant(BasicBlock, 2, 2, 2, 2),
    "resnet34": _variant(BasicBlock, 3, 4, 6, 3),
    "resnet50": _variant(Bottleneck, 3, 4, 6, 3),
    "resnet101": _variant(Bottleneck, 3, 4, 23, 3),
    "resnet152": _variant(Bottleneck, 3, 8, 36, 3),
    "wide_resnet50_2": _variant(Bottleneck, 3, 4, 6, 3, group_width=128),
    "resnext50_32x4d": _variant(Bottleneck, 3, 4, 6, 3, groups=32, group_width=4),
} | {
    # For CIFAR (section 4.2): three stages of n blocks, 6n + 2 layers, shortcuts of option A.
    f"resnet{6 * n + 2}": _variant(
        BasicBlock, n, n, n, stem="small", width=16, shortcut="pad"
    )
    for n in (3, 5, 7, 9, 18)
}
