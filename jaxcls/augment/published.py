"""The preprocessing that a published set of weights was scored with.

Another kernel, size or crop is another test, with another accuracy. So there are two ways to
the same grey levels: transforms of batches on the device, for images that share one size, and
Pillow on the host, for photographs of every size.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxcls import options
from jaxcls.augment.color import Normalize
from jaxcls.augment.geometry import CenterCrop, Resize, center_start
from jaxcls.augment.kernels.resample import Interpolation, resized_shape
from jaxcls.augment.pipeline import Transform
from jaxcls.errors import UserError


def published_transform(
    *,
    resize: int,
    size: int,
    interpolation: Interpolation,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Transform, ...]:
    """Returns the eval transform of a published set of weights.

    The grey levels are those of published_preprocess, and so torchvision's on Pillow images,
    to the last bit with Pillow 13. Earlier versions resize images more than twice as high as
    wide in another order of passes, which moves a fifth of the values of photographs: by one
    level if bilinear, by a few at hard edges if bicubic.

    Args:
      resize: pixels of the shorter side after resizing, 1..16384.
      size: pixels of a side of the square cut from the middle, 1..16384.
      interpolation: the kernel of the resizing.
      mean: a value for each channel in 0..1, or one for all.
      std: a value for each channel in 1e-6..1, or one for all.

    Raises:
      UserError: for a value out of range.
    """
    transforms = (
        Resize(size=resize, interpolation=interpolation),
        CenterCrop(size=size),
        Normalize(mean=tuple(mean), std=tuple(std)),
    )
    for transform in transforms:
        options.check(transform)
    return transforms


def published_preprocess(
    image: Image.Image,
    *,
    resize: int,
    size: int,
    interpolation: Interpolation,
    mean: Sequence[float],
    std: Sequence[float],
) -> np.ndarray:
    """Prepares one image for a published set of weights.

    The steps, and the bits, of the `transforms()` of torchvision's weights on Pillow images:

        published_preprocess(
            Image.open("cat.jpg"), resize=232, size=224, interpolation="bilinear",
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        )

    Args:
      image: of any size and mode, made RGB by Pillow's rules: grey becomes three equal
        channels, a palette its colours, and alpha is dropped. A rotation that the file only
        notes (EXIF) is not applied.
      resize: as in published_transform.
      size: as in published_transform.
      interpolation: as in published_transform.
      mean: as in published_transform, a value for each of three channels or one for all.
      std: as mean.

    Returns:
      float32 [size, size, 3], normalised.

    Raises:
      UserError: for a value out of range, or something else than a Pillow image.
    """
    if not isinstance(image, Image.Image):
        raise UserError(
            f"published_preprocess takes a PIL.Image.Image, not {type(image).__name__}: "
            "open a file with PIL.Image.open, turn an array into an image with "
            "PIL.Image.fromarray."
        )
    *_, normalize = published_transform(
        resize=resize, size=size, interpolation=interpolation, mean=mean, std=std
    )
    assert isinstance(normalize, Normalize)
    normalize.check_channels(3)

    image = image.convert("RGB")
    height, width = resized_shape(image.height, image.width, resize)
    image = image.resize((width, height), Image.Resampling[interpolation.upper()])
    left, top = center_start(width, size), center_start(height, size)
    # Where the box reaches beyond the image, Pillow fills in black.
    image = image.crop((left, top, left + size, top + size))
    # In float32 and in this order, to the last bit.
    levels = np.asarray(image, np.float32) / np.float32(255)
    return (levels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
