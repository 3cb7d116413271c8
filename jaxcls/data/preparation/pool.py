"""Runs a function on many tasks in processes of their own.

They talk through pipes alone: neither /dev/shm nor its semaphores are used, so that its size
does not matter. A process whose starter is gone ends when it next tells of its progress.
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from jaxcls.data.workers import held_back
from jaxcls.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Progress = Callable[[int], None]
"""Told how many more images are done."""

_INTERVAL = 0.1  # seconds between two messages of progress


def run(
    function: Callable[[Task, Progress], Result],
    tasks: Sequence[Task],
    *,
    workers: int,
    progress: Progress,
) -> Generator[tuple[int, Result], None, None]:
    """Yields (index of a task, function(task, progress)) for all tasks, as they are done.

    Close the generator to end the processes early.

    Args:
      function: can be pickled; it calls its second argument often.
      tasks: can be pickled.
      workers: processes; 1 works in this one.
      progress: told what `function` tells.

    Raises:
      UserError: if the function does, or a process is killed.
      RuntimeError: with the traceback of anything else that the function raises.
    """
    if min(workers, len(tasks)) <= 1:
        for index, task in enumerate(tasks):
            yield index, function(task, progress)
        return
    context = multiprocessing.get_context("spawn")
    processes: list[Any] = []
    busy: dict[Connection, int] = {}
    waiting = iter(range(len(tasks)))
    try:
        for index in (next(waiting) for _ in range(min(workers, len(tasks)))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(function, theirs), daemon=True
            )
            with held_back(signal.SIGINT):
                process.start()
            theirs.close()
            processes.append(process)
            busy[ours] = index
            ours.send(tasks[index])
        while busy:
            for connection in multiprocessing.connection.wait(list(busy)):
                assert isinstance(connection, Connection)
                kind, value = _received(connection)
                if kind == "progress":
                    progress(value)
                elif kind == "done":
                    yield busy.pop(connection), value
                    following = next(waiting, None)
                    if following is None:
                        connection.close()  # the process ends by it
                    else:
                        busy[connection] = following
                        connection.send(tasks[following])
                elif kind == "mistake":
                    raise UserError(value)
                else:
                    raise RuntimeError(f"a process failed:\n{value}")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        for connection in busy:
            connection.close()


def _received(connection: Connection) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, ConnectionError):
        raise UserError(
            "a process that works on images was killed, perhaps for want of memory: run the "
            "same command again, with fewer --workers."
        ) from None


def _work(function: Callable[[Any, Progress], Any], connection: Connection) -> None:
    """Does tasks until there are no more, or the process that sends them is gone."""
    told = time.monotonic()
    unsaid = 0

    def progress(count: int) -> None:
        nonlocal told, unsaid
        unsaid += count
        if time.monotonic() - told >= _INTERVAL:
            connection.send(("progress", unsaid))
            told, unsaid = time.monotonic(), 0

    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = function(task, progress)
            except ConnectionError:
                raise
            except UserError as error:
                connection.send(("mistake", str(error)))
                return
            except Exception:
                connection.send(("failure", traceback.format_exc()))
                return
            connection.send(("progress", unsaid))
            unsaid = 0
            connection.send(("done", result))
