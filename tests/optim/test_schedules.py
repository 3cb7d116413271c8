"""The factor of the peak rate, against the formulas."""

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import config as config_lib
from jaxcls.duration import RunLength, epochs, fraction, steps
from jaxcls.errors import UserError
from jaxcls.optim import (
    Constant,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Schedule,
    Step,
    WarmupCosine,
    WarmupStableDecay,
)
from jaxcls.options import allows, check
from tests.optim.cases import named


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
        check(schedule, "schedule")
    assert said in str(error.value)


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    check(WarmupCosine(start=1.0, end=0.0))
    check(WarmupCosine(start=1e-6, end=1.0))


def test_a_schedule_without_a_shape_says_so() -> None:
    class Forgetful(Schedule):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*after_warmup"):
        Forgetful()  # type: ignore[abstract]


# All kinds


@dataclasses.dataclass(kw_only=True)
class Kind:
    """A schedule with a warm-up and what is known of it.

    Attributes:
      make: of the unit of durations and the warm-up, both in ticks.
      end: factor at the last tick; None where the shape names none.
      formula: (ticks since the peak, ticks from there to the end) -> factors.
    """

    make: Callable[..., Schedule]
    end: float | None = None
    formula: Callable[[np.ndarray, int], np.ndarray]


def half_cosine(done: np.ndarray) -> np.ndarray:
    return (1 + np.cos(np.pi * np.minimum(done, 1))) / 2


def restarted(t: np.ndarray, m: int) -> np.ndarray:
    """Cycles of 5, 10, 20 ... ticks, each peak 0.7 of the last and none below 0.4."""
    values = []
    for tick in t:
        cycle, length = 0, 5
        while tick >= length:
            tick, length, cycle = tick - length, 2 * length, cycle + 1
        peak = max(0.7**cycle, 0.4)
        values.append(0.4 + (peak - 0.4) * half_cosine(tick / (length - 1)))
    return np.array(values)


