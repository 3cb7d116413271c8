"""What the commands share: how they read a recipe, and how they end."""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence

from jaxcls import parallel
from jaxcls.config import Config, command_line
from jaxcls.errors import Diverged, UserError

COMPLETE, MISTAKE, DIVERGED, RUN_AGAIN = 0, 2, 3, 75
"""Exit codes. 75 is sysexits.h's EX_TEMPFAIL: nothing is wrong, run it again."""
INTERRUPTED, NOBODY_READS = 130, 141
"""A shell's codes for a process that SIGINT or SIGPIPE ended: 128 + the signal's number."""


def exit_code(
    main: Callable[[Sequence[str]], int | None],
) -> Callable[[Sequence[str]], int]:
    """Makes a command's function, which takes its arguments, return its exit code.

    What the function returns is its exit code; None stands for COMPLETE. A mistake is printed
    as one line on stderr. Any other error passes, with its traceback.
    """

    @functools.wraps(main)
    def command(argv: Sequence[str]) -> int:
        parallel.keep_freed_memory()
        try:
            code = main(argv)
            sys.stdout.flush()  # a pipe that nobody reads shows here at the latest
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        except Diverged as error:
            print(f"diverged: {error}", file=sys.stderr)
            return DIVERGED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # Python flushes stdout once more when it ends: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NOBODY_READS
        return COMPLETE if code is None else code

    return command


def recipe_parser(
    name: str, options: str, description: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """Returns a parser for the options of a command that reads a recipe and does not train it.

    Args:
      name: of the command.
      options: its own, as its usage shows them.
      description: what it does.
      epilog: what else --help says.
    """
    return argparse.ArgumentParser(
        prog=f"python -m jaxcls.{name}",
        usage=f"%(prog)s --config FILE[:DATASET] [--config.OPTION=VALUE ...] {options}",
        description=description,
        epilog=epilog,
        allow_abbrev=False,
    )


def parse_with_recipe(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, Config]:
    """Returns the options that a parser knows, and the config that the others make.

    Where these ask for help, it prints that and exits, as argparse does.

    Raises:
      UserError: for whatever is wrong with the others or with the recipe.
    """
    given, recipe = parser.parse_known_args(argv)
    command = command_line.parse(recipe, command_line.OF_RECIPE)
    if command is None:
        sys.exit(COMPLETE)
    return given, command.config
