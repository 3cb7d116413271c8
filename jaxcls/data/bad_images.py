"""Watches for images that a run cannot read and leaves out.

The processes that load only mask the rows (jaxcls/data/loader.py). The trainer names each such
image once and counts them; too many end the run.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from jaxcls.data.sources import Batch, Source, Split
from jaxcls.errors import UserError

NAMED = 5
"""How many images the message names when there are too many."""


@dataclasses.dataclass(eq=False)
class BadImages:
    """The bad images of one split that this process has met.

    Attributes:
      source: the split.
      split: its name, for messages.
      say: takes a line for each image.
      reasons: of the images met so far: record -> a sentence.
    """

    source: Source
    split: Split
    _: dataclasses.KW_ONLY
    say: Callable[[str], None] = print
    reasons: dict[int, str] = dataclasses.field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.reasons)

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches of a Loader unchanged, looking at each.

        Raises:
          UserError: if there are too many bad images.
        """
        for batch in batches:
            self.look_at(batch)
            yield batch

    def look_at(self, batch: Batch) -> None:
        """Counts and names the bad images of a batch that are new.

        Args:
          batch: "id" and "mask", as a Loader gives them.

        Raises:
          UserError: if there are too many now.
        """
        bad = batch["id"][~batch["mask"] & (batch["id"] >= 0)]
        for index in map(int, np.unique(bad)):
            if index in self.reasons:
                continue
            # It may have become readable since; the row was left out all the same.
            reason = self.source.explain(index) or (
                f"record {index} of {self.source!r}: it could not be read at first."
            )
            self.reasons[index] = reason
            self.say(f"left out, a bad image of the {self.split} split: {reason}")
            self._check()

    def _check(self) -> None:
        count, size = len(self.reasons), len(self.source)
        if count <= self.source.max_bad_share * size:
            return
        lines = list(self.reasons.values())
        if count > NAMED:
            lines[NAMED:] = [f"and {count - NAMED} more"]
        raise UserError(
            f"{count} of the {size} images of the {self.split} split are bad so far "
            f"({count / size:.2%}), more than data.max_bad_share allows "
            f"({self.source.max_bad_share:.2%}):\n    "
            + "\n    ".join(lines)
            + "\n  Mend or remove them (python -m jaxcls.prepare check finds all), or raise "
            "data.max_bad_share."
        )
