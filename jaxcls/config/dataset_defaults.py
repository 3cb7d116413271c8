"""What a recipe takes from its dataset: the size of its images, their statistics, the stem.

    defaults = dataset_defaults("cifar10")
    Model(name="resnet50", stem=defaults.stem)                   # "small"
    data = defaults.data(224, crop=0.875)                        # Cifar10()
    augment = (*defaults.framing(), TrivialAugmentWide(), defaults.normalize)
    duration = defaults.choose(epochs(600), digits=epochs(10))

There are two kinds of images. Photographs have all sizes: the host crops them to the size that
the recipe asks for. Small images all have one size. They keep it, or are enlarged where a
network takes no smaller ones; networks see them through the stem "small".
"""

import dataclasses
from typing import Literal, TypeVar

from jaxcls.augment import HorizontalFlip, Normalize, RandomCrop, Resize, Transform
from jaxcls.data import Dataset, Synthetic, create_dataset
from jaxcls.data.encoded_images import Images
from jaxcls.data.host_crop import CenterSquare, HostRandomResizedCrop, Interpolation

Value = TypeVar("Value")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
"""Mean and standard deviation of red, green and blue, in 0..1. Nearly all published networks
normalise photographs by ImageNet's; other photographs are close to them."""


@dataclasses.dataclass(frozen=True)
class DatasetDefaults:
    """What follows from a dataset, whatever the recipe.

    Attributes:
      dataset: its name, a key of jaxcls.data.DATASETS.
      pixels: height and width of all its images; None for photographs, which have all sizes.
      mean: mean of the grey levels, in 0..1, a value for each channel.
      std: standard deviation of the grey levels, in 0..1, a value for each channel.
      mirrors: whether a mirrored image is still one of its class; a mirrored digit is not.
    """

    dataset: str
    pixels: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrors: bool = True

    @property
    def is_digits(self) -> bool:
        """Whether this is the embedded dataset of 1,437 digits, with which every recipe runs as
        typed. The digits are so few and small that recipes train on them in their own way."""
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
        """The stem that suits the images: only photographs bear large strides."""
        return "imagenet" if self.photographs else "small"

    @property
    def normalize(self) -> Normalize:
        """The transform from grey levels to what networks take."""
        return Normalize(mean=self.mean, std=self.std)

    def choose(self, published: Value, *, digits: Value) -> Value:
        """Returns the published value, or the one for the embedded digits."""
        return digits if self.is_digits else published

    def data(
        self,
        size: int,
        *,
        crop: float = 0.875,
        scale: tuple[float, float] = (0.08, 1.0),
        interpolation: Interpolation = "bilinear",
    ) -> Dataset:
        """Returns the dataset's node. All arguments concern photographs alone.

        Training cuts a random box out of the photograph as it was taken, and resizes it: a crop
        on the devices would come from a square that is small already. Evaluation cuts out the
        middle. The images of both reach the devices with `size` pixels a side; a recipe that
        trains with smaller ones resizes them there (`reduced`).

        Args:
          size: pixels of a side of the images in evaluation, and of what the devices get.
          crop: for evaluation, `size` by the pixels that the short side is resized to: 0.875
            cuts 224 pixels out of 256.
          scale: for training, least and greatest share of the image's area that a box has.
          interpolation: for both.
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
        """Returns the transforms that move and mirror an image.

        Small images move by up to an eighth of their size: CIFAR's 32 pixels by 4, as in He et
        al. 2015, section 4.2 (https://arxiv.org/abs/1512.03385). Photographs only mirror: the
        host has cropped them at random.
        """
        mirrored = (HorizontalFlip(),) if self.mirrors else ()
        if self.pixels is None:
            return mirrored
        return (RandomCrop(padding=self.pixels // 8), *mirrored)

    def enlarged(self, at_least: int) -> tuple[Transform, ...]:
        """Returns the transform that enlarges small images to the least size that a network
        takes, if they need it."""
        is_smaller = self.pixels is not None and self.pixels < at_least
        return (Resize(size=at_least),) if is_smaller else ()

    def reduced(self, size: int) -> tuple[Transform, ...]:
        """Returns the transform that reduces photographs, for a recipe that trains with smaller
        images than it evaluates with. Small images stay."""
        return (Resize(size=size),) if self.photographs else ()


# Mean and deviation over the training images.
_SMALL = {
    "digits": DatasetDefaults("digits", 8, (0.5,), (0.5,), mirrors=False),
    "mnist": DatasetDefaults("mnist", 28, (0.1307,), (0.3081,), mirrors=False),
    "fashion_mnist": DatasetDefaults("fashion_mnist", 28, (0.2860,), (0.3530,)),
    "cifar10": DatasetDefaults("cifar10", 32, *CIFAR10),
    "cifar100": DatasetDefaults("cifar100", 32, *CIFAR100),
}


def dataset_defaults(dataset: str, *, small: int | None = None) -> DatasetDefaults:
    """Returns what follows from a dataset.

    Args:
      dataset: the argument of a recipe, a key of jaxcls.data.DATASETS.
      small: for recipes of small images: reduces photographs to this many pixels a side and
        treats them like CIFAR-10's images, which some people keep in a folder. None takes
        them as photographs.

    Raises:
      UserError: for an unknown name.
    """
    create_dataset(dataset)
    if dataset in _SMALL:
        return _SMALL[dataset]
    return DatasetDefaults(dataset, small, *(CIFAR10 if small else IMAGENET))
