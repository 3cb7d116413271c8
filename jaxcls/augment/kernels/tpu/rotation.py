"""Rotates images by whole pixels ("nearest") without taking single pixels.

Pixel (x, y) of the result comes from one row and one column of the original, the whole parts of

    row    = (down.start + down.right * x + down.down * y) / 2^16
    column = (across.start + across.right * x + across.down * y) / 2^16

A rotation of at most 45 degrees takes two steps: pixels move to their columns, then to their
rows. A larger one begins with quarter turns. Each step rolls every line by a number of its own (a
shear) and then moves all lines of an image alike, by a product with zeros and ones. The whole
part of a sum may exceed the sum of the whole parts by a little: the products fetch all pixels in
question, and selects choose among them.
"""

import jax
import jax.numpy as jnp

from jaxcls.augment.kernels.places import ONE, Places
from jaxcls.augment.kernels.tpu.packed_pixels import move_packed, roll


def rotate(
    images: jax.Array, degrees: jax.Array, across: Places, down: Places
) -> jax.Array:
    """Copies the pixels of a rotation: pillow_warp's copy_rotated.

    Args:
      images: float32 [batch, height, width, channels], whole values 0..255.
      degrees: float32 [batch], counter-clockwise: the angle of the places.
      across: columns of the original.
      down: rows of the original.

    Returns:
      float32 of the same shape; any values where a place lies outside of the image.
    """

    def move(packed: jax.Array) -> jax.Array:
        _, height, width = packed.shape
        canvas, *places = _within_45_degrees(packed, degrees, across, down)
        return _to_rows(_to_columns(canvas, width, *places), height, places[1])

    return move_packed(move, images)


def _to_columns(
    canvas: jax.Array, width: int, across: Places, down: Places
) -> jax.Array:
    """Moves the pixels of each row of the original to their columns in the result.

    In one column, at most two rows of the result show the same row of the original. They are
    neighbours: an even one and an odd one.

    Args:
      canvas: int32 [batch, size, size].
      width: of the result.
      across: columns of the original.
      down: rows of the original.

    Returns:
      int32 [batch, 2, size, width]: what row r of the original shows in column x of the even
      and of the odd row of the result in which it is seen.
    """
    size = canvas.shape[1]
    x, r = jnp.arange(width), jnp.arange(size)[:, None]
    right, step, start = (part.reshape(-1, 1, 1) for part in down)
    first = -((start + right * x - r * ONE) // step)  # rounded up
    even = first + (first & 1)
    odd = first + 1 - (first & 1)

    # With `exact`, the place in the result where a row begins, as a function of r and x, the
    # column is
    #   across.start + across.right * x + across.down * (exact + e)
    #   = [a function of r] + [a function of x] + across.down * (e - 1),  0 <= e < 2.
    # Of two whole parts and a number in -0.71..0.71, that makes -1, 0, 1 or 2 more.
    columns, rows = (
        Places(*(part[:, None].astype(jnp.float32) for part in places))
        for places in (across, down)
    )
    slope = columns.down / rows.down
    begin = columns.start + columns.down - slope * rows.start
    stretch = columns.right - slope * rows.right
    lean = jnp.floor(slope * jnp.arange(size)).astype(jnp.int32)
    about = jnp.floor((begin + stretch * x) / ONE).astype(jnp.int32)
    candidates = _taken(
        "bjxk,brk->jbrx",
        (about[:, None] + jnp.arange(-1, 3)[:, None]) % size,
        roll(canvas, lean, axis=2),
    )
    expected = lean[:, :, None] + about[:, None]

    def shown(y: jax.Array) -> jax.Array:
        more = across.at(x, y) - expected
        chosen = jnp.where(more == 1, candidates[2], candidates[3])
        chosen = jnp.where(more == 0, candidates[1], chosen)
        return jnp.where(more == -1, candidates[0], chosen)

    return jnp.stack([shown(even), shown(odd)], axis=1)


def _to_rows(lines: jax.Array, height: int, down: Places) -> jax.Array:
    """Moves what _to_columns returns to its rows in the result, int32 [batch, height, width]."""
    batch, _, size, width = lines.shape
    x, y = jnp.arange(width), jnp.arange(height)
    right, step, start = (part[:, None] for part in down)
    # The row is `lean + about`, or 1 more.
    lean, about = right * x >> 16, start + step * y >> 16
    both = jnp.broadcast_to(lean[:, None], (batch, 2, width))
    lines = roll(lines, both, axis=2).reshape(batch, 2 * size, width)
    expected_row, next_row = _taken(
        "bjyk,bkx->jbyx",
        (about[:, None] + jnp.arange(2)[:, None]) % size + y % 2 * size,
        lines,
    )
    expected = lean[:, None] + about[:, :, None]
    return jnp.where(down.at(x, y[:, None]) == expected, expected_row, next_row)


def _taken(equation: str, places: jax.Array, values: jax.Array) -> list[jax.Array]:
    """Returns the values at places along the axis "k" of an equation of einsum, as a list along
    its axis "j". Exact, because one term alone of each sum is not 0."""
    size = values.shape[equation.split("->")[0].split(",")[1].index("k")]
    found = jnp.einsum(
        equation,
        jax.nn.one_hot(places, size),
        values.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return list(found.astype(jnp.int32))


def _within_45_degrees(
    packed: jax.Array, degrees: jax.Array, across: Places, down: Places
) -> tuple[jax.Array, Places, Places]:
    """Gives each image the quarter turns that leave at most 45 degrees.

    Returns:
      int32 [batch, size, size] with size = max(height, width), and the places on it.
    """
    _, height, width = packed.shape
    size = max(height, width)
    canvas = jnp.pad(packed, ((0, 0), (0, size - height), (0, size - width)))
    flipped = canvas.swapaxes(1, 2)
    quarters = jnp.round(degrees / 90).astype(jnp.int32) % 4
    at = quarters.reshape(-1, 1, 1)
    canvas = jnp.select(
        [at == 0, at == 1, at == 2],
        [canvas, flipped[:, ::-1], canvas[:, ::-1, ::-1]],
        flipped[:, :, ::-1],
    )

    def choose(*choices: Places) -> Places:
        conditions = [quarters == quarter for quarter in range(3)]
        parts = zip(*choices, strict=True)
        return Places(*(jnp.select(conditions, part[:3], part[3]) for part in parts))

    left, up = across.mirrored(size), down.mirrored(size)
    return canvas, choose(across, down, left, up), choose(down, left, up, across)
