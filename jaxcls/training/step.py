"""The train step: a pure function of (state, batch).

training/program.py binds everything that does not change in a run, by keyword, where it jits
the step.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcls import augment
from jaxcls.augment import RunPosition, Transform
from jaxcls.config import SAM, Config
from jaxcls.duration import RunLength
from jaxcls.losses import as_targets, distillation_loss
from jaxcls.metrics import TrainMetrics, train_metrics
from jaxcls.models.layers import frozen_collection
from jaxcls.optim import ema
from jaxcls.optim.treatment import Treatments, path_of, stop_gradients
from jaxcls.training.state import TrainState

# Streams of random numbers within a step.
AUGMENT, DROPOUT = 0, 1

Rows = dict[str, jax.Array]
"""Rows of an augmented batch: "images" float32 [rows, height, width, channels], "targets" float32
[rows, classes] and "mask" bool [rows]."""
Results = tuple[jax.Array, jax.Array, Any]
"""The losses and logits of rows, and the batch statistics after them."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a run in which neither the augmentation nor what is frozen changes.

    Attributes:
      first: its first step.
      transforms: augmentation, ending in normalised floats.
      frozen: paths of parameters that are not trained, "layer1_0/conv1/kernel".
      frozen_modules: those all of whose parameters are frozen, "layer1_0/bn1".
    """

    first: int
    transforms: tuple[Transform, ...]
    frozen: frozenset[str]
    frozen_modules: frozenset[str]


def stages(config: Config, treatments: Treatments, total_steps: int) -> list[Stage]:
    """Returns the stages of a run; most runs have one."""
    of_images = augment.stages_of_run(config.augment, total_steps)
    of_parameters = treatments.frozen_by_step()
    result = []
    for first in sorted({step for step, _ in (*of_images, *of_parameters)}):
        transforms = [value for begin, value in of_images if begin <= first][-1]
        frozen = [value for begin, value in of_parameters if begin <= first][-1]
        modules = treatments.frozen_modules(frozen)
        result.append(Stage(first, transforms, frozen, modules))
    return result


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    teacher_variables: Any = None,
    *,
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: optax.Schedule,
    treatments: Treatments,
    num_classes: int,
    run: RunLength,
    teacher: nn.Module | None = None,
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
      batch: "image" uint8 [batch, height, width, channels], "label" int32 [batch] or, where an
        image may be of any number of classes, uint8 [batch, classes] of ones and zeros, over all
        devices, and "mask" bool [batch], False for rows without an image.
      teacher_variables: of the teacher, if there is one.
      config: augmentation, loss, accumulation, average, seed and so on.
      model: the network. The losses of auxiliary heads, if it sows any "aux_logits", join the
        loss with its `aux_weight`; the metrics are of the main logits alone.
      optimizer: the optax chain, which takes `step`.
      learning_rate: the rate that the chain follows, only reported here.
      treatments: which parameters are frozen, and when.
      num_classes: length of the logits.
      run: its length, for transforms that change on the way.
      teacher: the network that teaches, None for none.

    Returns:
      The state after the step, and a report: its counters "step", "bad_steps" and
      "bad_in_a_row" (int32) once more, as arrays of their own that the host can still wait
      for and read when it has donated the state to the next step, and "learning_rate".
    """
    # Stream 0 of the seed made the initial weights.
    rng = jax.random.fold_in(jax.random.key(config.seed), state.step + 1)
    position = RunPosition(state.step, run.steps_per_epoch, run.total_steps)
    mask = batch["mask"]
    given = as_targets(batch["label"], num_classes) * mask[:, None]
    # By the count that the chain goes by, so that what thaws there thaws here.
    good_steps = state.step - state.bad_steps

    def forward_and_backward(stage: Stage) -> tuple[Any, ...]:
        key = jax.random.fold_in(rng, AUGMENT)
        images, targets = augment.apply(
            stage.transforms, key, batch["image"], given, position
        )
        rows = {"images": images, "targets": targets, "mask": mask}
        compute = Gradients(config, model, stage, teacher, teacher_variables)
        noise = jax.random.fold_in(rng, DROPOUT)
        return *compute(state.params, state.batch_stats, rows, noise), targets

    course = stages(config, treatments, run.total_steps)
    index = sum(good_steps >= stage.first for stage in course[1:])
    branches = [functools.partial(forward_and_backward, stage) for stage in course]
    grads, (losses, logits, batch_stats), targets = jax.lax.switch(index, branches)
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, step=good_steps
    )
    params = optax.apply_updates(state.params, updates)
    weights = {"params": params, "batch_stats": batch_stats}
    averaged = _averaged(config, state, weights, opt_state, run)

    produced = (losses, grads, batch_stats, updates)
    finite = jnp.stack([all_finite(tree) for tree in produced]).all()
    may_change = finite & (state.bad_in_a_row < config.max_bad_steps)
    good = may_change & mask.any()
    changed = {**weights, "opt_state": opt_state, "ema": averaged}
    measured = train_metrics(
        losses, logits, targets, good & mask, multi_label=config.loss.multi_label
    )
    state = _accepted(state, changed, measured, good, may_change)
    counters = ("step", "bad_steps", "bad_in_a_row")
    report = {name: jnp.copy(getattr(state, name)) for name in counters}
    return state, {**report, "learning_rate": learning_rate(good_steps)}


