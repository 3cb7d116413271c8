"""Lists of encoded images: what the formats that have a name for each image make of them.

A list of a million names is one block of bytes here, not a million Python strings: it is sent to
every worker process.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcls.data.encoded_images import Encoded
from jaxcls.data.notes import enumerated
from jaxcls.errors import UserError, did_you_mean


class Labels(NamedTuple):
    """What is known of a list of images without the images.

    Attributes:
      name: of the data, for `repr()`; not a path of the machine.
      values: int [n], or uint8 [n, classes] with ones for several classes an image.
      class_names: the name of each class.
    """

    name: str
    values: np.ndarray
    class_names: Sequence[str]


class ImageList(Encoded):
    """Encoded images with labels, named by what they are; subclasses know where they lie."""

    def __init__(self, labels: Labels, identity: Iterable[bytes] = ()):
        """Keeps the labels.

        Args:
          labels: of the images.
          identity: what tells these images from others: their names, or the hashes of their
            files.
        """
        self._name, values, class_names = labels
        self.labels = values if values.ndim == 2 else values.astype(np.int32)
        self.class_names = tuple(class_names)
        names = (name.encode("utf-8", "surrogateescape") for name in self.class_names)
        pieces = itertools.chain(identity, [self.labels.tobytes()], names)
        self._digest = digest_of(pieces)

    def __repr__(self) -> str:
        return (
            f"{self._name}({len(self):,} images in {len(self.class_names):,} classes, "
            f"{self._digest})"
        )


class TableImages(ImageList):
    """Images in a table that a library reads."""

    def __init__(self, labels: Labels, rows: Any, key: str):
        """Wraps a table.

        Args:
          labels: of the images.
          rows: a random-access sequence of dicts.
          key: the element of these that is the image: its bytes, or a dict with "bytes" or,
            where these are None, with the "path" of its file.
        """
        super().__init__(labels)
        self._rows = rows
        self._key = key

    def read(self, index: int) -> bytes:
        try:
            image = self._rows[index][self._key]
        except OSError:
            raise
        except Exception as error:  # whatever the library raises for a damaged file
            raise OSError(f"{type(error).__name__}: {error}") from None
        if image is None:
            raise OSError("the table has no image in this row")
        content = image if isinstance(image, bytes) else image["bytes"]
        return Path(image["path"]).read_bytes() if content is None else content

    def where(self, index: int) -> str:
        return f"record {index} of {self._name}"


def feature_name(
    dataset: Any,
    option: str,
    features: Mapping[str, object],
    kind: type,
    *,
    any_kind: bool = False,
) -> str:
    """Returns the name of the feature that an option names, else of the only one of a kind.

    Args:
      dataset: the config; its `name` is for messages.
      option: its option, "label_column".
      features: what the data has, by name.
      kind: the class that the feature should have.
      any_kind: whether the option may name a feature of another kind.

    Raises:
      UserError: if there is none, or several and the option does not say which.
    """
    given = getattr(dataset, option)
    fitting = [name for name, value in features.items() if isinstance(value, kind)]
    possible = list(features) if given and any_kind else fitting
    if given in possible:
        return given
    if not given and len(fitting) == 1:
        return fitting[0]
    what = f"feature of type {kind.__name__}"
    fault = f"{dataset.name} must have a {what}, one alone if data.{option} does not say which."
    if given:
        fault = f"data.{option} is '{given}', but {dataset.name} has no such {what}."
        fault += did_you_mean(given, possible)
    raise UserError(
        f"{fault} It has {enumerated(possible) or 'none'}; all: {enumerated(list(features), 12)}."
    )


class Names:
    """Many short byte strings in one block, indexed 0..n-1."""

    def __init__(self, names: Iterable[bytes]):
        names = list(names)
        self._block = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)

    def __getitem__(self, index: int) -> bytes:
        return self._block[self._ends[index] : self._ends[index + 1]]

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self._ends) - 1))


def digest_of(pieces: Iterable[bytes]) -> str:
    """Returns 12 hexadecimal digits that depend on every byte of the pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:12]
