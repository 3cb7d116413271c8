"""The classes that a config is made of, and those that an option chooses among."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from jaxcls.config.tree import Config
from jaxcls.duration import Duration
from jaxcls.options import hints, members


def choices(hint: Any) -> dict[str, type | None]:
    """Returns the classes that an option of a type chooses among, name -> class.

    "None" -> None is one of them where the part may be absent. {} if there is no choice.
    """
    kinds: dict[str, type | None] = {
        kind.__name__: kind
        for member in members(hint)
        if isinstance(member, type) and dataclasses.is_dataclass(member)
        for kind in _concrete(member)
    }
    if kinds and type(None) in members(hint):
        kinds["None"] = None
    return kinds if len(kinds) > 1 else {}


def _concrete(kind: type) -> list[type]:
    """Returns a class and all below it, without those that are abstract or private."""
    children: list[type] = kind.__subclasses__()
    below = [found for child in children for found in _concrete(child)]
    hidden = inspect.isabstract(kind) or kind.__name__.startswith("_")
    return below if hidden else [kind, *below]


@functools.cache
def node_classes() -> frozenset[type]:
    """Returns the classes of this package that a config may hold: those which the annotations
    of Config and of its nodes name, their subclasses, and Duration."""
    found: set[type] = {Duration}
    waiting: list[type] = [Config]
    while waiting:
        kind = waiting.pop()
        if kind not in found and is_ours(kind.__module__):
            found.add(kind)
            waiting += kind.__subclasses__()
            for hint in hints(kind).values():
                waiting += _dataclasses_in(hint)
    return frozenset(found)


def is_ours(module: str) -> bool:
    """Whether a module belongs to this package."""
    return module.partition(".")[0] == "jaxcls"


def _dataclasses_in(hint: Any) -> Iterator[type]:
    """Yields the dataclasses that an annotation names."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in typing.get_args(hint):
        yield from _dataclasses_in(argument)
