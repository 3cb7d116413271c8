"""Batches by step, for any number of hosts, threads and worker processes, and what is left
behind when loading ends: nothing."""

import contextlib
import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcls.data import ArraySource, order
from jaxcls.data.loader import (
    Batch,
    EvalBatches,
    Loader,
    TrainBatches,
    available_cores,
    load_rows,
)
from jaxcls.data.order import epoch_permutation, record_ids
from jaxcls.data.sources import Source
from jaxcls.data.workers import Workers
from jaxcls.errors import UserError


class Probe(Source):
    """Records that tell which one they are, and where and how they were read.

    Image [2, 4, 1]: row 0 holds the index in two bytes, row 1 whether a JAX backend was
    there, whether accelerators were hidden and whether jax was imported. The label is the
    process that read it.
    """

    class_names = range(1 << 23)  # more than there are processes

    def __init__(self, n: int, *, bad: int | None = None):
        self.n = n
        self.bad = bad

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"probe({self.n})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        if index == self.bad:
            raise KeyError("broken jpeg")
        if index % 3 == 0:
            time.sleep(0.002)  # so that later batches are ready before earlier ones
        image = np.zeros((2, 4, 1), np.uint8)
        image[0, :2, 0] = divmod(index, 256)
        # A process that has not imported it has no backend, and does not import it for this.
        bridge = sys.modules.get("jax._src.xla_bridge")
        image[1, 0] = bridge is not None and bridge.backends_are_initialized()
        image[1, 1] = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        image[1, 2] = "jax" in sys.modules
        return {"image": image, "label": os.getpid()}


