"""The train step: against NumPy, when numbers break, and over devices."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls import losses
from jaxcls.augment import (
    FlipViews,
    HorizontalFlip,
    Normalize,
    RandomCrop,
    Transform,
    Views,
)
from jaxcls.config import Config
from jaxcls.data import Digits
from jaxcls.duration import RunLength, steps
from jaxcls.inference.forward import eval_step
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.metrics import TrainMetrics, compute
from jaxcls.models import Model, create_model
from jaxcls.optim import EMA, SGD, AdamW, ClipNorm, Optimizer, WarmupCosine
from jaxcls.optim.chain import chain, learning_rate
from jaxcls.optim.groups import resolve
from jaxcls.parallel import make_mesh, put_batch, replicated
from jaxcls.training.state import TrainState, create_state
from jaxcls.training.step import train_step

CLASSES, MAX_BAD = 10, 3
POISON_IMAGES, POISON_GRADIENT = 9, 8
RUN = RunLength(steps_per_epoch=10, batch_size=16, total_steps=100)
SCHEDULE = WarmupCosine(warmup=steps(4), start=0.1)
NORMALIZE = Normalize(mean=(0.5,), std=(0.25,))
Batch = dict[str, Any]


class Poison(Transform):
    """Images that are no numbers, in a batch whose first label is POISON_IMAGES."""

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return jnp.where(targets[0, POISON_IMAGES] == 1, jnp.nan, images), targets


class Loss(SoftmaxCrossEntropy):
    """A loss that is finite, but not its gradient if the first label is POISON_GRADIENT."""

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        under_root = 1 - targets[0, POISON_GRADIENT]
        # The root's slope is infinite at 0, and infinity times the 0 within is not a number.
        nothing = jnp.sqrt(under_root + 0 * logits.sum()) - under_root
        return super().__call__(logits, targets) + nothing


class Setup(NamedTuple):
    step: Any  # (state, batch, seed=...) -> (state, report)
    initial: TrainState


def make_config(
    optimizer: Optimizer,
    *,
    transforms: tuple[Transform, ...] = (NORMALIZE,),
    loss: losses.Loss | None = None,
    ema_decay: float | None = None,
    clip_norm: float | None = None,
    **options: Any,
) -> Config:
    """The root as train_step reads it: the network and the data are given besides."""
    return Config(
        model=Model(name="lenet5"),
        data=Digits(),
        augment=transforms,
        eval_transform=(NORMALIZE,),
        loss=loss or SoftmaxCrossEntropy(),
        optimizer=optimizer,
        schedule=SCHEDULE,
        batch_size=16,
        duration=steps(100),
        clip=None if clip_norm is None else ClipNorm(max_norm=clip_norm),
        ema=None if ema_decay is None else EMA(decay=ema_decay),
        max_bad_steps=MAX_BAD,
        **options,
    )


def bind(
    config: Config,
    model: nn.Module,
    image_shape: tuple[int, ...],
    num_classes: int = CLASSES,
    optimizer: optax.GradientTransformationExtraArgs | None = None,
    teacher: nn.Module | None = None,
) -> tuple[Any, Any]:
    """Returns step(state, batch, seed=..., teacher_variables=...) and create(seed=...)."""
    images = jnp.zeros((1, *image_shape))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images))["params"]
    treatments = resolve(
        shapes,
        (),
        (),
        groups=config.groups,
        freeze=config.frozen,
        layer_decay=None,
        head_rate=1.0,
        decays=config.optimizer.decays,
        run=RUN,
    )
    tx = optimizer or chain(
        config.optimizer,
        config.schedule,
        clip=config.clip,
        treatments=treatments,
        decay_schedule=None,
        run=RUN,
    )

    def step(state: TrainState, batch: Batch, seed: Any, teacher_variables: Any = None):
        return train_step(
            state,
            batch,
            teacher_variables,
            # The seed is an argument of the program, so that one serves all seeds.
            config=dataclasses.replace(config, seed=seed),
            model=model,
            optimizer=tx,
            learning_rate=learning_rate(config.optimizer, config.schedule, RUN),
            treatments=treatments,
            num_classes=num_classes,
            run=RUN,
            teacher=teacher,
        )

    create = functools.partial(
        create_state, model, tx, (1, *image_shape), with_ema=config.has_average
    )
    return step, create


def setup(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    image_shape: tuple[int, ...],
    num_classes: int = CLASSES,
    **options: Any,
) -> Setup:
    config = make_config(optimizer, **options)
    step, create = bind(config, model, image_shape, num_classes)
    return Setup(jax.jit(step), jax.jit(create)(seed=0))


def tiny_resnet(bn_group: int | None = None) -> nn.Module:
    return create_model(
        "resnet18",
        num_classes=CLASSES,
        stage_sizes=(1,),
        stem="small",
        width=4,
        bn_group=bn_group,
    )


def make_batch(first_label: int = 0, seed: int = 0) -> Batch:
    random = np.random.default_rng(seed)
    labels = np.int32(random.integers(0, 8, 16))
    labels[0] = first_label
    # The label shows in the brightness, so that there is something to learn.
    pixels = random.integers(0, 60, (16, 8, 8, 1)) + 24 * labels[:, None, None, None]
    return {"image": np.uint8(pixels), "label": labels, "mask": np.ones(16, bool)}


@pytest.fixture(scope="module")
def resnet() -> Setup:
    return setup(
        tiny_resnet(),
        AdamW(learning_rate=0.02, weight_decay=0.1),
        transforms=(RandomCrop(padding=1), HorizontalFlip(), Poison(), NORMALIZE),
        loss=Loss(label_smoothing=0.1),
        image_shape=(8, 8, 1),
        ema_decay=0.3,
        clip_norm=1.0,
    )


@pytest.fixture(scope="module")
def trained(resnet: Setup) -> TrainState:
    """A state in which every number has moved."""
    state = resnet.initial
    for number in range(3):
        state, _ = resnet.step(state, make_batch(seed=number), seed=0)
    return state


WEIGHTS = ("params", "batch_stats", "opt_state", "ema")


def bits(state: TrainState, *fields: str) -> list[tuple[str, bytes]]:
    tree = {field: getattr(state, field) for field in fields or WEIGHTS}
    return [
        (jax.tree_util.keystr(path), np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def sums(state: TrainState) -> list[float]:
    averages = (state.metrics.loss, state.metrics.top1)
    return [
        float(part) for average in averages for part in (average.total, average.count)
    ]


def counters(state: TrainState) -> tuple[int, int, int]:
    return int(state.step), int(state.bad_steps), int(state.bad_in_a_row)


# ------------------------------------------------------------------------- against NumPy


class Linear(nn.Module):
    """A network whose gradient fits into a line of NumPy."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def linear_batches(number: int) -> Iterator[Batch]:
    for seed in range(number):
        random = np.random.default_rng(seed)
        yield {
            "image": random.integers(0, 256, (8, 3, 3, 1), dtype=np.uint8),
            "label": np.int32(random.integers(0, 3, 8)),
            "mask": np.ones(8, bool),
        }


