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

from jaxcls import config as config_lib
from jaxcls import parallel
from jaxcls.checkpoint import weights_only
from jaxcls.config import Config
from jaxcls.data import Dataset
from jaxcls.data.mixture import Mixture
from jaxcls.data.opening import open_split
from jaxcls.errors import UserError, did_you_mean
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.inference.features import compute_features
from jaxcls.training import linear_head
from jaxcls.training.program import Program
from jaxcls.training.run import open_run
from jaxcls.training.warm_start import warm_start


def probe(
    config: Config,
    out: str | Path,
    *,
    head: str = "ridge",
    strength: float | None = None,
) -> dict[str, Any]:
    """Fits a new head to the features of a network, saves both, and evaluates them.

    The training images pass through the network once, as eval_transform makes them: without
    augmentation. The test images pass once, when the result is evaluated. What the recipe says
    of training is not read.

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
    parallel.enable_compilation_cache()
    program = Program(
        run.config,
        run.plan,
        mesh=parallel.make_mesh(config.devices),
        num_classes=len(run.run_info["class_names"]),
        image_shape=run.run_info["image_shape"],
    )
    variables = _variables(program)
    source = open_split(without_chance(run.config.data), "train")
    found, labels = compute_features(program, variables, source)
    strengths = linear_head.STRENGTHS if strength is None else (strength,)
    layer, strength = linear_head.fit(
        head,
        found,
        labels,
        num_classes=program.num_classes,
        strengths=strengths,
        seed=config.seed,
    )
    made_by = (
        f"a {head} head of strength {strength:g} on {found.shape[1]:,} features of "
        f"{config.model.weights or 'random weights'}, fitted to {len(labels):,} images"
    )
    print(made_by, flush=True)
    _save(
        out, program, variables, layer, {**run.run_info, weights_only.MADE_BY: made_by}
    )
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


def _variables(program: Program) -> dict[str, Any]:
    """Returns "params" and "batch_stats" on the devices, and says where they come from.

    Raises:
      UserError: if they cannot be had, or the network does not say which layer is its last.
    """
    source = program.config.model.weights
    if not hasattr(program.model, "HEADS"):
        raise UserError(
            f"{program.config.model.name} does not say which of its layers gives the logits: "
            "give it HEADS, as the networks of jaxcls/models have."
        )
    state = program.init()
    if source is None:
        print(
            "note: model.weights is None: these are the features of random weights",
            file=sys.stderr,
        )
        return state.variables()
    state, messages = warm_start(state, program, source)
    print("\n".join(messages), flush=True)
    return state.variables()


def without_chance(data: Dataset) -> Dataset:
    """Returns a dataset whose training images are cut out of their files as test images are."""
    if isinstance(data, Mixture):
        datasets = tuple(map(without_chance, data.datasets))
        return dataclasses.replace(data, datasets=datasets)
    canvas = getattr(data, "canvas", None)
    if canvas is None:
        return data
    changed: Any = {"canvas": canvas.evaluation()}
    return dataclasses.replace(data, **changed)


def _save(
    out: Path,
    program: Program,
    variables: dict[str, Any],
    layer: linear_head.Head,
    run_info: dict[str, Any],
) -> None:
    """Writes the network with its new head."""
    # The config in its own words, without views: the head is fitted to the image alone.
    said = config_lib.from_dict(run_info["config"])
    config = weights_only.without_average(dataclasses.replace(said, eval_views=None))
    fitted = {"kernel": np.float32(layer.kernel), "bias": np.float32(layer.bias)}
    path: tuple[str, ...] = tuple(program.model.HEADS[0].split("/"))
    params = _replaced(jax.device_get(variables["params"]), path, fitted)
    run = {**run_info, "step": 0, "config": config_lib.to_dict(config)}
    weights_only.write(out, {**jax.device_get(variables), "params": params}, run)


def _replaced(tree: Any, path: tuple[str, ...], leaf: Any) -> dict[str, Any]:
    """Returns a tree of dicts with another leaf at a path."""
    if not path:
        return leaf
    return {**tree, path[0]: _replaced(tree[path[0]], path[1:], leaf)}
