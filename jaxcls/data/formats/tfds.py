"""Datasets that TensorFlow Datasets has prepared, read without TensorFlow.

    Tfds(name="cifar10", train="train[:90%]", test="train[90%:]").encoded("train").read(0)

TFDS writes array_record files, which can be read without TensorFlow. Images come as they were
stored, and are decoded like all others. Its builders download and encode the data first, for
which most need TensorFlow: run them once, wherever TensorFlow is installed.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats.image_list import Labels, TableImages, digest_of, feature_name
from jaxcls.data.formats.paths import expanded
from jaxcls.data.formats.shards import replacing
from jaxcls.data.notes import explaining, note, require
from jaxcls.data.sources import Split
from jaxcls.download import cache_folder
from jaxcls.errors import UserError, did_you_mean

NO_TENSORFLOW = "No module named 'tensorflow'"
LABELS_AT_ONCE = 256
"""Records that are read together for their labels."""


@dataclasses.dataclass(kw_only=True)
class Tfds(Images):
    """A dataset of TensorFlow Datasets, prepared in its array_record format.

    A builder of your own, which a recipe imports, is prepared at the first use if it needs no
    TensorFlow (its images are then paths or bytes, not arrays). For TFDS' own datasets, the
    error gives the command that prepares them where TensorFlow is. The labels are read once, with
    all records, and kept in the cache.

    Attributes:
      name: of the dataset, perhaps with a config and a version: "cifar10", "cifar10:3.0.2".
      data_dir: where TFDS keeps its data; "" for its own default, ~/tensorflow_datasets.
      train: the training images, a split or a part of one: "train", "train[:80%]",
        "train[:1000]", "train+validation".
      test: the test images, likewise.
      image_key: the feature that is the image; "" for the only one that is.
      label_key: the feature that is the class; "" for the only one that is.
    """

    name: str = ""
    data_dir: str = ""
    train: str = "train"
    test: str = "test"
    image_key: str = ""
    label_key: str = ""

    def validate(self) -> None:
        require("name", self.name, "a dataset of TFDS, such as cifar10,")

    def encoded(self, split: Split) -> TableImages:
        """Opens one split.

        Raises:
          UserError: if the dataset is unknown or not prepared, or has no such split or feature.
        """
        options.check(self, "data")
        with _without_tensorflow():
            import tensorflow_datasets as tfds  # slow to import, so only where used

            builder = self._prepared(tfds)
            features = builder.info.features
            kinds = tfds.features
            image_key = feature_name(self, "image_key", features, kinds.Image)
            label_key = feature_name(self, "label_key", features, kinds.ClassLabel)
            as_stored = {image_key: tfds.decode.SkipDecoding()}
            records = self._records(builder, split, as_stored)
            name = f"{builder.info.full_name}[{getattr(self, split)}]"
            labels = _labels(records, label_key, f"{builder.data_dir}", name)
            labelled = Labels(name, labels, features[label_key].names)
            return TableImages(labelled, records, image_key)

    def _records(self, builder: Any, split: Split, decoders: dict[str, Any]) -> Any:
        """Returns the records of a split."""
        part = getattr(self, split)
        try:
            return builder.as_data_source(split=part, decoders=decoders)
        except (ValueError, KeyError, AssertionError) as error:
            known = list(builder.info.splits)
            base = part.partition("[")[0]
            raise UserError(
                f"data.{split} is '{part}', which gives no records of {self.name}."
                f"{'' if base in known else did_you_mean(base, known)} It has "
                f"{', '.join(known)}; a part of one is like train[:80%]."
            ) from error

    def _prepared(self, tfds: Any) -> Any:
        """Returns the builder of the dataset, which is prepared as array_record.

        Raises:
          UserError: if there is none, or it cannot be prepared here.
        """
        data_dir = expanded(self.data_dir) if self.data_dir else None
        with explaining(f"TFDS cannot open '{self.name}'"):
            try:
                builder = tfds.builder(self.name, data_dir=data_dir)
            except tfds.core.DatasetNotFoundError:
                known = tfds.list_builders(with_community_datasets=False)
                raise UserError(
                    f"TFDS has no dataset '{self.name}'.{did_you_mean(self.name, known)} One of "
                    "your own is found if the recipe imports its module, or where it has been "
                    "prepared."
                ) from None
        if builder.is_prepared():
            if builder.info.file_format.value == "array_record":
                return builder
            other = f"{str(builder.data_dir_root).rstrip('/')}-array_record"
            raise UserError(
                f"{self.name} in {builder.data_dir} is prepared as "
                f"{builder.info.file_format.value}, which cannot be read at random. Prepare it "
                f"once more where TensorFlow is installed:\n  {self._command(builder, other)}\n"
                f"and set data.data_dir to {other}."
            )
        if _is_standard(builder):
            raise self._not_prepared(builder)
        note(f"preparing {self.name} in {builder.data_dir}, once.")
        with explaining(f"{self.name} cannot be prepared"):
            try:
                builder.download_and_prepare(file_format="array_record")
            except Exception as error:
                if NO_TENSORFLOW in f"{error} {error.__cause__}":
                    raise self._not_prepared(builder) from error
                raise
        return tfds.builder(self.name, data_dir=data_dir)

    def _not_prepared(self, builder: Any) -> UserError:
        root = str(builder.data_dir_root)
        return UserError(
            f"{self.name} is not prepared in {root}, and preparing it needs TensorFlow. Run this "
            "once where TensorFlow is installed (pip install tensorflow-cpu "
            f"tensorflow-datasets), here or elsewhere, and copy the folder:\n  "
            f"{self._command(builder, root)}"
        )

    def _command(self, builder: Any, data_dir: str) -> str:
        """Returns the command that prepares the dataset."""
        module = "" if _is_standard(builder) else f"import {type(builder).__module__}; "
        return (
            f'python -c "{module}import tensorflow_datasets as tfds; '
            f"tfds.builder({self.name!r}, data_dir={data_dir!r}, "
            "file_format='array_record').download_and_prepare()\""
        )


def _is_standard(builder: Any) -> bool:
    """Whether a builder comes with TFDS itself. These need TensorFlow: most at once, some after a
    long download."""
    return type(builder).__module__.startswith("tensorflow_datasets.")


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Makes `import tensorflow` fail within the block, unless it has been imported before: TFDS
    imports it where it can, which takes seconds and, on a GPU, its memory."""
    if "tensorflow" in sys.modules:
        yield
        return
    sys.meta_path[:] = [_Hiding(finder) for finder in sys.meta_path]
    try:
        yield
    finally:
        finders = (f.finder if isinstance(f, _Hiding) else f for f in sys.meta_path)
        sys.meta_path[:] = finders


