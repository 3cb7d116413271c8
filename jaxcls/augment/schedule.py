"""Transforms that change over a run."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import MinLen

from jaxcls import options
from jaxcls.augment.color import Normalize
from jaxcls.augment.pipeline import Batch, BatchFunction, RunPosition, Transform
from jaxcls.errors import UserError, did_you_mean
from jaxcls.options import Share


@dataclasses.dataclass(kw_only=True)
class _OverRun(Transform):
    """What transforms that change over a run have in common: the transform that they apply."""

    random: ClassVar[bool] = True

    transform: Transform

    @property
    def on_grey_levels(self) -> bool:  # type: ignore[override]
        return self.transform.on_grey_levels

    def check_inner(self) -> None:
        """Raises UserError if the inner transform is one that must not change over a run."""
        kind = type(self).__name__
        if isinstance(self.transform, Normalize):
            raise UserError(
                f"{kind} contains Normalize, but the network takes normalised floats in every "
                f"step: put Normalize outside of {kind}."
            )
        if isinstance(self.transform, Staged):
            raise UserError(
                f"{kind} contains Staged, whose stages would have no effect there: put Staged "
                f"outside of {kind}."
            )


@dataclasses.dataclass(kw_only=True)
class Scheduled(_OverRun):
    """Applies a transform in one part of the run only; the other steps do not compute it.

    For example, stop=0.9 shows images without it in the last tenth. It is always applied where
    there is no run.

    Attributes:
      transform: keeps the shapes of images and targets.
      start: fraction of the run after which it begins, 0..1.
      stop: fraction of the run after which it ends, 0..1, above `start`.
    """

    start: Share = 0.0
    stop: Share = 1.0

    def at(self, position: RunPosition) -> BatchFunction:
        transform = self.transform.at(position)
        if self.start == 0 and self.stop == 1:
            return transform
        # Whole steps: a quotient of floats may round to either side of the boundary.
        first = round(self.start * position.total_steps)
        end = round(self.stop * position.total_steps)
        active = (position.step >= first) & (position.step < end)

        def if_active(rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
            given = images, targets
            changed = jax.eval_shape(transform, rng, *given)
            for before, after in zip(given, changed, strict=True):
                if before.shape != after.shape:
                    kind = type(self.transform).__name__
                    raise UserError(
                        f"Scheduled cannot switch {kind} on and off: it turns images or targets "
                        f"of shape {before.shape} into {after.shape}, and a network is compiled "
                        "for one shape. Use it outside of Scheduled."
                    )
            # Not a choice between two results: only the branch that is taken is computed.
            return jax.lax.cond(active, lambda: transform(rng, *given), lambda: given)

        return if_active

    def __call__(self, rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
        return self.transform(rng, images, targets)

    def validate(self) -> None:
        if not self.start < self.stop:
            raise UserError(
                "Scheduled.start and stop must be fractions of the run in 0..1, start below "
                f"stop, not {self.start} and {self.stop}."
            )
        self.check_inner()


@dataclasses.dataclass(kw_only=True)
class _OverRunByField(_OverRun):
    """What transforms that change an option of a transform over a run have in common.

    Attributes:
      field: name of the option.
    """

    field: str

    def annotation(self) -> Any:
        """Returns the option's annotation.

        Raises:
          UserError: if the transform has no such option.
        """
        names = [field.name for field in dataclasses.fields(self.transform)]
        if self.field not in names:
            raise UserError(
                f"{type(self).__name__}.field is '{self.field}', which is no option of "
                f"{type(self.transform).__name__}.{did_you_mean(self.field, names)} "
                f"It has: {', '.join(names) or 'none'}."
            )
        return options.hints(type(self.transform))[self.field]

    def replaced(self, value: Any) -> Transform:
        """Returns the transform with a value of the option."""
        return dataclasses.replace(self.transform, **{self.field: value})


@dataclasses.dataclass(kw_only=True)
class Growing(_OverRunByField):
    """Moves an option of a transform evenly from one value in the first step of a run to
    another in the last: progressive regularisation (Tan and Le 2021, arXiv 2104.00298, section
    4, with a stage for every step). Where there is no run, the option has its last value.

    Attributes:
      transform: whose option changes; the value it gives to the option has no effect.
      field: name of the option, a number that may change without changing any shape; rounded
        if it is a whole one.
      first: value in the first step.
      last: value in the last step.
    """

    field: str = "magnitude"
    first: float = 5.0
    last: float = 15.0

    def at(self, position: RunPosition) -> BatchFunction:
        last_step = position.total_steps - 1
        done = position.step / last_step if last_step else jnp.ones(())
        value = self.first + (self.last - self.first) * done
        # Rounding must not lead out of the option's range.
        value = jnp.clip(value, *sorted((self.first, self.last)))
        return self._with(value).at(position)

    def __call__(self, rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
        return self._with(self.last)(rng, images, targets)

    def _with(self, value: Any) -> Transform:
        """Returns the transform with a value, a float or traced, of the option."""
        if not options.allows(self.annotation(), 0.5):
            traced = isinstance(value, jax.Array)
            value = jnp.round(value).astype(jnp.int32) if traced else round(value)
        return self.replaced(value)

    def validate(self) -> None:
        self.check_inner()
        self.annotation()
        option = f"{type(self.transform).__name__}.{self.field}"
        configured = getattr(self.transform, self.field)
        if isinstance(configured, bool) or not isinstance(configured, int | float):
            raise UserError(
                f"Growing.field is '{self.field}', but {option} is {configured!r}: only "
                "numbers can grow."
            )
        options.check(self._with(self.first))
        options.check(self._with(self.last))
        if not self._may_be_traced():
            raise UserError(
                f"Growing.field is '{self.field}', but {option} is part of the compiled "
                "program and cannot change from step to step: choose a strength, not a size or "
                "a choice."
            )

    def _may_be_traced(self) -> bool:
        """Whether the transform can be compiled without knowing the option's value."""

        def trial(value: jax.Array) -> Batch:
            images, targets = jnp.zeros((2, 64, 64, 3)), jnp.zeros((2, 2))
            # At a position, for transforms that read options of theirs in order to change.
            transform = self._with(value).at(RunPosition(jnp.int32(1), 2, 4))
            return transform(jax.random.key(0), images, targets)

        try:
            jax.eval_shape(trial, jax.ShapeDtypeStruct((), jnp.float32))
        except UserError:
            return True  # of the trial's images, not of the option
        except TypeError:  # all of JAX's errors about values that it does not know are
            return False
        return True


