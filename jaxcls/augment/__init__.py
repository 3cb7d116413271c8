"""Device side: pure transforms of whole batches, applied inside the jitted step."""

from jaxcls.augment.color import Normalize
from jaxcls.augment.geometry import CenterCrop, HorizontalFlip, RandomCrop, Resize
from jaxcls.augment.pipeline import Transform, apply

__all__ = [
    "CenterCrop",
    "HorizontalFlip",
    "Normalize",
    "RandomCrop",
    "Resize",
    "Transform",
    "apply",
]
