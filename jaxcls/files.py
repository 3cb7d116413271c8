"""Files that appear whole or not at all, and folders that one process holds."""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from jaxcls.errors import UserError

UNFINISHED = ".part"
"""What the names of files end with while they are being written."""


@contextlib.contextmanager
def replacing(
    path: Path,
    explaining: Callable[[Path], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Path]:
    """Yields a temporary path beside `path`, for a file that is to take its place.

    In the end, what was written there replaces `path`, whole and on the disk. If anything fails,
    it is removed.

    Args:
      path: the file to replace or to make.
      explaining: encloses the last step; may turn its OSError into a sentence.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield temporary
        with explaining(path):
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(descriptor: int, taken: str) -> Iterator[None]:
    """Holds a lock on an open folder, which ends with the process however it ends, and closes it
    in the end. Where the file system has no locks, it holds nothing.

    Args:
      descriptor: of the folder.
      taken: what to say where another process holds it.

    Raises:
      UserError: if another process holds it.
    """
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(taken) from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(descriptor)
