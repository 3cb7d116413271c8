"""The factor of the peak rate, against the formulas."""

import math

import jax
import numpy as np
import pytest

from jaxcls.duration import RunLength, epochs, fraction, steps
from jaxcls.errors import UserError
from jaxcls.optim import Schedule, WarmupCosine


def factors(schedule: Schedule, total: int) -> np.ndarray:
    """The factor at every step of a run, as the compiled step computes it."""
    run = RunLength(steps_per_epoch=10, batch_size=4, total_steps=total)
    factor = jax.jit(jax.vmap(schedule.factor(run)))
    return np.asarray(factor(np.arange(total, dtype=np.int32)))


def reference(total: int, warmup: int, start: float, end: float) -> np.ndarray:
    values = []
    for t in range(total):
        if t < warmup:
            values.append(start + (1 - start) * t / warmup)
        else:
            cosine = math.cos(math.pi * (t - warmup) / (total - 1 - warmup))
            values.append(end + (1 - end) * (1 + cosine) / 2)
    return np.array(values)


@pytest.mark.parametrize(
    ("total", "warmup", "start", "end"),
    [(100, 5, 0.01, 0.0), (50, 25, 0.2, 0.1), (30, 0, 0.01, 0.001), (7, 1, 0.5, 0.0)],
)
def test_warmup_cosine_is_the_formula(
    total: int, warmup: int, start: float, end: float
) -> None:
    found = factors(WarmupCosine(warmup=steps(warmup), start=start, end=end), total)
    np.testing.assert_allclose(
        found, reference(total, warmup, start, end), rtol=1e-5, atol=1e-7
    )
    # What the formula leaves to rounding must be exact.
    assert found[0] == np.float32(1 if warmup == 0 else start) > 0
    assert found[-1] == np.float32(end)
    np.testing.assert_array_equal(np.flatnonzero(found == 1), [warmup])
    assert (np.diff(found[: warmup + 1]) > 0).all()
    assert (np.diff(found[warmup:]) < 0).all()


def test_the_factor_is_the_same_outside_jit() -> None:
    schedule = WarmupCosine(warmup=steps(3), end=0.1)
    factor = schedule.factor(RunLength(10, 4, total_steps=9))
    np.testing.assert_allclose(
        [factor(step) for step in range(9)], factors(schedule, 9), rtol=1e-6
    )
    assert factor(8).dtype == np.float32
    # After its end a run would go on at the last rate.
    assert factor(100) == np.float32(0.1)


@pytest.mark.parametrize("end", [0.0, 0.25])
def test_the_shortest_runs(end: float) -> None:
    schedule = WarmupCosine(warmup=steps(0), end=end)
    np.testing.assert_array_equal(factors(schedule, 1), [1])
    np.testing.assert_array_equal(factors(schedule, 2), np.float32([1, end]))
    # The longest warm-up that fits leaves one step to come down.
    line = factors(WarmupCosine(warmup=steps(2), start=0.5, end=end), 4)
    np.testing.assert_array_equal(line, np.float32([0.5, 0.75, 1, end]))


@pytest.mark.parametrize(
    ("duration", "warmup"), [(epochs(2), 20), (fraction(0.05), 5), (steps(7), 7)]
)
def test_the_warmup_takes_any_unit(duration: object, warmup: int) -> None:
    found = factors(WarmupCosine(warmup=duration), 100)  # type: ignore[arg-type]
    assert found.argmax() == warmup


@pytest.mark.parametrize(
    ("warmup", "total"),
    [(19, 20), (20, 20), (1000, 20), (2, 3), (1, 2), (1, 1), (2, 1)],
)
def test_a_warmup_that_leaves_no_way_down_is_an_error(warmup: int, total: int) -> None:
    with pytest.raises(UserError, match=rf"is {warmup} steps.* run has {total}\b"):
        factors(WarmupCosine(warmup=steps(warmup)), total)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (WarmupCosine(start=0.0), "schedule.start must lie in 0..1, above 0, not 0.0"),
        (WarmupCosine(start=1.5), "schedule.start must lie in 0..1, above 0, not 1.5"),
        (WarmupCosine(start=np.nan), "not nan"),
        (WarmupCosine(end=-0.1), "schedule.end must lie in 0..1, not -0.1"),
        (WarmupCosine(end=2.0), "schedule.end must lie in 0..1, not 2.0"),
    ],
)
def test_values_out_of_range_are_named(schedule: Schedule, said: str) -> None:
    with pytest.raises(UserError) as error:
        schedule.validate()
    assert said in str(error.value)


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    WarmupCosine(start=1.0, end=0.0).validate()
    WarmupCosine(start=1e-6, end=1.0).validate()


def test_a_schedule_without_a_factor_says_so() -> None:
    class Forgetful(Schedule):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*factor"):
        Forgetful()  # type: ignore[abstract]
