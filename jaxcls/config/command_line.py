"""The command line of training: a recipe, overrides of its options, and where it runs.

    --config FILE[:dataset] --config.optimizer.learning_rate=3e-4 --config.augment[1].padding=3

The syntax is that of ml_collections' config flags. Those know neither Literal nor None nor
units, and say what is wrong in tracebacks, so that a typed tree is better served by the few
functions here.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docstring_parser

from jaxcls import config as config_lib
from jaxcls.config import Config
from jaxcls.duration import Duration
from jaxcls.errors import UserError, closest, did_you_mean
from jaxcls.optim import OneCycle
from jaxcls.options import type_name

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

NOT_GIVEN: Any = ...
"""Stands for an option that a kind needs, from the choice of the kind until it is given."""


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
    config = unshared(load_recipe(path, dataset))
    gives_path = any(name == "data.path" for name, _ in overrides)
    if gives_path and not dataset and not hasattr(config.data, "path"):
        dataset = "folder"
        config = unshared(load_recipe(path, dataset))
    _apply(config, overrides)
    if "help" in given:
        print(USAGE + "\n" + describe(config, given["config"]))
        return None
    _check_given(config)
    config_lib.validate(config)
    run = f"{Path(path).stem}-{dataset or type(config.data).__name__.lower()}"
    workdir = Path(given.get("workdir", Path("runs", run)))
    return Command(config, workdir, fresh="fresh" in given, dry_run="dry_run" in given)


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
        name, value = match[1], match[2]
        name = "help" if name == "h" else name
        option = name.removeprefix("config.")
        if name in FLAGS and name not in allowed:
            raise UserError(f"--{name} is a flag of jaxcls.train: see --help.")
        if name not in FLAGS and option == name:
            raise UserError(
                f"unknown flag --{name}.{did_you_mean(name, allowed)} See --help."
            )
        if name in SWITCHES:
            if value is not None:
                raise UserError(f"--{name} takes no value, but was given '{value}'.")
            value = ""
        elif value is None:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"--{name} needs a value: write --{name}=VALUE.")
            value = waiting.pop(0)
        if value == "" and name in FLAGS and name not in SWITCHES:
            raise UserError(f"--{name} needs a value: write --{name}=VALUE.")
        if option != name:
            overrides.append((option, value))
        elif name in given and name not in SWITCHES:
            raise UserError(f"--{name} is given twice: '{given[name]}' and '{value}'.")
        else:
            given[name] = value
    return given, overrides


def load_recipe(path: str, dataset: str) -> Config:
    """Returns what get_config(dataset) of a recipe gives, or get_config() for "".

    A recipe may import another one beside it by the name of their folder, `from configs.effnet_b0
    import ...`, from wherever it is run.

    Raises:
      UserError: if there is no such file, or it fails.
    """
    if not Path(path).is_file():
        known = [str(file) for file in sorted(Path("configs").glob("*.py"))]
        names = f" There are: {', '.join(known)}." if known else ""
        raise UserError(
            f"there is no recipe {path}.{did_you_mean(path, known) or names}"
        )
    try:
        spec = importlib.util.spec_from_file_location(f"recipe_{Path(path).stem}", path)
        if spec is None or spec.loader is None:
            raise UserError(f"the recipe {path} is not a Python file (.py).")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look up their annotations
        with _importable(Path(path).absolute().parent.parent):
            spec.loader.exec_module(module)
            config = module.get_config(dataset) if dataset else module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next(
            (
                f", line {frame.lineno}"
                for frame in reversed(frames)
                if os.path.exists(frame.filename)
                and os.path.samefile(frame.filename, path)
            ),
            "",
        )
        reason = " ".join(str(error).split())
        raise UserError(
            f"the recipe {path} fails{place}: {type(error).__name__}: {reason}"
        ) from None
    if not isinstance(config, Config):
        raise UserError(
            f"get_config of {path} must return a jaxcls.config.Config, not "
            f"{type(config).__name__}."
        )
    for name, node in config_lib.nodes(config):
        if type(node).__module__ == spec.name:
            raise UserError(
                f"{type(node).__name__} (config.{name}) is defined in the recipe {path}, where "
                "no checkpoint can find it again: move it to a module of your own that can be "
                "imported."
            )
    return config


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Lets what lies in a folder be imported, by its name there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def unshared(node: Any) -> Any:
    """Copies a config so that no node appears in it twice: an override changes the option it
    names, and not also another place where the recipe has put the same object."""
    if isinstance(node, tuple):
        return tuple(unshared(element) for element in node)
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return node
    fields = {f.name: unshared(getattr(node, f.name)) for f in dataclasses.fields(node)}
    return dataclasses.replace(node, **fields)


def override(config: Config, name: str, text: str) -> None:
    """Sets one option of a config, in place.

    Args:
      config: the config.
      name: the option's path, "optimizer.learning_rate" or "augment[1].padding".
      text: its value as typed.

    Raises:
      UserError: if there is no such option, or the text is not of its type.
    """
    _apply(config, [(name, text)])
    _check_given(config)


def _apply(config: Config, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets options of a config, [(path, value as typed)], in place: first the kinds, so that
    the options of a kind may stand before or behind its choice.

    What a chosen kind needs and is not among them is left NOT_GIVEN.
    """
    chosen: dict[
        str, int
    ] = {}  # path -> where in overrides it is set for the last time
    # A kind may lie within another: those above come first.
    for name in sorted(dict(overrides), key=lambda path: path.count(".")):
        if kinds := _kinds(config, name):
            chosen[name] = max(
                i for i, (path, _) in enumerate(overrides) if path == name
            )
            _choose(config, name, overrides[chosen[name]][1], kinds)
    for index, (name, text) in enumerate(overrides):
        if name not in chosen and not _is_taken_back(name, index, overrides, chosen):
            _set(config, name, text)


