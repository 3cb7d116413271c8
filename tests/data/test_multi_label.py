"""Images of any number of classes, from the source to the batch."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.data import ArraySource, Manifest
from jaxcls.data.host_crop import CenterSquare
from jaxcls.data.loader import EvalBatches, Loader, load_rows
from jaxcls.data.mixture import MixedSource
from jaxcls.data.relabelled import with_class_names
from jaxcls.data.sampling import Sampling, class_counts, one_label_each
from jaxcls.data.sources import Source
from jaxcls.errors import UserError

LABELS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]], np.uint8)


class Several(ArraySource):
    """Five images, whose labels may be replaced."""

    def __init__(self, labels: np.ndarray = LABELS, names: str = "abc") -> None:
        images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
        super().__init__("several", images, np.zeros(5, int), tuple(names))
        self.labels = labels

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:  # type: ignore[override]
        return {"image": self.images[index], "label": self.labels[index]}


class OneByOne(Source):
    """The same, without a way to load many at once."""

    def __init__(self, source: Several) -> None:
        self._source, self.class_names = source, source.class_names

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[index]

    def __repr__(self) -> str:
        return "one-by-one"


def test_batches_have_a_column_for_each_class() -> None:
    ids = np.array([3, 0, 0, 2])
    for source in (Several(), OneByOne(Several())):
        labels = load_rows(source, ids)["label"]  # type: ignore[arg-type]
        np.testing.assert_array_equal(labels, LABELS[ids])
        assert labels.dtype == np.uint8


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_padded_and_pass_through_processes(workers: int) -> None:
    batches = EvalBatches(Several(), batch_size=3)
    with Loader(batches, workers=workers, threads=1) as loader:
        found = list(loader)
    assert [batch["label"].shape for batch in found] == [(3, 3), (3, 3)]
    labels = np.concatenate([batch["label"] for batch in found])
    np.testing.assert_array_equal(labels, [*LABELS, [0, 0, 0]])
    assert found[1]["mask"].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS.astype(np.float32), r"labels of float32 \(5, 3\).* or uint8 \(5, 3\)"),
        (LABELS[:, :2], r"gives labels of uint8 \(5, 2\).* uint8 \(5, 3\)"),
        (LABELS + np.uint8([0, 0, 1]), "record 0 of several.* other than ones and"),
    ],
)
def test_what_are_no_one_label_each_the_classes_is_named(
    labels: np.ndarray, said: str
) -> None:
    with pytest.raises(RuntimeError, match=said):
        load_rows(Several(labels), np.arange(5))


def test_labels_follow_their_names() -> None:
    source = Several()
    found = with_class_names(source, tuple("cxba"))
    # c, x, b and a in the place of a, b and c.
    expected = np.stack([LABELS[:, 2], 0 * LABELS[:, 0], LABELS[:, 1], LABELS[:, 0]], 1)
    labels = load_rows(found, np.arange(5))["label"]
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(found.labels, expected)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(found[2]["label"], expected[2])
    assert labels.dtype == np.uint8


def test_images_of_each_class_are_counted() -> None:
    assert class_counts(Several()).tolist() == [3, 2, 2]
    many = Several(np.ones((1000, 3), np.uint8))
    assert class_counts(many).tolist() == [1000] * 3  # beyond what uint8 can count
    single = ArraySource(
        "one", Several().images, np.array([0, 1, 1, 0, 0]), tuple("abcd")
    )
    assert class_counts(single).tolist() == [3, 2, 0, 0]
    mixed = MixedSource([Several(), Several()], (1.0, 2.0))
    assert class_counts(mixed).tolist() == [6, 4, 4]
    labels = load_rows(mixed, np.array([7, 0]))["label"]
    np.testing.assert_array_equal(labels, LABELS[[2, 0]])


def test_they_cannot_be_drawn_by_class() -> None:
    with pytest.raises(UserError, match=r"of several\(5 images .* cannot be drawn by"):
        one_label_each(Several())


def test_a_manifest_gives_all_classes_of_an_image(tmp_path: Path) -> None:
    for name in "xyz":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    table = tmp_path / "table.csv"
    table.write_text("path,label\nx.png,cat;dog\ny.png,\nz.png,dog\n")
    node = Manifest(
        path=str(table),
        multi_label=True,
        canvas=CenterSquare(size=4),
        sampling=Sampling(),
    )
    source = node.source("train")
    np.testing.assert_array_equal(source[0]["label"], [1, 1])
    labels = load_rows(source, np.arange(3))["label"]
    np.testing.assert_array_equal(labels, [[1, 1], [0, 0], [0, 1]])
