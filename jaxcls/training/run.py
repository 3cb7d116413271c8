"""A run from its config to its last checkpoint: opens, checks, restores, compiles, trains."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import __version__, parallel
from jaxcls import config as config_lib
from jaxcls.checkpoint import checkpoints
from jaxcls.checkpoint.checkpoints import Checkpoints
from jaxcls.checkpoint.weights_only import refuse_training
from jaxcls.config import Config, Plan
from jaxcls.data.bad_images import BadImages
from jaxcls.data.loader import Batch, start_loader
from jaxcls.data.opening import open_splits
from jaxcls.data.sampling import class_counts
from jaxcls.data.sources import Source
from jaxcls.errors import UserError
from jaxcls.inference.evaluation import Evaluator
from jaxcls.inference.forward import Traced
from jaxcls.inference.trained import Trained, check_exists, load_teacher
from jaxcls.report import tables
from jaxcls.report.progress import Progress, eval_line, say
from jaxcls.report.writers import METRICS, MetricWriter, evaluations_in, read_metrics
from jaxcls.training import placement
from jaxcls.training.loop import Loop
from jaxcls.training.prefetch import DevicePrefetch, in_calls
from jaxcls.training.program import Program, trained_alike
from jaxcls.training.reestimate import Reestimate
from jaxcls.training.run_folder import check_same_run, locked, newest_checkpoint
from jaxcls.training.signals import StopSignal
from jaxcls.training.state import TrainState
from jaxcls.training.warm_start import warm_start


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Attributes:
      complete: whether the run reached its end; False if a signal stopped it.
      step: steps made.
      metrics: the last evaluation, {} if there was none yet: "eval/top1" and so on.
      workdir: the run's folder.
    """

    complete: bool
    step: int
    metrics: dict[str, Any]
    workdir: Path


def train(config: Config, workdir: str | Path, *, fresh: bool = False) -> Result:
    """Trains a config in a folder, or continues the run that lies there.

    Args:
      config: the run.
      workdir: its folder; made if it does not exist.
      fresh: moves an earlier run in the folder aside and begins anew.

    Returns:
      The outcome.

    Raises:
      UserError: for a mistake in the config, the folder, its checkpoints or the data.
      Diverged: if too many steps in a row were not finite.
    """
    workdir = Path(workdir).absolute()
    begins = fresh or newest_checkpoint(workdir) is None
    run = open_run(config, workdir, begins=begins)
    if fresh:
        # Mistakes that show here shall not cost the earlier run its place.
        _ = run.program
    with StopSignal() as stop, locked(workdir, fresh):
        newest = newest_checkpoint(workdir)
        if newest is not None:
            saved = checkpoints.read_info(newest)
            refuse_training(saved, workdir)
            check_same_run(saved, run.info, workdir)
        return run.train(newest, stop)


def dry_run(config: Config) -> None:
    """Prints what a config would train: its parameters in groups, the memory and the schedule.

    Trains and writes nothing, and loads nothing but the first image of each split.

    Raises:
      UserError: as train() does.
    """
    open_run(config, Path("dry run"), begins=True).describe()


def open_run(config: Config, workdir: Path, *, begins: bool = False) -> "Run":
    """Checks a config and opens its data.

    Args:
      config: the run.
      workdir: its folder.
      begins: whether the run begins, so that the weights it starts from must exist.

    Raises:
      UserError: for a mistake in the config or the data.
    """
    config_lib.validate(config)
    check_exists(config, workdir, begins=begins)
    train, test = open_splits(config.data)
    plan = config_lib.plan(config, len(train.source))
    loss, class_names = config.loss, tuple(train.source.class_names)
    loss.check_classes(len(class_names))
    for split in (train, test):
        loss.check_labels(split.first["label"], repr(split.source))
    info = {
        "jaxcls_version": __version__,
        # As it was given, before the loss counts the labels: a resume compares these.
        "config": config_lib.to_dict(config),
        "class_names": list(class_names),
        "image_shape": list(train.image_shape),
        "train_source": repr(train.source),
        "test_source": repr(test.source),
    }
    teacher = load_teacher(config, class_names, train.image_shape)
    if teacher is not None:
        say(f"learns from {teacher.source}")
        info["teacher"] = teacher.digest()  # a run goes on with the same weights
    if loss.automatic:
        loss = loss.fitted(class_counts(train.source), len(train.source))
        config = dataclasses.replace(config, loss=loss)
    return Run(config, plan, workdir, train.source, test.source, info, teacher)


