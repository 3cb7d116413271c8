"""When a run has stopped getting better: a function of its evaluations alone, so that a run
which is continued ends where it would have ended."""

from collections.abc import Sequence
from typing import Any

from jaxcls.config import StopEarly


def best(evaluations: Sequence[dict[str, Any]], early: StopEarly) -> dict[str, Any]:
    """Returns the evaluation that none after it has exceeded by more than early.min_delta.

    Args:
      evaluations: in the order of their steps, one at least; each has "step" and the metric.
      early: names the metric.
    """
    found = evaluations[0]
    for evaluation in evaluations[1:]:
        if evaluation[early.metric] > found[early.metric] + early.min_delta:
            found = evaluation
    return found


def reached(
    evaluations: Sequence[dict[str, Any]], early: StopEarly | None, patience: int | None
) -> bool:
    """Whether the last evaluation is `patience` steps or more after the best.

    Args:
      evaluations: in the order of their steps; each has "step" and the metric.
      early: how to judge them; None never ends a run.
      patience: early.patience in steps.
    """
    if early is None or not evaluations:
        return False
    assert patience is not None
    return evaluations[-1]["step"] - best(evaluations, early)["step"] >= patience
