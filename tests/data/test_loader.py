"""Batches by step, for any number of hosts, threads and worker processes, and what is left
behind when loading ends: nothing."""

import contextlib
import gc
import multiprocessing
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcls.data import ArraySource
from jaxcls.data.loader import (
    Batch,
    EvalBatches,
    Loader,
    TrainBatches,
    available_cores,
    load_rows,
)
from jaxcls.data.order import record_ids

SHM = Path("/dev/shm")
needs_shm = pytest.mark.skipif(not SHM.is_dir(), reason="shared memory has no folder")


class Probe:
    """Records that tell which one they are, and where and how they were read.

    Image [2, 4, 1]: row 0 holds the index in two bytes, row 1 whether a JAX backend was
    there and whether accelerators were hidden. The label is the process that read it.
    """

    class_names = ("a",)

    def __init__(self, n: int, *, bad: int | None = None):
        self.n = n
        self.bad = bad
        # The first letters of the shared memory that is made for this source.
        self.tag = secrets.token_hex(3)

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        return f"probe({self.n})"

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        from jax._src import xla_bridge

        # Other tests run at the same time: only this name says whose memory it is.
        if multiprocessing.parent_process() is not None:
            shared_memory._SHM_NAME_PREFIX = f"/{self.tag}"  # type: ignore[attr-defined]
        if index == self.bad:
            raise KeyError("broken jpeg")
        if index % 3 == 0:
            time.sleep(0.002)  # so that later batches are ready before earlier ones
        image = np.zeros((2, 4, 1), np.uint8)
        image[0, :2, 0] = divmod(index, 256)
        image[1, 0] = xla_bridge.backends_are_initialized()
        image[1, 1] = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        return {"image": image, "label": os.getpid()}

    def memory(self) -> list[str]:
        return [name for name in os.listdir(SHM) if name.startswith(self.tag)]


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

    class OneByOne:
        def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
            return {"image": images[index], "label": index % 4}

    ids = np.array([8, 0, 3])
    fast, slow = load_rows(source, ids), load_rows(OneByOne(), ids)  # type: ignore[arg-type]
    assert fast.keys() == slow.keys() == {"image", "label"}
    for name in fast:
        np.testing.assert_array_equal(fast[name], slow[name])
        assert fast[name].dtype == slow[name].dtype
    np.testing.assert_array_equal(fast["image"], images[ids])
    assert fast["label"].tolist() == [0, 0, 3]


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
def nothing_left(probe: Probe) -> Iterator[None]:
    """Checks that no process and no shared memory outlives what happens inside."""
    assert multiprocessing.active_children() == []
    yield
    assert multiprocessing.active_children() == []
    gc.collect()  # an error that has been handled may hold the last batch until then
    if SHM.is_dir():
        assert within(5, lambda: probe.memory() == []), probe.memory()


@pytest.mark.parametrize(("workers", "start", "repeat"), [(1, 7, False), (3, 0, True)])
def test_worker_processes_keep_the_order_and_touch_no_device(
    workers: int, start: int, repeat: bool
) -> None:
    assert jax.devices()  # this process has a backend, its workers must not
    batches = train_batches(num_steps=10)
    main, mask = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    number = 14 if repeat else 3
    with nothing_left(batches.source):  # type: ignore[arg-type]
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
                assert not SHM.is_dir() or within(5, batches.source.memory)  # type: ignore[attr-defined]
        # What was read stays readable after its shared memory is gone.
        steps = [(start + k) % 10 for k in range(number)]
        assert [indices(batch) for batch in found] == [expected_ids(k) for k in steps]
        assert all(type(batch["image"]) is np.ndarray for batch in found)
    pids = {pid for batch in found for pid in batch["label"].tolist()}
    assert len(pids) == workers and os.getpid() not in pids
    backend, no_gpu = (
        {int(value) for batch in found for value in batch["image"][:, 1, k, 0]}
        for k in range(2)
    )
    assert backend == {0}, "a worker has initialised a JAX backend"
    assert no_gpu == {1}, "a worker sees the accelerators"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad", [0, 30])
def test_a_record_that_cannot_be_read_is_named(workers: int, bad: int) -> None:
    batches = EvalBatches(Probe(40, bad=bad), batch_size=4)
    expected = rf"^record {bad} of probe\(40\) cannot be read: KeyError: 'broken jpeg'"
    with nothing_left(batches.source):  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=expected):
            with Loader(batches, workers=workers) as loader:
                for k, batch in enumerate(loader):
                    assert indices(batch) == list(range(4 * k, 4 * k + 4))
                    assert k < bad // 4


def test_nothing_to_load_starts_no_worker() -> None:
    with Loader(train_batches(), start=20, workers=2) as loader:
        assert multiprocessing.active_children() == []
        assert list(loader) == []


# Whole processes

SOURCE = """
import os, sys, time
from multiprocessing import shared_memory
import numpy as np

class Numbers:
    class_names = ("a",)
    tag = None
    def __len__(self): return 40
    def __repr__(self): return "numbers"
    def __getitem__(self, index):
        if self.tag is not None:
            shared_memory._SHM_NAME_PREFIX = f"/{self.tag}"
        return {"image": np.full((1, 1, 1), index, np.uint8), "label": os.getpid()}
"""

PLAIN = (
    'print("begin", flush=True)'
    + SOURCE
    + """
from jaxcls.data.loader import EvalBatches, Loader
with Loader(EvalBatches(Numbers(), batch_size=16), workers=2, start=int(sys.argv[1])) as loader:
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
        [sys.executable, file if way == "file" else "-", "0"],
        input=PLAIN,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    # "begin" once: no worker has run the script again.
    assert done.stdout.splitlines() == ["begin", *ROWS, "end"]
    assert done.stderr == ""


def test_a_plain_script_can_load_nothing_in_processes(tmp_path: Path) -> None:
    """A run continued at its very end has no batch left."""
    file = tmp_path / "plain.py"
    file.write_text(PLAIN)
    done = subprocess.run(
        [sys.executable, file, "3"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["begin", "end"], done.stderr


KILLED = (
    SOURCE
    + """
from jaxcls.data.loader import EvalBatches, Loader
source = Numbers()
source.tag = sys.argv[1]
batches = EvalBatches(source, batch_size=4)
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
        for _ in range(10):  # more than was ready
            next(loader)
            time.sleep(0.05)
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


@needs_shm
def test_workers_end_when_the_trainer_is_killed(tmp_path: Path) -> None:
    tag = secrets.token_hex(3)
    file = tmp_path / "killed.py"
    file.write_text(KILLED)

    def memory() -> list[str]:
        return [name for name in os.listdir(SHM) if name.startswith(tag)]

    with subprocess.Popen(
        [sys.executable, file, tag], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as trainer:
        try:
            assert trainer.stdout is not None
            pids = [int(pid) for pid in trainer.stdout.readline().split()]
            assert len(pids) == 2 and trainer.pid not in pids
            assert all(is_running(pid) for pid in pids)
            assert within(5, lambda: memory() != []), "no shared memory to lose"
        finally:
            trainer.kill()
    ended = within(10, lambda: not any(is_running(pid) for pid in pids))
    for pid in filter(is_running, pids):  # a failure must not load for ever
        os.kill(pid, signal.SIGKILL)
    assert ended, f"workers {pids} outlive their trainer"
    # multiprocessing's resource tracker frees it, when the last worker has gone.
    assert within(10, lambda: memory() == []), memory()
