"""A number for the content of each array: Orbax has no checksum of its data."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.jit
def _fingerprints(leaves: list[jax.Array]) -> jax.Array:
    """Returns a sum over the bits of each array, uint32 [arrays].

    Each 32-bit word is mixed (two rounds of xor-shift and an odd factor) and weighted with
    the odd number 2 i + 1 of its place i, modulo 2**32: any one changed bit changes the sum,
    and so does nearly every other damage. Whole numbers: the result does not depend on how
    an array is spread over devices.
    """

    def of(leaf: jax.Array) -> jax.Array:
        if leaf.dtype != jnp.bool_:
            size = leaf.dtype.itemsize * 8
            leaf = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{size}"))
        words = leaf.astype(jnp.uint32).reshape(-1)
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
            words = (words ^ (words >> shift)) * jnp.uint32(factor)
        weights = 2 * jnp.arange(words.size, dtype=jnp.uint32) + 1
        return (words * weights).sum(dtype=jnp.uint32)

    return jnp.stack([of(leaf) for leaf in leaves])


def fingerprints(tree: Any) -> dict[str, int]:
    """Returns path -> a number that changes with the content, for each array of a tree."""
    named = named_leaves(tree)
    values = jax.device_get(_fingerprints([leaf for _, leaf in named]))
    return {name: int(value) for (name, _), value in zip(named, values, strict=True)}


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Returns (path, leaf) for each array; dataclasses, named tuples and dicts make like paths."""
    return [
        (
            "/".join(
                str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
                for key in path
            ),
            leaf,
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
