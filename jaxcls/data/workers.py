"""Worker processes that load batches in turns, each ahead of its turn.

Worker w of n loads the batches w, w + n, w + 2 n, ... and writes them into a pipe of its own:
the layout of the arrays, then their bytes. The reader goes round the pipes, so that the order
does not depend on the speed of the workers, and reads the bytes to their final place: 3 ms for
64 images of 224 pixels. Nothing lies in /dev/shm and nothing needs to be freed: a worker can be
killed at any time, and close() does so.

The processes import NumPy and what the source needs, but not jax.
"""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import signal
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Protocol

import cloudpickle
import numpy as np

from jaxcls.data.sources import Batch
from jaxcls.errors import UserError


class Batches(Protocol):
    """Batches by their number, 0 <= index < len."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...


class Workers(Iterator[Batch]):
    """An iterator over batches that worker processes load.

    Close it to end them. They also end when the process that made it ends, in whatever way.
    """

    def __init__(
        self,
        batches: Batches,
        steps: range,
        repeat: bool,
        workers: int,
        threads: int,
        prefetch: int,
    ):
        """Starts the processes; does not wait for them.

        Args:
          batches: is sent to each process; may be defined in the main module.
          steps: the batches to load, at least one.
          repeat: begin again with the first of `steps` after the last, without end.
          workers: processes, 1 or more.
          threads: threads of each.
          prefetch: batches that each process keeps ready.
        """
        if not repeat:
            workers = min(workers, len(steps))
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._reading = threading.RLock()
        # Runs before multiprocessing would end the processes by a signal that they hold back.
        multiprocessing.util.Finalize(
            self, kill, args=(self._processes,), exitpriority=1
        )
        context = multiprocessing.get_context("spawn")
        pickled = cloudpickle.dumps(batches)  # by value what the main module defines
        # The trainer alone decides what a signal means, and needs the workers to finish its step.
        with held_back(signal.SIGINT, signal.SIGTERM), _main_module_hidden():
            for worker in range(workers):
                ours, theirs = context.Pipe(duplex=False)
                turns = slice(worker, None, workers)
                process = context.Process(
                    target=_work,
                    args=(theirs, pickled, steps, repeat, turns, threads, prefetch),
                    daemon=True,
                )
                self._pipes.append(ours)
                process.start()
                self._processes.append(process)
                theirs.close()  # otherwise the pipe would not end with the process
        self._in_turn: Iterator[Connection] = itertools.cycle(self._pipes)
        if not repeat:
            self._in_turn = itertools.islice(self._in_turn, len(steps))

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          StopIteration: after the last one.
          RuntimeError: with the message of one that loading the batch raised.
          multiprocessing.ProcessError: with the traceback of any other exception.
          UserError: if the process was killed.
        """
        with self._reading:
            pipe = next(self._in_turn)
            try:
                return _read(pipe)
            except EOFError:
                raise UserError(
                    "a process that loads data was killed, perhaps for want of memory: run "
                    "the same command again, with fewer data.workers or a smaller prefetch."
                ) from None

    def close(self) -> None:
        """Ends the processes at once. Can be called twice, and while another thread waits for
        a batch."""
        kill(self._processes)  # a thread that waits for one meets the end of its pipe
        with self._reading:
            self._in_turn = iter(())
            for pipe in self._pipes:
                pipe.close()


@contextlib.contextmanager
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Delays signals to the end of the block. Processes started inside never receive them.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group, but the process that started
    the others decides what to do about them.
    """
    came: list[int] = []
    handlers = {}
    # The mask below covers this thread alone. Another one may receive the signal (a BLAS library
    # has some), and Python would still run the handler here, between any two lines.
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if signal.getsignal(number) is not None:
                handlers[number] = signal.signal(
                    number, lambda number, _: came.append(number)
                )
    # Starts first, because its start lets the signals through again.
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


def kill(processes: list[SpawnProcess]) -> None:
    """Ends processes that may be ended at any moment, and empties the list."""
    for process in processes:
        process.kill()
    while processes:
        process = processes.pop()
        process.join()
        process.close()  # otherwise its files would stay open until it is collected


def _read(pipe: Connection) -> Batch:
    """Reads what a worker process writes next: a batch, or the error that it failed with."""
    layout = pipe.recv()
    if isinstance(layout, Exception):
        raise layout
    batch = {name: np.empty(shape, dtype) for name, shape, dtype in layout}
    for array in batch.values():
        left = array.data.cast("B")
        while left:  # Connection.recv_bytes would copy the bytes twice
            count = os.readv(pipe.fileno(), [left])
            if not count:
                raise EOFError
            left = left[count:]
    return batch


def _write(pipe: Connection, batch: Batch) -> None:
    """Writes a batch, as _read reads it."""
    arrays = {name: np.ascontiguousarray(array) for name, array in batch.items()}
    pipe.send([(name, array.shape, array.dtype) for name, array in arrays.items()])
    for array in arrays.values():
        left = array.data.cast("B")
        while left:
            left = left[os.write(pipe.fileno(), left) :]


def _work(
    pipe: Connection,
    pickled: bytes,
    steps: range,
    repeat: bool,
    turns: slice,
    threads: int,
    prefetch: int,
) -> None:
    """Loads the batches of a worker's turns and writes them into its pipe."""
    _end_with_parent()
    # A source that imports jax must not take the accelerators from the trainer.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["JAX_PLATFORMS"] = "cpu"
    with contextlib.suppress(ConnectionError):
        try:
            batches: Batches = cloudpickle.loads(pickled)
            every = itertools.cycle(steps) if repeat else steps
            own = itertools.islice(every, turns.start, None, turns.step)
            for batch in _ahead(batches, own, threads, prefetch):
                _write(pipe, batch)
        except ConnectionError:
            raise
        except RuntimeError as error:
            pipe.send(RuntimeError(str(error)))  # subclasses may not survive pickling
        except Exception:
            report = f"a process that loads data failed:\n{traceback.format_exc()}"
            pipe.send(multiprocessing.ProcessError(report))


def _ahead(
    batches: Batches, steps: Iterable[int], threads: int, prefetch: int
) -> Iterator[Batch]:
    """Yields batches[step] for each step; threads load up to `prefetch` of them ahead."""
    waiting: deque[Future[Batch]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for step in steps:
            waiting.append(pool.submit(batches.__getitem__, step))
            if len(waiting) > max(prefetch, threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this process when the one that started it ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keeps processes started inside from running the main script a second time.

    multiprocessing's spawn imports the parent's main module in every child, which would repeat
    the training of a script without `if __name__ == "__main__"`. Nothing needs that import:
    cloudpickle sends what the main module defines by value.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
