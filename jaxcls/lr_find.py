"""Looks for a learning rate: `python -m jaxcls.lr_find --config configs/resnet18.py`.

A short training whose rate grows at each step by the same factor, from so small that nothing
is learned to so large that the loss explodes (Smith 2015, https://arxiv.org/abs/1506.01186,
section 3.3). Where the loss falls the fastest is a good peak rate.

From Python: `curve = sweep(config); suggestion(curve)`.
"""

import argparse
import dataclasses
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcls import parallel
from jaxcls.augment import stages_of_run
from jaxcls.config import Config, Evaluation
from jaxcls.config import command_line as flags
from jaxcls.duration import RunLength, steps
from jaxcls.errors import UserError
from jaxcls.metrics import TrainMetrics, compute
from jaxcls.optim import Freeze, Schedule
from jaxcls.train import Run, open_run

EXPLODED = 4.0
"""The sweep ends where the loss is so many times its lowest value."""
SMOOTHING = 0.8
"""What a step counts in the smoothed loss, relative to the one that is a step nearer: about
as many steps count on either side as on one side of a moving average with 0.9."""
LEAST_CHANGE = 0.05
"""A smoothed loss that changes by less than this share of its first value has seen nothing of
what a sweep looks for."""


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
        num_steps stays frozen, and images have the size of the first stage.
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
    program, constants = run.program()
    shapes = run.constant_shapes(program, constants)
    step = program.trace_train_step(1, shapes).compile(config.deterministic).call
    state = run.initial(program)
    empty = jax.device_put(TrainMetrics.empty(), parallel.replicated(program.mesh))
    rates, losses = [], []
    with run.train_loader(0) as loader:
        for batch in loader:
            # Copied, because the state is donated with what is in it.
            state = dataclasses.replace(state, metrics=jax.tree.map(jnp.copy, empty))
            state, report = step(state, program.put(batch), constants)
            rate, loss = report["learning_rate"], compute(state.metrics, "train")
            if not math.isfinite(loss["train/loss"]):
                break
            rates.append(float(rate))
            losses.append(loss["train/loss"])
            if losses[-1] > EXPLODED * min(losses):
                break
    if len(losses) < 10:
        raise UserError(
            f"the loss was of use in {len(losses)} steps only, the last at the rate "
            f"{rates[-1] if rates else low:g}: begin with a smaller --low, or look at the data "
            "with `python -m jaxcls.preview`."
        )
    return Curve(np.array(rates), np.array(losses))


def _opened(config: Config, num_steps: int, low: float, high: float) -> Run:
    """Opens the run of the sweep, which is like the beginning of the recipe's."""
    run = open_run(_swept(config, num_steps, low, high), Path())
    length = dataclasses.replace(run.plan.run, total_steps=None)
    total = config.duration.to_steps(length)
    changed = _at_the_beginning(
        run.config, num_steps, dataclasses.replace(length, total_steps=total)
    )
    return dataclasses.replace(run, config=changed)


def _at_the_beginning(config: Config, num_steps: int, length: RunLength) -> Config:
    """Returns a config of num_steps steps in which things change when they would in a run of
    another length, as far as it goes.

    Args:
      config: of the sweep.
      num_steps: of the sweep.
      length: of the recipe's run, total_steps included.
    """

    def thawing(freeze: Freeze) -> Freeze:
        if freeze.until is None:
            return freeze
        thaws_at = freeze.until.to_steps(length)
        until = steps(thaws_at) if thaws_at < num_steps else None
        return dataclasses.replace(freeze, until=until)

    (_, transforms), *_ = stages_of_run(config.augment, num_steps)
    return dataclasses.replace(
        config,
        freeze=tuple(thawing(freeze) for freeze in config.frozen),
        augment=transforms,
    )


def _swept(config: Config, num_steps: int, low: float, high: float) -> Config:
    """Returns the config of the sweep."""
    optimizer = dataclasses.replace(config.optimizer, learning_rate=high, rate_per=None)
    return dataclasses.replace(
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


def check_picture(path: Path) -> None:
    """Raises UserError if draw() could not write a picture, without writing anything."""
    # Without pyplot: no window system, and nothing is left over.
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        endings = ", ".join(f".{ending}" for ending in sorted(known))
        raise UserError(
            f"cannot write the picture {path}: it must end in one of {endings}."
        )
    if path.is_dir():
        raise UserError(f"cannot write the picture {path}: it is a folder.")
    place = path if path.exists() else path.absolute().parent
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK) or (place != path and not place.is_dir()):
        kind = "a file" if place == path else "a folder"
        raise UserError(
            f"cannot write the picture {path}: {place} is not {kind} that may be written."
        )


def draw(curve: Curve, suggested: float, path: Path) -> None:
    """Draws the curve and the suggestion into a picture.

    Raises:
      UserError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, color="lightgrey", label="loss of each step")
    axes.plot(curve.rates, curve.smoothed(), label="smoothed")
    axes.axvline(
        suggested, color="tab:red", linestyle="--", label=f"steepest: {suggested:.2g}"
    )
    axes.set_xscale("log")
    axes.set_ylim(
        0.9 * curve.losses.min(), min(curve.losses.max(), 2 * curve.losses[0])
    )
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend()
    picture = io.BytesIO()  # so that no half of a file is left where drawing fails
    try:
        figure.savefig(picture, dpi=120, format=path.suffix[1:] or "png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.getvalue())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}.") from None


def advice(config: Config, curve: Curve, suggested: float) -> str:
    """Returns the suggestion as a person would say it, and the option that follows it."""
    option = suggested
    optimizer = config.optimizer
    if optimizer.rate_per is not None:
        option *= optimizer.learning_rate / optimizer.peak(config.batch_size)
    lowest = curve.rates[curve.smoothed().argmin()]
    return (
        f"the loss falls the fastest at a rate of {suggested:.2g}; it is lowest at "
        f"{lowest:.2g} (now {optimizer.peak(config.batch_size):.2g} at the peak)\n"
        f"  --config.optimizer.learning_rate={option:.2g}"
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a mistake."""
    parallel.keep_freed_memory()
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.lr_find",
        usage="%(prog)s --config FILE[:DATASET] [--config.OPTION=VALUE ...] [--out FILE] "
        "[--steps N] [--low RATE] [--high RATE]",
        description="Draws how the loss of a recipe goes while the learning rate grows, and "
        "suggests a rate.",
        allow_abbrev=False,
    )
    add: Any = parser.add_argument
    add("--out", default="lr_find.png", help="the picture; lr_find.png")
    add("--steps", type=int, default=100, help="of the sweep, at most; 100")
    add("--low", type=float, default=1e-6, help="the first rate; 1e-6")
    add("--high", type=float, default=10.0, help="the last rate; 10")
    ours, recipe = parser.parse_known_args(argv)
    try:
        command = flags.parse(recipe, flags.OF_RECIPE)
        if command is None:
            return 0
        config, out = command.config, Path(ours.out)
        check_picture(out)
        curve = sweep(config, num_steps=ours.steps, low=ours.low, high=ours.high)
        suggested = suggestion(curve)
        print(advice(config, curve, suggested), flush=True)
        draw(curve, suggested, out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: the curve of {len(curve.rates)} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
