"""Metrics as files: metrics.jsonl, and TensorBoard's event files without TensorFlow."""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from jaxcls.errors import UserError

METRICS = "metrics.jsonl"


def read_metrics(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, null as NaN; [] if there is none.

    A last line that a killed run left unfinished is left out.

    Args:
      path: the file.
      last_step: lines of later steps are left out.

    Raises:
      UserError: if another line is not what MetricWriter writes.
    """
    try:
        texts = path.read_text(errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    lines = []
    for number, text in enumerate(texts[:-1], start=1):
        try:
            line = json.loads(text)
            lines.append({k: math.nan if v is None else v for k, v in line.items()})
            numbers = isinstance(line["step"], int) and all(
                isinstance(value, int | float) for value in lines[-1].values()
            )
        except (ValueError, AttributeError, KeyError, RecursionError):
            numbers = False
        if not numbers:
            raise UserError(
                f"line {number} of {path} is damaged ({text[:40]!r}): mend or delete that "
                "line. The evaluation that it may have held is then lost."
            )
    return [line for line in lines if line["step"] <= last_step]


def evaluations_in(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns those lines of metrics that evaluations wrote."""
    return [line for line in lines if "eval/top1" in line]


class MetricWriter:
    """Appends metrics of a run, one JSON object a line."""

    def __init__(self, workdir: Path, *, step: int, tensorboard: bool):
        """Opens the files of a run that goes on from `step`, dropping what was written for
        later steps: those steps will be made again.

        Args:
          workdir: the run's folder, which exists.
          step: steps made so far.
          tensorboard: also write event files, into workdir/tensorboard.
        """
        self.path = workdir / METRICS
        lines = read_metrics(self.path, step)
        self.evaluations = evaluations_in(lines)
        """The evaluations of the run so far, in the order of their steps."""
        rewritten = self.path.with_suffix(".tmp")
        rewritten.write_text("".join(_to_json(line) for line in lines))
        os.replace(rewritten, self.path)
        self._file = self.path.open("a")
        self._events = None
        if tensorboard:
            folder = str(workdir / "tensorboard")
            self._events = SummaryWriter(folder, purge_step=step + 1)

    def write(self, values: dict[str, Any]) -> None:
        """Appends one line; `values` holds "step". Values that are not finite become null."""
        self.evaluations += evaluations_in([values])
        self._file.write(_to_json(values))
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if name != "step" and math.isfinite(value):
                    self._events.add_scalar(name, value, values["step"])

    def evaluated(self, step: int) -> dict[str, Any]:
        """Returns the evaluation of a step; {} if there was none."""
        return next((v for v in self.evaluations if v["step"] == step), {})

    def last_evaluation(self) -> dict[str, Any]:
        """Returns the latest evaluation; {} if there was none."""
        return self.evaluations[-1] if self.evaluations else {}

    def sync(self) -> None:
        """Puts all lines on the disk: called before a checkpoint that relies on them."""
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def _to_json(values: dict[str, Any]) -> str:
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
