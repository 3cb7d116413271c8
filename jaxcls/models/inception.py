"""Inception v3 (Szegedy et al. 2015, "Rethinking the Inception architecture",
https://arxiv.org/abs/1512.00567), as torchvision builds it."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.models.cpu.pooling import max_pool
from jaxcls.models.layers import check_size, normal_uniform
from jaxcls.models.network import BatchNormNetwork, Layers, singly

STD = 0.1
"""Standard deviation of every initial kernel but the auxiliary head's last."""

# A branch is a name and its convolutions, each (channels, kernel height, kernel width, stride);
# PAIR stands for a 1x3 and a 3x1 convolution side by side (figure 7).
PAIR = "pair"
Branch = tuple[str, tuple[Any, ...]]


def _block_a(pool: int) -> tuple[tuple[Branch, ...], int]:
    """Figure 5: 1x1, 5x5, 3x3 twice, average pool."""
    return (
        ("branch1x1", ((64, 1, 1, 1),)),
        ("branch5x5", ((48, 1, 1, 1), (64, 5, 5, 1))),
        ("branch3x3dbl", ((64, 1, 1, 1), (96, 3, 3, 1), (96, 3, 3, 1))),
    ), pool


def _block_c(inner: int) -> tuple[tuple[Branch, ...], int]:
    """Figure 6: 1x1, 7x7 as 1x7 and 7x1, that twice, average pool."""
    point, row, column = (inner, 1, 1, 1), (inner, 1, 7, 1), (inner, 7, 1, 1)
    return (
        ("branch1x1", ((192, 1, 1, 1),)),
        ("branch7x7", (point, row, (192, 7, 1, 1))),
        ("branch7x7dbl", (point, column, row, column, (192, 1, 7, 1))),
    ), 192


_BLOCK_B = (
    ("branch3x3", ((384, 3, 3, 2),)),
    ("branch3x3dbl", ((64, 1, 1, 1), (96, 3, 3, 1), (96, 3, 3, 2))),
)
_BLOCK_D = (
    ("branch3x3", ((192, 1, 1, 1), (320, 3, 3, 2))),
    ("branch7x7x3", ((192, 1, 1, 1), (192, 1, 7, 1), (192, 7, 1, 1), (192, 3, 3, 2))),
)
_BLOCK_E = (
    ("branch1x1", ((320, 1, 1, 1),)),
    ("branch3x3", ((384, 1, 1, 1), PAIR)),
    ("branch3x3dbl", ((448, 1, 1, 1), (384, 3, 3, 1), PAIR)),
)

# Blocks in order (table 1): branches, and the channels that a 1x1 convolution makes of the
# average pool; None for a max-pool of stride 2, as it is.
BLOCKS: dict[str, tuple[tuple[Branch, ...], int | None]] = {
    "mixed_5b": _block_a(32),
    "mixed_5c": _block_a(64),
    "mixed_5d": _block_a(64),
    "mixed_6a": (_BLOCK_B, None),
    "mixed_6b": _block_c(128),
    "mixed_6c": _block_c(160),
    "mixed_6d": _block_c(160),
    "mixed_6e": _block_c(192),
    "mixed_7a": (_BLOCK_D, None),
    "mixed_7b": (_BLOCK_E, 192),
    "mixed_7c": (_BLOCK_E, 192),
}