def test_steps_of_a_linear_classifier_are_numpys() -> None:
    found = setup(
        Linear(),
        SGD(learning_rate=0.2, weight_decay=0.05, decay="decoupled"),
        transforms=(NORMALIZE,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.3),
        image_shape=(3, 3, 1),
        ema_decay=0.25,
        num_classes=3,
    )
    state = found.initial
    dense = state.params["Dense_0"]
    weights = {name: np.float64(leaf) for name, leaf in dense.items()}
    average = dict(weights)
    velocity = {name: np.zeros_like(leaf) for name, leaf in weights.items()}
    each, agree = [], []
    for t, batch in enumerate(linear_batches(6)):
        state, report = found.step(state, batch, seed=0)

        x = ((batch["image"] / 255 - 0.5) / 0.25).reshape(8, 9)
        targets = np.eye(3)[batch["label"]]
        smoothed = 0.7 * targets + 0.3 / 3
        probabilities = softmax(x @ weights["kernel"] + weights["bias"])
        each += list(-(smoothed * np.log(probabilities)).sum(-1))
        agree += list(probabilities.argmax(-1) == batch["label"])
        slope = (probabilities - smoothed) / 8  # of the mean over the batch
        gradients = {"kernel": x.T @ slope, "bias": slope.sum(0)}
        rate = 0.2 * (
            0.1 + 0.9 * t / 4 if t < 4 else (1 + math.cos(math.pi * (t - 4) / 95)) / 2
        )
        for name, gradient in gradients.items():
            velocity[name] = 0.9 * velocity[name] + gradient
            step = gradient + 0.9 * velocity[name]
            if name == "kernel":
                step = step + 0.05 * weights[name]
            weights[name] = weights[name] - rate * step
            share = min(0.25, (1 + t) / (10 + t))
            average[name] = share * average[name] + (1 - share) * weights[name]

        np.testing.assert_allclose(report["learning_rate"], rate, rtol=1e-5)
        for name in weights:
            for tree, expected in (
                (state.params, weights),
                (state.ema["params"], average),
            ):
                np.testing.assert_allclose(
                    tree["Dense_0"][name], expected[name], rtol=1e-4, atol=1e-5
                )
    assert counters(state) == (6, 0, 0)
    assert compute(state.metrics, "train") == pytest.approx(
        {"train/loss": np.mean(each), "train/top1": np.mean(agree)}, rel=1e-5
    )


