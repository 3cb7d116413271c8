"""A small residual network for 32-pixel images in the manner of Keras."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.layers import BatchNorm, DropPath
from jaxcls.models.network import HeadInit, Layers, Network, blocks, head


class KerasBlock(nn.Module):
    """Two biased 3x3 convolutions with batch norm, added to the input; where the shape changes
    the input passes a biased 1x1 convolution with batch norm.

    Attributes:
      features: channels of the result.
      stride: of the first convolution and the shortcut.
      conv: a convolution of the network's dtype.
      norm: a batch norm of the network's groups and dtype.
      drop_path: a DropPath of this block's rate.
    """

    features: int
    stride: int
    conv: Any
    norm: Any
    drop_path: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h / stride, w / stride, features]."""
        y = self.conv(self.features, (3, 3), self.stride, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, (3, 3), name="conv2")(y)
        y = self.norm(name="bn2")(y)
        if x.shape != y.shape:
            x = self.conv(self.features, (1, 1), self.stride, name="shortcut_conv")(x)
            x = self.norm(name="shortcut_bn")(x)
        return nn.relu(x + self.drop_path()(y))


class KerasResNet(Network):
    """A residual network as one writes it with Keras's layers and their defaults: 3x3 stem, then
    three blocks each of 64, 128 and 256 channels, the second and third stage of stride 2.

    4,330,890 parameters and 6,272 batch statistics for 32 x 32 x 3 images and 10 classes. As in
    Keras the convolutions have biases, "same" padding puts the odd pixel at the end, kernels
    start Glorot-uniform, biases at 0, and batch norm has epsilon 1e-3 and keeps 0.99 of its
    running statistics. (Those take the unbiased variance here; Keras's the biased one.)

    Attributes:
      num_classes: length of the logits.
      width: channels of the stem and the first stage.
      dropout: probability of dropping an input of the last layer.
      drop_path: probability of dropping the last block's residual branch for an image; block l
        of L drops with l / L of it.
      bn_group: images that share batch statistics in training (see BatchNorm); None for all.
      remat: recompute each block in the backward pass instead of keeping its activations.
      head_init: initial values of the last layer (see jaxcls.models.network.head).
      dtype: dtype of the computation; parameters and statistics are float32.
    """

    STEM: ClassVar = "conv"
    HEADS: ClassVar = ("fc",)

    num_classes: int
    width: int = 64
    dropout: float = 0.0
    drop_path: float = 0.0
    bn_group: int | None = None
    remat: bool = False
    head_init: HeadInit = "default"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes]."""
        glorot = nn.initializers.glorot_uniform()
        conv = functools.partial(
            Conv, padding="SAME", kernel_init=glorot, dtype=self.dtype
        )
        norm = functools.partial(
            BatchNorm,
            train=train,
            group=self.bn_group,
            momentum=0.99,
            epsilon=1e-3,
            dtype=self.dtype,
        )
        block = nn.remat(KerasBlock) if self.remat else KerasBlock
        x = images.astype(self.dtype)
        x = nn.relu(norm(name="bn")(conv(self.width, (3, 3), name="conv")(x)))
        for stage in range(3):
            for index in range(3):
                done = 3 * stage + index + 1
                x = block(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    norm=norm,
                    drop_path=functools.partial(
                        DropPath, self.drop_path * done / 9, train
                    ),
                    name=f"stage{stage + 1}_{index}",
                )(x)
        x = x.mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        logits = head(
            self.num_classes,
            self.head_init,
            kernel_init=glorot,
            dtype=self.dtype,
            name="fc",
        )(x)
        return logits.astype(jnp.float32)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: the stem, then each block."""
        return (("conv", "bn"), *blocks("stage", (3, 3, 3)), self.heads())


VARIANTS = {"keras_resnet": KerasResNet}