def _averaged(
    config: Config, state: TrainState, weights: Any, opt_state: Any, run: RunLength
) -> Any:
    """Returns the averaged weights after a step, None if none are kept.

    Args:
      config: how to average them.
      state: before the step.
      weights: "params" and "batch_stats" after it.
      opt_state: after it.
      run: its length.
    """
    if not config.has_average:
        return None
    if config.ema is not None:
        good_steps = state.step - state.bad_steps
        averaged = ema.update(config.ema, state.ema, weights, good_steps, run)
    else:
        average = config.optimizer.average(opt_state, weights["params"])
        averaged = {**weights, "params": average}
    if config.precise_bn is not None:
        # They are estimated anew before the average is used.
        averaged = {**averaged, "batch_stats": state.ema["batch_stats"]}
    return averaged


def _accepted(
    state: TrainState,
    changed: dict[str, Any],
    measured: TrainMetrics,
    good: jax.Array,
    may_change: jax.Array,
) -> TrainState:
    """Returns the state after a step. If the step is not good, only the counters change.

    Args:
      state: before the step.
      changed: what the step would make of some of its parts.
      measured: sums of the step.
      good: whether they are kept, bool scalar.
      may_change: whether the step is no sign of divergence, bool scalar.
    """
    kept = {name: getattr(state, name) for name in changed}
    selected = jax.tree.map(lambda new, old: jnp.where(good, new, old), changed, kept)
    in_a_row = jnp.where(may_change, state.bad_in_a_row, state.bad_in_a_row + 1)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        bad_steps=state.bad_steps + ~good,
        bad_in_a_row=jnp.where(good, 0, in_a_row),
        metrics=state.metrics.merge(measured),
        **selected,
    )


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Computes the gradients of a batch that is already augmented.

    Attributes:
      config: gives the loss, accumulation and sharpness-aware minimisation.
      model: the network.
      stage: says which parameters have gradients of zero, and which batch norms work as in
        evaluation, because all of their parameters are frozen.
      teacher: a network to learn from, or None.
      teacher_variables: its "params" and "batch_stats", which do not change.
    """

    config: Config
    model: nn.Module
    stage: Stage
    teacher: nn.Module | None
    teacher_variables: Any

    def __call__(
        self, params: Any, batch_stats: Any, rows: Rows, rng: jax.Array
    ) -> tuple[Any, Results]:
        """Returns the gradients, and the results of the forward pass.

        Args:
          params: the parameters.
          batch_stats: the running statistics before the step.
          rows: of the whole batch.
          rng: of dropout.
        """
        grads, results = self._accumulated(params, batch_stats, rows, rng)
        if self.config.sam is not None:
            # The statistics are those of the parameters that stay.
            worst = optax.apply_updates(params, _ascent(self.config.sam, params, grads))
            grads, _ = self._accumulated(worst, batch_stats, rows, rng)
        return grads, results

    def _accumulated(
        self, params: Any, batch_stats: Any, rows: Rows, rng: jax.Array
    ) -> tuple[Any, Results]:
        """Goes through the batch in parts and adds up their gradients."""
        parts = self.config.accumulate
        # Means over all rows become means over images: exactly 1 where every row has one.
        rows_per_image = rows["mask"].size / jnp.maximum(rows["mask"].sum(), 1)
        if parts == 1:
            return self._part(params, batch_stats, rows, rng, rows_per_image)

        def one(carry: tuple[Any, Any], given: Any) -> tuple[Any, Any]:
            added, batch_stats = carry
            part, index = given
            key, scale = jax.random.fold_in(rng, index), rows_per_image / parts
            grads, results = self._part(params, batch_stats, part, key, scale)
            losses, logits, batch_stats = results
            return (jax.tree.map(jnp.add, added, grads), batch_stats), (losses, logits)

        # Part i takes the rows i, i + parts, ...: of each device its own, so that none travel.
        split = {
            name: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
            for name, x in rows.items()
        }
        zeros = jax.tree.map(jnp.zeros_like, params)
        (grads, batch_stats), results = jax.lax.scan(
            one, (zeros, batch_stats), (split, jnp.arange(parts))
        )
        losses, logits = (x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in results)
        return grads, (losses, logits, batch_stats)

    def _part(
        self,
        params: Any,
        batch_stats: Any,
        rows: Rows,
        rng: jax.Array,
        scale: jax.Array,
    ) -> tuple[Any, Results]:
        """Returns the gradients of `scale` x the mean of the losses of some rows."""

        def total_loss(params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
            params = stop_gradients(params, self.stage.frozen)
            is_frozen = self.stage.frozen_modules.__contains__
            frozen = frozen_collection(batch_stats, is_frozen)
            logits, updated = self.model.apply(
                {"params": params, "batch_stats": batch_stats, "frozen": frozen},
                rows["images"],
                train=True,
                mutable=["batch_stats", "aux_logits"],
                rngs={"dropout": rng},
            )
            losses = self._losses(logits, rows)
            total = losses.mean()
            for aux_logits in jax.tree.leaves(updated.get("aux_logits", {})):
                aux_loss = self._label_losses(aux_logits, rows).mean()
                total += self.model.aux_weight * aux_loss
            new_stats = self._thawed(batch_stats, updated.get("batch_stats", {}))
            return total * scale, (losses, logits, new_stats)

        return jax.grad(total_loss, has_aux=True)(params)

    def _thawed(self, before: Any, after: Any) -> Any:
        """Returns the new statistics, but the old ones of norms that are frozen: a user's own
        network may have norms that do not know "frozen"."""
        frozen = self.stage.frozen_modules
        if not frozen:
            return after

        def chosen(path: Any, old: Any, new: Any) -> Any:
            return old if path_of(path[:-1]) in frozen else new

        return jax.tree_util.tree_map_with_path(chosen, before, after)

    def _losses(self, logits: jax.Array, rows: Rows) -> jax.Array:
        """Returns the loss of each row, with the teacher's share."""
        losses = self._label_losses(logits, rows)
        distill = self.config.distill
        if distill is None:
            return losses
        assert self.teacher is not None
        theirs: Any = self.teacher.apply(
            self.teacher_variables, rows["images"], train=False
        )
        taught = distillation_loss(logits, theirs, distill.temperature) * rows["mask"]
        return (1 - distill.alpha) * losses + distill.alpha * taught

    def _label_losses(self, logits: jax.Array, rows: Rows) -> jax.Array:
        losses = self.config.loss(logits, rows["targets"])
        # Without an image there are no labels, which a loss of several could not tell from
        # an image of nothing.
        return losses * rows["mask"] if self.config.loss.multi_label else losses


def _ascent(sam: SAM, params: Any, grads: Any) -> Any:
    """Returns the step to where the loss is the worst, to first order."""
    if not sam.adaptive:
        factor = sam.rho / (optax.tree.norm(grads) + 1e-12)
        return jax.tree.map(lambda grad: factor * grad, grads)
    scaled = jax.tree.map(lambda param, grad: jnp.abs(param) * grad, params, grads)
    factor = sam.rho / (optax.tree.norm(scaled) + 1e-12)
    return jax.tree.map(
        lambda param, grad: factor * jnp.abs(param) * grad, params, scaled
    )


def all_finite(tree: Any) -> jax.Array:
    """Returns whether the global norm of a tree is finite, a bool scalar.

    True only if every value is; False also where the sum of squares overflows float32, beyond
    1.8e19. Testing every value by itself took the compiler three times as long (XLA on CPU,
    ResNet-18).
    """
    return jnp.isfinite(optax.tree.norm(tree))
