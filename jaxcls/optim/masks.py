"""Which parameters a link of the chain touches."""

from typing import Any

import jax


def decayed(params: Any) -> Any:
    """Returns a tree like `params` of bools: True for kernels (two dimensions or more), which
    decay; False for biases and norm parameters, which do not (Goyal et al. 2017, section 5.3,
    https://arxiv.org/abs/1706.02677, leave out those of batch norm)."""
    return jax.tree.map(lambda leaf: len(leaf.shape) > 1, params)
