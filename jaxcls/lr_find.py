"""Looks for a learning rate: `python -m jaxcls.lr_find --config configs/resnet18.py`.

From Python: `curve = sweep(config); suggestion(curve)`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcls.commands import exit_code
from jaxcls.config.command_line import parse_with_recipe, recipe_parser
from jaxcls.report.rate_picture import check_picture, draw
from jaxcls.training.lr_sweep import advice, suggestion, sweep


@exit_code
def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = recipe_parser(
        "lr_find",
        "[--out FILE] [--steps N] [--low RATE] [--high RATE]",
        "Draws how the loss of a recipe goes while the learning rate grows, and suggests a "
        "rate.",
    )
    add = parser.add_argument
    add("--out", type=Path, default="lr_find.png", help="the picture; lr_find.png")
    add("--steps", type=int, default=100, help="of the sweep, at most; 100")
    add("--low", type=float, default=1e-6, help="the first rate; 1e-6")
    add("--high", type=float, default=10.0, help="the last rate; 10")
    given, config = parse_with_recipe(parser, argv)
    check_picture(given.out)
    curve = sweep(config, num_steps=given.steps, low=given.low, high=given.high)
    suggested = suggestion(curve)
    print(advice(config, curve, suggested))
    draw(curve.rates, curve.losses, curve.smoothed(), suggested, given.out)
    print(f"{given.out}: the curve of {len(curve.rates)} steps")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
