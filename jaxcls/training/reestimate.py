"""Batch statistics of averaged weights, estimated over training images."""

import math
from collections.abc import Callable
from typing import Any

from jaxcls.data.loader import start_loader
from jaxcls.data.sources import Source
from jaxcls.parallel import put_batch
from jaxcls.training.batch_statistics import from_moments
from jaxcls.training.program import Program


class Reestimate:
    """Estimates batch statistics for weights, as often as asked, over the same images each
    time: the first of the run, in its order. Use it in a `with` statement."""

    def __init__(
        self, moments_step: Callable[..., Any], source: Source, program: Program
    ):
        """Starts loading.

        Args:
          moments_step: the compiled step.
          source: the training split.
          program: its config has precise_bn.
        """
        config = program.config
        assert config.precise_bn is not None
        wanted = math.ceil(config.precise_bn / config.batch_size)
        self._num_batches = min(wanted, program.plan.run.steps_per_epoch)
        self._moments_step = moments_step
        self._mesh = program.mesh
        batches = program.train_batches(source, self._num_batches)
        self._loader = start_loader(batches, config.data, repeat=True)

    def __enter__(self) -> "Reestimate":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loader.close()

    def __call__(self, variables: dict[str, Any]) -> Any:
        """Returns the "batch_stats" of variables {"params", "batch_stats"}, estimated anew."""
        parts = []
        for _ in range(self._num_batches):
            loaded = next(self._loader)
            batch = {name: loaded[name] for name in ("image", "mask")}
            parts.append(self._moments_step(variables, put_batch(self._mesh, batch)))
        return from_moments(variables["batch_stats"], parts)