def cooled(curve: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """Four ticks of cooldown down to 0.1 at the last tick."""
    return lambda t, m: 0.1 + 0.9 * curve(np.clip((t - (m - 5)) / 4, 0, 1))


KINDS = {
    "constant": Kind(
        make=lambda unit, **base: Constant(**base),
        end=1.0,
        formula=lambda t, m: np.ones(len(t)),
    ),
    "linear": Kind(
        make=lambda unit, **base: Linear(end=0.3, **base),
        end=0.3,
        formula=lambda t, m: 1 - 0.7 * t / (m - 1),
    ),
    "polynomial": Kind(
        make=lambda unit, **base: Polynomial(power=3.0, end=0.2, **base),
        end=0.2,
        formula=lambda t, m: 0.2 + 0.8 * (1 - t / (m - 1)) ** 3,
    ),
    "cosine": Kind(
        make=lambda unit, **base: WarmupCosine(end=0.05, **base),
        end=0.05,
        formula=lambda t, m: 0.05 + 0.95 * half_cosine(t / (m - 1)),
    ),
    "cosine restarts": Kind(
        make=lambda unit, **base: CosineRestarts(
            period=unit(5), multiplier=2, decay=0.7, end=0.4, **base
        ),
        formula=restarted,
    ),
    "equal restarts": Kind(
        make=lambda unit, **base: CosineRestarts(period=unit(3), decay=0.9, **base),
        formula=lambda t, m: 0.9 ** (t // 3) * half_cosine(t % 3 / 2),
    ),
    "step": Kind(
        make=lambda unit, **base: Step(period=unit(4), decay=0.5, **base),
        formula=lambda t, m: 0.5 ** (t // 4),
    ),
    "exponential": Kind(
        make=lambda unit, **base: Exponential(period=unit(2.5), decay=0.8, **base),
        formula=lambda t, m: 0.8 ** (t / 2.5),
    ),
    "staircase": Kind(
        make=lambda unit, **base: Exponential(
            period=unit(2.5), decay=0.8, staircase=True, **base
        ),
        formula=lambda t, m: 0.8 ** (2 * t // 5),
    ),
    "inverse square root": Kind(
        make=lambda unit, **base: InverseSqrt(timescale=unit(6), **base),
        formula=lambda t, m: np.sqrt(6 / (6 + t)),
    ),
    "stable, linear": Kind(
        make=lambda unit, **base: WarmupStableDecay(cooldown=unit(4), end=0.1, **base),
        end=0.1,
        formula=cooled(lambda done: 1 - done),
    ),
    "stable, cosine": Kind(
        make=lambda unit, **base: WarmupStableDecay(
            cooldown=unit(4), curve="cosine", end=0.1, **base
        ),
        end=0.1,
        formula=cooled(half_cosine),
    ),
    "stable, square root": Kind(
        make=lambda unit, **base: WarmupStableDecay(
            cooldown=unit(4), curve="one_minus_sqrt", end=0.1, **base
        ),
        end=0.1,
        formula=cooled(lambda done: 1 - np.sqrt(done)),
    ),
}


def random_run(seed: int) -> tuple[int, int, float]:
    """(ticks, ticks of warm-up, start) with which every kind fits."""
    rng = np.random.default_rng(seed)
    total = int(rng.integers(12, 80))
    return total, int(rng.integers(0, total - 10)), float(rng.uniform(1e-3, 0.9))


@functools.cache
def random_runs(seed: int) -> dict[str, np.ndarray]:
    """The factors of each kind in a random run, by one program."""
    total, warmup, start = random_run(seed)
    run = RunLength(steps_per_epoch=10, batch_size=4, total_steps=total)
    schedules = {
        name: kind.make(steps, warmup=steps(warmup), start=start)
        for name, kind in KINDS.items()
    }

    @jax.jit
    def compute(t: jax.Array) -> dict[str, jax.Array]:
        factors = {}
        for name, schedule in schedules.items():
            with named(name):
                check(schedule)
                factors[name] = jax.vmap(schedule.factor(run))(t)
        return factors

    return jax.device_get(compute(np.arange(total, dtype=np.int32)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", KINDS)
def test_runs_of_any_length_follow_the_formula(name: str, seed: int) -> None:
    kind = KINDS[name]
    total, warmup, start = random_run(seed)
    found = random_runs(seed)[name]
    line = start + (1 - start) * np.arange(warmup) / max(warmup, 1)
    shape = kind.formula(np.arange(total - warmup), total - warmup)
    expected = np.concatenate([line, shape])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    # What the formula leaves to rounding must be exact: the beginning, the peak, the end.
    assert found[0] == np.float32(start if warmup else 1) > 0
    assert found[warmup] == 1 == found.max() and (found >= 0).all()
    assert (found[:warmup] < 1).all()
    if kind.end is not None:
        assert found[-1] == np.float32(kind.end)


@pytest.mark.parametrize("name", KINDS)
def test_an_epoch_is_the_step_of_a_schedule_that_changes_by_epoch(name: str) -> None:
    kind = KINDS[name]
    total, warmup, start = random_run(1)
    by_step = random_runs(1)[name]
    by_epoch = kind.make(epochs, warmup=epochs(warmup), start=start, every="epoch")
    # The last epoch is cut short.
    run = RunLength(steps_per_epoch=7, batch_size=4, total_steps=7 * total - 3)
    found = jax.jit(jax.vmap(by_epoch.factor(run)))(np.arange(7 * total - 3))
    np.testing.assert_array_equal(found, np.repeat(by_step, 7)[:-3])


@pytest.mark.parametrize("name", KINDS)
def test_integers_give_what_arrays_in_jit_give(name: str) -> None:
    schedule = KINDS[name].make(steps, warmup=steps(3), start=0.5)
    run = RunLength(10, 4, total_steps=20)
    factor = schedule.factor(run)
    expected = factors(schedule, 20)
    compiled = jax.eval_shape(factor, jax.ShapeDtypeStruct((), jnp.int32))
    for step in (0, 2, 3, 4, 18, 19):
        found = factor(step)
        assert found.shape == ()
        assert found.dtype == compiled.dtype
        np.testing.assert_allclose(found, expected[step], rtol=1e-6)
    # After its end a run would go on at the last factor.
    np.testing.assert_allclose(factor(1000), expected[-1], rtol=1e-6)


@pytest.mark.parametrize("kind", [Linear, WarmupCosine, WarmupStableDecay, Polynomial])
def test_an_end_after_the_last_step_is_that_of_a_run_one_step_longer(
    kind: type[Schedule],
) -> None:
    common = {"warmup": steps(4), "end": 0.1}
    if kind is WarmupStableDecay:
        common["cooldown"] = steps(5)
    found = factors(kind(**common, end_at="after_last"), 20)
    np.testing.assert_array_equal(found, factors(kind(**common), 21)[:-1])


def test_a_cycle_that_ends_after_its_last_step() -> None:
    schedule = CosineRestarts(period=steps(4), end=0.2, end_at="after_last")
    cycle = [1, 0.2 + 0.4 * (1 + np.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - np.sqrt(0.5))]
    np.testing.assert_allclose(factors(schedule, 12), np.tile(cycle, 3), rtol=1e-6)


def test_milestones_count_from_the_start_of_the_run() -> None:
    schedule = MultiStep(
        warmup=steps(2), milestones=(steps(4), fraction(0.8)), start=0.5
    )
    expected = np.float32([0.5, 0.75, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    np.testing.assert_array_equal(factors(schedule, 10), expected)


# Points


@pytest.mark.parametrize("end_at", ["last", "after_last"])
def test_points_are_joined_by_lines(end_at: str) -> None:
    # Twenty-three percent up, down to 0.07: what the fastest networks of CIFAR-10 follow.
    points = ((steps(0), 0.2), (fraction(0.23), 1.0), (fraction(1), 0.07))
    found = factors(Piecewise(points=points, end_at=end_at), 200)  # type: ignore[arg-type]
    last = 199 if end_at == "last" else 200
    expected = np.interp(np.arange(200), [0, 46, last], [0.2, 1, 0.07])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == np.float32(0.2) and found[46] == 1
    assert (found[-1] == np.float32(0.07)) == (end_at == "last")


def test_points_begin_at_the_peak_and_stay_after_the_last() -> None:
    points = ((steps(4), 0.5), (steps(6), 0.0))
    lines = Piecewise(points=points, warmup=steps(2), start=0.5)
    expected = [0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0]
    np.testing.assert_allclose(factors(lines, 8), expected, rtol=1e-6)
    stairs = Piecewise(points=points, interpolation="step")
    np.testing.assert_array_equal(factors(stairs, 8), [1, 1, 1, 1, 0.5, 0.5, 0, 0])
    cut = factors(Piecewise(points=((steps(40), 0.0),)), 20)
    np.testing.assert_allclose(cut, 1 - np.arange(20) / 40, rtol=1e-6)


@pytest.mark.parametrize(
    "schedule",
    [
        Piecewise(points=((epochs(1), 0.5), (fraction(1), 0.25))),
        MultiStep(milestones=(epochs(1), epochs(2))),
        OneCycle(three_phase=True, rise=epochs(2.5)),
    ],
)
def test_json_gives_the_schedule_back(schedule: Schedule) -> None:
    text = json.dumps(config_lib.to_dict(schedule))
    again = config_lib.from_dict(json.loads(text))
    assert again == schedule
    hints = typing.get_type_hints(type(again))
    assert all(allows(hints[name], value) for name, value in vars(again).items())


# Long runs: float32 cannot tell apart steps beyond 2**24


LONG = RunLength(steps_per_epoch=1009, batch_size=4, total_steps=2**31 - 1)


def test_epochs_of_the_longest_run_begin_where_they_do() -> None:
    epoch = LONG.total_steps // 1009 - 2  # type: ignore[operator]
    cycles = CosineRestarts(period=epochs(2), end=0.5, every="epoch").factor(LONG)
    around = jax.jit(jax.vmap(cycles))(
        1009 * (epoch + np.arange(2)[:, None]) + [-1, 0, 1008]
    )
    odd = epoch % 2
    expected = [[1.0, 0.5, 0.5], [0.5, 1.0, 1.0]]
    np.testing.assert_array_equal(around, expected if odd else expected[::-1])


def test_cycles_of_the_longest_run_begin_where_they_do() -> None:
    cycles = CosineRestarts(period=steps(101), end=0.25)
    factor = jax.jit(jax.vmap(cycles.factor(LONG)))
    starts = 101 * np.array([1, 10**5, 10**7, 2 * 10**7])
    np.testing.assert_array_equal(factor(starts), np.ones(4))
    np.testing.assert_array_equal(factor(starts - 1), np.full(4, 0.25))
    doubling = CosineRestarts(period=steps(100), multiplier=2, end=0.25)
    factor = jax.jit(jax.vmap(doubling.factor(LONG)))
    starts = np.array([100 * (2**k - 1) for k in range(1, 25)])
    np.testing.assert_array_equal(factor(starts), np.ones(24))
    np.testing.assert_array_equal(factor(starts - 1), np.full(24, 0.25))


def test_stairs_of_the_longest_run_lie_where_they_do() -> None:
    schedule = Exponential(period=epochs(2.4), decay=1 - 1e-9, staircase=True)
    stairs = np.array([1, 2, 10**3, 880_000])
    falls = -(-stairs * 12 * 1009 // 5)
    with jax.enable_x64(True):
        factor = jax.jit(jax.vmap(schedule.factor(LONG)))
        around = np.asarray(factor(falls)), np.asarray(factor(falls - 1))
    for values, count in zip(around, (stairs, stairs - 1), strict=True):
        np.testing.assert_allclose(np.log(values) / -1e-9, count, rtol=1e-5, atol=0.1)


# Mistakes


OUT_OF_RANGE: list[tuple[Schedule, str]] = [
    (Linear(end=1.5), "schedule.end must lie in 0..1, not 1.5"),
    (Polynomial(power=0.0), "schedule.power must be above 0, not 0.0"),
    (Polynomial(power=float("nan")), "not nan"),
    (Polynomial(end=-1.0), "schedule.end must lie in 0..1, not -1.0"),
    (
        CosineRestarts(period=steps(2), multiplier=0),
        "multiplier must be 1 or more, not 0",
    ),
    (
        CosineRestarts(period=steps(2), decay=0.0),
        "decay must lie in 0..1, above 0, not 0.0",
    ),
    (
        CosineRestarts(period=steps(2), end=2.0),
        "schedule.end must lie in 0..1, not 2.0",
    ),
    (Step(period=steps(2), decay=1.1), "decay must lie in 0..1, above 0, not 1.1"),
    (MultiStep(milestones=()), "schedule.milestones must be not empty, not ()"),
    (MultiStep(milestones=(steps(1),), decay=-0.1), "above 0, not -0.1"),
    (
        Exponential(period=steps(2), decay=0.0),
        "schedule.decay must lie in 0..1, above 0",
    ),
    (WarmupStableDecay(end=-0.5), "schedule.end must lie in 0..1, not -0.5"),
    (OneCycle(end=1.01), "schedule.end must lie in 0..1, not 1.01"),
    (OneCycle(warmup=steps(3)), "warmup must be 0 steps with OneCycle, not 3 steps"),
    (Piecewise(points=()), "schedule.points must be not empty, not ()"),
    (
        Piecewise(points=((steps(0), 1.0), (steps(5), 1.2))),
        "points[1][1] must lie in 0..1, not 1.2",
    ),
    (Constant(start=0.0), "schedule.start must lie in 0..1, above 0, not 0.0"),
]
DOES_NOT_FIT: list[tuple[Schedule, str]] = [
    (
        Constant(warmup=steps(19)),
        "warmup of 19 steps is 19 steps, but the whole run has 20",
    ),
    (
        Linear(warmup=epochs(2), every="epoch"),
        "warmup of 2 epochs is 2 epochs, but the whole run has 2",
    ),
    (
        CosineRestarts(period=steps(0)),
        "period of 0 steps is 0 steps: it must be at least 1",
    ),
    (CosineRestarts(period=steps(19), multiplier=2**31), "multiplier 2147483648 makes"),
    (
        Step(period=epochs(0.4), every="epoch"),
        "period of 0.4 epochs is 0 epochs: it must be at least 1",
    ),
    (
        Step(period=steps(2**31)),
        "is 2147483648 steps: it must be at least 1, and fewer",
    ),
    (Exponential(period=steps(0), decay=0.9), "schedule.period of 0 steps"),
    (InverseSqrt(timescale=steps(0)), "schedule.timescale of 0 steps"),
    (
        MultiStep(milestones=(steps(0),)),
        "milestones[0] of 0 steps is at step 0, but it must",
    ),
    (MultiStep(milestones=(steps(5), steps(5))), "milestones[1] of 5 steps"),
    (MultiStep(milestones=(steps(5),), warmup=steps(5)), "must be at 6 or later"),
    (WarmupStableDecay(cooldown=steps(0)), "at least one, and at most 18"),
    (WarmupStableDecay(cooldown=steps(15), warmup=steps(5)), "and at most 14"),
    (OneCycle(rise=steps(1)), "rise of 1 steps does not fit into a run of 20 steps"),
    (OneCycle(rise=fraction(1)), "shorter than the whole run"),
    (OneCycle(rise=fraction(0.55), three_phase=True), "shorter than half the run"),
    (Piecewise(points=((steps(3), 0.5),), warmup=steps(4)), "must be at 4 or later"),
    (Piecewise(points=((steps(3), 0.5), (steps(3), 0.2))), "must be at 4 or later"),
    (Piecewise(points=((steps(0), 0.0), (steps(3), 0.2))), "points[0] is 0"),
]


@pytest.mark.parametrize(("schedule", "said"), OUT_OF_RANGE)
def test_options_out_of_range_are_named(schedule: Schedule, said: str) -> None:
    with pytest.raises(UserError) as error:
        check(schedule, "schedule")
    assert said in str(error.value)


@pytest.mark.parametrize(("schedule", "said"), DOES_NOT_FIT)
def test_durations_that_do_not_fit_the_run_are_named(
    schedule: Schedule, said: str
) -> None:
    check(schedule)
    with pytest.raises(UserError) as error:
        schedule.factor(RunLength(steps_per_epoch=10, batch_size=4, total_steps=20))
    assert said in str(error.value)


def test_a_schedule_of_your_own_has_a_warmup_and_epochs() -> None:
    @dataclasses.dataclass(kw_only=True)
    class Half(Schedule):
        def after_warmup(self, length: int, run: RunLength) -> Callable[..., jax.Array]:
            return lambda t: jnp.where(t < length // 2, 1.0, 0.5)

    schedule = Half(warmup=epochs(1), start=0.25, every="epoch")
    expected = [0.25, 1, 1, 0.5, 0.5]
    np.testing.assert_array_equal(factors(schedule, 50), np.repeat(expected, 10))
