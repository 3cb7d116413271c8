"""A sweep of learning rates.

A short training whose rate grows at each step by the same factor, from so small that nothing
is learned to so large that the loss explodes (Smith 2015, https://arxiv.org/abs/1506.01186,
section 3.3). Where the loss falls the fastest is a good peak rate.

From Python: `curve = sweep(config); suggestion(curve)`.
"""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls.augment import stages_of_run
from jaxcls.config import Config, Evaluation
from jaxcls.data.loader import start_loader
from jaxcls.duration import RunLength, steps
from jaxcls.errors import UserError
from jaxcls.metrics import compute
from jaxcls.optim import Freeze, Schedule
from jaxcls.training.run import Run, open_run

EXPLODED = 4.0
"""The sweep ends where the loss is so many times its lowest value."""
SMOOTHING = 0.8
"""Weight of a step in the smoothed loss, relative to that of the step next to it and nearer:
on both sides together about as many steps count as in a moving average with 0.9."""
LEAST_CHANGE = 0.05
"""A sweep has failed if its smoothed loss changes by less than this share of its first value."""


@dataclasses.dataclass(kw_only=True)
class Growth(Schedule):
    """A factor that grows by the same ratio at each step, up to 1 at the last.

    Attributes:
      first: factor of the first step, above 0.
    """

    first: float

    def after_warmup(self, length: int, run: RunLength) -> optax.Schedule:
        del run
        octaves = math.log(self.first) / max(length - 1, 1)
        return lambda tick: jnp.exp(octaves * (length - 1 - tick))


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a sweep has found.

    Attributes:
      rates: learning rate of each step, float64 [n], rising.
      losses: training loss of each, float64 [n], finite.
    """

    rates: np.ndarray
    losses: np.ndarray

    def smoothed(self) -> np.ndarray:
        """Returns an average of the losses around each step, float64 [n]: a step k steps away
        counts SMOOTHING^k. An average of the past alone would lag behind the rate."""
        step = np.arange(len(self.losses))
        weights = SMOOTHING ** np.abs(step[:, None] - step)
        return weights @ self.losses / weights.sum(axis=1)


def sweep(
    config: Config, *, num_steps: int = 100, low: float = 1e-6, high: float = 10.0
) -> Curve:
    """Trains with a growing rate until the loss explodes.

    Args:
      config: the run. Its schedule, length, averages and evaluation play no part. Of what
        changes in the course of it the sweep sees the beginning: what thaws later than after
        num_steps stays frozen, and images have the size they begin with.
      num_steps: at most, 10 or more.
      low: rate of the first step, above 0.
      high: rate of the last, above `low`.

    Raises:
      UserError: for a mistake in the arguments, the config or the data, and if the loss was
        finite in fewer than 10 steps.
    """
    if num_steps < 10:
        raise UserError(f"--steps must be 10 or more, not {num_steps}.")
    if not 0 < low < high < 1e6:
        raise UserError(
            f"--low and --high must be rates above 0, the second larger, not {low:g} and "
            f"{high:g}."
        )
    run = _opened(config, num_steps, low, high)
    program = run.program
    step = program.trace_train_step().compile(config.deterministic)
    state = run.initial_state()
    empty = jax.tree.map(jnp.copy, state.metrics)
    rates, losses = [], []
    batches = program.train_batches(run.train_source)
    with start_loader(batches, run.config.data) as loader:
        for batch in loader:
            # Copied, because the state is donated with what is in it.
            state = dataclasses.replace(state, metrics=jax.tree.map(jnp.copy, empty))
            state, report = step(state, program.put(batch), program.constants)
            loss = compute(state.metrics, "train")["train/loss"]
            if not math.isfinite(loss):
                break
            rates.append(float(report["learning_rate"]))
            losses.append(loss)
            if loss > EXPLODED * min(losses):
                break
    if len(losses) < 10:
        raise UserError(
            f"the loss was of use in {len(losses)} steps only, the last at the rate "
            f"{rates[-1] if rates else low:g}: begin with a smaller --low, or look at the data "
            "with `python -m jaxcls.preview`."
        )
    return Curve(np.array(rates), np.array(losses))


def _opened(config: Config, num_steps: int, low: float, high: float) -> Run:
    """Opens the run of the sweep, which is like the beginning of the recipe's: what changes in
    the course of that changes when it would there, as far as the sweep goes."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=high, rate_per=None)
    swept = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, placement="host"),
        optimizer=optimizer,
        schedule=Growth(first=low / high),
        decay_schedule=None,
        duration=steps(num_steps),
        evaluation=Evaluation(every=steps(num_steps)),
        ema=None,
        precise_bn=None,
        stop_early=None,
        steps_per_call=1,
        checkpoint=dataclasses.replace(config.checkpoint, best="eval/top1"),
    )
    run = open_run(swept, Path())
    length = dataclasses.replace(run.plan.run, total_steps=0)
    length = dataclasses.replace(length, total_steps=config.duration.to_steps(length))

    def thawing(freeze: Freeze) -> Freeze:
        if freeze.until is None:
            return freeze
        thaws_at = freeze.until.to_steps(length)
        until = steps(thaws_at) if thaws_at < num_steps else None
        return dataclasses.replace(freeze, until=until)

    (_, transforms), *_ = stages_of_run(run.config.augment, num_steps)
    freeze = tuple(map(thawing, run.config.frozen))
    changed = dataclasses.replace(run.config, freeze=freeze, augment=transforms)
    return dataclasses.replace(run, config=changed)


def suggestion(curve: Curve) -> float:
    """Returns the rate at which the smoothed loss falls the fastest, by the logarithm of the
    rate, before its lowest point.

    Raises:
      UserError: if it hardly changes, or never falls.
    """
    smoothed, logs = curve.smoothed(), np.log(curve.rates)
    if np.ptp(smoothed) < LEAST_CHANGE * abs(smoothed[0]):
        raise UserError(
            f"the loss hardly changes between the rates {curve.rates[0]:g} and "
            f"{curve.rates[-1]:g}: end with a larger --high, or take more --steps."
        )
    slopes = np.gradient(smoothed, logs)[: int(smoothed.argmin()) + 1]
    if len(slopes) < 3 or slopes.min() >= 0:
        raise UserError(
            f"the loss never falls between the rates {curve.rates[0]:g} and "
            f"{curve.rates[-1]:g}: begin with a smaller --low, or look at the data with "
            "`python -m jaxcls.preview`."
        )
    return float(curve.rates[slopes.argmin()])


def advice(config: Config, curve: Curve, suggested: float) -> str:
    """Returns a sentence with the suggestion, and the option that follows it."""
    optimizer = config.optimizer
    peak, option = optimizer.peak(config.batch_size), suggested
    if optimizer.rate_per is not None:
        option *= optimizer.learning_rate / peak
    lowest = curve.rates[curve.smoothed().argmin()]
    return (
        f"the loss falls the fastest at a rate of {suggested:.2g}; it is lowest at "
        f"{lowest:.2g} (now {peak:.2g} at the peak)\n"
        f"  --config.optimizer.learning_rate={option:.2g}"
    )
