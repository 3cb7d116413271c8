"""One operation for each image, at the cost of one.

jax.vmap over jax.lax.switch computes every branch for every image, and a branch for each image by
itself would be launched thousands of times. Here the batch is seen as groups of rows:

    images [batch, ...] = [groups, rows, ...]

and row r of all groups is given one operation, as one array. The data is shuffled, so an image's
row is as good as a draw; which row gets which operation is drawn anew each time. Rows of a
group are neighbours in the batch and lie on one device (jaxcls/augment/groups.py), so no
image travels.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxcls.augment.kernels.groups import group_rows
from jaxcls.errors import UserError

Row = Callable[[jax.Array, jax.Array], jax.Array]
"""(random key, images [groups, height, width, channels]) -> images of the same shape."""


def for_rows(rng: jax.Array, images: jax.Array, function: Row) -> jax.Array:
    """Applies a function to row after row, in a loop that is compiled once.

    Args:
      rng: a random key; each row gets its own from it.
      images: [batch, height, width, channels], of any dtype.
      function: applied to the images of one row of all groups, as float32.
    """
    rows = _as_rows(images)
    keys = jax.random.split(rng, rows.shape[1])
    rows = lax.fori_loop(
        0,
        rows.shape[1],
        lambda row, rows: _update(rows, row, function, keys[row]),
        rows,
    )
    return rows.reshape(images.shape)


def deal(rng: jax.Array, images: jax.Array, operations: Sequence[Row]) -> jax.Array:
    """Gives each image one of several operations, all equally likely.

    On a CPU each row of a group draws its operation, a real branch. Elsewhere a branch would
    keep the host waiting, and each operation belongs to a row. In either case each image gets
    each operation equally often over time, whatever its row, and two calls with two keys are
    independent.

    Args:
      rng: a random key.
      images: [batch, height, width, channels], of any dtype.
      operations: what may be done to a row, which is given to them as float32; one or more.

    Returns:
      The images, in their order.
    """
    if not operations:
        raise UserError("deal takes one operation or more, not none.")
    if _as_rows(images).shape[1] < len(operations):
        return drawn(rng, images, operations)
    return lax.platform_dependent(
        rng,
        images,
        cpu=lambda rng, images: drawn(rng, images, operations),
        tpu=lambda rng, images: dealt(rng, images, operations, planes=True),
        default=lambda rng, images: dealt(rng, images, operations),
    )


def drawn(rng: jax.Array, images: jax.Array, operations: Sequence[Row]) -> jax.Array:
    """Each row of a group draws its operation. Arguments as of deal."""
    rows = _as_rows(images)
    count = rows.shape[1]
    # Drawn at once: in the loop they would take longer than a cheap operation.
    chosen = jax.random.randint(
        jax.random.fold_in(rng, count), (count,), 0, len(operations)
    )
    keys = jax.random.split(rng, count)

    def one(row: jax.Array, rows: jax.Array) -> jax.Array:
        return _update(
            rows,
            row,
            lambda key, images: lax.switch(chosen[row], operations, key, images),
            keys[row],
        )

    return lax.fori_loop(0, count, one, rows).reshape(images.shape)


def dealt(
    rng: jax.Array,
    images: jax.Array,
    operations: Sequence[Row],
    *,
    planes: bool = False,
) -> jax.Array:
    """Operation k belongs to row k + shift, for a shift drawn anew each time; the rows that are
    left over draw theirs. Arguments as of deal, with no more operations than rows.

    With `planes` the batch keeps one layout in memory, each channel of an image by itself. On a
    TPU each operation would otherwise have the whole batch turned into the layout that suits it
    best, which takes longer than the operation.
    """

    def update(
        rows: jax.Array, row: jax.Array, function: Row, key: jax.Array
    ) -> jax.Array:
        rows = _update(rows, row, function, key)
        # Of [group, row, height, width, channel].
        planar = Layout(major_to_minor=(0, 1, 4, 2, 3))
        return with_layout_constraint(rows, planar) if planes else rows

    rows = _as_rows(images)
    count = rows.shape[1]
    shift = jax.random.randint(jax.random.fold_in(rng, count), (), 0, count)
    for index, operation in enumerate(operations):
        key = jax.random.fold_in(rng, index)
        rows = update(rows, (index + shift) % count, operation, key)

    def left_over(index: jax.Array, rows: jax.Array) -> jax.Array:
        which, key = jax.random.split(jax.random.fold_in(rng, index))
        chosen = jax.random.randint(which, (), 0, len(operations))
        return update(
            rows,
            (index + shift) % count,
            lambda key, images: lax.switch(chosen, operations, key, images),
            key,
        )

    rows = lax.fori_loop(len(operations), count, left_over, rows)
    return rows.reshape(images.shape)


def _as_rows(images: jax.Array) -> jax.Array:
    """Views [batch, ...] as [groups, rows, ...]."""
    batch = len(images)
    rows = group_rows(batch)
    if rows < 8:
        # A batch that is no multiple of 8 has other groups, or each image a row of its own:
        # few rows would mean few different operations.
        rows = max((r for r in range(8, 17) if batch % r == 0), default=batch)
    return images.reshape(-1, rows, *images.shape[1:])


def _update(
    rows: jax.Array, row: jax.Array, function: Row, key: jax.Array
) -> jax.Array:
    """Replaces one row of all groups by what a function makes of it."""
    images = lax.dynamic_index_in_dim(rows, row, axis=1, keepdims=False)
    changed = function(key, images.astype(jnp.float32)).astype(rows.dtype)
    return lax.dynamic_update_index_in_dim(rows, changed, row, axis=1)
