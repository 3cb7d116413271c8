"""A config as JSON, in a run's folder and in its checkpoints."""

import dataclasses
import functools
import importlib
import operator
from typing import Any

from jaxcls.duration import Duration
from jaxcls.errors import UserError

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
"""Options (or nodes) that do not change the result of a run, so that a run may be continued
with other values."""


def to_dict(value: Any) -> Any:
    """Turns a config, or any part of it, into what JSON can hold.

    A node becomes a dict with the import path of its class under "type", a function (or a
    functools.partial of keywords) one with its import path under "function".
    """
    if dataclasses.is_dataclass(value):
        kind = type(value)
        fields = {
            field.name: to_dict(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, Duration):
        path = f"{Duration.__module__}:{Duration.__qualname__}"
        return {"type": path, "value": value.value, "unit": value.unit}
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
      UserError: if a class can no longer be imported or its fields have changed.
    """
    if isinstance(value, list):
        return tuple(from_dict(element) for element in value)
    if not isinstance(value, dict):
        return value
    if "function" in value:
        function = _imported(value["function"])
        keywords = {key: from_dict(v) for key, v in value.get("keywords", {}).items()}
        return functools.partial(function, **keywords) if keywords else function
    fields = {key: from_dict(field) for key, field in value.items() if key != "type"}
    try:
        kind = _imported(value["type"])
        in_configs = dataclasses.is_dataclass(kind) or kind is Duration
        if not in_configs:
            raise TypeError("it is not a part of a config")
        return kind(**fields)
    except (ImportError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the saved config names {value.get('type')!r}, which cannot be rebuilt here "
            f"({error}): use the version of jaxcls, and of your own modules, that saved it."
        ) from None


def _imported(path: str) -> Any:
    """Returns what "module:name" names."""
    module, _, name = path.partition(":")
    return operator.attrgetter(name)(importlib.import_module(module))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns a line for each option that differs between two configs as to_dict() gives them,
    leaving out those of MAY_CHANGE_ON_RESUME."""
    before, after = _flatten(old), _flatten(new)
    # Where evaluations decide about the end of the run, they do change its result.
    decides = ("evaluation.every",) if new.get("stop_early") else ()
    lines = []
    for name in dict.fromkeys([*before, *after]):
        may_change = any(
            name == may or name.startswith(f"{may}.") for may in MAY_CHANGE_ON_RESUME
        )
        if may_change and not name.startswith(decides):
            continue
        was, now = before.get(name, "absent"), after.get(name, "absent")
        if was != now:
            lines.append(f"{name}: {was} -> {now}")
    return lines


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts = [
            (f"{path}.{key}" if path else key, part) for key, part in value.items()
        ]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {path: value}
    return {
        name: leaf for key, part in parts for name, leaf in _flatten(part, key).items()
    }
