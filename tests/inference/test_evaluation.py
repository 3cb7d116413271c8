"""One batch and one split evaluated, against NumPy and scikit-learn."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from jaxcls import parallel
from jaxcls.augment import FlipViews, Normalize, Views
from jaxcls.data import ArraySource
from jaxcls.data.loader import EvalBatches, load_rows
from jaxcls.inference.evaluation import Evaluator
from jaxcls.inference.forward import Forward, eval_step
from jaxcls.losses import (
    BinaryCrossEntropy,
    Loss,
    MultiLabelBinaryCrossEntropy,
    SoftmaxCrossEntropy,
)
from jaxcls.metrics import EvalOutput, compute, metric_names
from jaxcls.report.progress import eval_line
from jaxcls.training import placement
from tests import commands

CLASSES, PIXELS = 7, 9
NORMALIZE = Normalize(mean=(0.5,), std=(0.25,))


class Linear(nn.Module):
    """A network that NumPy knows too."""

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


def weights(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    dense = {
        "kernel": np.float32(random.normal(size=(PIXELS, CLASSES))),
        "bias": np.float32(random.normal(size=CLASSES)),
    }
    return {"params": {"Dense_0": dense}, "batch_stats": {}}


def logits_of(
    variables: dict[str, Any], images: np.ndarray, views: Views | None = None
) -> np.ndarray:
    x = (images / 255 - 0.5) / 0.25
    if views is not None:  # of a linear network, the mean over both is that of the mean
        x = (x + x[:, :, ::-1]) / 2
    dense = variables["params"]["Dense_0"]
    return x.reshape(len(x), -1) @ np.float64(dense["kernel"]) + dense["bias"]


class Several(ArraySource):
    """Images of any number of classes."""

    def __init__(self, size: int) -> None:
        images = np.random.default_rng(0).integers(0, 256, (size, 3, 3, 1), np.uint8)
        names = tuple(map(str, range(CLASSES)))
        super().__init__("several", images, np.zeros(size, int), names)
        self.labels = np.uint8(np.random.default_rng(1).random((size, CLASSES)) < 0.3)
        self.labels[:, 4] = 0
        self.max_bad_share = 1.0

    def gather(
        self, indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Every fifth cannot be read."""
        return {**super().gather(indices), "mask": indices % 5 != 3}


def bound(loss: Loss, views: Views | None = None) -> Any:
    """Returns the step as (variables, batch) -> what it gives."""
    return jax.jit(
        functools.partial(
            eval_step,
            model=Linear(),
            transforms=(NORMALIZE,),
            views=views,
            loss=loss,
        )
    )


def softmax_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_probabilities[np.arange(len(labels)), labels].mean()


# One batch


@pytest.mark.parametrize("views", [None, FlipViews()])
def test_eval_step_is_numpys_and_leaves_padding_out(views: Views | None) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 3, 3, 1), dtype=np.uint8)
    labels, mask = np.int32(random.integers(0, CLASSES, 40)), np.arange(40) < 35
    batch = {"image": images, "label": labels, "mask": mask}
    found = bound(SoftmaxCrossEntropy(), views)(weights(1), batch)

    logits, labels = logits_of(weights(1), images, views)[mask], labels[mask]
    order = np.argsort(-logits, axis=-1)
    assert compute(found.sums, "eval") == pytest.approx(
        {
            "eval/loss": softmax_loss(logits, labels),
            "eval/top1": (order[:, 0] == labels).mean(),
            "eval/top5": (order[:, :5] == labels[:, None]).any(-1).mean(),
            "eval/balanced_top1": balanced_accuracy_score(labels, order[:, 0]),
        },
        rel=1e-5,
    )
    assert found.logits is None


def test_what_is_measured_does_not_depend_on_what_was_trained_with() -> None:
    source = ArraySource(
        "one", Several(40).images, np.arange(40) % CLASSES, Several(40).class_names
    )
    batch = load_rows(source, np.arange(40))
    del batch["id"]
    losses = (
        SoftmaxCrossEntropy(),
        SoftmaxCrossEntropy(label_smoothing=0.4, logit_adjustment=1.0),
        BinaryCrossEntropy(over_classes="sum"),
    )
    first, *others = (bound(loss)(weights(1), batch) for loss in losses)
    for other in others:
        for one, same in zip(
            jax.tree.leaves(first), jax.tree.leaves(other), strict=True
        ):
            np.testing.assert_array_equal(one, same)


# A split


def evaluator(step: Any, source: ArraySource, devices: int = 1) -> Evaluator:
    config = commands.load_config(commands.RECIPES / "tiny.py")
    config.evaluation.batch_size = 16
    mesh = parallel.make_mesh(devices)
    forward = Forward(config, mesh=mesh, num_classes=CLASSES, image_shape=(3, 3, 1))
    return Evaluator(step, source, forward)


