"""The train step and the eval step: pure functions of (state, batch).

Everything that does not change in a run is bound once, by keyword, where they are jitted
(training/program.py).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcls import augment
from jaxcls.augment import Moment, Transform, Views
from jaxcls.duration import RunLength
from jaxcls.optim.chain import ema_decay as decay_at
from jaxcls.optim.chain import ema_update
from jaxcls.training.loss import SoftmaxCrossEntropy
from jaxcls.training.metrics import EvalMetrics, eval_metrics, train_metrics
from jaxcls.training.state import TrainState

# Streams of random numbers within a step.
AUGMENT, DROPOUT = 0, 1


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    transforms: Sequence[Transform],
    loss: SoftmaxCrossEntropy,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema_decay: float | None,
    num_classes: int,
    seed: int,
    max_bad_steps: int,
    run: RunLength,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes one step of training.

    A step whose loss, gradients, statistics or update are not finite changes nothing but the
    counters of the state. After `max_bad_steps` of them in a row no step changes anything any
    more, however late the host looks. A step without any image changes nothing either, and
    counts among the bad steps but not among those in a row.

    A masked row has no target, so its loss is zero, and an image that is mixed with it loses
    that part of its target. The loss of the batch is the sum over the rows divided by the
    number of those with an image. The black image of a masked row does take part in the
    statistics of batch norms.

    Args:
      state: the state before the step.
      batch: "image" uint8 [batch, height, width, channels], "label" int32 [batch], over all
        devices, and "mask" bool [batch], False for rows without an image.
      model: the network. The losses of auxiliary heads, if it sows any "aux_logits", join the
        loss with its `aux_weight`; the metrics are of the main logits alone.
      transforms: augmentation, ending in normalised floats.
      loss: the loss of each image.
      optimizer: the optax chain.
      learning_rate: the rate that the chain follows, only reported here.
      ema_decay: of the average of the weights; None keeps no average.
      num_classes: length of the logits.
      seed: of the random numbers, which are a function of it and the step.
      max_bad_steps: non-finite steps in a row that end the run.
      run: its length, for transforms that change on the way.

    Returns:
      The state after the step, and a report: its counters "step", "bad_steps" and
      "bad_in_a_row" (int32) once more, as arrays of their own that the host can still wait
      for and read when it has donated the state to the next step, and "learning_rate".
    """
    # Stream 0 of the seed made the initial weights.
    rng = jax.random.fold_in(jax.random.key(seed), state.step + 1)
    assert run.total_steps is not None
    moment = Moment(state.step, run.steps_per_epoch, run.total_steps)
    mask = batch["mask"]
    targets_given = jax.nn.one_hot(batch["label"], num_classes) * mask[:, None]
    # Means over rows become means over images: exactly 1 where every row has one.
    rows_per_image = mask.size / jnp.maximum(mask.sum(), 1)

    def gradients(transforms: Sequence[Transform]) -> tuple[Any, ...]:
        images, targets = augment.apply(
            transforms,
            jax.random.fold_in(rng, AUGMENT),
            batch["image"],
            targets_given,
            moment,
        )

        def total_loss(params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
            logits, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats", "aux_logits"],
                rngs={"dropout": jax.random.fold_in(rng, DROPOUT)},
            )
            losses = loss(logits, targets)
            total = losses.mean() * rows_per_image
            for aux_logits in jax.tree.leaves(updated.get("aux_logits", {})):
                aux_losses = loss(aux_logits, targets)
                total += model.aux_weight * aux_losses.mean() * rows_per_image
            batch_stats = updated.get("batch_stats", {})
            return total, (losses, logits, targets, batch_stats)

        return jax.grad(total_loss, has_aux=True)(state.params)

    # One branch for each size of images that the run goes through; most have one.
    stages = augment.in_stages(transforms, run.total_steps)
    stage = sum(state.step >= first for first, _ in stages[1:])
    branches = [functools.partial(gradients, chosen) for _, chosen in stages]
    grads, (losses, logits, targets, batch_stats) = jax.lax.switch(stage, branches)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    good_steps = state.step - state.bad_steps
    ema = state.ema
    if ema_decay is not None:
        averaged = {"params": params, "batch_stats": batch_stats}
        ema = ema_update(ema, averaged, decay_at(ema_decay, good_steps))

    finite = jnp.stack(
        [all_finite(tree) for tree in (losses, grads, batch_stats, updates)]
    ).all()
    may_change = finite & (state.bad_in_a_row < max_bad_steps)
    good = may_change & mask.any()
    changed = {
        "params": params,
        "batch_stats": batch_stats,
        "opt_state": opt_state,
        "ema": ema,
    }
    kept = {name: getattr(state, name) for name in changed}
    selected = jax.tree.map(lambda new, old: jnp.where(good, new, old), changed, kept)
    state = dataclasses.replace(
        state,
        step=state.step + 1,
        bad_steps=state.bad_steps + ~good,
        bad_in_a_row=jnp.where(
            good, 0, jnp.where(may_change, state.bad_in_a_row, state.bad_in_a_row + 1)
        ),
        metrics=state.metrics.merge(
            train_metrics(losses, logits, targets, good & mask)
        ),
        **selected,
    )
    counters = ("step", "bad_steps", "bad_in_a_row")
    report = {name: jnp.copy(getattr(state, name)) for name in counters}
    return state, {**report, "learning_rate": learning_rate(good_steps)}


def all_finite(tree: Any) -> jax.Array:
    """Returns whether the global norm of a tree is finite, a bool scalar.

    True only if every value is; False also where the sum of squares overflows float32, beyond
    1.8e19. Testing every value by itself took the compiler three times as long (XLA on CPU,
    ResNet-18).
    """
    return jnp.isfinite(optax.tree.norm(tree))


def eval_step(
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
    *,
    model: nn.Module,
    transforms: Sequence[Transform],
    views: Views | None,
    num_classes: int,
) -> EvalMetrics:
    """Evaluates one batch.

    Args:
      variables: "params" and "batch_stats" of the network.
      batch: "image" uint8 [batch, height, width, channels], "label" int32 [batch], "mask"
        bool [batch], False for padding.
      model: the network.
      transforms: deterministic, ending in normalised floats.
      views: of each image, over which the logits are averaged; None for the image alone.
      num_classes: length of the logits.

    Returns:
      Sums over the images of the batch.
    """
    targets = jax.nn.one_hot(batch["label"], num_classes)

    def transform(chosen: Sequence[Transform], images: jax.Array) -> jax.Array:
        # Deterministic transforms do not use the key.
        return augment.apply(chosen, jax.random.key(0), images, targets)[0]

    def predict(images: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, images, train=False)
        return logits

    if views is None:
        logits = predict(transform(transforms, batch["image"]))
    else:
        before, after = augment.around_normalize(transforms)
        logits = augment.averaged_logits(
            lambda view: predict(transform(after, view)),
            transform(before, batch["image"]),
            views,
        )
    return eval_metrics(logits, batch["label"], batch["mask"])
