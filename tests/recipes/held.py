"""The tiny recipe with all that a resume has to bring back, on digits that a test can hold
back."""

import dataclasses

from jaxcls.augment import HorizontalFlip, RandomCrop
from jaxcls.config import Config
from jaxcls.duration import steps
from jaxcls.optim import EMA, ClipNorm
from tests.held import HeldDigits
from tests.recipes import tiny


def get_config() -> Config:
    config = tiny.get_config()
    moves = (RandomCrop(padding=1, mode="edge"), HorizontalFlip())
    config = dataclasses.replace(
        config,
        data=HeldDigits(),
        augment=(*moves, *config.augment),
        duration=steps(32),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
    )
    config.log.every = steps(4)
    return config
