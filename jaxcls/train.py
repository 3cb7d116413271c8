"""Trains a recipe: `python -m jaxcls.train --config configs/lenet5.py`.

From Python: `train(config, workdir="runs/mine")`.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcls import __version__, parallel
from jaxcls import config as config_lib
from jaxcls.checkpoint import files as checkpoint
from jaxcls.checkpoint.files import Checkpoints
from jaxcls.checkpoint.weights_only import refuse_training
from jaxcls.config import Config, Plan
from jaxcls.config import command_line as flags
from jaxcls.data.bad_images import BadImages
from jaxcls.data.loader import Batch, EvalBatches, Loader, TrainBatches, load_rows
from jaxcls.data.sampling import class_counts
from jaxcls.data.sources import Source, Split
from jaxcls.data.subset import max_bad_share, open_split, with_class_names
from jaxcls.errors import UserError
from jaxcls.inference.evaluation import Evaluator
from jaxcls.report import tables
from jaxcls.report.progress import Progress, eval_line, say
from jaxcls.report.writers import MetricWriter, read_metrics
from jaxcls.training import placement, plateau
from jaxcls.training.loop import Diverged, Loop
from jaxcls.training.prefetch import DevicePrefetch, in_calls
from jaxcls.training.program import Program, Traced, input_shape, on_all_devices
from jaxcls.training.reestimate import Reestimate
from jaxcls.training.signals import StopSignal
from jaxcls.training.state import TrainState
from jaxcls.training.step import Teacher
from jaxcls.training.warm_start import check_exists, load_teacher, warm_start

COMPLETE, MISTAKE, DIVERGED, RUN_AGAIN = 0, 2, 3, 75
"""Exit codes. 75 is sysexits.h's EX_TEMPFAIL: nothing is wrong, run it again."""


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
    run = open_run(config, Path(workdir).absolute())
    if fresh or _newest_checkpoint(run.workdir) is None:
        run.check_weights()
    if fresh:
        run.program()  # mistakes that show there shall not cost the earlier run its place
    with StopSignal() as stop, _locked(run.workdir, fresh):
        newest = _newest_checkpoint(run.workdir)
        if newest is not None:
            saved = checkpoint.read_run(newest)
            refuse_training(saved, run.workdir)
            _check_same_run(saved, run.run_info, run.workdir)
            if result := _already_complete(run, saved["step"]):
                return result
        return run.train(newest, stop)


def dry_run(config: Config) -> None:
    """Says what a config would train: its parameters in groups, the memory and the schedule.
    Nothing is trained or written; of the data only the first image of each split is loaded.

    Raises:
      UserError: as train() does.
    """
    run = open_run(config, Path("dry run"))
    run.check_weights()
    run.describe()


def open_run(config: Config, workdir: Path) -> "Run":
    """Checks a config and opens its data."""
    config_lib.validate(config)
    if config.distill is not None:
        check_exists("distill.teacher", config.distill.teacher, workdir)
    train_source = _source(config, "train")
    class_names = tuple(train_source.class_names)
    test_source = with_class_names(_source(config, "test"), class_names)
    plan = config_lib.plan(config, len(train_source))
    # What is saved with the run keeps the words, by which it is compared.
    run_info = _run_info(config, train_source, test_source)
    config = _fitted(config, train_source)
    teacher = _teacher(config, run_info)
    return Run(config, plan, workdir, train_source, test_source, run_info, teacher)


def _teacher(config: Config, run_info: dict[str, Any]) -> Teacher | None:
    """Returns the network to learn from, None if there is none, and notes its weights in
    `run_info`: a run is continued with the same ones.

    Raises:
      UserError: if they cannot be had, or are for other classes or images.
    """
    distill = config.distill
    if distill is None:
        return None
    class_names = run_info["class_names"]
    mesh = parallel.make_mesh(config.devices)
    model, variables, which = load_teacher(
        distill.teacher,
        distill.teacher_model,
        len(class_names),
        class_names=class_names,
        platform=parallel.platform(mesh),
    )
    shape = input_shape(config.augment, tuple(run_info["image_shape"]))
    try:
        jax.eval_shape(lambda images: model.apply(variables, images), jnp.zeros(shape))
    except Exception as error:  # flax's, JAX's and our own
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the teacher {distill.teacher} cannot take the images that are trained on, "
            f"{shape[1:]} each: {reason}"
        ) from None
    run_info["teacher"] = _digest(variables)
    print(f"learns from {which}", flush=True)
    return Teacher(model, variables)