def evaluated(source: ArraySource, loss: Loss, devices: int = 1) -> dict[str, Any]:
    both = {"": weights(1), "_ema": weights(2)}
    with evaluator(bound(loss), source, devices) as found:
        first = found.evaluate(both)
        assert found.evaluate(both) == first
    assert first is not None
    return first


@pytest.mark.parametrize("devices", [1, 8])
def test_a_split_with_any_number_of_labels(devices: int) -> None:
    source = Several(101)
    found = evaluated(source, MultiLabelBinaryCrossEntropy(), devices)
    good = np.arange(101) % 5 != 3
    labels = source.labels[good]
    expected = {"eval/examples": good.sum(), "eval/bad_images": (~good).sum()}
    for suffix, seed in (("", 1), ("_ema", 2)):
        logits = logits_of(weights(seed), source.images[good])
        losses = np.where(labels, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))
        precisions = [
            average_precision_score(labels[:, k], logits[:, k])
            for k in range(CLASSES)
            if k != 4  # it never occurs
        ]
        expected |= {
            f"eval/loss{suffix}": losses.mean(),
            f"eval/top1{suffix}": labels[
                np.arange(len(labels)), logits.argmax(-1)
            ].mean(),
            f"eval/mAP{suffix}": np.mean(precisions),
        }
    assert found == pytest.approx(expected, rel=1e-5)
    assert set(metric_names(multi_label=True)) <= set(found)


def test_classes_are_counted_over_all_batches() -> None:
    """The mean over the batches of their recalls would be another number."""
    images = Several(90).images
    labels = np.random.default_rng(3).integers(0, CLASSES, 90) ** 2 // CLASSES
    source = ArraySource("one", images, labels, Several(90).class_names)
    found = evaluated(source, SoftmaxCrossEntropy())
    predicted = logits_of(weights(2), images).argmax(-1)
    expected = np.mean([(predicted == k)[labels == k].mean() for k in set(labels)])
    assert found["eval/balanced_top1_ema"] == pytest.approx(expected, rel=1e-12)
    assert set(metric_names(multi_label=False)) <= set(found)


def test_logits_do_not_wait_on_the_devices_for_the_end_of_the_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of three batches are there at most."""
    compiled = bound(MultiLabelBinaryCrossEntropy())
    given: list[jax.Array | None] = []
    taken: list[int] = []
    device_get = jax.device_get

    def step(variables: Any, batch: dict[str, jax.Array]) -> EvalOutput:
        output = compiled(variables, batch)
        given.append(output.logits)
        return output

    def watched(values: Any) -> Any:
        leaves = jax.tree.leaves(values)
        if any(leaf is logits for leaf in leaves for logits in given):
            taken.append(len(given))
        return device_get(values)

    monkeypatch.setattr(jax, "device_get", watched)
    with evaluator(step, Several(160)) as found:
        found.evaluate({"": weights(1)})
    assert taken == [3, 4, 5, 6, 7, 8, 9, 10, 10, 10]


# What is shown, and labels in the devices' memory


def test_the_line_of_an_evaluation_shows_what_there_is() -> None:
    common = {"step": 7, "eval/examples": 50, "eval/top1": 0.5, "eval/loss": 1.25}
    assert eval_line({**common, "eval/mAP": 0.25}) == (
        "evaluation at step 7 on 50 images: top-1 50.00%  mAP 25.00%  loss 1.2500"
    )
    values = {**common, "eval/top5": 0.75, "eval/balanced_top1": 0.3}
    values |= {f"{name}_ema": 1.0 for name in metric_names(multi_label=False)}
    assert eval_line(values) == (
        "evaluation at step 7 on 50 images: top-1 50.00%  balanced 30.00%  top-5 75.00%  "
        "loss 1.2500  |  EMA: top-1 100.00%  balanced 100.00%  top-5 100.00%  loss 1.0000"
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_any_number_of_labels_on_the_devices(devices: int) -> None:
    mesh, source = parallel.make_mesh(devices), Several(101)
    batches = EvalBatches(source, batch_size=16)
    every = (batches[index] for index in range(len(batches)))
    shapes = placement.record_shapes(mesh, 101, (3, 3, 1), CLASSES)
    records = placement.place(every, len(source), shapes)
    for name, shape in shapes.items():
        assert (records[name].shape, records[name].dtype) == (shape.shape, shape.dtype)
    ids = np.random.default_rng(1).permutation(96).astype(np.int32)
    gather = jax.jit(placement.gather, static_argnums=(0, 3))
    rows = gather(mesh, records, ids, (3, 3, 1))
    assert rows["label"].dtype == jnp.uint8
    for name, values in source.gather(ids).items():
        np.testing.assert_array_equal(rows[name], values)