@dataclasses.dataclass(kw_only=True)
class Staged(_OverRunByField):
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

    field: str = "size"
    values: Annotated[tuple[int, ...], MinLen(1)] = (128, 192, 256)

    def __call__(self, rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
        return self.replaced(self.values[-1])(rng, images, targets)

    def validate(self) -> None:
        annotation = self.annotation()
        for value in self.values:
            if not options.allows(annotation, value):
                raise UserError(
                    f"Staged.values has {value!r}, but {type(self.transform).__name__}."
                    f"{self.field} is {getattr(self.transform, self.field)!r}: only options "
                    "that are numbers can have stages."
                )
            options.check(self.replaced(value))


def stages_of_run(
    transforms: Sequence[Transform], total_steps: int
) -> list[tuple[int, tuple[Transform, ...]]]:
    """Returns the stages of a run.

    Args:
      transforms: any of which may be Staged.
      total_steps: length of the run.

    Returns:
      The first step of each stage, from 0, and its transforms, none of them Staged.
    """

    def first_steps(staged: Staged) -> list[int]:
        count = len(staged.values)
        return [round(index * total_steps / count) for index in range(count)]

    def during(transform: Transform, step: int) -> Transform:
        if not isinstance(transform, Staged):
            return transform
        begun = sum(first <= step for first in first_steps(transform))
        return transform.replaced(transform.values[begun - 1])

    staged = [transform for transform in transforms if isinstance(transform, Staged)]
    firsts = sorted({0}.union(*map(first_steps, staged)))
    return [(first, tuple(during(t, first) for t in transforms)) for first in firsts]
