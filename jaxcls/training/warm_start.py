"""Weights that exist: published ones, a file's, or another run's. A run begins with them, or
learns from a network that has them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls import config as config_lib
from jaxcls.augment import Normalize
from jaxcls.checkpoint import files as checkpoint
from jaxcls.config import Config
from jaxcls.errors import UserError, did_you_mean
from jaxcls.models import Model
from jaxcls.models.weights import pretrained
from jaxcls.models.weights.catalogue import WEIGHTS, find_weights, is_weight_set
from jaxcls.parallel import make_mesh, replicated
from jaxcls.training.program import Program, weight_shapes
from jaxcls.training.state import TrainState

Variables = dict[str, Any]
"""{"params", "batch_stats"} of a network, NumPy float32; "batch_stats" only if it has any."""


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
      The state, and a sentence on each thing that the log should say.

    Raises:
      UserError: if the weights cannot be had or are of another network.
    """
    config, module = program.config, program.model
    theirs, loaded, messages = load_weights(
        source, config.model.name, **_options(module)
    )
    if _is_run(source):
        _check_computes_the_same(source, theirs, module)
    initial = jax.device_get(state.variables())
    target = {name: tree for name, tree in initial.items() if tree}
    same_classes = True
    if class_names is not None and _is_run(source):
        same_classes = _class_names(source) == tuple(class_names)
    fitted, changed = pretrained.fit(module, loaded, target, same_classes=same_classes)
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
    # Anew, because an optimizer may have kept something of the parameters.
    opt_state = jax.jit(program.optimizer.init, out_shardings=replicated(program.mesh))(
        weights["params"]
    )
    state = dataclasses.replace(state, **weights, ema=ema, opt_state=opt_state)
    return state, messages


def load_teacher(
    source: str,
    name: str | None,
    num_classes: int,
    *,
    class_names: Sequence[str] | None = None,
    platform: str = "cpu",
) -> tuple[nn.Module, Variables, str]:
    """Returns a trained network whose logits another one may learn from.

    Args:
      source: the folder of a run of ours, whose averaged weights are taken where it has them;
        the name of published weights; or a file with a state dict.
      name: of the network of a file; None takes that of a run or of published weights.
      num_classes: of the data.
      class_names: of the data, in the order of its labels: those of a run must be the same.
        None does not compare. (Published weights do not say theirs.)
      platform: of the devices that will compute (see Model.create).

    Returns:
      The module, its variables, and which these are in words.

    Raises:
      UserError: if the weights cannot be had, or their logits are of other classes.
    """
    module, variables, messages = load_weights(source, name, platform=platform)
    theirs = module.num_classes
    if theirs != num_classes:
        raise UserError(
            f"the teacher {source} tells {theirs} classes apart, the data has {num_classes}: "
            "a teacher must have been trained on the same classes."
        )
    if class_names is not None and _is_run(source):
        pairs = zip(_class_names(source), class_names, strict=True)
        for label, (taught, wanted) in enumerate(pairs):
            if taught != wanted:
                raise UserError(
                    f"class {label} is '{taught}' for the teacher {source} and '{wanted}' in "
                    "the data: a teacher must have the same classes in the same order."
                )
    return module, variables, "".join(messages).rstrip(":") or source


def check_exists(option: str, source: str, workdir: Path) -> None:
    """Checks what can be known of weights without reading them.

    Args:
      option: that names them, for the message.
      source: the name of a weight set, a file or a folder.
      workdir: of the run that wants them.

    Raises:
      UserError: if there is no such file or folder, or it lies in the run's own.
    """
    if is_weight_set(source):
        return
    _check_path(source)
    if Path(source).resolve().is_relative_to(workdir.resolve()):
        raise UserError(
            f"{option} {source} lies in the run's own folder: choose another --workdir."
        )


def _check_path(source: str) -> None:
    if not Path(source).exists():
        raise UserError(
            f"there is no file or folder {source}.{did_you_mean(source, WEIGHTS)} "
            "`python -m jaxcls.models resnet50` lists the names of published weights."
        )


def load_weights(
    source: str, name: str | None, *, platform: str = "cpu", **options: Any
) -> tuple[Any, Variables, list[str]]:
    """Reads weights, and makes the network that they are of.

    Args:
      source: the name of a weight set, a file, or the folder of a run or of one of its steps.
      name: of the network, as in jaxcls.models.MODELS; None takes that of a run or weight set.
      platform: of the devices that will compute (see Model.create).
      **options: of the network, where its arrays depend on them ("stem", "width"); a run brings
        its own.

    Returns:
      The module, with as many classes as the weights have; its variables; and a sentence on
      each thing that the log should say.

    Raises:
      UserError: if the weights cannot be had or are of another network.
    """
    if _is_run(source):
        return _of_run(Path(source), name, platform)
    weights = None
    if is_weight_set(source):
        name, weights = name or find_weights(source).model, source
    else:
        _check_path(source)
    if name is None:
        raise UserError(
            f"the file {source} does not say what network its weights are of: name it, as "
            "`python -m jaxcls.models` lists them."
        )
    variables = pretrained.load_variables(source, name, **options)
    model = Model(name=name, weights=weights, **options)
    path = model.create(1).HEADS[0].split("/")
    layer = variables["params"]
    for part in path:
        layer = layer[part]
    return model.create(len(layer["bias"]), platform), variables, []


def _is_run(source: str) -> bool:
    """Whether weights are those of a run of ours, or of one of its steps."""
    return not is_weight_set(source) and Path(source).is_dir()


def _class_names(source: str) -> tuple[str, ...]:
    """Returns the class names of a run, in the order of its labels."""
    return tuple(checkpoint.read_run(checkpoint.find(Path(source)))["class_names"])


def _options(module: Any) -> dict[str, Any]:
    """Returns the options of a network on which the names and shapes of its arrays depend."""
    names = ("stem", "width")
    return {name: getattr(module, name) for name in names if hasattr(module, name)}


def _of_run(
    path: Path, name: str | None, platform: str
) -> tuple[Any, Variables, list[str]]:
    """Reads the weights of a run of ours, averaged ones where it has them; says which."""
    folder = checkpoint.find(path)
    run = checkpoint.read_run(folder)
    saved = config_lib.from_dict(run["config"])
    if name not in (None, saved.model.name):
        raise UserError(
            f"the weights {folder} are of {saved.model.name}, not of {name}."
        )
    module = saved.model.create(len(run["class_names"]), platform)
    # Read whole onto one device: they are put where they belong afterwards.
    one = make_mesh(1)
    shapes = weight_shapes(saved, module, tuple(run["image_shape"]), one)
    weights = checkpoint.restore_weights(folder, shapes)
    chosen = weights.get("ema", weights)
    kind = "averaged" if "ema" in weights else "raw"
    found = {name: chosen[name] for name in ("params", "batch_stats")}
    trees = jax.device_get({name: tree for name, tree in found.items() if tree})
    said = f"the {kind} weights of step {run['step']} in {folder}:"
    return module, trees, [said]


def _check_computes_the_same(source: str, theirs: Any, module: Any) -> None:
    """Raises UserError where a run's network differs in what its arrays do not show."""
    for option in ("stem", "padding", "bn_epsilon"):
        was, now = getattr(theirs, option, None), getattr(module, option, None)
        if was != now:
            raise UserError(
                f"the weights {source} were trained with model.{option}={was!r}, not {now!r}: "
                "with another the network computes something else."
            )


def _notes(config: Config, source: str) -> list[str]:
    """Says where a recipe feeds published weights otherwise than they were trained."""
    known = find_weights(source)
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
