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


_TEXT = (importlib.resources.files(__package__) / "facts.csv").read_text()
FACTS = {
    row.pop("name"): Facts(
        gmacs=float(row.pop("gmacs")), **{name: int(row[name]) for name in row}
    )
    for row in csv.DictReader(_TEXT.splitlines())
}