class Mixed(nn.Module):
    """Concatenates branches that lie side by side, the pool's last.

    Attributes:
      branches: see BLOCKS.
      pool: see BLOCKS.
      conv: a ConvNorm of the network's norm and dtype.
    """

    branches: tuple[Branch, ...]
    pool: int | None
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h', w', sum of the branches]."""
        results = [self._branch(name, rows, x) for name, rows in self.branches]
        if self.pool is None:
            results.append(max_pool(x, 3, 2))
        else:
            # The zeros of the padding count in the mean, as in torch's avg_pool2d.
            mean = nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))
            results.append(self.conv(self.pool, (1, 1), name="branch_pool")(mean))
        return jnp.concatenate(results, axis=-1)

    def _branch(self, name: str, rows: tuple[Any, ...], x: jax.Array) -> jax.Array:
        for index, row in enumerate(rows, start=1):
            label = name if len(rows) == 1 else f"{name}_{index}"
            if row == PAIR:
                wide = self.conv(384, (1, 3), padding=(0, 1), name=f"{label}a")(x)
                tall = self.conv(384, (3, 1), padding=(1, 0), name=f"{label}b")(x)
                x = jnp.concatenate([wide, tall], axis=-1)
            else:
                features, height, width, stride = row
                # Convolutions of stride 2 are not padded.
                padding = (height // 2, width // 2) if stride == 1 else 0
                x = self.conv(features, (height, width), stride, padding, name=label)(x)
        return x


class AuxiliaryHead(nn.Module):
    """A classifier on the last 17x17 maps (section 4).

    Maps of less than 17 pixels (images smaller than 299, which torchvision refuses to train
    on) leave its 5x5 convolution fewer than 5 pixels: zeros are added on the far sides.

    Attributes:
      head_layer: the layer that gives logits (see Network).
      conv: a ConvNorm of the network's norm and dtype.
    """

    head_layer: Any
    conv: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to logits float32 [batch, num_classes]."""
        if min(x.shape[1:3]) >= 5:
            x = nn.avg_pool(x, (5, 5), (3, 3))
        x = self.conv(128, (1, 1), name="conv0")(x)
        height, width = (max(5 - side, 0) for side in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), (0, height), (0, width), (0, 0)))
        x = self.conv(768, (5, 5), name="conv1")(x).mean((1, 2))
        layer = self.head_layer(name="fc", **normal_uniform(0.001, 768))
        return layer(x).astype(jnp.float32)


class InceptionV3(BatchNormNetwork):
    """A stem, eleven blocks and an auxiliary head. 27,161,264 parameters for 1,000 classes,
    23,834,568 of them without the auxiliary head.

    In training the logits of the head are sown into the collection "aux_logits"; in
    evaluation it is not computed.

    Kernels start normal with standard deviation 0.1 (the auxiliary head's dense layer 0.001),
    biases of the dense layers uniform within 1/sqrt(fan-in) (torchvision). Batch norm has
    epsilon 1e-3.

    Attributes, besides those of BatchNormNetwork:
      dropout: probability of dropping an input of the last layer.
      aux_weight: weight of the auxiliary head's loss in the loss of training (0.4 in the authors'
        and most implementations; the paper does not say); 0 builds no head.
    """

    STEM: ClassVar = "conv2d_1a_3x3/conv"
    HEADS: ClassVar = ("fc", "aux/fc")

    dropout: float = 0.5
    aux_weight: float = 0.4

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for images smaller than 75 x 75.
        """
        check_size(images.shape, minimum=75, name="inception_v3")
        conv = self.conv_norm_layer(train, STD)
        mixed = nn.remat(Mixed) if self.remat else Mixed
        x = images.astype(self.dtype)
        x = conv(32, (3, 3), stride=2, name="conv2d_1a_3x3")(x)
        x = conv(32, (3, 3), name="conv2d_2a_3x3")(x)
        x = conv(64, (3, 3), padding=1, name="conv2d_2b_3x3")(x)
        x = max_pool(x, 3, 2)
        x = conv(80, (1, 1), name="conv2d_3b_1x1")(x)
        x = conv(192, (3, 3), name="conv2d_4a_3x3")(x)
        x = max_pool(x, 3, 2)
        for name, (branches, pool) in BLOCKS.items():
            x = mixed(branches, pool, conv, name=name)(x)
            has_head = name == "mixed_6e" and self.aux_weight
            if has_head and (train or self.is_initializing()):
                logits = AuxiliaryHead(self.head_layer(), conv, name="aux")(x)
                if train:
                    self.sow("aux_logits", "aux_logits", logits)
        x = x.mean((1, 2))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return self.logits(x, **normal_uniform(STD, x.shape[-1]))

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: each convolution before the blocks is one, then each block."""
        convolutions = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
        stem = (f"conv2d_{name}" for name in convolutions)
        return (*singly((*stem, *BLOCKS)), self.heads())


VARIANTS = {"inception_v3": InceptionV3}
