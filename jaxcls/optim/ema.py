"""The moving average of the weights.

It comes after the chain, not in it, because it also averages the batch statistics, which optax
never sees.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.duration import Duration, RunLength
from jaxcls.errors import UserError
from jaxcls.options import Count, ShareBelowOne


@dataclasses.dataclass(kw_only=True)
class EMA:
    """An exponential moving average of the weights. Evaluation runs with it as well.

    Give `decay` or `half_life`, and None for the other.

    Attributes:
      decay: share of the old average that each update of it keeps, 0..1, below 1; None where
        half_life says it.
      half_life: training after which the present weights still make up half of the average,
        once it is warmed up; None where decay says it.
      every: steps between updates of the average, 1 or more, and at most those of the run.
        `decay` belongs to one update, so that with another `every` the average looks back over
        another time; `half_life` stays what it is.
      warm_up: keep at most (1 + t) / (10 + t) of the old average at update t, counted from 0,
        so that it quickly forgets the initial weights (the num_updates rule of TensorFlow's
        ExponentialMovingAverage).
    """

    decay: ShareBelowOne | None = 0.9999
    half_life: Duration | None = None
    every: Count = 1
    warm_up: bool = True

    def validate(self) -> None:
        """Raises UserError unless exactly one of decay and half_life is given."""
        if (self.decay is None) == (self.half_life is None):
            raise UserError(
                f"EMA.decay is {self.decay} and EMA.half_life is {self.half_life}: give "
                "exactly one of them, as EMA(decay=0.9999) or EMA(decay=None, half_life=...)."
            )

    def share(self, run: RunLength) -> float:
        """Returns what an update takes of the new weights, 1 - decay, in (0, 1].

        For a half-life of h steps the decay is 2^(-every / h).

        Raises:
          UserError: if the half-life comes to less than a step, or `every` to more than the run.
        """
        if 0 < run.total_steps < self.every:
            raise UserError(
                f"EMA.every is {self.every} steps in a run of {run.total_steps}: the average "
                "would be the initial weights until the end. Make it shorter, or set ema to "
                "None."
            )
        if self.half_life is None:
            assert self.decay is not None
            return 1 - self.decay
        steps = self.half_life.one_step_or_more("EMA.half_life", run)
        return -math.expm1(-math.log(2) * self.every / steps)


def update(
    ema: EMA, average: Any, values: Any, good_steps: jax.Array, run: RunLength
) -> Any:
    """Returns the average after an optimizer step.

    Args:
      ema: how to average.
      average: the average before, a tree of float32.
      values: the weights after the step, a tree of the same shapes, of any float dtype.
      good_steps: optimizer steps made before this one, int32 scalar.
      run: its length.
    """

    def blended(made: jax.Array) -> Any:
        # A step towards the values, so that equal trees stay exactly equal.
        share = share_at(ema, ema.share(run), made)
        return jax.tree.map(
            lambda old, new: old + share * (new.astype(jnp.float32) - old),
            average,
            values,
        )

    if ema.every == 1:
        return blended(good_steps)
    return jax.lax.cond(
        good_steps % ema.every == ema.every - 1,  # this step completes `every` more
        lambda: blended(good_steps // ema.every),
        lambda: average,
    )


def share_at(ema: EMA, share: float, update: jax.typing.ArrayLike) -> jax.Array:
    """Returns what an update takes of the new weights, float32 scalar: with a warm-up
    1 - min(decay, (1 + t) / (10 + t)), written so that no digit of a decay near 1 is lost.

    Args:
      ema: how to average.
      share: 1 - decay.
      update: t, updates made before this one.
    """
    t = jnp.asarray(update, jnp.float32)
    return jnp.maximum(share, 9 / (10 + t)) if ema.warm_up else jnp.float32(share)
