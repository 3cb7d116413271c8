"""Puts weights that exist into a run before its first step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.augment import Normalize
from jaxcls.config import Config
from jaxcls.errors import UserError
from jaxcls.inference.trained import Trained, load_trained
from jaxcls.models.weights import pretrained
from jaxcls.models.weights.catalogue import find_weights, is_weight_set
from jaxcls.parallel import replicated
from jaxcls.training.program import Program
from jaxcls.training.state import TrainState


def warm_start(
    state: TrainState,
    program: Program,
    source: str,
    class_names: Sequence[str] | None = None,
) -> tuple[TrainState, list[str]]:
    """Puts weights into the state before the first step, and into its average.

    A head for other classes keeps its initial values, which are those of model.head_init.

    Args:
      state: the initial state, on the devices.
      program: whose network it is.
      source: config.model.weights: the name of a weight set, a file, or a run's folder.
      class_names: of the data, in the order of its labels: the head of a run with others is
        new. None goes by their number alone, as it must where weights do not say theirs.

    Returns:
      The state, and sentences for the log.

    Raises:
      UserError: if the weights cannot be had or are of another network.
    """
    config, model = program.config, program.model
    # The options on which the names and shapes of the network's arrays depend.
    options = {o: getattr(model, o) for o in ("stem", "width") if hasattr(model, o)}
    trained = load_trained(source, config.model.name, **options)
    messages, same_classes = [], True
    if trained.class_names is not None:
        _check_computes_the_same(source, trained, model)
        messages.append(f"{trained.source}:")
        same_classes = class_names in (None, trained.class_names)
    initial = jax.device_get(state.variables())
    target = {name: tree for name, tree in initial.items() if tree}
    fitted, changed = pretrained.fit(
        model, trained.variables, target, same_classes=same_classes
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(fitted["params"]))
    messages.append(f"begins with the weights {source}: {count:,} parameters")
    messages += changed
    if is_weight_set(source):
        messages += _notes(config, source)
    everywhere = replicated(program.mesh)
    weights = jax.device_put({"batch_stats": {}, **fitted}, everywhere)
    # Copied, because a donated state may not hold one buffer twice.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, weights)
    # Anew, because an optimizer may have kept something of the parameters.
    init = jax.jit(program.optimizer.init, out_shardings=everywhere)
    changed_state = {**weights, "ema": ema, "opt_state": init(weights["params"])}
    return dataclasses.replace(state, **changed_state), messages


def _check_computes_the_same(source: str, trained: Trained, model: Any) -> None:
    """Raises UserError if a run's network has other options that its arrays do not show."""
    for option in ("stem", "padding", "bn_epsilon"):
        was, now = (getattr(m, option, None) for m in (trained.model, model))
        if was != now:
            raise UserError(
                f"the weights {source} were trained with model.{option}={was!r}, not {now!r}: "
                "with another the network computes something else."
            )


def _notes(config: Config, source: str) -> list[str]:
    """Returns a note on each difference between a recipe's images and those that published
    weights were trained with."""
    known = find_weights(source)
    notes = []
    if config.model.stem == "small":
        notes.append(
            "note: these weights were trained with model.stem='imagenet', which has larger "
            "strides than 'small'"
        )
    normalize = [one for one in config.eval_transform if isinstance(one, Normalize)]
    for mean, std in [(one.mean, one.std) for one in normalize]:
        if (mean, std) != (known.mean, known.std):
            notes.append(
                f"note: these weights were trained with Normalize(mean={known.mean}, "
                f"std={known.std}); the recipe has mean={mean}, std={std}"
            )
    return notes
