"""Moves batches to the devices ahead of time, and measures how long these wait for data."""

import contextlib
import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxcls.data.loader import Batch

Put = Callable[[Batch], dict[str, jax.Array]]
"""Starts moving a batch to the devices."""


def in_calls(batches: Iterator[Batch], lengths: Iterable[int]) -> Iterator[Batch]:
    """Yields what each call of the train step takes: the next batch as it is for a call of one
    step, arrays [steps, rows, ...] for one of several.

    Args:
      batches: of the steps, arrays [rows, ...].
      lengths: steps in each call, 1 or more.
    """
    for length in lengths:
        group = list(itertools.islice(batches, length))
        if length == 1:
            yield from group
        else:
            names = group[0].keys()
            yield {name: np.stack([batch[name] for batch in group]) for name in names}


class DevicePrefetch:
    """Moves batches to the devices in a thread of its own, `depth` ahead of the reader.

    Use it in a `with` statement: leaving it ends the thread.
    """

    def __init__(self, loader: Iterator[Batch], put: Put, depth: int):
        """Starts moving.

        Args:
          loader: gives this host's rows of each batch.
          put: moves one to the devices.
          depth: batches that wait on the devices, 1 or more; one more is on its way.
        """
        self.waited = 0.0
        """Seconds that the devices stood idle, waiting for data."""
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._closed = threading.Event()
        fill = functools.partial(self._fill, loader, put)
        self._thread = threading.Thread(target=fill, daemon=True)
        self._thread.start()

    def _fill(self, loader: Iterator[Batch], put: Put) -> None:
        last: BaseException = StopIteration()
        try:
            for batch in loader:
                self._ready.put(put(batch))
                if self._closed.is_set():
                    return
        except BaseException as error:  # handed to the reader
            last = error
        self._ready.put(last)

    def next(
        self, devices_idle: Callable[[], bool], *, count: bool = True
    ) -> dict[str, jax.Array]:
        """Returns the next batch.

        Waiting counts as such only from the moment the devices are idle: before that they
        still work on what they were given.

        Args:
          devices_idle: whether the devices have done all that was dispatched.
          count: whether waiting counts now; False where no clock of training runs.

        Raises:
          StopIteration: after the last batch.
          Exception: what the loader raised.
        """
        try:
            item = self._ready.get_nowait()
        except queue.Empty:
            item, waited = self._wait(devices_idle)
            self.waited += waited if count else 0.0
        if isinstance(item, BaseException):
            raise item
        return item

    def _wait(self, devices_idle: Callable[[], bool]) -> tuple[Any, float]:
        """Returns the next item and the seconds that the devices were idle for it."""
        while not devices_idle():
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=0.0005), 0.0
        idle_since = time.perf_counter()
        return self._ready.get(), time.perf_counter() - idle_since

    def __enter__(self) -> "DevicePrefetch":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # makes room for what it puts last
                self._ready.get(timeout=0.01)
        self._thread.join()
