"""The command line of training: a recipe, overrides of its options, and where it runs.

    --config FILE[:dataset] --config.optimizer.learning_rate=3e-4 --config.augment[1].padding=3

ml_collections parses it; what it raises becomes one sentence each.
"""

import dataclasses
import re
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docstring_parser
from absl import flags
from ml_collections import config_flags

from jaxcls import config as config_lib
from jaxcls.config import Config
from jaxcls.duration import Duration
from jaxcls.errors import UserError, did_you_mean

USAGE = """\
usage: python -m jaxcls.train --config FILE[:DATASET] [--config.OPTION=VALUE ...]
                              [--workdir DIR] [--fresh] [--help]

Trains the recipe in FILE. The same command again continues the run where it stopped.

  --config FILE[:DATASET]  a Python file with get_config(dataset); see configs/
  --config.OPTION=VALUE    overrides an option of the recipe, before training begins
  --workdir DIR            where the run lives; default: runs/RECIPE-DATASET
  --fresh                  begin anew; an earlier run in DIR is moved aside, not deleted
  --help                   this text; with --config also the recipe's options

exit codes: 0 complete, 2 a mistake in the command, the config or the files, 3 training
diverged, 75 stopped by a signal with everything saved: run the same command again
"""


@dataclasses.dataclass
class Command:
    """What a command line asks for.

    Attributes:
      config: the recipe's config with the overrides applied.
      workdir: the run's folder.
      fresh: whether to begin anew.
    """

    config: Config
    workdir: Path
    fresh: bool


class _DurationParser(flags.ArgumentParser):
    """Lets --config.duration="20 epochs" set a Duration."""

    syntactic_help = (
        "a number and a unit: '20 epochs', '500 steps', '1e6 examples', '5%'"
    )

    def parse(self, argument: Any) -> Duration:
        return argument if isinstance(argument, Duration) else Duration.parse(argument)

    def flag_type(self) -> str:
        return "duration"


config_flags.register_flag_parser_for_type(Duration, _DurationParser())


def parse(argv: Sequence[str]) -> Command | None:
    """Parses a command line; None if it asked for help, which is then printed.

    Args:
      argv: the arguments, without the program's name.

    Raises:
      UserError: for whatever is wrong with them or with the recipe.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_boolean("fresh", False, "", flag_values=values)
    flags.DEFINE_boolean("help", False, "", short_name="h", flag_values=values)
    argv, to_none = _split_off_none([_dashes(argument) for argument in argv])
    # Where the overrides are looked for, "--config FILE" must be one word.
    argv = ["train", *_join_values(argv)]
    recipe = next((a for a in argv if a.startswith("--config=")), None)
    if recipe is None and any(a in ("--help", "-h", "-help") for a in argv):
        print(USAGE)
        return None
    if recipe is None:
        raise UserError("no recipe: give --config FILE, for example configs/lenet5.py.")
    location = recipe.removeprefix("--config=")
    path, _, dataset = location.partition(":")
    config = _load(path, values, argv)
    for name in to_none:
        _set_none(config, name)
    if values.help:
        print(USAGE + "\n" + describe(config, location))
        return None
    config_lib.validate(config)
    name = dataset or type(config.data).__name__.lower()
    workdir = values.workdir or str(Path("runs", f"{Path(path).stem}-{name}"))
    return Command(config, Path(workdir), values.fresh)


def _dashes(argument: str) -> str:
    """Turns absl's "-config" into "--config"."""
    return re.sub(r"^-(?=\w{2})", "--", argument)


