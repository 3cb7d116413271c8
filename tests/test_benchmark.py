"""What the benchmark measures is what it says."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import augment, options
from jaxcls.benchmark import main
from jaxcls.benchmarks import augmentation
from jaxcls.benchmarks.augmentation import (
    every_branch,
    lesson,
    medians,
    photographs,
    with_new_keys,
)


def test_every_branch_applies_as_many_operations_as_asked_for() -> None:
    operations = [
        lambda key, images, number=number: images * 10 + number for number in (1, 2, 3)
    ]
    images = jnp.zeros((600, 1, 1, 1))
    found = every_branch(jax.random.key(0), images, operations, 2).ravel()
    pairs, counts = np.unique(np.asarray(found).astype(int), return_counts=True)
    assert pairs.tolist() == [11, 12, 13, 21, 22, 23, 31, 32, 33]
    assert counts.min() > 30  # of 67; each image draws for itself


class Clock:
    """Stands in for the module time: its time passes when a test says so."""

    now = busy = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.busy

    def passes(self, seconds: float, busy: float = 0) -> None:
        self.now += seconds
        self.busy += busy


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(augmentation, "time", clock)
    return clock


def test_the_first_turn_is_not_counted(clock: Clock) -> None:
    waits = iter([9.0, 1.0, 3.0, 2.0])
    found = medians({"call": lambda: clock.passes(next(waits))}, turns=3)
    assert found["call"].clock == 2


def test_work_is_counted_and_waiting_is_not(clock: Clock) -> None:
    calls = {
        "work": lambda: clock.passes(1, busy=2),  # in two threads
        "wait": lambda: clock.passes(3),
    }
    found = medians(calls, turns=3)
    assert (found["work"].clock, found["work"].busy) == (1, 2)
    assert (found["wait"].clock, found["wait"].busy) == (3, 0)


@pytest.mark.slow  # not that it is long: other work on the machine disturbs it
def test_the_work_of_all_threads_is_counted() -> None:
    def work() -> None:
        start = time.thread_time()
        while time.thread_time() - start < 0.05:
            pass

    def work_in_two() -> None:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    calls = {"work": work_in_two, "wait": lambda: time.sleep(0.05)}
    found = medians(calls, turns=3)
    assert 0.1 <= found["work"].busy < 0.15
    assert found["wait"].busy < 0.03 and found["wait"].clock >= 0.05


def test_policies_are_measured_with_another_key_each_time() -> None:
    call = with_new_keys(lambda key, images: jax.random.uniform(key), np.zeros(1))
    assert len({float(call()) for _ in range(10)}) == 10


def test_the_lessons_pipeline_takes_its_images() -> None:
    images = photographs(16, 32)
    assert images.shape == (16, 32, 32, 3) and images.dtype == np.uint8
    assert images.std((1, 2, 3)).min() > 10  # not flat
    transforms = lesson(32)
    for transform in transforms:
        options.check(transform)
    result, _ = jax.eval_shape(
        lambda: augment.apply(transforms, jax.random.key(0), images, jnp.ones((16, 10)))
    )
    assert result.shape == images.shape


def test_what_it_does_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["augmentation"])
    assert error.value.code == 2
    assert "invalid choice: 'augmentation'" in capsys.readouterr().err
