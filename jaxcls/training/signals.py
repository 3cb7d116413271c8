"""SIGTERM and Ctrl-C: finish the step, save, leave with a code that means "run me again"."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

FORCED_EXIT = 130  # 128 + SIGINT, a shell's code for a process that Ctrl-C ended


class StopSignal:
    """While entered, turns SIGTERM and SIGINT into a flag that the loop looks at.

    A second Ctrl-C leaves at once. Outside the main thread, where Python allows no handlers,
    the flag stays unset.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        """The signal that came, or None."""
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.name is not None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.name == "SIGINT":
            _tell(b"leaving at once: what is not in a checkpoint is lost.")
            os._exit(FORCED_EXIT)
        # The name first: the next signal may come while this one is told.
        if number == signal.SIGINT:
            self.name = "SIGINT"
            _tell(b"SIGINT: saving after this step; Ctrl-C again leaves at once.")
        elif self.name is None:
            self.name = "SIGTERM"
            _tell(b"SIGTERM: saving after this step.")


def _tell(sentence: bytes) -> None:
    """Writes a line to stderr, if anybody reads it. By its descriptor: print is not safe in a
    signal handler, and sys.stderr may be an object without one."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n" + sentence + b"\n")