@pytest.mark.parametrize("views", [None, FlipViews()])
def test_eval_step_is_numpys_and_leaves_padding_out(views: Views | None) -> None:
    random = np.random.default_rng(0)
    (batch,) = linear_batches(1)
    kernel, bias = np.float32(random.normal(size=(9, 3))), np.float32([0.1, 0.2, -0.3])
    mask = np.arange(8) < 5
    found = eval_step(
        {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}, "batch_stats": {}},
        {**batch, "mask": mask},
        model=Linear(),
        transforms=(NORMALIZE,),
        views=views,
        loss=SoftmaxCrossEntropy(),
    )
    assert found.logits is None
    x = (batch["image"] / 255 - 0.5) / 0.25
    if views is not None:  # of a linear network, the mean over both is that of the mean
        x = (x + x[:, :, ::-1]) / 2
    probabilities = softmax(x.reshape(8, 9) @ np.float64(kernel) + bias)[mask]
    labels = batch["label"][mask]
    recalls = [
        (probabilities.argmax(-1) == labels)[labels == label].mean()
        for label in np.unique(labels)
    ]
    assert compute(found.sums, "eval") == pytest.approx(
        {
            "eval/loss": -np.log(probabilities[np.arange(5), labels]).mean(),
            "eval/top1": (probabilities.argmax(-1) == labels).mean(),
            "eval/top5": 1.0,
            "eval/balanced_top1": np.mean(recalls),
        },
        rel=1e-5,
    )


# ------------------------------------------------------------------------------ training


def test_training_makes_the_loss_small(resnet: Setup) -> None:
    batch, state, losses = make_batch(), resnet.initial, []
    for _ in range(40):
        state = dataclasses.replace(state, metrics=TrainMetrics.empty())
        state, _ = resnet.step(state, batch, seed=0)
        losses.append(compute(state.metrics, "train")["train/loss"])
    assert losses[0] > 2  # near log(10)
    # Smoothing keeps it above the entropy of the smoothed targets, 0.5 here.
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    assert counters(state) == (40, 0, 0)


def test_every_weight_moves_and_stays_float32(
    resnet: Setup, trained: TrainState
) -> None:
    before, after = bits(resnet.initial), bits(trained)
    for (name, old), (_, new) in zip(before, after, strict=True):
        assert old != new, name
    for path, leaf in jax.tree_util.tree_leaves_with_path(trained):
        expected = "float32" if jnp.issubdtype(leaf.dtype, jnp.floating) else "int32"
        assert leaf.dtype == expected, jax.tree_util.keystr(path)


def test_a_bfloat16_network_has_a_float32_state() -> None:
    model = create_model(
        "resnet18", num_classes=10, stage_sizes=(1,), width=4, dtype=jnp.bfloat16
    )
    config = make_config(AdamW(learning_rate=0.1), ema_decay=0.9)
    step, create = bind(config, model, (32, 32, 1))
    state = jax.eval_shape(functools.partial(create, seed=0))
    after, _ = jax.eval_shape(
        functools.partial(step, seed=0),
        state,
        {
            "image": jax.ShapeDtypeStruct((4, 32, 32, 1), jnp.uint8),
            "label": jax.ShapeDtypeStruct((4,), jnp.int32),
            "mask": jax.ShapeDtypeStruct((4,), jnp.bool_),
        },
    )
    found = {leaf.dtype for leaf in jax.tree.leaves(after)}
    assert found == {jnp.dtype("float32"), jnp.dtype("int32")}
    # The step returns what it took, or the second call would compile again.
    assert after == state


