"""That each image gets one operation, how often each, and that none travels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment.kernels.one_operation import (
    assigned_to_rows,
    drawn_by_rows,
    one_operation_per_image,
)
from jaxcls.errors import UserError
from jaxcls.parallel import batch_sharded, make_mesh, replicated

CALLS = 4200


def marks(count: int) -> list[Any]:
    """Operations that append their number to what is already written in an image."""
    return [
        lambda key, images, number=number: images * 100 + number + 1
        for number in range(count)
    ]


@functools.cache
def written(how: str, batch: int, count: int, rounds: int) -> np.ndarray:
    """What is written in each image after some rounds, [calls, batch]."""
    function = {
        "drawn": drawn_by_rows,
        "assigned": assigned_to_rows,
        "either": one_operation_per_image,
    }[how]

    def one(rng: jax.Array) -> jax.Array:
        images = jnp.zeros((batch, 1, 1, 1))
        for i in range(rounds):
            images = function(jax.random.fold_in(rng, i), images, marks(count))
        return images.reshape(batch)

    keys = jax.random.split(jax.random.key(0), CALLS)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys)).astype(int)


def chi_square(found: np.ndarray, choices: int) -> float:
    """Of the frequencies of 0..choices-1 against equal ones; its expectation is choices - 1."""
    counts = np.bincount(found, minlength=choices)
    assert counts.shape == (choices,)
    expected = len(found) / choices
    return float(((counts - expected) ** 2 / expected).sum())


# (how, batch, operations): rows of a group are 16, but 8 where the batch is 64.
WAYS = [
    ("drawn", 32, 14),
    ("assigned", 32, 14),
    ("assigned", 16, 16),
    ("assigned", 64, 3),
    ("either", 4, 14),  # fewer images than operations
    ("either", 7, 3),  # no groups at all
]


@pytest.mark.parametrize(("how", "batch", "count"), WAYS)
def test_every_image_gets_every_operation_equally_often(
    how: str, batch: int, count: int
) -> None:
    found = written(how, batch, count, 1) - 1
    assert found.min() >= 0  # none is left out
    for row in range(0, batch, max(1, batch // 5)):
        # Six standard deviations of a chi-square variable.
        limit = count - 1 + 6 * np.sqrt(2 * (count - 1))
        assert chi_square(found[:, row], count) < limit, row


@pytest.mark.parametrize(("how", "batch", "count"), [WAYS[0], WAYS[1], WAYS[4]])
def test_all_ordered_pairs_of_operations_are_equally_frequent(
    how: str, batch: int, count: int
) -> None:
    found = written(how, batch, count, 2)
    first, second = found // 100 - 1, found % 100 - 1
    pairs = (first * count + second)[:, :: max(1, batch // 3)]
    for row in pairs.T:
        limit = count**2 - 1 + 6 * np.sqrt(2 * (count**2 - 1))
        assert chi_square(row, count**2) < limit


def test_assigned_rows_are_balanced_and_share_nothing_else() -> None:
    found = written("assigned", 32, 14, 1) - 1
    groups = found.reshape(CALLS, 2, 16)
    # Rows of all groups share their operation.
    np.testing.assert_array_equal(groups[:, 0], groups[:, 1])
    # Every operation has a row in each call.
    assert all(set(range(14)) <= set(call) for call in groups[:200, 0].tolist())


def test_each_row_has_a_key_of_its_own() -> None:
    def noise(key: jax.Array, images: jax.Array) -> jax.Array:
        return images + jax.random.uniform(key, images.shape)

    images = np.zeros((24, 5, 5, 1), np.float32)  # three groups of 8 rows
    for function in (
        lambda rng, images: drawn_by_rows(rng, images, [noise]),
        lambda rng, images: assigned_to_rows(rng, images, [noise] * 8),
        lambda rng, images: assigned_to_rows(rng, images, [noise] * 6),
    ):
        values = np.asarray(jax.jit(function)(jax.random.key(1), images)).ravel()
        assert len(np.unique(values)) == len(values)
        assert abs(np.mean(values) - 0.5) < 0.06


@pytest.mark.parametrize("how", [drawn_by_rows, assigned_to_rows])
def test_eight_devices_give_the_same_and_no_image_travels(how: Any) -> None:
    def noise(scale: float, key: jax.Array, images: jax.Array) -> jax.Array:
        return images + scale * jax.random.uniform(key, images.shape)

    operations = [functools.partial(noise, float(scale)) for scale in range(1, 4)]
    images = np.zeros((64, 3, 3, 1), np.float32)
    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        rows, whole = batch_sharded(mesh), replicated(mesh)
        program = (
            jax.jit(
                lambda rng, images: how(rng, images, operations),
                in_shardings=(whole, rows),
                out_shardings=rows,
            )
            .lower(jax.random.key(0), images)
            .compile()
        )
        for collective in ("all-gather", "all-to-all", "collective-permute"):
            assert collective not in program.as_text()
        key = jax.device_put(jax.random.key(5), whole)
        results.append(np.asarray(program(key, jax.device_put(images, rows))))
    np.testing.assert_array_equal(*results)


def test_a_cpu_draws_and_accelerators_assign() -> None:
    operations = [lambda key, images: jnp.tanh(images)] * 3
    traced = jax.jit(
        lambda rng, images: one_operation_per_image(rng, images, operations)
    ).trace(jax.random.key(0), jnp.zeros((16, 1, 1, 1)))
    for platform, expected in (("cpu", 3), ("cuda", 6), ("tpu", 6)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        # A branch of each operation; where they are assigned, also one row of each.
        assert text.count("stablehlo.tanh") == expected, platform
        assert ("LayoutConstraint" in text) == (platform == "tpu")


def test_no_operations_are_an_error() -> None:
    with pytest.raises(UserError, match="one operation or more"):
        one_operation_per_image(jax.random.key(0), jnp.zeros((4, 2, 2, 1)), [])
