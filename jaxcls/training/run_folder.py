"""A run's folder: one trainer at a time, one run a folder, and nothing is ever deleted."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcls import config as config_lib
from jaxcls.checkpoint import checkpoints
from jaxcls.data.notes import explaining
from jaxcls.errors import UserError
from jaxcls.files import held
from jaxcls.report.progress import say


@contextlib.contextmanager
def locked(workdir: Path, fresh: bool) -> Iterator[None]:
    """Makes the folder and holds it against a second trainer.

    Args:
      workdir: the folder.
      fresh: move an earlier run in it aside.

    Raises:
      UserError: if it cannot be written to or another process trains in it.
    """
    cannot = f"cannot write to the workdir {workdir}"
    with explaining(cannot, (OSError,), ": choose another with --workdir"):
        if fresh and workdir.exists():
            _move_aside(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    for name, is_kind in (
        (checkpoints.FOLDER, Path.is_dir),
        ("tensorboard", Path.is_dir),
        ("config.json", Path.is_file),
        ("metrics.jsonl", Path.is_file),
    ):
        if (workdir / name).exists() and not is_kind(workdir / name):
            raise UserError(
                f"{workdir / name} is in the way of a run: choose another --workdir."
            )
    with _held(workdir):
        yield


def _held(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the folder against a second trainer."""
    return held(
        os.open(workdir, os.O_RDONLY),
        f"another process is training in {workdir}: wait for it, or choose another --workdir.",
    )


def _move_aside(workdir: Path) -> None:
    """Renames the folder of a run; one that holds something else stays as it is."""
    contents = ("config.json", "metrics.jsonl", checkpoints.FOLDER)
    if not any((workdir / name).exists() for name in contents):
        if workdir.is_dir() and not any(workdir.iterdir()):
            return
        raise UserError(
            f"--fresh would move {workdir} aside, which is not a run's folder: choose "
            "another --workdir."
        )
    with _held(workdir):
        number = 1
        while (aside := workdir.with_name(f"{workdir.name}.old-{number}")).exists():
            number += 1
        workdir.rename(aside)
    say(f"the earlier run is now in {aside}")


def newest_checkpoint(workdir: Path) -> Path | None:
    """Returns the folder of the newest checkpoint, None if there is none."""
    steps = checkpoints.step_folders(workdir / checkpoints.FOLDER)
    return steps[-1] if steps else None


def check_same_run(saved: dict[str, Any], info: dict[str, Any], workdir: Path) -> None:
    """Raises UserError if the config or the data are not those of the run in the folder.

    Args:
      saved: what was saved with the checkpoint to continue from.
      info: what would be saved with the next one.
      workdir: the folder.
    """
    # Through the types, so that an option which has come since is at its default.
    old = config_lib.to_dict(config_lib.from_dict(saved["config"]))
    changed = config_lib.differences(old, info["config"])
    for name in ("train_source", "test_source"):
        if saved[name] != info[name]:
            changed.append(f"{name}: {saved[name]} -> {info[name]}")
    if saved.get("teacher") != info.get("teacher"):
        changed.append("distill.teacher: its weights are others than at the start")
    if saved["class_names"] != info["class_names"]:
        changed.append("class names: those of the training split have changed")
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config, at step {saved['step']}:\n    "
            + "\n    ".join(changed)
            + "\n  Give back the old values to continue it, choose another --workdir, or "
            "begin anew with --fresh (the old run is kept aside)."
        )
