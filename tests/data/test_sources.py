"""What a source promises, one of a user's own and one in memory."""

import pickle

import numpy as np
import pytest

from jaxcls.data import (
    ArraySource,
    Record,
    Source,
)


def make_source(n: int = 12) -> ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 3, 2, 1), dtype=np.uint8)
    return ArraySource("toy", images, np.arange(n) % 3, ("a", "b", "c"))


def test_gather_is_the_records_one_by_one() -> None:
    source = make_source()
    ids = np.array([7, 0, 11, 7])
    batch = source.gather(ids)
    assert batch["label"].dtype == np.int32 and batch["image"].dtype == np.uint8
    for row, index in enumerate(ids):
        record = source[int(index)]
        np.testing.assert_array_equal(batch["image"][row], record["image"])
        assert batch["label"][row] == record["label"] == index % 3
        assert type(record["label"]) is int


class Squares(Source):
    """Five images of a grey level, the least that a source has to have."""

    class_names = ("even", "odd")

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Record:
        return {"image": np.full((2, 2, 1), index, np.uint8), "label": index % 2}

    def __repr__(self) -> str:
        return "squares(5)"


def test_a_source_of_a_users_own_has_all_that_a_source_has() -> None:
    source = Squares()
    batch = source.gather(np.array([3, 0]))
    assert batch["image"][:, 0, 0, 0].tolist() == [3, 0]
    assert batch["label"].tolist() == [1, 0]
    assert source.labels is None and source.strata is None
    assert source.max_bad_share == 0.001
    assert source.explain(3) == "record 3 of squares(5)"


def test_a_source_without_records_says_what_it_lacks() -> None:
    class Empty(Squares):
        __getitem__ = Source.__getitem__

    with pytest.raises(RuntimeError, match="must define __getitem__ or gather"):
        Empty().gather(np.array([3]))
    with pytest.raises(TypeError, match="abstract class"):
        Source()  # type: ignore[abstract]


def test_a_source_survives_the_way_to_a_worker() -> None:
    source = make_source()
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, Source)
    assert repr(again) == repr(source) == "toy(12 images 3x2x1)"
    assert again.class_names == source.class_names
    np.testing.assert_array_equal(again.images, source.images)
    np.testing.assert_array_equal(again.labels, source.labels)


IMAGES = np.zeros((4, 2, 2, 1), np.uint8)
LABELS = np.array([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), LABELS, r"toy: .*uint8.*float32 \(4, 2, 2, 1\)"),
        (IMAGES[..., 0], LABELS, r"toy: .*\(4, 2, 2\)"),
        (IMAGES, LABELS[:3], r"toy: 4 images and labels of shape \(3,\)"),
        (IMAGES[:0], LABELS[:0], r"toy: 0 images .* shape \(0,\).* at least one"),
        (IMAGES, LABELS / 2, "toy: labels must be integers, not float64"),
        (IMAGES, LABELS == 1, "toy: labels must be integers, not bool"),
        (IMAGES, LABELS[:, None], r"toy: .*\(4, 1\)"),
        (IMAGES, LABELS + 1, "toy: labels run from 1 to 2, but there are 2 class"),
        (IMAGES, LABELS - 1, "toy: labels run from -1 to 0"),
    ],
)
def test_arrays_that_do_not_fit_are_named(
    images: np.ndarray, labels: np.ndarray, message: str
) -> None:
    ArraySource("toy", IMAGES, LABELS, ("a", "b"))
    with pytest.raises(ValueError, match=message):
        ArraySource("toy", images, labels, ("a", "b"))
