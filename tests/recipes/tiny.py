"""A run that compiles in a second, for tests of what happens around a step: a single convolution
with batch norm. Without augmentation, EMA and clipping; one device."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls.augment import Normalize
from jaxcls.config import Checkpoint, Config, Evaluation, Log
from jaxcls.data import Digits
from jaxcls.duration import steps
from jaxcls.models import MODELS, Model
from jaxcls.models.layers import BatchNorm
from jaxcls.optim import SGD, WarmupCosine


class Tiny(nn.Module):
    """One 3x3 convolution with batch norm, and a linear layer.

    Attributes:
      num_classes: length of the logits.
      bn_group: images that share batch statistics in training; None for the whole batch.
      dtype: of the computation.
    """

    num_classes: int
    bn_group: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images [batch, h, w, channels] to logits [batch, num_classes]."""
        x = nn.Conv(8, (3, 3), strides=(2, 2), use_bias=False, dtype=self.dtype)(x)
        x = BatchNorm(train, self.bn_group, momentum=0.99, dtype=self.dtype)(x)
        x = nn.relu(x).reshape(len(x), -1)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x).astype(jnp.float32)


MODELS["tiny"] = Tiny


def get_config(dataset: str = "digits") -> Config:
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="tiny"),
        data=Digits(),
        augment=(normalize,),
        eval_transform=(normalize,),
        optimizer=SGD(learning_rate=0.05),
        schedule=WarmupCosine(warmup=steps(4)),
        batch_size=48,
        duration=steps(40),
        devices=1,
        evaluation=Evaluation(every=steps(10), batch_size=64),
        checkpoint=Checkpoint(every=steps(5)),
        log=Log(every=steps(10)),
    )
