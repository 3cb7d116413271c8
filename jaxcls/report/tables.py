"""What a run says about itself at its start and at its end."""

from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from jax.sharding import Mesh

from jaxcls.config import Config, Plan
from jaxcls.data.sources import Source
from jaxcls.optim import masks


def parameters(params: Any, weight_decay: float) -> str:
    """Returns the table of parameters, and which of them decay.

    Args:
      params: the parameters, or their jax.ShapeDtypeStruct.
      weight_decay: the decay, of those that do.
    """
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    decays = jax.tree.leaves(masks.decayed(params))
    groups: dict[bool, list[tuple[str, int]]] = {True: [], False: []}
    for (path, leaf), decay in zip(
        jax.tree_util.tree_leaves_with_path(params), decays, strict=True
    ):
        name = "/".join(str(key.key) for key in path)
        groups[decay].append((name, leaf.size))
    lines = [table]
    for decay, title in (
        (True, f"decayed by {weight_decay:g}"),
        (False, "not decayed"),
    ):
        members = groups[decay]
        kinds = sorted({name.rpartition("/")[2] for name, _ in members})
        count = sum(size for _, size in members)
        lines.append(
            f"{title}: {count:,} values in {len(members)} arrays ({', '.join(kinds)})"
        )
    return "\n".join(lines)


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
        f"{plan.run.steps_per_epoch:,} steps; peak learning rate "
        f"{config.optimizer.learning_rate:g}"
    )


def compiled(seconds: dict[str, tuple[float, float]]) -> str:
    """Returns how long programs took: name -> seconds to trace and to compile."""
    parts = [
        f"{name} {trace + compile_:.1f} s (trace {trace:.2f}, compile {compile_:.2f})"
        for name, (trace, compile_) in seconds.items()
    ]
    return f"compiled: {', '.join(parts)}"


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
