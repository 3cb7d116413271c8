"""Encoded images as a source: batches, bad images, the cache."""

import dataclasses
import io
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcls.data.encoded_images import DecodedSource, Encoded, Images
from jaxcls.data.host_crop import CenterSquare, HostRandomResizedCrop
from jaxcls.data.loader import Loader, TrainBatches
from jaxcls.data.sources import Source, Split
from jaxcls.errors import UserError
from jaxcls.options import check


def png(level: int, side: int = 20) -> bytes:
    pixels = np.random.default_rng(level).integers(0, 256, (side, side + 9, 3))
    content = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


class InMemory(Encoded):
    """Files in memory, which count how often they are read."""

    class_names = ("even", "odd")

    def __init__(self, files: list[bytes | OSError]):
        self.files = files
        self.labels = (np.arange(len(files)) % 2).astype(np.int32)
        self.reads = 0

    def read(self, index: int) -> bytes:
        self.reads += 1
        found = self.files[index]
        if isinstance(found, OSError):
            raise found
        return found

    def where(self, index: int) -> str:
        return f"pets/image{index}.png"

    def __repr__(self) -> str:
        return f"pets({len(self)} images)"


@dataclasses.dataclass(kw_only=True)
class Pets(Images):
    """Eight images."""

    def encoded(self, split: Split) -> Encoded:
        return InMemory([png(level) for level in range(8 if split == "train" else 4)])


DENIED = PermissionError(13, "Permission denied", "/secret/pets/image2.png")


def with_bad_ones(**options: Any) -> DecodedSource:
    files: list[bytes | OSError] = [png(0), png(1)[:-50], DENIED, png(3)]
    return DecodedSource(InMemory(files), CenterSquare(size=8), 3, **options)


def test_a_batch_holds_what_was_asked_for() -> None:
    source = Pets(canvas=CenterSquare(size=8)).source("train")
    assert isinstance(source, Source) and isinstance(source, DecodedSource)
    batch = source.gather(np.array([5, 0, 5]))
    assert batch["image"].shape == (3, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].tolist() == [1, 0, 1] and batch["label"].dtype == np.int32
    assert batch["mask"].tolist() == [True] * 3
    for row, index in enumerate((5, 0, 5)):
        expected = CenterSquare(size=8).place(png(index), 3, 0)
        np.testing.assert_array_equal(batch["image"][row], expected)
        np.testing.assert_array_equal(source[index]["image"], expected)
    assert source[5]["label"] == 1
    assert len(source) == 8 and source.class_names == ("even", "odd")
    grey = Pets(canvas=CenterSquare(size=8), channels=1).source("train")
    assert grey.gather(np.array([1]))["image"].shape == (1, 8, 8, 1)  # type: ignore[attr-defined]


def test_row_seeds_decide_what_is_random_and_validation_has_nothing_random() -> None:
    pets = Pets(canvas=HostRandomResizedCrop(size=8))
    train, test = pets.source("train"), pets.source("test")
    assert isinstance(train, DecodedSource) and isinstance(test, DecodedSource)
    ids, seeds = np.array([3, 3, 3]), np.array([7, 8, 7], np.uint64)
    images = train.gather(ids, seeds)["image"]
    np.testing.assert_array_equal(images[0], images[2])
    assert (images[0] != images[1]).any()
    still = test.gather(ids, seeds)["image"]
    np.testing.assert_array_equal(still[0], still[1])
    alone = train.gather(np.array([3]))["image"][0]
    np.testing.assert_array_equal(alone, train[3]["image"])


def test_batches_of_a_step_do_not_depend_on_where_they_are_made() -> None:
    source = Pets(canvas=HostRandomResizedCrop(size=8)).source("train")
    batches = TrainBatches(source, seed=1, batch_size=4, num_steps=6)
    expected = [batches[step] for step in range(6)]
    assert (expected[0]["image"] != expected[2]["image"]).any()
    for options in ({"threads": 3}, {"workers": 2}):
        with Loader(batches, **options) as loader:
            for batch, same in zip(loader, expected, strict=True):
                np.testing.assert_array_equal(batch["image"], same["image"])


