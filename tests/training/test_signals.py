"""Signals that come at unlucky moments."""

import os
import signal

import pytest

from jaxcls.training.signals import FORCED_EXIT, StopSignal


class LeftError(Exception):
    """The process would have ended."""


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is told, by a process that does not really end."""
    told: list[bytes] = []

    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(os, "write", lambda _, text: told.append(text))
    monkeypatch.setattr(os, "_exit", leave)
    return told


def test_a_second_ctrl_c_while_the_first_is_told_leaves_at_once(
    monkeypatch: pytest.MonkeyPatch, written: list[bytes]
) -> None:
    stop = StopSignal()

    def interrupted(_: int, text: bytes) -> None:
        written.append(text)
        if len(written) == 1:
            stop._handle(signal.SIGINT, None)

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(LeftError, match=str(FORCED_EXIT)):
        stop._handle(signal.SIGINT, None)
    assert b"leaving at once" in written[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_whose_stderr_nobody_reads(
    monkeypatch: pytest.MonkeyPatch, written: list[bytes], number: signal.Signals
) -> None:
    def closed(_: int, text: bytes) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", closed)
    stop = StopSignal()
    stop._handle(number, None)
    assert stop() and stop.name == number.name


def test_ctrl_c_after_sigterm_is_a_first_one(written: list[bytes]) -> None:
    stop = StopSignal()
    stop._handle(signal.SIGTERM, None)
    stop._handle(signal.SIGTERM, None)
    stop._handle(signal.SIGINT, None)
    assert [text.split()[0] for text in written] == [b"SIGTERM:", b"SIGINT:"]
    with pytest.raises(LeftError):
        stop._handle(signal.SIGINT, None)
