"""What of a recipe follows from its dataset: all of it stands here.

    here = setting("cifar10")
    Model(name="resnet50", stem=here.stem)                           # "small"
    data = here.data(224, crop=0.875)                                # Cifar10()
    augment = (*here.framing(), TrivialAugmentWide(), here.normalize)  # RandomCrop(padding=4) ...
    duration = here.choose(epochs(600), digits=epochs(10))

There are two kinds. Photographs have all sizes: the host crops them, and the recipe says to what
size. Small images all have one size, which they keep, or which is enlarged where a network takes
no smaller ones; networks see them through the stem "small".
"""

import dataclasses
from typing import Literal, TypeVar

from jaxcls.augment import HorizontalFlip, Normalize, RandomCrop, Resize, Transform
from jaxcls.data import (
    CenterSquare,
    Dataset,
    HostRandomResizedCrop,
    Synthetic,
    create_dataset,
)
from jaxcls.data.encoded_images import Images
from jaxcls.data.host_crop import Interpolation

Value = TypeVar("Value")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of red, green and blue in 0..1. Nearly all published networks take
photographs by ImageNet's; other photographs are close to them."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A dataset as a recipe sees it.

    Attributes:
      dataset: its name, a key of jaxcls.data.DATASETS.
      pixels: height and width of all its images; None for photographs, which have all sizes.
      mean: of the grey levels, in 0..1, a value for each channel.
      std: their standard deviation, likewise.
      mirrors: whether a mirrored image is one of the same class, which a digit is not.
    """

    dataset: str
    pixels: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrors: bool = True

    @property
    def is_digits(self) -> bool:
        """Whether it is the embedded 1,437 digits of 8 x 8 pixels, on which recipes run without
        any data: small, with a training of their own."""
        return self.dataset == "digits"

    @property
    def photographs(self) -> bool:
        """Whether the images have all sizes, so that the host crops them to one."""
        return self.pixels is None

    @property
    def in_colour(self) -> bool:
        """Whether the images have three channels."""
        return len(self.mean) == 3

    @property
    def stem(self) -> Literal["imagenet", "small"]:
        """The stem of a network: photographs bear large strides."""
        return "imagenet" if self.photographs else "small"

    @property
    def normalize(self) -> Normalize:
        """From grey levels to what networks take."""
        return Normalize(mean=self.mean, std=self.std)

    def choose(self, published: Value, *, digits: Value) -> Value:
        """Returns what the recipe has published, or what suits the embedded digits."""
        return digits if self.is_digits else published

    def data(
        self,
        size: int,
        *,
        crop: float = 0.875,
        scale: tuple[float, float] = (0.08, 1.0),
        interpolation: Interpolation = "bilinear",
    ) -> Dataset:
        """Returns the dataset's node; the arguments concern photographs alone.

        For training a random box is cut out of a photograph as it was taken, and then resized:
        a crop on the devices would come from a square that is small already. For evaluation the
        middle is cut out. The batches of both have `size`; a recipe that trains with smaller
        images resizes them on the devices (`reduced`).

        Args:
          size: pixels of a side of the images in evaluation, and of what the devices get.
          crop: of evaluation: `size` by the pixels that the short side is resized to. 0.875
            cuts 224 pixels out of 256.
          scale: of training: least and greatest part of the image's area that a box has.
          interpolation: of both.
        """
        data = create_dataset(self.dataset)
        if isinstance(data, Synthetic):
            data.size = self.pixels or size
        elif isinstance(data, Images):
            if self.pixels is not None:
                data.canvas = CenterSquare(size=self.pixels)
            else:
                data.canvas = HostRandomResizedCrop(
                    size=size, scale=scale, interpolation=interpolation, crop=crop
                )
        return data

    def framing(self) -> tuple[Transform, ...]:
        """Returns the transforms that choose what is seen of a scene, and from which side.

        Photographs are cropped by then. Small images are moved by up to an eighth of their
        size: CIFAR's 32 pixels by 4, as in He et al. 2015, section 4.2
        (https://arxiv.org/abs/1512.03385).
        """
        mirrored = (HorizontalFlip(),) if self.mirrors else ()
        if self.pixels is None:
            return mirrored
        return (RandomCrop(padding=self.pixels // 8), *mirrored)

    def enlarged(self, at_least: int) -> tuple[Transform, ...]:
        """Returns what enlarges small images to the least size that a network takes."""
        if self.pixels is None or self.pixels >= at_least:
            return ()
        return (Resize(size=at_least),)

    def reduced(self, size: int) -> tuple[Transform, ...]:
        """Returns what makes photographs as small as a recipe trains with, where it evaluates
        with larger ones; small images stay."""
        return (Resize(size=size),) if self.photographs else ()


# Mean and deviation over the training images.
_SMALL = (
    Setting("digits", 8, (0.5,), (0.5,), mirrors=False),
    Setting("mnist", 28, (0.1307,), (0.3081,), mirrors=False),
    Setting("fashion_mnist", 28, (0.2860,), (0.3530,)),
    Setting("cifar10", 32, *CIFAR10),
    Setting("cifar100", 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
)


def setting(dataset: str, *, small: int | None = None) -> Setting:
    """Returns what follows from a dataset.

    Args:
      dataset: the argument of a recipe, a key of jaxcls.data.DATASETS.
      small: for recipes of small images: photographs are taken as small images of so many
        pixels, like CIFAR-10's (which are files in a folder for some); None takes them as
        photographs.

    Raises:
      UserError: for a name that is not known.
    """
    create_dataset(dataset)
    for known in _SMALL:
        if known.dataset == dataset:
            return known
    if small is None:
        return Setting(dataset, None, *IMAGENET)
    return Setting(dataset, small, *CIFAR10)
