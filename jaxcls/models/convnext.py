"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s", https://arxiv.org/abs/2201.03545), as
torchvision builds it."""

import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.layers import DropPath, check_stem
from jaxcls.models.network import Layers, Network, places

# torchvision's trunc_normal_(std=0.02). Its bounds of -2 and 2 are values, not multiples of the
# standard deviation: 100 of those away, they cut nothing off.
_normal = nn.initializers.normal(0.02)


class Block(nn.Module):
    """7x7 depthwise convolution, layer norm, a hidden layer four times as wide with exact GELU,
    layer scale; added to the input (figure 4).

    Attributes:
      drop_path: a DropPath of this block's rate.
      layer_scale: initial value of the factor of each channel.
      conv: a convolution of the network's initial values and dtype.
      norm: a layer norm of the network's dtype.
      dtype: dtype of the computation.
    """

    drop_path: Any
    layer_scale: float
    conv: Any
    norm: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to the same shape."""
        channels = x.shape[-1]
        dense = functools.partial(nn.Dense, kernel_init=_normal, dtype=self.dtype)
        depthwise = functools.partial(self.conv, feature_group_count=channels)
        y = depthwise(channels, (7, 7), padding=3, name="depthwise_conv")(x)
        y = self.norm(name="norm")(y)
        y = nn.gelu(dense(4 * channels, name="fc1")(y), approximate=False)
        y = dense(channels, name="fc2")(y)
        factor = self.param(
            "layer_scale", nn.initializers.constant(self.layer_scale), (channels,)
        )
        return x + self.drop_path()(y * factor.astype(self.dtype))


class ConvNeXt(Network):
    """A stem of non-overlapping patches, four stages of blocks with 2x2 convolutions of stride 2
    between them, and layer norm in place of batch norm.

    Kernels start normal with standard deviation 0.02, biases at 0 (torchvision).

    Attributes, besides those of Network:
      depths: blocks in each stage.
      width: channels of the first stage; each following has twice as many.
      stem: "imagenet": patches of 4x4 pixels; the stages see 1/4, 1/8, 1/16, 1/32 of the image.
        "small", for 32-pixel images: patches of 2x2; the stages see 1/2, 1/4, 1/8, 1/16.
      dropout: probability of dropping an input of the last layer.
      drop_path: rate of stochastic depth; block i of N, counted from 0, drops its residual
        branch for an image with probability i / (N - 1) of it, so that the last one reaches it.
      layer_scale: initial value of the factor of each residual branch's channels (Touvron et
        al. 2021, https://arxiv.org/abs/2103.17239, section 2).
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    STEM: ClassVar = "stem_conv"
    HEADS: ClassVar = ("fc",)

    depths: tuple[int, ...] = (3, 3, 9, 3)
    width: int = 96
    stem: Literal["imagenet", "small"] = "imagenet"
    dropout: float = 0.0
    drop_path: float = 0.1
    layer_scale: float = 1e-6
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for an unknown stem, or images smaller than 32 x 32 (16 x 16 with the small
            stem).
        """
        patch = 2 if self.stem == "small" else 4
        check_stem(self.stem, image=images.shape, minimum=8 * patch, name="convnext")
        # Pixels that do not fill a patch, of the images or between the stages, are lost.
        conv = functools.partial(Conv, kernel_init=_normal, dtype=self.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=self.dtype)
        block = nn.remat(Block) if self.remat else Block
        x = images.astype(self.dtype)
        x = conv(self.width, (patch, patch), patch, padding=0, name="stem_conv")(x)
        x = norm(name="stem_norm")(x)
        order = places(self.depths)
        for before, (stage, index) in enumerate(order):
            if stage > 1 and index == 0:
                x = norm(name=f"downsample{stage}_norm")(x)
                width = self.width * 2 ** (stage - 1)
                x = conv(width, (2, 2), 2, padding=0, name=f"downsample{stage}_conv")(x)
            drop_rate = self.drop_path * before / max(len(order) - 1, 1)
            x = block(
                functools.partial(DropPath, drop_rate, train),
                self.layer_scale,
                conv,
                norm,
                self.dtype,
                name=f"stage{stage}_{index}",
            )(x)
        x = norm(name="norm")(x.mean((1, 2)))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, kernel_init=_normal)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: the stem, then each block, the first of a stage with the downsampling
        before it."""
        found = []
        for stage, index in places(self.depths):
            down = (f"downsample{stage}_norm", f"downsample{stage}_conv")
            before = down if stage > 1 and index == 0 else ()
            found.append((*before, f"stage{stage}_{index}"))
        return (("stem_conv", "stem_norm"), *found, ("norm", *self.heads()))


def _variant(
    depths: tuple[int, ...], width: int, drop_path: float
) -> functools.partial[ConvNeXt]:
    return functools.partial(ConvNeXt, depths=depths, width=width, drop_path=drop_path)


# Section 3's table and torchvision's rates of stochastic depth; xlarge is the authors', which
# torchvision leaves out.
VARIANTS = {
    "convnext_tiny": _variant((3, 3, 9, 3), 96, 0.1),
    "convnext_small": _variant((3, 3, 27, 3), 96, 0.4),
    "convnext_base": _variant((3, 3, 27, 3), 128, 0.5),
    "convnext_large": _variant((3, 3, 27, 3), 192, 0.5),
    "convnext_xlarge": _variant((3, 3, 27, 3), 256, 0.5),
}