def _is_taken_back(
    name: str,
    index: int,
    overrides: Sequence[tuple[str, str]],
    chosen: dict[str, int],
) -> bool:
    """Whether a part of the recipe, of which overrides[index] sets an option, is set to None
    by a later one."""
    return any(
        name.startswith(f"{path}.")
        and index < last
        and overrides[last][1].lower() == "none"
        for path, last in chosen.items()
    )


def _set(config: Config, name: str, text: str) -> None:
    """Sets one option that is no choice among kinds."""
    known = config_lib.options(config)
    if name in known:
        _set_value(known[name][0], name, text)
        return
    if name and re.sub(r"\[\d+\]$", "", name) in _paths_of_parts(config):
        # A tuple of parts, which a value may replace that is written without parts.
        owner = dict(config_lib.nodes(config)).get(name.rpartition(".")[0])
        with contextlib.suppress(UserError):
            _set_value(owner, name, text)
            return
        raise UserError(
            f"config.{name} is a part of the recipe with options of its own: set those "
            "(--help lists them), or edit the recipe."
        )
    raise UserError(
        f"the recipe has no option '{name}'"
        + (_choice_before(config, name) or f".{_suggestion(name, known)}")
        + " --help with --config lists all."
    )


def _paths_of_parts(config: Config) -> set[str]:
    """Returns the paths of all parts of a recipe, and of the tuples that hold some."""
    return {re.sub(r"\[\d+\]$", "", path) for path, _ in config_lib.nodes(config)}


def _set_value(owner: Any, name: str, text: str) -> None:
    """Sets an option of a node to what was typed.

    Args:
      owner: the node.
      name: the option's path in the config.
      text: its value as typed.
    """
    field = name.rpartition(".")[2]
    hint = typing.get_type_hints(type(owner)).get(field)
    try:
        setattr(owner, field, parse_value(text, hint))
    except UserError as error:
        raise UserError(f"--config.{name}: {error}") from None
    except (ValueError, SyntaxError, TypeError, OverflowError):
        raise UserError(
            f"--config.{name} is {text!r}; expected {type_name(hint)}."
        ) from None


def _choice_before(config: Config, name: str) -> str:
    """Returns how to come by an option that the recipe lacks because it has another kind of
    the part that the option belongs to; "" if no kind has it."""
    path, _, field = name.rpartition(".")
    having = [
        kind.__name__
        for kind in _kinds(config, path).values()
        if kind is not None and field in {o.name for o in dataclasses.fields(kind)}
    ]
    if not having:
        return ""
    node = dict(config_lib.nodes(config)).get(path)
    now = "None" if node is None else type(node).__name__
    others = f" ({', '.join(having)} have it)" if len(having) > 1 else ""
    return (
        f": config.{path} is {now}. Choose first --config.{path}={having[0]}{others}."
    )


