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
from jaxcls.data.loader import Batch, EvalBatches, start_loader
from jaxcls.data.opening import open_splits
from jaxcls.data.sampling import class_counts
from jaxcls.data.sources import Source
from jaxcls.errors import UserError
from jaxcls.inference.evaluation import Evaluator
from jaxcls.inference.forward import Traced
from jaxcls.inference.trained import (
    Trained,
    check_exists,
    check_teaches,
    load_trained,
)
from jaxcls.report import tables
from jaxcls.report.progress import Progress, eval_line, say
from jaxcls.report.writers import MetricWriter, read_metrics
from jaxcls.training import placement, plateau
from jaxcls.training.loop import Loop
from jaxcls.training.prefetch import DevicePrefetch, in_calls
from jaxcls.training.program import Program
from jaxcls.training.reestimate import Reestimate
from jaxcls.training.run_folder import check_same_run, locked, newest_checkpoint
from jaxcls.training.signals import StopSignal
from jaxcls.training.state import TrainState
from jaxcls.training.warm_start import warm_start


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a run.

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
      fresh: begin anew, moving an earlier run in the folder aside.

    Returns:
      What became of it.

    Raises:
      UserError: for a mistake in the config, the folder, its checkpoints or the data.
      Diverged: if too many steps in a row were not finite.
    """
    workdir = Path(workdir).absolute()
    begins = fresh or newest_checkpoint(workdir) is None
    run = open_run(config, workdir, begins=begins)
    if fresh:
        _ = (
            run.program
        )  # mistakes that show here shall not cost the earlier run its place
    with StopSignal() as stop, locked(workdir, fresh):
        newest = newest_checkpoint(workdir)
        if newest is not None:
            saved = checkpoints.read_run(newest)
            refuse_training(saved, workdir)
            check_same_run(saved, run.run_info, workdir)
            if result := run.already_complete(saved["step"]):
                return result
        return run.train(newest, stop)


def dry_run(config: Config) -> None:
    """Says what a config would train: its parameters in groups, the memory and the schedule.
    Trains and writes nothing; of the data it loads the first image of each split alone.

    Raises:
      UserError: as train() does.
    """
    open_run(config, Path("dry run"), begins=True).describe()


def open_run(config: Config, workdir: Path, *, begins: bool = False) -> "Run":
    """Checks a config and opens its data.

    Args:
      config: the run.
      workdir: its folder.
      begins: whether the run begins, so that the weights to begin with must exist.

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
    run_info = {
        "jaxcls_version": __version__,
        # In its own words, before the loss counts the labels: a resume compares these.
        "config": config_lib.to_dict(config),
        "class_names": list(class_names),
        "image_shape": list(train.image_shape),
        "train_source": repr(train.source),
        "test_source": repr(test.source),
    }
    teacher = None
    if (distill := config.distill) is not None:
        platform = parallel.platform(parallel.make_mesh(config.devices))
        teacher = load_trained(
            distill.teacher, distill.teacher_model, platform=platform
        )
        check_teaches(teacher, config, class_names, train.image_shape)
        print(f"learns from {teacher.source}", flush=True)
        run_info["teacher"] = teacher.digest()  # a run goes on with the same ones
    if loss.needs_counts:
        loss = loss.fitted(class_counts(train.source), len(train.source))
        config = dataclasses.replace(config, loss=loss)
    return Run(config, plan, workdir, train.source, test.source, run_info, teacher)


