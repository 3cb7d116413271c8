"""Averages weights: `python -m jaxcls.average --checkpoints runs/mine --last 3 --out runs/soup`.

The newest checkpoints of one run (in the way of stochastic weight averaging, Izmailov et al.
2018, https://arxiv.org/abs/1803.05407), or several runs of one network on the same classes that
began with the same weights (a uniform soup, Wortsman et al. 2022,
https://arxiv.org/abs/2203.05482, section 2). From Python: `average(["runs/a", "runs/b"], "out")`.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from jaxcls import config as config_lib
from jaxcls import parallel
from jaxcls.checkpoint import files as checkpoint
from jaxcls.checkpoint import weights_only
from jaxcls.config import Config
from jaxcls.data.subset import open_split
from jaxcls.errors import UserError
from jaxcls.training.program import Program, weight_shapes
from jaxcls.training.reestimate import Reestimate

Kind = Literal["raw", "ema"]

TRAINING_ONLY = (
    *("parent", "name", "dtype", "remat", "head_init", "layer_scale"),
    *("dropout", "aux_dropout", "drop_path", "aux_weight", "bn_group", "bn_momentum"),
)
"""Options of networks that change nothing in what given weights compute in evaluation, beyond
the rounding of the dtype. All others must agree."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One of the checkpoints that are averaged.

    Attributes:
      folder: of its step.
      run: the JSON that was saved with it.
      config: of its run.
      model: the network.
      shapes: of its weights, as weight_shapes() gives them for one device.
    """

    folder: Path
    run: dict[str, Any]
    config: Config
    model: Any
    shapes: dict[str, Any]

    def read(self, kind: Kind) -> dict[str, Any]:
        """Returns "params" and "batch_stats", NumPy float32: "raw" ones or those of the "ema"."""
        names = ("ema",) if kind == "ema" else ("params", "batch_stats")
        wanted = {name: self.shapes[name] for name in names}
        found = jax.device_get(checkpoint.restore_weights(self.folder, wanted))
        return found["ema"] if kind == "ema" else found


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
      paths: runs' folders, whose newest checkpoint is taken, or folders of single steps. What
        the result says of its data and transforms is the first's.
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
      UserError: if a checkpoint is missing or damaged, they do not go together, or an argument
        is out of range.
    """
    out = Path(out)
    weights_only.check_free(out)
    if precise_bn is not None and precise_bn < 1:
        raise UserError(
            f"precise_bn must be a number of images, 1 or more, not {precise_bn}."
        )
    members = _members([Path(path) for path in paths], last, weights)
    first = members[0]
    if len(members) == 1 and precise_bn is None:
        raise UserError(
            f"one checkpoint, {first.folder}, is its own average: name more of them, or take "
            "more of the run with --last."
        )
    variables = mean([member.read(weights) for member in members])
    config = weights_only.without_average(first.config)
    if precise_bn is not None:
        variables["batch_stats"] = _estimated(config, first.run, variables, precise_bn)
    names = ", ".join(str(member.folder) for member in members)
    run = {
        **first.run,
        "step": max(member.run["step"] for member in members),
        "config": config_lib.to_dict(config),
        weights_only.MADE_BY: f"the average of the {weights} weights of {names}",
    }
    return weights_only.write(out, variables, run)


def mean(trees: Sequence[Any]) -> Any:
    """Returns the mean of trees of arrays: added up in float64, in the dtype of the first."""

    def of(*leaves: np.ndarray) -> np.ndarray:
        return np.mean(leaves, axis=0, dtype=np.float64).astype(leaves[0].dtype)

    return jax.tree.map(of, *trees)


def _members(paths: Sequence[Path], last: int | None, weights: Kind) -> list[Member]:
    """Returns the checkpoints that paths name, after looking whether they go together."""
    members = [_open(folder) for folder in _folders(paths, last)]
    for member in members:
        _check_alike(members[0], member)
        if weights == "ema" and not member.config.has_average:
            raise UserError(
                f"{member.folder} has no averaged weights, as its run kept none: take "
                "--weights raw."
            )
    return members


def _folders(paths: Sequence[Path], last: int | None) -> list[Path]:
    """Returns the folders of the steps to average; of one run the newest first.

    Raises:
      UserError: if there are not that many, or one comes twice.
    """
    if not paths:
        raise UserError("there is nothing to average: name checkpoints.")
    folders = [checkpoint.find(path).resolve() for path in paths]
    if last is not None:
        if last < 1:
            raise UserError(f"--last must be 1 or more, not {last}.")
        if len(paths) > 1 or folders[0] == paths[0].resolve():
            raise UserError(
                "--last takes the newest checkpoints of one run: name the run's folder alone."
            )
        steps = [
            child for child in folders[0].parent.glob("*") if checkpoint.is_step(child)
        ]
        steps.sort(key=lambda folder: int(folder.name), reverse=True)
        if len(steps) < last:
            raise UserError(
                f"{paths[0]} has {len(steps)} checkpoints, fewer than --last {last}: a run "
                "keeps the newest checkpoint.keep of them, and the best."
            )
        folders = steps[:last]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} is named twice: an average takes each once.")
    return folders


