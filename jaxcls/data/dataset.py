"""What all datasets of a config have in common."""

import abc
import dataclasses
from typing import Annotated, Literal

from annotated_types import Interval

from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import Source, Split


@dataclasses.dataclass(kw_only=True)
class Dataset(abc.ABC):
    """A dataset of a config, and how its batches are loaded.

    A dataset of your own is a dataclass(kw_only=True) that extends this one and whose `source`
    returns a Source; jaxcls/data/sources.py says what that needs.

    Attributes:
      workers: processes that load batches, 0..256; 0 loads them in threads of the trainer.
      threads: threads of each process, each loading one batch at a time, 1..256; None takes
        one a core, 16 at most.
      prefetch: batches kept ready in each process, and on the devices, 1..1024.
      placement: where the training images lie: "host" sends each batch to the devices;
        "device" keeps all images in the devices' memory, each device a part, and sends only
        the indices of a step. The images and their order are the same.
      sampling: how the training images are drawn.
    """

    workers: Annotated[int, Interval(ge=0, le=256)] = 0
    threads: Annotated[int, Interval(ge=1, le=256)] | None = None
    prefetch: Annotated[int, Interval(ge=1, le=1024)] = 2
    placement: Literal["host", "device"] = "host"
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    @abc.abstractmethod
    def source(self, split: Split) -> Source:
        """Opens the records of one split."""
