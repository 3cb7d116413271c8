"""Batch statistics of averaged weights, estimated over training images."""

import math
from typing import Any

from jax.sharding import Mesh

from jaxcls.config import Config, Plan
from jaxcls.data.loader import Loader, TrainBatches
from jaxcls.data.sources import Source
from jaxcls.parallel import put_batch
from jaxcls.training import batch_statistics


class Reestimate:
    """Estimates batch statistics for weights, as often as asked, over the same images each
    time: the first of the run, in its order. Use it in a `with` statement."""

    def __init__(
        self, moments_step: Any, source: Source, config: Config, plan: Plan, mesh: Mesh
    ):
        """Starts loading.

        Args:
          moments_step: the compiled step.
          source: the training split.
          config: has precise_bn; tells how the data is loaded.
          plan: of the run.
          mesh: the devices.
        """
        assert config.precise_bn is not None
        wanted = math.ceil(config.precise_bn / config.batch_size)
        self._num_batches = min(wanted, plan.run.steps_per_epoch)
        self._moments_step = moments_step
        self._mesh = mesh
        self._loader = Loader(
            TrainBatches(
                source,
                seed=config.seed,
                batch_size=config.batch_size,
                num_steps=self._num_batches,
                sampling=config.data.sampling,
            ),
            repeat=True,
            workers=config.data.workers,
            threads=config.data.threads,
            prefetch=config.data.prefetch,
        )

    def __enter__(self) -> "Reestimate":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loader.close()

    def __call__(self, variables: dict[str, Any]) -> Any:
        """Returns the "batch_stats" of variables {"params", "batch_stats"}, estimated anew."""
        parts = []
        for _ in range(self._num_batches):
            loaded = next(self._loader)
            batch = put_batch(
                self._mesh, {name: loaded[name] for name in ("image", "mask")}
            )
            parts.append(self._moments_step(variables, batch))
        return batch_statistics.from_moments(variables["batch_stats"], parts)
