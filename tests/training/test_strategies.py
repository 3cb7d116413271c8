"""Strategies within the train step: accumulation, freezing, sharpness-aware minimisation,
distillation, labels that do not exclude each other. Each against a formula or the plain step."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment import HorizontalFlip
from jaxcls.config import SAM, Distillation
from jaxcls.duration import steps
from jaxcls.losses import MultiLabelBinaryCrossEntropy, SoftmaxCrossEntropy
from jaxcls.metrics import compute
from jaxcls.models.layers import BatchNorm
from jaxcls.optim import SGD, AdamW, Constant, Freeze, ScheduleFreeAdamW
from jaxcls.training.state import TrainState
from tests.programs import to_the_last_bit
from tests.training.test_step import (
    NORMALIZE,
    Batch,
    Linear,
    bind,
    linear_batches,
    make_batch,
    make_config,
    softmax,
)


class Small(nn.Module):
    """Two convolutions with batch norms and a linear layer: compiles in a second."""

    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for index in (1, 2):
            x = nn.Conv(4, (3, 3), (2, 2), name=f"conv{index}", dtype=self.dtype)(x)
            x = nn.relu(BatchNorm(train, name=f"bn{index}")(x))
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2))).astype(jnp.float32)


def run(
    config: Any,
    model: nn.Module,
    shape: tuple[int, ...],
    batches: list[Batch],
    **more: Any,
) -> tuple[TrainState, TrainState]:
    """Returns the states before and after a step on each batch."""
    variables = more.pop("teacher_variables", None)
    step, create = bind(config, model, shape, **more)
    jitted = jax.jit(functools.partial(step, seed=0, teacher_variables=variables))
    first = state = jax.jit(create)(seed=0)
    for batch in batches:
        state, _ = jitted(state, batch)
    return first, state


def assert_close(one: Any, other: Any, rtol: float = 1e-5) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


# -------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_are_the_batch(accumulate: int) -> None:
    batches = list(linear_batches(3))
    batches[1]["mask"] = np.arange(8) != 3
    results = []
    for parts in (1, accumulate):
        config = make_config(
            SGD(learning_rate=0.2, weight_decay=0.05, decay="l2"),
            transforms=(HorizontalFlip(), NORMALIZE),
            ema_decay=0.5,
            clip_norm=0.7,
            accumulate=parts,
        )
        results.append(run(config, Linear(), (3, 3, 1), batches, num_classes=3))
    (before, whole), (_, parted) = results
    assert_close(whole, parted)
    # The clip norm and the averages count once a step, and something happened.
    moved = np.abs(
        whole.params["Dense_0"]["kernel"] - before.params["Dense_0"]["kernel"]
    )
    assert moved.max() > 0.01
    assert parted.metrics.top1.count == 8 + 7 + 8


def test_batch_norms_see_the_parts_one_after_the_other() -> None:
    """The statistics of a step in two parts are those of two steps with the parts."""
    config = make_config(SGD(learning_rate=1e-9), accumulate=2)
    batch = make_batch()
    _, accumulated = run(config, Small(), (8, 8, 1), [batch])
    # Part i takes the rows i, i + 2, ...
    parts = [{name: rows[i::2] for name, rows in batch.items()} for i in range(2)]
    config = make_config(SGD(learning_rate=1e-9))
    _, stepwise = run(config, Small(), (8, 8, 1), parts)
    assert_close(accumulated.batch_stats, stepwise.batch_stats)


# ------------------------------------------------------------------------------ freezing


def test_what_is_frozen_is_the_same_to_the_last_bit() -> None:
    config = make_config(
        AdamW(learning_rate=0.05, weight_decay=0.5, decays="all"),
        ema_decay=0.5,
        clip_norm=0.5,
        freeze="^(conv1|bn1)/",
    )
    batches = [make_batch(seed=number) for number in range(10)]
    before, after = run(config, Small(), (8, 8, 1), batches)
    for field in ("params", "batch_stats"):
        for name in ("conv1", "bn1"):
            if name not in getattr(before, field):
                continue
            for tree in (getattr(after, field), after.ema[field]):
                assert_same_bits(getattr(before, field)[name], tree[name])
        moving = {k: v for k, v in getattr(before, field).items() if k[-1] != "1"}
        for name, old in moving.items():
            for a, b in zip(
                jax.tree.leaves(old),
                jax.tree.leaves(getattr(after, field)[name]),
                strict=True,
            ):
                assert not np.array_equal(a, b), (field, name)


def assert_same_bits(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


class Foreign(Small):
    """With batch norms of flax's own."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), (2, 2), name="conv1")(x)
        x = nn.relu(nn.BatchNorm(not train, name="bn1")(x))
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


