"""What follows from a dataset."""

import numpy as np
import pytest

from jaxcls import options
from jaxcls.augment import HorizontalFlip, Normalize, RandomCrop, Resize
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.data import (
    DATASETS,
    CenterSquare,
    Digits,
    HostRandomResizedCrop,
    Synthetic,
)
from jaxcls.data.encoded_images import Images
from jaxcls.errors import UserError
from jaxcls.models.weights.catalogue import NORMALIZATIONS

PHOTOGRAPHS = [
    "folder",
    "huggingface",
    "imagenet",
    "manifest",
    "records",
    "tfds",
    "webtar",
]


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_has_valid_defaults(name: str) -> None:
    defaults = dataset_defaults(name)
    data = defaults.data(64)
    assert type(data) is DATASETS[name]
    for transform in (*defaults.framing(), *defaults.enlarged(299), defaults.normalize):
        options.check(transform)
    # Of 8 pixels or more, so that an eighth of them is one at least.
    assert defaults.pixels is None or defaults.pixels >= 8
    assert len(defaults.mean) == len(defaults.std) in (1, 3)


def test_what_has_images_of_all_sizes_is_cropped_on_the_host() -> None:
    croppable = [name for name, kind in DATASETS.items() if issubclass(kind, Images)]
    assert sorted(croppable) == PHOTOGRAPHS
    for name in PHOTOGRAPHS:
        defaults = dataset_defaults(name)
        assert (
            defaults.photographs and defaults.stem == "imagenet" and defaults.in_colour
        )
        assert (defaults.mean, defaults.std) == NORMALIZATIONS["imagenet"]
        data = defaults.data(300, crop=0.9, scale=(0.25, 1.0), interpolation="bicubic")
        assert isinstance(data, Images)
        assert data.canvas == HostRandomResizedCrop(
            size=300, scale=(0.25, 1.0), interpolation="bicubic", crop=0.9
        )
        assert data.canvas.evaluation() == CenterSquare(
            size=300, crop=0.9, interpolation="bicubic"
        )
        assert defaults.framing() == (HorizontalFlip(),)
        assert defaults.enlarged(75) == () and defaults.reduced(176) == (
            Resize(size=176),
        )


@pytest.mark.parametrize(
    ("name", "pixels", "padding", "mirrors", "channels"),
    [
        ("digits", 8, 1, False, 1),
        ("mnist", 28, 3, False, 1),
        ("fashion_mnist", 28, 3, True, 1),
        ("cifar10", 32, 4, True, 3),
        ("cifar100", 32, 4, True, 3),
    ],
)
def test_small_images_keep_their_size_and_are_moved(
    name: str, pixels: int, padding: int, mirrors: bool, channels: int
) -> None:
    defaults = dataset_defaults(name)
    assert defaults.pixels == pixels and defaults.stem == "small"
    assert not defaults.photographs and defaults.in_colour == (channels == 3)
    mirrored = (HorizontalFlip(),) if mirrors else ()
    assert defaults.framing() == (RandomCrop(padding=padding), *mirrored)
    assert defaults.data(224) == DATASETS[name]()
    assert defaults.enlarged(pixels) == () and defaults.reduced(4) == ()
    assert defaults.enlarged(pixels + 1) == (Resize(size=pixels + 1),)
    assert defaults.is_digits == (name == "digits")
    assert defaults.choose("published", digits="short") == (
        "short" if name == "digits" else "published"
    )


def test_digits_are_centred_and_of_unit_size() -> None:
    """Their numbers are round ones: the grey levels come to lie within -1..1."""
    assert dataset_defaults("digits").normalize == Normalize(mean=(0.5,), std=(0.5,))
    levels = Digits().source("train").images / 255
    assert np.abs((levels - 0.5) / 0.5).max() == 1


def test_cifar10s_numbers_are_the_published_ones() -> None:
    normalize = Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    assert dataset_defaults("cifar10").normalize == normalize


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_can_be_taken_as_small_images(name: str) -> None:
    """CIFAR-10 in a folder is what it is from its archive."""
    defaults = dataset_defaults(name, small=32)
    archive = dataset_defaults("cifar10")
    data = defaults.data(32)
    assert isinstance(data, Images) and data.canvas == CenterSquare(size=32)
    assert defaults.framing() == archive.framing() and defaults.stem == "small"
    assert defaults.normalize == archive.normalize and defaults.reduced(16) == ()


def test_small_images_stay_what_they_are() -> None:
    assert dataset_defaults("mnist", small=32) == dataset_defaults("mnist")


@pytest.mark.parametrize(("small", "size"), [(None, 176), (32, 32)])
def test_random_pixels_stand_for_photographs(small: int | None, size: int) -> None:
    """They have the size that photographs would have on the devices."""
    data = dataset_defaults("synthetic", small=small).data(176)
    assert data == Synthetic(size=size)


def test_an_unknown_dataset_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'cifar1'.*Did you mean 'cifar10'\?"):
        dataset_defaults("cifar1")
