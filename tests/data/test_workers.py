"""Signals wait while processes start."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from jaxcls.data.workers import held_back


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C interrupts, as it does not where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_even_where_another_thread_receives_it() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)  # lets every signal through
    other.start()
    finished = False
    try:
        with pytest.raises(KeyboardInterrupt), held_back(signal.SIGINT):
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline:
                pass  # here Python would run the handler
            finished = True
    finally:
        done.set()
        other.join()
    assert finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
