"""How a rate changes over a run: a factor of its peak for each optimizer step.

    step -> tick -> warm-up, a straight line up to the peak -> the shape that a class is named for

A tick is a step, or an epoch where `every` is "epoch". Ticks are counted in whole numbers, and
only their quotients are floats: in float32 the steps of a long run could not be told apart.
The formulas of the classes count `t` from the peak: t = 0 is the first tick after the warm-up,
or the first of the run where there is no warm-up; m is the number of ticks from there to the
end of the run. Durations round to whole ticks, except for periods.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import MinLen

from jaxcls.duration import Duration, RunLength, fraction, steps
from jaxcls.errors import UserError
from jaxcls.options import AboveZero, Count, Share, ShareAboveZero

MAX_TICKS = 2**31
"""Durations are below this, so that int32 holds them."""

Factor = Callable[[jax.Array], jax.Array]
"""Ticks since the peak, an int32 scalar -> the factor of the peak rate, in 0..1."""

Curve = Callable[[jax.Array], jax.Array]
"""Part of the way that is left, 1..0 -> part of the height that is left, 1..0."""


CURVES: dict[str, Curve] = {
    "linear": lambda left: left,
    # (1 + cos(pi (1 - left))) / 2, which would lose the digits of small values.
    "cosine": lambda left: jnp.square(jnp.sin(jnp.pi / 2 * left)),
    # 1 - sqrt(1 - left), which would lose them too.
    "one_minus_sqrt": lambda left: left / (1 + jnp.sqrt(1 - left)),
}


def _float(values: jax.Array) -> jax.Array:
    """Returns values in JAX's default float, which int32 alone never makes 64 bits wide."""
    return values.astype(float)


def _share(part: jax.Array, whole: jax.Array | float) -> jax.Array:
    """Returns part / whole, at most 1, and exactly 1 where they are equal, both 0 included:
    compiled, a division by a constant multiplies by its rounded inverse."""
    quotient = _float(part) / _float(jnp.where(whole == 0, 1, whole))
    return jnp.where(part >= whole, 1, quotient)


def _between(
    low: jax.Array | float, high: jax.Array | float, share: jax.Array
) -> jax.Array:
    """Returns the value that lies `share` of the way from `low` to `high`, exact at both."""
    return low * (1 - share) + high * share


def _power(base: float, exponent: jax.Array) -> jax.Array:
    """Returns base ** exponent. Rounding `base` itself to float32 would count for each step."""
    return jnp.exp(math.log(base) * _float(exponent))


