"""What an annotation allows, and how a person would write it."""

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typeguard
from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt, MinLen, MultipleOf


@dataclasses.dataclass(frozen=True)
class Ascending(BaseMetadata):
    """A tuple's values must not fall."""


@dataclasses.dataclass(frozen=True)
class Regex(BaseMetadata):
    """A text must be a regular expression of Python's, and not empty."""


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return text != ""


_CONSTRAINTS: dict[type, tuple[Callable[..., bool], str]] = {
    Gt: (operator.gt, "above {}"),
    Ge: (operator.ge, "{} or more"),
    Lt: (operator.lt, "below {}"),
    Le: (operator.le, "at most {}"),
    MinLen: (lambda value, least: len(value) >= least, "{} or more values"),
    MultipleOf: (lambda value, unit: value % unit == 0, "a multiple of {}"),
    Ascending: (lambda value: list(value) == sorted(value), "in ascending order"),
    Regex: (_is_pattern, "a regular expression that is not empty"),
}
"""Constraint -> whether a value satisfies it, given its bound if it has one; and its words."""

_SHORT_WORDS = {MinLen(1): "not empty", MultipleOf(1): "whole"}


def members(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a union; the annotation alone if it is none."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def bare(hint: Any) -> Any:
    """Returns an annotation without its constraints."""
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def allows(hint: Any, value: Any) -> bool:
    """Whether a value, every element of it included, is of a type. An int is a float; a truth
    value, unlike in Python, is no number."""
    given = value if isinstance(value, tuple) else (value,)
    truths = hint is bool or bool in typing.get_args(hint)
    if not truths and any(isinstance(element, bool) for element in given):
        return False
    strategy = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        typeguard.check_type(value, hint, collection_check_strategy=strategy)
    except typeguard.TypeCheckError:
        return False
    return True


def _constraints(hint: Any) -> list[Any]:
    """Returns the constraints of an annotation, an Interval as its two ends."""
    constraints: list[Any] = []
    for constraint in getattr(hint, "__metadata__", ()):
        is_interval = isinstance(constraint, Interval)
        constraints += constraint if is_interval else (constraint,)
    return constraints


def within(hint: Any, value: Any) -> bool:
    """Whether a value of an annotation's type satisfies all constraints of the annotation; those
    of a tuple's elements are not looked at."""
    return all(
        _CONSTRAINTS[type(constraint)][0](value, *dataclasses.astuple(constraint))
        for constraint in _constraints(hint)
    )


def range_name(hint: Any) -> str:
    """Returns the range of an annotation as a person would write it: '0..1, below 1'."""
    constraints = _constraints(hint)
    words = [
        _SHORT_WORDS.get(c) or _CONSTRAINTS[type(c)][1].format(*dataclasses.astuple(c))
        for c in constraints
    ]
    match constraints:
        case [Gt(low) | Ge(low) as lower, Lt(high) | Le(high) as upper, *_]:
            above = words[:1] if isinstance(lower, Gt) else []
            below = words[1:2] if isinstance(upper, Lt) else []
            words = [f"{low}..{high}", *above, *below, *words[2:]]
    return ", ".join(words)


def type_name(hint: Any) -> str:
    """Returns a type as a person would write it: 'int', 'float above 0 or None', '"a" or "b"'."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Annotated:
        wanted, kind = range_name(hint), type_name(arguments[0])
        if Regex() in hint.__metadata__:  # a text, of course
            return wanted
        # "float in 0..1", "int of 1 or more", "float above 0", but "str, not empty"
        link = " in " if ".." in wanted else " of " if " or more" in wanted else ", "
        is_end = wanted.startswith(("above", "below", "at most"))
        return kind + (" " if is_end else link) + wanted
    if len(members(hint)) > 1:
        names = [type_name(member) for member in members(hint)]
        # "float above 0 or None", but "int of 1 or more, or None"
        outer = [re.sub(r"\(.*\)", "", name) for name in names]
        needs_comma = any(", " in name or " or more" in name for name in outer)
        return (", or " if needs_comma else " or ").join(names)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        inner = ", ".join("..." if p is ... else type_name(p) for p in arguments)
        return f"a tuple ({inner})"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)
