"""One pass over a split: raw and averaged weights side by side, every image once."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcls.config import Config
from jaxcls.data.bad_images import BadImages
from jaxcls.data.derived import max_bad_share
from jaxcls.data.loader import EvalBatches, Loader
from jaxcls.data.sources import Source
from jaxcls.parallel import put_batch
from jaxcls.report.progress import say
from jaxcls.training import metrics


class Evaluator:
    """Evaluates weights on a split, as often as asked. Use it in a `with` statement.

    Its batches are loaded over and over, so that evaluations after the first find theirs
    ready.
    """

    def __init__(
        self,
        eval_step: Callable[[Any, dict[str, jax.Array]], metrics.EvalMetrics],
        source: Source,
        config: Config,
        mesh: Mesh,
    ):
        """Starts loading.

        Args:
          eval_step: the compiled step.
          source: the split.
          config: gives the batch size and how the data is loaded.
          mesh: the devices.
        """
        self._eval_step = eval_step
        self._mesh = mesh
        self._num_examples = len(source)
        batches = EvalBatches(
            source,
            batch_size=config.evaluation.batch_size,
            rows_multiple=mesh.size,
        )
        self._num_batches = len(batches)
        self._loader = Loader(
            batches,
            repeat=True,
            workers=config.data.workers,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )
        bad_images = BadImages(
            source, "test", max_share=max_bad_share(config.data), say=say
        )
        self._batches = bad_images.watched(self._loader)

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loader.close()

    def evaluate(
        self,
        weights: dict[str, Any],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Evaluates sets of weights on one pass of the split.

        Args:
          weights: suffix of the metric's name -> variables, {"": raw, "_ema": averaged}.
          should_stop: asked before each batch; True ends the evaluation without a result.

        Returns:
          {"eval/loss", "eval/top1", "eval/top5", "eval/loss_ema", ..., "eval/examples"}, or
          None if it was stopped. Accuracies are in 0..1. Records whose image cannot be read
          are left out and not counted; "eval/bad_images" says how many, if any.
        """
        sums: dict[str, list[metrics.EvalMetrics]] = {suffix: [] for suffix in weights}
        num_records = num_images = 0
        in_flight: collections.deque[Any] = collections.deque()
        for _ in range(self._num_batches):
            if should_stop():
                return None
            loaded = next(self._batches)
            num_records += int((loaded.pop("id") >= 0).sum())
            num_images += int(loaded["mask"].sum())
            batch = put_batch(self._mesh, loaded)
            for suffix, variables in weights.items():
                sums[suffix].append(self._eval_step(variables, batch))
            # Two batches ahead of the devices keep them busy; more would only fill memory.
            in_flight.append([parts[-1] for parts in sums.values()])
            if len(in_flight) > 2:
                jax.block_until_ready(in_flight.popleft())

        assert num_records == self._num_examples, (num_records, self._num_examples)
        results: dict[str, float] = {}
        for suffix, parts in sums.items():
            # Batches are added up in float64 on the host.
            total = jax.tree.map(
                lambda *parts: np.sum(np.stack(parts), dtype=np.float64),
                *jax.device_get(parts),
            )
            counted = int(total.top1.count)
            assert counted == num_images, (counted, num_images)
            for name, value in metrics.compute(total, "eval").items():
                results[name + suffix] = value
        results["eval/examples"] = num_images
        if num_images < num_records:
            results["eval/bad_images"] = num_records - num_images
        return results
