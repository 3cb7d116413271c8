"""Images as they lie in files: bytes that are still to be decoded."""

from typing import Protocol

import numpy as np


class Encoded(Protocol):
    """A random-access sequence of encoded images (JPEG, PNG, ...) with their labels.

    `repr()` names the data and nothing else (no memory address, no path of the machine): it is
    stored with a run and compared when the run is continued. It is sent to worker processes by
    pickling: open files are opened again there, on first use.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; a label is an index into them."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """The class of each record, int32 [n], known without reading any image."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Returns the bytes of one image.

        Raises:
          OSError: if they cannot be read.
        """
        ...

    def where(self, index: int) -> str:
        """Returns where a record lies, for messages: the path of its file, or a name."""
        ...

    def __repr__(self) -> str: ...