@dataclasses.dataclass
class Run:
    """A config with its data and its folder.

    Attributes:
      config: a valid config, whose loss knows the training labels where it depends on them.
      plan: its durations in steps.
      workdir: the run's folder.
      train_source: what is trained on.
      test_source: what is evaluated on.
      run_info: what is saved with every checkpoint, so that it stands alone, as JSON.
      teacher: the network to learn from, its variables on the host; None for none.
    """

    config: Config
    plan: Plan
    workdir: Path
    train_source: Source
    test_source: Source
    run_info: dict[str, Any]
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
            num_classes=len(self.run_info["class_names"]),
            image_shape=self.run_info["image_shape"],
            num_records=len(self.train_source) if on_devices else None,
            teacher=self.teacher,
        )
        if program.num_records is not None:
            placement.check_memory(
                program.mesh,
                program.num_records,
                program.image_shape,
                program.num_labels,
            )
        program.train_batches(self.train_source)  # raises where they cannot be drawn
        return program

    def already_complete(self, step: int) -> Result | None:
        """Says so if the run's end, or a plateau, is reached at `step` and evaluated; None if
        it is not."""
        plan, lines = self.plan, read_metrics(self.workdir / "metrics.jsonl")
        evaluations = [
            line for line in lines if line["step"] <= step and "eval/top1" in line
        ]
        if not evaluations or evaluations[-1]["step"] != step:
            return None
        on_plateau = plateau.reached(evaluations, self.config.stop_early, plan.patience)
        if step != plan.total_steps and not on_plateau:
            return None
        print(
            f"the run in {self.workdir} is complete at step {step}:\n"
            f"{eval_line(evaluations[-1])}\n"
            "To start another, choose another --workdir, or --fresh to begin this one "
            "anew.",
            flush=True,
        )
        return Result(True, step, evaluations[-1], self.workdir)

    def describe(self) -> None:
        """Prints what would be trained."""
        program = self.program
        self._print_plan()
        self._trace_moments()
        traced = program.trace_train_step(max(self.plan.call_lengths(0)))
        compiled = traced.compile(self.config.deterministic)
        print(tables.compiled(_seconds({"train step": traced})))
        shapes = program.state_shapes
        parts = {
            "parameters and batch statistics": (shapes.params, shapes.batch_stats),
            "optimizer": shapes.opt_state,
            "averaged weights": shapes.ema,
            **program.constant_shapes(),
        }
        memory: Any = compiled.memory_analysis()
        temporary = memory.temp_size_in_bytes
        print(tables.memory(parts, temporary))
        for name, curve in program.curves().items():
            print(tables.schedule(name, *curve), flush=True)

    def train(self, newest: Path | None, stop: StopSignal) -> Result:
        """Restores or initialises, compiles, trains and reports.

        Args:
          newest: the folder of the checkpoint to continue from, or None.
          stop: becomes true when a signal asks to stop.
        """
        config, plan, program = self.config, self.plan, self.program
        step = 0 if newest is None else int(newest.name)
        # Traced here, before anything is written: shapes that do not fit fail now.
        traced = {n: program.trace_train_step(n) for n in plan.call_lengths(step)}
        traced_eval = program.trace_eval_step(program.state_shapes.variables())
        traced_moments = self._trace_moments()
        # Leaving the stack closes what was opened, the last first, however the run ends.
        with contextlib.ExitStack() as stack:
            self._print_plan()
            writer = stack.enter_context(contextlib.closing(self._writer(step)))
            store = Checkpoints(
                self.workdir,
                config.checkpoint.keep,
                lambda step: writer.evaluated(step).get(config.checkpoint.best),
            )
            stack.enter_context(store)
            state = self.initial_state() if newest is None else self._restored(newest)
            train_steps, eval_step = self._compiled(traced, traced_eval)
            bad_images = self._bad_images()
            batches = self._batches(step, bad_images, stack)
            evaluator = Evaluator(eval_step, self.test_source, program)
            reestimate = None
            if traced_moments is not None:
                reestimate = stack.enter_context(
                    Reestimate(traced_moments, self.train_source, program)
                )
            progress = Progress(step=step, total_steps=plan.total_steps)
            loop = Loop(
                program=program,
                train_steps=train_steps,
                state=state,
                evaluator=stack.enter_context(evaluator),
                checkpoints=store,
                run_info=self.run_info,
                writer=writer,
                progress=stack.enter_context(contextlib.closing(progress)),
                bad_images=bad_images,
                reestimate=reestimate,
                should_stop=stop,
            )
            del state  # its buffers are donated to the first step
            calls = in_calls(batches, plan.calls(step))
            prefetch = DevicePrefetch(calls, program.put, config.data.prefetch)
            complete = loop.run(stack.enter_context(prefetch))
            store.wait()
            progress.close()
            if complete:
                self._print_complete(store, writer.evaluations())
            else:
                self._print_stopped(stop, loop.step)
            return Result(complete, loop.step, writer.last_evaluation(), self.workdir)

    def _writer(self, step: int) -> MetricWriter:
        """Writes the config into the run's folder and opens the files of its metrics."""
        writer = MetricWriter(
            self.workdir, step=step, tensorboard=self.config.log.tensorboard
        )
        (self.workdir / "config.json").write_text(
            json.dumps(self.run_info["config"], indent=2) + "\n"
        )
        return writer

    def initial_state(self) -> TrainState:
        """Returns the state before the first step: random weights, or those that
        config.model.weights names."""
        state, source = self.program.init(), self.config.model.weights
        if source is not None:
            class_names = self.run_info["class_names"]
            state, messages = warm_start(state, self.program, source, class_names)
            print("\n".join(messages), flush=True)
        return state

    def _restored(self, newest: Path) -> TrainState:
        shapes = self.program.state_shapes
        state = checkpoints.restore(newest, shapes, whole=True)
        count = len(jax.tree.leaves(shapes))
        print(
            f"continuing at step {newest.name}: restored all {count} arrays of {newest}"
        )
        return state

    def _compiled(
        self, traced: dict[int, Traced], traced_eval: Traced
    ) -> tuple[dict[int, Any], Any]:
        """Compiles the train steps, by their number in a call, and the eval step."""
        deterministic = self.config.deterministic
        steps = {n: one.compile(deterministic) for n, one in traced.items()}
        eval_step = traced_eval.compile(deterministic)
        names = ("train step" if n == 1 else f"{n} train steps" for n in traced)
        programs = {
            **dict(zip(names, traced.values(), strict=True)),
            "eval step": traced_eval,
        }
        print(tables.compiled(_seconds(programs)), flush=True)
        return steps, eval_step

    def _bad_images(self) -> BadImages:
        return BadImages(self.train_source, "train", say=say)

    def _batches(
        self, step: int, bad_images: BadImages, stack: contextlib.ExitStack
    ) -> Iterator[Batch]:
        """Returns the batches from `step` on: of images, or of indices into those that it
        moves to the devices."""
        program, data = self.program, self.config.data
        order = program.train_batches(self.train_source)
        if program.num_records is None:
            loader = start_loader(order, data, start=step)
            return bad_images.watched(stack.enter_context(loader))
        every_image = EvalBatches(self.train_source, batch_size=256)
        with start_loader(every_image, data) as loader:
            records = bad_images.watched(loader)
            placed = placement.place(records, program.num_records, program.mesh)
        program.constants["records"] = placed
        steps = range(step, self.plan.total_steps)
        return ({"id": order.ids(later).astype(np.int32)} for later in steps)

    def _trace_moments(self) -> Traced | None:
        """Returns the step that estimates batch statistics, if the config asks for it."""
        asked = self.config.precise_bn is not None
        return self.program.trace_moments_step() if asked else None

    def _print_plan(self) -> None:
        """Prints the parameters in their groups, the data and the length of the run."""
        config, program = self.config, self.program
        print(tables.parameters(program.state_shapes.params))
        print(tables.treatments(program.trained_sets()))
        print(
            tables.run(
                f"{self.train_source!r}, {self.test_source!r}",
                num_classes=program.num_classes,
                devices=program.mesh.devices,
                batch_size=config.batch_size,
                total_steps=self.plan.total_steps,
                steps_per_epoch=self.plan.run.steps_per_epoch,
                peak_rate=_peak_rate(config),
            ),
            flush=True,
        )

    def _print_stopped(self, stop: StopSignal, step: int) -> None:
        saved = "all saved" if step else "nothing to save yet"
        print(
            f"stopped by {stop.name} at step {step} of {self.plan.total_steps}, {saved}: run "
            "the same command again to continue.",
            flush=True,
        )

    def _print_complete(
        self, store: Checkpoints, evaluations: list[dict[str, Any]]
    ) -> None:
        early, last = self.config.stop_early, evaluations[-1]
        if early is not None and last["step"] < self.plan.total_steps:
            best = plateau.best(evaluations, early)
            print(
                f"on a plateau at step {last['step']}: {early.metric} has not risen more "
                f"than {early.min_delta:g} above the {best[early.metric]:.4f} of step "
                f"{best['step']} in {early.patience}"
            )
        steps = store.directory
        last_step, best_step = steps / str(last["step"]), steps / str(store.best())
        print(tables.finished(self.workdir, last_step, best_step, last), flush=True)


def _peak_rate(config: Config) -> str:
    """Returns the learning rate at the peak, and what it comes from."""
    optimizer = config.optimizer
    peak = f"{optimizer.peak(config.batch_size):g}"
    if optimizer.rate_per is None:
        return peak
    return (
        f"{peak} ({optimizer.learning_rate:g} per {optimizer.rate_per} images, "
        f"{optimizer.rate_scaling} scaling)"
    )


def _seconds(programs: dict[str, Traced]) -> dict[str, tuple[float, float]]:
    return {n: (p.trace_seconds, p.compile_seconds) for n, p in programs.items()}
