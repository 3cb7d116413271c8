"""ImageNet-1k's 1,000 classes, in the order of the logits of all published networks.

imagenet_classes.txt has a line for each: its WordNet synset, by which the lines are sorted, and
its English name in torchvision's wording. Data and published weights both need them.
"""

import functools
import importlib.resources


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Returns the English name of each synset, in order: "n01440764" -> "tench"."""
    text = importlib.resources.files("jaxcls").joinpath("imagenet_classes.txt")
    lines = text.read_text("utf-8").splitlines()
    return dict(line.split(" ", 1) for line in lines)
