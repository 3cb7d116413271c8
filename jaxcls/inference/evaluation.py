"""One pass over a split: raw and averaged weights side by side, every image once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import config as config_lib
from jaxcls import metrics, parallel
from jaxcls.augment import AirbenchViews, FlipViews, Views
from jaxcls.data.bad_images import BadImages
from jaxcls.data.loader import start_loader
from jaxcls.data.relabelled import with_class_names
from jaxcls.data.sources import Source
from jaxcls.errors import UserError, did_you_mean
from jaxcls.inference.forward import Forward, run_ahead
from jaxcls.inference.saved_run import SavedRun
from jaxcls.report.progress import say

VIEWS: dict[str, Views | None] = {
    "one": None,
    "flip": FlipViews(),
    "airbench": AirbenchViews(),
}
"""Views of each image that need no further option, by the name that --views takes."""


class Evaluator:
    """Evaluates weights on a split, as often as asked. Use it in a `with` statement.

    Its batches are loaded over and over, so that evaluations after the first find theirs
    ready.
    """

    def __init__(
        self,
        eval_step: Callable[[Any, dict[str, jax.Array]], metrics.EvalOutput],
        source: Source,
        forward: Forward,
    ):
        """Starts loading.

        Args:
          eval_step: the compiled step.
          source: the split.
          forward: knows the batch size, how the data is loaded, and the devices.
        """
        self._eval_step = eval_step
        self._batch_shapes = forward.eval_batch_shapes()
        self._num_examples = len(source)
        batches = forward.eval_batches(source)
        self._num_batches = len(batches)
        self._loader = start_loader(batches, forward.config.data, repeat=True)
        self._batches = BadImages(source, "test", say=say).watched(self._loader)

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loader.close()

    def evaluate(
        self, weights: dict[str, Any], should_stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Evaluates sets of weights on one pass of the split.

        Args:
          weights: suffix of the metric's name -> variables, {"": raw, "_ema": averaged}.
          should_stop: asked before each batch; True ends the evaluation without a result.

        Returns:
          What metrics.metric_names() lists, for each suffix, and "eval/examples"; or None if
          it was stopped. Records whose image cannot be read are left out and not counted;
          "eval/bad_images" says how many, if any.
        """
        outputs, batches = [], []
        for output, loaded in run_ahead(self._dispatched(weights, should_stop)):
            outputs.append(jax.device_get(output))
            batches.append({name: loaded[name] for name in ("id", "label", "mask")})
        if len(batches) < self._num_batches:
            return None
        ids, labels, mask = (
            np.concatenate([batch[name] for batch in batches])
            for name in ("id", "label", "mask")
        )
        num_records, num_images = int((ids >= 0).sum()), int(mask.sum())
        assert num_records == self._num_examples, (num_records, self._num_examples)
        results: dict[str, float] = {}
        for suffix in weights:
            parts = [output[suffix] for output in outputs]
            total = jax.tree.map(
                lambda *sums: np.sum(np.stack(sums), axis=0, dtype=np.float64),
                *(part.sums for part in parts),
            )
            assert int(total.top1.count) == num_images, (total.top1.count, num_images)
            values = metrics.compute(total, "eval")
            if labels.ndim == 2:
                logits = np.concatenate([part.logits for part in parts])
                precision = metrics.mean_average_precision(logits[mask], labels[mask])
                values["eval/mAP"] = precision
            results |= {f"{name}{suffix}": value for name, value in values.items()}
        results["eval/examples"] = num_images
        if num_images < num_records:
            results["eval/bad_images"] = num_records - num_images
        return results

    def _dispatched(
        self, weights: dict[str, Any], should_stop: Callable[[], bool]
    ) -> Iterator[tuple[dict[str, metrics.EvalOutput], dict[str, np.ndarray]]]:
        """Yields the output for each batch, by suffix, and the batch as it was loaded; ends
        early when should_stop() returns True."""
        for _ in range(self._num_batches):
            if should_stop():
                return
            loaded = next(self._batches)
            batch = parallel.put(self._batch_shapes, loaded)
            outputs = {
                suffix: self._eval_step(variables, batch)
                for suffix, variables in weights.items()
            }
            yield outputs, loaded


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
      devices: accelerators to use; None takes as many as the run, or all if there are fewer.
      workers: processes that load the data; None takes that of the run.
      views: a key of VIEWS: the logits are averaged over these views of each image; None takes
        those of the run.

    Returns:
      What training logged for the step: "step", "eval/top1" (0..1), "eval/top5", "eval/loss",
      the same with "_ema" if the run keeps an average, and "eval/examples".

    Raises:
      UserError: if there is no checkpoint, it is damaged, or an argument is out of range.
    """
    saved = SavedRun.open(path)
    config = saved.config
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
    if devices is not None or (config.devices or 0) > jax.device_count():
        config.devices = devices
    config_lib.validate(config)
    parallel.enable_compilation_cache()
    source = with_class_names(saved.source("test"), saved.class_names)
    forward = saved.forward(parallel.make_mesh(config.devices))
    weights = saved.weights(forward)
    by_suffix = {"" if kind == "raw" else "_ema": weights[kind] for kind in weights}
    shapes = forward.weight_shapes()
    shapes.pop("ema", None)
    eval_step = forward.trace_eval_step(shapes).compile()
    with Evaluator(eval_step, source, forward) as evaluator:
        results = evaluator.evaluate(by_suffix)
    assert results is not None
    return {"step": saved.info["step"], **results}
