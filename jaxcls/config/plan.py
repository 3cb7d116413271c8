"""The durations of a config in steps."""

import dataclasses
from collections.abc import Iterator

from jaxcls.config.tree import Config
from jaxcls.data.order import steps_per_epoch
from jaxcls.duration import RunLength
from jaxcls.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The durations of a config in steps.

    Attributes:
      run: length of the run, an epoch and a batch.
      evaluate_every: steps between evaluations, 1 or more.
      save_every: steps between checkpoints, 1 or more.
      log_every: steps between lines of training metrics, 1 or more.
      steps_per_call: steps that fill a call, 1 or more.
      patience: steps without a better evaluation that end the run early; None never does.
    """

    run: RunLength
    evaluate_every: int
    save_every: int
    log_every: int
    steps_per_call: int = 1
    patience: int | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.run.total_steps

    @property
    def _intervals(self) -> tuple[int, int, int]:
        return self.evaluate_every, self.save_every, self.log_every

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that happens every `every` steps and at the end is due."""
        return step == self.total_steps or (step > 0 and step % every == 0)

    def call_lengths(self, step: int) -> list[int]:
        """Returns the lengths that calls() may give, longest first."""
        within = [every for every in self._intervals if every < self.total_steps]
        ends = [step, self.total_steps, *within]
        divides = all(end % self.steps_per_call == 0 for end in ends)
        return [self.steps_per_call] if divides else [self.steps_per_call, 1]

    def calls(self, step: int) -> Iterator[int]:
        """Yields the lengths of the calls from `step` to the end of the run: steps_per_call,
        or 1 where something is due before that many steps are made.

        The calls after a step do not depend on how the run got there, so that a continued run
        makes the same ones.
        """
        while step < self.total_steps:
            next_due = [step - step % every + every for every in self._intervals]
            room = min(self.total_steps, *next_due) - step
            length = self.steps_per_call if room >= self.steps_per_call else 1
            yield length
            step += length


def plan(config: Config, num_train: int) -> Plan:
    """Works out the durations of a valid config in steps.

    Args:
      config: a config that validate() has passed.
      num_train: images in the training split.

    Raises:
      UserError: if the batch is larger than the training set, a duration comes to nothing or
        the warm-up does not fit into the run.
    """
    batch_size = config.batch_size
    if batch_size > num_train:
        raise UserError(
            f"batch_size {batch_size} is larger than the training set of {num_train} images: "
            f"use at most {num_train}."
        )
    run = RunLength(steps_per_epoch(num_train, batch_size), batch_size)
    total = config.duration.to_steps(run)
    if not 1 <= total < 2**31:
        raise UserError(
            f"duration of {config.duration} is {total:.3g} steps: it must be at least one, "
            "and fewer than 2**31."
        )
    run = dataclasses.replace(run, total_steps=total)
    for schedule in (config.schedule, config.decay_schedule):
        if schedule is not None:
            schedule.factor(run)  # raises where the warm-up does not fit
    if config.ema is not None:
        config.ema.share(run)  # raises where the run has no update of the average
    evaluate = config.evaluation.every.one_step_or_more("evaluation.every", run)
    save = config.checkpoint.every.one_step_or_more("checkpoint.every", run)
    log = config.log.every.one_step_or_more("log.every", run)
    patience = None
    if (stop := config.stop_early) is not None:
        patience = stop.patience.one_step_or_more("stop_early.patience", run)
    steps_per_call = min(config.steps_per_call, total, evaluate, save, log)
    return Plan(run, evaluate, save, log, steps_per_call, patience)
