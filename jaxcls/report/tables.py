"""Tables and sentences that a run prints at its start and at its end."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from jaxcls.report.plot import schedule_plot


@dataclasses.dataclass(frozen=True)
class Treated:
    """Parameters that are trained alike.

    Attributes:
      by: the part of the optimizer that trains them, "-" if they stay frozen.
      learning_rate: at the peak of the schedule.
      weight_decay: of the optimizer, times their own multiplier.
      thaws_at: the first step that trains them, infinity if none does.
      members: (path, size) of each.
    """

    by: str
    learning_rate: float
    weight_decay: float
    thaws_at: float
    members: list[tuple[str, int]]


def parameters(params: Any) -> str:
    """Returns the table of parameters, given as arrays or as jax.ShapeDtypeStruct."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def treatments(sets: Sequence[Treated]) -> str:
    """Returns a table with a line for each set of parameters: learning rate, weight decay and
    thaw; how many values and arrays it has, and which; and the part of the optimizer that
    trains it, where there are several."""
    columns = ["learning rate", "weight decay", "trained", "values", "arrays"]
    lines = [["by", *columns, "which"]]
    for one in sets:
        names, sizes = zip(*one.members, strict=True)
        if math.isinf(one.thaws_at):
            treatment = ["-", "-", "never"]
        else:
            when = f"from step {one.thaws_at:,}" if one.thaws_at else "always"
            treatment = [f"{one.learning_rate:.4g}", f"{one.weight_decay:.4g}", when]
        counts = [f"{sum(sizes):,}", f"{len(sizes):,}"]
        lines.append([one.by, *treatment, *counts, _summary(names)])
    if len({one.by for one in sets} - {"-"}) < 2:  # it goes without saying
        lines = [line[1:] for line in lines]
    return aligned(lines, left=-1)


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Returns rows of cells as lines. The column `left` is aligned on the left, the others on
    the right."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    for index, column in enumerate(columns):
        align = str.ljust if index == left % len(columns) else str.rjust
        columns[index] = [align(cell, max(map(len, column))) for cell in column]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _summary(names: Sequence[str]) -> str:
    """Returns "bn1, conv1, ... layer4_2 (18 layers): kernel" for the paths of parameters."""
    layers = list(dict.fromkeys(name.split("/")[0] for name in names))
    kinds = sorted({name.rpartition("/")[2] for name in names})
    if len(layers) > 3:
        layers = [*layers[:2], f"... {layers[-1]} ({len(layers)} layers)"]
    return f"{', '.join(layers)}: {', '.join(kinds)}"


def overview(
    data: str,
    *,
    num_classes: int,
    devices: np.ndarray,
    batch_size: int,
    total_steps: int,
    steps_per_epoch: int,
    peak_rate: str,
) -> str:
    """Returns the data, the devices and the length of a run."""
    epochs = total_steps / steps_per_epoch
    return (
        f"data: {data}, {num_classes} classes\n"
        f"devices: {devices.size} x {devices.flat[0].device_kind}, batch {batch_size} = "
        f"{devices.size} x {batch_size // devices.size}\n"
        f"run: {total_steps:,} steps, {epochs:.4g} epochs of "
        f"{steps_per_epoch:,} steps; peak learning rate {peak_rate}"
    )


def compiled(seconds: dict[str, tuple[float, float]]) -> str:
    """Returns how long programs took: name -> seconds to trace and to compile."""
    parts = [
        f"{name} {trace + compile_:.1f} s (trace {trace:.2f}, compile {compile_:.2f})"
        for name, (trace, compile_) in seconds.items()
    ]
    return f"compiled: {', '.join(parts)}"


def memory(parts: dict[str, Any], temporary: int) -> str:
    """Returns what a train step needs of each device's memory.

    Args:
      parts: name -> what stays on the devices, a tree of jax.ShapeDtypeStruct with shardings.
      temporary: bytes that the step takes besides.
    """
    megabytes = {name: _bytes_held(tree) / 1e6 for name, tree in parts.items()}
    megabytes["temporary, in a step"] = temporary / 1e6
    lines = [f"  {size:10,.1f} MB  {name}" for name, size in megabytes.items() if size]
    total = sum(megabytes.values())
    return "\n".join(["memory of each device:", *lines, f"  {total:10,.1f} MB  in all"])


def _bytes_held(shapes: Any) -> int:
    """Returns the bytes of a tree of jax.ShapeDtypeStruct that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def schedule(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """Returns how a rate goes over the run: first, highest and last value, and a plot.

    Args:
      name: of the rate.
      steps: int [n], from the first to the last of the run.
      values: at these steps, float [n].
    """
    title = (
        f"{name}: {values[0]:.4g} at step 0, {values.max():.4g} at the highest, "
        f"{values[-1]:.4g} at step {steps[-1]:,}"
    )
    return schedule_plot(values.tolist(), title=title, last_step=int(steps[-1]))


def finished(
    workdir: Path, last_checkpoint: Path, best_checkpoint: Path, last: dict[str, Any]
) -> str:
    """Returns the end of a complete run: the last evaluation and where everything lies."""
    top1 = f"top-1 {last['eval/top1']:.2%} raw"
    if "eval/top1_ema" in last:
        top1 += f", {last['eval/top1_ema']:.2%} EMA"
    images = f"all {last['eval/examples']} test images"
    if bad := last.get("eval/bad_images"):
        images = f"{last['eval/examples']} test images; bad ones left out: {bad}"
    return (
        f"complete: {top1}, on {images}\n"
        f"  last checkpoint: {last_checkpoint}\n"
        f"  best checkpoint: {best_checkpoint}\n"
        f"  evaluate the last: python -m jaxcls.evaluate --checkpoint {workdir}"
    )
