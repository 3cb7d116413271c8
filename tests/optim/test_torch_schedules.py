"""The factor of the peak rate, against the formulas of PyTorch's schedulers, and against them."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.duration import RunLength, epochs, fraction, steps
from jaxcls.optim import (
    CosineRestarts,
    Exponential,
    Linear,
    MultiStep,
    OneCycle,
    Polynomial,
    Schedule,
    Step,
    WarmupCosine,
)
from tests.optim.cases import named

PEAK = 1e-3

# The formulas, of the index of PyTorch's scheduler.step()


def lesson(t: int) -> float:
    """Five epochs of warm-up, then a cosine that would arrive at the hundred-and-first."""
    if t < 5:
        return 0.01 + 0.99 * t / 5
    return 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * (t - 5) / 95)) / 2


def cosine(t: int) -> float:
    return 0.1 + 0.9 * (1 + math.cos(math.pi * t / 60)) / 2


def restarts(first: int, multiplier: int, end: float) -> Callable[[int], float]:
    def factor(t: int) -> float:
        length = first
        while t >= length:
            t, length = t - length, length * multiplier
        return end + (1 - end) * (1 + math.cos(math.pi * t / length)) / 2

    return factor


def one_cycle(n: int, curve: str, three_phase: bool) -> Callable[[int], float]:
    top, last = 0.3 * n - 1, n - 1
    knots = [(0.0, 0.04), (top, 1.0), (last, 4e-6)]
    if three_phase:
        knots.insert(2, (2 * top, 0.04))

    def factor(t: int) -> float:
        for (x0, y0), (x1, y1) in itertools.pairwise(knots):
            if t <= x1:
                done = (t - x0) / (x1 - x0)
                if curve == "cosine":
                    done = (1 - math.cos(math.pi * done)) / 2
                return y0 + (y1 - y0) * done
        raise AssertionError(t)

    return factor


# The schedulers


def torch_lesson(lr: Any, optimizer: Any) -> Any:
    parts = [
        lr.LinearLR(optimizer, start_factor=0.01, total_iters=5),
        lr.CosineAnnealingLR(optimizer, T_max=95, eta_min=PEAK * 1e-3),
    ]
    return lr.SequentialLR(optimizer, parts, milestones=[5])


def torch_one_cycle(n: int, curve: str, three_phase: bool) -> Callable[[Any, Any], Any]:
    return lambda lr, optimizer: lr.OneCycleLR(
        optimizer,
        max_lr=PEAK,
        total_steps=n,
        anneal_strategy="cos" if curve == "cosine" else "linear",
        cycle_momentum=False,
        three_phase=three_phase,
    )


Case = tuple[Schedule, int, Callable[[int], float], Callable[[Any, Any], Any]]

CASES: dict[str, Case] = {
    "lesson": (
        WarmupCosine(warmup=epochs(5), end=1e-3, every="epoch", end_at="after_last"),
        100,
        lesson,
        torch_lesson,
    ),
    "CosineAnnealingLR": (
        WarmupCosine(warmup=steps(0), end=0.1, every="epoch", end_at="after_last"),
        60,
        cosine,
        lambda lr, sgd: lr.CosineAnnealingLR(sgd, T_max=60, eta_min=0.1 * PEAK),
    ),
    "restarts of equal length": (
        CosineRestarts(period=epochs(10), every="epoch", end_at="after_last"),
        45,
        restarts(10, 1, 0.0),
        lambda lr, sgd: lr.CosineAnnealingWarmRestarts(sgd, T_0=10),
    ),
    "restarts that double": (
        CosineRestarts(
            period=epochs(7), multiplier=2, end=0.2, every="epoch", end_at="after_last"
        ),
        120,
        restarts(7, 2, 0.2),
        lambda lr, sgd: lr.CosineAnnealingWarmRestarts(
            sgd, T_0=7, T_mult=2, eta_min=0.2 * PEAK
        ),
    ),
    "ExponentialLR": (
        Exponential(period=epochs(1), decay=0.93, every="epoch"),
        50,
        lambda t: 0.93**t,
        lambda lr, sgd: lr.ExponentialLR(sgd, gamma=0.93),
    ),
    "StepLR": (
        Step(period=epochs(7), decay=0.3, every="epoch"),
        50,
        lambda t: 0.3 ** (t // 7),
        lambda lr, sgd: lr.StepLR(sgd, step_size=7, gamma=0.3),
    ),
    "MultiStepLR": (
        MultiStep(
            milestones=(epochs(4), epochs(11), epochs(49), epochs(90)),
            decay=0.2,
            every="epoch",
        ),
        50,
        lambda t: 0.2 ** sum(t >= milestone for milestone in (4, 11, 49)),
        lambda lr, sgd: lr.MultiStepLR(sgd, milestones=[4, 11, 49, 90], gamma=0.2),
    ),
    "PolynomialLR": (
        Polynomial(power=0.9, every="epoch", end_at="after_last"),
        50,
        lambda t: (1 - t / 50) ** 0.9,
        lambda lr, sgd: lr.PolynomialLR(sgd, total_iters=50, power=0.9),
    ),
    "LinearLR": (
        Linear(end=0.1, every="epoch", end_at="after_last"),
        50,
        lambda t: 1 - 0.9 * t / 50,
        lambda lr, sgd: lr.LinearLR(
            sgd, start_factor=1.0, end_factor=0.1, total_iters=50
        ),
    ),
    **{
        f"OneCycleLR {curve} {n}{' three phases' * three_phase}": (
            OneCycle(curve=curve, three_phase=three_phase, every="epoch"),  # type: ignore[arg-type]
            n,
            one_cycle(n, curve, three_phase),
            torch_one_cycle(n, curve, three_phase),
        )
        for curve in ("cosine", "linear")
        # Of 101 the peak lies between two steps.
        for n in (100, 101)
        for three_phase in (False, True)
    },
}
"""Our schedule, its ticks, the formula, PyTorch's scheduler."""