def test_statistics_of_a_user_s_own_frozen_norms_stay_too() -> None:
    for freeze, stays in (("^(conv1|bn1)/", True), ("^conv1/", False)):
        config = make_config(AdamW(learning_rate=0.05), freeze=freeze)
        before, after = run(config, Foreign(), (8, 8, 1), [make_batch()])
        same = np.array_equal(
            before.batch_stats["bn1"]["mean"], after.batch_stats["bn1"]["mean"]
        )
        assert same == stays


def test_frozen_norms_work_as_in_evaluation() -> None:
    """All frozen but the head: a step is one of a linear classifier on fixed features."""
    model = Small()
    config = make_config(
        SGD(learning_rate=0.5, momentum=0.0),
        loss=SoftmaxCrossEntropy(label_smoothing=0.2),
        freeze="^(?!fc/)",
    )
    config.schedule = Constant()
    batch = make_batch()
    before, after = run(config, model, (8, 8, 1), [batch])
    x = (batch["image"] / 255 - 0.5) / 0.25
    logits = np.float64(model.apply(before.variables(), jnp.float32(x), train=False))
    targets = 0.8 * np.eye(10)[batch["label"]] + 0.02
    slope = (softmax(logits) - targets).mean(0)
    np.testing.assert_allclose(
        after.params["fc"]["bias"],
        before.params["fc"]["bias"] - 0.5 * slope,
        rtol=1e-4,
        atol=1e-6,
    )


def test_frozen_parameters_have_no_share_in_the_norm() -> None:
    """The head's clipped update is as long as if it were the whole network."""
    config = make_config(
        SGD(learning_rate=1.0, momentum=0.0), clip_norm=1e-3, freeze="^(?!fc/)"
    )
    config.schedule = Constant()
    before, after = run(config, Small(), (8, 8, 1), [make_batch()])
    moved = jax.tree.map(jnp.subtract, after.params["fc"], before.params["fc"])
    length = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(moved)))
    np.testing.assert_allclose(length, 1e-3, rtol=1e-3)


def test_a_thaw_lets_parameters_and_statistics_move() -> None:
    config = make_config(
        AdamW(learning_rate=0.01),
        freeze=(Freeze(pattern="^(conv1|bn1)/", until=steps(2)),),
    )
    batches = [make_batch(seed=number) for number in range(3)]
    states = [run(config, Small(), (8, 8, 1), batches[:n])[1] for n in (2, 3)]
    first = run(config, Small(), (8, 8, 1), [])[0]
    for name in ("conv1", "bn1"):
        assert_same_bits(first.params[name], states[0].params[name])
    assert_same_bits(first.batch_stats["bn1"], states[0].batch_stats["bn1"])
    assert not np.array_equal(
        states[1].batch_stats["bn1"]["mean"], first.batch_stats["bn1"]["mean"]
    )
    # Adam's first step has the length of the rate: the third of a warm-up from a tenth.
    moved = np.abs(
        states[1].params["conv1"]["kernel"] - first.params["conv1"]["kernel"]
    )
    rate = 0.01 * (0.1 + 0.9 * 2 / 4)
    np.testing.assert_allclose(moved.max(), rate, rtol=1e-3)


