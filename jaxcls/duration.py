"""Lengths of training with a unit: steps, epochs, examples or a fraction of the run.

duration=epochs(20)            # in a recipe
--config.duration="20 epochs"  # on the command line
"""

import dataclasses
import re
from fractions import Fraction

from jaxcls.errors import UserError, did_you_mean

UNITS = ("steps", "epochs", "examples", "run")
NUMBER_AND_UNIT = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]+|%)\s*"


@dataclasses.dataclass(frozen=True)
class RunLength:
    """The lengths that turn durations into steps.

    Attributes:
      steps_per_epoch: whole batches in one pass over the training set.
      batch_size: images in one step, over all devices and hosts.
      total_steps: steps of the whole run; 0 while that number is being worked out.
    """

    steps_per_epoch: int
    batch_size: int
    total_steps: int = 0


class Duration:
    """A length of training: a number and exactly one unit.

    Not a dataclass, so that a command line sets it whole ("20 epochs") and can never
    leave a number of one unit beside the name of another.
    """

    def __init__(self, value: float, unit: str):
        """Makes a duration of `value` (finite, >= 0) `unit` (one of UNITS).

        Raises:
          UserError: for a negative or non-finite value or an unknown unit.
        """
        if unit not in UNITS:
            raise UserError(
                f"unknown unit '{unit}' in a duration: use one of {', '.join(UNITS)}."
                + did_you_mean(unit, UNITS)
            )
        if not 0 <= value < 1e15:
            raise UserError(
                f"a duration must be 0 or more, and of sensible size, not {value:g} {unit}."
            )
        if unit == "run" and value > 1:
            raise UserError(
                f"a fraction of the run lies between 0 and 1, not {value:g}: write 5% "
                "or 0.05 run."
            )
        self.value = float(value)
        self.unit = unit

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Reads "20 epochs", "500 steps", "1e6 examples", "0.05 run" or "5%".

        Raises:
          UserError: if the text is not a number followed by one unit.
        """
        match = re.fullmatch(NUMBER_AND_UNIT, text)
        if match is None:
            raise UserError(
                f"'{text}' is not a duration: write a number and one unit, for example "
                "'20 epochs', '500 steps', '1e6 examples' or '5%' (of the run)."
            )
        value = float(match[1])
        if match[2] == "%":
            return cls(value / 100, "run")
        unit = match[2].lower()
        # "1 epoch" reads as well as "1 epochs".
        return cls(value, unit + "s" if unit + "s" in UNITS else unit)

    def to_steps(self, run: RunLength) -> int:
        """Returns the nearest whole number of steps.

        Raises:
          UserError: for a fraction of a run whose own length is not known yet.
        """
        unit = self._unit_in_steps(run)
        return round(self.value * unit.numerator / unit.denominator)

    def one_step_or_more(self, option: str, run: RunLength) -> int:
        """Returns the nearest whole number of steps.

        Raises:
          UserError: naming the option, if it is less than one.
        """
        steps = self.to_steps(run)
        if steps < 1:
            raise UserError(
                f"{option} of {self} is less than one step ({run.steps_per_epoch} steps are "
                "an epoch)."
            )
        return steps

    def exact_steps(self, run: RunLength) -> Fraction:
        """Returns the steps, not rounded, of the value as it is written: 2.4 is twelve fifths,
        which its float is not. Raises what to_steps() raises."""
        return Fraction(str(self.value)) * self._unit_in_steps(run)

    def _unit_in_steps(self, run: RunLength) -> Fraction:
        """Returns the steps in one epoch, one example or one run; 1 for steps."""
        if self.unit == "run" and run.total_steps == 0:
            raise UserError(
                f"the length of the run itself cannot be a fraction of the run ({self}): "
                "give it in steps, epochs or examples."
            )
        units: dict[str, Fraction | int] = {
            "steps": 1,
            "epochs": run.steps_per_epoch,
            "examples": Fraction(1, run.batch_size),
            "run": run.total_steps,
        }
        return Fraction(units[self.unit])

    def __str__(self) -> str:
        whole = self.value.is_integer()
        return f"{int(self.value) if whole else self.value} {self.unit}"

    def __repr__(self) -> str:
        return f"Duration({self.value!r}, {self.unit!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Duration):
            return NotImplemented
        return (self.value, self.unit) == (other.value, other.unit)

    def __hash__(self) -> int:
        return hash((self.value, self.unit))


def steps(value: float) -> Duration:
    """Returns a length of `value` optimizer steps."""
    return Duration(value, "steps")


def epochs(value: float) -> Duration:
    """Returns a length of `value` passes over the training set."""
    return Duration(value, "epochs")


def examples(value: float) -> Duration:
    """Returns a length of `value` training images."""
    return Duration(value, "examples")


def fraction(value: float) -> Duration:
    """Returns a part of the whole run: `value` in 0..1."""
    return Duration(value, "run")
