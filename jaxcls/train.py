"""Trains a recipe: `python -m jaxcls.train --config configs/lenet5.py`.

From Python: `train(config, workdir="runs/mine")`.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxcls import __version__, flags
from jaxcls import config as config_lib
from jaxcls.config import Config, Plan
from jaxcls.data.loader import Loader, TrainBatches
from jaxcls.data.sources import Source
from jaxcls.errors import UserError
from jaxcls.report.progress import Progress, eval_line
from jaxcls.report.writers import MetricWriter, read_metrics

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
      UserError: for a mistake in the config, the folder or its checkpoints.
      jaxcls.training.loop.Diverged: if the training went to infinity.
    """
    config_lib.validate(config)
    workdir = Path(workdir).absolute()
    train_source, test_source = config.data.source("train"), config.data.source("test")
    plan = config_lib.plan(config, len(train_source))
    _check_splits(train_source, test_source)
    with _locked(workdir, fresh):
        from jaxcls.training import checkpoint  # slow to import, after the quick checks

        newest = _newest_checkpoint(workdir)
        if newest is not None:
            run = checkpoint.read_run(newest)
            _check_same_run(run, config, train_source, workdir)
            if run["step"] == plan.total_steps:
                if result := _already_complete(workdir, plan.total_steps):
                    return result
        return _train(config, plan, workdir, train_source, test_source)


def _check_splits(train_source: Source, test_source: Source) -> None:
    if test_source.class_names != train_source.class_names:
        unknown = set(test_source.class_names) - set(train_source.class_names)
        raise UserError(
            f"{test_source!r} has other classes than {train_source!r}"
            + (
                f": {', '.join(sorted(unknown)[:5])} are unknown in training."
                if unknown
                else "."
            )
        )
    if not len(test_source):
        raise UserError(f"{test_source!r} is empty: there is nothing to evaluate on.")


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
    with _hold(workdir):
        yield


@contextlib.contextmanager
def _hold(workdir: Path) -> Iterator[None]:
    """Holds a lock on a folder, which ends with the process however it ends."""
    descriptor = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process is training in {workdir}: wait for it, or choose another "
                "--workdir."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _move_aside(workdir: Path) -> None:
    with _hold(workdir):
        number = 1
        while (aside := workdir.with_name(f"{workdir.name}.old-{number}")).exists():
            number += 1
        workdir.rename(aside)
    print(f"the earlier run is now in {aside}", flush=True)


def _newest_checkpoint(workdir: Path) -> Path | None:
    from jaxcls.training import checkpoint

    folder = workdir / checkpoint.FOLDER
    if not any(child.name.isdigit() for child in folder.glob("*")):
        return None
    return checkpoint.find(workdir)


def _check_same_run(
    run: dict[str, Any], config: Config, train_source: Source, workdir: Path
) -> None:
    """Raises UserError if the config or the data are not those of the run in the folder."""
    changed = config_lib.differences(run["config"], config_lib.to_dict(config))
    if run["train_source"] != repr(train_source):
        changed.append(f"training data: {run['train_source']} -> {train_source!r}")
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config, at step {run['step']}:\n    "
            + "\n    ".join(changed)
            + "\n  Give back the old values to continue it, choose another --workdir, or "
            "begin anew with --fresh (the old run is kept aside)."
        )


def _already_complete(workdir: Path, step: int) -> Result | None:
    """Says so if the run's last step has been evaluated; None if it has not."""
    for line in reversed(read_metrics(workdir / "metrics.jsonl")):
        if line["step"] == step and "eval/top1" in line:
            print(
                f"the run in {workdir} is complete at step {step}:\n{eval_line(line)}\n"
                "To start another, choose another --workdir, or --fresh to begin this one "
                "anew.",
                flush=True,
            )
            return Result(True, step, line, workdir)
    return None


