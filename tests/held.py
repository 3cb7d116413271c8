"""Digits that a test can hold back, so that it meets a run alive however fast the machine is.

Worker processes import this file: it needs no JAX.
"""

import os
import time
from pathlib import Path

import numpy as np

from jaxcls.data import ArraySource, Digits
from jaxcls.data.sources import Split

HOLD = "JAXCLS_TEST_HOLD"
"""The environment variable that names a file. While it exists, each process loads as many
training batches as it says, and then waits."""
LONGEST = 300
"""Seconds until a process that is held gives up: whoever held it back may be gone."""


class HeldSource(ArraySource):
    """An array whose batches may have to wait."""

    loaded = 0

    def gather(
        self, indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        give_up = time.monotonic() + LONGEST
        # A single record is what a run looks at before it begins.
        while len(indices) > 1 and self.loaded >= allowed():
            if time.monotonic() > give_up:
                raise RuntimeError(f"held back for more than {LONGEST} seconds")
            time.sleep(0.01)
        self.loaded += len(indices) > 1
        return super().gather(indices, row_seeds)


def allowed() -> float:
    """Returns how many batches may be loaded now."""
    try:
        return int(Path(os.environ[HOLD]).read_text())
    except (KeyError, FileNotFoundError):
        return float("inf")


class HeldDigits(Digits):
    """Digits whose training batches may have to wait."""

    def source(self, split: Split) -> ArraySource:
        whole = super().source(split)
        if split == "test":
            return whole
        return HeldSource("held", whole.images, whole.labels, whole.class_names)
