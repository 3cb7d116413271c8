"""All that changes in training, in one tree: it is what a checkpoint holds."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxcls.metrics import TrainMetrics


@flax.struct.dataclass
class TrainState:
    """The state of a run between two steps. All floats are float32.

    Attributes:
      step: steps made, bad ones included, int32. It alone places the run in the order of the
        data and in the stream of random numbers.
      bad_steps: steps that changed nothing: not finite, or without any image, int32.
      bad_in_a_row: steps that were not finite since the last good one, int32.
      params: the parameters.
      batch_stats: running statistics of the batch norms; {} for a network without.
      opt_state: state of the optax chain.
      ema: {"params", "batch_stats"} averaged over the steps, or None.
      metrics: sums since the last line of training metrics, so that an interval that was
        interrupted goes on where it stopped.
    """

    step: jax.Array
    bad_steps: jax.Array
    bad_in_a_row: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any
    metrics: TrainMetrics

    def variables(self) -> dict[str, Any]:
        """Returns the network's variables, as `model.apply` takes them."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    seed: int,
    with_ema: bool,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      model: the network.
      optimizer: the optax chain.
      image_shape: of the network's input, (1, height, width, channels).
      seed: of the initial weights.
      with_ema: whether to keep an average of the weights.
    """
    # Stream 0 of the seed initialises; the train step takes the others.
    rng = jax.random.fold_in(jax.random.key(seed), 0)
    variables = model.init(rng, jnp.zeros(image_shape), train=False)
    batch_stats = variables.get("batch_stats", {})
    weights = {"params": variables["params"], "batch_stats": batch_stats}
    return TrainState(
        step=jnp.int32(0),
        bad_steps=jnp.int32(0),
        bad_in_a_row=jnp.int32(0),
        **weights,
        opt_state=optimizer.init(weights["params"]),
        # Copied, because a donated state may not hold one buffer twice.
        ema=jax.tree.map(jnp.copy, weights) if with_ema else None,
        metrics=TrainMetrics.empty(),
    )
