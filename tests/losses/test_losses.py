"""The losses against NumPy in float64. Beside torch and timm: test_losses_live.py."""

from typing import Any

import jax
import numpy as np
import pytest

from jaxcls.errors import UserError
from jaxcls.losses import (
    BinaryCrossEntropy,
    Focal,
    Loss,
    MultiLabelAsymmetric,
    MultiLabelBinaryCrossEntropy,
    SoftmaxCrossEntropy,
    as_targets,
    distillation_loss,
)
from jaxcls.options import check

WEIGHTS = (0.0, 1.0, 2.5, 0.1, 1.0, 3.0)
"""Of six classes."""


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = np.float64(logits)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -(targets * log_probabilities).sum(-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return -cross_entropy(logits[:, None], np.eye(logits.shape[-1]))


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-np.float64(logits)))


def binary_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each class."""
    return -targets * log_sigmoid(logits) - (1 - targets) * log_sigmoid(-logits)


def soft_batch() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = np.float32(random.normal(size=(20, 6)) * 4)
    targets = random.dirichlet(np.full(6, 0.5), size=20)
    targets[:5] = np.eye(6)[:5]  # labels as they come without mixing
    return logits, np.float32(targets)


def losses(loss: Any, *arrays: Any) -> np.ndarray:
    """What a loss, compiled anew with the options it has now, gives for each image."""
    return np.asarray(jax.jit(lambda *arrays: loss(*arrays))(*arrays))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_of_soft_targets(smoothing: float) -> None:
    logits, targets = soft_batch()
    found = losses(SoftmaxCrossEntropy(label_smoothing=smoothing), logits, targets)
    assert found.shape == (20,)
    assert found.dtype == np.float32
    # Szegedy et al. 2015, section 7: smoothed once, also where targets are soft already.
    smoothed = (1 - smoothing) * targets + smoothing / 6
    np.testing.assert_allclose(found, cross_entropy(logits, smoothed), rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        *[
            SoftmaxCrossEntropy(label_smoothing=smoothing)
            for smoothing in (0, 0.1, 0.6)
        ],
        SoftmaxCrossEntropy(logit_adjustment=1.5, class_priors=(1, 2, 3, 4, 5, 6)),
        BinaryCrossEntropy(label_smoothing=0.1, over_classes="sum"),
        BinaryCrossEntropy(label_smoothing=0.1, target_threshold=0.2),
        BinaryCrossEntropy(label_smoothing=0.3, class_weights=WEIGHTS),
        Focal(label_smoothing=0.1, class_weights=WEIGHTS),
    ],
)
def test_a_target_that_is_partly_missing_counts_in_part(loss: Loss) -> None:
    logits, targets = soft_batch()
    share = np.float32(np.linspace(0, 1, 20))[:, None]

    @jax.jit
    def both(logits: jax.Array) -> tuple[Any, jax.Array]:
        def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
            each = loss(logits, share * targets)
            return each.sum(), each

        # Beside its gradient: what the loss is of whole targets.
        return jax.grad(total, has_aux=True)(logits), loss(logits, targets)

    (slope, found), whole = jax.device_get(both(logits))
    np.testing.assert_allclose(found, share[:, 0] * whole, rtol=1e-5)
    assert found[0] == 0 and found.dtype == np.float32
    assert np.isfinite(slope).all() and not slope[0].any()


def test_class_weights_are_factors_of_the_targets() -> None:
    logits, targets = soft_batch()
    loss = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights=WEIGHTS)
    smoothed = 0.9 * targets + 0.1 / 6
    np.testing.assert_allclose(
        losses(loss, logits, targets),
        cross_entropy(logits, smoothed * WEIGHTS),
        rtol=1e-5,
    )


def test_automatic_weights_even_out_the_classes() -> None:
    labels, counts = np.repeat([0, 1, 3], [10, 30, 60]), np.array([10, 30, 0, 60, 0])
    loss = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights="auto")
    found = loss.fitted(counts, 100)
    assert loss.automatic and not found.automatic
    weights = np.array(found.class_weights)
    assert found.label_smoothing == 0.1 and loss.class_weights == "auto"
    assert weights[labels].mean() == pytest.approx(1)
    # Each class that there is has the same part of the sum; the others have none.
    parts = weights * [10, 30, 0, 60, 0]
    np.testing.assert_allclose(parts, [100 / 3, 100 / 3, 0, 100 / 3, 0])
    assert weights[2] == weights[4] == 0
    check(found)
    for kind in (BinaryCrossEntropy, Focal):
        assert kind(class_weights="auto").fitted(counts, 100).class_weights == tuple(
            weights
        )


@pytest.mark.parametrize(
    "weights", [(1.0, -0.1), (1.0, np.nan), (1.0, np.inf), (0.0, 0.0), ()]
)
def test_impossible_class_weights_are_named(weights: tuple[float, ...]) -> None:
    said = r"loss\.class_weights(\[1\])? must be (0 or more|a number of sensible size)"
    with pytest.raises(UserError, match=said):
        check(SoftmaxCrossEntropy(class_weights=weights), "loss")
    check(SoftmaxCrossEntropy(class_weights=(0.0, 1.0)))
    check(SoftmaxCrossEntropy(class_weights="auto"))


def test_the_gradient_is_probability_minus_target() -> None:
    logits, targets = soft_batch()
    loss = SoftmaxCrossEntropy(label_smoothing=0.2)
    found = jax.jit(jax.grad(lambda logits: loss(logits, targets).sum()))(logits)
    exponentials = np.exp(np.float64(logits))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        found, probabilities - (0.8 * targets + 0.2 / 6), rtol=1e-4, atol=1e-6
    )


def test_large_logits_do_not_overflow() -> None:
    logits = np.float32([[1e4, -1e4, 0.0]])
    found = losses(SoftmaxCrossEntropy(), logits, np.eye(3, dtype=np.float32)[1:2])
    np.testing.assert_allclose(found, [2e4], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, np.nan])
def test_smoothing_out_of_range_is_named(smoothing: float) -> None:
    with pytest.raises(UserError) as error:
        check(SoftmaxCrossEntropy(label_smoothing=smoothing), "loss")
    allowed = "a number of sensible size" if np.isnan(smoothing) else "0..1, below 1"
    assert "loss.label_smoothing must" in str(error.value)
    assert f"{allowed}, not {smoothing}" in str(error.value)
    check(SoftmaxCrossEntropy(label_smoothing=0.0))
    check(SoftmaxCrossEntropy(label_smoothing=0.999))


# Logit adjustment


def test_logit_adjustment_adds_the_log_of_the_priors() -> None:
    """Menon et al. 2020, equation 10, written with probabilities."""
    logits, targets = soft_batch()
    counts = np.array([1, 50, 3, 700, 20, 226])
    loss = SoftmaxCrossEntropy(logit_adjustment=1.5).fitted(counts, 1000)
    weighted = (counts / 1000) ** 1.5 * np.exp(np.float64(logits))
    probabilities = weighted / weighted.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        losses(loss, logits, targets),
        -(targets * np.log(probabilities)).sum(-1),
        rtol=1e-5,
    )


def test_priors_are_counted_where_they_are_needed() -> None:
    counts = np.array([30, 0, 70])
    loss = SoftmaxCrossEntropy(logit_adjustment=1.0, class_weights="auto")
    found = loss.fitted(counts, 100)
    assert loss.automatic and not found.automatic
    # A class without images would have a logit of minus infinity.
    assert found.class_priors == (0.3, 0.01, 0.7)
    np.testing.assert_allclose(found.class_weights, [100 / 60, 0, 100 / 140])
    assert SoftmaxCrossEntropy(logit_adjustment=1.0).automatic
    without = SoftmaxCrossEntropy()
    assert not without.automatic and without.fitted(counts, 100) == without
    given = SoftmaxCrossEntropy(logit_adjustment=1.0, class_priors=(1.0, 2.0, 3.0))
    assert not given.automatic and given.fitted(counts, 100) == given


# Binary cross-entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_binary_cross_entropy_tells_each_class_by_itself(smoothing: float) -> None:
    logits, targets = soft_batch()
    smoothed = (1 - smoothing) * targets + smoothing / 6
    expected = binary_cross_entropy(logits, smoothed)
    loss = BinaryCrossEntropy(label_smoothing=smoothing)
    found = losses(loss, logits, targets)
    np.testing.assert_allclose(found, expected.mean(-1), rtol=1e-5)
    loss.over_classes = "sum"
    np.testing.assert_allclose(
        losses(loss, logits, targets), expected.sum(-1), rtol=1e-5
    )


def test_targets_above_the_threshold_become_one() -> None:
    logits = np.float32([[1.0, -2.0, 0.5, 0.1]] * 3)
    targets = np.float32([[0.7, 0.3, 0, 0], [0.85, 0.15, 0, 0], [0.5, 0, 0, 0.5]])
    ones = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1]])
    loss = BinaryCrossEntropy(target_threshold=0.2, over_classes="sum")
    expected = binary_cross_entropy(logits, ones).sum(-1)
    np.testing.assert_allclose(losses(loss, logits, targets), expected, rtol=1e-5)
    # Smoothed by a half, 0.7 * 0.5 + 0.5 / 4 = 0.475 and 0.3 * 0.5 + 0.125 = 0.275.
    loss = BinaryCrossEntropy(
        target_threshold=0.28, label_smoothing=0.5, over_classes="sum"
    )
    expected = binary_cross_entropy(logits, ones * [[1, 0, 1, 1]]).sum(-1)
    np.testing.assert_allclose(losses(loss, logits, targets), expected, rtol=1e-5)


def test_class_weights_of_the_binary_loss_are_those_of_the_images() -> None:
    logits, targets = soft_batch()
    plain, weighted = BinaryCrossEntropy(), BinaryCrossEntropy(class_weights=WEIGHTS)
    np.testing.assert_allclose(
        losses(weighted, logits, targets),
        (targets @ np.array(WEIGHTS)) * losses(plain, logits, targets),
        rtol=1e-5,
    )


# Focal loss


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.7])
def test_focal_loss_is_the_formula(gamma: float) -> None:
    logits, targets = soft_batch()
    loss = Focal(gamma=gamma, label_smoothing=0.1, class_weights=WEIGHTS)
    log_p = log_softmax(logits)
    smoothed = (0.9 * targets + 0.1 / 6) * WEIGHTS
    np.testing.assert_allclose(
        losses(loss, logits, targets),
        -(smoothed * (1 - np.exp(log_p)) ** gamma * log_p).sum(-1),
        rtol=1e-5,
    )
    if gamma == 0:
        plain = SoftmaxCrossEntropy(label_smoothing=0.1, class_weights=WEIGHTS)
        np.testing.assert_allclose(
            losses(loss, logits, targets), losses(plain, logits, targets), rtol=1e-6
        )


def test_focal_loss_cares_less_for_what_is_sure() -> None:
    """Lin et al. 2017, section 3.2: at gamma 2 a hundredth of the loss at p = 0.9."""
    logits = np.log(np.float32([[0.9, 0.1], [0.968, 0.032]]))
    targets = np.float32([[1.0, 0.0], [1.0, 0.0]])
    ratio = losses(Focal(), logits, targets) / losses(
        SoftmaxCrossEntropy(), logits, targets
    )
    np.testing.assert_allclose(ratio, [0.01, 0.032**2], rtol=1e-4)


@pytest.mark.parametrize(
    "loss",
    [
        Focal(gamma=0.5),
        Focal(gamma=2.0, label_smoothing=0.1),
        BinaryCrossEntropy(label_smoothing=0.1),
        MultiLabelBinaryCrossEntropy(label_smoothing=0.1),
        MultiLabelAsymmetric(gamma_positive=0.5, gamma_negative=0.5),
        MultiLabelAsymmetric(gamma_positive=0.5, gamma_negative=0.5, margin=0.0),
    ],
)
def test_gradients_are_numbers_however_sure_the_network_is(loss: Loss) -> None:
    targets = np.eye(3, dtype=np.float32)[:2]
    slope = jax.jit(jax.value_and_grad(lambda logits: loss(logits, targets).sum()))
    for size in (0.0, 30.0, 1e4):
        logits = size * np.float32([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]])
        found, slopes = jax.device_get(slope(logits))
        assert np.isfinite(found) and np.isfinite(slopes).all(), size
        assert found >= 0, size


# Any number of labels


def multi_hot() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    logits = np.float32(random.normal(size=(20, 6)) * 4)
    labels = np.uint8(random.random((20, 6)) < 0.3)
    labels[0], labels[1] = 0, 1
    return logits, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_multi_label_loss_is_the_formula(
    smoothing: float, weights: tuple[float, ...] | None
) -> None:
    logits, labels = multi_hot()
    smoothed = (1 - smoothing) * labels + smoothing / 2
    factors = np.ones(6) if weights is None else np.array(weights)
    expected = -smoothed * factors * log_sigmoid(logits)
    expected -= (1 - smoothed) * log_sigmoid(-logits)
    loss = MultiLabelBinaryCrossEntropy(
        label_smoothing=smoothing, positive_weights=weights
    )
    assert loss.multi_label and not SoftmaxCrossEntropy.multi_label
    found = losses(loss, logits, np.float32(labels))
    assert found.shape == (20,) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected.mean(-1), rtol=1e-5)
    loss.over_classes = "sum"
    found = losses(loss, logits, np.float32(labels))
    np.testing.assert_allclose(found, expected.sum(-1), rtol=1e-5)


def test_automatic_positive_weights_even_out_yes_and_no() -> None:
    counts = np.array([10, 50, 0, 100])
    loss = MultiLabelBinaryCrossEntropy(positive_weights="auto")
    found = loss.fitted(counts, 100)
    assert loss.automatic and not found.automatic
    # 90 images without to 10 with; what all or none have is left alone.
    assert found.positive_weights == (9.0, 1.0, 1.0, 1.0)
    check(found)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_asymmetric_loss_is_the_formula(gamma: float, margin: float) -> None:
    logits, labels = multi_hot()
    p = 1 / (1 + np.exp(-np.float64(logits)))
    shifted = np.maximum(p - margin, 0)
    if_yes = -((1 - p) ** 1.5) * np.log(p)
    if_no = -(shifted**gamma) * np.log(1 - shifted)
    loss = MultiLabelAsymmetric(gamma_positive=1.5, gamma_negative=gamma, margin=margin)
    np.testing.assert_allclose(
        losses(loss, logits, np.float32(labels)),
        np.where(labels, if_yes, if_no).mean(-1),
        rtol=2e-5,
    )


def test_asymmetric_loss_without_asymmetry_is_the_binary_one() -> None:
    logits, labels = multi_hot()
    same = MultiLabelAsymmetric(
        gamma_positive=0.0,
        gamma_negative=0.0,
        margin=0.0,
        label_smoothing=0.1,
        positive_weights=WEIGHTS,
    )
    plain = MultiLabelBinaryCrossEntropy(label_smoothing=0.1, positive_weights=WEIGHTS)
    for sure in (logits, 100 * logits):
        found, expected = (
            losses(loss, sure, np.float32(labels)) for loss in (same, plain)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# Distillation


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_the_divergence_from_the_teacher(temperature: float) -> None:
    random = np.random.default_rng(3)
    student, teacher = np.float32(random.normal(size=(2, 12, 5)) * 3)
    log_student = log_softmax(student / temperature)
    log_teacher = log_softmax(teacher / temperature)
    each = np.exp(log_teacher) * (log_teacher - log_student)
    distill = jax.jit(distillation_loss)
    found = distill(student, teacher, temperature)
    assert found.shape == (12,) and found.dtype == np.float32
    np.testing.assert_allclose(found, temperature**2 * each.sum(-1), rtol=1e-4)
    np.testing.assert_allclose(distill(teacher, teacher, temperature), 0, atol=1e-5)


def test_distillation_keeps_its_gradients_at_high_temperatures() -> None:
    """Hinton et al. 2015, equation 4: of logits with mean 0, (student - teacher) / classes."""
    student, teacher = np.float32([[1.0, -2.0, 1.0]]), np.float32([[0.5, 0.5, -1.0]])
    slope = jax.jit(
        jax.grad(lambda logits: distillation_loss(logits, teacher, 1000.0).sum())
    )
    np.testing.assert_allclose(slope(student), (student - teacher) / 3, rtol=1e-2)


# Options and labels


def test_a_loss_does_not_change_the_logits_it_is_given() -> None:
    logits, targets = soft_batch()
    logits = np.array(logits)
    before = logits.copy()
    priors = (1, 2, 3, 4, 5, 6)
    # Not compiled, where it could not.
    SoftmaxCrossEntropy(logit_adjustment=1.0, class_priors=priors)(logits, targets)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("loss", [Focal(), BinaryCrossEntropy(), SoftmaxCrossEntropy()])
def test_numbers_must_be_one_for_each_class(loss: SoftmaxCrossEntropy) -> None:
    loss.check_classes(7)
    loss.class_weights = (1.0, 2.0)
    loss.check_classes(2)
    with pytest.raises(UserError, match=r"class_weights has 2 numbers for the 3 class"):
        loss.check_classes(3)


def test_priors_and_positive_weights_must_be_one_for_each_class() -> None:
    with pytest.raises(UserError, match=r"loss\.class_priors has 1 numbers"):
        SoftmaxCrossEntropy(class_priors=(1.0,)).check_classes(3)
    with pytest.raises(UserError, match=r"loss\.positive_weights has 1 numbers"):
        MultiLabelAsymmetric(positive_weights=(1.0,)).check_classes(3)
    MultiLabelBinaryCrossEntropy(positive_weights="auto").check_classes(3)


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (SoftmaxCrossEntropy(logit_adjustment=-1.0), "logit_adjustment"),
        (SoftmaxCrossEntropy(logit_adjustment=np.nan), "logit_adjustment"),
        (SoftmaxCrossEntropy(class_priors=(0.5, 0.0)), "class_priors"),
        (SoftmaxCrossEntropy(class_priors=()), "class_priors"),
        (BinaryCrossEntropy(target_threshold=1.0), "target_threshold"),
        (BinaryCrossEntropy(target_threshold=-0.1), "target_threshold"),
        (BinaryCrossEntropy(class_weights=(-1.0,)), "class_weights"),
        (BinaryCrossEntropy(label_smoothing=1.0), "label_smoothing"),
        (Focal(gamma=-0.1), "gamma"),
        (Focal(gamma=np.inf), "gamma"),
        (Focal(class_weights=(0.0,)), "class_weights"),
        (MultiLabelBinaryCrossEntropy(positive_weights=(-1.0,)), "positive_weights"),
        (MultiLabelBinaryCrossEntropy(label_smoothing=1.0), "label_smoothing"),
        (MultiLabelAsymmetric(gamma_positive=-1.0), "gamma_positive"),
        (MultiLabelAsymmetric(gamma_negative=np.nan), "gamma_negative"),
        (MultiLabelAsymmetric(margin=1.0), "margin"),
        (MultiLabelAsymmetric(positive_weights=(0.0,)), "positive_weights"),
    ],
)
def test_options_out_of_range_are_named(loss: Loss, option: str) -> None:
    with pytest.raises(UserError, match=rf"^loss\.{option}(\[\d\])? must .* not "):
        check(loss, "loss")
    check(type(loss)())


def test_priors_that_nothing_uses_are_named() -> None:
    with pytest.raises(
        UserError, match=r"class_priors are given, but .*adjustment is 0"
    ):
        check(SoftmaxCrossEntropy(class_priors=(0.5, 0.5)))
    check(SoftmaxCrossEntropy(class_priors=(0.5, 0.5), logit_adjustment=0.1))


@pytest.mark.parametrize(
    ("threshold", "smoothing", "num_classes", "is_between"),
    [
        # The own class has 1 - s + s / C, the others s / C; what is above becomes 1.
        (0.7, 0.5, 4, False),
        (0.625, 0.5, 4, False),
        (0.62, 0.5, 4, True),
        (0.125, 0.5, 4, True),
        (0.12, 0.5, 4, False),
        (0.0, 0.0, 4, True),
        (0.2, 0.1, 1000, True),
    ],
)
def test_a_threshold_tells_the_class_of_a_whole_image(
    threshold: float, smoothing: float, num_classes: int, is_between: bool
) -> None:
    loss = BinaryCrossEntropy(target_threshold=threshold, label_smoothing=smoothing)
    check(loss)
    # Where all targets are alike, so are the losses of all classes.
    targets = np.eye(num_classes, dtype=np.float32)
    each = losses(loss, np.repeat(targets[:1], num_classes, 0), targets)
    assert (np.ptp(each) > 0) == is_between
    if is_between:
        loss.check_classes(num_classes)
    else:
        said = rf"target_threshold {threshold} .* target 0\.625 and the others 0\.125"
        with pytest.raises(UserError, match=said):
            loss.check_classes(num_classes)


def test_labels_as_targets() -> None:
    call = jax.jit(as_targets, static_argnums=1)
    one = call(np.int32([2, 0]), 3)
    several = call(np.uint8([[0, 1, 1], [0, 0, 0]]), 3)
    assert one.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert several.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert one.dtype == several.dtype == np.float32


def test_a_loss_for_another_kind_of_labels_is_named() -> None:
    one, several = np.array([1, 0, 2]), np.eye(3, dtype=np.uint8)
    Focal().check_labels(one, "pets")
    MultiLabelAsymmetric().check_labels(several, "pets")
    said = "of pets have any number of classes each, but the loss is Focal"
    with pytest.raises(UserError, match=said):
        Focal().check_labels(several, "pets")
    said = "of pets have one class each, but the loss is MultiLabelAsymmetric"
    with pytest.raises(UserError, match=said):
        MultiLabelAsymmetric().check_labels(one, "pets")
