"""EfficientNet and EfficientNetV2, as torchvision builds them.

Tan & Le 2019, https://arxiv.org/abs/1905.11946, and Tan & Le 2021,
https://arxiv.org/abs/2104.00298.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from jaxcls.errors import UserError
from jaxcls.models.layers import DropPath, KaimingConv, check_stem
from jaxcls.models.network import BatchNormNetwork, Layers, blocks, places


@dataclasses.dataclass(frozen=True)
class Stage:
    """A row of a network's table.

    Attributes:
      expand: channels inside a block for each of its input.
      kernel: side of the kernel.
      stride: of the first block.
      channels: of the result.
      blocks: number of blocks.
      fused: whether one full convolution stands for expansion and depthwise convolution
        (EfficientNetV2, figure 2), without squeeze-and-excitation.
    """

    expand: int
    kernel: int
    stride: int
    channels: int
    blocks: int
    fused: bool = False


# EfficientNet-B0 (Tan & Le 2019, table 1).
BASE = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)

# EfficientNetV2-S (Tan & Le 2021, table 4), M and L (their published code).
V2_S = (
    Stage(1, 3, 1, 24, 2, fused=True),
    Stage(4, 3, 2, 48, 4, fused=True),
    Stage(4, 3, 2, 64, 4, fused=True),
    Stage(4, 3, 2, 128, 6),
    Stage(6, 3, 1, 160, 9),
    Stage(6, 3, 2, 256, 15),
)
V2_M = (
    Stage(1, 3, 1, 24, 3, fused=True),
    Stage(4, 3, 2, 48, 5, fused=True),
    Stage(4, 3, 2, 80, 5, fused=True),
    Stage(4, 3, 2, 160, 7),
    Stage(6, 3, 1, 176, 14),
    Stage(6, 3, 2, 304, 18),
    Stage(6, 3, 1, 512, 5),
)
V2_L = (
    Stage(1, 3, 1, 32, 4, fused=True),
    Stage(4, 3, 2, 64, 7, fused=True),
    Stage(4, 3, 2, 96, 7, fused=True),
    Stage(4, 3, 2, 192, 10),
    Stage(6, 3, 1, 224, 19),
    Stage(6, 3, 2, 384, 25),
    Stage(6, 3, 1, 640, 7),
)


def scale_channels(channels: int, factor: float) -> int:
    """Returns channels x factor as a multiple of 8, at least 8, never below 90 % of it."""
    wanted = channels * factor
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def scale_stages(
    stages: tuple[Stage, ...], width: float, depth: float
) -> tuple[Stage, ...]:
    """Returns a table with its channels scaled by `width` and its blocks, rounded up, by
    `depth` (compound scaling, Tan & Le 2019, equation 3)."""
    return tuple(
        dataclasses.replace(
            stage,
            channels=scale_channels(stage.channels, width),
            blocks=math.ceil(stage.blocks * depth),
        )
        for stage in stages
    )


def conv_layer(
    features: int, kernel: int, stride: int = 1, *, padding: str, **options: Any
) -> nn.Conv:
    """Returns a convolution; call it inside a network.

    Args:
      features: channels of the result.
      kernel: side of the kernel.
      stride: in pixels.
      padding: "symmetric" or "same" (see EfficientNet).
      **options: of linen's layer.

    Raises:
      UserError: for another padding.
    """
    if padding not in ("symmetric", "same"):
        raise UserError(f"padding must be 'symmetric' or 'same', not {padding!r}.")
    pads = kernel // 2 if padding == "symmetric" else "SAME"
    return KaimingConv(features, (kernel, kernel), stride, pads, **options)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate that sees the mean of all (Hu et al. 2017,
    https://arxiv.org/abs/1709.01507), with SiLU between its two layers.

    Attributes:
      squeezed: values between the two layers.
      conv: a conv_layer of the network's padding and dtype.
    """

    squeezed: int
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to the same shape."""
        gate = x.mean((1, 2), keepdims=True)
        gate = nn.silu(self.conv(self.squeezed, 1, name="reduce")(gate))
        gate = self.conv(x.shape[-1], 1, name="expand")(gate)
        return x * nn.sigmoid(gate)


class Block(nn.Module):
    """An inverted residual block: expand, convolve, gate, project (Sandler et al. 2018,
    https://arxiv.org/abs/1801.04381), or its fused form. The input is added where the shape
    stays.

    Attributes:
      stage: its row of the table.
      stride: of this block.
      conv: a conv_layer of the network's padding and dtype.
      norm: a batch norm of the network's groups and dtype.
      drop_path: a DropPath of this block's rate.
    """

    stage: Stage
    stride: int
    conv: Any
    norm: Any
    drop_path: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h / stride, w / stride, stage.channels]."""
        stage = self.stage
        inner = x.shape[-1] * stage.expand
        window = (stage.kernel, self.stride)
        if stage.fused and stage.expand == 1:
            y = nn.silu(self._conv_norm(x, "", stage.channels, *window))
        else:
            y = x
            if stage.fused:
                y = nn.silu(self._conv_norm(y, "expand_", inner, *window))
            else:
                if stage.expand != 1:
                    y = nn.silu(self._conv_norm(y, "expand_", inner, 1))
                y = self._conv_norm(y, "depthwise_", inner, *window, groups=inner)
                y = nn.silu(y)
                y = SqueezeExcite(max(1, x.shape[-1] // 4), self.conv, name="se")(y)
            y = self._conv_norm(y, "project_", stage.channels, 1)
        return x + self.drop_path()(y) if x.shape == y.shape else y

    def _conv_norm(
        self, x: jax.Array, prefix: str, features: int, *window: int, groups: int = 1
    ) -> jax.Array:
        """Convolves, with a kernel and stride as conv_layer takes them, and normalises."""
        conv = functools.partial(self.conv, use_bias=False, feature_group_count=groups)
        x = conv(features, *window, name=f"{prefix}conv")(x)
        return self.norm(name=f"{prefix}bn")(x)


class EfficientNet(BatchNormNetwork):
    """A 3x3 stem, stages of inverted residual blocks, a 1x1 convolution and a dense layer.

    Convolutions start as kaiming_fan_out with bias 0; the dense layer uniform within
    1/sqrt(classes) with bias 0 (torchvision).

    Attributes, besides those of BatchNormNetwork:
      stages: the table.
      width_factor: of the channels of stem, stages and head.
      depth_factor: of the blocks of each stage.
      stem_channels: of the stem before scaling; None takes those of the first stage
        (EfficientNetV2).
      head_channels: of the last convolution; None is four times those of the last stage.
      stem: "imagenet": strides 2 in the stem and as in the table, 32 in all: an image of 224
        pixels ends at 7. "small", for 32-pixel images: stride 1 in the stem and in the first
        strided stage, so that they see 1, 1, 1/2, 1/4, 1/4, 1/8, 1/8 of the image (B0) and 32
        pixels end at 4.
      padding: "symmetric" as in torchvision, or "same" as in TensorFlow, which puts the odd
        pixel of a strided convolution at the end; weights ported from there need it.
      dropout: probability of dropping an input of the last layer.
      drop_path: rate of stochastic depth; block i of N, counted from 0, drops its residual
        branch for an image with probability i / N of it, so that none reaches it.
      bn_momentum: share of the running statistics that is kept at each step.
      bn_epsilon: added to the variance.
    """

    STEM: ClassVar = "stem_conv"
    HEADS: ClassVar = ("fc",)

    stages: tuple[Stage, ...] = BASE
    width_factor: float = 1.0
    depth_factor: float = 1.0
    stem_channels: int | None = 32
    head_channels: int | None = None
    stem: Literal["imagenet", "small"] = "imagenet"
    padding: Literal["symmetric", "same"] = "symmetric"
    dropout: float = 0.2
    drop_path: float = 0.2
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes]."""
        check_stem(self.stem, image=images.shape, minimum=1, name="efficientnet")
        conv = functools.partial(conv_layer, padding=self.padding, dtype=self.dtype)
        plain = functools.partial(conv, use_bias=False)
        norm = self.norm_layer(train, self.bn_momentum, self.bn_epsilon)
        block = nn.remat(Block) if self.remat else Block
        stages = scale_stages(self.stages, self.width_factor, self.depth_factor)
        stem_channels = self.stem_channels or self.stages[0].channels
        small = self.stem == "small"
        x = images.astype(self.dtype)
        stem_channels = scale_channels(stem_channels, self.width_factor)
        x = plain(stem_channels, 3, 1 if small else 2, name="stem_conv")(x)
        x = nn.silu(norm(name="stem_bn")(x))
        order = places(stage.blocks for stage in stages)
        unstrided = next(i for i, stage in enumerate(stages, 1) if stage.stride > 1)
        for before, (number, index) in enumerate(order):
            stage = stages[number - 1]
            strided = index == 0 and not (small and number == unstrided)
            drop_rate = self.drop_path * before / len(order)
            x = block(
                stage,
                stage.stride if strided else 1,
                conv,
                norm,
                functools.partial(DropPath, drop_rate, train),
                name=f"stage{number}_{index}",
            )(x)
        head_channels = self.head_channels or 4 * stages[-1].channels
        x = plain(head_channels, 1, name="head_conv")(x)
        x = nn.silu(norm(name="head_bn")(x)).mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        initial = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")
        return self.logits(x, kernel_init=initial)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: the stem, each block, the last convolution, the head."""
        stages = scale_stages(self.stages, self.width_factor, self.depth_factor)
        return (
            ("stem_conv", "stem_bn"),
            *blocks("stage", (stage.blocks for stage in stages)),
            ("head_conv", "head_bn"),
            self.heads(),
        )


def _scaled(
    width: float, depth: float, dropout: float, **options: Any
) -> functools.partial[EfficientNet]:
    scaled = functools.partial(EfficientNet, width_factor=width, depth_factor=depth)
    return functools.partial(scaled, dropout=dropout, **options)


_v2 = functools.partial(
    EfficientNet, stem_channels=None, head_channels=1280, bn_epsilon=1e-3
)
# B5 to B7 have TensorFlow's constants in torchvision, as their weights come from there.
_TENSORFLOW_NORM: dict[str, Any] = {"bn_epsilon": 1e-3, "bn_momentum": 0.99}

# Width, depth, dropout: Tan & Le 2019, section 5.2, and their published code.
VARIANTS = {
    "efficientnet_b0": _scaled(1.0, 1.0, 0.2),
    "efficientnet_b1": _scaled(1.0, 1.1, 0.2),
    "efficientnet_b2": _scaled(1.1, 1.2, 0.3),
    "efficientnet_b3": _scaled(1.2, 1.4, 0.3),
    "efficientnet_b4": _scaled(1.4, 1.8, 0.4),
    "efficientnet_b5": _scaled(1.6, 2.2, 0.4, **_TENSORFLOW_NORM),
    "efficientnet_b6": _scaled(1.8, 2.6, 0.5, **_TENSORFLOW_NORM),
    "efficientnet_b7": _scaled(2.0, 3.1, 0.5, **_TENSORFLOW_NORM),
    "efficientnet_v2_s": functools.partial(_v2, stages=V2_S, dropout=0.2),
    "efficientnet_v2_m": functools.partial(_v2, stages=V2_M, dropout=0.3),
    "efficientnet_v2_l": functools.partial(_v2, stages=V2_L, dropout=0.4),
}
