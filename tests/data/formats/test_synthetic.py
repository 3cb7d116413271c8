"""Random pixels: the same each time, of the shape asked for."""

import numpy as np
import pytest

from jaxcls import options
from jaxcls.data.formats.synthetic import Synthetic
from jaxcls.errors import UserError


def test_random_pixels_are_the_same_each_time() -> None:
    dataset = Synthetic(images=40, size=16, channels=1, classes=5)
    train, again, test = (dataset.source(s) for s in ("train", "train", "test"))
    assert train.images.shape == (40, 16, 16, 1) and test.images.shape == (
        10,
        16,
        16,
        1,
    )
    np.testing.assert_array_equal(train.images, again.images)
    np.testing.assert_array_equal(train.labels, again.labels)
    assert (train.images[:10] != test.images).mean() > 0.9
    assert repr(train) == "synthetic-train(40 images 16x16x1)"


def test_pixels_and_classes_are_uniform() -> None:
    source = Synthetic(images=2000, size=16, classes=4).source("train")
    assert abs(source.images.mean() - 127.5) < 0.5
    assert abs(source.images.std() - np.sqrt((256**2 - 1) / 12)) < 0.5
    assert np.bincount(source.labels, minlength=4).min() > 400
    assert source.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    "given",
    [{"images": 0}, {"size": 0}, {"channels": 4}, {"classes": 0}, {"workers": -1}],
)
def test_options_out_of_range(given: dict[str, int]) -> None:
    (name,) = given
    with pytest.raises(UserError, match=rf"^data\.{name} must lie in "):
        options.check(Synthetic(**given), "data")  # type: ignore[arg-type]


def test_one_image_is_enough_for_both_splits() -> None:
    dataset = Synthetic(images=1, size=2)
    assert len(dataset.source("train")) == len(dataset.source("test")) == 1
