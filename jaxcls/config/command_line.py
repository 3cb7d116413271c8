"""The flags of the commands that read a recipe.

--config FILE[:dataset] --config.optimizer.learning_rate=3e-4 --workdir runs/mine
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxcls.config.help import describe
from jaxcls.config.overrides import apply_overrides, check_given
from jaxcls.config.recipe import load_recipe
from jaxcls.config.tree import Config
from jaxcls.config.validation import validate
from jaxcls.errors import UserError, did_you_mean

USAGE = """\
usage: python -m jaxcls.train --config FILE[:DATASET] [--config.OPTION=VALUE ...]
                              [--workdir DIR] [--fresh] [--dry_run] [--help]

Trains the recipe in FILE. The same command again continues the run where it stopped.

  --config FILE[:DATASET]  a Python file with get_config(dataset); see configs/. With
                           --config.data.path=DIR and no DATASET, DIR is a folder of images
                           (DATASET is "folder")
  --config.OPTION=VALUE    overrides an option of the recipe, before training begins; where
                           the recipe chooses among kinds, VALUE is the name of another
                           (optimizer=LAMB, clip=ClipNorm, ema=None), and what it needs is
                           given beside it: clip=ClipValue with clip.max_value=0.5. --help
                           lists the kinds, and after a choice the options of the one chosen
  --workdir DIR            where the run lives; default: runs/RECIPE-DATASET
  --fresh                  begin anew; an earlier run in DIR is moved aside, not deleted
  --dry_run                builds everything on shapes and says what it would train: groups of
                           parameters with their rates, memory, the schedule; writes nothing
  --help                   this text; with --config also the recipe's options

exit codes: 0 complete, 2 a mistake in the command, the config or the files, 3 training
diverged, 75 stopped by a signal with everything saved: run the same command again
"""

FLAGS = ("config", "workdir", "fresh", "dry_run", "help")
SWITCHES = ("fresh", "dry_run", "help")
OF_RECIPE = ("config", "help")
"""Flags of the commands that read a recipe and do not train it."""


@dataclasses.dataclass
class Command:
    """What a command line asks for.

    Attributes:
      config: the recipe's config with the overrides applied.
      workdir: the run's folder.
      fresh: whether to begin anew.
      dry_run: whether only to say what would be trained.
    """

    config: Config
    workdir: Path
    fresh: bool
    dry_run: bool


def parse(argv: Sequence[str], allowed: Sequence[str] = FLAGS) -> Command | None:
    """Parses a command line; None if it asked for help, which is then printed.

    Args:
      argv: the arguments, without the program's name.
      allowed: those of FLAGS that the command has, OF_RECIPE where nothing is trained.

    Raises:
      UserError: for whatever is wrong with them or with the recipe.
    """
    given, overrides = _split(argv, allowed)
    if "config" not in given:
        if "help" in given:
            print(USAGE)
            return None
        raise UserError("no recipe: give --config FILE, for example configs/lenet5.py.")
    path, _, dataset = given["config"].partition(":")
    config = load_recipe(path, dataset)
    gives_path = "data.path" in dict(overrides)
    if gives_path and not dataset and not hasattr(config.data, "path"):
        dataset = "folder"
        config = load_recipe(path, dataset)
    apply_overrides(config, overrides)
    if "help" in given:
        print(USAGE + "\n" + describe(config, given["config"]))
        return None
    check_given(config)
    validate(config)
    run = f"{Path(path).stem}-{dataset or type(config.data).__name__.lower()}"
    workdir = Path(given.get("workdir", Path("runs", run)))
    return Command(config, workdir, fresh="fresh" in given, dry_run="dry_run" in given)


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
    command = parse(recipe, OF_RECIPE)
    if command is None:
        sys.exit(0)
    return given, command.config


def _split(
    argv: Sequence[str], allowed: Sequence[str]
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Splits arguments into flags, name -> value, and overrides, [(option, value)]."""
    given: dict[str, str] = {}
    overrides = []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        match = re.fullmatch(r"--?([A-Za-z][^=]*)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            raise UserError(
                f"'{argument}' is not a flag: write --config.OPTION=VALUE. See --help."
            )
        name = "help" if match[1] == "h" else match[1]
        value = match[2]
        is_option = name.startswith("config.")
        if name in FLAGS and name not in allowed:
            raise UserError(f"--{name} is a flag of jaxcls.train: see --help.")
        if name not in FLAGS and not is_option:
            raise UserError(
                f"unknown flag --{name}.{did_you_mean(name, allowed)} See --help."
            )
        if name in SWITCHES:
            if value is not None:
                raise UserError(f"--{name} takes no value, but was given '{value}'.")
            given[name] = ""
            continue
        if value is None and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        if value is None or (value == "" and not is_option):
            raise UserError(f"--{name} needs a value: write --{name}=VALUE.")
        if is_option:
            overrides.append((name.removeprefix("config."), value))
        elif name in given:
            raise UserError(f"--{name} is given twice: '{given[name]}' and '{value}'.")
        else:
            given[name] = value
    return given, overrides
