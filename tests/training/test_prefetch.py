"""Batches on the devices ahead of time: order, errors, and what counts as waiting."""

import functools
import itertools
import threading
import types
from collections.abc import Iterator

import numpy as np
import pytest

from jaxcls import parallel
from jaxcls.training import prefetch as prefetch_lib
from jaxcls.training.prefetch import DevicePrefetch, in_calls

Batch = dict[str, np.ndarray]


def put_on(devices: int) -> functools.partial:
    return functools.partial(parallel.put_batch, parallel.make_mesh(devices))


def batches(count: int) -> Iterator[Batch]:
    for index in range(count):
        yield {"image": np.full((8, 2), index)}


def test_batches_come_in_order_on_all_devices_and_end() -> None:
    with DevicePrefetch(batches(5), put_on(8), depth=2) as prefetch:
        seen = [prefetch.next(lambda: True)["image"] for _ in range(5)]
        with pytest.raises(StopIteration):
            prefetch.next(lambda: True)
    assert [int(image[0, 0]) for image in seen] == list(range(5))
    assert all(len(image.sharding.device_set) == 8 for image in seen)


def test_an_error_of_the_loader_reaches_the_reader() -> None:
    def broken() -> Iterator[Batch]:
        yield from batches(1)
        raise RuntimeError("record 17 cannot be read")

    with DevicePrefetch(broken(), put_on(1), depth=1) as prefetch:
        prefetch.next(lambda: True)
        with pytest.raises(RuntimeError, match="record 17"):
            prefetch.next(lambda: True)


@pytest.mark.parametrize(
    ("idle", "count", "waited"), [(True, True, 1), (True, False, 0), (False, True, 0)]
)
def test_waiting_counts_only_while_the_devices_are_idle(
    monkeypatch: pytest.MonkeyPatch, idle: bool, count: bool, waited: float
) -> None:
    asked = threading.Event()

    def late() -> Iterator[Batch]:
        assert asked.wait(60)
        yield from batches(1)

    def devices_idle() -> bool:
        asked.set()
        return idle

    # A second passes from one look at the clock to the next.
    clock = types.SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr(prefetch_lib, "time", clock)
    with DevicePrefetch(late(), put_on(1), depth=1) as prefetch:
        prefetch.next(devices_idle, count=count)
        assert prefetch.waited == waited


def test_waiting_counts_from_the_moment_the_devices_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()
    seconds = itertools.count()
    looks = iter([False, False, True])

    def late() -> Iterator[Batch]:
        assert asked.wait(60)
        yield from batches(1)

    def devices_idle() -> bool:
        idle = next(looks)
        if idle:
            asked.set()
        else:
            next(seconds)  # passes while they still work
        return idle

    clock = types.SimpleNamespace(perf_counter=seconds.__next__)
    monkeypatch.setattr(prefetch_lib, "time", clock)
    with DevicePrefetch(late(), put_on(1), depth=1) as prefetch:
        prefetch.next(devices_idle)
        assert prefetch.waited == 1


def test_leaving_early_ends_the_thread() -> None:
    with DevicePrefetch(batches(100), put_on(1), depth=1) as prefetch:
        prefetch.next(lambda: True)
    assert not prefetch._thread.is_alive()


def test_calls_take_their_batches_in_order() -> None:
    numbers = iter(
        {"image": np.full((8, 2), n), "label": np.arange(8) + n} for n in range(6)
    )
    one, three, last = in_calls(numbers, [1, 3, 1])
    assert one["image"].shape == last["image"].shape == (8, 2)
    assert three["image"].shape == (3, 8, 2) and three["label"].shape == (3, 8)
    assert (one["image"][0, 0], last["image"][0, 0]) == (0, 4)
    assert list(three["image"][:, 0, 0]) == list(three["label"][:, 0]) == [1, 2, 3]
