"""ImageNet-1k (ILSVRC 2012) as it is handed out.

    ImageNet(path="imagenet")      a folder with train/ and val/, or the extracted CLS-LOC archive

imagenet_synsets.txt holds the 1,000 WordNet synsets in the order of the logits of all published
networks, which is alphabetical; jaxcls.models has their English names in the same order.
"""

import csv
import dataclasses
import functools
import importlib.resources
import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path

from jaxcls.data.encoded_images import Images
from jaxcls.data.file_lists import enumerated, expanded, require, shown
from jaxcls.data.formats.folder import (
    FileImages,
    class_folders,
    images_below,
    labelled,
    last_parts,
    open_folder,
    scan,
)
from jaxcls.data.sources import Split
from jaxcls.errors import UserError

BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
"""Where train and val lie below the folder that is given: the last are those of the archive."""
LABEL_FILES = (
    "LOC_val_solution.csv",
    "imagenet_2012_validation_synset_labels.txt",
    "val.txt",
    "ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
)
"""Lists of the classes of the validation images, as they are called where they are published."""
META = "meta.mat"
"""The development kit's table of classes, beside its list."""


@functools.cache
def synsets() -> tuple[str, ...]:
    """Returns the 1,000 synsets ("n01440764", ...) in the order of the logits."""
    text = (importlib.resources.files(__package__) / "imagenet_synsets.txt").read_text(
        "ascii"
    )
    return tuple(text.split())


@functools.cache
def names_of_synsets() -> dict[str, str]:
    """Returns the English name of each synset: "n01440764" -> "tench"."""
    # Only where a dataset is opened: the package imports jax.
    from jaxcls.models.weights.catalogue import imagenet_classes

    return dict(zip(synsets(), imagenet_classes(), strict=True))


@dataclasses.dataclass(kw_only=True)
class ImageNet(Images):
    """ImageNet-1k's training and validation images, or those of some of its classes.

    `path` has the folders train and val, or it is what the archive ILSVRC2012 CLS-LOC was
    extracted into (ILSVRC/Data/CLS-LOC/train, ...). The training images lie in folders named by
    synset; the validation images likewise or, as they are handed out, in one folder: then their
    classes are read from a list, and no file needs to be moved. Without a training folder there
    is only evaluation, on all 1,000 classes.

    Classes are in the order of the published networks' logits, and have English names.

    Attributes:
      path: the folder.
      val_labels: the list of the classes of validation images that lie in one folder: one of
        LOC_val_solution.csv, imagenet_2012_validation_synset_labels.txt, val.txt, or the
        development kit's ILSVRC2012_validation_ground_truth.txt; "" looks for them at `path`,
        and else takes the list that tensorflow_datasets carries.
    """

    path: str = ""
    val_labels: str = ""

    def validate(self) -> None:
        super().validate()
        require("path", self.path, "the folder with train and val")

    def encoded(self, split: Split) -> FileImages:
        """Lists the images of one split.

        Raises:
          UserError: if the folder is not laid out as it should be.
        """
        self.validate()
        root = open_folder(self.path)
        base = self._base(root)
        train, val = os.path.join(base, b"train"), os.path.join(base, b"val")
        if split == "train":
            folder = train
            if not os.path.isdir(train):
                raise UserError(
                    f"{shown(base)} has no folder train: there is nothing to train on."
                )
            found = scan(train, class_folders(train), root)
            classes = _known(found, train)
        else:
            folder = val
            if not os.path.isdir(val):
                raise UserError(
                    f"{shown(base)} has no folder val: there is nothing to evaluate."
                )
            classes = list(synsets())
            if os.path.isdir(train):
                in_training = (
                    name
                    for name in class_folders(train)
                    if next(images_below(train, name, root), None) is not None
                )
                classes = _known(in_training, train)
            found = self._validation(root, base, val)
            unknown = sorted({shown(name) for name in found} - set(classes))
            if unknown:
                raise UserError(
                    f"{shown(val)} has classes that {shown(train)} does not have: "
                    f"{enumerated(unknown)}."
                )
        names = [names_of_synsets()[name] for name in classes]
        class_dirs = [os.fsencode(name) for name in classes]
        return labelled(last_parts(folder, 2), folder, found, class_dirs, names)

    def _base(self, root: bytes) -> bytes:
        """Returns the folder that has train or val."""
        for below in BASES:
            base = os.path.join(root, below.encode()) if below else root
            if any(
                os.path.isdir(os.path.join(base, part)) for part in (b"train", b"val")
            ):
                return base
        raise UserError(
            f"{shown(root)} has neither train nor val, nor ILSVRC/Data/CLS-LOC with them: set "
            "data.path to the folder that has."
        )

    def _validation(
        self, root: bytes, base: bytes, val: bytes
    ) -> dict[bytes, list[bytes]]:
        """Returns the validation images by synset, as paths relative to `val`."""
        folders = class_folders(val)
        if folders:
            found = scan(val, folders, root)
            _known(found, val)
            return found
        images = sorted(images_below(val, b"", root))
        if not images:
            raise UserError(f"{shown(val)} has no images.")
        source = self._list(root, base)
        by_number = read_validation_list(source)
        by_synset: dict[bytes, list[bytes]] = {}
        for image in images:
            number = image_number(shown(image))
            if number not in by_number:
                raise UserError(
                    f"{shown(source)} does not say of what class {shown(image)} is, in "
                    f"{shown(val)}."
                )
            by_synset.setdefault(by_number[number].encode(), []).append(image)
        return by_synset

    def _list(self, root: bytes, base: bytes) -> str:
        """Returns the path of the list of classes of the validation images."""
        if self.val_labels:
            return expanded(self.val_labels)
        val = os.path.join(base, b"val")
        for folder in map(os.fsdecode, (root, base, val)):
            for name in LABEL_FILES:
                if os.path.isfile(os.path.join(folder, name)):
                    return os.path.join(folder, name)
        spec = importlib.util.find_spec("tensorflow_datasets")
        for folder in (spec and spec.submodule_search_locations) or ():
            carried = os.path.join(
                folder, "datasets/imagenet2012/validation_labels.txt"
            )
            if os.path.isfile(carried):
                return carried
        raise UserError(
            f"the images of {shown(val)} lie in no folders, and there is no list of their "
            f"classes: set data.val_labels to one of {', '.join(LABEL_FILES[:4])}."
        )


