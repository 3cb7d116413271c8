"""Sets options of a config by their paths, and chooses the kinds of its parts.

    optimizer.learning_rate=3e-4    augment[1].padding=3    optimizer=LAMB

The syntax is that of ml_collections' config flags. Those know neither Literal nor None nor
units, and report mistakes as tracebacks, so that a typed tree is better served by these few
functions.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxcls.config.kinds import choices
from jaxcls.config.values import can_be_typed, parse_value
from jaxcls.errors import UserError, closest, did_you_mean
from jaxcls.optim import OneCycle
from jaxcls.options import hints, nodes, options

NOT_GIVEN: Any = ...
"""Stands for an option that a kind needs, from the choice of the kind until it is given."""


class Option(NamedTuple):
    """An option of a config: the node that has it, its name there, its annotation, and what it
    was set to when it was found."""

    owner: Any
    name: str
    hint: Any
    value: Any

    def set(self, value: Any) -> None:
        """Sets it."""
        setattr(self.owner, self.name, value)


def find_option(config: Any, path: str) -> Option | None:
    """Returns the option with a path, "optimizer" or "augment[1].padding"; None if there is
    no such option."""
    owner_path, _, name = path.rpartition(".")
    owner = dict(nodes(config)).get(owner_path)
    hint = None if owner is None else hints(type(owner)).get(name)
    return None if hint is None else Option(owner, name, hint, getattr(owner, name))


def override(config: Any, path: str, text: str) -> None:
    """Sets one option of a config, in place.

    Args:
      config: a Config, or a node of one.
      path: of the option, "optimizer.learning_rate" or "augment[1].padding".
      text: its value as typed.

    Raises:
      UserError: if there is no such option, or the text is not of its type.
    """
    apply_overrides(config, [(path, text)])
    check_given(config)


def apply_overrides(config: Any, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets options of a config, [(path, value as typed)], in place.

    Kinds are chosen first, so that an option of a kind may stand before the choice of the kind.
    An option that a kind needs and nobody has given is NOT_GIVEN: see check_given().

    Raises:
      UserError: if there is no such option, or a text is not of its type.
    """
    typed = dict(overrides)  # the last value of each path
    chosen = []
    # A part may lie within another: the outer one comes first.
    for path in sorted(typed, key=lambda path: path.count(".")):
        option = find_option(config, path)
        if option is not None and (kinds := choices(option.hint)):
            _choose(option, path, typed[path], kinds)
            chosen.append(path)
    for index, (path, text) in enumerate(overrides):
        later = dict(overrides[index:])
        is_removed = any(
            path.startswith(f"{part}.") and later.get(part, "").lower() == "none"
            for part in chosen
        )
        if path not in chosen and not is_removed:
            _set(config, path, text)


def check_given(config: Any) -> None:
    """Raises UserError if a chosen kind needs an option that is not given."""
    for path, node in nodes(config):
        known = hints(type(node)).items()
        missing = {name: h for name, h in known if getattr(node, name) is NOT_GIVEN}
        if missing:
            typed = all(map(can_be_typed, missing.values()))
            ways = " ".join(f"--config.{path}.{name}=VALUE" for name in missing)
            raise UserError(
                f"--config.{path}={type(node).__name__} needs {', '.join(missing)}: "
                f"{f'give {ways}' if typed else 'choose it in the recipe'}."
            )


def _choose(
    option: Option, path: str, text: str, kinds: dict[str, type | None]
) -> None:
    """Replaces a part of a config by one of another kind.

    The new part keeps the options that both kinds have and the recipe has set. Whatever else it
    needs is NOT_GIVEN.
    """
    names = {known.lower(): known for known in kinds}
    if text.lower() not in names:
        suggestion = "" if text.lower() == "none" else did_you_mean(text, kinds)
        raise UserError(
            f"config.{path} is a part of the recipe, and '{text}' none of its kinds: name one "
            f"of {', '.join(kinds)}.{suggestion} Options of its own are set as "
            f"--config.{path}.OPTION=VALUE (--help lists them)."
        )
    kind = kinds[names[text.lower()]]
    if kind is None:
        option.set(None)
        return
    before = {} if option.value is None else _changed(option.value)
    if issubclass(kind, OneCycle):
        before.pop("warmup", None)  # it has one of its own, and takes no other
    fields = dataclasses.fields(kind)
    option.set(kind(**{f.name: before.get(f.name, _default(f)) for f in fields}))


def _changed(node: Any) -> dict[str, Any]:
    """Returns the options of a node that are not at their defaults."""
    values = {field: getattr(node, field.name) for field in dataclasses.fields(node)}
    return {f.name: value for f, value in values.items() if value != _default(f)}


def _default(field: "dataclasses.Field[Any]") -> Any:
    """Returns the default of a field, NOT_GIVEN if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return NOT_GIVEN if field.default is dataclasses.MISSING else field.default


def _set(config: Any, path: str, text: str) -> None:
    """Sets one option that is no choice among kinds."""
    option, leaves = find_option(config, path), options(config)
    if option is not None:
        try:
            option.set(parse_value(text, option.hint, f"--config.{path}"))
            return
        except UserError:
            # A tuple of nodes takes a value without nodes alone: "()", or a text.
            if path in leaves:
                raise
    whole = re.sub(r"\[\d+\]$", "", path)
    if whole not in leaves and find_option(config, whole) is not None:
        raise UserError(
            f"config.{path} is a part of the recipe with options of its own: set those "
            "(--help lists them), or edit the recipe."
        )
    raise UserError(
        f"the recipe has no option '{path}'"
        + (_choice_before(config, path) or f".{_suggestion(path, leaves)}")
        + " --help with --config lists all."
    )


def _choice_before(config: Any, path: str) -> str:
    """Returns which kind to choose before an option exists, "" if no kind has it."""
    part_path, _, name = path.rpartition(".")
    part = find_option(config, part_path)
    kinds = [] if part is None else [k for k in choices(part.hint).values() if k]
    having = [k.__name__ for k in kinds if name in hints(k)]
    if part is None or not having:
        return ""
    now = "None" if part.value is None else type(part.value).__name__
    others = f" ({', '.join(having)} have it)" if len(having) > 1 else ""
    return (
        f": config.{part_path} is {now}. Choose first "
        f"--config.{part_path}={having[0]}{others}."
    )


def _suggestion(path: str, known: Iterable[str]) -> str:
    """Suggests an option, by its whole path or by its last part."""
    by_last = {path.rpartition(".")[2]: path for path in reversed([*known])}
    last = closest(path.rpartition(".")[2], by_last)
    found = closest(path, known) or by_last.get(last or "")
    return f" Did you mean '{found}'?" if found else ""
