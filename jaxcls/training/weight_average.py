"""An average of weights.

That of the newest checkpoints of one run (in the way of stochastic weight averaging, Izmailov et al.
2018, https://arxiv.org/abs/1803.05407), or of several runs of one network on the same classes that
began with the same weights (a uniform soup, Wortsman et al. 2022,
https://arxiv.org/abs/2203.05482, section 2).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxcls import config as config_lib
from jaxcls import parallel
from jaxcls.checkpoint import checkpoints, weights_only
from jaxcls.config import Config
from jaxcls.data.notes import enumerated
from jaxcls.errors import UserError
from jaxcls.inference.saved_run import SavedRun
from jaxcls.training.program import Program
from jaxcls.training.reestimate import Reestimate

Kind = Literal["raw", "ema"]

TRAINING_ONLY = (
    *("parent", "name", "dtype", "remat", "head_init", "layer_scale"),
    *("dropout", "aux_dropout", "drop_path", "aux_weight", "bn_group", "bn_momentum"),
)
"""Options of networks that change nothing in what given weights compute in evaluation, beyond
the rounding of the dtype. All others must agree."""


def average(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    last: int | None = None,
    weights: Kind = "raw",
    precise_bn: int | None = None,
) -> Path:
    """Averages the weights of checkpoints, each counting the same, and saves them as one.

    Batch statistics are averaged too, which gives those of none of the networks that took part
    and not quite those of the average either; `precise_bn` estimates its own, as Izmailov et
    al. (section 3.2) do.

    Args:
      paths: runs' folders, whose newest checkpoint is taken, or folders of single steps. The
        result has the data and the transforms of the first.
      out: the folder to write, which must not exist. It is like that of a run, but has nothing
        that training could continue with.
      last: takes the newest so many checkpoints of the one run in `paths`.
      weights: "raw" takes the trained weights, "ema" the averages that the runs kept.
      precise_bn: images of the training split over which the batch statistics are estimated
        (all, if it has fewer); None averages them.

    Returns:
      The folder of the checkpoint, out/checkpoints/<step>; its step is the latest of those that
      were averaged.

    Raises:
      UserError: if a checkpoint is missing or damaged, the checkpoints do not go together, or
        an argument is out of range.
    """
    out = Path(out)
    weights_only.check_free(out)
    if precise_bn is not None and precise_bn < 1:
        raise UserError(
            f"precise_bn must be a number of images, 1 or more, not {precise_bn}."
        )
    members = list(map(SavedRun.open, _folders(list(map(Path, paths)), last)))
    _check_alike(members, weights)
    first = members[0]
    if len(members) == 1 and precise_bn is None:
        raise UserError(
            f"one checkpoint, {first.folder}, is its own average: name more of them, or take "
            "more of the run with --last."
        )
    one = parallel.make_mesh(1)
    kinds = {"raw": weights == "raw", "ema": weights == "ema"}
    variables = mean(
        [jax.device_get(m.weights(m.forward(one), **kinds)[weights]) for m in members]
    )
    config = weights_only.without_average(first.config)
    if precise_bn is not None:
        variables["batch_stats"] = _estimated(config, first, variables, precise_bn)
    names = ", ".join(str(member.folder) for member in members)
    info = {
        **first.info,
        "step": max(member.info["step"] for member in members),
        "config": config_lib.to_dict(config),
        weights_only.MADE_BY: f"the average of the {weights} weights of {names}",
    }
    return weights_only.write(out, variables, info)


def mean(trees: Sequence[Any]) -> Any:
    """Returns the mean of trees of arrays: added up in float64, in the dtype of the first."""
    return jax.tree.map(
        lambda *leaves: np.mean(leaves, 0, np.float64).astype(leaves[0].dtype), *trees
    )


def _folders(paths: Sequence[Path], last: int | None) -> list[Path]:
    """Returns the folders of the steps to average; of one run the newest first.

    Raises:
      UserError: if there are not that many, or one comes twice.
    """
    if not paths:
        raise UserError("there is nothing to average: name checkpoints.")
    folders = [checkpoints.find_checkpoint(path).resolve() for path in paths]
    if last is not None:
        if last < 1:
            raise UserError(f"--last must be 1 or more, not {last}.")
        if len(paths) > 1 or folders[0] == paths[0].resolve():
            raise UserError(
                "--last takes the newest checkpoints of one run: name the run's folder alone."
            )
        steps = checkpoints.step_folders(folders[0].parent)
        if len(steps) < last:
            raise UserError(
                f"{paths[0]} has {len(steps)} checkpoints, fewer than --last {last}: a run "
                "keeps the newest checkpoint.keep of them, and the best."
            )
        folders = steps[::-1][:last]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} is named twice: an average takes each once.")
    return folders


def _check_alike(members: Sequence[SavedRun], weights: Kind) -> None:
    """Raises UserError unless all checkpoints are of one network, which sees images in one way
    and tells the same classes apart, and have the weights that are wanted."""
    first = members[0]
    wanted = _comparable(first)
    for member in members:
        for name, value in _comparable(member).items():
            if value == wanted[name]:
                continue
            both = (
                enumerated(list(map(str, one))) if isinstance(one, list) else str(one)
                for one in (wanted[name], value)
            )
            kinds = "" if "array" in name else f": {' and '.join(both)}"
            raise UserError(
                f"{first.folder} and {member.folder} cannot be averaged, because they differ "
                f"in {name}{kinds}. Take runs of one network on the same classes."
            )
        if weights == "ema" and not member.config.has_average:
            raise UserError(
                f"{member.folder} has no averaged weights, as its run kept none: take "
                "--weights raw."
            )


def _comparable(member: SavedRun) -> dict[str, Any]:
    """Returns what all networks that are averaged must have in common: name -> value."""
    forward = member.forward(parallel.make_mesh(1))
    shapes, model = forward.weight_shapes(), forward.model
    leaves, structure = jax.tree.flatten([shapes["params"], shapes["batch_stats"]])
    names = [field.name for field in dataclasses.fields(model)]
    options = {n: getattr(model, n) for n in names if n not in TRAINING_ONLY}
    return {
        "model.name": member.config.model.name,
        "the options of the network": options,
        "the classes": member.info["class_names"],
        "the shape of the images": member.info["image_shape"],
        "eval_transform": member.config.eval_transform,
        "the arrays of the network": (structure, [leaf.shape for leaf in leaves]),
    }


def _estimated(
    config: Config, saved: SavedRun, variables: dict[str, Any], images: int
) -> Any:
    """Returns batch statistics of weights over images of the training split.

    Args:
      config: tells where the images are and how many make a batch.
      saved: the checkpoint that it is of.
      variables: "params" and "batch_stats".
      images: how many, rounded up to whole batches; all, if there are fewer.

    Raises:
      UserError: if the network has no batch norms, or the split is not that of the run.
    """
    if not variables["batch_stats"]:
        raise UserError(
            f"{config.model.name} has no batch norms whose statistics could be estimated: "
            "leave out --precise_bn."
        )
    parallel.enable_compilation_cache()
    devices = min(config.devices or jax.device_count(), jax.device_count())
    config = dataclasses.replace(config, devices=devices, precise_bn=images)
    source = saved.source("train")
    if tuple(source.class_names) != saved.class_names:
        raise UserError(
            f"{source!r} has other classes than when the checkpoints were trained: "
            "--precise_bn needs their training images."
        )
    program = Program(
        config,
        config_lib.plan(config, len(source)),
        mesh=parallel.make_mesh(devices),
        num_classes=len(saved.class_names),
        image_shape=saved.info["image_shape"],
    )
    on_devices = jax.device_put(variables, parallel.replicated(program.mesh))
    moments_step = program.trace_moments_step().compile(config.deterministic)
    with Reestimate(moments_step, source, program) as reestimate:
        return reestimate(on_devices)
