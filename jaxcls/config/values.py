"""Reads the value of an option from what a person typed."""

import ast
import contextlib
import typing
from collections.abc import Iterator
from typing import Any

from jaxcls.duration import Duration
from jaxcls.errors import UserError, did_you_mean
from jaxcls.options import allows, bare, members, type_name

WORDS = {"none": None, "true": True, "false": False}


def parse_value(text: str, hint: Any, name: str) -> Any:
    """Reads a text as a value of a type. Does not check the range of the value.

    Args:
      text: for example "3e-4", "None", "(0.8, 0.95)", "20 epochs".
      hint: the annotation of the option.
      name: of the option, for messages.

    Raises:
      UserError: if the text cannot be read as a value of the type.
    """
    for reading in _readings(text):
        if allows(hint, reading):
            return reading
    raise UserError(f"{name}{_objection(text, hint)}")


def _readings(text: str) -> Iterator[Any]:
    """Yields all that a text may mean, the text itself last."""
    if text.lower() in WORDS:
        yield WORDS[text.lower()]
    with contextlib.suppress(ValueError):
        yield float(text)
        yield int(text)
    with contextlib.suppress(ValueError, OverflowError):
        if (number := float(text)) == int(number):  # "1e3"
            yield int(number)
    with contextlib.suppress(UserError):
        yield Duration.parse(text)
    if (elements := _elements(text)) is not None:
        yield tuple(float(e) if type(e) is int else e for e in elements)
        yield elements
        with contextlib.suppress(UserError, TypeError):
            yield tuple(Duration.parse(element) for element in elements)
    yield text


def _elements(text: str) -> tuple[Any, ...] | None:
    """Returns the elements of a text like "(1, 2)", None for any other text."""
    try:
        elements = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return None
    return tuple(elements) if isinstance(elements, tuple | list) else None


def _objection(text: str, hint: Any) -> str:
    """Returns what is wrong with a text that cannot be read as a value of a type."""
    if not can_be_typed(hint):
        emptied = "; '()' makes it empty" if allows(hint, ()) else ""
        return f": this option can only be set in the recipe{emptied}."
    wanted = [bare(member) for member in members(hint) if member is not type(None)]
    if len(wanted) == 1 and typing.get_origin(wanted[0]) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(wanted[0])]
        suggestion = did_you_mean(text, choices)
        return f": '{text}' is not one of {', '.join(choices)}.{suggestion}"
    durations = [text] if Duration in wanted else []
    if Duration in typing.get_args(wanted[0]):
        durations = [str(element) for element in _elements(text) or ()]
    for duration in durations:
        try:
            Duration.parse(duration)
        except UserError as error:
            return f": {error}"
    return f" is {text!r}; expected {type_name(hint)}."


def can_be_typed(hint: Any) -> bool:
    """Whether a text can be read as a value of a type, other than an empty tuple."""
    plain = {bool, int, float, str, Duration, type(None), ...}
    for member in map(bare, members(hint)):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        elements = arguments if origin is tuple else (member,)
        if origin is typing.Literal or plain.issuperset(map(bare, elements)):
            return True
    return False
