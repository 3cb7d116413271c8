"""Which values a type hint allows."""

import types
import typing
from typing import Any

import typeguard


def allows(hint: Any, value: Any) -> bool:
    """Whether a value, every element of it included, is of a type. An int is a float; a truth
    value, unlike in Python, is no number."""
    given = value if isinstance(value, tuple) else (value,)
    truths = hint is bool or bool in typing.get_args(hint)
    if not truths and any(isinstance(element, bool) for element in given):
        return False
    try:
        typeguard.check_type(
            value,
            hint,
            collection_check_strategy=typeguard.CollectionCheckStrategy.ALL_ITEMS,
        )
    except typeguard.TypeCheckError:
        return False
    return True


def type_name(hint: Any) -> str:
    """Returns a type as a person would write it: 'int', 'float or None', '"a" or "b"'."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = ", ".join(
            "..." if part is ... else type_name(part) for part in typing.get_args(hint)
        )
        return f"a tuple ({inner})"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)
