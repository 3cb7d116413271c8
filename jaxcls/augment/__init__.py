"""Device side: pure transforms of whole batches, applied inside the jitted step."""

from jaxcls.augment.color import Normalize
from jaxcls.augment.geometry import HorizontalFlip, RandomCrop, Resize
from jaxcls.augment.pipeline import Transform, apply

__all__ = [
    "HorizontalFlip",
    "Normalize",
    "RandomCrop",
    "Resize",
    "Transform",
    "apply",
]
