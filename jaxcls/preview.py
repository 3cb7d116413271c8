"""Draws what a recipe does to images: `python -m jaxcls.preview --config configs/resnet18.py`.

From Python: `preview(config).save("preview.png")`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcls.commands import exit_code
from jaxcls.config.command_line import parse_with_recipe, recipe_parser
from jaxcls.errors import UserError
from jaxcls.report.contact_sheet import can_be_written
from jaxcls.training.preview import preview


@exit_code
def main(argv: Sequence[str]) -> None:
    """Runs the command."""
    parser = recipe_parser(
        "preview",
        "[--out FILE] [--count N] [--seed N]",
        "Draws what a recipe does to the images of its dataset.",
    )
    add = parser.add_argument
    add("--out", type=Path, default="preview.png", help="the picture; preview.png")
    add("--count", type=int, default=16, help="images in a row; 16")
    add("--seed", type=int, default=0, help="of the random transforms; 0")
    given, config = parse_with_recipe(parser, argv)
    out: Path = given.out
    if not can_be_written(out.suffix.lower()):
        raise UserError(
            f"--out {out} must end as pictures do: .png, .jpg or .webp, for example."
        )
    picture = preview(config, count=given.count, seed=given.seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error}).") from error
    print(f"{out}: {picture.width} x {picture.height} pixels")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
