"""A linear probe.

How well a linear layer alone tells the classes of a dataset apart by what a network, whose weights
stay as they are, sees in its images (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644).
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxcls import config as config_lib
from jaxcls.checkpoint import weights_only
from jaxcls.config import Config
from jaxcls.data import Dataset
from jaxcls.data.mixture import Mixture
from jaxcls.data.opening import open_split
from jaxcls.errors import UserError, did_you_mean
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.inference.features import compute_features
from jaxcls.report.progress import say
from jaxcls.training import linear_head
from jaxcls.training.program import Program
from jaxcls.training.run import Run, open_run


def probe(
    config: Config,
    out: str | Path,
    *,
    head: str = "ridge",
    strength: float | None = None,
) -> dict[str, Any]:
    """Fits a new head to the features of a network, saves both, and evaluates them.

    The training images pass through the network once, as eval_transform makes them: without
    augmentation. The test images pass once, when the result is evaluated. The recipe's options
    of training play no part.

    Args:
      config: a recipe whose model.weights name the network's weights; random ones, if None.
      out: the folder to write, which must not exist: like that of a run, for
        jaxcls.evaluate, model.weights or distill.teacher.
      head: "ridge", least squares on one-hot targets, in closed form; or "logistic", multinomial
        logistic regression, which is often better and much slower.
      strength: of the penalty (see jaxcls.training.linear_head), above 0; None chooses it on a
        fifth of the training images.

    Returns:
      What evaluate_checkpoint(out) does: "eval/top1", "eval/balanced_top1" and so on.

    Raises:
      UserError: if the data or the weights cannot be had, or an argument is out of range.
    """
    out = Path(out)
    weights_only.check_free(out)
    _check(config, head, strength)
    run = open_run(config, out)
    data = dataclasses.replace(run.config.data, placement="host")
    bare = dataclasses.replace(run.config, data=data, distill=None)
    run = dataclasses.replace(run, config=bare, teacher=None)
    variables = _variables(run)
    source = open_split(without_chance(data), "train")
    found, labels = compute_features(run.program, variables, source)
    layer, strength = linear_head.fit(
        head,
        found,
        labels,
        num_classes=run.program.num_classes,
        strengths=linear_head.STRENGTHS if strength is None else (strength,),
        seed=config.seed,
    )
    made_by = (
        f"a {head} head of strength {strength:g} on {found.shape[1]:,} features of "
        f"{config.model.weights or 'random weights'}, fitted to {len(labels):,} images"
    )
    say(made_by)
    # The config as it was given, without views: the head is fitted to the image alone.
    given = config_lib.from_dict(run.info["config"])
    saved = weights_only.without_average(dataclasses.replace(given, eval_views=None))
    info = {**run.info, "step": 0, "config": config_lib.to_dict(saved)}
    info[weights_only.MADE_BY] = made_by
    weights_only.write(out, _with_head(run.program, variables, layer), info)
    return evaluate_checkpoint(out)


def _check(config: Config, head: str, strength: float | None) -> None:
    """Raises UserError for options out of range."""
    kinds = linear_head.KINDS
    if head not in kinds:
        raise UserError(
            f"unknown head '{head}'.{did_you_mean(head, kinds)} Known: {', '.join(kinds)}."
        )
    if strength is not None and not 0 < strength < 1e30:
        raise UserError(f"strength must be a number above 0, not {strength}.")
    if config.loss.multi_label:
        raise UserError(
            f"{type(config.loss).__name__} is for any number of labels an image, a probe for "
            "exactly one: choose another loss."
        )


def _variables(run: Run) -> dict[str, Any]:
    """Returns "params" and "batch_stats" on the devices, and prints where they come from.

    Raises:
      UserError: if they cannot be had, or the network does not say which layer is its last.
    """
    model = run.config.model
    if not hasattr(run.program.model, "HEADS"):
        raise UserError(
            f"{model.name} does not say which of its layers gives the logits: give it HEADS, "
            "as the networks of jaxcls/models have."
        )
    if model.weights is None:
        print(
            "note: model.weights is None: these are the features of random weights",
            file=sys.stderr,
        )
    return run.initial_state().variables()


def without_chance(data: Dataset) -> Dataset:
    """Returns a dataset whose training images are cut out of their files as test images are."""
    if isinstance(data, Mixture):
        datasets = tuple(map(without_chance, data.datasets))
        return dataclasses.replace(data, datasets=datasets)
    canvas = getattr(data, "canvas", None)
    still: Any = {} if canvas is None else {"canvas": canvas.evaluation()}
    return dataclasses.replace(data, **still)


def _with_head(
    program: Program, variables: dict[str, Any], head: linear_head.Head
) -> dict[str, Any]:
    """Returns variables on the host, with another head."""
    path = tuple(program.model.HEADS[0].split("/"))
    params = traverse_util.flatten_dict(jax.device_get(variables["params"]))
    params[*path, "kernel"] = np.float32(head.kernel)
    params[*path, "bias"] = np.float32(head.bias)
    fitted = {"params": traverse_util.unflatten_dict(params)}
    return {**jax.device_get(variables), **fitted}
