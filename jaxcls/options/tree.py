"""The options of a tree of dataclasses: their paths, and the check of their values."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from jaxcls.errors import UserError
from jaxcls.options.ranges import allows, bare, members, range_name, type_name, within


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
    if not within(hint, value):
        wanted = range_name(hint)
        must = "lie in" if ".." in wanted else "be"
        raise UserError(f"{name} must {must} {wanted}, not {value!r}.")