def test_the_average_forgets_its_start_quickly(resnet: Setup) -> None:
    state = resnet.initial
    average = jax.tree.map(
        np.float64, {"params": state.params, "batch_stats": state.batch_stats}
    )
    good_steps = 0
    for number, first_label in enumerate([0, 1, POISON_IMAGES, 2, 3, 4]):
        state, _ = resnet.step(state, make_batch(first_label, seed=number), seed=0)
        if first_label != POISON_IMAGES:
            # A bad step does not count as one: 1/10, 2/11, 3/12 = 0.25, then 0.3.
            share = min(0.3, (1 + good_steps) / (10 + good_steps))
            good_steps += 1
            average = jax.tree.map(
                lambda old, new, share=share: (
                    share * old + (1 - share) * np.float64(new)
                ),
                average,
                {"params": state.params, "batch_stats": state.batch_stats},
            )
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            state.ema,
            average,
        )


def test_without_an_average_there_is_none() -> None:
    found = setup(
        Linear(),
        SGD(learning_rate=0.1),
        transforms=(NORMALIZE,),
        loss=SoftmaxCrossEntropy(),
        image_shape=(3, 3, 1),
        ema_decay=None,
        num_classes=3,
    )
    (batch,) = linear_batches(1)
    state, _ = found.step(found.initial, batch, seed=0)
    assert found.initial.ema is None
    assert state.ema is None
    assert bits(state, "params") != bits(found.initial, "params")


# --------------------------------------------------------------------- rows without an image


class BlendWithNext(Transform):
    """Mixes each image half and half with that of the next row."""

    def __call__(
        self, rng: jax.Array, images: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def half(rows: jax.Array) -> jax.Array:
            return (rows + jnp.roll(rows, -1, axis=0)) / 2

        return half(images), half(targets)


def plain(*transforms: Transform, loss: SoftmaxCrossEntropy) -> Setup:
    return setup(
        Linear(),
        SGD(learning_rate=0.2, weight_decay=0.05, decay="decoupled"),
        transforms=(*transforms, NORMALIZE),
        loss=loss,
        image_shape=(3, 3, 1),
        ema_decay=0.25,
        num_classes=3,
    )


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
def test_a_masked_row_is_as_if_it_were_not_there(
    weights: tuple[float, ...] | None,
) -> None:
    loss = SoftmaxCrossEntropy(label_smoothing=0.3, class_weights=weights)
    found = plain(loss=loss)
    masked = whole = found.initial
    for number, batch in enumerate(linear_batches(3)):
        mask = np.arange(8) % 3 != number
        fewer = {name: values[mask] for name, values in batch.items()}
        masked, _ = found.step(masked, {**batch, "mask": mask}, seed=0)
        whole, _ = found.step(whole, fewer, seed=0)
        for one, other in zip(
            jax.tree.leaves(masked), jax.tree.leaves(whole), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert masked.metrics.top1.count == 5 + 5 + 6
    assert counters(masked) == (3, 0, 0)


def test_a_mixed_image_loses_only_the_masked_part() -> None:
    found = plain(BlendWithNext(), loss=SoftmaxCrossEntropy(label_smoothing=0.3))
    (batch,) = linear_batches(1)
    mask = np.array([True, False, False, True, True, True, False, True])
    state, _ = found.step(found.initial, {**batch, "mask": mask}, seed=0)

    targets = np.eye(3)[batch["label"]] * mask[:, None]
    targets = (targets + np.roll(targets, -1, axis=0)) / 2
    smoothed = 0.7 * targets + 0.3 / 3 * targets.sum(-1, keepdims=True)
    pixels = (batch["image"] + np.roll(np.float64(batch["image"]), -1, axis=0)) / 2
    x = ((pixels / 255 - 0.5) / 0.25).reshape(8, 9)
    weights = {
        name: np.float64(leaf) for name, leaf in found.initial.params["Dense_0"].items()
    }
    probabilities = softmax(x @ weights["kernel"] + weights["bias"])
    # Rows 1 and 2 are masked, both: nothing of the blend in row 1 is left.
    losses = -(smoothed * np.log(probabilities)).sum(-1)
    assert losses[1] == 0 and (losses[[0, 2, 6]] > 0).all()
    slope = (probabilities * targets.sum(-1, keepdims=True) - smoothed) / mask.sum()
    # One step of Nesterov's momentum from rest, at the warm-up's first rate.
    step = 1.9 * x.T @ slope + 0.05 * weights["kernel"]
    expected = weights["kernel"] - 0.2 * 0.1 * step
    np.testing.assert_allclose(
        state.params["Dense_0"]["kernel"], expected, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        compute(state.metrics, "train")["train/loss"], losses[mask].mean(), rtol=1e-5
    )


def test_a_batch_without_images_changes_nothing(
    resnet: Setup, trained: TrainState
) -> None:
    nothing = {**make_batch(), "mask": np.zeros(16, bool)}
    state, report = resnet.step(trained, nothing, seed=0)
    assert bits(state) == bits(trained)
    assert sums(state) == sums(trained)
    # It is no sign of divergence, nor of its end.
    assert counters(state) == (4, 1, 0)
    assert np.isfinite(report["learning_rate"])
    state, _ = resnet.step(state, make_batch(POISON_IMAGES), seed=0)
    state, _ = resnet.step(state, nothing, seed=0)
    assert counters(state) == (6, 3, 1)


# ------------------------------------------------------------------------------ bad steps


@pytest.mark.parametrize("first_label", [POISON_IMAGES, POISON_GRADIENT])
def test_a_bad_step_only_counts(
    resnet: Setup, trained: TrainState, first_label: int
) -> None:
    state, report = resnet.step(trained, make_batch(first_label), seed=0)
    assert bits(state) == bits(trained)
    assert sums(state) == sums(trained)
    assert counters(state) == (4, 1, 1)
    assert {
        name: int(report[name]) for name in ("step", "bad_steps", "bad_in_a_row")
    } == {
        "step": 4,
        "bad_steps": 1,
        "bad_in_a_row": 1,
    }
    # The next good batch goes on where the last one left off, and ends the row.
    state, report = resnet.step(state, make_batch(), seed=0)
    assert bits(state) != bits(trained)
    assert counters(state) == (5, 1, 0)
    assert state.metrics.loss.count == 4 * 16
    # Three good steps were made before: the peak minus a quarter of the warm-up.
    np.testing.assert_allclose(report["learning_rate"], 0.02 * 0.775, rtol=1e-5)


def test_statistics_that_are_no_numbers_make_a_bad_step(
    resnet: Setup, trained: TrainState
) -> None:
    # The running mean is not read in training: neither loss nor gradients show it.
    stats = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), trained.batch_stats)
    broken = dataclasses.replace(trained, batch_stats=stats)
    state, _ = resnet.step(broken, make_batch(), seed=0)
    assert counters(state) == (4, 1, 1)
    assert bits(state) == bits(broken)


