"""A linear probe: `python -m jaxcls.probe --config configs/resnet18.py --out runs/probe
--config.model.weights=runs/mine`.

From Python: `probe(config, "runs/probe")`.
"""

import sys
from collections.abc import Sequence

from jaxcls.commands import exit_code
from jaxcls.config.command_line import parse_with_recipe, recipe_parser
from jaxcls.errors import UserError
from jaxcls.report.progress import eval_line
from jaxcls.training.linear_probe import probe


@exit_code
def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = recipe_parser(
        "probe",
        "--out DIR [--head KIND] [--strength NUMBER]",
        "Fits a linear layer to the features of a network whose weights "
        "(config.model.weights) stay as they are, and evaluates it on the test split.",
        "The result is a checkpoint: python -m jaxcls.evaluate --checkpoint DIR",
    )
    add = parser.add_argument
    add("--out", metavar="DIR", help="folder to write")
    add(
        "--head",
        metavar="KIND",
        default="ridge",
        help="ridge (least squares, in closed form) or logistic (regression by L-BFGS: often "
        "better, slower); ridge",
    )
    add(
        "--strength",
        type=float,
        metavar="NUMBER",
        help="of the penalty, relative to the variance of the features (default: chosen on a "
        "fifth of the training images)",
    )
    given, config = parse_with_recipe(parser, argv)
    if given.out is None:
        raise UserError("no folder to write: give --out DIR.")
    results = probe(config, given.out, head=given.head, strength=given.strength)
    print(eval_line(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
