"""A config as JSON, in a run's folder and in its checkpoints.

Our own nodes are saved by the names of their classes, so that files may move. What is a user's
own is saved by its import path.
"""

import dataclasses
import functools
import importlib
import operator
from typing import Any

from jaxcls.config.kinds import is_ours, node_classes
from jaxcls.duration import Duration
from jaxcls.errors import UserError, did_you_mean

MAY_CHANGE_ON_RESUME = (
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.placement",
    "data.cache_mb",
    # These decide whether a bad image ends the run, not what is learned from the others.
    "data.on_bad_image",
    "data.max_bad_share",
    "steps_per_call",
    "devices",
    "evaluation",
    "checkpoint",
    "log",
)
"""Options, or nodes, that do not change the result of a run, so that it may continue with other
values."""


def to_dict(value: Any) -> Any:
    """Turns a config, or any part of it, into what JSON can hold.

    A node becomes a dict with its class under "type": "AdamW", or "module:Class" for a user's
    own. A function, or a functools.partial of keywords, becomes one with its import path under
    "function".
    """
    if dataclasses.is_dataclass(value):
        kind = type(value)
        path = f"{kind.__module__}:{kind.__qualname__}"
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: to_dict(getattr(value, name)) for name in names}
        return {"type": kind.__name__ if kind in node_classes() else path, **fields}
    if isinstance(value, Duration):
        return {"type": "Duration", "value": value.value, "unit": value.unit}
    if isinstance(value, tuple):
        return [to_dict(element) for element in value]
    if isinstance(value, functools.partial):
        keywords = {name: to_dict(given) for name, given in value.keywords.items()}
        return {**to_dict(value.func), "keywords": keywords}
    if callable(value):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    return value


def from_dict(value: Any) -> Any:
    """Rebuilds what to_dict() made.

    Raises:
      UserError: for a class that is unknown or has other fields, or what cannot be imported.
    """
    if isinstance(value, list):
        return tuple(from_dict(element) for element in value)
    if not isinstance(value, dict):
        return value
    is_function = "function" in value
    name = str(value.get("function" if is_function else "type"))
    fields = {key: part for key, part in value.items() if key != "type"}
    given = value.get("keywords", {}) if is_function else fields
    parts = {key: from_dict(part) for key, part in given.items()}
    try:
        if not is_function:
            return _node_class(name)(**parts)
        return functools.partial(_imported(name), **parts) if parts else _imported(name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"the saved config names {name!r}, which cannot be rebuilt here ({error}): use the "
            "version of jaxcls, and of your own modules, that saved it."
        ) from None


def _node_class(name: str) -> Any:
    """Returns the class that to_dict() named.

    Of a path within this package, as earlier versions saved it, the class name decides, and
    nothing is imported.
    """
    module, _, class_name = name.rpartition(":")
    if module and not is_ours(module):
        kind = _imported(name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise TypeError("it is not a part of a config")
        return kind
    ours = {kind.__name__: kind for kind in node_classes()}
    if class_name not in ours:
        raise TypeError(f"there is no such class.{did_you_mean(class_name, ours)}")
    return ours[class_name]


def _imported(path: str) -> Any:
    """Returns what "module:name" names."""
    module, _, name = path.partition(":")
    return operator.attrgetter(name)(importlib.import_module(module))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns a line for each option that differs between two configs as to_dict() gives them,
    leaving out those of MAY_CHANGE_ON_RESUME."""
    before, after = _flatten(old), _flatten(new)
    may_change = tuple(f"{name}." for name in MAY_CHANGE_ON_RESUME)
    # Where evaluations decide about the end of the run, they do change its result.
    decides = ("evaluation.every",) if new.get("stop_early") else ()
    lines = []
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name, "absent"), after.get(name, "absent")
        counts = name.startswith(decides) or not f"{name}.".startswith(may_change)
        if was != now and counts:
            lines.append(f"{name}: {was} -> {now}")
    return lines


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts and lists, path -> value."""
    if isinstance(value, dict):
        parts = {f"{path}.{key}" if path else key: part for key, part in value.items()}
    elif isinstance(value, list):
        parts = {f"{path}[{index}]": part for index, part in enumerate(value)}
    else:
        return {path: value}
    leaves: dict[str, Any] = {}
    for key, part in parts.items():
        leaves |= _flatten(part, key)
    return leaves
