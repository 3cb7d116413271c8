"""Datasets of the Hugging Face hub, or of its `datasets` library's own folders.

    HuggingFace(name="uoft-cs/cifar10", image_column="img").encoded("train").read(0)

The library is an extra: pip install -e ".[huggingface]". It keeps what it downloads in a cache of
its own, and maps tables into memory instead of loading them.
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats.classes import class_indices, class_list, note_missing_classes
from jaxcls.data.formats.image_list import Labels, TableImages, feature_name
from jaxcls.data.notes import require
from jaxcls.data.sources import Split
from jaxcls.errors import UserError, did_you_mean


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
        require("name", self.name, "a dataset of the hub, such as uoft-cs/cifar10,")

    def encoded(self, split: Split) -> TableImages:
        """Opens one split; what is not on this machine is downloaded.

        Raises:
          UserError: if the library is not installed, or the dataset cannot be had or has no
            such split or column.
        """
        options.check(self, "data")
        try:
            import datasets  # an extra
        except ImportError as error:
            raise UserError(
                f'HuggingFace needs the library "datasets" ({error}): run pip install -e '
                '".[huggingface]".'
            ) from error
        rows = self._rows(datasets, split)
        features, kind = rows.features, datasets.Image
        image_column = feature_name(self, "image_column", features, kind, any_kind=True)
        kind = datasets.ClassLabel
        label_column = feature_name(self, "label_column", features, kind, any_kind=True)
        name = f"{os.path.basename(self.name.rstrip('/'))}[{getattr(self, split)}]"
        feature, written = features[label_column], rows[label_column][:]
        if not len(written):
            raise UserError(f"{name} has no images.")
        if isinstance(feature, datasets.ClassLabel):
            class_names = tuple(feature.names)
            if any(label is None or label < 0 for label in written):
                raise UserError(
                    f"{name} has images without a class: choose another split."
                )
            labels = np.array(written, np.int32)
            note_missing_classes(class_names, labels, name)
        else:
            training = rows if split == "train" else self._rows(datasets, "train")
            class_names = class_list(map(str, training[label_column][:]), name)
            labels = class_indices(
                map(str, written), class_names, name, lambda i: f"record {i} of {name}"
            )
        rows = rows.select_columns([image_column])
        rows = rows.cast_column(image_column, datasets.Image(decode=False))
        return TableImages(Labels(name, labels, class_names), rows, image_column)

    def _rows(self, datasets: Any, split: Split) -> Any:
        """Returns a datasets.Dataset of one split."""
        part, subset = getattr(self, split), self.subset or None
        tables = None
        try:
            tables = _saved_tables(datasets, os.path.expanduser(self.name))
            if tables is None:
                return datasets.load_dataset(self.name, subset, split=part)
            lengths = {name: len(table) for name, table in tables.items()}
            # The library's own reading of "train[:80%]+test".
            spans = datasets.ReadInstruction.from_spec(part).to_absolute(lengths)
            return datasets.concatenate_datasets(
                [tables[s.splitname].select(range(s.from_, s.to)) for s in spans]
            )
        except Exception as error:
            hint = ""
            with contextlib.suppress(Exception):
                known = tables or datasets.get_dataset_split_names(self.name, subset)
                hint = f"{did_you_mean(part, known)} Its splits: {', '.join(known)}."
            reason = " ".join(str(error).split())
            raise UserError(
                f"the split '{part}' (data.{split}) of {self.name} cannot be had: "
                f"{type(error).__name__}: {reason}.{hint}"
            ) from error


def _saved_tables(datasets: Any, folder: str) -> dict[str, Any] | None:
    """Returns a folder that save_to_disk has written: a table for each split, or one, "train".
    None for another folder or name."""
    marks = (Path(folder, file) for file in ("dataset_dict.json", "state.json"))
    if not any(map(Path.is_file, marks)):
        return None
    saved = datasets.load_from_disk(folder)
    return saved if isinstance(saved, dict) else {"train": saved}
