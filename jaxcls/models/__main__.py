"""Lists the networks: `python -m jaxcls.models`, `python -m jaxcls.models 'resnet*'`."""

import argparse
import fnmatch
import itertools
import sys
from collections.abc import Sequence

from jaxcls.commands import exit_code
from jaxcls.errors import UserError, did_you_mean
from jaxcls.models import MODELS
from jaxcls.models.facts import FACTS
from jaxcls.models.weights.catalogue import WEIGHTS, WeightSet


def network_table(names: Sequence[str]) -> str:
    """Returns the table of networks, a line each."""
    rows = [("network", "parameters", "GMACs", "size", "weights", "best top-1")]
    for name in names:
        facts, sets = FACTS[name], weight_sets(name)
        digits = 3 if facts.gmacs >= 0.001 else 4
        cost = (f"{facts.parameters:,}", f"{facts.gmacs:.{digits}f}", str(facts.size))
        published = (str(len(sets)), percent(sets[0].top1)) if sets else ("-", "-")
        rows.append((name, *cost, *published))
    return align(rows)


def weights_table(names: Sequence[str]) -> str:
    """Returns the table of the weights known for networks, a line each; "" if there are none."""
    rows = [("weights", "top-1", "size", "resized to", "by", "classes")]
    for one in itertools.chain.from_iterable(map(weight_sets, names)):
        sizes = (str(one.size), str(one.resize), one.interpolation)
        rows.append((one.name, percent(one.top1), *sizes, f"{one.num_classes:,}"))
    return align(rows) if len(rows) > 1 else ""


def weight_sets(name: str) -> list[WeightSet]:
    """Returns the weights known for a network, the best first."""
    sets = [weights for weights in WEIGHTS.values() if weights.model == name]
    return sorted(sets, key=lambda weights: -(weights.top1 or 0))


def percent(top1: float | None) -> str:
    """Returns an accuracy as a cell."""
    return "-" if top1 is None else f"{top1:.2f} %"


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Returns rows of cells as lines: the first column to the left, the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return "\n".join(line.format(*row).rstrip() for row in rows)


def matching(pattern: str) -> list[str]:
    """Returns the networks that a name or a pattern with * and ? matches.

    Raises:
      UserError: if there are none.
    """
    names = fnmatch.filter(MODELS, pattern.lower())
    if not names:
        letters = pattern.lower().strip("*?")[:5]
        near = fnmatch.filter(MODELS, f"*{letters}*") if letters else []
        hint = f" Some contain '{letters}': {', '.join(near)}." if near else ""
        raise UserError(
            f"no network is called '{pattern}'.{did_you_mean(pattern, MODELS)}{hint}"
        )
    return names


@exit_code
def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.models",
        description="Lists the networks: parameters (with auxiliary heads), multiply-adds of "
        "one image of the given size, number of published weights and the best accuracy on "
        "ImageNet among them. With a name or pattern, lists those weights too.",
    )
    parser.add_argument("pattern", nargs="?", help="a name, or a pattern: 'resnet*'")
    pattern = parser.parse_args(argv).pattern
    names = list(MODELS) if pattern is None else matching(pattern)
    print(network_table(names))
    if pattern is not None and (table := weights_table(names)):
        print(f"\n{table}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
