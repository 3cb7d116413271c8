"""What follows from a dataset."""

import numpy as np
import pytest

from jaxcls import options
from jaxcls.augment import HorizontalFlip, Normalize, RandomCrop, Resize
from jaxcls.config.dataset_defaults import setting
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
def test_every_dataset_has_a_valid_setting(name: str) -> None:
    here = setting(name)
    data = here.data(64)
    assert type(data) is DATASETS[name]
    for transform in (*here.framing(), *here.enlarged(299), here.normalize):
        options.check(transform)
    # Of 8 pixels or more, so that an eighth of them is one at least.
    assert here.pixels is None or here.pixels >= 8
    assert len(here.mean) == len(here.std) in (1, 3)


def test_what_has_images_of_all_sizes_is_cropped_on_the_host() -> None:
    croppable = [name for name, kind in DATASETS.items() if issubclass(kind, Images)]
    assert sorted(croppable) == PHOTOGRAPHS
    for name in PHOTOGRAPHS:
        here = setting(name)
        assert here.photographs and here.stem == "imagenet" and here.in_colour
        assert (here.mean, here.std) == NORMALIZATIONS["imagenet"]
        data = here.data(300, crop=0.9, scale=(0.25, 1.0), interpolation="bicubic")
        assert isinstance(data, Images)
        assert data.canvas == HostRandomResizedCrop(
            size=300, scale=(0.25, 1.0), interpolation="bicubic", crop=0.9
        )
        assert data.canvas.evaluation() == CenterSquare(
            size=300, crop=0.9, interpolation="bicubic"
        )
        assert here.framing() == (HorizontalFlip(),)
        assert here.enlarged(75) == () and here.reduced(176) == (Resize(size=176),)


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
    here = setting(name)
    assert here.pixels == pixels and here.stem == "small"
    assert not here.photographs and here.in_colour == (channels == 3)
    mirrored = (HorizontalFlip(),) if mirrors else ()
    assert here.framing() == (RandomCrop(padding=padding), *mirrored)
    assert here.data(224) == DATASETS[name]()
    assert here.enlarged(pixels) == () and here.reduced(4) == ()
    assert here.enlarged(pixels + 1) == (Resize(size=pixels + 1),)
    assert here.is_digits == (name == "digits")
    assert here.choose("published", digits="short") == (
        "short" if name == "digits" else "published"
    )


def test_digits_are_centred_and_of_unit_size() -> None:
    """Their numbers are round ones: the grey levels come to lie within -1..1."""
    assert setting("digits").normalize == Normalize(mean=(0.5,), std=(0.5,))
    levels = Digits().source("train").images / 255
    assert np.abs((levels - 0.5) / 0.5).max() == 1


def test_cifar10s_numbers_are_the_published_ones() -> None:
    normalize = Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    assert setting("cifar10").normalize == normalize


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_can_be_taken_as_small_images(name: str) -> None:
    """CIFAR-10 in a folder is what it is from its archive."""
    here, archive = setting(name, small=32), setting("cifar10")
    data = here.data(32)
    assert isinstance(data, Images) and data.canvas == CenterSquare(size=32)
    assert here.framing() == archive.framing() and here.stem == "small"
    assert here.normalize == archive.normalize and here.reduced(16) == ()


def test_small_images_stay_what_they_are() -> None:
    assert setting("mnist", small=32) == setting("mnist")


@pytest.mark.parametrize(("small", "size"), [(None, 176), (32, 32)])
def test_random_pixels_stand_for_photographs(small: int | None, size: int) -> None:
    """They have the size that photographs would have on the devices."""
    data = setting("synthetic", small=small).data(176)
    assert data == Synthetic(size=size)


def test_an_unknown_dataset_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'cifar1'.*Did you mean 'cifar10'\?"):
        setting("cifar1")
