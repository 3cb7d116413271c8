"""The table of a recipe's options that --help prints."""

import docstring_parser

from jaxcls.config.kinds import choices
from jaxcls.config.overrides import NOT_GIVEN, find_option
from jaxcls.config.tree import Config
from jaxcls.duration import Duration
from jaxcls.options import hints, join, nodes, options, type_name


def describe(config: Config, location: str) -> str:
    """Returns a table of a recipe's options.

    Each has its name, value, type and meaning, and the kinds where it chooses among some.
    """
    lines = [f"options of {location}, with their values:"]
    known = options(config)
    for node_path, node in nodes(config):
        about = " ".join((type(node).__doc__ or "").partition("\n\n")[0].split())
        heading = f"{node_path}: " if node_path else ""
        lines += ["", f"{heading}{type(node).__name__}. {about}"]
        part = find_option(config, node_path)
        if part is not None and (kinds := choices(part.hint)):
            lines.append(f"  kinds: {', '.join(kinds)} (--config.{node_path}=KIND)")
        for field, hint in hints(type(node)).items():
            path = join(node_path, field)
            if path in known:
                value = _as_typed(known[path][1])
                lines.append(f"  --config.{path}={value}  ({type_name(hint)})")
                lines.append(f"      {meaning(type(node), field)}")
                if kinds := choices(hint):
                    lines.append(f"      kinds: {', '.join(kinds)}")
    return "\n".join(lines)


def _as_typed(value: object) -> str:
    """Returns an option's value as a person types it, "..." if it is still to be given."""
    if value is NOT_GIVEN:
        return "..."
    if isinstance(value, Duration):
        return f'"{value}"'
    if isinstance(value, tuple) and any(isinstance(v, Duration) for v in value):
        return f'"{tuple(str(v) for v in value)}"'
    return repr(value)


def meaning(kind: type, field: str) -> str:
    """Returns what a field means, from the Attributes of the docstring that declares it.

    Raises:
      KeyError: if no class declares it, which a test rules out.
    """
    for declaring in kind.__mro__:
        for parameter in docstring_parser.parse(declaring.__doc__ or "").params:
            if parameter.arg_name == field and parameter.description:
                return " ".join(parameter.description.split())
    raise KeyError(f"{kind.__name__}.{field} has no line under Attributes")
