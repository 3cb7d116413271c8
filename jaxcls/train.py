"""Trains a recipe: `python -m jaxcls.train --config configs/lenet5.py`.

From Python: `train(config, workdir="runs/mine")`.
"""

import sys
from collections.abc import Sequence

from jaxcls.commands import COMPLETE, RUN_AGAIN, exit_code
from jaxcls.config import command_line
from jaxcls.training.run import Result, dry_run, train

__all__ = ["Result", "dry_run", "main", "train"]


@exit_code
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    command = command_line.parse(argv)
    if command is None:
        return COMPLETE
    if command.dry_run:
        dry_run(command.config)
        return COMPLETE
    result = train(command.config, command.workdir, fresh=command.fresh)
    return COMPLETE if result.complete else RUN_AGAIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
