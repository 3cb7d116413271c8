"""One pass over a split: raw and averaged weights side by side, every image once."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcls.config import Config
from jaxcls.data.loader import EvalBatches, Loader
from jaxcls.data.sources import Source
from jaxcls.parallel import put_batch
from jaxcls.training import metrics


def eval_loader(config: Config, source: Source, mesh: Mesh) -> Loader:
    """Starts loading a split over and over, so that evaluations after the first find their
    batches ready. Close it."""
    batches = EvalBatches(
        source,
        batch_size=config.evaluation.batch_size,
        rows_multiple=mesh.size,
        host=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    return Loader(
        batches,
        repeat=True,
        workers=config.data.workers,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def evaluate(
    eval_step: Callable[[Any, dict[str, jax.Array]], metrics.EvalMetrics],
    weights: dict[str, Any],
    loader: Loader,
    *,
    mesh: Mesh,
    num_batches: int,
    num_examples: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Evaluates sets of weights on one pass of a loader.

    Args:
      eval_step: the compiled step.
      weights: suffix of the metric's name -> variables, {"": raw, "_ema": averaged}.
      loader: gives the batches of the split.
      mesh: the devices.
      num_batches: batches in a pass.
      num_examples: images in the split.
      should_stop: asked before each batch; True ends the evaluation without a result.

    Returns:
      {"eval/loss", "eval/top1", "eval/top5", "eval/loss_ema", ..., "eval/examples"}, or None
      if it was stopped. Accuracies are in 0..1.
    """
    sums: dict[str, list[metrics.EvalMetrics]] = {suffix: [] for suffix in weights}
    in_flight: collections.deque[Any] = collections.deque()
    for _ in range(num_batches):
        if should_stop():
            return None
        batch = put_batch(mesh, next(loader))
        for suffix, variables in weights.items():
            sums[suffix].append(eval_step(variables, batch))
        # Two batches ahead of the devices keep them busy; more would only fill memory.
        in_flight.append([parts[-1] for parts in sums.values()])
        if len(in_flight) > 2:
            jax.block_until_ready(in_flight.popleft())

    results: dict[str, float] = {}
    for suffix, parts in sums.items():
        # Batches are added up in float64 on the host.
        total = jax.tree.map(
            lambda *parts: np.sum(np.stack(parts), dtype=np.float64),
            *jax.device_get(parts),
        )
        counted = int(total.top1.count)
        assert counted == num_examples, f"evaluated {counted} of {num_examples} images"
        for name, value in metrics.compute(total, "eval").items():
            results[name + suffix] = value
    results["eval/examples"] = num_examples
    return results
