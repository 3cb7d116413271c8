"""Lists the networks: `python -m jaxcls.models`, `python -m jaxcls.models 'resnet*'`."""

import argparse
import fnmatch
import sys
from collections.abc import Sequence

from jaxcls.errors import UserError, did_you_mean
from jaxcls.models import MODELS
from jaxcls.models.facts import FACTS
from jaxcls.models.weights.catalogue import WEIGHTS, WeightSet


def networks(names: Sequence[str]) -> str:
    """Returns the table of networks, a line each."""
    rows = [("network", "parameters", "GMACs", "size", "weights", "best top-1")]
    for name in names:
        facts = FACTS[name]
        sets = weight_sets(name)
        scores = [weights.top1 for weights in sets if weights.top1 is not None]
        rows.append(
            (
                name,
                f"{facts.parameters:,}",
                f"{facts.gmacs:.3f}" if facts.gmacs >= 0.001 else f"{facts.gmacs:.4f}",
                str(facts.size),
                str(len(sets)) if sets else "-",
                f"{max(scores):.2f} %" if scores else "-",
            )
        )
    return align(rows)


def published(names: Sequence[str]) -> str:
    """Returns the table of the weights known for networks, a line each; "" if there are none."""
    rows = [("weights", "top-1", "size", "resized to", "by", "classes")]
    for name in names:
        for weights in weight_sets(name):
            rows.append(
                (
                    weights.name,
                    "-" if weights.top1 is None else f"{weights.top1:.2f} %",
                    str(weights.size),
                    str(weights.resize),
                    weights.interpolation,
                    f"{weights.num_classes:,}",
                )
            )
    return align(rows) if len(rows) > 1 else ""


def weight_sets(name: str) -> list[WeightSet]:
    """Returns the weights known for a network, the best first."""
    sets = [weights for weights in WEIGHTS.values() if weights.model == name]
    return sorted(sets, key=lambda weights: -(weights.top1 or 0))


def align(rows: Sequence[tuple[str, ...]]) -> str:
    """Returns rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def find(pattern: str) -> list[str]:
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


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a name that is unknown."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.models",
        description="Lists the networks: parameters (with auxiliary heads), multiply-adds of "
        "one image of the given size, number of published weights and the best accuracy on "
        "ImageNet among them. With a name or pattern, lists those weights too.",
    )
    parser.add_argument("pattern", nargs="?", help="a name, or a pattern: 'resnet*'")
    arguments = parser.parse_args(argv)
    try:
        names = list(MODELS) if arguments.pattern is None else find(arguments.pattern)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(networks(names))
    if arguments.pattern is not None and (table := published(names)):
        print(f"\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
