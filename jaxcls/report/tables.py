"""What a run says about itself at its start and at its end."""

import collections
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from clu import parameter_overview
from jax.sharding import Mesh

from jaxcls.config import Config, Plan
from jaxcls.data.sources import Source
from jaxcls.optim.chain import weight_decay
from jaxcls.optim.optimizers import Optimizer
from jaxcls.optim.treatment import Treatment, Treatments, path_of
from jaxcls.report.plot import schedule_plot
from jaxcls.training.state import TrainState


def parameters(
    params: Any,
    groups: Treatments,
    peak_rate: float,
    weight_decay: float,
    optimizer: Optimizer,
) -> str:
    """Returns the table of parameters, and below it what is done with which of them.

    Args:
      params: the parameters, or their jax.ShapeDtypeStruct.
      groups: the treatment of each.
      peak_rate: learning rate at the peak of the schedule, before multipliers.
      weight_decay: of the optimizer, before multipliers.
      optimizer: what trains them.
    """
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    rows = treatments(params, groups, peak_rate, weight_decay, optimizer)
    return f"{table}\n{rows}"


def treatments(
    params: Any,
    groups: Treatments,
    peak_rate: float,
    weight_decay: float,
    optimizer: Optimizer,
) -> str:
    """Returns a table with a line for each combination of learning rate, weight decay, thaw
    and, where the optimizer is made of several, the one that trains: how many values and arrays
    have it, and which.

    What is frozen comes last, the layers with the highest rate first. Takes what parameters()
    takes.
    """
    members = _members(params, groups, optimizer)
    columns = ["learning rate", "weight decay", "trained", "values", "arrays"]
    lines = [["by", *columns, "which"]]
    for treatment, by in sorted(members, key=_order):
        found = members[treatment, by]
        frozen = treatment.thaws_at is None
        thaw = treatment.thaws_at
        when = f"from step {thaw:,}" if thaw else "always"
        lines.append(
            [
                by,
                "-" if frozen else f"{treatment.rate * peak_rate:.4g}",
                "-" if frozen else f"{treatment.decay * weight_decay:.4g}",
                "never" if frozen else when,
                f"{sum(size for _, size in found):,}",
                f"{len(found):,}",
                _summary([name for name, _ in found]),
            ]
        )
    if len({by for _, by in members} - {"-"}) < 2:  # it goes without saying
        lines = [line[1:] for line in lines]
    return _aligned(lines)


def _members(
    params: Any, groups: Treatments, optimizer: Optimizer
) -> dict[tuple[Treatment, str], list[tuple[str, int]]]:
    """Returns (treatment, what trains it) -> the paths and sizes of the parameters. The rate
    is that of the groups times the optimizer's own multiplier."""
    members = collections.defaultdict(list)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(params):
        path = path_of(keys)
        one = groups.by_path[path]
        by, multiplier = optimizer.trains(path, leaf.shape)
        if one.thaws_at is None:  # its rate and decay say nothing
            key = (Treatment(thaws_at=None), "-")
        else:
            key = (dataclasses.replace(one, rate=one.rate * multiplier), by)
        members[key].append((path, leaf.size))
    return members


def _order(one: tuple[Treatment, str]) -> tuple[Any, ...]:
    """Returns what the table is sorted by: what never thaws last, the highest rate first."""
    treatment, by = one
    thaw = float("inf") if treatment.thaws_at is None else treatment.thaws_at
    return (thaw, -treatment.rate, -treatment.decay, by)


def _aligned(lines: list[list[str]]) -> str:
    """Returns the lines of a table, each column but the last aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)][:-1]
            + line[-1:]
        )
        for line in lines
    )


def _summary(names: list[str]) -> str:
    """Returns "bn1, conv1, ... layer4_2 (18 layers): kernel" for the paths of parameters."""
    layers = list(dict.fromkeys(name.split("/")[0] for name in names))
    kinds = sorted({name.rpartition("/")[2] for name in names})
    if len(layers) > 3:
        layers = [*layers[:2], f"... {layers[-1]} ({len(layers)} layers)"]
    return f"{', '.join(layers)}: {', '.join(kinds)}"


def run(
    config: Config,
    plan: Plan,
    mesh: Mesh,
    train_source: Source,
    test_source: Source,
) -> str:
    """Returns what is trained on what, and for how long."""
    device = mesh.devices.flat[0]
    epochs = plan.total_steps / plan.run.steps_per_epoch
    return (
        f"data: {train_source!r}, {test_source!r}, {len(train_source.class_names)} classes\n"
        f"devices: {mesh.size} x {device.device_kind}, batch {config.batch_size} = "
        f"{mesh.size} x {config.batch_size // mesh.size}\n"
        f"run: {plan.total_steps:,} steps, {epochs:.4g} epochs of "
        f"{plan.run.steps_per_epoch:,} steps; peak learning rate {_peak(config)}"
    )


def _peak(config: Config) -> str:
    """Returns the peak rate, and what it comes from."""
    optimizer = config.optimizer
    peak = f"{optimizer.peak(config.batch_size):g}"
    if optimizer.rate_per is None:
        return peak
    return (
        f"{peak} ({optimizer.learning_rate:g} per {optimizer.rate_per} images, "
        f"{optimizer.rate_scaling} scaling)"
    )


def compiled(seconds: dict[str, tuple[float, float]]) -> str:
    """Returns how long programs took: name -> seconds to trace and to compile."""
    parts = [
        f"{name} {trace + compile_:.1f} s (trace {trace:.2f}, compile {compile_:.2f})"
        for name, (trace, compile_) in seconds.items()
    ]
    return f"compiled: {', '.join(parts)}"


def memory(state: TrainState, constants: dict[str, Any], program: Any) -> str:
    """Returns what a train step needs of each device's memory.

    Args:
      state: as jax.ShapeDtypeStruct, of which every device holds a copy.
      constants: shapes of what else stays on the devices: "records", "teacher".
      program: the compiled step, jax.stages.Compiled.
    """
    parts = {
        "parameters and batch statistics": (state.params, state.batch_stats),
        "optimizer": state.opt_state,
        "averaged weights": state.ema,
        **constants,
    }
    megabytes = {name: _bytes_held(tree) / 1e6 for name, tree in parts.items()}
    found = program.memory_analysis()
    megabytes["temporary, in a step"] = found.temp_size_in_bytes / 1e6
    lines = [f"  {size:10,.1f} MB  {name}" for name, size in megabytes.items() if size]
    total = sum(megabytes.values())
    return "\n".join(["memory of each device:", *lines, f"  {total:10,.1f} MB  in all"])


def _bytes_held(shapes: Any) -> int:
    """Returns the bytes of a tree of jax.ShapeDtypeStruct that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )


def schedules(config: Config, plan: Plan, learning_rate: optax.Schedule) -> str:
    """Returns how rate and weight decay go over the run: first, highest and last value, and a
    plot."""
    curves = {"learning rate": learning_rate}
    if config.decay_schedule is not None:
        strength = weight_decay(config.optimizer, config.decay_schedule, plan.run)
        curves["weight decay"] = strength
    texts = []
    for name, curve in curves.items():
        steps = np.unique(np.linspace(0, plan.total_steps - 1, 512).astype(np.int32))
        values = np.asarray(jax.vmap(curve)(steps))
        title = (
            f"{name}: {values[0]:.4g} at step 0, {values.max():.4g} at the highest, "
            f"{values[-1]:.4g} at step {plan.total_steps - 1:,}"
        )
        last = plan.total_steps - 1
        texts.append(schedule_plot(values.tolist(), title=title, last_step=last))
    return "\n".join(texts)


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
