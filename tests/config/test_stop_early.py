"""When a run ends early, by hand-made evaluations."""

import pytest

from jaxcls.config import StopEarly

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
    assert early.best(evaluations(CURVE))["step"] == best_step
    # The last is of step 60.
    assert early.reached(evaluations(CURVE), 60 - best_step)
    assert not early.reached(evaluations(CURVE), 60 - best_step + 1)


def test_equal_values_are_no_rise() -> None:
    flat = evaluations([0.7, 0.7, 0.7])
    assert StopEarly().best(flat)["step"] == 10
    assert StopEarly().reached(flat, 20)


def test_a_plateau_needs_evaluations() -> None:
    assert not StopEarly().reached([], 1)


def test_the_metric_is_the_one_that_is_named() -> None:
    lines = [
        {"step": n, "eval/top1": n / 10, "eval/top1_ema": 0.5} for n in range(1, 5)
    ]
    assert not StopEarly(metric="eval/top1").reached(lines, 2)
    assert StopEarly(metric="eval/top1_ema").reached(lines, 2)