def _open(folder: Path) -> Member:
    """Reads what lies beside the weights of a checkpoint."""
    run = checkpoint.read_run(folder)
    config = config_lib.from_dict(run["config"])
    one = parallel.make_mesh(1)
    model = config.model.create(len(run["class_names"]), parallel.platform(one))
    shapes = weight_shapes(config, model, tuple(run["image_shape"]), one)
    return Member(folder, run, config, model, shapes)


def _check_alike(first: Member, other: Member) -> None:
    """Raises UserError unless two checkpoints are of one network, which sees images in one way
    and tells the same classes apart."""
    values = zip(_known(first).items(), _known(other).values(), strict=True)
    for (name, one), two in values:
        if one != two:
            kinds = "" if "array" in name else f": {_short(one)} and {_short(two)}"
            raise UserError(
                f"{first.folder} and {other.folder} cannot be averaged, because they differ in "
                f"{name}{kinds}. Take runs of one network on the same classes."
            )


def _known(member: Member) -> dict[str, Any]:
    """Returns what must be the same of all networks that are averaged, in words -> value."""
    weights = {name: member.shapes[name] for name in ("params", "batch_stats")}
    leaves, structure = jax.tree.flatten(weights)
    options = {
        field.name: getattr(member.model, field.name)
        for field in dataclasses.fields(member.model)
        if field.name not in TRAINING_ONLY
    }
    return {
        "model.name": member.config.model.name,
        "the options of the network": options,
        "the classes": member.run["class_names"],
        "the shape of the images": member.run["image_shape"],
        "eval_transform": member.config.eval_transform,
        "the arrays of the network": (structure, [leaf.shape for leaf in leaves]),
    }


def _short(value: Any) -> str:
    """Returns a value in words; of a long list the first elements and how many there are."""
    if isinstance(value, list) and len(value) > 5:
        return f"{', '.join(map(str, value[:5]))}, ... ({len(value)} in all)"
    return str(value)


def _estimated(
    config: Config, run: dict[str, Any], variables: dict[str, Any], images: int
) -> Any:
    """Returns batch statistics of weights over images of the training split.

    Args:
      config: tells where the images are and how many make a batch.
      run: the JSON of the checkpoint that it is of.
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
    source = open_split(config.data, "train")
    if list(source.class_names) != run["class_names"]:
        raise UserError(
            f"{source!r} has other classes than when the checkpoints were trained: "
            "--precise_bn needs their training images."
        )
    if repr(source) != run["train_source"]:
        print(
            f"note: trained on {run['train_source']}, the statistics are those of {source!r}",
            file=sys.stderr,
        )
    plan = config_lib.plan(config, len(source))
    mesh = parallel.make_mesh(devices)
    program = Program(
        config,
        plan,
        mesh=mesh,
        num_classes=len(run["class_names"]),
        image_shape=tuple(run["image_shape"]),
    )
    step = program.trace_moments_step().compile(config.deterministic)
    on_devices = jax.device_put(variables, parallel.replicated(mesh))
    with Reestimate(step.call, source, config, plan, mesh) as reestimate:
        return reestimate(on_devices)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a mistake."""
    parallel.keep_freed_memory()
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.average",
        description="Averages the weights of checkpoints, each counting the same. The result "
        "can be evaluated, and named as model.weights or distill.teacher.",
        epilog="Runs that are averaged must have begun with the same weights (model.weights): "
        "networks that were trained from different random weights make a poor average.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoints",
        required=True,
        nargs="+",
        metavar="DIR",
        help="runs' folders, whose newest checkpoint is taken, or folders of single steps",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--last",
        type=int,
        metavar="N",
        help="take the newest N checkpoints of one run (checkpoint.keep says how many it keeps)",
    )
    parser.add_argument(
        "--weights",
        choices=("raw", "ema"),
        default="raw",
        help="the trained weights, or the averages that the runs kept; raw",
    )
    parser.add_argument(
        "--precise_bn",
        type=int,
        metavar="IMAGES",
        help="estimate the batch statistics over so many training images (default: they are "
        "averaged too)",
    )
    given = parser.parse_args(argv)
    try:
        made = average(
            given.checkpoints,
            given.out,
            last=given.last,
            weights=given.weights,
            precise_bn=given.precise_bn,
        )
        said = checkpoint.read_run(made)[weights_only.MADE_BY]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{made}: {said}\nto evaluate it: python -m jaxcls.evaluate --checkpoint {given.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
