"""Optimizers for large batches: the step of each layer follows the size of its weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcls.optim.optimizers import (
    AdamMoments,
    Links,
    MomentumDtype,
    Optimizer,
    momentum_link,
)
from jaxcls.options import AboveZero, ShareBelowOne


@dataclasses.dataclass(kw_only=True)
class LAMB(AdamMoments):
    """Adam's direction with the decay, scaled in each parameter array to the norm of its weights
    (You et al. 2019, https://arxiv.org/abs/1904.00962, algorithm 2, with the identity as phi;
    timm's Lamb).

        u = Adam's direction + weight_decay * parameter
        parameter <- parameter - rate * |parameter| / |u| * u

    where a norm of 0 leaves u as it is. timm's and apex' also clip the global norm of the
    gradients to 1: put ClipNorm(max_norm=1.0) into the config's clip for that.

    Attributes:
      epsilon: added to the root of the mean square, above 0.
      always_adapt: also scale the parameters that do not decay, biases and norms; otherwise they
        take Adam's step, as in the published recipes. Kernels are scaled with a weight_decay of
        0 too, where timm's Lamb would be Adam.
    """

    epsilon: AboveZero = 1e-6
    always_adapt: bool = False

    def transformation(self, links: Links) -> optax.GradientTransformation:
        trust: optax.GradientTransformation = optax.scale_by_trust_ratio()
        if not self.always_adapt:
            trust = optax.masked(trust, links.decays)
        return optax.chain(self.direction(), links.decay, trust, links.rate)


@dataclasses.dataclass(kw_only=True)
class LARS(Optimizer):
    """SGD with momentum whose rate in each layer follows |weights| / |gradient| (You et al. 2017,
    https://arxiv.org/abs/1708.03888, algorithm 1): the decay belongs to what is scaled, and the
    rate to what the momentum remembers.

        ratio = trust * |parameter| / (|g| + weight_decay * |parameter|)
        v <- momentum * v + rate * ratio * (g + weight_decay * parameter)
        parameter <- parameter - v

    Parameters that do not decay, biases and norms, take ratio 1, as in the published recipes;
    so does a parameter that is 0, which could not leave it otherwise.

    Attributes:
      momentum: share of v that is kept, 0..1.
      trust: the layer's share of its weights that a step may change at rate 1, above 0.
      momentum_dtype: of v; "bfloat16" halves its memory.
    """

    momentum: ShareBelowOne = 0.9
    trust: AboveZero = 0.001
    momentum_dtype: MomentumDtype = "float32"

    def transformation(self, links: Links) -> optax.GradientTransformation:
        scaled = scale_by_layer(links.decay, links.decays, self.trust)
        momentum = momentum_link(self.momentum, self.momentum_dtype)
        return optax.chain(scaled, links.rate, momentum)


def scale_by_layer(
    decay: optax.GradientTransformationExtraArgs,
    adapts: Callable[[Any], Any],
    trust: float,
) -> optax.GradientTransformationExtraArgs:
    """Returns the link g -> ratio * (g + weight_decay * parameter) of LARS.

    Not optax.scale_by_trust_ratio: that divides by |g + weight_decay * parameter|, where the
    paper's equation 6 has the sum of the two norms, which cannot become small when gradient and
    decay pull against each other.

    Args:
      decay: adds the decay to the updates.
      adapts: which parameters are scaled, a tree of bool; others only decay.
      trust: the paper's eta.
    """

    def update(
        gradients: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        zeros = jax.tree.map(jnp.zeros_like, gradients)
        pulls, state = decay.update(zeros, state, params, **extra)

        def scaled(
            g: jax.Array, pull: jax.Array, parameter: jax.Array, adapt: bool
        ) -> jax.Array:
            if not adapt:
                return g + pull
            weights = jnp.linalg.norm(parameter.ravel())
            forces = jnp.linalg.norm(g.ravel()) + jnp.linalg.norm(pull.ravel())
            usable = (weights > 0) & (forces > 0)
            ratio = trust * weights / jnp.where(usable, forces, 1.0)
            return jnp.where(usable, ratio, 1.0) * (g + pull)

        updates = jax.tree.map(scaled, gradients, pulls, params, adapts(params))
        return updates, state

    return optax.GradientTransformationExtraArgs(decay.init, update)