def _check_given(config: Config) -> None:
    """Raises UserError if a chosen kind needs what is not given."""
    for path, node in config_lib.nodes(config):
        missing = [
            option.name
            for option in dataclasses.fields(node)
            if getattr(node, option.name) is NOT_GIVEN
        ]
        if not missing:
            continue
        hints = typing.get_type_hints(type(node))
        ways = [f"--config.{path}.{name}=VALUE" for name in missing]
        typed = all(_can_be_typed(hints[name]) for name in missing)
        raise UserError(
            f"--config.{path}={type(node).__name__} needs {', '.join(missing)}: "
            + (f"give {' '.join(ways)}" if typed else "choose it in the recipe")
            + "."
        )


def _kinds(config: Config, name: str) -> dict[str, type | None]:
    """Returns what an option chooses among, class name -> class, with "None" -> None where
    it may be absent; {} where there is nothing to choose."""
    path, _, field = name.rpartition(".")
    owner = dict(config_lib.nodes(config)).get(path)
    hint = typing.get_type_hints(type(owner)).get(field)
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    members = typing.get_args(hint) if union else (hint,)
    kinds: dict[str, type | None] = {}
    for member in members:
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            kinds |= {kind.__name__: kind for kind in _concrete(member)}
    if kinds and type(None) in members:
        kinds["None"] = None
    return kinds if len(kinds) > 1 else {}


def _concrete(kind: type) -> list[type]:
    """Returns a class and all below it, without those that are abstract or private."""
    children: list[type] = kind.__subclasses__()
    below = [found for child in children for found in _concrete(child)]
    hidden = inspect.isabstract(kind) or kind.__name__.startswith("_")
    return below if hidden else [kind, *below]


def _choose(
    config: Config, name: str, text: str, kinds: dict[str, type | None]
) -> None:
    """Puts a part of another kind into a config. It keeps the options that both kinds have and
    the recipe has set; what it needs besides is NOT_GIVEN."""
    path, _, field = name.rpartition(".")
    owner = dict(config_lib.nodes(config))[path]
    names = {known.lower(): known for known in kinds}
    if text.lower() not in names:
        meant = "" if text.lower() == "none" else did_you_mean(text, kinds)
        raise UserError(
            f"config.{name} is a part of the recipe, and '{text}' none of its kinds: name one "
            f"of {', '.join(kinds)}.{meant} Options of its own are set as "
            f"--config.{name}.OPTION=VALUE (--help lists them)."
        )
    kind = kinds[names[text.lower()]]
    if kind is None:
        setattr(owner, field, None)
        return
    before = _set_options(getattr(owner, field))
    known = dataclasses.fields(kind)
    needed = {o.name: before.get(o.name, NOT_GIVEN) for o in known if _is_required(o)}
    kept = {o.name: before[o.name] for o in known if o.name in before}
    if issubclass(kind, OneCycle):
        kept.pop("warmup", None)  # it has one of its own, and takes no other
    setattr(owner, field, kind(**{**kept, **needed}))


def _set_options(node: Any) -> dict[str, Any]:
    """Returns the options of a part of a recipe that are not at their defaults."""
    found = {}
    for option in dataclasses.fields(node) if node is not None else ():
        value = getattr(node, option.name)
        default = option.default
        if option.default_factory is not dataclasses.MISSING:
            default = option.default_factory()
        if value != default:
            found[option.name] = value
    return found


def _is_required(option: "dataclasses.Field[Any]") -> bool:
    defaults = (option.default, option.default_factory)
    return all(default is dataclasses.MISSING for default in defaults)


