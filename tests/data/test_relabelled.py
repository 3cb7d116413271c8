"""Sources with the class names of others, against the records one by one."""

import numpy as np
import pytest

from jaxcls.data import ArraySource
from jaxcls.data.loader import load_rows
from jaxcls.data.relabelled import Relabelled, with_class_names
from jaxcls.errors import UserError
from tests.data.examples import OneByOne, Seeded, numbered


def test_labels_follow_their_names() -> None:
    test = ArraySource(
        "test",
        np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1),
        np.array([0, 1, 1, 0]),
        ("dog", "cat"),
    )
    for source in (test, OneByOne(test)):
        found = with_class_names(source, ("bird", "cat", "dog"))  # type: ignore[arg-type]
        assert found.class_names == ("bird", "cat", "dog")
        assert load_rows(found, np.arange(4))["label"].tolist() == [2, 1, 1, 2]
        assert [found[i]["label"] for i in range(4)] == [2, 1, 1, 2]
        assert repr(found) == repr(source)
    assert found is not test and with_class_names(test, ("dog", "cat")) is test


def test_a_class_that_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with_class_names(numbered(5, names="ab"), tuple("cba"))
    said = capsys.readouterr().err
    assert said == (
        "note: from-0(5 images 1x1x1) has no images of c; labels are those of "
        "training\n"
    )
    with_class_names(numbered(5, names="ab"), tuple("ba"))
    assert capsys.readouterr().err == ""


def test_a_class_that_training_does_not_know_is_an_error() -> None:
    with pytest.raises(UserError) as error:
        with_class_names(
            ArraySource(
                "t", np.zeros((2, 1, 1, 1), np.uint8), np.array([0, 1]), ("cat", "dogs")
            ),
            ("bird", "cat", "dog"),
        )
    assert str(error.value) == (
        "t(2 images 1x1x1) has classes unknown in training: dogs. Did you mean 'dog'? Training "
        "has 3 classes: bird, cat, dog."
    )


def test_a_wrong_label_stays_wrong() -> None:
    class Wrong(Seeded):
        def gather(
            self, indices: np.ndarray, row_seeds: np.ndarray | None = None
        ) -> dict[str, np.ndarray]:
            return {
                "image": np.zeros((len(indices), 1, 1, 1), np.uint8),
                "label": indices,
            }

    relabelled = Relabelled(Wrong(), tuple("cba"))  # type: ignore[arg-type]
    assert load_rows(relabelled, np.array([0, 2]))["label"].tolist() == [2, 0]
    with pytest.raises(RuntimeError, match=r"record 3 of seeded\(20\) has a label"):
        load_rows(relabelled, np.array([0, 3]))
