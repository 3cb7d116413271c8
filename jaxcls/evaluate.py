"""Evaluates a checkpoint: `python -m jaxcls.evaluate --checkpoint runs/lenet5-digits`.

Nothing but the checkpoint is needed: the network, the dataset and the eval transform are in
it. From Python: `evaluate_checkpoint("runs/lenet5-digits")`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxcls import config as config_lib
from jaxcls import parallel
from jaxcls.augment import AirbenchViews, FlipViews, Views
from jaxcls.checkpoint import files as checkpoint
from jaxcls.config import Config
from jaxcls.data.relabelled import with_class_names
from jaxcls.data.subset import open_split
from jaxcls.errors import UserError, did_you_mean
from jaxcls.inference.evaluation import Evaluator
from jaxcls.report.progress import eval_line
from jaxcls.training.program import trace_eval_step, weight_shapes

VIEWS: dict[str, Views | None] = {
    "one": None,
    "flip": FlipViews(),
    "airbench": AirbenchViews(),
}
"""Views of each image that need no further option, by the name that --views takes."""


def evaluate_checkpoint(
    path: str | Path,
    *,
    batch_size: int | None = None,
    devices: int | None = None,
    workers: int | None = None,
    views: str | None = None,
) -> dict[str, Any]:
    """Evaluates the raw and the averaged weights of a checkpoint on its test split.

    Args:
      path: a run's folder, whose newest checkpoint is taken, or the folder of one step.
      batch_size: images in a step; None takes that of the run.
      devices: accelerators to use; None takes that of the run if there are as many, or all.
      workers: processes that load the data; None takes that of the run.
      views: a key of VIEWS: the logits are averaged over these views of each image; None takes
        those of the run.

    Returns:
      What training logged for the step: "step", "eval/top1" (0..1), "eval/top5", "eval/loss",
      the same with "_ema" if the run keeps an average, and "eval/examples".

    Raises:
      UserError: if there is no checkpoint, it is damaged, or an argument is out of range.
    """
    folder = checkpoint.find(Path(path))
    run = checkpoint.read_run(folder)
    config = config_lib.from_dict(run["config"])
    _override(config, batch_size, devices, workers, views)
    parallel.enable_compilation_cache()
    mesh = parallel.make_mesh(config.devices)
    source = open_split(config.data, "test")
    if repr(source) != run["test_source"]:
        print(
            f"note: training evaluated {run['test_source']}, this is {source!r}",
            file=sys.stderr,
        )
    class_names = tuple(run["class_names"])
    source = with_class_names(source, class_names)
    model = config.model.create(len(class_names), parallel.platform(mesh))
    shapes = weight_shapes(config, model, tuple(run["image_shape"]), mesh)
    weights = checkpoint.restore_weights(folder, shapes)
    variables = {"params": weights["params"], "batch_stats": weights["batch_stats"]}
    by_suffix = {"": variables}
    if "ema" in weights:
        by_suffix["_ema"] = weights["ema"]
    eval_step = trace_eval_step(
        config,
        model,
        {name: shapes[name] for name in variables},
        mesh=mesh,
        num_classes=len(class_names),
        image_shape=tuple(run["image_shape"]),
    ).compile()
    with Evaluator(eval_step.call, source, config, mesh) as evaluator:
        results = evaluator.evaluate(by_suffix)
    assert results is not None
    return {"step": run["step"], **results}


def _override(
    config: Config,
    batch_size: int | None,
    devices: int | None,
    workers: int | None,
    views: str | None,
) -> None:
    """Puts arguments in the place of the run's options; a run on more devices than there are
    here is evaluated on all."""
    if batch_size is not None:
        config.evaluation.batch_size = batch_size
    if workers is not None:
        config.data.workers = workers
    if views is not None:
        if views not in VIEWS:
            raise UserError(
                f"unknown views '{views}'.{did_you_mean(views, VIEWS)} Known: "
                f"{', '.join(VIEWS)}."
            )
        config.eval_views = VIEWS[views]
    if devices is not None:
        config.devices = devices
    elif config.devices is not None and config.devices > jax.device_count():
        config.devices = None
    config_lib.validate(config)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a mistake."""
    parallel.keep_freed_memory()
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.evaluate",
        description="Evaluates a checkpoint on its test split, raw and averaged weights.",
    )
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's folder, or one step's",
    )
    parser.add_argument(
        "--batch_size", type=int, help="images in a step (default: as in training)"
    )
    parser.add_argument(
        "--devices", type=int, help="accelerators (default: as in training)"
    )
    parser.add_argument(
        "--workers", type=int, help="loading processes (default: as in training)"
    )
    parser.add_argument(
        "--views",
        help=f"average over views of each image: {', '.join(VIEWS)} (default: as in training)",
    )
    arguments = parser.parse_args(argv)
    try:
        results = evaluate_checkpoint(
            arguments.checkpoint,
            batch_size=arguments.batch_size,
            devices=arguments.devices,
            workers=arguments.workers,
            views=arguments.views,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(eval_line(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
