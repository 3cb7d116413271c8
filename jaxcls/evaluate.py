"""Evaluates a checkpoint: `python -m jaxcls.evaluate --checkpoint runs/lenet5-digits`.

Nothing but the checkpoint is needed: the network, the dataset and the eval transform are in
it. From Python: `evaluate_checkpoint("runs/lenet5-digits")`.
"""

import argparse
import sys
from collections.abc import Sequence

from jaxcls.commands import exit_code
from jaxcls.inference.evaluation import VIEWS, evaluate_checkpoint
from jaxcls.report.progress import eval_line


@exit_code
def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.evaluate",
        description="Evaluates a checkpoint on its test split, raw and averaged weights.",
    )
    add = parser.add_argument
    checkpoint = "a run's folder, or one step's"
    add("--checkpoint", required=True, metavar="DIR", help=checkpoint)
    for name, what in (
        ("batch_size", "images in a step"),
        ("devices", "accelerators"),
        ("workers", "loading processes"),
    ):
        add(f"--{name}", type=int, help=f"{what} (default: as in training)")
    add(
        "--views",
        help=f"average over views of each image: {', '.join(VIEWS)} (default: as in training)",
    )
    given = vars(parser.parse_args(argv))
    print(eval_line(evaluate_checkpoint(given.pop("checkpoint"), **given)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