def test_an_update_that_is_no_number_makes_a_bad_step() -> None:
    sgd = optax.sgd(lambda step: jnp.where(step == 1, jnp.inf, 0.1))
    tx = optax.with_extra_args_support(sgd)
    config = make_config(SGD(learning_rate=0.1))
    step, create = bind(config, Linear(), (3, 3, 1), 3, optimizer=tx)
    step = functools.partial(step, seed=0)
    state = create(seed=0)
    first, second = linear_batches(2)
    good, _ = jax.jit(step)(state, first)
    assert counters(good) == (1, 0, 0)
    bad, _ = jax.jit(step)(good, second)
    assert counters(bad) == (2, 1, 1)
    assert bits(bad, "params", "opt_state") == bits(good, "params", "opt_state")


class Steep(SoftmaxCrossEntropy):
    """A loss so steep that its gradients are finite but their squares are not."""

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        return 1e25 * super().__call__(logits, targets)


def test_gradients_whose_squares_overflow_make_a_bad_step() -> None:
    # Adam's mean square would be infinite for ever, and the weights would never move again.
    found = setup(
        Linear(),
        AdamW(learning_rate=0.1),
        transforms=(NORMALIZE,),
        loss=Steep(),
        image_shape=(3, 3, 1),
        ema_decay=None,
        num_classes=3,
    )
    (batch,) = linear_batches(1)
    state, _ = found.step(found.initial, batch, seed=0)
    assert counters(state) == (1, 1, 1)
    assert bits(state, "params", "opt_state") == bits(
        found.initial, "params", "opt_state"
    )


def test_too_many_bad_steps_in_a_row_are_final(
    resnet: Setup, trained: TrainState
) -> None:
    state = trained
    for number in range(MAX_BAD):
        state, _ = resnet.step(state, make_batch(POISON_IMAGES), seed=0)
        assert counters(state) == (4 + number, 1 + number, 1 + number)
    # However late the host looks, good batches no longer change anything.
    for number in range(2):
        state, report = resnet.step(state, make_batch(seed=number), seed=0)
        assert counters(state) == (7 + number, 4 + number, 4 + number)
        assert int(report["bad_in_a_row"]) == 4 + number >= MAX_BAD
    assert bits(state) == bits(trained)
    assert sums(state) == sums(trained)


