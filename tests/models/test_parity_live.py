"""Every tensor of the networks against PyTorch's own, where it is installed.

pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31
python -m pytest tests/models/test_parity_live.py
"""

from typing import Any

import numpy as np
import pytest

from jaxcls.models.weights.pretrained import from_torch, to_torch
from tests.references import formula, jax_models

torch = pytest.importorskip("torch")
torch_models = pytest.importorskip("tests.references.torch_models")

pytestmark = pytest.mark.torch

NUM_CLASSES = 10


def assert_close(
    values: Any, expected: Any, tolerance: float, what: str = "", floor: float = 0.0
) -> None:
    """Compares by the largest value expected, or by `floor` where that is larger."""
    assert values.shape == expected.shape, what
    largest = max(np.abs(expected).max(), floor)
    worst = np.abs(values - expected).max() / largest
    assert worst <= tolerance, f"{what} off by {worst:.1e} of the largest"


def calibrated(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """The state of a network whose batch norms have been fitted to images."""
    torch_models.calibrate(model, torch_models.to_torch_images(images, torch.float64))
    return {
        key: value.astype(np.float32) if value.dtype == np.float64 else value
        for key, value in torch_models.state(model).items()
    }


def logits_of(model: Any, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch_models.to_torch_images(images, torch.float64)).numpy()


SIZES = {
    "alexnet": (2, 96, 160),
    "vgg11_bn": (2, 32, 64),
    "googlenet": (2, 80, 96),
    # Below 299 torchvision's auxiliary head has no pixels left to see.
    "inception_v3": (2, 300, 348),
    "resnet18": (4, 32, 64),
    "resnet50": (4, 32, 64),
    "resnext50_32x4d": (4, 32, 64),
    "efficientnet_b0": (4, 32, 64),
    "efficientnet_v2_s": (4, 32, 64),
    "convnext_tiny": (2, 32, 64),
}
"""(images, height, width). Even, as "SAME" differs from torch's padding at even sizes only."""


@pytest.mark.parametrize("name", SIZES)
def test_a_step_of_training_is_torchvisions_in_every_tensor(name: str) -> None:
    images = formula.images(*SIZES[name]).astype(np.float64)
    labels = formula.labels(len(images), NUM_CLASSES)
    model = torch_models.build_torchvision(name, NUM_CLASSES)
    state = calibrated(model, images)
    variables = from_torch(name, state)

    expected = logits_of(model, images)
    logits = jax_models.evaluate(name, variables, images, NUM_CLASSES)
    assert_close(logits, expected, 1e-10, "logits in evaluation")

    torch_models.train_without_noise(model)
    expected_loss, expected_logits, gradients = torch_models.train_step(
        model, torch_models.to_torch_images(images, torch.float64), labels
    )
    loss, logits, new = jax_models.train_step(
        name, variables, images, labels, NUM_CLASSES, differentiate=True
    )
    assert_close(np.array(loss), np.array(expected_loss), 1e-10, "loss")
    assert_close(logits, np.stack(expected_logits), 1e-10, "logits in training")
    found = to_torch(name, new)
    after = torch_models.state(model)
    # Gradients that are zero by arithmetic are not zero after rounding.
    floor = 1e-6 * max(np.abs(gradient).max() for gradient in gradients.values())
    for key, gradient in gradients.items():
        # to_torch rounds to float32, by 6e-8.
        assert_close(found.pop(key), gradient, 1e-6, f"gradient of {key}", floor)
    for key, value in found.items():
        if not key.endswith("num_batches_tracked"):
            assert_close(value, after[key], 1e-6, key)


# TensorFlow's padding and epsilon, with which the weights of timm's "tf_" networks were trained.
TENSORFLOW = {"padding": "same", "bn_epsilon": 1e-3}


TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50": ("resnet50", {}),
    "vgg11": ("vgg11", {}),
    "vgg11_bn": ("vgg11_bn", {}),
    "inception_v3": ("inception_v3", {}),
    "efficientnet_b0": ("efficientnet_b0", {}),
    "tf_efficientnet_b0": ("efficientnet_b0", TENSORFLOW),
    "tf_efficientnetv2_s": ("efficientnet_v2_s", TENSORFLOW),
    "convnext_tiny": ("convnext_tiny", {}),
}
"""timm's name: ours, and our options."""


@pytest.mark.parametrize("timm_name", TIMM)
def test_networks_are_timms(timm_name: str) -> None:
    pytest.importorskip("timm")
    name, options = TIMM[timm_name]
    size = (128, 160) if name == "inception_v3" else (64, 96)
    images = formula.images(2, *size).astype(np.float64)
    model = torch_models.build_timm(timm_name, NUM_CLASSES)
    state = calibrated(model, images)
    variables = from_torch(name, state, **options)
    if name == "inception_v3":
        options = {**options, "aux_weight": 0.0}  # timm's has no auxiliary head
    logits = jax_models.evaluate(name, variables, images, NUM_CLASSES, **options)
    assert_close(logits, logits_of(model, images), 1e-10)

    back = to_torch(name, variables, dialect="timm", **options)
    assert set(back) == set(state)
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
