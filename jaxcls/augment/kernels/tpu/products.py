"""Pixels and table entries picked by products with zeros and ones.

Whole numbers up to 256 are exact in bfloat16, and so are the products: one term alone of each
sum is not 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def pick_pixels(
    images: jax.Array, columns: Sequence[jax.Array], rows: Sequence[jax.Array]
) -> list[list[jax.Array]]:
    """Picks the pixel's column, in all rows, by a product, then its row by a sum: pillow_warp's
    pick_pixels."""
    _, height, width, _ = images.shape
    levels = images.astype(jnp.bfloat16)

    def line(places: tuple[list[jax.Array], list[jax.Array]]) -> list[list[jax.Array]]:
        """Picks one row of the result: all rows of the intermediate array would be too large."""
        columns, rows = places
        picked = [
            jax.nn.one_hot(column, width, dtype=levels.dtype) for column in columns
        ]
        in_columns = [jnp.einsum("bxw,bhwc->bxhc", pick, levels) for pick in picked]
        places_in_rows = jnp.arange(height)[:, None]
        return [
            [
                jnp.where(row[..., None, None] == places_in_rows, lines, 0).sum(2)
                for lines in in_columns
            ]
            for row in rows
        ]

    def by_line(places: Sequence[jax.Array]) -> list[jax.Array]:
        return [jnp.moveaxis(place, 1, 0) for place in places]

    found = jax.lax.map(line, (by_line(columns), by_line(rows)))
    return jax.tree.map(
        lambda pixels: jnp.moveaxis(pixels, 0, 1).astype(images.dtype), found
    )


def shift_images(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Moves all rows of an image alike, with zeros for pixels that are not in the image:
    pillow_warp's shift_images."""
    width = images.shape[2]
    source = shift[:, None] + jnp.arange(width)
    chosen = jax.nn.one_hot(source, width, dtype=jnp.bfloat16)
    levels = images.astype(jnp.bfloat16)
    return jnp.einsum("bxw,bhwc->bhxc", chosen, levels).astype(images.dtype)


def histogram(levels: jax.Array) -> jax.Array:
    """Counts the pixels of each level: pillow_color's histogram.

    A level is 16 * high + low: the counts of all pairs are a product of two matrices that say
    which high and which low each pixel has.
    """
    counts = jnp.einsum(
        "bhnc,blnc->bchl",
        _is_one_of_16(levels // 16),
        _is_one_of_16(levels % 16),
        preferred_element_type=jnp.float32,
    )
    return counts.reshape(*counts.shape[:2], 256).astype(jnp.int32)


def look_up(table: jax.Array, levels: jax.Array) -> jax.Array:
    """Replaces each level by its entry in a table: pillow_color's look_up.

    A level is 16 * high + low: a product picks the 16 entries with that high, a masked sum
    the one of these with that low.
    """
    rows = jnp.einsum(
        "bchl,bhnc->blnc",
        table.reshape(*table.shape[:2], 16, 16).astype(jnp.bfloat16),
        _is_one_of_16(levels // 16),
        preferred_element_type=jnp.float32,
    )
    return (rows * _is_one_of_16(levels % 16)).sum(1)


def _is_one_of_16(values: jax.Array) -> jax.Array:
    """Returns bfloat16 [batch, 16, pixels, channels]: 1 where a value is that number."""
    numbers = jnp.arange(16)[:, None, None]
    return (values[:, None] == numbers).astype(jnp.bfloat16)