def test_one_bad_step_less_is_not_final(resnet: Setup, trained: TrainState) -> None:
    state = trained
    for first_label in [POISON_IMAGES] * (MAX_BAD - 1) + [0] + [POISON_IMAGES] * 2:
        state, _ = resnet.step(state, make_batch(first_label), seed=0)
    # Five steps, four of them bad, never three in a row.
    assert counters(state) == (8, 4, 2)
    again, _ = resnet.step(state, make_batch(), seed=0)
    assert counters(again) == (9, 4, 0)
    assert bits(again, "params") != bits(state, "params")


# ------------------------------------------------------------------------ random numbers


def test_random_numbers_are_a_function_of_seed_and_step(
    resnet: Setup, trained: TrainState
) -> None:
    batch = make_batch()

    def made(step: int, seed: int, bad_steps: int = 0) -> TrainState:
        start = dataclasses.replace(
            trained, step=jnp.int32(step), bad_steps=jnp.int32(bad_steps)
        )
        return resnet.step(start, batch, seed=seed)[0]

    def after(step: int, seed: int) -> list[tuple[str, bytes]]:
        return bits(made(step, seed), "params", "batch_stats")

    reference = after(step=5, seed=1)
    assert after(step=5, seed=1) == reference
    # What went wrong before does not matter: no draw is skipped or repeated. (The rate does
    # follow the good steps, and with it the parameters.)
    statistics = bits(made(step=5, seed=1), "batch_stats")
    assert bits(made(step=5, seed=1, bad_steps=2), "batch_stats") == statistics
    assert bits(made(step=6, seed=1), "batch_stats") != statistics
    for step, seed in ((4, 1), (6, 1), (5, 0), (5, 2), (1, 5)):
        assert after(step=step, seed=seed) != reference


def test_a_state_from_disk_goes_on_with_the_same_bits(
    resnet: Setup, trained: TrainState
) -> None:
    state = trained
    for number in range(2):
        state, _ = resnet.step(state, make_batch(seed=number), seed=0)
    restored = jax.device_put(jax.device_get(trained))
    for number in range(2):
        restored, _ = resnet.step(restored, make_batch(seed=number), seed=0)
    assert bits(restored) == bits(state)


def test_the_seed_makes_the_initial_weights() -> None:
    tx = optax.sgd(0.1)
    states = [
        create_state(Linear(), tx, (1, 3, 3, 1), seed, with_ema=True)
        for seed in (0, 0, 1)
    ]
    assert bits(states[0]) == bits(states[1])
    assert bits(states[0]) != bits(states[2])
    for state in states:
        assert counters(state) == (0, 0, 0)
        jax.tree.map(np.testing.assert_array_equal, state.ema, state.variables())
        # Two buffers, because a donated state may not hold one twice.
        kernel = state.params["Dense_0"]["kernel"]
        average = state.ema["params"]["Dense_0"]["kernel"]
        assert kernel.unsafe_buffer_pointer() != average.unsafe_buffer_pointer()


# --------------------------------------------------------------------------- many devices


@pytest.mark.parametrize("bn_group", [None, 2])
def test_eight_devices_train_like_one(bn_group: int | None) -> None:
    found = setup(
        tiny_resnet(bn_group),
        SGD(learning_rate=0.05, weight_decay=0.01, decay="decoupled"),
        transforms=(RandomCrop(padding=1), HorizontalFlip(), NORMALIZE),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        image_shape=(8, 8, 1),
        ema_decay=0.9,
        clip_norm=1.0,
    )
    ends = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        step = jax.jit(found.step, out_shardings=replicated(mesh))
        state = jax.device_put(found.initial, replicated(mesh))
        for number in range(5):
            batch = put_batch(mesh, make_batch(seed=number))
            state, _ = step(state, batch, seed=0)
        assert len(state.step.sharding.device_set) == devices
        ends.append(jax.device_get(state))
    one, eight = ends
    for (path, alone), shared in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(eight), strict=True
    ):
        scale = np.abs(alone).max()
        assert np.abs(shared - alone).max() <= 1e-5 * scale, jax.tree_util.keystr(path)
    start = jax.device_get(found.initial.params)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), one.params, start)
    assert min(jax.tree.leaves(moved)) > 1e-3  # the same, but not for standing still