def _whole_and_part(t: jax.Array, period: Fraction) -> tuple[jax.Array, jax.Array]:
    """Returns how many periods are complete after t ticks, and the share of the next, 0..1.

    Whole periods are counted in whole numbers: the rounding of "2.4 epochs" to steps, or of a
    quotient to float32, would move the drops of a long run.

    Args:
      t: ticks, int32, 0 or more.
      period: ticks, 1 or more and below 2**31.
    """
    # With numerator * denominator below 2**31 everything stays within int32.
    largest = math.isqrt((MAX_TICKS - 1) // (math.ceil(period) + 1))
    period = period.limit_denominator(max(largest, 1))
    ticks, periods = period.numerator, period.denominator  # equally long
    rest = t % ticks * periods
    return t // ticks * periods + rest // ticks, _share(rest % ticks, ticks)


@dataclasses.dataclass(kw_only=True)
class Schedule(abc.ABC):
    """The factor of a peak rate over a run: of the learning rate, or of weight decay.

    With w ticks of warm-up the factor is start + (1 - start) * tick / w for tick < w (Goyal et
    al. 2017, section 2.2, https://arxiv.org/abs/1706.02677), 1 at tick w, and from there what
    the class says.

    Attributes:
      warmup: length of the straight line up to the peak; 0 steps begin at the peak.
      start: factor of the peak at step 0 of a warm-up, above 0 and at most 1.
      every: "step" changes the factor at each step; "epoch" at the start of each epoch, as
        loops in PyTorch do, and then durations round to whole epochs.
    """

    warmup: Duration = dataclasses.field(default_factory=lambda: steps(0))
    start: ShareAboveZero = 0.01
    every: Literal["step", "epoch"] = "step"

    @abc.abstractmethod
    def after_warmup(self, length: int, run: RunLength) -> Factor:
        """Returns the factor, in 0..1, as a function of the ticks since the peak.

        The function takes an int32 scalar in 0..length - 1, often traced.

        Args:
          length: ticks from the peak to the end of the run, 1 or more.
          run: turns durations into ticks, with `ticks` and `exact_ticks`.

        Raises:
          UserError: if durations do not fit into the run.
        """

    def factor(self, run: RunLength) -> optax.Schedule:
        """Returns a function of the optimizer step (0 for the first; an integer, or an array
        in jit) giving the factor of the peak rate: a float of JAX's default size, in 0..1.
        After the end of the run it stays as it was last.

        Args:
          run: the length of the run, total_steps included.

        Raises:
          UserError: if the warm-up leaves no step after the peak, or other durations do not
            fit into the run.
        """
        steps_per_tick = self.steps_per_tick(run)
        total = -(-run.total_steps // steps_per_tick)
        warmup = self.ticks("warmup", self.warmup, run)
        if warmup >= max(total - 1, 1):
            raise UserError(
                f"schedule.warmup of {self.warmup} is {warmup} {self.every}s, but the whole "
                f"run has {total} and needs at least one after the peak: shorten the warm-up "
                "or lengthen duration."
            )
        after_warmup = self.after_warmup(total - warmup, run)

        def factor(step: jax.typing.ArrayLike) -> jax.Array:
            tick = jnp.asarray(step, jnp.int32) // steps_per_tick
            tick = jnp.minimum(tick, total - 1)
            line = _between(self.start, 1.0, _share(tick, warmup))
            shape = after_warmup(jnp.maximum(tick - warmup, 0))
            return jnp.where(tick < warmup, line, shape)

        return factor

    def ticks(
        self, name: str, duration: Duration, run: RunLength, at_least: int = 0
    ) -> int:
        """Returns the nearest whole number of ticks in a duration.

        Args:
          name: of the option, for the message.
          duration: its value.
          run: the length of the run.
          at_least: the fewest ticks that are allowed.

        Raises:
          UserError: for fewer, or more than a run can have.
        """
        ticks = round(duration.to_steps(run) / self.steps_per_tick(run))
        if not at_least <= ticks < MAX_TICKS:
            raise UserError(
                f"schedule.{name} of {duration} is {ticks} {self.every}s: it must be at "
                f"least {at_least}, and fewer than 2**31 ({run.steps_per_epoch} steps are an "
                "epoch)."
            )
        return ticks

    def ticks_since_peak(
        self,
        name: str,
        times: Sequence[Duration],
        run: RunLength,
        *,
        earliest: int,
        end: int | None = None,
    ) -> list[int]:
        """Returns increasing times, counted from the start of the run, as ticks since the peak.

        Args:
          name: of the option, for the message.
          times: its values.
          run: the length of the run.
          earliest: the least that the first may be.
          end: the tick after the last of the run, if a time there means the last.

        Raises:
          UserError: for a time that comes too early, or not after the one before it.
        """
        warmup = self.ticks("warmup", self.warmup, run)
        found = []
        for index, time in enumerate(times):
            tick = self.ticks(f"{name}[{index}]", time, run) - warmup
            if tick == end:
                tick -= 1
            if tick < earliest:
                raise UserError(
                    f"schedule.{name}[{index}] of {time} is at {self.every} {tick + warmup}, "
                    f"but it must be at {earliest + warmup} or later, after the warm-up and "
                    "what comes before it."
                )
            found.append(tick)
            earliest = tick + 1
        return found

    def exact_ticks(self, duration: Duration, run: RunLength) -> Fraction:
        """Returns the ticks in a duration, not rounded to a whole number."""
        return duration.exact_steps(run) / self.steps_per_tick(run)

    def steps_per_tick(self, run: RunLength) -> int:
        """Returns the steps of an epoch, or 1, as `every` says."""
        return run.steps_per_epoch if self.every == "epoch" else 1


@dataclasses.dataclass(kw_only=True)
class Constant(Schedule):
    """The peak, to the end of the run: 1."""

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        return lambda t: jnp.ones_like(t, float)


@dataclasses.dataclass(kw_only=True)
class Descent(Schedule):
    """From the peak to `end` at the end of the run.

    end + (1 - end) * height((T - t) / D), where T = m - 1 (end_at "last") or m ("after_last"),
    and the descent takes the last D ticks: all of them, unless the class says otherwise.

    Attributes:
      end: factor of the peak at the end of the run, 0..1.
      end_at: "last" reaches `end` at the last step (or epoch) of the run; "after_last" would
        at the one after it, as torch's CosineAnnealingLR(T_max=m) and Keras's CosineDecay do.
    """

    end: Share = 0.0
    end_at: Literal["last", "after_last"] = "last"

    @abc.abstractmethod
    def height(self, left: jax.Array) -> jax.Array:
        """Returns which part of the height is left, 1..0, where `left` of the way is, 1..0."""

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        way = length - (self.end_at == "last")
        descent = self.descent(way, run)
        return lambda t: _between(self.end, 1.0, self.height(_share(way - t, descent)))

    def descent(self, way: int, run: RunLength) -> int:
        """Returns the ticks that the descent takes, of the `way` from the peak to the end.

        Raises:
          UserError: if it does not fit.
        """
        return way


@dataclasses.dataclass(kw_only=True)
class Linear(Descent):
    """A straight line down: end + (1 - end) * (1 - t / T), where T = m - 1 (end_at "last") or
    m ("after_last"; torch's LinearLR)."""

    def height(self, left: jax.Array) -> jax.Array:
        return left


@dataclasses.dataclass(kw_only=True)
class Polynomial(Descent):
    """A power of what is left: end + (1 - end) * (1 - t / T) ** power, where T = m - 1 (end_at
    "last") or m ("after_last"; torch's PolynomialLR(total_iters=m), where end is 0).

    Attributes:
      power: exponent, above 0; 1 is a straight line, more falls faster at first.
    """

    power: AboveZero = 2.0

    def height(self, left: jax.Array) -> jax.Array:
        return left**self.power


@dataclasses.dataclass(kw_only=True)
class WarmupCosine(Descent):
    """Half a cosine down: end + (1 - end) * (1 + cos(pi t / T)) / 2, where T = m - 1 (end_at
    "last") or m ("after_last") (Loshchilov & Hutter 2016, equation 5 without restarts,
    https://arxiv.org/abs/1608.03983).

    PyTorch's SequentialLR of LinearLR(start_factor=0.01, total_iters=5) and
    CosineAnnealingLR(T_max=95), stepped after each of 100 epochs, is
    WarmupCosine(warmup=epochs(5), start=0.01, every="epoch", end_at="after_last").
    """

    warmup: Duration = dataclasses.field(default_factory=lambda: fraction(0.05))

    def height(self, left: jax.Array) -> jax.Array:
        return CURVES["cosine"](left)


@dataclasses.dataclass(kw_only=True)
class CosineRestarts(Schedule):
    """Cosines down, each from a peak (Loshchilov & Hutter 2016, equation 5,
    https://arxiv.org/abs/1608.03983).

    Cycle k has L = period * multiplier ** k ticks and the peak p = max(decay ** k, end); at
    its tick i the factor is end + (p - end) * (1 + cos(pi i / T)) / 2, where T = L - 1 (end_at
    "last") or L ("after_last": torch's CosineAnnealingWarmRestarts, T_0 = period and T_mult =
    multiplier). A run that is not a whole number of cycles ends within its last cycle.

    Attributes:
      period: length of the first cycle, counted from the end of the warm-up.
      multiplier: how many times longer each cycle is than the one before, 1 or more.
      decay: each peak is this factor of the one before, 0..1, above 0; 1 keeps the peak.
      end: factor of the peak at the end of each cycle, 0..1.
      end_at: "last" reaches `end` at the last step (or epoch) of each cycle; "after_last"
        would at the one after it, as torch does.
    """

    period: Duration
    multiplier: Count = 1
    decay: ShareAboveZero = 1.0
    end: Share = 0.0
    end_at: Literal["last", "after_last"] = "last"

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        period = self.ticks("period", self.period, run, at_least=1)
        lengths = [period]  # of each cycle; of the first one only, where all are equal
        while self.multiplier > 1 and sum(lengths) < length:
            lengths.append(lengths[-1] * self.multiplier)
        if lengths[-1] >= MAX_TICKS:
            raise UserError(
                f"schedule.multiplier {self.multiplier} makes a cycle of {lengths[-1]:.3g} "
                f"{self.every}s: let cycles have fewer than 2**31."
            )
        starts = np.cumsum([0, *lengths[:-1]])

        def factor(t: jax.Array) -> jax.Array:
            if self.multiplier == 1:
                cycle, tick, cycle_length = t // period, t % period, jnp.int32(period)
            else:
                cycle = _last_at_most(starts, t)
                tick = t - jnp.asarray(starts, jnp.int32)[cycle]
                cycle_length = jnp.asarray(lengths, jnp.int32)[cycle]
            way = cycle_length - (self.end_at == "last")
            peak = jnp.maximum(_power(self.decay, cycle), self.end)
            height = CURVES["cosine"](_share(way - tick, way))
            return _between(self.end, peak, height)

        return factor


def _last_at_most(starts: Sequence[int] | np.ndarray, t: jax.Array) -> jax.Array:
    """Returns the index of the last of increasing `starts` that is t or less."""
    return jnp.searchsorted(jnp.asarray(starts, jnp.int32), t, side="right") - 1


@dataclasses.dataclass(kw_only=True)
class Step(Schedule):
    """A drop after each period: decay ** floor(t / period) (torch's StepLR).

    Attributes:
      period: ticks between drops, counted from the end of the warm-up.
      decay: factor of each drop, 0..1, above 0.
    """

    period: Duration
    decay: ShareAboveZero = 0.1

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        return _falls(self, staircase=True, run=run)


@dataclasses.dataclass(kw_only=True)
class MultiStep(Schedule):
    """A drop at each milestone: decay ** (number of milestones reached) (torch's MultiStepLR;
    He et al. 2015, section 3.4, https://arxiv.org/abs/1512.03385).

    Attributes:
      milestones: increasing, after the warm-up, counted from the start of the run; those
        beyond its end are never reached.
      decay: factor of each drop, 0..1, above 0.
    """

    milestones: Annotated[tuple[Duration, ...], MinLen(1)]
    decay: ShareAboveZero = 0.1

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        starts = [0]
        starts += self.ticks_since_peak("milestones", self.milestones, run, earliest=1)
        factors = self.decay ** np.arange(len(starts))
        return lambda t: jnp.asarray(factors, float)[_last_at_most(starts, t)]


@dataclasses.dataclass(kw_only=True)
class Exponential(Schedule):
    """A constant factor for each period: decay ** (t / period), or decay ** floor(t / period)
    as a staircase. EfficientNet's, at each step, is Exponential(period=epochs(2.4),
    decay=0.97, staircase=True) (Tan & Le 2019, section 5.2, https://arxiv.org/abs/1905.11946);
    torch's ExponentialLR(gamma) is Exponential(period=epochs(1), decay=gamma, every="epoch").

    Attributes:
      period: the time in which the factor falls by `decay`, from the end of the warm-up.
      decay: factor of each period, 0..1, above 0.
      staircase: fall at the end of each period only.
    """

    period: Duration
    decay: ShareAboveZero
    staircase: bool = False

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        return _falls(self, self.staircase, run)


def _falls(schedule: Step | Exponential, staircase: bool, run: RunLength) -> Factor:
    """Returns decay ** (t / period), or decay ** floor(t / period) as a staircase."""
    schedule.ticks("period", schedule.period, run, at_least=1)
    period = max(schedule.exact_ticks(schedule.period, run), Fraction(1))

    def factor(t: jax.Array) -> jax.Array:
        whole, part = _whole_and_part(t, period)
        stairs = _power(schedule.decay, whole)
        return stairs if staircase else stairs * _power(schedule.decay, part)

    return factor


@dataclasses.dataclass(kw_only=True)
class InverseSqrt(Schedule):
    """An inverse square root: sqrt(timescale / (timescale + t)). With the timescale as long as
    the warm-up it is that of Vaswani et al. 2017 (equation 3,
    https://arxiv.org/abs/1706.03762).

    Attributes:
      timescale: the time from the end of the warm-up in which the factor falls to
        1 / sqrt(2).
    """

    timescale: Duration

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        timescale = self.ticks("timescale", self.timescale, run, at_least=1)
        return lambda t: 1 / jnp.sqrt(1 + _float(t) / timescale)


@dataclasses.dataclass(kw_only=True)
class WarmupStableDecay(Descent):
    """The peak, and in the last part of the run a cooldown to `end` (Zhai et al. 2021, section
    3.5, https://arxiv.org/abs/2106.04560; Hägele et al. 2024, section 3,
    https://arxiv.org/abs/2405.18392).

    end + (1 - end) * curve(d), where d is the part of the cooldown that is made, 0 at its
    beginning and 1 at the end of the run: 1 - d (linear), (1 + cos(pi d)) / 2 (cosine) or
    1 - sqrt(d) (one_minus_sqrt).

    Attributes:
      cooldown: length of the last part; it fits between the warm-up and the end of the run.
      curve: how it falls: "linear", "cosine" or "one_minus_sqrt".
    """

    warmup: Duration = dataclasses.field(default_factory=lambda: fraction(0.05))
    cooldown: Duration = dataclasses.field(default_factory=lambda: fraction(0.2))
    curve: Literal["linear", "cosine", "one_minus_sqrt"] = "linear"

    def height(self, left: jax.Array) -> jax.Array:
        return CURVES[self.curve](left)

    def descent(self, way: int, run: RunLength) -> int:
        cooldown = self.ticks("cooldown", self.cooldown, run)
        if not 1 <= cooldown <= way:
            raise UserError(
                f"schedule.cooldown of {self.cooldown} is {cooldown} {self.every}s: it must "
                f"be at least one, and at most {way}, what the warm-up leaves of the run. "
                "Change it, the warm-up or duration."
            )
        return cooldown


@dataclasses.dataclass(kw_only=True)
class OneCycle(Schedule):
    """Up to the peak and down to `end`, far below the beginning (Smith & Topin 2017, section 3,
    https://arxiv.org/abs/1708.07120), as torch's OneCycleLR counts it.

    In a run of n steps it goes from `start` at step 0 to 1 at step rise - 1, and to `end` at
    step n - 1. With three phases it first goes back to `start`, at step 2 * rise - 2. Between
    these a + (b - a) * d, where d is the part of the way that is made (linear), or
    (1 - cos(pi d)) / 2 of it (cosine). torch's div_factor is 1 / start and its
    final_div_factor start / end. Its cycle of momentum has no counterpart here.

    Attributes:
      start: factor of the peak at step 0, above 0 and at most 1.
      rise: length of the way up, the peak included; three phases need less than half a run.
      end: factor of the peak at the last step, 0..1.
      curve: how it rises and falls: "linear" or "cosine".
      three_phase: fall as slowly as it rose, and then on to `end`.
    """

    start: ShareAboveZero = 0.04
    rise: Duration = dataclasses.field(default_factory=lambda: fraction(0.3))
    end: Share = 4e-6
    curve: Literal["linear", "cosine"] = "cosine"
    three_phase: bool = False

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        last = length - 1
        # As in torch not rounded: the peak may lie between two ticks.
        top = float(self.exact_ticks(self.rise, run)) - 1
        bottom = 2 * top if self.three_phase else top
        if not 0 < top <= bottom < last:
            raise UserError(
                f"schedule.rise of {self.rise} does not fit into a run of {length} "
                f"{self.every}s: it must be longer than one, and shorter than "
                f"{'half the' if self.three_phase else 'the whole'} run."
            )
        # Where the last way down begins.
        middle = self.start if self.three_phase else 1.0
        curve = CURVES[self.curve]

        def factor(t: jax.Array) -> jax.Array:
            up = _between(self.start, 1.0, curve(_share(t, top)))
            back = _between(self.start, 1.0, curve(_share(bottom - t, bottom - top)))
            down = _between(self.end, middle, curve(_share(last - t, last - bottom)))
            return jnp.where(t <= top, up, jnp.where(t <= bottom, back, down))

        return factor

    def validate(self) -> None:
        """Raises UserError for a warm-up."""
        if self.warmup.value != 0:
            raise UserError(
                f"schedule.warmup must be 0 steps with OneCycle, not {self.warmup}: its rise "
                "is the warm-up."
            )


@dataclasses.dataclass(kw_only=True)
class Piecewise(Schedule):
    """What points say: the factor of a point from its tick on ("step"), or between two points
    straight lines ("linear"), v + (v' - v) * (t - x) / (x' - x). After the last point it stays
    as it is, and before the first it comes from 1 at the end of the warm-up.

    Attributes:
      points: pairs of a time, counted from the start of the run and increasing, and the
        factor of the peak there, 0..1; none lies within the warm-up, and the first is not 0
        where the run begins or the warm-up ends.
      interpolation: "linear" or "step".
      end_at: "last" takes a point at the very end of the run (100 %) for the last step (or
        epoch), so that it is reached; "after_last" for the one after it.
    """

    points: Annotated[tuple[tuple[Duration, Share], ...], MinLen(1)]
    interpolation: Literal["linear", "step"] = "linear"
    end_at: Literal["last", "after_last"] = "last"

    def after_warmup(self, length: int, run: RunLength) -> Factor:
        times = [time for time, _ in self.points]
        values = [value for _, value in self.points]
        end = length if self.end_at == "last" else None
        starts = self.ticks_since_peak("points", times, run, earliest=0, end=end)
        if starts[0] != 0:
            starts, values = [0, *starts], [1.0, *values]
        if values[0] == 0:
            raise UserError(
                "schedule.points[0] is 0 where the run begins or its warm-up ends: a rate of "
                "0 would waste the step."
            )

        def factor(t: jax.Array) -> jax.Array:
            times, factors = jnp.asarray(starts, jnp.int32), jnp.asarray(values, float)
            index = _last_at_most(starts, t)
            if self.interpolation == "step":
                return factors[index]
            following = jnp.minimum(index + 1, len(starts) - 1)
            share = _share(t - times[index], times[following] - times[index])
            return _between(factors[index], factors[following], share)

        return factor
