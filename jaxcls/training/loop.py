"""The loop: batches in, a trained state out; what is due at each step, and nothing else.

A call makes one step or several. The host runs ahead of the devices by MAX_IN_FLIGHT calls and
reads the numbers of a call only when it is done anyway: it never waits for the one just
dispatched.
"""

import collections
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jaxcls import metrics
from jaxcls.checkpoint.checkpoints import Checkpoints
from jaxcls.data.bad_images import BadImages
from jaxcls.errors import Diverged
from jaxcls.inference.evaluation import Evaluator
from jaxcls.parallel import replicated
from jaxcls.report.progress import Progress, eval_line
from jaxcls.report.writers import MetricWriter
from jaxcls.training import plateau
from jaxcls.training.prefetch import DevicePrefetch
from jaxcls.training.program import Program
from jaxcls.training.reestimate import Reestimate
from jaxcls.training.signals import StopSignal
from jaxcls.training.state import TrainState

MAX_IN_FLIGHT = 2


class Clock:
    """Seconds of training: it runs between two blocked points and stands still while the
    run compiles, evaluates or saves."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def read(self) -> float:
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._seconds + running

    @property
    def paused(self) -> bool:
        return self._since is None

    def run(self) -> None:
        self._since = time.perf_counter()

    def pause(self) -> None:
        self._seconds = self.read()
        self._since = None


@dataclasses.dataclass
class InFlight:
    """A call that was dispatched and may not be done.

    Attributes:
      step: steps made with it.
      length: steps that it makes.
      report: what train_step reports of its last step, ready when the call is done.
      interval: sums of the interval that ends with it, if a line of metrics is due.
    """

    step: int
    length: int
    report: dict[str, jax.Array]
    interval: metrics.TrainMetrics | None

    def is_done(self) -> bool:
        step: Any = self.report["step"]  # jax.Array's stub leaves out is_ready
        return step.is_ready()


@dataclasses.dataclass
class Loop:
    """Trains from the state's step to the end of the run, or until a signal.

    Attributes:
      program: knows the config, its plan in steps, the devices and what stays on them.
      train_steps: the compiled programs: steps in a call -> program.
      state: the state; always that after the last call dispatched.
      evaluator: evaluates the test split.
      checkpoints: where states are saved.
      run_info: what is saved beside them.
      writer: takes the lines of metrics, and knows the evaluations of the run so far.
      progress: shows them.
      bad_images: the training images that could not be read so far.
      reestimate: gives averaged weights their batch statistics; None where those are averaged.
      should_stop: asked after each call and within evaluations.
    """

    program: Program
    train_steps: dict[int, Any]
    state: TrainState
    evaluator: Evaluator
    checkpoints: Checkpoints
    run_info: dict[str, Any]
    writer: MetricWriter
    progress: Progress
    bad_images: BadImages
    reestimate: Reestimate | None
    should_stop: StopSignal

    def __post_init__(self) -> None:
        self.config, self.plan = self.program.config, self.program.plan
        self.step = int(self.state.step)
        self._clock = Clock()
        self._in_flight: collections.deque[InFlight] = collections.deque()
        self._empty = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.state.metrics
        )
        # At the last line of metrics: steps made, seconds of training, and of waiting.
        self._last_line = (self.step, 0.0, 0.0)
        self._waiting_lines = 0
        self._reestimated = -1  # the step of the last time

    def run(self, batches: DevicePrefetch) -> bool:
        """Trains on `batches`, each of one call, the first of which begins with the state's
        next step.

        Returns:
          Whether the run is complete, at its end or on a plateau; False if a signal stopped it.
          Either way its last state is saved.

        Raises:
          Diverged: if max_bad_steps steps in a row were not finite.
        """
        calls = self.plan.calls(self.step)
        # A signal may have cut short what was due at the step that was saved.
        self._do_what_is_due()
        while not (self._is_over() or self.should_stop()):
            batch = batches.next(self._devices_idle, count=not self._clock.paused)
            if self._clock.paused:
                self._clock.run()
            length = next(calls)
            self.state, report = self.train_steps[length](
                self.state, batch, self.program.constants
            )
            self.step += length
            self._in_flight.append(
                InFlight(self.step, length, report, self._end_interval())
            )
            while len(self._in_flight) > MAX_IN_FLIGHT:
                self._retire(batches)
            if self._evaluation_is_due() or self._save_is_due():
                self._drain(batches)
                self._do_what_is_due()
        self._drain(batches)
        complete = self._is_over() and not self._evaluation_is_due()
        if self.step > 0 and not self.checkpoints.has(self.step):
            self._save()
        return complete

    def _is_over(self) -> bool:
        """Whether the end is reached, or a plateau."""
        on_plateau = plateau.reached(
            self.writer.evaluations(), self.config.stop_early, self.plan.patience
        )
        return self.step == self.plan.total_steps or on_plateau

    def _devices_idle(self) -> bool:
        """Whether the devices have done all that was dispatched."""
        return not self._in_flight or self._in_flight[-1].is_done()

    def _evaluation_is_due(self) -> bool:
        due = self.plan.is_due(self.plan.evaluate_every, self.step)
        return due and not self.writer.evaluated(self.step)

    def _save_is_due(self) -> bool:
        due = self.plan.is_due(self.plan.save_every, self.step)
        return due and not self.checkpoints.has(self.step)

    def _do_what_is_due(self) -> None:
        """Evaluates before it saves, so that the best checkpoint is known to be the best."""
        if self._evaluation_is_due() and not self._evaluate():
            return
        if self._save_is_due():
            self._save()

    def _end_interval(self) -> metrics.TrainMetrics | None:
        """At the end of an interval takes its sums out of the state and begins new ones."""
        if not self.plan.is_due(self.plan.log_every, self.step):
            return None
        interval = self.state.metrics
        empty = jax.device_put(self._empty, replicated(self.program.mesh))
        self.state = dataclasses.replace(self.state, metrics=empty)
        return interval

    def _drain(self, batches: DevicePrefetch) -> None:
        """Waits until all that was dispatched is done; stops the clock."""
        while self._in_flight:
            self._retire(batches)
        if not self._clock.paused:
            self._clock.pause()

    def _retire(self, batches: DevicePrefetch) -> None:
        """Waits for the oldest call in flight and writes the line of metrics it may end.

        Raises:
          Diverged: if it is one too many that is not finite.
        """
        done = self._in_flight.popleft()
        jax.block_until_ready(done.report)
        self.progress.advance(done.step)
        # Now and then is enough: after max_bad_steps no step changes anything any more.
        since = done.step % self.config.max_bad_steps
        look = not self._in_flight or since < done.length
        if done.interval is None and not look:
            return
        report = jax.device_get(done.report)
        if done.interval is not None:
            self._write_train_line(done.step, done.interval, report, batches)
        if report["bad_in_a_row"] >= self.config.max_bad_steps:
            raise Diverged(self._why_diverged(done.step - int(report["bad_in_a_row"])))

    def _why_diverged(self, first: int) -> str:
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        last = (
            f"checkpoint is of step {saved[-1]}"
            if saved
            else "checkpoint was not reached"
        )
        return (
            f"the loss, the gradients or the update were not finite in "
            f"{self.config.max_bad_steps} steps in a row, from step {first} on (the first "
            f"step is 0). Nothing of them was kept: the last {last}. Begin anew with a lower "
            "optimizer.learning_rate, a longer schedule.warmup or clip=ClipNorm(max_norm=1.0), in another "
            "--workdir or with --fresh."
        )

    def _write_train_line(
        self,
        step: int,
        interval: metrics.TrainMetrics,
        report: dict[str, np.ndarray],
        batches: DevicePrefetch,
    ) -> None:
        last_step, last_seconds, last_waited = self._last_line
        seconds, waited = self._clock.read(), batches.waited
        self._last_line = (step, seconds, waited)
        steps, passed = step - last_step, max(seconds - last_seconds, 1e-9)
        values = {
            "step": step,
            "epoch": step / self.plan.run.steps_per_epoch,
            **metrics.compute(jax.device_get(interval), "train"),
            "lr": float(report["learning_rate"]),
            "bad_steps": int(report["bad_steps"]),
            "img_per_s": steps * self.config.batch_size / passed,
            "seconds_per_step": passed / steps,
            "data_wait": min((waited - last_waited) / passed, 1.0),
        }
        if self.bad_images:
            values["bad_images"] = len(self.bad_images)
        self.writer.write(values)
        self.progress.train_line(values)
        self._advise(values["data_wait"])

    def _advise(self, data_wait: float) -> None:
        """Says once, in a sentence, that the input is the bottleneck: when three lines in a row
        show it, because a busy machine may hold up any one."""
        if self._waiting_lines == 3:
            return
        self._waiting_lines = self._waiting_lines + 1 if data_wait > 0.1 else 0
        if self._waiting_lines < 3:
            return
        data = self.config.data
        self.progress.say(
            f"The devices wait for data {data_wait:.0%} of the time: raise data.workers (now "
            f"{data.workers}) or data.threads (now {data.threads or 'one a core'})."
        )

    def _evaluate(self) -> bool:
        """Evaluates raw and averaged weights; False if a signal cut it short."""
        self._estimate_statistics()
        weights = {"": self.state.variables()}
        if self.state.ema is not None:
            weights["_ema"] = self.state.ema
        started = time.perf_counter()
        results = self.evaluator.evaluate(weights, self.should_stop)
        if results is None:
            return False
        values = {
            "step": self.step,
            "epoch": self.step / self.plan.run.steps_per_epoch,
            **results,
            "eval/seconds": time.perf_counter() - started,
        }
        self.writer.write(values)
        self.progress.say(eval_line(values))
        return True

    def _estimate_statistics(self) -> None:
        """Gives the averaged weights of this step batch statistics of their own. Training never
        reads them, so that it does not depend on when they are needed."""
        if self.reestimate is None or self._reestimated == self.step:
            return
        estimated = self.reestimate(self.state.ema)
        estimated = jax.device_put(estimated, replicated(self.program.mesh))
        average = {**self.state.ema, "batch_stats": estimated}
        self.state = dataclasses.replace(self.state, ema=average)
        self._reestimated = self.step

    def _save(self) -> None:
        """Starts saving the state, with every line of metrics up to it already on disk."""
        self._estimate_statistics()
        self.writer.sync()
        self.checkpoints.save(
            self.step, self.state, {**self.run_info, "step": self.step}
        )