class ProbeWithJax(Probe):
    """The same from a file that imports jax, as those of recipes do: a process that gets it
    has imported jax."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        import jax  # noqa: F401

        self.__dict__.update(state)


def indices(batch: Batch) -> list[int]:
    """The records of a batch, read off its images."""
    high, low = batch["image"][:, 0, 0, 0], batch["image"][:, 0, 1, 0]
    return (high.astype(int) * 256 + low).tolist()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition becomes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def train_batches(n: int = 300, **options: int) -> TrainBatches:
    return TrainBatches(
        Probe(n), **{"seed": 5, "batch_size": 8, "num_steps": 20, **options}
    )


def expected_ids(step: int) -> list[int]:
    return record_ids(5, step, 8, 300).tolist()


# Rows and hosts


def test_rows_are_gathered_as_they_are_read() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 2, 3, 1), dtype=np.uint8)
    source = ArraySource("toy", images, np.arange(9) % 4, tuple("abcd"))

    class OneByOne(Source):
        class_names = tuple("abcd")

        def __len__(self) -> int:
            return 9

        def __repr__(self) -> str:
            return "one-by-one"

        def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
            return {"image": images[index], "label": index % 4}

    ids = np.array([8, 0, 3])
    fast, slow = load_rows(source, ids), load_rows(OneByOne(), ids)  # type: ignore[arg-type]
    assert fast.keys() == slow.keys() == {"image", "label", "mask", "id"}
    for name in fast:
        np.testing.assert_array_equal(fast[name], slow[name])
        assert fast[name].dtype == slow[name].dtype
    np.testing.assert_array_equal(fast["image"], images[ids])
    assert fast["label"].tolist() == [0, 0, 3]
    assert fast["id"].tolist() == [8, 0, 3] and fast["id"].dtype == np.int64
    assert fast["mask"].tolist() == [True] * 3


class Odd(Source):
    """Ten records [2, 2, 1] of three classes, of which number 6 is as asked for."""

    class_names = ("a", "b", "c")

    def __init__(self, image: np.ndarray, label: object):
        self.image, self.label = image, label

    def __len__(self) -> int:
        return 10

    def __repr__(self) -> str:
        return "odd(10)"

    def __getitem__(self, index: int) -> dict[str, object]:
        if index == 6:
            return {"image": self.image, "label": self.label}
        return {"image": np.zeros((2, 2, 1), np.uint8), "label": index % 3}


class OddAtOnce(Odd):
    """The same, which loads a whole batch at a time."""

    def gather(
        self, ids: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        records = [self[int(i)] for i in ids]
        return {
            name: np.stack([np.asarray(r[name]) for r in records])
            for name in ("image", "label")
        }


GOOD_IMAGE = np.ones((2, 2, 1), np.uint8)
ODD: dict[str, tuple[np.ndarray, object, str]] = {
    "label_too_large": (
        *(GOOD_IMAGE, 3),
        "record 6 of odd(10) has a label that is no index into its 3 class names.",
    ),
    "label_negative": (
        *(GOOD_IMAGE, -1),
        "record 6 of odd(10) has a label that is no index into its 3 class names.",
    ),
    # The whole batch becomes that of the widest type.
    "float_image": (
        *(GOOD_IMAGE.astype(np.float32), 0),
        "odd(10) gives images of float32 (5, 2, 2, 1) for 5 records; expected uint8 (5, "
        "height, width, channels).",
    ),
    "wide_image": (
        *(GOOD_IMAGE.astype(np.int64), 0),
        "odd(10) gives images of int64 (5, 2, 2, 1) for 5 records; expected uint8 (5, "
        "height, width, channels).",
    ),
    "other_size": (
        *(np.ones((2, 3, 1), np.uint8), 0),
        "records 5, 6, 7, ... of odd(10) cannot be read: ValueError: all input arrays "
        "must have the same shape",
    ),
    "no_channels": (
        *(GOOD_IMAGE[..., 0], 0),
        "records 5, 6, 7, ... of odd(10) cannot be read: ValueError: all input arrays "
        "must have the same shape",
    ),
}


@pytest.mark.parametrize("kind", [Odd, OddAtOnce])
@pytest.mark.parametrize("case", ODD)
def test_a_batch_that_is_no_batch_of_images_is_named(
    case: str, kind: type[Odd]
) -> None:
    image, label, said = ODD[case]
    source = kind(image, label)
    ids = np.arange(5, 10)
    with pytest.raises(RuntimeError) as error:
        load_rows(source, ids)  # type: ignore[arg-type]
    assert str(error.value) == said
    # The other records are good, and so is the last class.
    assert load_rows(source, ids[2:])["label"].tolist() == [1, 2, 0]  # type: ignore[arg-type]
    batches = EvalBatches(source, batch_size=5)  # type: ignore[arg-type]
    with Loader(batches) as loader:
        assert next(loader)["label"].tolist() == [0, 1, 2, 0, 1]
        with pytest.raises(UserError) as shown:
            next(loader)
        assert str(shown.value) == said
        with pytest.raises(StopIteration):  # it is closed
            next(loader)


def test_images_without_channels_are_named() -> None:
    class Flat(Odd):
        def __getitem__(self, index: int) -> dict[str, object]:
            return {"image": GOOD_IMAGE[..., 0], "label": 0}

    said = r"^odd\(10\) gives images of uint8 \(3, 2, 2\) for 3 records; expected uint8 \(3, h"
    with pytest.raises(RuntimeError, match=said):
        load_rows(Flat(GOOD_IMAGE, 0), np.arange(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Odd, OddAtOnce])
@pytest.mark.parametrize("label", [1.5, np.nan, "b", None])
def test_a_label_that_is_no_whole_number_is_named(
    label: object, kind: type[Odd]
) -> None:
    with pytest.raises(RuntimeError, match=r"odd\(10\).* label"):
        load_rows(kind(GOOD_IMAGE, label), np.arange(5, 10))  # type: ignore[arg-type]


GATHERED: dict[str, object] = {
    "nothing": None,
    "no_labels": {"image": np.zeros((5, 2, 2, 1), np.uint8)},
    "too_few_images": {
        "image": np.zeros((4, 2, 2, 1), np.uint8),
        "label": np.zeros(5, int),
    },
    "too_few_labels": {
        "image": np.zeros((5, 2, 2, 1), np.uint8),
        "label": np.zeros(4, int),
    },
    "one_record_short": {
        "image": np.zeros((4, 2, 2, 1), np.uint8),
        "label": np.zeros(4, int),
    },
}


@pytest.mark.parametrize("case", GATHERED)
def test_a_wrong_batch_of_gather_is_named(case: str) -> None:
    class Wrong(Odd):
        def gather(
            self, ids: np.ndarray, row_seeds: np.ndarray | None = None
        ) -> object:
            return GATHERED[case]

    with pytest.raises(RuntimeError, match=r"odd\(10\)"):
        load_rows(Wrong(GOOD_IMAGE, 0), np.arange(5))  # type: ignore[arg-type]


class Failing(Odd):
    def gather(
        self, ids: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        raise OSError("disk on fire")


class Complaining(Odd):
    def gather(
        self, ids: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        raise RuntimeError("a/b.jpg: it is no image. Remove it.")


DISK_ON_FIRE = "records 0, 1, 2, ... of odd(10) cannot be read: OSError: disk on fire"
# The source has named the file: nothing is put before it.
NO_IMAGE = "a/b.jpg: it is no image. Remove it."


@pytest.mark.parametrize(
    ("kind", "said", "workers"),
    [
        (Failing, DISK_ON_FIRE, 0),
        (Failing, DISK_ON_FIRE, 1),
        (Complaining, NO_IMAGE, 0),
        pytest.param(Complaining, NO_IMAGE, 1, marks=pytest.mark.slow),
    ],
)
def test_a_batch_that_cannot_be_gathered_is_named(
    kind: type[Odd], said: str, workers: int
) -> None:
    source = kind(GOOD_IMAGE, 0)
    with pytest.raises(RuntimeError) as error:
        load_rows(source, np.arange(5))  # type: ignore[arg-type]
    assert str(error.value) == said
    batches = EvalBatches(source, batch_size=5)  # type: ignore[arg-type]
    with pytest.raises(UserError) as shown:
        with Loader(batches, workers=workers) as loader:
            next(loader)
    assert str(shown.value) == said
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_hosts_share_the_rows_of_a_step(num_hosts: int) -> None:
    hosts = [train_batches(host=host, num_hosts=num_hosts) for host in range(num_hosts)]
    for step in (0, 1, 19, 36, 37, 75):  # 37 steps are an epoch
        parts = [batches[step] for batches in hosts]
        assert {len(part["mask"]) for part in parts} == {8 // num_hosts}
        assert [i for part in parts for i in indices(part)] == expected_ids(step)
        assert all(part["mask"].all() and part["mask"].dtype == bool for part in parts)
    assert {len(batches) for batches in hosts} == {20}


def test_a_batch_that_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"batch_size 301 .*probe\(300\).* 300"):
        train_batches(batch_size=301)
    with pytest.raises(ValueError, match=r"batch_size 8 .* 3 hosts"):
        train_batches(num_hosts=3)


# Records that cannot be read, and row seeds


class Drawing(Source):
    """Three-class records [1, 8, 1], of which every fifth is bad; an image is its seed."""

    class_names = ("a", "b", "c")

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"drawing({self.n})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        raise AssertionError("a source that can gather is not asked one by one")

    def gather(
        self, ids: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        if row_seeds is None:
            row_seeds = np.zeros(len(ids), np.uint64)
        images = np.ascontiguousarray(row_seeds).view(np.uint8).reshape(-1, 1, 8, 1)
        return {"image": images, "label": ids % 3, "mask": ids % 5 != 0}


def seeds_of(batch: Batch) -> list[int]:
    """The seeds that Drawing was given."""
    return (
        np.ascontiguousarray(batch["image"])
        .reshape(-1, 8)
        .view(np.uint64)[:, 0]
        .tolist()
    )


def test_every_row_of_every_step_has_a_seed_of_its_own() -> None:
    def seeds(step: int, host: int = 0, num_hosts: int = 1, seed: int = 5) -> list[int]:
        batches = TrainBatches(
            Drawing(300),  # type: ignore[arg-type]
            **{"seed": seed, "batch_size": 8, "num_steps": 20},
            **{"host": host, "num_hosts": num_hosts},
        )
        return seeds_of(batches[step])

    for step in (0, 7):
        parts = [seeds(step, host, 4) for host in range(4)]
        assert [seed for part in parts for seed in part] == seeds(step)
    several = [seeds(0), seeds(1), seeds(19), seeds(0, seed=6), seeds(1, seed=6)]
    assert len({seed for part in several for seed in part}) == 5 * 8
    # Epoch 1 and step 1 have one key, yet nothing in common.
    order_words = np.random.Philox(key=np.array([5, 1], np.uint64)).random_raw(300)
    assert not set(seeds(1)) & set(order_words.tolist())
    # Every bit is as often one as zero.
    bits = np.array([seeds(step) for step in range(200)], np.uint64).view(np.uint8)
    ones = np.unpackbits(bits.reshape(-1, 8), axis=1).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(1600)


def test_evaluation_draws_nothing() -> None:
    batch = EvalBatches(Drawing(7), batch_size=7)[0]  # type: ignore[arg-type]
    assert seeds_of(batch) == [0] * 7


@pytest.mark.parametrize("workers", [0, 1])
def test_masks_come_from_the_source(workers: int) -> None:
    batches = EvalBatches(Drawing(12), batch_size=8)  # type: ignore[arg-type]
    with Loader(batches, workers=workers) as loader:
        first, last = loader
    assert first["mask"].tolist() == [i % 5 != 0 for i in range(8)]
    assert last["id"].tolist() == [8, 9, 10, 11, -1, -1, -1, -1]
    assert last["mask"].tolist() == [True, True, False, True, *[False] * 4]


@pytest.mark.parametrize("mask", [np.ones(4, bool), np.ones(5, int), [None] * 5])
def test_a_wrong_mask_is_named(mask: object) -> None:
    class Wrong(Odd):
        def gather(
            self, ids: np.ndarray, row_seeds: np.ndarray | None = None
        ) -> dict[str, object]:
            images = np.zeros((5, 2, 2, 1), np.uint8)
            return {"image": images, "label": np.zeros(5, int), "mask": mask}

    with pytest.raises(RuntimeError, match=r"odd\(10\) gives a mask of .*bool \(5,\)"):
        load_rows(Wrong(GOOD_IMAGE, 0), np.arange(5))  # type: ignore[arg-type]


# The order, whatever the machine


def check_order(num_hosts: int, workers: int, start: int) -> None:
    """Checks the records of 21 steps on every host, from step `start` on."""
    hosts: list[list[list[int]]] = []
    for host in range(num_hosts):
        batches = train_batches(num_steps=start + 21, host=host, num_hosts=num_hosts)
        with Loader(batches, start=start, workers=workers) as loader:
            hosts.append([batch["id"].tolist() for batch in loader])
            assert len(hosts[-1]) == 21
    for offset, parts in enumerate(zip(*hosts, strict=True)):
        ids = [i for part in parts for i in part]
        assert ids == expected_ids(start + offset)


@pytest.mark.parametrize(
    ("num_hosts", "workers", "start"),
    [(1, 0, 0), (2, 0, 30), (4, 0, 1000), (1, 2, 30)],
)
def test_the_order_does_not_depend_on_the_machine(
    num_hosts: int, workers: int, start: int
) -> None:
    check_order(num_hosts, workers, start)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 30, 1000])
@pytest.mark.parametrize("workers", [1, 3, 5])
@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_the_order_on_all_kinds_of_machines(
    num_hosts: int, workers: int, start: int
) -> None:
    check_order(num_hosts, workers, start)


def test_every_record_comes_exactly_once_in_an_epoch() -> None:
    # 296 of 300: the last 4 of an epoch's order make no batch.
    orders = []
    for epoch in range(2):
        seen: list[int] = []
        with Loader(
            train_batches(num_steps=37 * (epoch + 1)), start=37 * epoch
        ) as loader:
            for batch in loader:
                seen += batch["id"].tolist()
        assert len(seen) == len(set(seen)) == 296
        orders.append(seen)
    assert orders[0] != orders[1]


def test_hosts_see_all_classes_of_a_sorted_source() -> None:
    labels = np.repeat(np.arange(10), 500)
    images = np.zeros((5000, 1, 1, 1), np.uint8)
    source = ArraySource("sorted", images, labels, tuple("abcdefghij"))
    for host in range(4):
        batches = TrainBatches(
            source, seed=0, batch_size=40, num_steps=125, host=host, num_hosts=4
        )
        with Loader(batches) as loader:
            seen = np.concatenate([batch["label"] for batch in loader])
        expected = len(seen) / 10
        # 10 classes, drawn without replacement: chi-square beyond 27.9 once in 1,000.
        chi_square = (
            (np.bincount(seen, minlength=10) - expected) ** 2 / expected
        ).sum()
        assert chi_square < 27.9


def batches_of_many(number: int = 200_000) -> TrainBatches:
    """Returns 20,000 batches, about 1562 an epoch, of records that take no time to read."""
    images = np.zeros((number, 1, 1, 1), np.uint8)
    source = ArraySource("many", images, np.zeros(len(images), int), ("a",))
    return TrainBatches(source, seed=0, batch_size=128, num_steps=20_000)


@pytest.mark.parametrize("start", [0, 10_000])
def test_the_first_batch_of_a_resumed_run_takes_no_more_than_that_of_a_new_one(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A number of its own: the thread of a loader that was closed may still read a batch, and
    # would draw its order anew.
    number = 200_000 + start
    batches = batches_of_many(number)
    read: list[np.ndarray] = []
    drawn: list[int] = []
    gather, permutation = batches.source.gather, order.permutation

    def gather_and_note(ids: np.ndarray, row_seeds: np.ndarray) -> Batch:
        read.append(ids)
        return gather(ids, row_seeds)

    def permutation_and_note(bits: np.random.Philox, size: int) -> np.ndarray:
        drawn.append(size)
        return permutation(bits, size)

    monkeypatch.setattr(batches.source, "gather", gather_and_note)
    monkeypatch.setattr(order, "permutation", permutation_and_note)
    epoch_permutation.cache_clear()
    with Loader(batches, start=start, threads=1, prefetch=2) as loader:
        batch = next(loader)
    np.testing.assert_array_equal(batch["id"], read[0])
    np.testing.assert_array_equal(read[0], batches.ids(start))
    assert len(read) < 10  # itself, and the few that are loaded ahead
    assert [size for size in drawn if size == number] == [number]  # of one epoch


@pytest.mark.slow  # not that it is long: other work on the machine disturbs it
def test_a_resumed_run_has_its_first_batch_as_soon_as_a_new_one() -> None:
    batches = batches_of_many()

    def seconds(start: int) -> float:
        epoch_permutation.cache_clear()
        began = time.perf_counter()
        with Loader(batches, start=start, threads=1) as loader:
            next(loader)
            return time.perf_counter() - began

    seconds(0)
    pairs = [(seconds(0), seconds(10_000)) for _ in range(15)]
    ratio = np.median([late / early for early, late in pairs])
    assert ratio < 1.2


# Evaluation


@pytest.mark.parametrize("num_hosts", [1, 2])
@pytest.mark.parametrize("multiple", [1, 8])
@pytest.mark.parametrize("batch_size", [7, 16])
@pytest.mark.parametrize("n", [1, 7, 62, 360])
def test_evaluation_counts_every_record_once(
    n: int, batch_size: int, multiple: int, num_hosts: int
) -> None:
    images = np.arange(1, n + 1, dtype=np.uint16).view(np.uint8).reshape(n, 2, 1, 1)
    source = ArraySource("toy", images, np.arange(n) % 5, tuple("abcde"))
    hosts = [
        EvalBatches(
            source,
            batch_size=batch_size,
            rows_multiple=multiple,
            host=host,
            num_hosts=num_hosts,
        )
        for host in range(num_hosts)
    ]
    # The padding is the least that lets devices and hosts have equal parts.
    rows = next(
        rows
        for rows in range(batch_size, 100)
        if rows % multiple == 0 and rows % num_hosts == 0
    )
    num_batches = -(-n // batch_size)
    assert {len(batches) for batches in hosts} == {num_batches}
    for k in range(num_batches):
        parts = [batches[k] for batches in hosts]
        assert {len(part["mask"]) for part in parts} == {rows // num_hosts}
        batch = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        ids = np.arange(n)[k * batch_size : (k + 1) * batch_size]
        assert batch["mask"].tolist() == [row < len(ids) for row in range(rows)]
        np.testing.assert_array_equal(batch["image"][batch["mask"]], images[ids])
        np.testing.assert_array_equal(batch["label"][batch["mask"]], ids % 5)
        assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
        assert not batch["image"][~batch["mask"]].any()
        assert not batch["label"][~batch["mask"]].any()
        assert batch["id"].tolist() == [*ids, *[-1] * (rows - len(ids))]


# Threads


@pytest.mark.parametrize("threads", [1, 4, None])
@pytest.mark.parametrize("start", [0, 7])
def test_threads_keep_the_order(threads: int | None, start: int) -> None:
    with Loader(train_batches(), start=start, threads=threads, prefetch=1) as loader:
        found = [indices(batch) for batch in loader]
    assert found == [expected_ids(step) for step in range(start, 20)]


def test_loading_begins_again_after_the_end() -> None:
    batches = EvalBatches(Probe(20), batch_size=8)
    with Loader(batches, repeat=True, threads=4) as loader:
        found = [indices(next(loader)) for _ in range(7)]
    once = [[*range(8)], [*range(8, 16)], [16, 17, 18, 19, 0, 0, 0, 0]]
    assert found == [*once, *once, once[0]]


def test_loading_ends_where_the_run_does() -> None:
    for start in (19, 20):
        with Loader(train_batches(), start=start) as loader:
            assert len(list(loader)) == 20 - start
            with pytest.raises(StopIteration):
                next(loader)


def test_threads_end_with_the_loader() -> None:
    before = set(threading.enumerate())
    with Loader(train_batches(num_steps=10**6), threads=4, prefetch=3) as loader:
        next(loader)
        assert set(threading.enumerate()) - before
    loader.close()  # a second time does no harm
    assert within(5, lambda: set(threading.enumerate()) <= before)
    with pytest.raises(StopIteration):
        next(loader)


def test_the_cores_are_those_this_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(allowed)})
            assert available_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)


# Worker processes


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Checks that no process and no open file outlives what happens inside."""
    assert multiprocessing.active_children() == []
    gc.collect()  # what earlier tests have left
    before = len(os.listdir("/dev/fd"))
    yield
    assert multiprocessing.active_children() == []
    # One more is multiprocessing's resource tracker's, if this is where it is started.
    assert len(os.listdir("/dev/fd")) <= before + 1


