"""Images as they lie in files: bytes that are still to be decoded."""

import abc

import numpy as np


class Encoded(abc.ABC):
    """A random-access sequence of encoded images (JPEG, PNG, ...) with their labels.

    `repr()` names the data and nothing else (no memory address, no path of the machine): it is
    stored with a run and compared when the run is continued. It is sent to worker processes by
    pickling: open files are opened again there, on first use.

    Attributes:
      class_names: the name of each class; a label is an index into them.
      labels: the class of each record, int32 [n] (or one column a class, uint8 [n, classes]),
        known without reading any image.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def read(self, index: int) -> bytes:
        """Returns the bytes of one image.

        Raises:
          OSError: if they cannot be read.
        """

    @abc.abstractmethod
    def where(self, index: int) -> str:
        """Returns where a record lies, for messages: the path of its file, or a name."""
