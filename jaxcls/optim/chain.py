"""The optimizer: one optax chain over the parameters.

    no gradients where frozen -> clip -> direction, decay and rate, as the optimizer orders them

The rate and the decay are functions of the step, which the train step hands in:
`chain.update(gradients, state, params, step=good_steps)`. No link counts steps for them, so
that a run that is continued, and a bad step that changes nothing, need no care.

The guard against non-finite steps stands around it in the train step, and the average of the
weights (ema.py) after it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcls.duration import RunLength
from jaxcls.optim.clipping import Clip
from jaxcls.optim.groups import Groups
from jaxcls.optim.optimizers import Links, Optimizer
from jaxcls.optim.schedules import Schedule


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
    groups: Groups,
    decay_schedule: Schedule | None,
    run: RunLength,
) -> optax.GradientTransformationExtraArgs:
    """Returns the optax chain; its `update` takes `step`, the good steps made before.

    Args:
      optimizer: what makes an update of gradients.
      schedule: the factor of the peak rate for each step.
      clip: of the gradients of what is trained; None leaves them as they are.
      groups: what each parameter's rate and decay are multiplied by, and what is frozen.
      decay_schedule: the factor of the weight decay for each step; None keeps it.
      run: the length of the run, total_steps included.

    Raises:
      UserError: if options of `clip`, or in its `init` those of the optimizer, do not fit the
        parameters.
    """
    rate = learning_rate(optimizer, schedule, run)
    links = Links(
        learning_rate=rate,
        decay=add_decay(weight_decay(optimizer, decay_schedule, run), groups)
        if optimizer.weight_decay
        else optax.with_extra_args_support(optax.identity()),
        rate=scale_by_rate(rate, groups),
        decays=groups.decays,
    )
    parts = []
    if clip is not None:
        clip.check_groups(groups)
        parts.append(clip.link())
    if any(one.thaws_at != 0 for one in groups.by_path.values()):
        parts = [drop_frozen(groups), *parts, in_stages(optimizer, links, groups)]
    else:
        parts.append(optimizer.transformation(links))
    whole = optax.with_extra_args_support(optax.chain(*parts))

    def init(params: Any) -> optax.OptState:
        # Here because only here are all shapes known: a link in stages sees some of them.
        optimizer.check_params(params)
        return whole.init(params)

    return optax.GradientTransformationExtraArgs(init, whole.update)


def add_decay(
    strength: optax.Schedule, groups: Groups
) -> optax.GradientTransformationExtraArgs:
    """Returns a link that adds strength(step) x the parameter's multiplier x the parameter to
    the updates of those that decay."""

    def update(
        updates: Any, state: Any, params: Any, *, step: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        now = strength(step)

        def decayed(change: jax.Array, param: jax.Array, treatment: Any) -> jax.Array:
            if treatment.decay == 0:
                return change
            return change + jnp.asarray(now * treatment.decay, change.dtype) * param

        return jax.tree.map(decayed, updates, params, groups.of(updates)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def scale_by_rate(
    rate: optax.Schedule, groups: Groups
) -> optax.GradientTransformationExtraArgs:
    """Returns a link that multiplies updates by -rate(step) and the parameter's multiplier."""

    def update(
        updates: Any, state: Any, params: Any = None, *, step: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        del params
        now = rate(step)

        def scaled(change: jax.Array, treatment: Any) -> jax.Array:
            return change * jnp.asarray(-now * treatment.rate, change.dtype)

        return jax.tree.map(scaled, updates, groups.of(updates)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def drop_frozen(groups: Groups) -> optax.GradientTransformationExtraArgs:
    """Returns a link that puts zeros, for whatever there is, in the place of the gradients of
    parameters that are frozen at this step."""

    def update(
        updates: Any, state: Any, params: Any = None, *, step: jax.Array, **_: Any
    ) -> tuple[Any, Any]:
        del params

        def kept(gradient: jax.Array, treatment: Any) -> jax.Array:
            if treatment.thaws_at == 0:
                return gradient
            zeros = jnp.zeros_like(gradient)
            if treatment.thaws_at is None:
                return zeros
            return jnp.where(step < treatment.thaws_at, zeros, gradient)

        return jax.tree.map(kept, updates, groups.of(updates)), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def in_stages(
    optimizer: Optimizer, links: Links, groups: Groups
) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer, with a state of its own for the parameters of each thaw.

    Those that never thaw have no state, and updates of zero. Those that thaw later have one
    that is as init() made it until then: a shared Adam would already count thousands of steps
    for its bias correction while their moments are still zero, and their first updates would
    be several times too large.
    """
    thaws = {one.thaws_at for one in groups.by_path.values()}
    parts: dict[str, optax.GradientTransformation] = {}
    for first in thaws:
        if first is None:
            parts[_stage_name(first)] = optax.set_to_zero()
        else:
            moving = optimizer.transformation(links)
            parts[_stage_name(first)] = starting_at(first, moving) if first else moving
    return optax.partition(
        parts,
        lambda params: jax.tree.map(
            lambda one: _stage_name(one.thaws_at), groups.of(params)
        ),
    )


def _stage_name(first: int | None) -> str:
    """Returns the key, in the optimizer's state, of what thaws at a step."""
    return "frozen" if first is None else f"from_step_{first}"


def starting_at(
    first: int, link: optax.GradientTransformation
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
