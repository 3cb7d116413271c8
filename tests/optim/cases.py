"""Several cases in one program."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def named(case: str) -> Iterator[None]:
    """An error inside says which case it is of."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the case {case!r}")
        raise
