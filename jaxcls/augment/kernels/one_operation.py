"""Gives each image one of several operations, at the cost of one.

jax.vmap over jax.lax.switch computes every branch for every image, and a branch for each image by
itself would be launched thousands of times. Here the batch is seen as groups of rows:

    images [batch, ...] = [groups, rows, ...]

and one operation is applied to row r of all groups, as one array. The data is shuffled, so an
image's row is as good as a draw; which row gets which operation is drawn anew each time. Rows of a
group are neighbours in the batch and lie on one device, so no image travels.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxcls.augment.kernels.platforms import by_platform
from jaxcls.errors import UserError

GROUP_SIZES = (1, 2, 4, 8, 16)
"""How many rows a group may have: enough partners for an image, few enough for one device."""

FEWEST_GROUPS = 8
"""Groups that a batch of 64 or more is split into at least, so that 8 devices share them."""

Operation = Callable[[jax.Array, jax.Array], jax.Array]
"""(random key, images [groups, height, width, channels]) -> images of the same shape."""


def group_rows(batch: int) -> int:
    """Returns how many neighbouring rows of a batch make up a group.

    Operations among the rows of a group keep every image where it is: they lie on one device
    as long as each device holds a multiple of that many rows. It depends on the size of the
    global batch alone, never on the devices, and so does the result.

    Args:
      batch: images in the global batch, 1 or more.

    Returns:
      The largest power of two up to 16 that divides the batch and, if the batch is 64 or
      more, leaves at least 8 groups. 1 for odd batches.
    """
    most = batch if batch < 64 else batch // FEWEST_GROUPS
    return max(rows for rows in GROUP_SIZES if rows <= most and batch % rows == 0)


def one_operation_per_image(
    rng: jax.Array, images: jax.Array, operations: Sequence[Operation]
) -> jax.Array:
    """Gives each image one of several operations, all equally likely.

    On a CPU each row of a group draws its operation, a real branch. Elsewhere a branch would
    keep the host waiting, so each operation is assigned to a row. Either way each image gets
    each operation equally often over time, whatever its row, and calls with different keys are
    independent.

    Args:
      rng: a random key.
      images: [batch, height, width, channels], of any dtype.
      operations: one or more; each takes the images of one row of all groups as float32.

    Returns:
      The images, in their order.
    """
    if not operations:
        raise UserError(
            "one_operation_per_image takes one operation or more, not none."
        )
    drawn = functools.partial(drawn_by_rows, operations=operations)
    assigned = functools.partial(assigned_to_rows, operations=operations)
    if _as_rows(images).shape[1] < len(operations):
        return drawn(rng, images)
    return by_platform(assigned, cpu=drawn)(rng, images)


def drawn_by_rows(
    rng: jax.Array, images: jax.Array, operations: Sequence[Operation]
) -> jax.Array:
    """Lets each row of a group draw its operation, in a loop over rows that is compiled once. Takes
    the arguments of one_operation_per_image."""
    rows = _as_rows(images)
    count = rows.shape[1]
    # Drawn at once: in the loop they would take longer than a cheap operation.
    choice = jax.random.fold_in(rng, count)
    chosen = jax.random.randint(choice, (count,), 0, len(operations))
    keys = jax.random.split(rng, count)

    def update(row: jax.Array, rows: jax.Array) -> jax.Array:
        operation = functools.partial(lax.switch, chosen[row], operations)
        return _update(rows, row, operation, keys[row])

    return lax.fori_loop(0, count, update, rows).reshape(images.shape)


def assigned_to_rows(
    rng: jax.Array, images: jax.Array, operations: Sequence[Operation]
) -> jax.Array:
    """Gives operation k to row k + shift, for a shift drawn anew each time. The rows that are
    left over draw theirs. Takes the arguments of one_operation_per_image, and no more
    operations than rows."""
    keep_layout = by_platform(lambda rows: rows, tpu=_planar)
    rows = _as_rows(images)
    count = rows.shape[1]
    shift = jax.random.randint(jax.random.fold_in(rng, count), (), 0, count)
    for index, operation in enumerate(operations):
        key = jax.random.fold_in(rng, index)
        rows = keep_layout(_update(rows, (index + shift) % count, operation, key))

    def update(index: jax.Array, rows: jax.Array) -> jax.Array:
        which, key = jax.random.split(jax.random.fold_in(rng, index))
        chosen = jax.random.randint(which, (), 0, len(operations))
        operation = functools.partial(lax.switch, chosen, operations)
        return keep_layout(_update(rows, (index + shift) % count, operation, key))

    return lax.fori_loop(len(operations), count, update, rows).reshape(images.shape)


def _planar(rows: jax.Array) -> jax.Array:
    """Keeps [group, row, height, width, channel] in one layout, each channel of an image by
    itself. Otherwise a TPU would turn the whole batch, for each operation, into the layout that
    suits it best, which takes longer than the operation."""
    return with_layout_constraint(rows, Layout(major_to_minor=(0, 1, 4, 2, 3)))


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
    rows: jax.Array, row: jax.Array, operation: Operation, key: jax.Array
) -> jax.Array:
    """Replaces one row of all groups by what an operation makes of it."""
    images = lax.dynamic_index_in_dim(rows, row, axis=1, keepdims=False)
    changed = operation(key, images.astype(jnp.float32)).astype(rows.dtype)
    return lax.dynamic_update_index_in_dim(rows, changed, row, axis=1)
