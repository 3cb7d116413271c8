"""GoogLeNet (Szegedy et al. 2014, "Going deeper with convolutions",
https://arxiv.org/abs/1409.4842), with batch normalisation, as torchvision builds it."""

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.cpu.pooling import adaptive_avg_pool, max_pool
from jaxcls.models.layers import check_size, normal_uniform
from jaxcls.models.network import BatchNormNetwork, Layers, singly

STD = 0.01
"""Standard deviation of every initial kernel."""

# Channels of each inception module, left to right as in the paper's table 1:
# 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}

# Side of the max-pool's windows after some of them; its stride is 2.
POOLS = {"3b": 3, "4e": 2}


class Inception(nn.Module):
    """Four branches side by side (figure 2b): 1x1, 1x1-3x3, 1x1-"5x5", max-pool-1x1.

    The third branch's kernel is 3x3, not the paper's 5x5: torchvision's weights have it so.

    Attributes:
      channels: a row of INCEPTIONS.
      conv: a ConvNorm of the network's norm and dtype.
    """

    channels: tuple[int, ...]
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h, w, sum of the branches]."""
        one, three_reduce, three, five_reduce, five, pool = self.channels
        conv = self.conv
        branch2 = conv(three_reduce, (1, 1), name="branch2_reduce")(x)
        branch3 = conv(five_reduce, (1, 1), name="branch3_reduce")(x)
        branch4 = max_pool(x, 3, 1, padding=1, ceil=True)
        branches = [
            conv(one, (1, 1), name="branch1")(x),
            conv(three, (3, 3), padding=1, name="branch2")(branch2),
            conv(five, (3, 3), padding=1, name="branch3")(branch3),
            conv(pool, (1, 1), name="branch4")(branch4),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on maps half way through the network (section 5).

    Attributes:
      head_layer: the layer that gives logits (see Network).
      conv: a ConvNorm of the network's norm and dtype.
      dropout: probability of dropping an input of the last layer.
      dtype: dtype of the computation.
      train: whether dropout applies.
    """

    head_layer: Any
    conv: Any
    dropout: float
    dtype: Any
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to logits float32 [batch, num_classes]."""
        x = self.conv(128, (1, 1), name="conv")(adaptive_avg_pool(x, 4))
        x = x.reshape(len(x), -1)
        initial = normal_uniform(STD, x.shape[-1])
        x = nn.Dense(1024, dtype=self.dtype, name="fc1", **initial)(x)
        x = nn.Dropout(self.dropout, deterministic=not self.train)(nn.relu(x))
        layer = self.head_layer(name="fc2", **normal_uniform(STD, 1024))
        return layer(x).astype(jnp.float32)


class GoogLeNet(BatchNormNetwork):
    """Nine inception modules and two auxiliary heads. 13,004,888 parameters for 1,000 classes,
    6,624,904 of them without the auxiliary heads.

    In training the logits of the heads are sown into the collection "aux_logits", as
    "aux1_logits" (after 4a) and "aux2_logits" (after 4d); in evaluation they are not computed.

    Kernels start normal with standard deviation 0.01, biases of the dense layers uniform within
    1/sqrt(fan-in) (torchvision). Batch norm has epsilon 1e-3.

    Attributes, besides those of BatchNormNetwork:
      dropout: probability of dropping an input of the last layer.
      aux_dropout: the same in the auxiliary heads (section 5).
      aux_weight: weight of each auxiliary head's loss in the loss of training (section 5); 0
        builds no heads.
    """

    STEM: ClassVar = "conv1/conv"
    HEADS: ClassVar = ("fc", "aux1/fc2", "aux2/fc2")

    dropout: float = 0.2
    aux_dropout: float = 0.7
    aux_weight: float = 0.3

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for images smaller than 15 x 15.
        """
        check_size(images.shape, minimum=15, name="googlenet")
        conv = self.conv_norm_layer(train, STD)
        module = nn.remat(Inception) if self.remat else Inception
        auxiliary = functools.partial(
            AuxiliaryHead, self.head_layer(), conv, self.aux_dropout, self.dtype
        )
        heads = {"4a": "aux1", "4d": "aux2"} if self.aux_weight else {}
        x = images.astype(self.dtype)
        x = conv(64, (7, 7), stride=2, padding=3, name="conv1")(x)
        x = max_pool(x, 3, 2, ceil=True)
        x = conv(64, (1, 1), name="conv2")(x)
        x = conv(192, (3, 3), padding=1, name="conv3")(x)
        x = max_pool(x, 3, 2, ceil=True)
        for name, channels in INCEPTIONS.items():
            x = module(channels, conv, name=f"inception{name}")(x)
            if name in heads and (train or self.is_initializing()):
                logits = auxiliary(train, name=heads[name])(x)
                if train:
                    self.sow("aux_logits", f"{heads[name]}_logits", logits)
            if name in POOLS:
                x = max_pool(x, POOLS[name], 2, ceil=True)
        x = x.mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, **normal_uniform(STD, x.shape[-1]))

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: each convolution before the modules is one, then each module."""
        modules = (f"inception{name}" for name in INCEPTIONS)
        return (*singly(("conv1", "conv2", "conv3", *modules)), self.heads())


VARIANTS = {"googlenet": GoogLeNet}
