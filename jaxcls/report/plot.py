"""Curves in plain characters, for a terminal or a log file."""

import itertools
import math
from collections.abc import Sequence


def schedule_plot(
    values: Sequence[float],
    width: int = 60,
    height: int = 10,
    *,
    title: str = "",
    last_step: int | None = None,
) -> str:
    """Returns a plot of a curve over a run: its highest value on top, 0 at the bottom (or the
    lowest value, where that is below 0).

    A column shows every row between the lowest and the highest of its values, so that a narrow
    peak is not lost; where there are fewer values than columns each takes several.

    Args:
      values: finite; of every step, or of steps at equal distances from the first to the last.
      width: columns of the curve, 16 or more; labels come on top of that.
      height: rows of the curve, 2 or more.
      title: a line above the plot; "" leaves it out.
      last_step: the step of the last value; None where values are of every step.

    Raises:
      ValueError: for values that are not finite or none at all, or a plot that is too small.
    """
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError("a plot needs values, all of them finite")
    if width < 16 or height < 2:
        raise ValueError(f"a plot of {width} x {height} is too small: 16 x 2 at least")
    bottom, top = min(0.0, *values), max(values)
    span = top - bottom or 1.0
    marks = [
        {round((value - bottom) / span * (height - 1)) for value in column}
        for column in _columns(values, width)
    ]
    middle = height // 2
    labels = {height - 1: top, middle: bottom + span * middle / (height - 1)}
    labels[0] = bottom
    texts = {row: f"{value:.3g}" for row, value in labels.items()}
    margin = max(map(len, texts.values()))
    lines = [title] if title else []
    for row in reversed(range(height)):
        curve = "".join("*" if min(m) <= row <= max(m) else " " for m in marks)
        lines.append(f"{texts.get(row, ''):>{margin}} |{curve}".rstrip())
    lines.append(f"{'':{margin}} +{'-' * width}")
    last = len(values) - 1 if last_step is None else last_step
    right = f"{last:,}"
    axis = f"0{'step':^{width - 1 - len(right)}}{right}"
    lines.append(f"{'':{margin}}  {axis}")
    return "\n".join(lines)


def _columns(values: Sequence[float], width: int) -> list[Sequence[float]]:
    """Returns the values that each of `width` columns shows, one at least."""
    count = len(values)
    edges = [column * count // width for column in range(width + 1)]
    return [values[a : max(b, a + 1)] for a, b in itertools.pairwise(edges)]