def _known(names: Iterable[bytes], folder: bytes) -> list[str]:
    """Returns synsets in the order of the logits, after checking that all are some."""
    present = {shown(name) for name in names}
    unknown = sorted(present - set(synsets()))
    if unknown:
        raise UserError(
            f"{shown(folder)} has folders that are no synsets of ImageNet-1k: "
            f"{enumerated(unknown)}. Use ImageFolder for other classes."
        )
    return [name for name in synsets() if name in present]


def image_number(name: str) -> int | None:
    """Returns 293 of "ILSVRC2012_val_00000293.JPEG"; None for another name."""
    match = re.fullmatch(r"ILSVRC2012_val_(\d{8})(?:\.\w+)?", os.path.basename(name))
    return int(match[1]) if match else None


def read_validation_list(path: str) -> dict[int, str]:
    """Reads the classes of the validation images from any of the lists that are about.

    A line is one of

        ILSVRC2012_val_00000293,n01751748 23 1 482 250    image, then synset (and boxes)
        ILSVRC2012_val_00000293.JPEG 65                   image, then index of the logit
        n01751748                                         synset of the image of the line's number
        490                                               the development kit's number of the class

    Args:
      path: of the list; for the last kind, meta.mat must lie beside it.

    Returns:
      The synset of each image by its number from 1.

    Raises:
      UserError: if it is something else.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the list of classes {shown(path)} ({error})."
        ) from error
    if lines and lines[0].startswith("ImageId"):
        lines = [" ".join(row) for row in csv.reader(lines[1:])]
    kit: dict[int, str] | None = None
    found = {}
    for line_number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        number = line_number if len(words) == 1 else image_number(words[0])
        word = words[0] if len(words) == 1 else words[1]
        synset: str | None = word
        if word.isdecimal() and len(words) == 1:
            kit = kit or read_kit(os.path.join(os.path.dirname(path), META))
            synset = kit.get(int(word))
        elif word.isdecimal():
            synset = synsets()[int(word)] if int(word) < len(synsets()) else None
        if number is None or synset not in names_of_synsets():
            raise UserError(
                f"line {line_number} of {shown(path)} is '{line[:60]}'; expected an image and its "
                "class, or a class."
            )
        found[number] = synset
    return found


def read_kit(path: str) -> dict[int, str]:
    """Reads the numbers that the development kit gives to the synsets: 1..1000, in another order
    than the logits', and above these to the groups that they are in.

    Raises:
      UserError: if the file is not there or not what it should be.
    """
    import scipy.io  # slow to import; comes with scikit-learn

    try:
        table = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    except Exception as error:  # scipy raises many kinds
        raise UserError(
            f"the development kit's list of classes needs its table {META} beside it, but "
            f"{shown(path)} cannot be read ({type(error).__name__}: {error})."
        ) from error
