"""What a person did wrong, said so that they can mend it."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the command, the config or the files that it names.

    The commands print the message as one line and exit with code 2, without a traceback:
    the message must say what is wrong with the actual value, what was expected, and the
    way out. Names of files in it may hold any bytes: see printable().
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns text with the bytes of file names that are no UTF-8 written out: "caf\\xe9.jpg".

    Python keeps such bytes as lone surrogates, which could not be printed.
    """
    escaped = re.sub(
        "[\udc80-\udcff]", lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text
    )
    return escaped.encode("utf-8", "backslashreplace").decode()


class Diverged(ArithmeticError):
    """Too many steps in a row were not finite; the last checkpoint is."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that `name` may be a misspelling of, or None."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return close[0] if close else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the known name closest to `name`, or ""."""
    close = closest(name, known)
    return "" if close is None else f" Did you mean '{close}'?"
