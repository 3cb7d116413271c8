"""ImageNet-1k (ILSVRC 2012) as it is handed out: a folder, or the extracted CLS-LOC archive.

ImageNet(path="imagenet").encoded("train").class_names  # ("tench", "goldfish", ...)

imagenet/train/n01440764/n01440764_18.JPEG      a folder for each synset of WordNet
        /val/ILSVRC2012_val_00000293.JPEG       without folders, or likewise with them
        /LOC_val_solution.csv                   or another list of the validation classes
"""

import csv
import dataclasses
import importlib.util
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from jaxcls import options
from jaxcls.data.encoded_images import Images
from jaxcls.data.formats.folder import (
    FileImages,
    check_known,
    class_folders,
    folders_with_images,
    images_below,
    labelled,
    last_parts,
    open_folder,
    scan,
)
from jaxcls.data.formats.paths import expanded
from jaxcls.data.notes import enumerated, explaining, require
from jaxcls.data.sources import Split
from jaxcls.errors import UserError
from jaxcls.imagenet_classes import imagenet_classes

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
        require("path", self.path, "the folder with train and val")

    def encoded(self, split: Split) -> FileImages:
        """Lists the images of one split.

        Raises:
          UserError: if the folder is not laid out as it should be.
        """
        options.check(self, "data")
        root = open_folder(self.path)
        base = self._base(root)
        train, val = os.path.join(base, "train"), os.path.join(base, "val")
        folder, purpose = (train, "train on") if split == "train" else (val, "evaluate")
        if not os.path.isdir(folder):
            raise UserError(
                f"{base} has no folder {os.path.basename(folder)}: there is nothing to {purpose}."
            )
        if split == "train":
            found = scan(train, root)
            class_dirs = _in_order(found, train)
        else:
            found = self._validation(root, base, val)
            class_dirs = list(imagenet_classes())
            if os.path.isdir(train):
                class_dirs = _in_order(folders_with_images(train, root), train)
            check_known(found, class_dirs, val, train)
        names = [imagenet_classes()[name] for name in class_dirs]
        return labelled(last_parts(folder, 2), folder, found, class_dirs, names)

    def _base(self, root: str) -> str:
        """Returns the folder that has train or val."""
        for below, part in itertools.product(BASES, ("train", "val")):
            if os.path.isdir(os.path.join(root, below, part)):
                return os.path.join(root, below)
        raise UserError(
            f"{root} has neither train nor val, nor ILSVRC/Data/CLS-LOC with them: set "
            "data.path to the folder that has."
        )

    def _validation(self, root: str, base: str, val: str) -> dict[str, list[str]]:
        """Returns the validation images by synset, as paths relative to `val`."""
        if class_folders(val):
            by_synset = scan(val, root)
            _in_order(by_synset, val)
            return by_synset
        images = sorted(images_below(val, "", root), key=os.fsencode)
        if not images:
            raise UserError(f"{val} has no images.")
        source = self._list(root, base)
        by_number = read_validation_list(source)
        by_synset = {}
        for image in images:
            synset = by_number.get(image_number(image) or 0)
            if synset is None:
                raise UserError(
                    f"{source} does not say of what class {image} is, in {val}."
                )
            by_synset.setdefault(synset, []).append(image)
        return by_synset

    def _list(self, root: str, base: str) -> str:
        """Returns the path of the list of classes of the validation images."""
        if self.val_labels:
            return expanded(self.val_labels)
        val = os.path.join(base, "val")
        places = [*itertools.product((root, base, val), LABEL_FILES)]
        tfds = importlib.util.find_spec("tensorflow_datasets")
        for folder in (tfds and tfds.submodule_search_locations) or ():
            places.append((folder, "datasets/imagenet2012/validation_labels.txt"))
        for path in itertools.starmap(os.path.join, places):
            if os.path.isfile(path):
                return path
        raise UserError(
            f"the images of {val} lie in no folders, and there is no list of their "
            f"classes: set data.val_labels to one of {', '.join(LABEL_FILES[:4])}."
        )


def _in_order(names: Iterable[str], folder: str) -> list[str]:
    """Returns synsets in the order of the logits; raises UserError for other names."""
    present = set(names)
    synsets = list(imagenet_classes())
    unknown = sorted(present.difference(synsets))
    if unknown:
        raise UserError(
            f"{folder} has folders that are no synsets of ImageNet-1k: "
            f"{enumerated(unknown)}. Use ImageFolder for other classes."
        )
    return [name for name in synsets if name in present]


def image_number(name: str) -> int | None:
    """Returns 293 of "ILSVRC2012_val_00000293.JPEG"; None for another name."""
    match = re.fullmatch(r"ILSVRC2012_val_(\d{8})(?:\.\w+)?", os.path.basename(name))
    return int(match[1]) if match else None


def read_validation_list(path: str) -> dict[int, str]:
    """Reads the classes of the validation images from any of the lists in circulation.

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
    kinds = (OSError, UnicodeDecodeError)
    with explaining(f"cannot read the list of classes {path}", kinds):
        lines = Path(path).read_text("utf-8-sig").splitlines()
    if lines and lines[0].startswith("ImageId"):
        lines = [" ".join(row) for row in csv.reader(lines[1:])]
    by_logit = dict(enumerate(imagenet_classes()))
    by_kit: dict[int, str] = {}
    found = {}
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        *image, written = line.split()[:2]
        number = image_number(image[0]) if image else line_number
        synset: str | None = written
        if written.isdecimal():
            if not image and not by_kit:
                by_kit = read_kit(os.path.join(os.path.dirname(path), META))
            synset = (by_logit if image else by_kit).get(int(written))
        if number is None or synset not in imagenet_classes():
            raise UserError(
                f"line {line_number} of {path} is '{line[:60]}'; expected an image and "
                "its class, or a class."
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

    what = (
        f"the development kit's list of classes needs its table {META} beside it, but {path} "
        "cannot be read"
    )
    with explaining(what):  # scipy raises many kinds
        table = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
