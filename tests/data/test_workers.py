"""Signals wait while processes start."""

import os
import signal
import threading
import time

import pytest

from jaxcls.data.workers import held_back


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
