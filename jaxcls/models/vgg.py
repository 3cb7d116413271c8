"""VGG (Simonyan & Zisserman 2014, https://arxiv.org/abs/1409.1556), as torchvision builds it."""

import functools
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from jaxcls.errors import UserError
from jaxcls.models.cpu.pooling import adaptive_avg_pool, max_pool
from jaxcls.models.layers import KaimingConv, check_stem
from jaxcls.models.network import BatchNormNetwork, Layers, singly


class VGG(BatchNormNetwork):
    """Five stages of 3x3 convolutions, each ending in a max-pool of stride 2, then three dense
    layers. VGG-16 has 138,357,544 parameters for 1,000 classes.

    Convolutions start as kaiming_fan_out with bias 0, dense layers normal with standard
    deviation 0.01 and bias 0 (torchvision).

    Attributes, besides those of BatchNormNetwork (the blocks are the stages):
      stage_sizes: convolutions in each stage (table 1: A, B, D and E are 11, 13, 16 and 19).
      batch_norm: whether each convolution is followed by batch normalisation.
      stem: "imagenet": the last stage's maps are averaged to 7x7, the hidden dense layers have
        64 x width = 4096 values. "small", for 32-pixel images: averaged to one pixel, hidden
        layers of 8 x width = 512, so that the dense layers do not outweigh the rest
        (15 million parameters instead of 138). Either way the stages see 1, 1/2, 1/4, 1/8 and
        1/16 of the image: 32, 16, 8, 4, 2 pixels, then 1.
      width: channels of the first stage; the following have 2, 4, 8 and 8 times as many.
      dropout: probability of dropping an output of the hidden dense layers.
    """

    STEM: ClassVar = "stage1/conv1"
    HEADS: ClassVar = ("fc8",)

    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    batch_norm: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    width: int = 64
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [batch, height, width, channels] to logits float32 [batch, num_classes].

        Raises:
          UserError: for an unknown stem, images smaller than 32 x 32, or bn_group without batch
            norm.
        """
        check_stem(self.stem, image=images.shape, minimum=32, name="vgg")
        if self.bn_group is not None and not self.batch_norm:
            raise UserError(
                "this VGG has no batch norm, so no bn_group: use one whose name ends in _bn."
            )
        x = images.astype(self.dtype)
        stage = nn.remat(Stage) if self.remat else Stage
        conv = functools.partial(KaimingConv, dtype=self.dtype)
        norm = self.norm_layer(train) if self.batch_norm else None
        for index, size in enumerate(self.stage_sizes, start=1):
            features = self.width * min(2 ** (index - 1), 8)
            x = stage(features, size, conv, norm, name=f"stage{index}")(x)
        small = self.stem == "small"
        x = adaptive_avg_pool(x, 1 if small else 7).reshape(len(x), -1)
        normal = nn.initializers.normal(0.01)
        hidden = self.width * (8 if small else 64)
        for name in ("fc6", "fc7"):
            x = nn.Dense(hidden, kernel_init=normal, dtype=self.dtype, name=name)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return self.logits(x, kernel_init=normal)

    @nn.nowrap
    def layers(self) -> Layers:
        """See Network: a stage is one, as its convolutions are not on the top level."""
        stages = (f"stage{i + 1}" for i in range(len(self.stage_sizes)))
        return singly((*stages, "fc6", "fc7", *self.heads()))


class Stage(nn.Module):
    """Convolutions of one width, then a max-pool.

    Attributes:
      features: channels.
      size: number of convolutions.
      conv: a convolution of the network's dtype.
      norm: a batch norm of the network's groups and dtype, or None.
    """

    features: int
    size: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [batch, h, w, channels] to [batch, h // 2, w // 2, features]."""
        for index in range(1, self.size + 1):
            x = self.conv(self.features, (3, 3), padding=1, name=f"conv{index}")(x)
            if self.norm is not None:
                x = self.norm(name=f"bn{index}")(x)
            x = nn.relu(x)
        return max_pool(x, 2, 2)


STAGE_SIZES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

VARIANTS = {
    name + suffix: functools.partial(VGG, stage_sizes=sizes, batch_norm=bool(suffix))
    for name, sizes in STAGE_SIZES.items()
    for suffix in ("", "_bn")
}
