"""The optimizer: one optax chain over the parameters.

    no gradients where frozen -> clip -> direction, decay and rate, as the optimizer orders them

The rate and the decay are functions of the step, which the train step passes in:
`chain.update(gradients, state, params, step=good_steps)`. No link counts steps for them, so
that resumed runs, and bad steps, which change nothing, need no special care.

In the train step the guard against non-finite steps surrounds the chain, and the average of the
weights (ema.py) follows it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcls.duration import RunLength
from jaxcls.optim.clipping import Clip
from jaxcls.optim.optimizers import Links, Optimizer
from jaxcls.optim.schedules import Schedule
from jaxcls.optim.treatment import Treatment, Treatments


def learning_rate(
    optimizer: Optimizer, schedule: Schedule, run: RunLength
) -> optax.Schedule:
    """Returns the learning rate as a function of the optimizer step, 0 for the first."""
    peak, factor = optimizer.peak(run.batch_size), schedule.factor(run)
    return lambda step: peak * factor(step)


def weight_decay(
    optimizer: Optimizer, schedule: Schedule | None, run: RunLength
) -> optax.Schedule:
    """Returns the weight decay as a function of the optimizer step: the optimizer's, times the
    factor of the schedule if there is one."""
    if schedule is None:
        return lambda step: optimizer.weight_decay
    factor = schedule.factor(run)
    return lambda step: optimizer.weight_decay * factor(step)


def chain(
    optimizer: Optimizer,
    schedule: Schedule,
    *,
    clip: Clip | None,
    treatments: Treatments,
    decay_schedule: Schedule | None,
    run: RunLength,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optax chain; its `update` takes `step`, the good steps made before.

    Args:
      optimizer: what makes an update of gradients.
      schedule: the factor of the peak rate for each step.
      clip: of the gradients of what is trained; None leaves them as they are.
      treatments: what each parameter's rate and decay are multiplied by, and what is frozen.
      decay_schedule: the factor of the weight decay for each step; None keeps it.
      run: the length of the run, total_steps included.

    Raises:
      UserError: if options of `clip`, or in its `init` those of the optimizer, do not fit the
        parameters.
    """
    rate = learning_rate(optimizer, schedule, run)
    strength = weight_decay(optimizer, decay_schedule, run)
    links = Links(
        learning_rate=rate,
        decay=for_each(treatments, decayed, strength)
        if optimizer.weight_decay
        else optax.with_extra_args_support(optax.identity()),
        rate=for_each(treatments, scaled, rate),
        decays=treatments.decays,
    )
    parts = []
    if clip is not None:
        clip.check_treatments(treatments)
        parts.append(clip.link())
    if any(one.thaws_at != 0 for one in treatments.by_path.values()):
        moving = for_each(treatments, unless_frozen, lambda step: step)
        parts = [moving, *parts, with_thaws(optimizer, links, treatments)]
    else:
        parts.append(optimizer.transformation(links))
    whole = optax.with_extra_args_support(optax.chain(*parts))

    def init(params: Any) -> optax.OptState:
        # Only here are all shapes known: the links of a thaw see their own parameters alone.
        optimizer.check_params(params)
        return whole.init(params)

    return optax.GradientTransformationExtraArgs(init, whole.update)


def for_each(
    treatments: Treatments,
    change: Callable[..., jax.Array],
    at: Callable[[jax.Array], Any],
) -> optax.GradientTransformationExtraArgs:
    """Returns a link without a state that changes the update of each parameter.

    Args:
      treatments: of the parameters.
      change: (update, parameter, its treatment, at(step)) -> update.
      at: what the change depends on, a function of the step.
    """

    def update(
        updates: Any, state: Any, params: Any, *, step: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        now = at(step)
        changed = jax.tree.map(
            lambda *each: change(*each, now), updates, params, treatments.of(updates)
        )
        return changed, state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def decayed(
    update: jax.Array, param: jax.Array, treatment: Treatment, strength: Any
) -> jax.Array:
    """Returns update + strength x the parameter's multiplier x the parameter, if it decays."""
    if treatment.decay == 0:
        return update
    return update + jnp.asarray(strength * treatment.decay, update.dtype) * param


def scaled(
    update: jax.Array, param: jax.Array, treatment: Treatment, rate: Any
) -> jax.Array:
    """Returns the update times -rate and the parameter's multiplier."""
    return update * jnp.asarray(-rate * treatment.rate, update.dtype)


def unless_frozen(
    gradient: jax.Array, param: jax.Array, treatment: Treatment, step: jax.Array
) -> jax.Array:
    """Returns the gradient, or zeros, whatever it is, while the parameter is frozen."""
    if treatment.thaws_at == 0:
        return gradient
    zeros = jnp.zeros_like(gradient)
    if math.isinf(treatment.thaws_at):
        return zeros
    return jnp.where(step < treatment.thaws_at, zeros, gradient)


def with_thaws(
    optimizer: Optimizer, links: Links, treatments: Treatments
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, with a state of its own for the parameters of each thaw.

    Those that never thaw have no state, and updates of zero. Those that thaw later have one
    that is as init() made it until then: a shared Adam would already count thousands of steps
    for its bias correction while their moments are still zero, and their first updates would
    be several times too large.
    """

    def part(thaws_at: float) -> optax.GradientTransformation:
        if math.isinf(thaws_at):
            return optax.set_to_zero()
        moving = optimizer.transformation(links)
        return starting_at(thaws_at, moving) if thaws_at else moving

    def names(params: Any) -> Any:
        return jax.tree.map(lambda one: _name(one.thaws_at), treatments.of(params))

    thaws = {one.thaws_at for one in treatments.by_path.values()}
    return optax.partition({_name(thaw): part(thaw) for thaw in thaws}, names)


def _name(thaws_at: float) -> str:
    """Returns the key, in the optimizer's state, of what thaws at a step."""
    return "frozen" if math.isinf(thaws_at) else f"from_step_{thaws_at}"


def starting_at(
    first: float, link: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Returns a link that before the step `first` gives zeros and keeps its state, and from
    then on is `link`."""
    inner = optax.with_extra_args_support(link)

    def update(
        updates: Any, state: Any, params: Any = None, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        # A real branch: before the thaw nothing of the optimizer is computed.
        return jax.lax.cond(
            step >= first,
            lambda: inner.update(updates, state, params, step=step, **extra),
            lambda: (jax.tree.map(jnp.zeros_like, updates), state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)
