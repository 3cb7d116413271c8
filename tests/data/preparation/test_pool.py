"""Tasks give the same results and the same progress in any number of processes."""

from typing import Any

import pytest

from jaxcls.data.preparation import pool
from jaxcls.errors import UserError


def square(task: int, progress: pool.Progress) -> int:
    for _ in range(task):
        progress(1)
    return task * task


def fail(task: int, progress: pool.Progress) -> int:
    if task == 2:
        raise UserError("a mistake")
    if task == 3:
        raise ZeroDivisionError("a bug")
    return task


class Bar:
    """Counts what a progress bar is told."""

    total = 0

    def __init__(self, **options: Any):
        pass

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, count: int) -> None:
        Bar.total += count


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_is_done_once(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "tqdm", Bar)
    monkeypatch.setattr(Bar, "total", 0)
    tasks = [5, 0, 300, 7]
    results = pool.run(square, tasks, workers=workers, images=312, title="test")
    assert sorted(results) == [(0, 25), (1, 0), (2, 90_000), (3, 49)]
    assert Bar.total == 312
    assert list(pool.run(square, [], workers=workers, images=0, title="test")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_arrive(workers: int) -> None:
    with pytest.raises(UserError, match=r"^a mistake$"):
        list(pool.run(fail, [0, 1, 2, 4], workers=workers, images=0, title="test"))
    kind = ZeroDivisionError if workers == 1 else RuntimeError
    with pytest.raises(kind, match="a bug"):
        list(pool.run(fail, [0, 1, 3, 4], workers=workers, images=0, title="test"))
