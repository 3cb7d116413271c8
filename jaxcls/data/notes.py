"""What the user is told about the data: notes while it is read, and what its errors share."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence

from jaxcls.errors import UserError, printable


@functools.cache
def note(message: str) -> None:
    """Tells the user what was found in the data; training goes on.

    Says the same thing only once a process: often, both splits find it.
    """
    print(f"note: {printable(message)}", file=sys.stderr, flush=True)


def counted(number: int, one: str, several: str = "") -> str:
    """Returns "1 file", "2,000 files"; the plural is that with an "s" where none is given."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def enumerated(names: Sequence[str], limit: int = 5) -> str:
    """Returns "a, b, c" or "a, b, ... (12 in all)"."""
    some = ", ".join(itertools.islice(names, limit))
    return some if len(names) <= limit else f"{some}, ... ({len(names)} in all)"


@contextlib.contextmanager
def explaining(
    what: str, kinds: tuple[type[Exception], ...] = (Exception,), advice: str = ""
) -> Iterator[None]:
    """Turns errors of some kinds into a UserError: "WHAT (the reason)ADVICE."

    Raises:
      UserError: in place of such an error.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = getattr(error, "strerror", None) or told
        raise UserError(f"{what} ({reason}){advice}.") from error


def require(option: str, value: str, what: str) -> None:
    """Raises UserError if a path or name that has no default is not set."""
    if not value:
        raise UserError(
            f"data.{option} is not set: give {what} with --config.data.{option}=..."
        )
