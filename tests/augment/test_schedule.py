"""Transforms that change over a run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import config, options
from jaxcls.augment import (
    CenterCrop,
    HorizontalFlip,
    Normalize,
    RandomCrop,
    Resize,
    Staged,
    Transform,
    apply,
)
from jaxcls.augment.mix import MixUp
from jaxcls.augment.pipeline import RunPosition
from jaxcls.augment.schedule import Growing, Scheduled
from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Add(Transform):
    """Adds a number to every pixel."""

    on_grey_levels: ClassVar[bool] = True

    magnitude: float = 1.0
    whole: int = 0
    name: str = "add"

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return images + self.magnitude + self.whole, targets

    def validate(self) -> None:
        if not 0 <= self.magnitude <= 30:
            raise UserError(f"Add.magnitude must lie in 0..30, not {self.magnitude}.")


IMAGES = np.zeros((2, 4, 4, 1), np.uint8)
TARGETS = np.eye(2, dtype=np.float32)


def applied(
    transform: Transform,
    images: np.ndarray,
    targets: np.ndarray,
    position: RunPosition | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    call = jax.jit(lambda key: apply((transform,), key, images, targets, position))
    return jax.device_get(call(jax.random.key(seed)))


def added(transform: Transform, total_steps: int) -> list[float]:
    """What a transform adds to a pixel in each step of a run, all by one program."""

    @jax.jit
    def at(step: jax.Array) -> jax.Array:
        position = RunPosition(step, 1, total_steps)
        return apply((transform,), jax.random.key(0), IMAGES, TARGETS, position)[0]

    return [
        float(np.asarray(at(np.int32(step)))[0, 0, 0, 0]) for step in range(total_steps)
    ]


@pytest.mark.parametrize(
    ("start", "stop", "total", "active"),
    [
        (0.0, 0.9, 10, range(9)),
        (0.3, 1.0, 10, range(3, 10)),
        (0.25, 0.75, 8, range(2, 6)),
        # Boundaries that no sum of floats hits, and such that lie between two steps.
        (0.1, 0.7, 30, range(3, 21)),
        (0.5, 0.9, 7, range(4, 6)),
    ],
)
def test_scheduled_acts_in_its_part_of_the_run(
    start: float, stop: float, total: int, active: Sequence[int]
) -> None:
    found = added(Scheduled(transform=Add(), start=start, stop=stop), total)
    assert found == [float(step in active) for step in range(total)]


def test_scheduled_computes_nothing_in_the_rest() -> None:
    computed = []

    class Seen(Transform):
        def __call__(
            self, rng: jax.Array, images: jax.Array, targets: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            jax.debug.callback(lambda: computed.append(1))
            return images + 1, targets

    added(Scheduled(transform=Seen(), stop=0.5), 6)
    jax.effects_barrier()
    assert len(computed) == 3


def test_scheduled_over_the_whole_run_is_the_transform() -> None:
    inner = Add()
    position = RunPosition(jnp.int32(3), 1, 10)
    assert Scheduled(transform=inner).at(position) is inner


def test_without_a_position_scheduled_acts_and_growing_has_its_last_value() -> None:
    for transform, value in (
        (Scheduled(transform=Add(magnitude=3.0), start=0.5), 3),
        (Growing(transform=Add(), first=2.0, last=7.0), 7),
    ):
        images, _ = applied(transform, IMAGES, TARGETS)
        np.testing.assert_array_equal(images, value)


def test_scheduled_passes_key_and_targets_on() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    targets = np.eye(8, dtype=np.float32)
    inner = MixUp(alpha=1.0)
    position = RunPosition(jnp.int32(0), 1, 10)
    wrapped = Scheduled(transform=inner, stop=0.5)
    expected = applied(inner, images, targets, seed=5)
    found = applied(wrapped, images, targets, position, seed=5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert (np.asarray(found[1]) != targets).any()


def test_scheduled_refuses_transforms_that_change_the_shape() -> None:
    crop = Scheduled(transform=CenterCrop(size=3), stop=0.5)
    with pytest.raises(
        UserError, match=r"switch CenterCrop .* \(2, 4, 4, 1\) into \(2, 3, 3, 1\)"
    ):
        added(crop, 4)


def test_growing_is_linear_from_the_first_to_the_last_step() -> None:
    found = added(Growing(transform=Add(), first=5.0, last=15.0), 11)
    np.testing.assert_allclose(found, np.arange(5.0, 16.0), rtol=1e-6)
    down = added(Growing(transform=Add(), first=30.0, last=0.1), 7)
    np.testing.assert_allclose(down, np.linspace(30, 0.1, 7), rtol=1e-5)
    assert added(Growing(transform=Add(), first=5.0, last=15.0), 1) == [15]


def test_rounding_does_not_lead_beyond_the_ends() -> None:
    for total in range(2, 40):
        growing = Growing(transform=Add(), first=30.0, last=0.1)
        last = growing.at(RunPosition(jnp.int32(total - 1), 1, total))
        assert isinstance(last, Add)
        assert np.float32(0.1) <= last.magnitude < 0.10001


def test_whole_options_grow_in_whole_steps() -> None:
    growing = Growing(transform=Add(magnitude=0.0), field="whole", first=1.0, last=3.0)
    assert added(growing, 9) == [1, 1, 2, 2, 2, 2, 2, 3, 3]
    options.check(growing)
    images, _ = applied(growing, IMAGES, TARGETS)
    np.testing.assert_array_equal(images, 3)


def test_growing_stops_with_its_schedule() -> None:
    growing = Growing(transform=Add(), first=4.0, last=8.0)
    assert added(Scheduled(transform=growing, stop=0.6), 5) == [4, 5, 6, 0, 0]


def test_a_key_is_used_as_if_the_option_were_configured() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 2, 4, 1), dtype=np.uint8)
    targets = np.zeros((50, 2), np.float32)
    growing = Growing(transform=HorizontalFlip(), field="p", first=0.0, last=1.0)
    for step, p in ((0, 0.0), (2, 0.5), (4, 1.0)):
        position = RunPosition(jnp.int32(step), 1, 5)
        found, _ = apply((growing,), jax.random.key(1), images, targets, position)
        expected, _ = applied(HorizontalFlip(p=p), images, targets, seed=1)
        np.testing.assert_array_equal(found, expected)


def test_both_are_random_and_want_the_images_that_their_transform_does() -> None:
    for kind in (Scheduled, Growing):
        assert kind(transform=Add()).random  # type: ignore[operator]
        assert kind(transform=Add()).on_grey_levels
        assert not kind(transform=HorizontalFlip()).on_grey_levels


def test_a_config_holds_both() -> None:
    node = Scheduled(
        transform=Growing(transform=MixUp(), field="alpha", first=0.0, last=0.2),
        stop=0.9,
    )
    options.check(node)
    assert config.from_dict(config.to_dict(node)) == node
    paths = [path for path, _ in config.nodes(node)]
    assert paths == ["", "transform", "transform.transform"]


NAN = math.nan


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        *(
            (
                Scheduled(transform=Add(), start=start, stop=stop),
                said,
            )
            for start, stop, said in (
                (-0.1, 1.0, "Scheduled.start must lie in 0..1, not -0.1"),
                (0.5, 0.5, "start below stop, not 0.5 and 0.5"),
                (0.6, 0.5, "start below stop, not 0.6 and 0.5"),
                (0.0, 1.1, "Scheduled.stop must lie in 0..1, not 1.1"),
                (
                    NAN,
                    1.0,
                    "Scheduled.start must be a number of sensible size, not nan",
                ),
                (0.0, NAN, "Scheduled.stop must be a number of sensible size, not nan"),
            )
        ),
        (Scheduled(transform=Add(magnitude=31.0)), "must lie in 0..30, not 31"),
        (
            Growing(transform=Add(), field="magnitud"),
            "Growing.field is 'magnitud', which is no option of Add. Did you mean "
            "'magnitude'? It has: magnitude, whole, name.",
        ),
        (
            Growing(transform=Add(), field="name"),
            "Growing.field is 'name', but Add.name is 'add': only numbers can grow.",
        ),
        (Growing(transform=Add(), first=-1.0), "must lie in 0..30, not -1.0"),
        (Growing(transform=Add(), last=31.0), "must lie in 0..30, not 31.0"),
        (
            Growing(transform=Add(), first=NAN),
            "Growing.first must be a number of sensible size, not nan",
        ),
        (
            Growing(transform=Add(), last=math.inf),
            "Growing.last must be a number of sensible size, not inf",
        ),
        (
            Growing(transform=RandomCrop(padding=1), field="mode"),
            "RandomCrop.mode is 'constant': only numbers can grow",
        ),
        (
            Growing(transform=CenterCrop(size=3), field="size", first=2.0, last=4.0),
            "CenterCrop.size is part of the compiled program and cannot change",
        ),
        (
            Growing(transform=MixUp(), field="p", first=0.0, last=1.0),
            "MixUp.p is part of the compiled program and cannot change",
        ),
        *(
            (
                Growing(
                    transform=Scheduled(transform=Add()),
                    field=field,
                    first=0.3,
                    last=0.9,
                ),
                f"Scheduled.{field} is part of the compiled program and cannot change",
            )
            for field in ("start", "stop")
        ),
        (
            Growing(transform=Growing(transform=Add()), field="last"),
            "Growing.last is part of the compiled program and cannot change",
        ),
        *(
            (wrapper, f"{type(wrapper).__name__} contains {inner}, ")
            for inner, node in (
                ("Normalize", Normalize(mean=(0.5,), std=(0.5,))),
                ("Staged", Staged(transform=Resize(size=8), values=(4, 8))),
            )
            for wrapper in (
                Scheduled(transform=node, stop=0.5),
                Growing(transform=node, field="values"),
            )
        ),
        (
            Staged(
                transform=Scheduled(transform=Staged(transform=Resize(size=8))),
                field="start",
                values=(0, 0),
            ),
            "Scheduled contains Staged, whose stages would have no effect there",
        ),
    ],
)
def test_values_out_of_range_are_named(transform: Transform, said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(transform)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        Scheduled(transform=Add(), start=0.0, stop=1.0),
        Growing(transform=Add(), first=0.0, last=30.0),
        # A trial of 64 x 64 pixels does not say anything about the images of the run.
        Growing(
            transform=RandomCrop(padding=80, mode="reflect"),
            field="fill",
            first=0.0,
            last=255.0,
        ),
    ],
)
def test_values_at_the_end_of_the_range_are_allowed(transform: Transform) -> None:
    options.check(transform)
