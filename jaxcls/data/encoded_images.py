"""Encoded images as a source of squares: decoded, when a batch asks for them.

`Images` is what the config nodes of such datasets have in common; `DecodedSource` does it.
"""

import abc
import dataclasses
import threading
from typing import Any, Literal

import numpy as np

from jaxcls.data.decode import BadImage
from jaxcls.data.encoded import Encoded
from jaxcls.data.host_crop import Canvas, CenterSquare
from jaxcls.data.sources import Dataset, Record, Source, Split
from jaxcls.errors import UserError

OnBadImage = Literal["raise", "skip"]


@dataclasses.dataclass(kw_only=True)
class Images(Dataset):
    """A dataset of encoded images (JPEG, PNG, ...) of any size.

    Attributes:
      canvas: how they become squares of one size: CenterSquare, HostRandomResizedCrop or
        Letterbox.
      channels: 3 for RGB, 1 for grey; images of the other kind are converted.
      on_bad_image: what to do about a file that is damaged or no image: "raise" ends the run
        with its name; "skip" goes on with that row left out, and says so.
      max_bad_share: with "skip", the share of bad images above which the run ends, 0..1.
      cache_mb: megabytes of encoded images that each process keeps in memory once they are
        read, 0 or more. For slow disks.
    """

    canvas: Canvas = dataclasses.field(default_factory=CenterSquare)
    channels: Literal[1, 3] = 3
    on_bad_image: OnBadImage = "raise"
    max_bad_share: float = 0.001
    cache_mb: int = 0

    @abc.abstractmethod
    def encoded(self, split: Split) -> Encoded:
        """Returns the images of one split as they lie in their files."""

    def source(self, split: Split) -> Source:
        return DecodedSource(
            self.encoded(split),
            self.canvas if split == "train" else self.canvas.evaluation(),
            self.channels,
            self.on_bad_image,
            self.cache_mb,
        )

    def validate(self) -> None:
        super().validate()
        self.canvas.validate()
        if self.channels not in (1, 3):
            raise UserError(f"data.channels must be 1 or 3, not {self.channels}.")
        if self.on_bad_image not in ("raise", "skip"):
            raise UserError(
                f"data.on_bad_image must be 'raise' or 'skip', not {self.on_bad_image!r}."
            )
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(
                f"data.max_bad_share must lie in 0..1, not {self.max_bad_share}."
            )
        if self.cache_mb < 0:
            raise UserError(f"data.cache_mb must be 0 or more, not {self.cache_mb}.")


class DecodedSource:
    """Encoded images, decoded onto a canvas whenever they are asked for (a Source)."""

    def __init__(
        self,
        encoded: Encoded,
        canvas: Canvas,
        channels: int,
        on_bad_image: OnBadImage = "raise",
        cache_mb: int = 0,
    ):
        """Wraps `encoded`; nothing is read yet. The other arguments are those of Images."""
        self.encoded = encoded
        self.canvas = canvas
        self.channels = channels
        self.on_bad_image = on_bad_image
        self.cache_mb = cache_mb
        self._cache = _Cache(cache_mb * 2**20)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.encoded.class_names

    @property
    def labels(self) -> np.ndarray:
        """The class of each record, int32 [n] (or one column a class, uint8 [n, classes])."""
        return self.encoded.labels

    def __len__(self) -> int:
        return len(self.encoded)

    def __repr__(self) -> str:
        return f"{self.encoded!r} on {self.canvas!r}"

    def __getitem__(self, index: int) -> Record:
        batch = self.gather(np.array([index]))
        label = batch["label"][0]
        return {
            "image": batch["image"][0],
            "label": label if label.ndim else int(label),
        }

    def gather(
        self, indices: np.ndarray, words: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the records `indices` (int [n]) as one batch.

        Args:
          indices: the records.
          words: uint64 [n], on which depends what is random in each row; None takes the
            record's index, so that a record always looks the same.

        Returns:
          "image" uint8 [n, size, size, channels], "label" as `labels` has it, and "mask"
          bool [n]: False where the image is bad and `on_bad_image` is "skip"; it is black then.

        Raises:
          RuntimeError: naming the file and what is wrong with it, if an image is bad and
            `on_bad_image` is "raise".
        """
        words = indices if words is None else words
        images = np.empty((len(indices), *self.canvas.shape(self.channels)), np.uint8)
        mask = np.ones(len(indices), bool)
        for row, (index, word) in enumerate(
            zip(indices.tolist(), words.tolist(), strict=True)
        ):
            try:
                images[row] = self._place(index, word)
            except (BadImage, OSError) as error:
                if self.on_bad_image == "raise":
                    raise RuntimeError(
                        f"{self._complaint(index, error)} Mend or remove it, or leave such "
                        "images out with --config.data.on_bad_image=skip."
                    ) from None
                images[row] = 0
                mask[row] = False
        return {"image": images, "label": self.labels[indices], "mask": mask}

    def explain(self, index: int) -> str | None:
        """Returns a sentence with the path of a bad record and why it is bad; None if it is
        good."""
        try:
            # All of the image: a random crop need not have met what is wrong with it.
            self.canvas.evaluation().place(self._read(index), self.channels, 0)
        except (BadImage, OSError) as error:
            return self._complaint(index, error)
        return None

    def _place(self, index: int, word: int) -> np.ndarray:
        return self.canvas.place(self._read(index), self.channels, word)

    def _read(self, index: int) -> bytes:
        """Returns the bytes of one image, from the cache if it has them."""
        data = self._cache.get(index)
        if data is None:
            data = self.encoded.read(index)
            self._cache.put(index, data)
        return data

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
    """Files in memory, up to a number of bytes: the first ones that come stay.

    Every record is read once an epoch, in another order each time, so which ones stay does not
    matter, and dropping one for another would only cost time. Several threads may use it. A
    worker process begins with an empty one.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._files: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def get(self, index: int) -> bytes | None:
        return self._files.get(index)

    def put(self, index: int, data: bytes) -> None:
        if self.num_bytes + len(data) > self.max_bytes:
            return
        with self._lock:
            if index in self._files or self.num_bytes + len(data) > self.max_bytes:
                return
            self._files[index] = data
            self.num_bytes += len(data)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cache, (self.max_bytes,)
