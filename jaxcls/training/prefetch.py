"""Batches on the devices before they are asked for, and an honest account of waiting."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcls.parallel import put_batch


class DevicePrefetch:
    """Moves batches to the devices in a thread of its own, `depth` ahead of the reader.

    Use it in a `with` statement: leaving it ends the thread.
    """

    def __init__(self, loader: Iterator[dict[str, np.ndarray]], mesh: Mesh, depth: int):
        """Starts moving.

        Args:
          loader: gives this host's rows of each batch.
          mesh: the devices.
          depth: batches that wait on the devices, 1 or more.
        """
        self.waited = 0.0
        """Seconds in which the devices had nothing to do for want of data."""
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(loader, mesh), daemon=True
        )
        self._thread.start()

    def _fill(self, loader: Iterator[dict[str, np.ndarray]], mesh: Mesh) -> None:
        try:
            for batch in loader:
                if not self._put(put_batch(mesh, batch)):
                    return
            self._put(StopIteration())
        except BaseException as error:  # handed to the reader
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def next(self, devices_idle: Callable[[], bool]) -> dict[str, jax.Array]:
        """Returns the next batch.

        Waiting counts as such only from the moment the devices are idle: before that they
        still work on what they were given.

        Args:
          devices_idle: whether the devices have done all that was dispatched.

        Raises:
          StopIteration: after the last batch.
          Exception: what the loader raised.
        """
        idle_since: float | None = None
        while True:
            try:
                item = self._ready.get(timeout=0.001)
                break
            except queue.Empty:
                if idle_since is None and devices_idle():
                    idle_since = time.perf_counter()
        if idle_since is not None:
            self.waited += time.perf_counter() - idle_since
        if isinstance(item, BaseException):
            raise item
        return item

    def __enter__(self) -> "DevicePrefetch":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._thread.join()
