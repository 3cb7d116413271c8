"""The options of a tree of dataclasses: where they are, and which values they may have.

An option states its type and its range in its annotation; the constraints are those of
annotated-types, and the two of this file:

    rho: Annotated[float, Gt(0)] = 0.05
    p: Share = 0.5
    sigma: Annotated[tuple[AboveZero, AboveZero], Ascending()] = (0.1, 2.0)
    devices: Count | None = None

check() compares every value of a tree with them. A dataclass needs a `validate` method only for
the rules between its options.
"""

import dataclasses
import operator
import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typeguard
from annotated_types import BaseMetadata, Ge, Gt, Interval, Le, Lt, MinLen, MultipleOf

from jaxcls.errors import UserError


@dataclasses.dataclass(frozen=True)
class Ascending(BaseMetadata):
    """A tuple's values must not fall."""


@dataclasses.dataclass(frozen=True)
class Regex(BaseMetadata):
    """A text must be a regular expression of Python's, and not empty."""


Share = Annotated[float, Interval(ge=0, le=1)]
ShareAboveZero = Annotated[float, Interval(gt=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
AboveZero = Annotated[float, Gt(0)]
ZeroOrMore = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
Pattern = Annotated[str, Regex()]


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, dataclass) for every dataclass of a tree, the root first with its `path`."""
    yield path, node
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        below = join(path, field.name)
        if dataclasses.is_dataclass(value):
            yield from nodes(value, below)
        elif isinstance(value, tuple):
            for index, element in enumerate(value):
                if dataclasses.is_dataclass(element):
                    yield from nodes(element, f"{below}[{index}]")


def options(root: Any) -> dict[str, tuple[Any, Any]]:
    """Returns every option that is not itself a dataclass: path -> (its owner, its value)."""
    found = {}
    for path, node in nodes(root):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            elements = value if isinstance(value, tuple) else (value,)
            if not any(dataclasses.is_dataclass(element) for element in elements):
                found[join(path, field.name)] = (node, value)
    return found


def join(path: str, name: str) -> str:
    """Returns the path of an option of the dataclass at `path`."""
    return f"{path}.{name}" if path else name


def hints(kind: type) -> dict[str, Any]:
    """Returns the options of a dataclass, name -> annotation with its constraints."""
    known = typing.get_type_hints(kind, include_extras=True)
    return {field.name: known[field.name] for field in dataclasses.fields(kind)}


def members(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a union; the annotation alone if it is none."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def bare(hint: Any) -> Any:
    """Returns an annotation without its constraints."""
    return hint.__origin__ if typing.get_origin(hint) is Annotated else hint


def check(root: Any, path: str | None = None) -> None:
    """Checks a tree of dataclasses: types, then ranges, then the rules between options.

    Args:
      root: the dataclass at the top.
      path: names it in messages; None takes the name of its class.

    Raises:
      UserError: naming the option, its value, and the values that it may have.
    """
    path = type(root).__name__ if path is None else path
    fields = [
        (join(place, name), hint, getattr(node, name))
        for place, node in nodes(root, path)
        for name, hint in hints(type(node)).items()
    ]
    for name, hint, value in fields:
        if not allows(hint, value):
            raise UserError(
                f"{name} is {value!r}, a {type(value).__name__}; expected {type_name(hint)}."
            )
    for name, hint, value in fields:
        _check_representable(name, value)
        _check_range(name, hint, value)
    for _, node in nodes(root, path):
        if hasattr(node, "validate"):
            node.validate()


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


def _check_representable(name: str, value: Any) -> None:
    """Refuses numbers that the devices could not hold: they compute in int32 and float32."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and not -(2**31) <= number < 2**32:
            raise UserError(f"{name} of {str(number)[:40]} is beyond every range.")
        if isinstance(number, float) and not abs(number) < 1e30:
            raise UserError(f"{name} must be a number of sensible size, not {number}.")


def _check_range(name: str, hint: Any, value: Any) -> None:
    """Compares a value, and every element of a tuple, with the constraints of its annotation.

    The value must be of the annotation's type.
    """
    if len(members(hint)) > 1:
        hint = next(member for member in members(hint) if allows(member, value))
    if typing.get_origin(bare(hint)) is tuple:
        elements = typing.get_args(bare(hint))
        elements = elements[:1] * len(value) if elements[-1] is ... else elements
        for index, (element, part) in enumerate(zip(elements, value, strict=True)):
            _check_range(f"{name}[{index}]", element, part)
    for constraint in _constraints(hint):
        test, _ = _CONSTRAINTS[type(constraint)]
        if not test(value, *dataclasses.astuple(constraint)):
            wanted = range_name(hint)
            must = "lie in" if ".." in wanted else "be"
            raise UserError(f"{name} must {must} {wanted}, not {value!r}.")


def _constraints(hint: Any) -> list[Any]:
    """Returns the constraints of an annotation, an Interval as its two ends."""
    constraints: list[Any] = []
    for constraint in getattr(hint, "__metadata__", ()):
        is_interval = isinstance(constraint, Interval)
        constraints += constraint if is_interval else (constraint,)
    return constraints


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
        if ".." in wanted:
            return f"{kind} in {wanted}"
        if wanted[0] in "-0123456789":
            return f"{kind} of {wanted}"
        # "float above 0", but "str, not empty"
        is_end = wanted.startswith(("above", "below", "at most"))
        return f"{kind} {wanted}" if is_end else f"{kind}, {wanted}"
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
