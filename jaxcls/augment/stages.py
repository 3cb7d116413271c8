"""Images that grow in stages over a run."""

import dataclasses
import typing
from collections.abc import Sequence

import jax

from jaxcls.augment.pipeline import Transform
from jaxcls.errors import UserError, did_you_mean
from jaxcls.options import allows


@dataclasses.dataclass(kw_only=True)
class Staged(Transform):
    """Gives an option of a transform one value after the other, each for an equal part of the
    run: progressive sizes, Tan and Le 2021 (https://arxiv.org/abs/2104.00298, section 4).

        Staged(transform=RandomResizedCrop(size=300), field="size", values=(128, 214, 300))

    The train step is compiled for each value. The network must take images of every size:
    those with global pooling do. Outside of a run the option has its last value. For strengths,
    which need no compiling, there is Growing.

    Attributes:
      transform: whose option changes; the value it gives to the option has no effect.
      field: name of the option, a number.
      values: of the option, first to last.
    """

    transform: Transform
    field: str = "size"
    values: tuple[int, ...] = (128, 192, 256)

    @property
    def random(self) -> bool:  # type: ignore[override]
        return True

    @property
    def on_grey_levels(self) -> bool:  # type: ignore[override]
        return self.transform.on_grey_levels

    def stage(self, index: int) -> Transform:
        """Returns the transform with one of the values."""
        return dataclasses.replace(self.transform, **{self.field: self.values[index]})

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return self.stage(-1)(rng, images, targets)

    def validate(self) -> None:
        kind = type(self.transform).__name__
        known = [field.name for field in dataclasses.fields(self.transform)]
        if self.field not in known:
            raise UserError(
                f"Staged.field is '{self.field}', which is no option of {kind}."
                f"{did_you_mean(self.field, known)} It has: {', '.join(known) or 'none'}."
            )
        if not self.values:
            raise UserError("Staged.values is empty: give a value for each stage.")
        hint = typing.get_type_hints(type(self.transform))[self.field]
        for value in self.values:
            if not allows(hint, value):
                raise UserError(
                    f"Staged.values has {value!r}, but {kind}.{self.field} is "
                    f"{getattr(self.transform, self.field)!r}: only options that are numbers "
                    "can have stages."
                )
        for index in range(len(self.values)):
            self.stage(index).validate()


def in_stages(
    transforms: Sequence[Transform], total_steps: int
) -> list[tuple[int, tuple[Transform, ...]]]:
    """Returns the stages of a run.

    Args:
      transforms: any of which may be Staged.
      total_steps: length of the run.

    Returns:
      The first step of each stage, from 0, and its transforms, none of them Staged.
    """
    staged = [t for t in transforms if isinstance(t, Staged)]
    firsts = {0} | {
        round(index * total_steps / len(transform.values))
        for transform in staged
        for index in range(len(transform.values))
    }

    def during(transform: Transform, step: int) -> Transform:
        if not isinstance(transform, Staged):
            return transform
        count = len(transform.values)
        begun = [i for i in range(count) if round(i * total_steps / count) <= step]
        return transform.stage(begun[-1])

    return [
        (first, tuple(during(transform, first) for transform in transforms))
        for first in sorted(firsts)
    ]