def _join_values(argv: Sequence[str]) -> list[str]:
    """Turns ["--config", "FILE"] into ["--config=FILE"], for it and for --workdir."""
    joined: list[str] = []
    for argument in argv:
        if joined and joined[-1] in ("--config", "--workdir"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _split_off_none(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes out --config.x=None, which ml_collections cannot set; returns the names too."""
    pattern = re.compile(r"--config\.(.+)=(?:None|none)")
    matches = [pattern.fullmatch(argument) for argument in argv]
    kept = [a for a, match in zip(argv, matches, strict=True) if match is None]
    return kept, [match[1] for match in matches if match is not None]


def _load(path: str, values: flags.FlagValues, argv: list[str]) -> Config:
    """Loads the recipe and applies the overrides."""
    if not Path(path).is_file():
        known = [str(file) for file in sorted(Path("configs").glob("*.py"))]
        hint = did_you_mean(path, known) or (
            f" There are: {', '.join(known)}." if known else ""
        )
        raise UserError(f"there is no recipe {path}.{hint}")
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        stray = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        known_flags = ["config", "workdir", "fresh", "help"]
        hint = did_you_mean(error.flagname, known_flags)
        raise UserError(f"unknown flag --{error.flagname}.{hint} See --help.") from None
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        _explain_override(path, argv, error)
        raise
    except flags.Error as error:
        cause = _cause(error)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        text = str(error)
        if "Error whilst parsing config file" in text:
            reason = text.strip().splitlines()[-1]
            place = re.findall(r'File "(.*)", line (\d+)', text)
            where = f" (line {place[-1][1]} of {place[-1][0]})" if place else ""
            raise UserError(f"the recipe {path} fails: {reason}{where}.") from None
        _explain_override(path, argv, error)
        raise UserError(f"{text.splitlines()[0]}.") from None
    if stray:
        raise UserError(
            f"'{stray[0]}' is not a flag: write --config.OPTION=VALUE. See --help."
        )
    config = values.config
    if not isinstance(config, Config):
        config_lib.validate(config)  # says what it is instead
    return config


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error


def _fresh_config(path: str, argv: Sequence[str]) -> Config:
    """Loads the recipe once more, without the overrides."""
    location = next(a for a in argv if a.startswith("--config="))
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=["train", location]
    )
    values(["train", location])
    return values.config


def _explain_override(path: str, argv: Sequence[str], error: Exception) -> None:
    """Raises a UserError that names the first override at fault, if one is."""
    config = _fresh_config(path, argv)
    known = config_lib.options(config)
    for argument in argv:
        match = re.fullmatch(r"--(?:no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            continue
        name, value = match[1], match[2]
        if name not in known:
            nodes = [path for path, _ in config_lib.nodes(config) if path]
            if name in nodes or name in ("augment", "eval_transform"):
                raise UserError(
                    f"--config.{name} is a part of the recipe with options of its own: set "
                    f"those (--help lists them), or edit {path}."
                ) from None
            raise UserError(
                f"the recipe has no option '{name}'.{_closest(name, known)} --help with "
                "--config lists all."
            ) from None
        if f"--config.{name}" in str(error).replace("flag ", ""):
            owner, _ = known[name]
            hint = typing.get_type_hints(type(owner))[name.rpartition(".")[2]]
            reason = _cause(error)
            if isinstance(reason, UserError):
                raise UserError(f"--config.{name}: {reason}") from None
            raise UserError(
                f"--config.{name} is '{value}'; expected {config_lib.type_name(hint)}."
            ) from None


def _closest(name: str, known: typing.Iterable[str]) -> str:
    """Suggests an option, by its whole path or by its last part."""
    known = list(known)
    if hint := did_you_mean(name, known):
        return hint
    by_last = {path.rpartition(".")[2]: path for path in reversed(known)}
    hint = did_you_mean(name.rpartition(".")[2], by_last)
    return f" Did you mean '{by_last[hint.split(chr(39))[1]]}'?" if hint else ""


def _set_none(config: Config, name: str) -> None:
    """Sets an option to None, where its type allows it."""
    known = config_lib.options(config)
    if name not in known:
        raise UserError(f"the recipe has no option '{name}'.{_closest(name, known)}")
    owner, _ = known[name]
    field = name.rpartition(".")[2]
    hint = typing.get_type_hints(type(owner))[field]
    if type(None) not in typing.get_args(hint):
        raise UserError(
            f"--config.{name} is 'None'; expected {config_lib.type_name(hint)}."
        )
    setattr(owner, field, None)


def describe(config: Config, location: str) -> str:
    """Returns a table of a recipe's options: name, value, type and meaning."""
    lines = [f"options of {location}, with their values:"]
    last_owner: Any = config
    for path, (owner, value) in config_lib.options(config).items():
        node, _, field = path.rpartition(".")
        if owner is not last_owner:
            about = docstring_parser.parse(type(owner).__doc__ or "").short_description
            about = " ".join((about or "").split())
            lines += ["", f"{node}: {type(owner).__name__}. {about}"]
            last_owner = owner
        hint = typing.get_type_hints(type(owner))[field]
        shown = f'"{value}"' if isinstance(value, Duration) else repr(value)
        kind = "duration" if hint is Duration else config_lib.type_name(hint)
        lines.append(f"  --config.{path}={shown}  ({kind})")
        lines.append(f"      {meaning(type(owner), field)}")
    return "\n".join(lines)


def meaning(kind: type, field: str) -> str:
    """Returns what a field means, from the Attributes of the docstring that declares it.

    Raises:
      KeyError: if no class declares it, which a test rules out.
    """
    for declaring in kind.__mro__:
        parsed = docstring_parser.parse(declaring.__doc__ or "")
        for parameter in parsed.params:
            if parameter.arg_name == field and parameter.description:
                return " ".join(parameter.description.split())
    raise KeyError(f"{kind.__name__}.{field} has no line under Attributes")
