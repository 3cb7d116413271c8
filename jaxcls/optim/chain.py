"""The optimizer: one optax chain over the parameters, and the average that follows it.

    clip by global norm -> direction -> decoupled decay of kernels -> rate        (chain)
    -> exponential moving average of parameters and batch statistics              (ema_update)

The average is a function of its own, the last link, because it also takes the batch
statistics, which an optax chain never sees. The guard against non-finite steps stands around
all of it, in the train step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcls.duration import RunLength
from jaxcls.optim import masks
from jaxcls.optim.optimizers import Optimizer
from jaxcls.optim.schedules import Schedule


def learning_rate(
    optimizer: Optimizer, schedule: Schedule, run: RunLength
) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step, 0 for the first."""
    factor = schedule.factor(run)
    return lambda step: optimizer.learning_rate * factor(step)


def chain(
    optimizer: Optimizer,
    schedule: Schedule,
    clip_norm: float | None,
    run: RunLength,
) -> optax.GradientTransformation:
    """Returns the optax chain: clip -> direction -> decay -> rate.

    Args:
      optimizer: gives the direction, the peak rate and the decay.
      schedule: the factor of the peak for each step.
      clip_norm: largest global norm of the gradients, above 0; None does not clip.
      run: the length of the run, total_steps included.
    """
    links = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    links.append(optimizer.direction())
    if optimizer.weight_decay:
        links.append(
            optax.add_decayed_weights(optimizer.weight_decay, mask=masks.decayed)
        )
    rate = learning_rate(optimizer, schedule, run)
    return optax.chain(*links, optax.scale_by_learning_rate(rate))


def ema_decay(decay: float, step: jax.typing.ArrayLike) -> jax.Array:
    """Returns min(decay, (1 + t) / (10 + t)): the average forgets its start quickly and then
    slowly (the num_updates rule of TensorFlow's ExponentialMovingAverage).

    Args:
      decay: the final share of the old average, 0..1.
      step: t, optimizer steps made before this one.
    """
    t = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + t) / (10 + t))


def ema_update(average: Any, values: Any, decay: jax.Array) -> Any:
    """Returns decay * average + (1 - decay) * values for each float32 leaf.

    Written as a step towards the values, so that equal trees stay exactly equal.
    """
    return jax.tree.map(
        lambda old, new: old + (1 - decay) * (new.astype(jnp.float32) - old),
        average,
        values,
    )
