"""Checkpoints of weights alone: they can be evaluated, begun with and learned from, but a run
cannot go on in them."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from jaxcls.checkpoint.checkpoints import Checkpoints
from jaxcls.config import Config
from jaxcls.data.notes import explaining
from jaxcls.errors import UserError
from jaxcls.optim import SGD

MADE_BY = "made_by"
"""Key of the JSON beside the weights that tells their origin: "the average of ...". The
checkpoints of training do not have it."""


def without_average(config: Config) -> Config:
    """Returns a config whose checkpoints have raw weights alone, and which is valid if
    `config` is."""
    optimizer = config.optimizer
    if optimizer.averages:
        # Nobody will optimise with it, and it would promise averaged weights.
        optimizer = SGD(learning_rate=optimizer.learning_rate)
    best = config.checkpoint.best.removesuffix("_ema")
    return dataclasses.replace(
        config,
        optimizer=optimizer,
        ema=None,
        precise_bn=None,
        stop_early=None,
        checkpoint=dataclasses.replace(config.checkpoint, best=best),
    )


def check_free(out: Path) -> None:
    """Raises UserError if there is something where a checkpoint shall be written."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists: name another folder, or move it away.")


def write(out: Path, variables: dict[str, Any], info: dict[str, Any]) -> Path:
    """Writes a run's folder with one checkpoint, whole or not at all.

    Args:
      out: the folder, which must not exist.
      variables: "params" and "batch_stats", {} for a network without; float32.
      info: the JSON that the checkpoint needs to stand alone, like that of training, with
        "step", the config as without_average() gives it, and MADE_BY.

    Returns:
      The folder of the checkpoint, out/checkpoints/<step>.

    Raises:
      UserError: if `out` exists, or cannot be written.
    """
    assert MADE_BY in info, "what is not marked could be taken for a run to continue"
    check_free(out)
    state: Any = {name: variables[name] for name in ("params", "batch_stats")}
    advice = ": make room, or name another folder"
    with explaining(f"cannot write {out}", (OSError,), advice):
        out.parent.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
        with hidden as folder:
            made = Path(folder, out.name)
            made.mkdir()
            with Checkpoints(made, keep=1, score=lambda step: None) as checkpoints:
                checkpoints.save(info["step"], state, info)
                checkpoints.wait()
            made.rename(out)
    return out.absolute() / "checkpoints" / str(info["step"])


def refuse_training(info: dict[str, Any], workdir: Path) -> None:
    """Raises UserError if a checkpoint that training would continue from has weights alone.

    Args:
      info: the JSON of the checkpoint.
      workdir: the folder of the run that it lies in.
    """
    if MADE_BY in info:
        raise UserError(
            f"{workdir} holds weights alone ({info[MADE_BY]}), without the state of an "
            "optimizer to go on with: train in another --workdir, beginning with them by "
            f"--config.model.weights={workdir}."
        )