def test_a_bad_image_is_named() -> None:
    source = with_bad_ones()
    with pytest.raises(RuntimeError) as error:
        source.gather(np.array([0, 1, 3]))
    assert str(error.value).startswith("pets/image1.png: it is a damaged PNG file: ")
    assert "--config.data.on_bad_image=skip" in str(error.value)
    with pytest.raises(RuntimeError) as error:
        source.gather(np.array([2]))
    assert "pets/image2.png: it cannot be read: Permission denied. " in str(error.value)
    assert "secret" not in str(error.value)  # said once


def test_skipping_loses_only_the_bad_rows() -> None:
    source = with_bad_ones(on_bad_image="skip")
    batch = source.gather(np.array([3, 1, 0, 2]))
    assert batch["mask"].tolist() == [True, False, True, False]
    assert not batch["image"][[1, 3]].any()
    good = with_bad_ones().gather(np.array([3, 0]))
    np.testing.assert_array_equal(batch["image"][[0, 2]], good["image"])
    assert batch["label"].tolist() == [1, 1, 0, 0]


def test_what_is_wrong_with_a_record_can_be_asked() -> None:
    source = with_bad_ones(on_bad_image="skip")
    assert source.explain(0) is None
    reason = source.explain(1)
    assert reason is not None and reason.startswith("pets/image1.png: it is a damaged")
    assert source.explain(2) == "pets/image2.png: it cannot be read: Permission denied."


def test_names_that_cannot_be_printed_can_be_printed() -> None:
    source = with_bad_ones()
    source.encoded.where = lambda index: "pets/\udcff.png"  # type: ignore[method-assign]
    reason = source.explain(1)
    assert reason is not None and reason.encode().startswith(b"pets/\\udcff.png: ")


def test_the_cache_keeps_what_fits_and_no_more() -> None:
    files: list[bytes | OSError] = [png(level, 300) for level in range(6)]
    encoded = InMemory(files)
    source = DecodedSource(encoded, CenterSquare(size=8), 3, cache_mb=1)
    first = source.gather(np.arange(6))["image"]
    np.testing.assert_array_equal(source.gather(np.arange(6))["image"], first)
    fit = 2**20 // len(png(0, 300))
    assert 0 < fit < 6
    assert encoded.reads == 6 + (6 - fit)
    assert source._cache.num_bytes <= 2**20


def test_without_a_cache_nothing_is_kept_and_none_is_pickled() -> None:
    encoded = InMemory([png(0)])
    source = DecodedSource(encoded, CenterSquare(size=8), 3)
    source.gather(np.array([0, 0, 0]))
    assert encoded.reads == 3
    source = DecodedSource(encoded, CenterSquare(size=8), 3, cache_mb=9)
    before = len(pickle.dumps(source))
    source.gather(np.array([0]))
    assert abs(len(pickle.dumps(source)) - before) < 10
    assert pickle.loads(pickle.dumps(source))._cache.max_bytes == 9 * 2**20


def test_threads_share_a_cache() -> None:
    encoded = InMemory([png(level) for level in range(20)])
    source = DecodedSource(encoded, CenterSquare(size=8), 3, cache_mb=1)
    ids = np.arange(20)
    threads = [threading.Thread(target=source.gather, args=(ids,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = [file for file in encoded.files if isinstance(file, bytes)]
    assert source._cache.num_bytes == sum(map(len, files))


def test_it_is_named_by_its_data_and_canvas() -> None:
    source = Pets(canvas=CenterSquare(size=8)).source("train")
    assert repr(source) == (
        "pets(8 images) on CenterSquare(size=8, crop=1.0, interpolation='bilinear')"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, r"^data\.channels is 2, a int; expected 1 or 3\."),
        (
            {"on_bad_image": "drop"},
            "^data.on_bad_image is 'drop', .* 'raise' or 'skip'",
        ),
        ({"max_bad_share": 1.1}, r"data.max_bad_share must lie in 0\.\.1, not 1.1"),
        ({"cache_mb": -1}, "data.cache_mb must be 0 or more, not -1"),
        (
            {"canvas": CenterSquare(size=0)},
            r"data.canvas.size must lie in 1\.\.8192, not 0",
        ),
        ({"workers": -1}, r"data.workers must lie in 0\.\.256, not -1"),
    ],
)
def test_impossible_values_are_named(options: dict[str, Any], message: str) -> None:
    check(Pets(), "data")
    with pytest.raises(UserError, match=message):
        check(Pets(**options), "data")
