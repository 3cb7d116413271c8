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
from jaxcls.report.progress import Progress, eval_line, say
from jaxcls.report.writers import MetricWriter
from jaxcls.training.prefetch import DevicePrefetch
from jaxcls.training.program import Program
from jaxcls.training.reestimate import Reestimate
from jaxcls.training.signals import StopSignal
from jaxcls.training.state import TrainState

MAX_IN_FLIGHT = 2


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


@dataclasses.dataclass
class Loop:
    """Trains from the state's step to the end of the run, or until a signal.

    Attributes:
      program: knows the config, its plan in steps, the devices and what stays on them.
      train_steps: the compiled programs: steps in a call -> program.
      state: the state; always that after the last call dispatched.
      evaluator: evaluates the test split.
      checkpoints: where states are saved.
      info: the JSON that is saved with each.
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
    info: dict[str, Any]
    writer: MetricWriter
    progress: Progress
    bad_images: BadImages
    reestimate: Reestimate | None
    should_stop: StopSignal

    def __post_init__(self) -> None:
        self.config, self.plan = self.program.config, self.program.plan
        self.step = int(self.state.step)
        self._in_flight: collections.deque[InFlight] = collections.deque()
        self._empty = jax.tree.map(
            lambda leaf: np.zeros(leaf.shape, leaf.dtype), self.state.metrics
        )
        # Where the interval began: its step, and the seconds waited for data until then.
        self._interval = (self.step, 0.0)
        # When it began, moved on by all pauses since: no time passes while the run compiles,
        # evaluates or saves.
        self._began = time.perf_counter()
        self._paused: float | None = self._began
        self._slow_lines = 0
        self._reestimated_at = -1

    def run(self, batches: DevicePrefetch) -> bool:
        """Trains on `batches`, each of one call, the first of which begins with the state's
        next step.

        Returns:
          Whether the run is complete, at its end or on a plateau; False if a signal stopped it.
          Either way its last state is saved.

        Raises:
          Diverged: if max_bad_steps steps in a row were not finite.
        """
        calls, self._batches = self.plan.calls(self.step), batches
        # A signal may have cut short what was due at the step that was saved.
        self._do_what_is_due()
        while not (self._is_over() or self.should_stop()):
            batch = batches.next(self._devices_idle, count=self._paused is None)
            if self._paused is not None:
                self._began += time.perf_counter() - self._paused
                self._paused = None
            length = next(calls)
            train_step = self.train_steps[length]
            self.state, report = train_step(self.state, batch, self.program.constants)
            self.step += length
            interval = self._end_interval()
            self._in_flight.append(InFlight(self.step, length, report, interval))
            while len(self._in_flight) > MAX_IN_FLIGHT:
                self._retire()
            if self._evaluation_is_due() or self._save_is_due():
                self._drain()
                self._do_what_is_due()
        self._drain()
        complete = self._is_over() and not self._evaluation_is_due()
        if self.step > 0 and not self.checkpoints.has(self.step):
            self._save()
        return complete

    def _is_over(self) -> bool:
        """Whether the run has reached its end, or a plateau."""
        early, evaluations = self.config.stop_early, self.writer.evaluations
        return self.step == self.plan.total_steps or (
            early is not None and early.reached(evaluations, self.plan.patience)
        )

    def _devices_idle(self) -> bool:
        """Whether the devices have done all that was dispatched."""
        if not self._in_flight:
            return True
        step: Any = self._in_flight[-1].report["step"]
        return step.is_ready()  # jax.Array's stub leaves it out

    def _evaluation_is_due(self) -> bool:
        due = self.plan.is_due(self.plan.evaluate_every, self.step)
        return due and not self.writer.evaluated(self.step)

    def _save_is_due(self) -> bool:
        due = self.plan.is_due(self.plan.save_every, self.step)
        return due and not self.checkpoints.has(self.step)

    def _do_what_is_due(self) -> None:
        """Evaluates before it saves, so that the best checkpoint is known to be the best."""
        stopped = self._evaluation_is_due() and not self._evaluate()
        if self._save_is_due() and not stopped:
            self._save()

    def _end_interval(self) -> metrics.TrainMetrics | None:
        """Takes the sums of an interval that ends here out of the state, where new ones begin;
        returns None within an interval."""
        if not self.plan.is_due(self.plan.log_every, self.step):
            return None
        interval = self.state.metrics
        empty = jax.device_put(self._empty, replicated(self.program.mesh))
        self.state = dataclasses.replace(self.state, metrics=empty)
        return interval

    def _drain(self) -> None:
        """Waits until all that was dispatched is done; stops the clock."""
        while self._in_flight:
            self._retire()
        if self._paused is None:
            self._paused = time.perf_counter()

    def _retire(self) -> None:
        """Waits for the oldest call in flight, and writes the line of metrics that it may end.

        Raises:
          Diverged: if max_bad_steps steps in a row were not finite.
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
            self._write_train_line(done.step, done.interval, report)
        if report["bad_in_a_row"] >= self.config.max_bad_steps:
            raise Diverged(self._why_diverged(done.step - int(report["bad_in_a_row"])))

    def _why_diverged(self, first: int) -> str:
        self.checkpoints.wait()
        saved = self.checkpoints.steps()
        last = f"is of step {saved[-1]}" if saved else "was not reached"
        return (
            f"the loss, the gradients or the update were not finite in "
            f"{self.config.max_bad_steps} steps in a row, from step {first} on (the first "
            f"step is 0). Nothing of them was kept: the last checkpoint {last}. Begin anew "
            "with a lower optimizer.learning_rate, a longer schedule.warmup or "
            "clip=ClipNorm(max_norm=1.0), in another --workdir or with --fresh."
        )

    def _write_train_line(
        self, step: int, sums: metrics.TrainMetrics, report: dict[str, np.ndarray]
    ) -> None:
        waited = self._batches.waited
        (first, waited_before), began = self._interval, self._began
        self._interval, self._began = (step, waited), time.perf_counter()
        steps, passed = step - first, max(self._began - began, 1e-9)
        values = {
            "step": step,
            "epoch": step / self.plan.run.steps_per_epoch,
            **metrics.compute(jax.device_get(sums), "train"),
            "lr": float(report["learning_rate"]),
            "bad_steps": int(report["bad_steps"]),
            "img_per_s": steps * self.config.batch_size / passed,
            "seconds_per_step": passed / steps,
            "data_wait": min((waited - waited_before) / passed, 1.0),
        }
        if self.bad_images:
            values["bad_images"] = len(self.bad_images)
        self.writer.write(values)
        self.progress.train_line(values)
        self._advise(values["data_wait"])

    def _advise(self, data_wait: float) -> None:
        """Prints once that the input is the bottleneck: when three lines in a row show it,
        because a busy machine may hold up any one."""
        if self._slow_lines == 3:
            return
        self._slow_lines = self._slow_lines + 1 if data_wait > 0.1 else 0
        if self._slow_lines < 3:
            return
        data = self.config.data
        say(
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
        say(eval_line(values))
        return True

    def _estimate_statistics(self) -> None:
        """Gives the averaged weights of this step batch statistics of their own. Training never
        reads them, so that it does not depend on when they are needed."""
        if self.reestimate is None or self._reestimated_at == self.step:
            return
        estimated = self.reestimate(self.state.ema)
        estimated = jax.device_put(estimated, replicated(self.program.mesh))
        average = {**self.state.ema, "batch_stats": estimated}
        self.state = dataclasses.replace(self.state, ema=average)
        self._reestimated_at = self.step

    def _save(self) -> None:
        """Starts saving the state, with every line of metrics up to it already on disk."""
        self._estimate_statistics()
        self.writer.sync()
        info = {**self.info, "step": self.step}
        self.checkpoints.save(self.step, self.state, info)
