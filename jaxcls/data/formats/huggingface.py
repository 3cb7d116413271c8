"""Datasets of the Hugging Face hub, or of its `datasets` library's own folders.

    HuggingFace(name="uoft-cs/cifar10", image_column="img").encoded("train").read(0)

The library is an extra: pip install -e ".[huggingface]". It keeps what it downloads in a cache of
its own, and maps tables into memory instead of loading them.
"""

import contextlib
import dataclasses
import os
from typing import Any

import numpy as np

from jaxcls.data.encoded_images import Encoded, Images
from jaxcls.data.file_lists import (
    ClassIndex,
    class_list,
    enumerated,
    fingerprint,
    say_missing_classes,
)
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, did_you_mean


class HuggingFaceImages(Encoded):
    """A split of a dataset, as an Encoded."""

    def __init__(
        self,
        name: str,
        rows: Any,
        image_column: str,
        labels: np.ndarray,
        class_names: tuple[str, ...],
    ):
        """Wraps a table.

        Args:
          name: of the data, for `repr()`.
          rows: a datasets.Dataset whose images are not decoded.
          image_column: the column of these.
          labels: int [n].
          class_names: the name of each class.
        """
        self._name = name
        self._rows = rows
        self._image_column = image_column
        self.labels = labels.astype(np.int32)
        self.class_names = class_names
        self._digest = fingerprint(self.labels, map(str.encode, class_names))

    def read(self, index: int) -> bytes:
        try:
            image = self._rows[index][self._image_column]
        except OSError:
            raise
        except Exception as error:  # whatever Arrow raises for a damaged file
            raise OSError(f"{type(error).__name__}: {error}") from None
        if image is None:
            raise OSError("the table has no image in this row")
        if image["bytes"] is not None:
            return image["bytes"]
        with open(image["path"], "rb") as file:
            return file.read()

    def where(self, index: int) -> str:
        return f"row {index} of {self._name}"

    def __repr__(self) -> str:
        return (
            f"{self._name}({len(self):,} images in {len(self.class_names):,} classes, "
            f"{self._digest})"
        )


@dataclasses.dataclass(kw_only=True)
class HuggingFace(Images):
    """A dataset through Hugging Face's `datasets` library: pip install -e ".[huggingface]".

    Classes are those that the dataset declares; else those of the training images, sorted: whole
    numbers by value, other names as text.

    Attributes:
      name: of the dataset on the hub, "uoft-cs/cifar10", or a folder: of images, or what the
        library's save_to_disk has written.
      subset: its configuration; "" for the only one.
      train: the training images, a split or a part of one: "train", "train[:80%]".
      test: the test images, likewise.
      image_column: the column with the images; "" for the only one.
      label_column: the column with their classes; "" for the only one that is declared so.
    """

    name: str = ""
    subset: str = ""
    train: str = "train"
    test: str = "test"
    image_column: str = ""
    label_column: str = ""

    def validate(self) -> None:
        super().validate()
        if not self.name:
            raise UserError(
                "data.name is not set: give the name of a dataset of the hub with "
                "--config.data.name=uoft-cs/cifar10 or another."
            )

    def encoded(self, split: Split) -> HuggingFaceImages:
        """Opens one split; what is not on this machine is downloaded.

        Raises:
          UserError: if the library is not installed, or the dataset cannot be had or has no
            such split or column.
        """
        self.validate()
        try:
            import datasets  # an extra
        except ImportError as error:
            raise UserError(
                'HuggingFace needs the library "datasets" ('
                + str(error)
                + "): run pip install -e "
                '".[huggingface]".'
            ) from error
        rows = self._rows(datasets, split)
        image_column = self._column(rows, datasets.Image, "image_column")
        label_column = self._column(rows, datasets.ClassLabel, "label_column")
        feature = rows.features[label_column]
        part = self.train if split == "train" else self.test
        name = f"{os.path.basename(self.name.rstrip('/'))}[{part}]"
        if isinstance(feature, datasets.ClassLabel):
            class_names = tuple(feature.names)
            labels = np.array(rows[label_column][:], dtype=object)
            if any(label is None or label < 0 for label in labels):
                raise UserError(
                    f"{name} has images without a class: choose another split."
                )
        else:
            of_training = rows if split == "train" else self._rows(datasets, "train")
            class_names = class_list(map(str, of_training[label_column][:]))
            index = ClassIndex(class_names, numbers=False)
            labels = np.array(
                [
                    index(str(value), f"row {i} of {name}")
                    for i, value in enumerate(rows[label_column][:])
                ],
                dtype=object,
            )
        if not len(labels):
            raise UserError(f"{name} has no images.")
        labels = labels.astype(np.int32)
        say_missing_classes(class_names, labels, name)
        rows = rows.select_columns([image_column])
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
        return HuggingFaceImages(name, rows, image_column, labels, class_names)

    def _rows(self, datasets: Any, split: Split) -> Any:
        """Returns a datasets.Dataset of one split."""
        part = self.train if split == "train" else self.test
        try:
            if _is_saved(self.name):
                return _part_of_saved(datasets, os.path.expanduser(self.name), part)
            return datasets.load_dataset(self.name, self.subset or None, split=part)
        except Exception as error:
            hint = ""
            with contextlib.suppress(Exception):
                known = _splits(datasets, self.name, self.subset)
                hint = f"{did_you_mean(part, known)} Its splits: {', '.join(known)}."
            reason = " ".join(str(error).split())
            raise UserError(
                f"the split '{part}' (data.{split}) of {self.name} cannot be had: "
                f"{type(error).__name__}: {reason}.{hint}"
            ) from error

    def _column(self, rows: Any, kind: type, option: str) -> str:
        """Returns the name of a column: what the option says, else the only one of its kind."""
        given = getattr(self, option)
        if given in rows.features:
            return given
        fitting = [
            key for key, value in rows.features.items() if isinstance(value, kind)
        ]
        if given or len(fitting) != 1:
            says = f"is '{given}'" if given else "is not set"
            why = (
                "no such column"
                if given
                else f"{len(fitting)} columns are of {kind.__name__}"
            )
            raise UserError(
                f"data.{option} {says}, but {self.name} has {why}."
                f"{did_you_mean(given, rows.features)} Its columns: "
                f"{enumerated(list(rows.features), 12)}."
            )
        return fitting[0]


def _is_saved(name: str) -> bool:
    """Whether a name is a folder that save_to_disk has written."""
    folder = os.path.expanduser(name)
    return any(
        os.path.isfile(os.path.join(folder, file))
        for file in ("dataset_dict.json", "state.json")
    )


def _splits(datasets: Any, name: str, subset: str) -> list[str]:
    """Returns the names of a dataset's splits."""
    if _is_saved(name):
        saved = datasets.load_from_disk(os.path.expanduser(name))
        return list(saved) if isinstance(saved, dict) else ["train"]
    return datasets.get_dataset_split_names(name, subset or None)


def _part_of_saved(datasets: Any, folder: str, part: str) -> Any:
    """Returns a split of a folder, which is a table for each split, or one, "train"."""
    saved = datasets.load_from_disk(folder)
    tables = saved if isinstance(saved, dict) else {"train": saved}
    lengths = {name: len(table) for name, table in tables.items()}
    # The library's own reading of "train[:80%]+test".
    parts = datasets.ReadInstruction.from_spec(part).to_absolute(lengths)
    return datasets.concatenate_datasets(
        [tables[p.splitname].select(range(p.from_, p.to)) for p in parts]
    )