class _Hiding:
    """A finder of modules that finds what another finds, but not TensorFlow."""

    def __init__(self, finder: Any):
        self.finder = finder

    def find_spec(self, name: str, *arguments: Any) -> Any:
        hidden = name == "tensorflow"
        return None if hidden else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def _labels(records: Any, label_key: str, data_dir: str, name: str) -> np.ndarray:
    """Returns the class of each record, int32 [n], from the cache or from the records.

    Args:
      records: a data source of TFDS.
      label_key: the feature that is the class.
      data_dir: the folder of the prepared dataset.
      name: of the dataset and the split.
    """
    files = (Path(data_dir) / f"{part}.json" for part in ("dataset_info", "features"))
    description = [file.read_bytes() for file in files if file.exists()]
    description += [name.encode(), label_key.encode(), os.fsencode(data_dir)]
    key = digest_of(description)
    kept = cache_folder() / "tfds" / f"{key}.labels.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):
        labels = np.load(kept, allow_pickle=False)
        if labels.shape == (len(records),) and labels.dtype == np.int32:
            return labels
    labels = np.empty(len(records), np.int32)
    starts = range(0, len(records), LABELS_AT_ONCE)
    title = "reading the classes, once"
    for first in tqdm(starts, title, disable=None, dynamic_ncols=True):
        rows = range(len(records))[first : first + LABELS_AT_ONCE]
        some = records.__getitems__(rows)
        labels[rows.start : rows.stop] = [record[label_key] for record in some]
    if labels.min() < 0:
        raise UserError(
            f"record {labels.argmin()} of {name} has no class: choose a split with classes."
        )
    with contextlib.suppress(OSError, UserError):  # else they are read again
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary, open(temporary, "wb") as file:
            np.save(file, labels)
    return labels
