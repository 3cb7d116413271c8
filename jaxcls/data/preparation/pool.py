"""Runs a function on many tasks, in this process or in several.

concurrent.futures is no help here: its queues need semaphores in /dev/shm, before Python 3.14 it
cannot end a task that has begun, and its processes outlive a parent that is killed. These
processes talk through pipes alone, and end when the other end of their pipe is gone.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from tqdm import tqdm

from jaxcls.data.workers import held_back, kill
from jaxcls.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int], object]
"""A task calls it with the number of images that it has done since the last call."""

PROGRESS_INTERVAL = 0.1  # seconds between two messages of a process


def run(
    function: Callable[[Task, Progress], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    images: int,
    title: str,
) -> Generator[tuple[int, Result], None, None]:
    """Yields (index of a task, function(task, progress)) for each task that is done.

    A terminal shows a progress bar. Closing the generator ends the processes.

    Args:
      function: can be pickled; it reports its progress often.
      tasks: can be pickled.
      workers: number of processes; 1 works in this one.
      images: number of images in all tasks.
      title: stands before the bar.

    Raises:
      UserError: if the function raises one, or a process is killed.
      RuntimeError: with the traceback of any other error in a process.
    """
    workers = min(workers, len(tasks))
    with tqdm(
        total=images, desc=title, unit=" images", disable=None, dynamic_ncols=True
    ) as bar:
        if workers > 1:
            yield from _run_in_processes(function, tasks, workers, bar.update)
        else:
            for index, task in enumerate(tasks):
                yield index, function(task, bar.update)


def _run_in_processes(
    function: Callable[[Task, Progress], Result],
    tasks: Sequence[Task],
    workers: int,
    progress: Progress,
) -> Generator[tuple[int, Result], None, None]:
    context = multiprocessing.get_context("spawn")
    children: list[SpawnProcess] = []
    waiting = iter(enumerate(tasks))
    busy: dict[Any, int] = {}  # our end of a pipe -> the index of the task there
    try:
        for _ in range(workers):
            ours, theirs = context.Pipe()
            child = context.Process(target=_work, args=(function, theirs), daemon=True)
            with held_back(signal.SIGINT):
                child.start()
            theirs.close()
            children.append(child)
            busy[ours], task = next(waiting)
            ours.send(task)
        while busy:
            ready: list[Any] = multiprocessing.connection.wait(list(busy))
            for connection in ready:
                try:
                    kind, value = connection.recv()
                except (EOFError, ConnectionError):
                    raise UserError(
                        "a process that works on images was killed, perhaps for want of "
                        "memory: run the same command again, with fewer --workers."
                    ) from None
                if kind == "failure":
                    raise value
                if kind == "progress":
                    progress(value)
                    continue
                yield busy.pop(connection), value
                if following := next(waiting, None):
                    busy[connection], task = following
                    connection.send(task)
                else:
                    connection.close()  # which ends the process
    finally:
        kill(children)


def _work(function: Callable[[Any, Progress], Any], connection: Any) -> None:
    """Does tasks until no more come, or the process that sends them is gone."""
    last_sent = time.monotonic()
    not_sent = 0

    def progress(count: int) -> None:
        nonlocal last_sent, not_sent
        not_sent += count
        if time.monotonic() - last_sent >= PROGRESS_INTERVAL:
            connection.send(("progress", not_sent))
            last_sent, not_sent = time.monotonic(), 0

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = function(task, progress)
            except UserError as error:
                connection.send(("failure", error))
            except Exception:
                reason = f"a process failed:\n{traceback.format_exc()}"
                connection.send(("failure", RuntimeError(reason)))
            else:
                connection.send(("progress", not_sent))
                not_sent = 0
                connection.send(("done", result))
