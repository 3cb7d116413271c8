"""How the learning rate changes over a run: a factor of the peak for each step."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxcls.duration import Duration, RunLength, fraction
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Schedule(abc.ABC):
    """A learning-rate schedule of a config."""

    @abc.abstractmethod
    def factor(self, run: RunLength) -> optax.Schedule:
        """Returns a function of the optimizer step (0 for the first; an integer, or an array
        in jit) giving the factor of the peak rate, float32 in 0..1."""

    def validate(self) -> None:  # noqa: B027 - a schedule without options has nothing
        """Raises UserError for values out of range."""


@dataclasses.dataclass(kw_only=True)
class WarmupCosine(Schedule):
    """A straight line up to the peak, then half a cosine down (Goyal et al. 2017, section 2.2,
    https://arxiv.org/abs/1706.02677; Loshchilov & Hutter 2016, equation 5 without restarts,
    https://arxiv.org/abs/1608.03983).

    With w steps of warm-up in a run of n: factor `start` at step 0 (where w > 0), 1 at step
    w, `end` at the last step n - 1.

    Attributes:
      warmup: length of the line; 0 steps begin at the peak.
      start: factor of the peak at step 0 of a warm-up, above 0 and at most 1.
      end: factor of the peak at the last step, 0..1.
    """

    warmup: Duration = dataclasses.field(default_factory=lambda: fraction(0.05))
    start: float = 0.01
    end: float = 0.0

    def factor(self, run: RunLength) -> optax.Schedule:
        """Returns the factor of the peak at each step of a run of known length.

        Raises:
          UserError: if the warm-up leaves no step of the run after its peak.
        """
        assert run.total_steps is not None
        last = run.total_steps - 1
        warmup = self.warmup.to_steps(run)
        if warmup >= max(last, 1):
            raise UserError(
                f"schedule.warmup of {self.warmup} is {warmup} steps, but the whole run has "
                f"{run.total_steps} and must also come down again: shorten the warm-up or "
                "lengthen duration."
            )

        def factor(step: jax.typing.ArrayLike) -> jax.Array:
            t = jnp.asarray(step, jnp.float32)
            line = self.start + (1 - self.start) * t / max(warmup, 1)
            progress = jnp.clip((t - warmup) / max(last - warmup, 1), 0, 1)
            cosine = self.end + (1 - self.end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
            return jnp.where(t < warmup, line, cosine)

        return factor

    def validate(self) -> None:
        if not 0 < self.start <= 1:
            raise UserError(
                f"schedule.start must lie in 0..1, above 0, not {self.start}: a rate of 0 "
                "would waste the first step."
            )
        if not 0 <= self.end <= 1:
            raise UserError(f"schedule.end must lie in 0..1, not {self.end}.")
