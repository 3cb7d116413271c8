"""Checkpoints: written in the background, whole or not at all, and checked when read.

    run folder/checkpoints/<step>/state   every array of the TrainState
                                 /run     config, class names, image shape, fingerprints

Orbax writes them; a step's folder appears under its name only when it is complete. Orbax has
no checksum of the data, so each array's fingerprint travels with it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxcls.checkpoint.fingerprints import fingerprints, named_leaves
from jaxcls.errors import UserError

FOLDER = "checkpoints"


class KeepNewestAndBest:
    """Orbax's policy of what is kept: the newest `keep` checkpoints, and the best besides.

    (Orbax's own `best_fn` would delete the newest one when it is not among the best.)
    """

    def __init__(self, keep: int, score: Callable[[int], float | None]):
        """Takes `score(step)`: higher is better, None where a step was not evaluated."""
        self.keep = keep
        self.score = score

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = best_step(steps, self.score)
        newest = sorted(steps)[-self.keep :]
        return [step in newest or step == best for step in steps]


def best_step(steps: Sequence[int], score: Callable[[int], float | None]) -> int | None:
    """Returns the step with the highest score, the latest of equals; None without scores."""
    scored = [(value, step) for step in steps if (value := score(step)) is not None]
    return max(scored)[1] if scored else None


class Checkpoints:
    """The checkpoints of one run. Use it in a `with` statement: leaving waits for the last
    save, which would be lost otherwise."""

    def __init__(self, workdir: Path, keep: int, score: Callable[[int], float | None]):
        """Opens (and makes) the folder of a run's checkpoints.

        Args:
          workdir: the run's folder.
          keep: newest checkpoints that are kept.
          score: of a step's evaluation, higher is better; None if it was not evaluated.
        """
        self.directory = (workdir / FOLDER).absolute()
        self.score = score
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=KeepNewestAndBest(keep, score),
                cleanup_tmp_directories=True,
            ),
        )
        self._begun = set(self._manager.all_steps())

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def has(self, step: int) -> bool:
        """Whether a step was saved, or is being saved."""
        return step in self._begun

    def best(self) -> int | None:
        """Returns the best evaluated step that is kept."""
        return best_step(self.steps(), self.score)

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Starts saving; the state may be donated as soon as this returns.

        Args:
          step: steps made; at most one checkpoint a step.
          state: the state after them, a tree of arrays.
          info: what else the checkpoint needs to stand alone, as JSON.

        Raises:
          UserError: if this or the checkpoint before could not be written.
        """
        self._begun.add(step)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            run=ocp.args.JsonSave({**info, "fingerprints": fingerprints(state)}),
        )
        with _writing(self.directory):
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
          UserError: if it could not be written.
        """
        with _writing(self.directory):
            self._manager.wait_until_finished()


def is_step(path: Path) -> bool:
    """Whether a path looks like the folder of one step: it has a number for a name and lies
    among checkpoints, or has the parts of one."""
    name = path.name
    return (name.isascii() and name.isdecimal()) and (
        path.absolute().parent.name == FOLDER
        or any((path / part).exists() for part in ("state", "run"))
    )


def find_checkpoint(path: Path) -> Path:
    """Returns the folder of the checkpoint that `path` names: a step's folder itself, or the
    newest step of a run's folder.

    Raises:
      UserError: if there is none.
    """
    if not path.is_dir():
        raise UserError(
            f"there is no folder {path}: give a run's folder or one step's."
        )
    # Looked for first: a run's folder may be named "1".
    if not (path / FOLDER).is_dir() and is_step(path):
        return path.absolute()
    steps = step_folders(path if path.name == FOLDER else path / FOLDER)
    if not steps:
        raise UserError(
            f"{path} has no checkpoint in it: give a run's folder (with {FOLDER}/<step> "
            "inside) or one step's."
        )
    return steps[-1].absolute()


def step_folders(folder: Path) -> list[Path]:
    """Returns the folders of the steps in a run's folder of checkpoints, the newest last."""
    steps = [child for child in folder.glob("*") if is_step(child)]
    return sorted(steps, key=lambda child: int(child.name))


def read_info(folder: Path) -> dict[str, Any]:
    """Returns the JSON that was saved with the checkpoint in a step's folder.

    Raises:
      UserError: if it cannot be read.
    """
    args = ocp.args.Composite(run=ocp.args.JsonRestore())
    with _reader(folder) as manager, _reading(folder):
        info = manager.restore(int(folder.name), args=args)["run"]
    parts = {"step": int, "config": dict, "fingerprints": dict, "class_names": list}
    parts |= {"image_shape": list, "train_source": str, "test_source": str}
    if not isinstance(info, dict) or not all(
        isinstance(info.get(name), kind) for name, kind in parts.items()
    ):
        raise UserError(f"{folder} is not a checkpoint of this version of jaxcls.")
    if info["step"] != int(folder.name):
        raise UserError(
            f"the folder {folder} holds the checkpoint of step {info['step']}: give it back "
            "its name."
        )
    return info