def _train(
    config: Config,
    plan: Plan,
    workdir: Path,
    train_source: Source,
    test_source: Source,
) -> Result:
    """Restores or initialises, compiles, trains and reports."""
    import jax

    from jaxcls import parallel
    from jaxcls.report import tables
    from jaxcls.training.checkpoint import Checkpoints
    from jaxcls.training.evaluation import eval_loader
    from jaxcls.training.loop import Loop
    from jaxcls.training.prefetch import DevicePrefetch
    from jaxcls.training.program import Program
    from jaxcls.training.signals import StopSignal

    parallel.enable_compilation_cache()
    mesh = parallel.make_mesh(config.devices)
    run_info = _run_info(config, plan, train_source, test_source)
    program = Program(
        config,
        plan,
        mesh=mesh,
        num_classes=len(run_info["class_names"]),
        image_shape=tuple(run_info["image_shape"]),
    )
    shapes = program.state_shapes()
    # Leaving the stack closes what was opened, the last first, however the run ends.
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignal())
        print(tables.parameters(shapes.params, config.optimizer.weight_decay))
        print(tables.run(config, plan, mesh, train_source, test_source), flush=True)

        checkpoints = stack.enter_context(
            Checkpoints(
                workdir,
                config.checkpoint.keep,
                score=lambda step: writer.evaluated(step).get(config.checkpoint.best),
            )
        )
        step = max(checkpoints.steps(), default=0)
        restored = checkpoints.restore(step, shapes) if step else None
        writer = MetricWriter(workdir, step=step, tensorboard=config.log.tensorboard)
        stack.callback(writer.close)
        (workdir / "config.json").write_text(
            json.dumps(run_info["config"], indent=2) + "\n"
        )

        train_step = program.compile_train_step()
        eval_step = program.compile_eval_step()
        print(tables.compiled(train_step, eval_step), flush=True)
        if restored is not None:
            print(
                f"continuing at step {step}: restored all {len(jax.tree.leaves(shapes))} "
                f"arrays of {checkpoints.directory / str(step)}"
            )

        batches = TrainBatches(
            train_source,
            seed=config.seed,
            batch_size=config.batch_size,
            num_steps=plan.total_steps,
            host=jax.process_index(),
            num_hosts=jax.process_count(),
        )
        loader = stack.enter_context(
            Loader(
                batches,
                start=step,
                workers=config.data.workers,
                threads=config.data.threads,
                prefetch=config.data.prefetch,
            )
        )
        progress = Progress(step=step, total_steps=plan.total_steps)
        stack.callback(progress.close)
        loop = Loop(
            config=config,
            plan=plan,
            program=program,
            train_step=train_step.call,
            eval_step=eval_step.call,
            state=program.init() if restored is None else restored,
            test_source=test_source,
            eval_loader=stack.enter_context(eval_loader(config, test_source, mesh)),
            checkpoints=checkpoints,
            run_info=run_info,
            writer=writer,
            progress=progress,
            should_stop=stop,
        )
        del restored  # the loop donates its buffers to the first step
        prefetch = DevicePrefetch(loader, mesh, config.data.prefetch)
        complete = loop.run(stack.enter_context(prefetch))
        checkpoints.wait()
        progress.close()
        last = writer.last_evaluation()
        if complete:
            print(tables.finished(workdir, checkpoints, last), flush=True)
        else:
            print(
                f"stopped by {stop.name} at step {loop.step} of {plan.total_steps}, all "
                "saved: run the same command again to continue.",
                flush=True,
            )
        return Result(complete, loop.step, last, workdir)


def _run_info(
    config: Config, plan: Plan, train_source: Source, test_source: Source
) -> dict[str, Any]:
    """Returns what every checkpoint needs to stand alone, as JSON."""
    return {
        "jaxcls_version": __version__,
        "config": config_lib.to_dict(config),
        "class_names": list(train_source.class_names),
        "image_shape": list(train_source[0]["image"].shape),
        "train_source": repr(train_source),
        "test_source": repr(test_source),
        "total_steps": plan.total_steps,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    from jaxcls.training.loop import Diverged

    try:
        command = flags.parse(argv)
        if command is None:
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
