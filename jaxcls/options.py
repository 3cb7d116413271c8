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
import functools
import re
import types
import typing
from collections.abc import Iterator
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


@functools.cache
def hints(kind: Any) -> dict[str, Any]:
    """Returns the annotations of a dataclass with their constraints, field -> annotation."""
    return typing.get_type_hints(kind, include_extras=True)


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
        (
            join(place, field.name),
            hints(type(node))[field.name],
            getattr(node, field.name),
        )
        for place, node in nodes(root, path)
        for field in dataclasses.fields(node)
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
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        _check_range(name, next(m for m in arguments if allows(m, value)), value)
    elif origin is tuple:
        members = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        for index, (member, element) in enumerate(zip(members, value, strict=True)):
            _check_range(f"{name}[{index}]", member, element)
    elif origin is Annotated:
        _check_range(name, arguments[0], value)
        constraints = list(_constraints(hint))
        if not all(_satisfies(constraint, value) for constraint in constraints):
            wanted = range_name(constraints)
            must = "lie in" if ".." in wanted else "be"
            raise UserError(f"{name} must {must} {wanted}, not {value!r}.")


def _constraints(hint: Any) -> Iterator[Any]:
    """Yields the constraints of an annotation, an Interval as its two ends."""
    for constraint in hint.__metadata__:
        if isinstance(constraint, Interval):
            yield from constraint
        else:
            yield constraint


def _satisfies(constraint: Any, value: Any) -> bool:
    match constraint:
        case Gt(bound):
            return value > bound
        case Ge(bound):
            return value >= bound
        case Lt(bound):
            return value < bound
        case Le(bound):
            return value <= bound
        case MinLen(least):
            return len(value) >= least
        case MultipleOf(unit):
            return value % unit == 0
        case Ascending():
            return list(value) == sorted(value)
        case Regex():
            try:
                re.compile(value)
            except re.error:
                return False
            return value != ""
    raise TypeError(f"{constraint!r} is no constraint that this file knows")


def range_name(constraints: list[Any]) -> str:
    """Returns constraints as a person would write them: '0..1, below 1', '1 or more'."""
    low: Any = None
    high: Any = None
    above = below = None
    words: list[str] = []
    for constraint in constraints:
        match constraint:
            case Gt(bound):
                low, above = bound, f"above {bound}"
            case Ge(bound):
                low = bound
            case Lt(bound):
                high, below = bound, f"below {bound}"
            case Le(bound):
                high = bound
            case MinLen(least):
                words.append("not empty" if least == 1 else f"{least} or more values")
            case MultipleOf(unit):
                words.append("whole" if unit == 1 else f"a multiple of {unit}")
            case Ascending():
                words.append("in ascending order")
            case Regex():
                words.append("a regular expression that is not empty")
    if low is not None and high is not None:
        words = [f"{low}..{high}", *filter(None, (above, below)), *words]
    elif low is not None:
        words.insert(0, above or f"{low} or more")
    elif high is not None:
        words.insert(0, below or f"at most {high}")
    return ", ".join(words)


def type_name(hint: Any) -> str:
    """Returns a type as a person would write it: 'int', 'float above 0 or None', '"a" or "b"'."""
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is Annotated:
        wanted = range_name(list(_constraints(hint)))
        kind = type_name(arguments[0])
        # A regular expression is a text, and says so itself.
        return f"{kind} {wanted}" if kind != "str" else wanted
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in arguments)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        inner = ", ".join("..." if p is ... else type_name(p) for p in arguments)
        return f"a tuple ({inner})"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)
