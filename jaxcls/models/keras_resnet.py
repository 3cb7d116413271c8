"""A small residual network for 32-pixel images in the manner of Keras."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax

from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.network import Layers, blocks
from jaxcls.models.resnet import Block, ResidualNetwork

STAGE_SIZES = (3, 3, 3)


class KerasBlock(Block):
    """Two biased 3x3 convolutions with batch norm, added to the input; where the shape changes
    the input passes a biased 1x1 convolution with batch norm."""

    SHORTCUT_NAME: ClassVar = "shortcut"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h / stride, w / stride, features]."""
        y = self.conv(self.features, (3, 3), self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3), name="conv2")(y)
        return self.add(x, self.norm(name="bn2")(y))


class KerasResNet(ResidualNetwork):
    """A residual network as one writes it with Keras's layers and their defaults: 3x3 stem, then
    three blocks each of 64, 128 and 256 channels, the second and third stage of stride 2.

    4,330,890 parameters and 6,272 batch statistics for 32 x 32 x 3 images and 10 classes. As in
    Keras the convolutions have biases, "same" padding puts the odd pixel at the end, kernels
    start Glorot-uniform, biases at 0, and batch norm has epsilon 1e-3 and keeps 0.99 of its
    running statistics. (Those take the unbiased variance here; Keras's the biased one.)

    The attributes are those of ResidualNetwork.
    """

    STEM: ClassVar = "conv"
    HEADS: ClassVar = ("fc",)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes]."""
        glorot = nn.initializers.glorot_uniform()
        conv = functools.partial(
            Conv, padding="SAME", kernel_init=glorot, dtype=self.dtype
        )
        norm = self.norm_layer(train, momentum=0.99, epsilon=1e-3)
        x = images.astype(self.dtype)
        x = nn.relu(norm(name="bn")(conv(self.width, (3, 3), name="conv")(x)))
        kind = nn.remat(KerasBlock) if self.remat else KerasBlock
        block = functools.partial(kind, conv=conv, norm=norm)
        x = self.run_stages(x, block, "stage", STAGE_SIZES, train)
        return self.logits(x, kernel_init=glorot)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: the stem, then each block."""
        return (("conv", "bn"), *blocks("stage", STAGE_SIZES), self.heads())


VARIANTS = {"keras_resnet": KerasResNet}
