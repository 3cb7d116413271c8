"""Records that are written as text: their fields."""

import json
from typing import Any

from jaxcls.data.notes import explaining
from jaxcls.errors import UserError, did_you_mean


def json_fields(text: str | bytes, where: str) -> dict[str, Any]:
    """Returns the fields of an object in JSON.

    Raises:
      UserError: if it is something else, naming `where`.
    """
    with explaining(f"{where} is not JSON", (ValueError, RecursionError)):
        value = json.loads(text)
        if "\\u" in str(text):
            # Refuses the half of a pair ("\\ud800"), which is no text and no file's name.
            json.dumps(value, ensure_ascii=False).encode()
    if not isinstance(value, dict):
        raise UserError(f'{where} is not an object such as {{"label": "cat"}}.')
    return value


def field_of(fields: dict[str, Any], name: str, option: str, where: str) -> Any:
    """Returns the value of a record's field that an option names.

    Raises:
      UserError: if the record has no such field.
    """
    if name not in fields:
        known = [field for field in fields if field]
        raise UserError(
            f"{where} has no '{name}'.{did_you_mean(name, known)} It has "
            f"{', '.join(known) or 'none'}; set data.{option} to one of them."
        )
    return fields[name]