@pytest.mark.parametrize(
    ("workers", "start", "repeat", "kind"),
    [(1, 7, False, ProbeWithJax), (3, 0, True, Probe)],
)
def test_worker_processes_keep_the_order_and_touch_no_device(
    workers: int, start: int, repeat: bool, kind: type[Probe]
) -> None:
    # This process has a backend, its workers must not. They import this module, and jax with
    # a source that needs it alone.
    import jax

    assert jax.devices()
    batches = TrainBatches(kind(300), seed=5, batch_size=8, num_steps=10)
    main, mask = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    number = 14 if repeat else 3
    with nothing_left():
        with Loader(
            batches, start=start, repeat=repeat, workers=workers, threads=2
        ) as loader:
            assert sys.modules["__main__"] is main
            assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
            found = [next(loader) for _ in range(number)]
            if not repeat:
                assert list(loader) == []
            else:  # the loader is closed with batches under way
                assert multiprocessing.active_children()
        steps = [(start + k) % 10 for k in range(number)]
        assert [indices(batch) for batch in found] == [expected_ids(k) for k in steps]
        assert all(type(batch["image"]) is np.ndarray for batch in found)
    pids = {pid for batch in found for pid in batch["label"].tolist()}
    assert len(pids) == workers and os.getpid() not in pids
    backend, no_gpu, imported = (
        {int(value) for batch in found for value in batch["image"][:, 1, k, 0]}
        for k in range(3)
    )
    assert imported == {kind is ProbeWithJax}
    assert backend == {0}, "a worker has initialised a JAX backend"
    assert no_gpu == {1}, "a worker sees the accelerators"