def parse_value(text: str, hint: Any) -> Any:
    """Reads a value of a type from what was typed.

    Args:
      text: for example "3e-4", "None", "(0.8, 0.95)", "20 epochs".
      hint: bool, int, float, str, Duration, a Literal, a tuple, or a union of them.

    Raises:
      ValueError: if the text is not of the type; UserError for a wrong duration.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, typing.get_args(hint))
    if origin is typing.Literal:
        choices = {str(choice): choice for choice in typing.get_args(hint)}
        if text not in choices:
            hint_at = did_you_mean(text, choices)
            raise UserError(f"'{text}' is not one of {', '.join(choices)}.{hint_at}")
        return choices[text]
    if origin is tuple:
        return _parse_tuple(text, hint)
    if hint is type(None):
        if text.lower() != "none":
            raise ValueError
        return None
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError
        return text.lower() == "true"
    if hint is int:
        number = float(text) if re.search(r"[.eE]", text) else int(text)
        if number != int(number):
            raise ValueError
        return int(number)
    if hint in (float, str):
        return hint(text)
    if hint is Duration:
        return Duration.parse(text)
    raise UserError("this option can only be set in the recipe.")


def _can_be_typed(hint: Any) -> bool:
    """Whether parse_value() reads values of a type, other than an empty tuple."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_can_be_typed(member) for member in members)
    if origin is tuple:
        return all(m is ... or m in (bool, int, float, str, Duration) for m in members)
    values = (bool, int, float, str, Duration, type(None))
    return origin is typing.Literal or hint in values


def _parse_tuple(text: str, hint: Any) -> tuple[Any, ...]:
    """Reads "(0.8, 0.95)" or "('30 epochs', '60 epochs')"; "()" whatever it could hold."""
    members = typing.get_args(hint)
    value = ast.literal_eval(text)
    if not isinstance(value, (tuple, list)):
        raise ValueError
    if value and not _can_be_typed(hint):
        raise UserError(
            "this option can only be set in the recipe; '()' makes it empty."
        )
    if Duration in members:
        return tuple(Duration.parse(element) for element in value)
    of_floats = float in members
    return tuple(float(v) if of_floats and type(v) is int else v for v in value)


def _parse_union(text: str, members: Iterable[Any]) -> Any:
    """Reads a value of the first of several types that it fits, None before all others and
    "()" as a tuple rather than as text."""
    members = list(members)
    tuples = [member for member in members if typing.get_origin(member) is tuple]
    if tuples and text.strip() == "()":
        return ()
    last = ValueError()
    for member in sorted(members, key=lambda member: member is not type(None)):
        try:
            return parse_value(text, member)
        except ValueError as error:
            last = error
    raise last


def _suggestion(name: str, known: Iterable[str]) -> str:
    """Suggests an option, by its whole path or by its last part."""
    known = list(known)
    by_last = {path.rpartition(".")[2]: path for path in reversed(known)}
    last = closest(name.rpartition(".")[2], by_last)
    found = closest(name, known) or (by_last[last] if last else None)
    return f" Did you mean '{found}'?" if found else ""


def describe(config: Config, location: str) -> str:
    """Returns a table of a recipe's options: name, value, type and meaning, and the kinds
    where one chooses among them."""
    lines = [f"options of {location}, with their values:"]
    known = config_lib.options(config)
    for node_path, node in config_lib.nodes(config):
        about = docstring_parser.parse(type(node).__doc__ or "").short_description
        about = " ".join((about or "").split())
        heading = f"{node_path}: " if node_path else ""
        lines += ["", f"{heading}{type(node).__name__}. {about}"]
        if kinds := _kinds(config, node_path):
            lines.append(f"  kinds: {', '.join(kinds)} (--config.{node_path}=KIND)")
        hints = typing.get_type_hints(type(node))
        for field in (option.name for option in dataclasses.fields(node)):
            path = f"{node_path}.{field}" if node_path else field
            if path not in known:
                continue
            hint = hints[field]
            kind = "duration" if hint is Duration else type_name(hint)
            lines.append(f"  --config.{path}={_shown(known[path][1])}  ({kind})")
            lines.append(f"      {meaning(type(node), field)}")
            if kinds := _kinds(config, path):
                lines.append(f"      kinds: {', '.join(kinds)}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    """Returns an option's value as it is typed, "..." if it is still to be given."""
    if value is NOT_GIVEN:
        return "..."
    if isinstance(value, Duration):
        return f'"{value}"'
    if isinstance(value, tuple) and any(isinstance(v, Duration) for v in value):
        return f'"{tuple(str(v) for v in value)}"'
    return repr(value)


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