# ------------------------------------------------------------- sharpness-aware minimisation


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_takes_the_gradient_at_the_worst_point(adaptive: bool) -> None:
    config = make_config(
        SGD(learning_rate=0.3, momentum=0.0), sam=SAM(rho=0.4, adaptive=adaptive)
    )
    config.schedule = Constant()
    (batch,) = linear_batches(1)
    before, after = run(config, Linear(), (3, 3, 1), [batch], num_classes=3)
    dense = {name: np.float64(leaf) for name, leaf in before.params["Dense_0"].items()}
    x = ((batch["image"] / 255 - 0.5) / 0.25).reshape(8, 9)

    def gradients(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        probabilities = softmax(x @ weights["kernel"] + weights["bias"])
        slope = (probabilities - np.eye(3)[batch["label"]]) / 8
        return {"kernel": x.T @ slope, "bias": slope.sum(0)}

    found = gradients(dense)
    size = {name: np.abs(w) if adaptive else 1.0 for name, w in dense.items()}
    norm = np.sqrt(sum(((size[name] * g) ** 2).sum() for name, g in found.items()))
    worst = {
        name: dense[name] + 0.4 * size[name] ** 2 * g / norm
        for name, g in found.items()
    }
    for name, gradient in gradients(worst).items():
        np.testing.assert_allclose(
            after.params["Dense_0"][name],
            dense[name] - 0.3 * gradient,
            rtol=1e-4,
            atol=1e-6,
        )


def test_sam_keeps_the_statistics_of_the_parameters_that_stay() -> None:
    with_sam = make_config(SGD(learning_rate=0.1), sam=SAM(rho=5.0))
    _, sharp = run(with_sam, Small(), (8, 8, 1), [make_batch()])
    _, plain = run(
        make_config(SGD(learning_rate=0.1)), Small(), (8, 8, 1), [make_batch()]
    )
    assert_close(sharp.batch_stats, plain.batch_stats)
    assert not np.allclose(sharp.params["fc"]["bias"], plain.params["fc"]["bias"])


# --------------------------------------------------------------------------- distillation


def test_distillation_is_hintons_formula() -> None:
    teacher = Linear()
    variables = teacher.init(jax.random.key(7), jnp.zeros((1, 3, 3, 1)))
    distill = Distillation(teacher="runs/big", temperature=3.0, alpha=0.7)
    config = make_config(SGD(learning_rate=0.3, momentum=0.0), distill=distill)
    config.schedule = Constant()
    (batch,) = linear_batches(1)
    mask = np.arange(8) != 2
    before, after = run(
        config,
        Linear(),
        (3, 3, 1),
        [{**batch, "mask": mask}],
        num_classes=3,
        teacher=teacher,
        teacher_variables=variables,
    )
    x = ((batch["image"] / 255 - 0.5) / 0.25).reshape(8, 9)[mask]
    labels = np.eye(3)[batch["label"]][mask]

    def logits(params: Any) -> np.ndarray:
        dense = params["Dense_0"]
        return x @ np.float64(dense["kernel"]) + np.float64(dense["bias"])

    ours, theirs = logits(before.params), logits(variables["params"])
    # d/dz of T^2 KL(teacher || student) is T (student - teacher).
    soft = 3.0 * (softmax(ours / 3.0) - softmax(theirs / 3.0))
    slope = (0.3 * (softmax(ours) - labels) + 0.7 * soft) / mask.sum()
    for name, gradient in {"kernel": x.T @ slope, "bias": slope.sum(0)}.items():
        np.testing.assert_allclose(
            after.params["Dense_0"][name],
            before.params["Dense_0"][name] - 0.3 * gradient,
            rtol=1e-4,
            atol=1e-6,
        )
    divergence = softmax(theirs / 3.0) * (
        np.log(softmax(theirs / 3.0)) - np.log(softmax(ours / 3.0))
    )
    entropy = -(labels * np.log(softmax(ours))).sum(-1)
    expected = 0.3 * entropy + 0.7 * 9.0 * divergence.sum(-1)
    assert compute(after.metrics, "train")["train/loss"] == pytest.approx(
        expected.mean(), rel=1e-5
    )


# ----------------------------------------------------------------------------- many labels


def test_any_number_of_labels_an_image() -> None:
    config = make_config(
        SGD(learning_rate=0.3, momentum=0.0), loss=MultiLabelBinaryCrossEntropy()
    )
    config.schedule = Constant()
    (batch,) = linear_batches(1)
    random = np.random.default_rng(3)
    labels = np.uint8(random.integers(0, 2, (8, 3)))
    labels[4] = 0  # an image of nothing counts; a row without an image does not
    mask = np.arange(8) != 6
    given = {**batch, "label": labels, "mask": mask}
    before, after = run(config, Linear(), (3, 3, 1), [given], num_classes=3)
    x = ((batch["image"] / 255 - 0.5) / 0.25).reshape(8, 9)[mask]
    dense = {name: np.float64(leaf) for name, leaf in before.params["Dense_0"].items()}
    probabilities = 1 / (1 + np.exp(-(x @ dense["kernel"] + dense["bias"])))
    slope = (probabilities - labels[mask]) / 3 / mask.sum()
    for name, gradient in {"kernel": x.T @ slope, "bias": slope.sum(0)}.items():
        np.testing.assert_allclose(
            after.params["Dense_0"][name],
            dense[name] - 0.3 * gradient,
            rtol=1e-4,
            atol=1e-6,
        )
    strongest = probabilities.argmax(-1)
    right = labels[mask][np.arange(7), strongest]
    found = compute(after.metrics, "train")
    assert found["train/top1"] == pytest.approx(right.mean())


# -------------------------------------------------------------------------------- averages


@to_the_last_bit
def test_schedule_free_keeps_the_weights_to_evaluate_with(exact: bool) -> None:
    optimizer = ScheduleFreeAdamW(learning_rate=0.05)
    config = make_config(optimizer)
    config.schedule = Constant()
    batches = [make_batch(seed=number) for number in range(4)]
    _, state = run(config, Small(), (8, 8, 1), batches)
    expected = optimizer.average(state.opt_state, state.params)
    assert_close(state.ema["params"], expected)
    assert not np.allclose(
        state.ema["params"]["fc"]["bias"], state.params["fc"]["bias"]
    )
    assert_alike = assert_same_bits if exact else assert_close
    assert_alike(state.ema["batch_stats"], state.batch_stats)


def test_statistics_that_are_estimated_are_not_averaged() -> None:
    config = make_config(SGD(learning_rate=0.1), ema_decay=0.5, precise_bn=100)
    before, after = run(config, Small(), (8, 8, 1), [make_batch()])
    assert_same_bits(before.ema["batch_stats"], after.ema["batch_stats"])
    assert not np.allclose(
        after.batch_stats["bn1"]["mean"], before.batch_stats["bn1"]["mean"]
    )


def test_an_average_in_bfloat16_compute_moves() -> None:
    """5,000 steps, each a thousandth of a bfloat16's distance to the next: what an average
    kept in bfloat16 would never see."""
    model = Small(dtype=jnp.bfloat16)
    config = make_config(SGD(learning_rate=1e-4, momentum=0.0), ema_decay=0.9999)
    config.schedule = Constant()
    step, create = bind(config, model, (8, 8, 1))
    first = create(seed=0)
    small = {name: rows[:4] for name, rows in make_batch().items()}

    @jax.jit
    def many(state: TrainState) -> TrainState:
        body = lambda _, state: step(state, small, seed=0)[0]  # noqa: E731
        return jax.lax.fori_loop(0, 5000, body, state)

    last = many(first)
    assert last.bad_steps == 0
    kernel, average = (
        tree["fc"]["kernel"] - first.params["fc"]["kernel"]
        for tree in (last.params, last.ema["params"])
    )
    # With a warm-up and decay 0.9999 the average of a steady walk lags behind by half or less.
    ratio = np.linalg.norm(average) / np.linalg.norm(kernel)
    assert 0.3 < ratio < 1.0
    assert average.dtype == jnp.float32


def test_constant_parameters_are_their_average() -> None:
    config = make_config(SGD(learning_rate=0.1), ema_decay=0.999)
    # Nothing moves where no gradient arrives: zero images and targets that logits already are.
    step, create = bind(config, Linear(), (3, 3, 1), 3)
    state = create(seed=0)
    still = dataclasses.replace(
        state, params=jax.tree.map(jnp.zeros_like, state.params), ema=None
    )
    average = {"params": still.params, "batch_stats": {}}
    still = dataclasses.replace(still, ema=jax.tree.map(jnp.copy, average))
    labels = np.int32([0, 1, 2] * 2)
    grey = np.full((6, 3, 3, 1), 128, np.uint8)
    batch = {"image": grey, "label": labels, "mask": np.ones(6, bool)}
    jitted = jax.jit(functools.partial(step, seed=0))
    for _ in range(20):
        still, _ = jitted(still, batch)
    for raw, averaged in zip(
        jax.tree.leaves(still.params), jax.tree.leaves(still.ema["params"]), strict=True
    ):
        np.testing.assert_allclose(raw, averaged, atol=1e-7)