@pytest.mark.parametrize(
    ("bad", "workers"),
    [(0, 0), (30, 0), (30, 2), pytest.param(0, 2, marks=pytest.mark.slow)],
)
def test_a_record_that_cannot_be_read_is_named(workers: int, bad: int) -> None:
    batches = EvalBatches(Probe(40, bad=bad), batch_size=4)
    said = f"record {bad} of probe(40) cannot be read: KeyError: 'broken jpeg'"
    with pytest.raises(RuntimeError) as read:
        batches[bad // 4]
    assert str(read.value) == said
    with nothing_left():
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            with Loader(batches, workers=workers) as loader:
                for k, batch in enumerate(loader):
                    assert indices(batch) == list(range(4 * k, 4 * k + 4))
                    assert k < bad // 4


class Broken:
    """Batches with a mistake in their own code."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> Batch:
        raise ZeroDivisionError(index)


def test_a_mistake_in_the_code_shows_its_traceback() -> None:
    with nothing_left():
        workers = Workers(
            Broken(), range(1, 3), False, workers=1, threads=1, prefetch=1
        )
        with pytest.raises(
            multiprocessing.ProcessError,
            match=r"(?s)failed:\nTraceback .*ZeroDivisionError: 1",
        ):
            next(workers)
        workers.close()


def test_nothing_to_load_starts_no_worker() -> None:
    with Loader(train_batches(), start=20, workers=2) as loader:
        assert multiprocessing.active_children() == []
        assert list(loader) == []


# Whole processes

SOURCE = """
import os, sys, time
import numpy as np
from jaxcls.data.sources import Source

class Numbers(Source):
    class_names = range(1 << 23)  # more than there are processes
    def __len__(self): return 40
    def __repr__(self): return "numbers"
    def __getitem__(self, index):
        # So wide that a batch is more than a pipe holds, and few are ready.
        return {"image": np.full((1, 1 << 16, 1), index, np.uint8), "label": os.getpid()}
"""

PLAIN = (
    'print("begin", flush=True)'
    + SOURCE
    + """
from jaxcls.data.loader import EvalBatches, Loader
for start in (0, 3):  # at its very end there is no batch left
    with Loader(EvalBatches(Numbers(), batch_size=16), workers=2, start=start) as loader:
        for batch in loader:
            print(*batch["image"][:, 0, 0, 0])
    print("end")
"""
)

ROWS = [
    " ".join(map(str, range(0, 16))),
    " ".join(map(str, range(16, 32))),
    " ".join(map(str, [*range(32, 40), *[0] * 8])),
]


@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_plain_script_can_load_in_processes(way: str, tmp_path: Path) -> None:
    """No `if __name__ == "__main__"`, no absl flags, a source of the script's own."""
    file = tmp_path / "plain.py"
    file.write_text(PLAIN)
    done = subprocess.run(
        [sys.executable, file if way == "file" else "-"],
        input=PLAIN,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # "begin" once: no worker has run the script again.
    assert done.stdout.splitlines() == ["begin", *ROWS, "end", "end"]
    assert done.stderr == ""


KILLED = (
    SOURCE
    + """
from jaxcls.data.loader import EvalBatches, Loader
batches = EvalBatches(Numbers(), batch_size=4)
loader = Loader(batches, workers=2, repeat=True)
print(*{int(next(loader)["label"][0]) for _ in range(6)}, flush=True)
while True:
    next(loader)
    time.sleep(0.01)
"""
)


SIGNALLED = (
    SOURCE
    + """
import signal
from jaxcls.data.loader import EvalBatches, Loader
received = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: received.append(number))
with Loader(EvalBatches(Numbers(), batch_size=4), workers=2, repeat=True) as loader:
    next(loader)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(0, number)
        for _ in range(20):  # more than was ready
            next(loader)
            time.sleep(0.02)
print(*received)
"""
)


def test_a_signal_to_all_leaves_the_workers_alone(tmp_path: Path) -> None:
    """Ctrl-C reaches the whole group; the trainer still finishes its step with them."""
    file = tmp_path / "signalled.py"
    file.write_text(SIGNALLED)
    # A new process: only the first loader of a process starts all that there is to start.
    done = subprocess.run(
        [sys.executable, file],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.stdout.split() == [str(int(n)) for n in (signal.SIGINT, signal.SIGTERM)]
    assert done.stderr == ""


LOST = (
    SOURCE
    + """
import multiprocessing, signal
from jaxcls.data.loader import EvalBatches, Loader
from jaxcls.errors import UserError
with Loader(EvalBatches(Numbers(), batch_size=4), workers=2, repeat=True) as loader:
    next(loader)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    try:
        for _ in range(100):  # more than was ready
            next(loader)
    except UserError as error:
        print(error)
    print(multiprocessing.active_children(), list(loader))
"""
)


def test_a_killed_worker_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lost.py"
    file.write_text(LOST)
    done = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert said.startswith("a process that loads data was killed, ")
    assert "fewer data.workers" in said
    assert left == "[] []"  # the loader is closed, and the other worker with it
    assert done.stderr == ""


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # Where nobody collects orphans, they stay as zombies: state Z after the name.
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return not Path("/proc").is_dir()


def test_workers_end_when_the_trainer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "killed.py"
    file.write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as trainer:
        try:
            assert trainer.stdout is not None
            pids = [int(pid) for pid in trainer.stdout.readline().split()]
            assert len(pids) == 2 and trainer.pid not in pids
            assert all(is_running(pid) for pid in pids)
        finally:
            trainer.kill()
    ended = within(10, lambda: not any(is_running(pid) for pid in pids))
    for pid in filter(is_running, pids):  # a failure must not load for ever
        os.kill(pid, signal.SIGKILL)
    assert ended, f"workers {pids} outlive their trainer"


LARGE = (
    SOURCE
    + """
import json, multiprocessing, threading
from multiprocessing.context import SpawnProcess
from jaxcls.data.loader import EvalBatches, Loader

killed = set()
kill, join = SpawnProcess.kill, SpawnProcess.join

def noted_kill(process):
    killed.add(process.pid)
    kill(process)

def join_of_a_killed(process, timeout=None):
    assert process.pid in killed, "a worker is waited for before it is killed"
    join(process, timeout)

SpawnProcess.kill, SpawnProcess.join = noted_kill, join_of_a_killed

class Large(Numbers):
    def gather(self, ids, row_seeds=None):
        # What a worker has imported, in the first pixel.
        imported = "jax" in sys.modules or "grain" in sys.modules
        images = np.full((len(ids), 224, 224, 3), imported, np.uint8)
        return {"image": images, "label": np.zeros(len(ids), int)}

def shared(pid):
    maps = f"/proc/{pid}/maps"
    return os.path.exists(maps) and "/dev/shm" in open(maps).read()

def close(loader):
    began = time.monotonic()
    loader.close()
    return time.monotonic() - began

seconds = {}
for way in sys.argv[1:]:
    loader = Loader(EvalBatches(Large(), batch_size=40), workers=2, repeat=True)
    if way != "at once":
        for _ in range(4):
            batch = next(loader)
        assert not batch["image"].any()
        assert not any(map(shared, [os.getpid(), *(p.pid for p in multiprocessing.active_children())]))
    if way == "full":
        time.sleep(0.3)  # until the workers can write no more
    if way == "reading":
        reader = threading.Thread(target=lambda: list(loader))
        threading.excepthook = lambda args: None  # the reader's batch is lost
        reader.start()
        time.sleep(0.2)
    if way != "never":
        seconds[way] = close(loader)
        assert multiprocessing.active_children() == []
        assert list(loader) == []
    if way == "reading":
        reader.join()
print(json.dumps(seconds))
"""
)


def seconds_to_close(folder: Path) -> dict[str, float]:
    """Closes loaders whose workers are at different places; leaves one that is not closed."""
    file = folder / "large.py"
    file.write_text(LARGE)
    ways = ["at once", "busy", "full", "reading"]
    done = subprocess.run(
        [sys.executable, file, *ways, "never"],
        capture_output=True,
        text=True,
        timeout=60,  # workers that are waited for never end
    )
    assert (done.stderr, done.returncode) == ("", 0)
    seconds: dict[str, float] = json.loads(done.stdout)
    assert list(seconds) == ways
    return seconds


def test_large_batches_do_not_hold_up_the_end(tmp_path: Path) -> None:
    """40 x 224 x 224 x 3 bytes are far more than a pipe holds: the workers wait in writing."""
    seconds_to_close(tmp_path)


@pytest.mark.slow  # not that it is long: other work on the machine disturbs it
def test_large_batches_end_at_once(tmp_path: Path) -> None:
    assert max(seconds_to_close(tmp_path).values()) < 1
