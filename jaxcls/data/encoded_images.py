"""Images as they lie in files (Encoded), and as a source of squares (DecodedSource).

`Images` is what the datasets of a config whose images lie in files have in common.
"""

import abc
import dataclasses
import threading
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from jaxcls.data.dataset import Dataset
from jaxcls.data.decode import BadImage
from jaxcls.data.host_crop import Canvas, CenterSquare
from jaxcls.data.sources import MAX_BAD_SHARE, Batch, Source, Split
from jaxcls.options import Share

OnBadImage = Literal["raise", "skip"]


class Encoded(abc.ABC):
    """A random-access sequence of encoded images (JPEG, PNG, ...) with their labels.

    `repr()` names the data and nothing else (no memory address, no path of the machine): a run
    stores it, and compares it when it continues. Worker processes get it by pickling; there it
    opens its files again, on first use.

    Attributes:
      class_names: the name of each class; a label is an index into them.
      labels: the label of each image, int32 [n], or uint8 [n, classes] of ones and zeros where
        an image may have any number of classes.
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
        """Returns where an image lies, for messages: the path of its file, or a name."""

    @abc.abstractmethod
    def __repr__(self) -> str: ...


@dataclasses.dataclass(kw_only=True)
class Images(Dataset):
    """A dataset of encoded images (JPEG, PNG, ...) of any size.

    Attributes:
      canvas: the host crop, which makes squares of one size: CenterSquare,
        HostRandomResizedCrop or Letterbox.
      channels: 3 for RGB, 1 for grey; images of the other kind are converted.
      on_bad_image: what to do about a file that is damaged or no image: "raise" ends the run
        with its name; "skip" goes on with that row left out, and says so.
      max_bad_share: with "skip", the share of bad images above which the run ends, 0..1.
      cache_mb: megabytes of encoded images that each process keeps in memory after reading
        them, 0 or more. For slow disks.
    """

    canvas: Canvas = dataclasses.field(default_factory=CenterSquare)
    channels: Literal[1, 3] = 3
    on_bad_image: OnBadImage = "raise"
    max_bad_share: Share = MAX_BAD_SHARE
    cache_mb: Annotated[int, Ge(0)] = 0

    @abc.abstractmethod
    def encoded(self, split: Split) -> Encoded:
        """Opens the images of one split as they lie in their files."""

    def source(self, split: Split) -> Source:
        """Opens one split, whose images are decoded when a batch asks for them."""
        return DecodedSource(
            self.encoded(split),
            self.canvas if split == "train" else self.canvas.evaluation(),
            self.channels,
            self.on_bad_image,
            self.cache_mb,
            self.max_bad_share,
        )


@dataclasses.dataclass(eq=False, repr=False)
class DecodedSource(Source):
    """Encoded images, decoded and cropped to squares when they are asked for.

    Attributes:
      encoded: the images as they lie in files; a batch reads its own.
      canvas, channels, on_bad_image, cache_mb, max_bad_share: as the options of Images.
    """

    encoded: Encoded
    canvas: Canvas
    channels: int
    on_bad_image: OnBadImage = "raise"
    cache_mb: int = 0
    max_bad_share: float = MAX_BAD_SHARE

    def __post_init__(self) -> None:
        self.class_names = self.encoded.class_names
        self._cache = _Cache(self.encoded, self.cache_mb * 2**20)

    @property  # a copy would be pickled once more where `encoded` is pickled as its path
    def labels(self) -> np.ndarray:  # type: ignore[override]
        return self.encoded.labels

    def __len__(self) -> int:
        return len(self.encoded)

    def __repr__(self) -> str:
        return f"{self.encoded!r} on {self.canvas!r}"

    def gather(self, indices: np.ndarray, row_seeds: np.ndarray | None = None) -> Batch:
        """Decodes the images of a batch.

        Args:
          indices: the records, int [n].
          row_seeds: uint64 [n], which decide what is random in each row; None takes the
            record's index, so that a record always looks the same.

        Returns:
          "image" uint8 [n, size, size, channels], "label" as `labels` has it, and "mask"
          bool [n]: False where the image is bad and `on_bad_image` is "skip"; it is black then.

        Raises:
          RuntimeError: naming the file and what is wrong with it, if an image is bad and
            `on_bad_image` is "raise".
        """
        row_seeds = indices if row_seeds is None else row_seeds
        images = np.zeros((len(indices), *self.canvas.shape(self.channels)), np.uint8)
        mask = np.ones(len(indices), bool)
        for row, (index, seed) in enumerate(
            zip(indices.tolist(), row_seeds.tolist(), strict=True)
        ):
            try:
                data = self._cache.read(index)
                images[row] = self.canvas.place(data, self.channels, seed)
            except (BadImage, OSError) as error:
                if self.on_bad_image == "raise":
                    raise RuntimeError(
                        f"{self._complaint(index, error)} Mend or remove it, or leave such "
                        "images out with --config.data.on_bad_image=skip."
                    ) from None
                mask[row] = False
        return {"image": images, "label": self.labels[indices], "mask": mask}

    def explain(self, index: int) -> str | None:
        """Returns a sentence with the path of a bad record and the reason; None if it is good."""
        try:
            # Decodes the whole image: a random crop may miss the damage.
            self.canvas.evaluation().place(self._cache.read(index), self.channels, 0)
        except (BadImage, OSError) as error:
            return self._complaint(index, error)
        return None

    def _complaint(self, index: int, error: BadImage | OSError) -> str:
        """Returns "<path>: <reason>." """
        reason = str(error)
        if isinstance(error, OSError):
            # Its own text would repeat the path.
            reason = f"it cannot be read: {error.strerror or error}."
        # Bytes of a name that are no UTF-8 could not be printed.
        where = self.encoded.where(index).encode(errors="backslashreplace").decode()
        return f"{where}: {reason}"


class _Cache:
    """Reads files, and keeps the first that come in memory, up to a number of bytes.

    An epoch reads every record once, in another order each time: which files stay does not
    matter, and replacing one would only cost time. Several threads may use the cache. A worker
    process begins with an empty one.
    """

    def __init__(self, encoded: Encoded, max_bytes: int):
        self.encoded, self.max_bytes = encoded, max_bytes
        self.num_bytes = 0
        self._files: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def read(self, index: int) -> bytes:
        """Returns the bytes of one file."""
        if index in self._files:
            return self._files[index]
        data = self.encoded.read(index)
        with self._lock:
            fits = self.num_bytes + len(data) <= self.max_bytes
            if fits and index not in self._files:
                self._files[index] = data
                self.num_bytes += len(data)
        return data

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self.encoded, self.max_bytes)
