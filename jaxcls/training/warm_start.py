"""Begins a run with weights that exist: published ones, a file's, or another run's."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls import config as config_lib
from jaxcls.augment import Normalize
from jaxcls.config import Config
from jaxcls.errors import UserError, did_you_mean
from jaxcls.models import is_weight_set, pretrained
from jaxcls.models.weights import WEIGHTS, find
from jaxcls.parallel import make_mesh, replicated
from jaxcls.training import checkpoint
from jaxcls.training.program import Program, weight_shapes
from jaxcls.training.state import TrainState


def warm_start(
    state: TrainState, program: Program, source: str
) -> tuple[TrainState, list[str]]:
    """Puts weights into the state before the first step, and into its average.

    Args:
      state: the initial state, on the devices.
      program: whose network it is.
      source: config.model.weights: the name of a weight set, a file, or a run's folder.

    Returns:
      The state, and a sentence on each thing that the log should say.

    Raises:
      UserError: if the weights cannot be had or are of another network.
    """
    config, module = program.config, program.model
    messages = []
    if not is_weight_set(source) and Path(source).is_dir():
        loaded, origin = _of_run(Path(source), config, module)
        messages.append(origin)
    else:
        if not is_weight_set(source) and not Path(source).exists():
            raise UserError(
                f"there is no file or folder {source}.{did_you_mean(source, WEIGHTS)} "
                "`python -m jaxcls.models resnet50` lists the names of published weights."
            )
        name = config.model.name
        loaded = pretrained.load(source, name, **_options(module))
    initial = jax.device_get(state.variables())
    target = {name: tree for name, tree in initial.items() if tree}
    fitted, changed = pretrained.fit(module, loaded, target)
    count = sum(leaf.size for leaf in jax.tree.leaves(fitted["params"]))
    messages.append(f"begins with the weights {source}: {count:,} parameters")
    messages += changed
    if is_weight_set(source):
        messages += _notes(config, source)
    weights = {
        "params": fitted["params"],
        "batch_stats": fitted.get("batch_stats", {}),
    }
    weights = jax.device_put(weights, replicated(program.mesh))
    ema = state.ema
    if ema is not None:
        # Copied, because a donated state may not hold one buffer twice.
        ema = jax.tree.map(jnp.copy, weights)
    return dataclasses.replace(state, **weights, ema=ema), messages


def _options(module: Any) -> dict[str, Any]:
    """Returns the options of a network on which the names and shapes of its arrays depend."""
    names = ("stem", "width")
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _of_run(path: Path, config: Config, module: Any) -> tuple[dict[str, Any], str]:
    """Reads the weights of a run of ours, averaged ones where it has them; says which."""
    folder = checkpoint.find(path)
    run = checkpoint.read_run(folder)
    saved = config_lib.from_dict(run["config"])
    if saved.model.name != config.model.name:
        raise UserError(
            f"the weights {folder} are of {saved.model.name}, not of {config.model.name}."
        )
    theirs: Any = saved.model.create(len(run["class_names"]))
    for option in ("stem", "padding", "bn_epsilon"):
        was, now = getattr(theirs, option, None), getattr(module, option, None)
        if was != now:
            raise UserError(
                f"the weights {folder} were trained with model.{option}={was!r}, not {now!r}: "
                "with another the network computes something else."
            )
    # Read whole onto one device: they are put where they belong afterwards.
    one = make_mesh(1)
    shapes = weight_shapes(
        saved,
        theirs,
        tuple(run["image_shape"]),
        one,
    )
    weights = checkpoint.restore_weights(folder, shapes)
    chosen = weights.get("ema", weights)
    kind = "averaged" if "ema" in weights else "raw"
    found = {name: chosen[name] for name in ("params", "batch_stats")}
    trees = jax.device_get({name: tree for name, tree in found.items() if tree})
    return trees, f"the {kind} weights of step {run['step']} in {folder}:"


def _notes(config: Config, source: str) -> list[str]:
    """Says where a recipe feeds published weights otherwise than they were trained."""
    known = find(source)
    notes = []
    if config.model.stem == "small":
        notes.append(
            "note: these weights were trained with model.stem='imagenet', which has larger "
            "strides than 'small'"
        )
    for transform in config.eval_transform:
        if isinstance(transform, Normalize):
            if (transform.mean, transform.std) != (known.mean, known.std):
                notes.append(
                    f"note: these weights were trained with Normalize(mean={known.mean}, "
                    f"std={known.std}); the recipe has mean={transform.mean}, "
                    f"std={transform.std}"
                )
    return notes
