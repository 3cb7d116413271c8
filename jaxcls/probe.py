"""A linear probe: `python -m jaxcls.probe --config configs/resnet18.py --out runs/probe
--config.model.weights=runs/mine`.

How well a linear layer alone tells the classes of a dataset apart by what a network, whose weights
stay as they are, sees in its images (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644).
From Python: `probe(config, "runs/probe")`.
"""

import argparse
import collections
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxcls import augment, parallel
from jaxcls import config as config_lib
from jaxcls import train as trainer
from jaxcls.checkpoint import weights_only
from jaxcls.config import Config
from jaxcls.config import command_line as flags
from jaxcls.data import Dataset
from jaxcls.data.bad_images import BadImages
from jaxcls.data.loader import Batch, EvalBatches, Loader, padded_rows
from jaxcls.data.mixture import Mixture
from jaxcls.data.sources import Source
from jaxcls.data.subset import open_split
from jaxcls.errors import UserError, did_you_mean
from jaxcls.evaluate import evaluate_checkpoint
from jaxcls.inference.features import features
from jaxcls.report.progress import eval_line, say
from jaxcls.training import linear_head
from jaxcls.training.program import Program, batch_shapes
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
    run = trainer.open_run(config, out)
    program = _program(run)
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


def _program(run: Any) -> Program:
    """Binds the config of a run that is not begun to its data and the devices."""
    parallel.enable_compilation_cache()
    return Program(
        run.config,
        run.plan,
        mesh=parallel.make_mesh(run.config.devices),
        num_classes=len(run.run_info["class_names"]),
        image_shape=tuple(run.run_info["image_shape"]),
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


def compute_features(
    program: Program, variables: dict[str, Any], source: Source
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the last layer of a network is given for each image of a split.

    Args:
      program: with the network, the transforms and the devices.
      variables: "params" and "batch_stats", on the devices.
      source: the split. Images that cannot be read are left out.

    Returns:
      Features float32 [n, features] and labels int32 [n].

    Raises:
      UserError: if the data cannot be read, or features are not finite.
    """
    config, mesh = program.config, program.mesh
    step = _features_step(program, variables)
    batches = EvalBatches(
        source, batch_size=config.evaluation.batch_size, rows_multiple=mesh.size
    )
    parts, labels = [], []
    in_flight: collections.deque[tuple[Any, np.ndarray]] = collections.deque()

    def wait_for_one() -> None:
        values, mask = in_flight.popleft()
        parts.append(jax.device_get(values)[mask])

    for loaded in _loaded(batches, config.data):
        images = parallel.put_batch(mesh, {"image": loaded["image"]})["image"]
        in_flight.append((step(variables, images), loaded["mask"]))
        labels.append(loaded["label"][loaded["mask"]])
        # Two batches ahead of the devices keep them busy; more would only fill memory.
        if len(in_flight) > 2:
            wait_for_one()
    while in_flight:
        wait_for_one()
    found = np.concatenate(parts)
    if not np.isfinite(found).all():
        raise UserError(
            "the features of some images are not finite: the weights do not fit the images. "
            "Look at model.weights and eval_transform."
        )
    return found, np.concatenate(labels)


def _loaded(batches: EvalBatches, data: Dataset) -> Iterator[Batch]:
    """Yields the batches of the training split, with a bar on a terminal."""
    bad = BadImages(batches.source, "train", say=say)
    with Loader(
        batches, workers=data.workers, threads=data.threads, prefetch=data.prefetch
    ) as loader:
        yield from tqdm(
            bad.watched(loader),
            total=len(batches),
            desc="features",
            unit="batch",
            leave=False,
            disable=not sys.stderr.isatty(),
        )


def _features_step(program: Program, variables: dict[str, Any]) -> Callable[..., Any]:
    """Compiles (variables, images uint8 [rows, height, width, channels]) -> float32 [rows,
    features]."""
    config, mesh = program.config, program.mesh
    rows = padded_rows(config.evaluation.batch_size, mesh.size)
    images = batch_shapes(mesh, rows, program.image_shape)["image"]

    def compute(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        targets = jnp.zeros((rows, 1))  # transforms take them, nothing reads them
        # Deterministic transforms do not use the key.
        changed, _ = augment.apply(
            config.eval_transform, jax.random.key(0), images, targets
        )
        found, _ = features(program.model, variables, changed)  # type: ignore[arg-type]
        return found

    jitted = jax.jit(compute, out_shardings=parallel.batch_sharded(mesh))
    return jitted.lower(variables, images).compile()


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


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a mistake."""
    parallel.keep_freed_memory()
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.probe",
        usage="%(prog)s --config FILE[:DATASET] [--config.OPTION=VALUE ...] --out DIR "
        "[--head KIND] [--strength NUMBER]",
        description="Fits a linear layer to the features of a network whose weights "
        "(config.model.weights) stay as they are, and evaluates it on the test split.",
        epilog="The result is a checkpoint: python -m jaxcls.evaluate --checkpoint DIR",
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write")
    parser.add_argument(
        "--head",
        metavar="KIND",
        default="ridge",
        help="ridge (least squares, in closed form) or logistic (regression by L-BFGS: often "
        "better, slower); ridge",
    )
    parser.add_argument(
        "--strength",
        type=float,
        metavar="NUMBER",
        help="of the penalty, relative to the variance of the features (default: chosen on a "
        "fifth of the training images)",
    )
    ours, recipe = parser.parse_known_args(argv)
    try:
        if ours.out is None:
            raise UserError("no folder to write: give --out DIR.")
        command = flags.parse(recipe, flags.OF_RECIPE)
        if command is None:
            return 0
        results = probe(
            command.config, ours.out, head=ours.head, strength=ours.strength
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(eval_line(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
