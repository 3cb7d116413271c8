"""Training without a schedule: the average of the weights takes the place of a falling rate."""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from annotated_types import Interval

from jaxcls.optim.optimizers import Links, Optimizer
from jaxcls.options import AboveZero, ShareBelowOne


class ScheduleFreeState(NamedTuple):
    """What the averaging remembers.

    Attributes:
      lead: z - y of the paper, a tree like the parameters (which are y): how far the steps are
        ahead of where the gradients are taken. Kept in place of z itself so that it is 0 at the
        start whatever the parameters are, or are later replaced by.
      max_rate: largest rate so far, float32 scalar.
      weights: sum of the squares of max_rate over the steps, float32 scalar.
    """

    lead: Any
    max_rate: jax.Array
    weights: jax.Array


@dataclasses.dataclass(kw_only=True)
class ScheduleFreeAdamW(Optimizer):
    """AdamW whose momentum is replaced by averaging, so that the length of the run need not be
    known (Defazio et al. 2024, https://arxiv.org/abs/2405.15682, algorithm 1). It wants the
    schedule Constant with a warm-up, and a rate 1 to 10 times AdamW's.

        u = g / (root of mean square + epsilon) + weight_decay * y     (g is taken at y)
        z <- z - rate * u;   x <- (1 - c) x + c z;   y <- (1 - beta1) z + beta1 x

    The parameters of the training state are y; evaluation takes x. c is the step's share of the
    sum of the squared rates, each counted as the largest rate so far. Batch statistics of x
    are not those of y: for a network with batch norm, re-estimate them before relying on x.

    Attributes:
      beta1: share of x in y, where gradients are taken, 0..1 and above 0.
      beta2: share that the mean of the squared gradients keeps, 0..1.
      epsilon: added to the root of the mean square, above 0.
    """

    beta1: Annotated[float, Interval(gt=0, lt=1)] = 0.9
    beta2: ShareBelowOne = 0.999
    epsilon: AboveZero = 1e-8

    averages: ClassVar[bool] = True

    def transformation(self, links: Links) -> optax.GradientTransformation:
        root = optax.scale_by_rms(
            decay=self.beta2, eps=self.epsilon, eps_in_sqrt=False, bias_correction=True
        )
        averaging = follow_average(links.learning_rate, self.beta1)
        return optax.chain(root, links.decay, links.rate, averaging)

    def average(self, opt_state: optax.OptState, params: Any) -> Any:
        """Returns x = y - (1 / beta1 - 1) (z - y); frozen parameters as they are.

        Args:
          opt_state: the state of the chain. There may be several ScheduleFreeStates in it, each
            for some of the parameters, with optax.MaskedNode in place of the others.
          params: y.
        """

        def is_ours(node: Any) -> bool:
            return isinstance(node, ScheduleFreeState)

        def averaged(y: jax.Array, lead: Any) -> jax.Array:
            if isinstance(lead, optax.MaskedNode):
                return y
            return y - (1 / self.beta1 - 1) * lead

        for state in filter(is_ours, jax.tree.leaves(opt_state, is_leaf=is_ours)):
            params = jax.tree.map(averaged, params, state.lead)
        return params


def follow_average(
    learning_rate: optax.Schedule, beta1: float
) -> optax.GradientTransformationExtraArgs:
    """Returns the link that makes of a step of z the step of y.

    With d = -rate * u, the paper's three lines come to

        y <- y + c (z - y) + (1 - beta1 (1 - c)) d;   z - y <- (1 - c) ((z - y) + beta1 d)

    The rate's multiplier of a group would scale every one of its weights alike: c is the same.
    z - y forgets ever more slowly, unlike a momentum: in bfloat16 it would soon round off all
    that is added to it, so that it has no dtype of its own.

    Args:
      learning_rate: the rate at a step, whose square is the weight in the average.
      beta1: share of x in y.
    """

    def init(params: Any) -> ScheduleFreeState:
        lead = optax.tree.zeros_like(params)
        return ScheduleFreeState(lead, jnp.float32(0), jnp.float32(0))

    def update(
        steps: Any, state: ScheduleFreeState, params: Any = None, *, step: Any, **_: Any
    ) -> tuple[Any, ScheduleFreeState]:
        max_rate = jnp.maximum(state.max_rate, learning_rate(step)).astype(jnp.float32)
        weights = state.weights + max_rate**2
        # Before the first step with a rate above 0 there is nothing to average.
        c = jnp.where(weights > 0, max_rate**2 / weights, 1.0)
        updates = jax.tree.map(
            lambda d, lead: c * lead + (1 - beta1 * (1 - c)) * d, steps, state.lead
        )
        lead = jax.tree.map(
            lambda d, lead: (1 - c) * (lead + beta1 * d), steps, state.lead
        )
        return updates, ScheduleFreeState(lead, max_rate, weights)

    return optax.GradientTransformationExtraArgs(init, update)
