"""Statistics of batch norms over many images, with the weights as they are ("precise batch
norm": Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", https://arxiv.org/abs/2105.07576,
section 3).

The running statistics are an exponential average of what the norms saw while the weights were
still moving, and averaged weights never saw a batch at all. Here the weights stay, some batches
pass, and mean and variance become those of all of their values.

    parts = [moments_step(variables, batch, model=..., ...) for batch in batches]
    batch_stats = from_moments(variables["batch_stats"], parts)
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxcls.augment import Transform
from jaxcls.errors import UserError
from jaxcls.inference.forward import apply_deterministic

Moments = dict[str, Any]
"""The collection "moments": at the path of each batch norm "mean" and "mean_square", float32
[channels], and "count", float32 []: the values in each channel that they are of."""


def moments_step(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    transforms: Sequence[Transform],
) -> Moments:
    """Returns what the batch norms of a network see in one batch.

    The network computes as in training, so that every norm normalises by the batch, but without
    dropout and stochastic depth, which evaluation does not have either. What follows a norm
    then is distributed as in training with a batch of this size (the paper's section 3.1):
    take batches as large as those of training, and images of training.

    Args:
      variables: "params" and "batch_stats" of the network; norms in "frozen", if there is that
        collection, are left out.
      batch: "image" uint8 [batch, height, width, channels], "label", and "mask" bool [batch].
        The black image of a row without one would take part in the statistics, therefore a
        batch with such a row counts for nothing: its moments are 0 of 0 values.
      model: the network.
      transforms: deterministic, ending in normalised floats.
    """
    images = apply_deterministic(transforms, batch["image"])
    _, updated = without_noise(model).apply(
        variables, images, train=True, mutable=["batch_stats", "moments"]
    )
    is_full = batch["mask"].all()
    moments = updated.get("moments", {})
    return jax.tree.map(lambda leaf: jnp.where(is_full, leaf, 0), dict(moments))


def without_noise(model: nn.Module) -> nn.Module:
    """Returns the network without dropout and stochastic depth."""
    noise = ("dropout", "aux_dropout", "drop_path")
    none: dict[str, Any] = {name: 0.0 for name in noise if hasattr(model, name)}
    return model.clone(**none)


def from_moments(batch_stats: Any, parts: Sequence[Moments]) -> dict[str, Any]:
    """Returns the statistics of all values that the batch norms saw.

    The mean is that of all batches, each weighted with its values; the variance is
    E[x^2] - E[x]^2 over all of them, unbiased as that of our running statistics, n / (n - 1)
    of it. Batches are added up in float64.

    Args:
      batch_stats: of the network; norms without moments (frozen ones) keep theirs.
      parts: of moments_step, one for each batch.

    Returns:
      `batch_stats` with other values, NumPy float32.

    Raises:
      UserError: if no batch was full.
    """
    summed = [
        traverse_util.flatten_dict(dict(part)) for part in jax.device_get(list(parts))
    ]
    result = dict(traverse_util.flatten_dict(dict(jax.device_get(batch_stats))))
    norms = {path[:-1] for part in summed for path in part}
    for norm in norms:
        counts, means, mean_squares = (
            np.array([part[(*norm, name)] for part in summed], np.float64)
            for name in ("count", "mean", "mean_square")
        )
        total = counts.sum()
        if not total:
            raise UserError(
                f"none of {len(summed)} batches has an image in every row: the statistics of "
                "batch norms need full batches. Make batch_size smaller."
            )
        mean = counts @ means / total
        variance = np.maximum(counts @ mean_squares / total - mean**2, 0)
        unbiased = variance * total / max(total - 1, 1)
        result[(*norm, "mean")] = np.float32(mean)
        result[(*norm, "var")] = np.float32(unbiased)
    return traverse_util.unflatten_dict(result)