def _digest(variables: Any) -> str:
    """Returns a number for the content of weights, in hexadecimal digits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _source(config: Config, split: Split) -> Source:
    """Opens one split and looks at its first record.

    Raises:
      UserError: if it cannot be opened, is empty, names a class twice, or training has but one.
    """
    kind = type(config.data).__name__
    try:
        source = open_split(config.data, split)
        size, names = len(source), list(source.class_names)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the {split} split of {kind} cannot be opened: {type(error).__name__}: {error}"
        ) from error
    if not size:
        raise UserError(f"{source!r} is empty: there is nothing to {split} on.")
    if len(set(names)) < len(names) or not all(isinstance(n, str) for n in names):
        raise UserError(f"the class names of {source!r} must be different strings.")
    if split == "train" and len(names) == 1:
        raise UserError(
            f"there is one class, '{names[0]}': nothing can be learned. Expected two or more, in "
            "an image folder a folder for each class with its images, at "
            f"{getattr(config.data, 'path', '') or repr(source)}."
        )
    try:
        load_rows(source, np.array([0]))
    except RuntimeError as error:
        raise UserError(str(error)) from error
    return source


def _fitted(config: Config, train_source: Source) -> Config:
    """Returns a config whose loss knows the training labels, where it depends on them.

    Raises:
      UserError: if its numbers are not one for each class.
    """
    num_classes = len(train_source.class_names)
    config.loss.check_classes(num_classes)
    if not config.loss.needs_counts:
        return config
    loss = config.loss.fitted(class_counts(train_source), len(train_source))
    return dataclasses.replace(config, loss=loss)


def _run_info(
    config: Config, train_source: Source, test_source: Source
) -> dict[str, Any]:
    """Returns what every checkpoint needs to stand alone, as JSON.

    Raises:
      UserError: if the two splits do not go together.
    """
    first, test_first = (
        load_rows(source, np.array([0])) for source in (train_source, test_source)
    )
    for source, batch in ((train_source, first), (test_source, test_first)):
        config.loss.check_labels(batch["label"], repr(source))
    shape, test_shape = (batch["image"].shape[1:] for batch in (first, test_first))
    if shape != test_shape:
        raise UserError(
            f"the images of {train_source!r} are {shape}, those of {test_source!r} "
            f"{test_shape}: both splits must have one shape."
        )
    return {
        "jaxcls_version": __version__,
        "config": config_lib.to_dict(config),
        "class_names": list(train_source.class_names),
        "image_shape": list(shape),
        "train_source": repr(train_source),
        "test_source": repr(test_source),
    }


@contextlib.contextmanager
def _locked(workdir: Path, fresh: bool) -> Iterator[None]:
    """Makes the run's folder and holds it against a second trainer.

    Raises:
      UserError: if it cannot be written to or another process trains in it.
    """
    try:
        if fresh and workdir.exists():
            _move_aside(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the workdir {workdir} ({error.strerror}): choose another "
            "with --workdir."
        ) from None
    for name, is_kind in (
        (checkpoint.FOLDER, Path.is_dir),
        ("tensorboard", Path.is_dir),
        ("config.json", Path.is_file),
        ("metrics.jsonl", Path.is_file),
    ):
        if (workdir / name).exists() and not is_kind(workdir / name):
            raise UserError(
                f"{workdir / name} is in the way of a run: choose another --workdir."
            )
    with _hold(workdir):
        yield


@contextlib.contextmanager
def _hold(workdir: Path) -> Iterator[None]:
    """Holds a lock on a folder, which ends with the process however it ends. Where the file
    system has no locks, nothing is held."""
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is training in {workdir}: wait for it, or choose another "
                "--workdir."
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def _move_aside(workdir: Path) -> None:
    """Renames the folder of a run; one that holds something else is not touched."""
    contents = ("config.json", "metrics.jsonl", checkpoint.FOLDER)
    if not any((workdir / name).exists() for name in contents):
        if workdir.is_dir() and not any(workdir.iterdir()):
            return
        raise UserError(
            f"--fresh would move {workdir} aside, which is not a run's folder: choose "
            "another --workdir."
        )
    with _hold(workdir):
        number = 1
        while (aside := workdir.with_name(f"{workdir.name}.old-{number}")).exists():
            number += 1
        workdir.rename(aside)
    print(f"the earlier run is now in {aside}", flush=True)


def _newest_checkpoint(workdir: Path) -> Path | None:
    folder = workdir / checkpoint.FOLDER
    if not any(checkpoint.is_step(child) for child in folder.glob("*")):
        return None
    return checkpoint.find(workdir)


def _check_same_run(
    saved: dict[str, Any], run_info: dict[str, Any], workdir: Path
) -> None:
    """Raises UserError if the config or the data are not those of the run in the folder."""
    # Through the types, so that an option which has come since is at its default.
    old = config_lib.to_dict(config_lib.from_dict(saved["config"]))
    changed = config_lib.differences(old, run_info["config"])
    for name in ("train_source", "test_source"):
        if saved[name] != run_info[name]:
            changed.append(f"{name}: {saved[name]} -> {run_info[name]}")
    if saved.get("teacher") != run_info.get("teacher"):
        changed.append("distill.teacher: its weights are others than at the start")
    if saved["class_names"] != run_info["class_names"]:
        changed.append("class names: those of the training split have changed")
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config, at step {saved['step']}:\n    "
            + "\n    ".join(changed)
            + "\n  Give back the old values to continue it, choose another --workdir, or "
            "begin anew with --fresh (the old run is kept aside)."
        )


def _already_complete(run: "Run", step: int) -> Result | None:
    """Says so if the run's end, or a plateau, is reached at `step` and evaluated; None if it
    is not."""
    workdir, plan = run.workdir, run.plan
    lines = read_metrics(workdir / "metrics.jsonl")
    evaluations = [
        line for line in lines if line["step"] <= step and "eval/top1" in line
    ]
    if not evaluations or evaluations[-1]["step"] != step:
        return None
    on_plateau = plateau.reached(evaluations, run.config.stop_early, plan.patience)
    if step != plan.total_steps and not on_plateau:
        return None
    print(
        f"the run in {workdir} is complete at step {step}:\n{eval_line(evaluations[-1])}\n"
        "To start another, choose another --workdir, or --fresh to begin this one "
        "anew.",
        flush=True,
    )
    return Result(True, step, evaluations[-1], workdir)


@dataclasses.dataclass
class Run:
    """The parts of a run, brought together.

    Attributes:
      config: a valid config.
      plan: its durations in steps.
      workdir: the run's folder, held against others.
      train_source: what is trained on.
      test_source: what is evaluated on.
      run_info: what is saved with every checkpoint.
      teacher: the network to learn from, its variables on the host; None for none.
    """

    config: Config
    plan: Plan
    workdir: Path
    train_source: Source
    test_source: Source
    run_info: dict[str, Any]
    teacher: Teacher | None

    def __post_init__(self) -> None:
        self._bound: tuple[Program, dict[str, Any]] | None = None

    def train(self, newest: Path | None, stop: StopSignal) -> Result:
        """Restores or initialises, compiles, trains and reports.

        Args:
          newest: the folder of the checkpoint to continue from, or None.
          stop: becomes true when a signal asks to stop.
        """
        config, plan = self.config, self.plan
        program, constants = self.program()
        mesh = program.mesh
        # Traced here, before anything is written: shapes that do not fit fail now.
        step = 0 if newest is None else int(newest.name)
        lengths = plan.call_lengths(step)
        shapes = self.constant_shapes(program, constants)
        traced_train = {n: program.trace_train_step(n, shapes) for n in lengths}
        traced_eval = program.trace_eval_step()
        traced_moments = self._traced_moments(program)
        # Leaving the stack closes what was opened, the last first, however the run ends.
        with contextlib.ExitStack() as stack:
            self._say_what(program)
            writer = self._writer(step, stack)

            def score(step: int) -> float | None:
                return writer.evaluated(step).get(config.checkpoint.best)

            checkpoints = stack.enter_context(
                Checkpoints(self.workdir, config.checkpoint.keep, score)
            )
            if newest is None:
                state = self.initial(program)
            else:
                state = self._restore(checkpoints, step, program)
            train_steps, eval_step = self._compiled(traced_train, traced_eval)
            bad_images = BadImages(
                self.train_source,
                "train",
                max_share=max_bad_share(config.data),
                say=say,
            )
            if config.data.placement == "device":
                constants["records"] = self._place(mesh, bad_images)
            batches = self._batches(step, bad_images, stack)
            calls = {n: _with_constants(c, constants) for n, c in train_steps.items()}
            evaluator = Evaluator(eval_step, self.test_source, config, mesh)
            progress = Progress(step=step, total_steps=plan.total_steps)
            stack.callback(progress.close)
            loop = Loop(
                config=config,
                plan=plan,
                mesh=mesh,
                train_steps=calls,
                state=state,
                evaluator=stack.enter_context(evaluator),
                checkpoints=checkpoints,
                run_info=self.run_info,
                writer=writer,
                progress=progress,
                bad_images=bad_images,
                reestimate=self._reestimate(traced_moments, mesh, stack),
                should_stop=stop,
            )
            del state  # its buffers are donated to the first step
            prefetch = DevicePrefetch(
                in_calls(batches, plan.calls(step)), program.put, config.data.prefetch
            )
            complete = loop.run(stack.enter_context(prefetch))
            checkpoints.wait()
            progress.close()
            if complete:
                self._say_complete(checkpoints, writer.evaluations())
            else:
                self._say_stopped(stop, loop.step)
            return Result(complete, loop.step, writer.last_evaluation(), self.workdir)

    def _writer(self, step: int, stack: contextlib.ExitStack) -> MetricWriter:
        """Writes the config into the run's folder and opens the files of its metrics."""
        writer = MetricWriter(
            self.workdir, step=step, tensorboard=self.config.log.tensorboard
        )
        stack.callback(writer.close)
        (self.workdir / "config.json").write_text(
            json.dumps(self.run_info["config"], indent=2) + "\n"
        )
        return writer

    def _compiled(
        self, traced_train: dict[int, Traced], traced_eval: Traced
    ) -> tuple[dict[int, Any], Any]:
        """Compiles the train steps, by their number in a call, and the eval step."""
        deterministic = self.config.deterministic
        train_steps = {n: t.compile(deterministic) for n, t in traced_train.items()}
        eval_step = traced_eval.compile(deterministic)
        seconds = {
            "train step" if n == 1 else f"{n} train steps": compiled.seconds
            for n, compiled in train_steps.items()
        }
        seconds["eval step"] = eval_step.seconds
        print(tables.compiled(seconds), flush=True)
        return {n: compiled.call for n, compiled in train_steps.items()}, eval_step.call

    def _batches(
        self, step: int, bad_images: BadImages, stack: contextlib.ExitStack
    ) -> Iterator[Batch]:
        """Returns the batches from `step` on: of images, or of indices into those that lie on
        the devices."""
        if self.config.data.placement == "device":
            return self._train_ids(step)
        return bad_images.watched(stack.enter_context(self.train_loader(step)))

    def check_weights(self) -> None:
        """Raises UserError if the weights to begin with do not exist, or lie in the folder of
        the run."""
        source = self.config.model.weights
        if source is not None:
            check_exists("model.weights", source, self.workdir)

    def describe(self) -> None:
        """Prints what would be trained."""
        config, plan = self.config, self.plan
        program, constants = self.program()
        self._say_what(program)
        self._traced_moments(program)
        length = max(plan.call_lengths(0))
        shapes = self.constant_shapes(program, constants)
        compiled = program.trace_train_step(length, shapes).compile(
            config.deterministic
        )
        print(tables.compiled({"train step": compiled.seconds}))
        print(tables.memory(program.state_shapes(), shapes, compiled.call))
        print(tables.schedules(config, plan, program.learning_rate), flush=True)

    def _say_what(self, program: Program) -> None:
        """Prints the parameters in their groups, the data and the length of the run."""
        config = self.config
        print(
            tables.parameters(
                program.state_shapes().params,
                program.treatments,
                config.optimizer.peak(config.batch_size),
                config.optimizer.weight_decay,
                config.optimizer,
            )
        )
        sources = (self.train_source, self.test_source)
        print(tables.run(config, self.plan, program.mesh, *sources), flush=True)

    def program(self) -> tuple[Program, dict[str, Any]]:
        """Binds the config to the data's shapes and the devices, once. Also returns what stays
        on these besides the state: {"teacher": variables}, if there is one to learn from."""
        if self._bound is None:
            self._bound = self._bind()
        return self._bound

    def _bind(self) -> tuple[Program, dict[str, Any]]:
        parallel.enable_compilation_cache()
        if jax.process_count() > 1:
            raise UserError(
                f"this is one of {jax.process_count()} processes that train together, which "
                "jaxcls cannot do yet: use one process for all devices of one machine."
            )
        mesh = parallel.make_mesh(self.config.devices)
        image_shape = tuple(self.run_info["image_shape"])
        num_classes = len(self.run_info["class_names"])
        if self.config.data.placement == "device":
            num_labels = num_classes if self.config.loss.multi_label else None
            num_records = len(self.train_source)
            placement.check_memory(mesh, num_records, image_shape, num_labels)
        self._train_batches()  # raises where the data cannot be drawn as it should
        teacher = None
        constants = {}
        if self.teacher is not None:
            teacher, variables = self.teacher.model, self.teacher.variables
            constants["teacher"] = jax.device_put(variables, parallel.replicated(mesh))
        program = Program(
            self.config,
            self.plan,
            mesh=mesh,
            num_classes=num_classes,
            image_shape=image_shape,
            teacher=teacher,
        )
        return program, constants

    def constant_shapes(
        self, program: Program, constants: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the shapes of all that stays on the devices besides the state."""
        shapes = on_all_devices(program.mesh, constants)
        if self.config.data.placement == "device":
            shapes["records"] = program.record_shapes(len(self.train_source))
        return shapes

    def _traced_moments(self, program: Program) -> Traced | None:
        """Returns the step that estimates batch statistics, if the config asks for it."""
        asked = self.config.precise_bn is not None
        return program.trace_moments_step() if asked else None

    def _reestimate(
        self, traced: Traced | None, mesh: Mesh, stack: contextlib.ExitStack
    ) -> Reestimate | None:
        """Returns what estimates batch statistics."""
        if traced is None:
            return None
        step = traced.compile(self.config.deterministic).call
        return stack.enter_context(
            Reestimate(step, self.train_source, self.config, self.plan, mesh)
        )

    def initial(self, program: Program) -> TrainState:
        """Returns the state before the first step: random weights, or those that
        config.model.weights names."""
        state = program.init()
        if self.config.model.weights is not None:
            state, messages = warm_start(
                state,
                program,
                self.config.model.weights,
                self.run_info["class_names"],
            )
            print("\n".join(messages), flush=True)
        return state

    def _restore(
        self, checkpoints: Checkpoints, step: int, program: Program
    ) -> TrainState:
        shapes = program.state_shapes()
        state = checkpoints.restore(step, shapes)
        print(
            f"continuing at step {step}: restored all {len(jax.tree.leaves(shapes))} arrays "
            f"of {checkpoints.directory / str(step)}"
        )
        return state

    def _train_batches(self) -> TrainBatches:
        return TrainBatches(
            self.train_source,
            seed=self.config.seed,
            batch_size=self.config.batch_size,
            num_steps=self.plan.total_steps,
            sampling=self.config.data.sampling,
        )

    def train_loader(self, step: int) -> Loader:
        return self._loader(self._train_batches(), step)

    def _train_ids(self, step: int) -> Iterator[Batch]:
        """Yields the records of the steps from `step` on: {"id": int32 [rows]}."""
        batches = self._train_batches()
        for later in range(step, self.plan.total_steps):
            yield {"id": batches.ids(later).astype(np.int32)}

    def _place(self, mesh: Mesh, bad_images: BadImages) -> dict[str, jax.Array]:
        """Loads the training images onto the devices, in their own order."""
        every_image = EvalBatches(self.train_source, batch_size=256)
        with self._loader(every_image) as loader:
            batches = bad_images.watched(loader)
            return placement.place(batches, len(self.train_source), mesh)

    def _loader(self, batches: TrainBatches | EvalBatches, start: int = 0) -> Loader:
        data = self.config.data
        return Loader(
            batches,
            start=start,
            workers=data.workers,
            threads=data.threads,
            prefetch=data.prefetch,
        )

    def _say_stopped(self, stop: StopSignal, step: int) -> None:
        saved = "all saved" if step else "nothing to save yet"
        print(
            f"stopped by {stop.name} at step {step} of {self.plan.total_steps}, {saved}: run "
            "the same command again to continue.",
            flush=True,
        )

    def _say_complete(
        self, checkpoints: Checkpoints, evaluations: list[dict[str, Any]]
    ) -> None:
        early, last = self.config.stop_early, evaluations[-1]
        if early is not None and last["step"] < self.plan.total_steps:
            best = plateau.best(evaluations, early)
            print(
                f"on a plateau at step {last['step']}: {early.metric} has not risen more "
                f"than {early.min_delta:g} above the {best[early.metric]:.4f} of step "
                f"{best['step']} in {early.patience}"
            )
        steps = checkpoints.directory
        print(
            tables.finished(
                self.workdir,
                steps / str(last["step"]),
                steps / str(checkpoints.best()),
                last,
            ),
            flush=True,
        )


def _with_constants(step: Any, constants: dict[str, Any]) -> Any:
    """Returns a train step of (state, batch) that finds in `constants` what stays on the
    devices."""
    return lambda state, batch: step(state, batch, constants)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parallel.keep_freed_memory()
    try:
        command = flags.parse(argv)
        if command is None:
            return COMPLETE
        if command.dry_run:
            dry_run(command.config)
            return COMPLETE
        result = train(command.config, command.workdir, fresh=command.fresh)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except Diverged as error:
        print(f"diverged: {error}", file=sys.stderr)
        return DIVERGED
    return COMPLETE if result.complete else RUN_AGAIN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