def factors(schedule: Schedule, ticks: int, steps_per_epoch: int) -> np.ndarray:
    """The factor at every step of a run of so many epochs."""
    run = RunLength(steps_per_epoch, 4, total_steps=ticks * steps_per_epoch)
    factor = jax.jit(jax.vmap(schedule.factor(run)))
    return np.asarray(factor(np.arange(ticks * steps_per_epoch, dtype=np.int32)))


@functools.cache
def all_factors(x64: bool) -> dict[str, np.ndarray]:
    """Those of each case, at every step of a run of 3 steps an epoch, by one program."""
    runs = {
        name: (schedule, RunLength(3, 4, total_steps=3 * ticks))
        for name, (schedule, ticks, _, _) in CASES.items()
    }

    @jax.jit
    def compute(steps: dict[str, jax.Array]) -> dict[str, jax.Array]:
        factors = {}
        for name, (schedule, run) in runs.items():
            with named(name):
                factors[name] = jax.vmap(schedule.factor(run))(steps[name])
        return factors

    counts = {name: run.total_steps for name, (_, run) in runs.items()}
    with jax.enable_x64(x64):
        return jax.device_get(
            compute({n: np.arange(c, dtype=np.int32) for n, c in counts.items()})
        )


@pytest.mark.parametrize("name", CASES)
def test_factors_are_the_formula_of_pytorch(name: str) -> None:
    _, ticks, formula, _ = CASES[name]
    expected = np.repeat([formula(t) for t in range(ticks)], 3)
    found, rounded = all_factors(True)[name], all_factors(False)[name]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, expected, rtol=1e-6)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_factors_are_pytorchs(name: str) -> None:
    torch = pytest.importorskip("torch")
    schedule, ticks, _, build = CASES[name]
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=PEAK)
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR uses what is deprecated
        scheduler = build(torch.optim.lr_scheduler, sgd)
        for _ in range(ticks):
            expected.append(sgd.param_groups[0]["lr"])
            sgd.step()
            scheduler.step() if len(expected) < ticks else None
    with jax.enable_x64(True):
        found = PEAK * factors(schedule, ticks, steps_per_epoch=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_rates_of_the_lesson() -> None:
    schedule, _, _, _ = CASES["lesson"]
    with jax.enable_x64(True):
        rates = PEAK * factors(schedule, 100, steps_per_epoch=1)
    first = [1e-5, 2.08e-4, 4.06e-4, 6.04e-4, 8.02e-4, 1e-3]
    np.testing.assert_allclose(rates[:6], first, rtol=1e-12)
    np.testing.assert_allclose(rates[-1], 1.2731e-6, rtol=1e-4)


# Of 1251 steps 2.4 epochs are 3002.4; the other steps are beyond what float32 can count.
@pytest.mark.parametrize("spe", [1251, 5_000_011])
@pytest.mark.parametrize(("x64", "rtol"), [(False, 1e-6), (True, 1e-9)])
def test_efficientnets_staircase_falls_at_every_twelfth_fifth_of_an_epoch(
    spe: int, x64: bool, rtol: float
) -> None:
    schedule = Exponential(period=epochs(2.4), decay=0.97, staircase=True)
    run = RunLength(spe, 1024, total_steps=350 * spe)
    falls = np.array([-(-k * 12 * spe // 5) for k in range(1, 146)])
    with jax.enable_x64(x64):
        factor = jax.jit(jax.vmap(schedule.factor(run)))
        before, after = factor(falls - 1), factor(falls)
    np.testing.assert_allclose(before, 0.97 ** np.arange(145.0), rtol=rtol)
    np.testing.assert_allclose(after, 0.97 ** np.arange(1.0, 146.0), rtol=rtol)


def test_a_staircase_of_whole_epochs_counts_fractions_of_them_too() -> None:
    # 12 / 2.4 is 5 exactly, and steps rounded to whole ones would miss it: 3004.8 are 3005.
    schedule = Exponential(period=epochs(2.4), decay=0.5, staircase=True, every="epoch")
    found = factors(schedule, 30, steps_per_epoch=1252)[::1252]
    np.testing.assert_array_equal(
        found, np.float32([0.5 ** (5 * e // 12) for e in range(30)])
    )


def test_a_rise_is_a_length_like_any_other() -> None:
    cycle = OneCycle(rise=fraction(0.3))
    np.testing.assert_array_equal(
        factors(OneCycle(rise=epochs(6)), 20, 5), factors(cycle, 20, 5)
    )
