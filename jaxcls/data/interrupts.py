"""Starting processes in peace: a signal that comes meanwhile waits until they have started."""

import contextlib
import multiprocessing.resource_tracker
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Delays signals to the end of the block, and gives processes started inside a mask that
    holds them back for good.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group, but what to do about them
    is up to the process that started the others.
    """
    came: list[int] = []
    handlers = {}
    # The mask below is that of this thread: the signal may reach another one (a BLAS library
    # has some), and Python would still run its handler here, between any two lines.
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) is not None:
                handlers[number] = signal.signal(
                    number, lambda number, _: came.append(number)
                )
    # Started first, because where it is started it lets the signals through again.
    multiprocessing.resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)
