"""Averages weights: `python -m jaxcls.average --checkpoints runs/mine --last 3 --out runs/soup`.

From Python: `average(["runs/a", "runs/b"], "out")`.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxcls.checkpoint.checkpoints import read_info
from jaxcls.checkpoint.weights_only import MADE_BY
from jaxcls.commands import exit_code
from jaxcls.training.weight_average import average


@exit_code
def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.average",
        description="Averages the weights of checkpoints, each counting the same. The result "
        "can be evaluated, and named as model.weights or distill.teacher.",
        epilog="Runs that are averaged must have begun with the same weights (model.weights): "
        "networks that were trained from different random weights make a poor average.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--checkpoints",
        required=True,
        nargs="+",
        metavar="DIR",
        help="runs' folders, whose newest checkpoint is taken, or folders of single steps",
    )
    add("--out", required=True, metavar="DIR", help="folder to write")
    add(
        "--last",
        type=int,
        metavar="N",
        help="take the newest N checkpoints of one run (checkpoint.keep says how many it keeps)",
    )
    add(
        "--weights",
        choices=("raw", "ema"),
        default="raw",
        help="the trained weights, or the averages that the runs kept; raw",
    )
    add(
        "--precise_bn",
        type=int,
        metavar="IMAGES",
        help="estimate the batch statistics over so many training images (default: they are "
        "averaged too)",
    )
    given = vars(parser.parse_args(argv))
    made = average(given.pop("checkpoints"), **given)
    print(
        f"{made}: {read_info(made)[MADE_BY]}\n"
        f"to evaluate it: python -m jaxcls.evaluate --checkpoint {given['out']}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
