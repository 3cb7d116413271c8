"""Which values a type hint allows."""

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