def restore(folder: Path, shapes: Any, *, whole: bool = False) -> Any:
    """Reads the arrays of a checkpoint that `shapes` names, onto its devices.

    The number of devices may differ from that of the run which saved it.

    Args:
      folder: a step's folder.
      shapes: the state, or some parts of it, as a tree of jax.ShapeDtypeStruct with shardings:
        {"params": ..., "batch_stats": ...} needs no optimizer.
      whole: whether `shapes` is all of the state, so that what it lacks is an error.

    Raises:
      UserError: if the checkpoint is damaged or of another network.
    """
    info = read_info(folder)
    _check_same_arrays(folder, shapes, whole)
    args = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
            shapes,
            restore_args=ocp.checkpoint_utils.construct_restore_args(shapes),
            partial_restore=not whole,
        )
    )
    with _reader(folder) as manager, _reading(folder):
        state = manager.restore(int(folder.name), args=args)["state"]
    _check_fingerprints(folder, state, info["fingerprints"])
    return state


@contextlib.contextmanager
def _in_a_sentence(what: str, way_out: str) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise into a UserError."""
    try:
        yield
    except Exception as error:  # many types, from three libraries
        lines = str(error).strip().splitlines() or ["no message"]
        reason = f"{type(error).__name__}: {lines[0][:200]}"
        raise UserError(f"{what} ({reason}). {way_out}") from error


def _writing(directory: Path) -> contextlib.AbstractContextManager[None]:
    return _in_a_sentence(
        f"cannot write a checkpoint to {directory}",
        "Make room, then run the same command again: it goes on from the last complete "
        "checkpoint.",
    )


def _reading(folder: Path) -> contextlib.AbstractContextManager[None]:
    return _in_a_sentence(
        f"the checkpoint {folder} cannot be read",
        f"If it is damaged, {_way_out(folder)}",
    )


def _reader(folder: Path) -> ocp.CheckpointManager:
    """Opens the checkpoints around a step's folder for reading alone."""
    return ocp.CheckpointManager(
        folder.parent,
        item_handlers={
            "state": ocp.PyTreeCheckpointHandler(),
            "run": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(create=False),
    )


def _way_out(folder: Path) -> str:
    steps = [int(child.name) for child in step_folders(folder.parent)]
    earlier = [step for step in steps if step < int(folder.name)]
    if earlier:
        return f"move that folder away to go back to step {earlier[-1]}."
    return "move that folder away to begin again: there is no earlier one."


def _kind(leaf: Any) -> str:
    """Returns dtype and shape of an array as "float32[3,3,1,6]"."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _check_same_arrays(folder: Path, shapes: Any, whole: bool) -> None:
    """Compares the arrays of a checkpoint with those wanted, in the same top-level parts or in
    all.

    Raises:
      UserError: naming what is missing, left over or of another shape.
    """
    with _reader(folder) as manager, _reading(folder):
        tree = manager.item_metadata(int(folder.name))["state"].tree
    wanted = {name: _kind(leaf) for name, leaf in named_leaves(shapes)}
    parts = {name.split("/")[0] for name in wanted}
    saved = {
        name: _kind(leaf)
        for name, leaf in named_leaves(tree)
        if whole or name.split("/")[0] in parts
    }
    lists = {
        "missing": [name for name in wanted if name not in saved],
        "left over": [name for name in saved if name not in wanted],
        "of another shape": [
            f"{name} (saved {saved[name]}, expected {kind})"
            for name, kind in wanted.items()
            if saved.get(name, kind) != kind
        ],
    }
    faults = [
        f"{len(names)} {fault}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for fault, names in lists.items()
        if names
    ]
    if faults:
        raise UserError(
            f"the checkpoint {folder} is of another network or optimizer ({'; '.join(faults)}"
            "): use the config that it was saved with, or another --workdir."
        )


def _check_fingerprints(folder: Path, tree: Any, saved: dict[str, int]) -> None:
    found = fingerprints(tree)
    wrong = [name for name, value in found.items() if saved.get(name) != value]
    if wrong:
        raise UserError(
            f"the checkpoint {folder} is damaged: the content of {', '.join(wrong[:4])} is "
            f"not what was saved; {_way_out(folder)}"
        )
