"""Size and cost of each network, as `python -m jaxcls.models` prints them.

facts.csv holds them because counting takes a quarter of a minute; a test counts them again.
"""

import csv
import dataclasses
import importlib.resources


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a network is built for and what it costs there.

    Attributes:
      parameters: with auxiliary heads, for `num_classes` classes.
      gmacs: multiply-adds of convolutions and dense layers for one image in evaluation, in
        billions (torchvision calls the number GFLOPS).
      size: height and width of the images.
      channels: of the images.
      num_classes: length of the logits.
    """

    parameters: int
    gmacs: float
    size: int
    channels: int
    num_classes: int

    @classmethod
    def of(cls, row: dict[str, str]) -> "Facts":
        """Returns the facts in a row of facts.csv."""
        names = ("size", "channels", "num_classes")
        sizes = [int(row[name]) for name in names]
        return cls(int(row["parameters"]), float(row["gmacs"]), *sizes)


_TEXT = (importlib.resources.files(__package__) / "facts.csv").read_text()
FACTS = {row["name"]: Facts.of(row) for row in csv.DictReader(_TEXT.splitlines())}
