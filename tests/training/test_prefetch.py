"""Batches on the devices ahead of time: order, errors, and what counts as waiting."""

import time
from collections.abc import Iterator

import numpy as np
import pytest

from jaxcls import parallel
from jaxcls.training.prefetch import DevicePrefetch

Batch = dict[str, np.ndarray]


def batches(count: int, seconds: float = 0.0) -> Iterator[Batch]:
    for index in range(count):
        time.sleep(seconds)
        yield {"image": np.full((8, 2), index)}


def test_batches_come_in_order_on_all_devices_and_end() -> None:
    mesh = parallel.make_mesh(8)
    with DevicePrefetch(batches(5), mesh, depth=2) as prefetch:
        seen = [prefetch.next(lambda: True)["image"] for _ in range(5)]
        with pytest.raises(StopIteration):
            prefetch.next(lambda: True)
    assert [int(image[0, 0]) for image in seen] == list(range(5))
    assert all(len(image.sharding.device_set) == 8 for image in seen)


def test_an_error_of_the_loader_reaches_the_reader() -> None:
    def broken() -> Iterator[Batch]:
        yield from batches(1)
        raise RuntimeError("record 17 cannot be read")

    with DevicePrefetch(broken(), parallel.make_mesh(1), depth=1) as prefetch:
        prefetch.next(lambda: True)
        with pytest.raises(RuntimeError, match="record 17"):
            prefetch.next(lambda: True)


def test_waiting_counts_only_while_the_devices_are_idle() -> None:
    for idle, low, high in ((True, 0.15, 1.0), (False, 0.0, 0.0)):
        slow = batches(2, seconds=0.1)
        with DevicePrefetch(slow, parallel.make_mesh(1), depth=1) as prefetch:
            for _ in range(2):
                prefetch.next(lambda idle=idle: idle)
            assert low <= prefetch.waited <= high


def test_leaving_early_ends_the_thread() -> None:
    with DevicePrefetch(batches(100), parallel.make_mesh(1), depth=1) as prefetch:
        prefetch.next(lambda: True)
    assert not prefetch._thread.is_alive()
