"""Transforms that change over a run."""

import dataclasses
import math
import typing
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxcls.augment.color import Normalize
from jaxcls.augment.pipeline import Moment, Transform
from jaxcls.augment.stages import Staged
from jaxcls.errors import UserError, did_you_mean


@dataclasses.dataclass(kw_only=True)
class Scheduled(Transform):
    """Applies a transform in a part of the run only, and computes nothing of it in the rest.

    For example, stop=0.9 shows images without it in the last tenth. It is always applied where
    there is no run.

    Attributes:
      transform: keeps the shapes of images and targets.
      start: fraction of the run after which it begins, 0..1.
      stop: fraction of the run after which it ends, 0..1, above `start`.
    """

    random: ClassVar[bool] = True

    transform: Transform
    start: float = 0.0
    stop: float = 1.0

    @property
    def on_grey_levels(self) -> bool:  # type: ignore[override]
        return self.transform.on_grey_levels

    def at(self, moment: Moment) -> Transform:
        transform = self.transform.at(moment)
        if self.start == 0 and self.stop == 1:
            return transform
        # Whole steps: a quotient of floats may round to either side of the boundary.
        first, end = (
            round(fraction * moment.total_steps) for fraction in (self.start, self.stop)
        )
        active = (moment.step >= first) & (moment.step < end)
        return _If(condition=active, transform=transform)

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return self.transform(rng, images, targets)

    def validate(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise UserError(
                "Scheduled.start and stop must be fractions of the run in 0..1, start below "
                f"stop, not {self.start} and {self.stop}."
            )
        _check_inner(self, self.transform)
        self.transform.validate()


@dataclasses.dataclass(kw_only=True)
class _If(Transform):
    """Applies a transform if a condition holds that is known to the devices only.

    Attributes:
      condition: bool scalar, traced.
      transform: keeps the shapes of images and targets.
    """

    condition: jax.Array
    transform: Transform

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        given = jax.eval_shape(lambda: (images, targets))
        changed = jax.eval_shape(self.transform, rng, images, targets)
        for before, after in zip(given, changed, strict=True):
            if before.shape != after.shape:
                kind = type(self.transform).__name__
                raise UserError(
                    f"Scheduled cannot switch {kind} on and off: it turns images or targets "
                    f"of shape {before.shape} into {after.shape}, and a network is compiled "
                    "for one shape. Use it outside of Scheduled."
                )
        # Not a choice between two results: only the branch that is taken is computed.
        return jax.lax.cond(
            self.condition,
            self.transform.__call__,
            lambda rng, images, targets: (images, targets),
            rng,
            images,
            targets,
        )


@dataclasses.dataclass(kw_only=True)
class Growing(Transform):
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

    random: ClassVar[bool] = True

    transform: Transform
    field: str = "magnitude"
    first: float = 5.0
    last: float = 15.0

    @property
    def on_grey_levels(self) -> bool:  # type: ignore[override]
        return self.transform.on_grey_levels

    def at(self, moment: Moment) -> Transform:
        last_step = moment.total_steps - 1
        done = moment.step / last_step if last_step else jnp.ones(())
        value = self.first + (self.last - self.first) * done
        # Rounding must not lead out of the option's range.
        value = jnp.clip(value, *sorted((self.first, self.last)))
        return self._with(value).at(moment)

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return self._with(self.last)(rng, images, targets)

    def _with(self, value: Any) -> Transform:
        """Returns the transform with a value, a float or traced, of the option."""
        if typing.get_type_hints(type(self.transform))[self.field] is int:
            traced = isinstance(value, jax.Array)
            value = jnp.round(value).astype(jnp.int32) if traced else round(value)
        return dataclasses.replace(self.transform, **{self.field: value})

    def validate(self) -> None:
        _check_inner(self, self.transform)
        kind = type(self.transform).__name__
        known = [field.name for field in dataclasses.fields(self.transform)]
        if self.field not in known:
            options = f"It has: {', '.join(known)}." if known else "It has none."
            raise UserError(
                f"Growing.field is '{self.field}', which is no option of {kind}."
                f"{did_you_mean(self.field, known)} {options}"
            )
        configured = getattr(self.transform, self.field)
        if isinstance(configured, bool) or not isinstance(configured, int | float):
            raise UserError(
                f"Growing.field is '{self.field}', but {kind}.{self.field} is "
                f"{configured!r}: only numbers can grow."
            )
        for end in ("first", "last"):
            value = getattr(self, end)
            if not math.isfinite(value):
                raise UserError(f"Growing.{end} must be a finite number, not {value}.")
        self._with(self.first).validate()
        self._with(self.last).validate()
        if not self._may_be_traced():
            raise UserError(
                f"Growing.field is '{self.field}', but {kind}.{self.field} is part of the "
                "compiled program and cannot change from step to step: choose a strength, not "
                "a size or a choice."
            )

    def _may_be_traced(self) -> bool:
        """Whether the transform can be compiled without knowing the option's value."""

        def trial(value: jax.Array) -> tuple[jax.Array, jax.Array]:
            images, targets = jnp.zeros((2, 64, 64, 3)), jnp.zeros((2, 2))
            # At a moment, for transforms that read options of theirs in order to change.
            transform = self._with(value).at(Moment(jnp.int32(1), 2, 4))
            return transform(jax.random.key(0), images, targets)

        try:
            jax.eval_shape(trial, jax.ShapeDtypeStruct((), jnp.float32))
        except UserError:
            return True  # of the trial's images, not of the option
        except TypeError:  # all of JAX's errors about values that it does not know are
            return False
        return True


def _check_inner(node: Transform, inner: Transform) -> None:
    """Raises UserError if a transform that changes over a run holds what it must not."""
    kind = type(node).__name__
    if isinstance(inner, Normalize):
        raise UserError(
            f"{kind} contains Normalize, but the network takes normalised floats in every "
            f"step: put Normalize outside of {kind}."
        )
    if isinstance(inner, Staged):
        raise UserError(
            f"{kind} contains Staged, whose stages would have no effect there: put Staged "
            f"outside of {kind}."
        )
