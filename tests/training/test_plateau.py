"""When a run ends early, by hand-made evaluations."""

import pytest

from jaxcls.config import StopEarly
from jaxcls.training.plateau import best, reached

CURVE = [0.5, 0.6, 0.61, 0.605, 0.612, 0.58]


def evaluations(values: list[float]) -> list[dict]:
    return [{"step": 10 * n, "eval/top1": v} for n, v in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("min_delta", "best_step"),
    # From 0.6 on nothing is better by 0.05; 0.61 beats 0.6 by 0.005, 0.612 not that.
    [(0.0, 50), (0.005, 30), (0.05, 20), (0.2, 10)],
)
def test_the_best_is_the_last_that_rose_enough(
    min_delta: float, best_step: int
) -> None:
    early = StopEarly(min_delta=min_delta)
    assert best(evaluations(CURVE), early)["step"] == best_step
    # The last is of step 60.
    assert reached(evaluations(CURVE), early, 60 - best_step)
    assert not reached(evaluations(CURVE), early, 60 - best_step + 1)


def test_equal_values_are_no_rise() -> None:
    flat = evaluations([0.7, 0.7, 0.7])
    assert best(flat, StopEarly())["step"] == 10
    assert reached(flat, StopEarly(), 20)


def test_a_plateau_needs_evaluations_and_to_be_asked_for() -> None:
    assert not reached([], StopEarly(), 1)
    assert not reached(evaluations(CURVE), None, None)


def test_the_metric_is_the_one_that_is_named() -> None:
    lines = [
        {"step": n, "eval/top1": n / 10, "eval/top1_ema": 0.5} for n in range(1, 5)
    ]
    assert not reached(lines, StopEarly(metric="eval/top1"), 2)
    assert reached(lines, StopEarly(metric="eval/top1_ema"), 2)
