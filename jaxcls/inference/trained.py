"""Networks that are trained already: published ones, a file's, or another run's. A run begins
with their weights, or learns from their logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.config import Config
from jaxcls.errors import UserError
from jaxcls.inference.forward import input_shape
from jaxcls.inference.saved_run import SavedRun, Trained
from jaxcls.models import Model
from jaxcls.models.weights import pretrained
from jaxcls.models.weights.catalogue import check_path, find_weights, is_weight_set


def load_teacher(
    config: Config, class_names: Sequence[str], image_shape: tuple[int, ...]
) -> Trained | None:
    """Returns the network that a run learns from, None if it learns from the labels alone.

    Args:
      config: of the run.
      class_names: of its data, in the order of the labels.
      image_shape: of the records, (height, width, channels).

    Raises:
      UserError: if the weights cannot be had, or the network cannot teach this run.
    """
    if config.distill is None:
        return None
    source, name = config.distill.teacher, config.distill.teacher_model
    teacher = load_trained(source, name, platform=jax.default_backend())
    check_teaches(teacher, config, class_names, image_shape)
    return teacher


def check_teaches(
    teacher: Trained,
    config: Config,
    class_names: Sequence[str],
    image_shape: tuple[int, ...],
) -> None:
    """Raises UserError if a run cannot learn from a network.

    Args:
      teacher: the network. A run of ours must have the same classes in the same order,
        published weights as many.
      config: of the run.
      class_names: of its data, in the order of the labels.
      image_shape: of the records, (height, width, channels).
    """
    theirs: Any = teacher.model
    if theirs.num_classes != len(class_names):
        raise UserError(
            f"the teacher {teacher.source} tells {theirs.num_classes} classes apart, the data "
            f"has {len(class_names)}: a teacher must have been trained on the same classes."
        )
    pairs = zip(teacher.class_names or class_names, class_names, strict=True)
    for label, (taught, wanted) in enumerate(pairs):
        if taught != wanted:
            raise UserError(
                f"class {label} is '{taught}' for the teacher {teacher.source} and '{wanted}' "
                "in the data: a teacher must have the same classes in the same order."
            )
    shape = input_shape(config.augment, image_shape)
    try:
        jax.eval_shape(lambda x: theirs.apply(teacher.variables, x), jnp.zeros(shape))
    except Exception as error:  # flax's, JAX's and our own
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the teacher {teacher.source} cannot take the images that are trained on, "
            f"{shape[1:]} each: {reason}"
        ) from None


def load_trained(
    source: str, name: str | None, *, platform: str = "cpu", **options: Any
) -> Trained:
    """Reads weights, and makes the network that they are of.

    Args:
      source: the name of a weight set, a file, or the folder of a run or of one of its steps,
        whose averaged weights are taken where it has them.
      name: of the network, as in jaxcls.models.MODELS; None takes that of a run or weight set.
      platform: of the devices that will compute (see Model.create).
      **options: of the network, where its arrays depend on them ("stem", "width"); a run brings
        its own.

    Raises:
      UserError: if the weights cannot be had or are of another network.
    """
    is_set = is_weight_set(source)
    if not is_set and Path(source).is_dir():
        return SavedRun.open(source).trained(name, platform)
    if is_set:
        name = name or find_weights(source).model
    else:
        check_path(source)
    if name is None:
        raise UserError(
            f"the file {source} does not say what network its weights are of: name it, as "
            "`python -m jaxcls.models` lists them."
        )
    variables = pretrained.load_variables(source, name, **options)
    model = Model(name=name, weights=source if is_set else None, **options)
    layer = variables["params"]
    for part in model.create(1).HEADS[0].split("/"):
        layer = layer[part]
    return Trained(model.create(len(layer["bias"]), platform), variables, source)


def check_exists(config: Config, workdir: Path, *, begins: bool) -> None:
    """Checks the weights that a config names, without reading them.

    Args:
      config: of the run.
      workdir: of the run.
      begins: whether the run begins, so that it needs model.weights.

    Raises:
      UserError: if there is no such file or folder, or it lies in the run's own.
    """
    sources = {"model.weights": config.model.weights} if begins else {}
    if config.distill is not None:
        sources["distill.teacher"] = config.distill.teacher
    for option, source in sources.items():
        if source is None or is_weight_set(source):
            continue
        check_path(source)
        if Path(source).resolve().is_relative_to(workdir.resolve()):
            raise UserError(
                f"{option} {source} lies in the run's own folder: choose another --workdir."
            )