@dataclasses.dataclass
class Run:
    """A config with its data and its folder.

    Attributes:
      config: a valid config, whose loss knows the training labels where it depends on them.
      plan: its durations in steps.
      workdir: the run's folder.
      train_source: the training split.
      test_source: the split that is evaluated.
      info: the JSON that every checkpoint holds besides the state, so that it stands alone.
      teacher: the network to learn from, its variables on the host; None for none.
    """

    config: Config
    plan: Plan
    workdir: Path
    train_source: Source
    test_source: Source
    info: dict[str, Any]
    teacher: Trained | None

    @functools.cached_property
    def program(self) -> Program:
        """The config bound to the data's shapes and the devices."""
        parallel.enable_compilation_cache()
        if jax.process_count() > 1:
            raise UserError(
                f"this is one of {jax.process_count()} processes that train together, which "
                "jaxcls cannot do yet: use one process for all devices of one machine."
            )
        on_devices = self.config.data.placement == "device"
        program = Program(
            self.config,
            self.plan,
            mesh=parallel.make_mesh(self.config.devices),
            num_classes=len(self.info["class_names"]),
            image_shape=self.info["image_shape"],
            num_records=len(self.train_source) if on_devices else None,
            teacher=self.teacher,
        )
        program.train_batches(self.train_source)  # raises where they cannot be drawn
        return program

    def _already_complete(self, step: int) -> Result | None:
        """Returns the outcome, and prints it, if the run has ended at `step`, on time or on a
        plateau, and evaluated it; None otherwise."""
        evaluations = evaluations_in(read_metrics(self.workdir / METRICS, step))
        early, plan = self.config.stop_early, self.plan
        if not evaluations or evaluations[-1]["step"] != step:
            return None
        on_plateau = early is not None and early.reached(evaluations, plan.patience)
        if step != plan.total_steps and not on_plateau:
            return None
        say(
            f"the run in {self.workdir} is complete at step {step}:\n"
            f"{eval_line(evaluations[-1])}\n"
            "To start another, choose another --workdir, or --fresh to begin this one "
            "anew."
        )
        return Result(True, step, evaluations[-1], self.workdir)

    def describe(self) -> None:
        """Prints what would be trained."""
        program = self.program
        self._print_plan()
        self._trace_moments()
        train_step = program.trace_train_step(max(self.plan.call_lengths(0)))
        compiled = self._compiled({"train step": train_step})["train step"]
        shapes = program.state_shapes
        parts = {
            "parameters and batch statistics": (shapes.params, shapes.batch_stats),
            "optimizer": shapes.opt_state,
            "averaged weights": shapes.ema,
            **program.constant_shapes(),
        }
        say(tables.memory(parts, compiled.memory_analysis().temp_size_in_bytes))
        for name, curve in program.curves().items():
            say(tables.schedule(name, *curve))

    def train(self, newest: Path | None, stop: StopSignal) -> Result:
        """Restores or initialises, compiles, trains and reports.

        Args:
          newest: the folder of the checkpoint to continue from, or None.
          stop: becomes true when a signal asks to stop.
        """
        step = 0 if newest is None else int(newest.name)
        if result := self._already_complete(step):
            return result
        config, plan, program = self.config, self.plan, self.program
        # Traced before anything is written: shapes that do not fit fail now.
        lengths = plan.call_lengths(step)
        names = {n: "train step" if n == 1 else f"{n} train steps" for n in lengths}
        traced = {name: program.trace_train_step(n) for n, name in names.items()}
        traced["eval step"] = program.trace_eval_step(program.state_shapes.variables())
        traced |= self._trace_moments()
        # Leaving the stack closes what was opened, the last first, however the run ends.
        with contextlib.ExitStack() as stack:
            self._print_plan()
            writer = stack.enter_context(contextlib.closing(self._writer(step)))
            state = self.initial_state() if newest is None else self._restored(newest)
            compiled = self._compiled(traced)
            calls = in_calls(self._batches(step, stack), plan.calls(step))
            prefetch = DevicePrefetch(calls, program.put, config.data.prefetch)
            stack.enter_context(prefetch)
            reestimate = None
            if (moments_step := compiled.get("statistics step")) is not None:
                reestimate = Reestimate(moments_step, self.train_source, program)
                stack.enter_context(reestimate)
            evaluator = Evaluator(compiled["eval step"], self.test_source, program)
            store = Checkpoints(
                self.workdir,
                config.checkpoint.keep,
                lambda step: writer.evaluated(step).get(config.checkpoint.best),
            )
            progress = Progress(step=step, total_steps=plan.total_steps)
            loop = Loop(
                program=program,
                train_steps={n: compiled[name] for n, name in names.items()},
                state=state,
                evaluator=stack.enter_context(evaluator),
                checkpoints=stack.enter_context(store),
                info=self.info,
                writer=writer,
                progress=stack.enter_context(contextlib.closing(progress)),
                bad_images=self.bad_images,
                reestimate=reestimate,
                should_stop=stop,
            )
            del state  # its buffers are donated to the first step
            complete = loop.run(prefetch)
            store.wait()
            progress.close()
            if complete:
                self._print_complete(store, writer.evaluations)
            else:
                saved = "all saved" if loop.step else "nothing to save yet"
                say(
                    f"stopped by {stop.name} at step {loop.step} of {plan.total_steps}, "
                    f"{saved}: run the same command again to continue."
                )
            return Result(complete, loop.step, writer.last_evaluation(), self.workdir)

    def _writer(self, step: int) -> MetricWriter:
        """Writes the config into the run's folder and opens the files of its metrics."""
        log = self.config.log
        writer = MetricWriter(self.workdir, step=step, tensorboard=log.tensorboard)
        text = json.dumps(self.info["config"], indent=2)
        (self.workdir / "config.json").write_text(f"{text}\n")
        return writer

    def initial_state(self) -> TrainState:
        """Returns the state before the first step: random weights, or those that
        config.model.weights names."""
        state, source = self.program.init(), self.config.model.weights
        if source is not None:
            class_names = self.info["class_names"]
            state, messages = warm_start(state, self.program, source, class_names)
            say("\n".join(messages))
        return state

    def _restored(self, newest: Path) -> TrainState:
        shapes = self.program.state_shapes
        state = checkpoints.restore(newest, shapes, whole=True)
        count = len(jax.tree.leaves(shapes))
        say(
            f"continuing at step {newest.name}: restored all {count} arrays of {newest}"
        )
        return state

    def _compiled(self, traced: dict[str, Traced]) -> dict[str, Any]:
        """Compiles programs, by their names, and prints how long each took."""
        deterministic = self.config.deterministic
        compiled = {name: one.compile(deterministic) for name, one in traced.items()}
        seconds = {n: (t.trace_seconds, t.compile_seconds) for n, t in traced.items()}
        say(tables.compiled(seconds))
        return compiled

    @functools.cached_property
    def bad_images(self) -> BadImages:
        """The training images that could not be read so far."""
        return BadImages(self.train_source, "train", say=say)

    def _batches(self, step: int, stack: contextlib.ExitStack) -> Iterator[Batch]:
        """Returns the batches from `step` on: of images, or of indices into those that it
        moves to the devices."""
        program, data = self.program, self.config.data
        order = program.train_batches(self.train_source)
        if program.num_records is None:
            loader = start_loader(order, data, start=step)
            return self.bad_images.watched(stack.enter_context(loader))
        with start_loader(program.eval_batches(self.train_source), data) as loader:
            records = self.bad_images.watched(loader)
            program.constants["records"] = placement.place(
                records, program.num_records, program.record_shapes()
            )
        steps = range(step, self.plan.total_steps)
        return ({"id": order.ids(later).astype(np.int32)} for later in steps)

    def _trace_moments(self) -> dict[str, Traced]:
        """Returns the step that estimates batch statistics, {} if the config has none."""
        if self.config.precise_bn is None:
            return {}
        return {"statistics step": self.program.trace_moments_step()}

    def _print_plan(self) -> None:
        """Prints the parameters in their groups, the data and the length of the run."""
        config, program, plan = self.config, self.program, self.plan
        params, optimizer = program.state_shapes.params, config.optimizer
        peak = optimizer.peak(config.batch_size)
        peak_rate = f"{peak:g}"
        if optimizer.rate_per is not None:
            peak_rate += (
                f" ({optimizer.learning_rate:g} per {optimizer.rate_per} images, "
                f"{optimizer.rate_scaling} scaling)"
            )
        alike = trained_alike(
            params, program.treatments, peak, optimizer.weight_decay, optimizer
        )
        say(tables.parameters(params))
        say(tables.treatments(alike))
        say(
            tables.overview(
                f"{self.train_source!r}, {self.test_source!r}",
                num_classes=program.num_classes,
                devices=program.mesh.devices,
                batch_size=config.batch_size,
                total_steps=plan.total_steps,
                steps_per_epoch=plan.run.steps_per_epoch,
                peak_rate=peak_rate,
            )
        )

    def _print_complete(
        self, store: Checkpoints, evaluations: list[dict[str, Any]]
    ) -> None:
        early, last = self.config.stop_early, evaluations[-1]
        if early is not None and last["step"] < self.plan.total_steps:
            best = early.best(evaluations)
            say(
                f"on a plateau at step {last['step']}: {early.metric} has not risen more "
                f"than {early.min_delta:g} above the {best[early.metric]:.4f} of step "
                f"{best['step']} in {early.patience}"
            )
        steps = store.directory
        last_step, best_step = steps / str(last["step"]), steps / str(store.best())
        say(tables.finished(self.workdir, last_step, best_step, last))
