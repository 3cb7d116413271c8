"""Writes goldens.npz: what torchvision computes in float64, for tests that have no PyTorch.

python -m tests.references.make_goldens [NAME ...]

Without names all networks, which takes minutes; with names, those are replaced. Prints for each
network how different two images' logits are, and how far float32 is from float64.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from tests.references import formula, torch_models

PATH = Path(__file__).parent / "goldens.npz"
NUM_CLASSES = 100

# (height, width) of the two images of each network in evaluation. At heights and widths of
# 2^k m + 1 the padding of "SAME" equals PyTorch's in every strided layer and a mistake would
# not show; 64x96 is even down to the last map, and not square.
DEFAULT_SIZE = (64, 96)
SIZES = {
    # The adaptive pool to 6x6 sees 3x8 pixels: rows repeat, columns overlap.
    "alexnet": (128, 288),
    # To 7x7 it sees 2x9 pixels; in the other VGGs 2x3.
    "vgg11": (64, 288),
    # Windows hang over the edge in both directions in the first three pools, in one in the
    # fourth (2x2 on 4x5 pixels).
    "googlenet": (64, 80),
    # At least 75.
    "inception_v3": (128, 160),
}
EVALUATED = [
    "alexnet",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    "googlenet",
    "inception_v3",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    "wide_resnet50_2",
    "resnext50_32x4d",
    *(f"efficientnet_b{i}" for i in range(8)),
    *(f"efficientnet_v2_{size}" for size in "sml"),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large")),
]
# (images, height, width) of the step of training.
TRAINED = {
    "resnet18": (4, 32, 64),
    # The auxiliary heads pool 5x6 pixels to 4x4.
    "googlenet": (2, 80, 96),
    # The auxiliary head's last batch norm sees 1x2 pixels, or 1x1 below a width of 347.
    "inception_v3": (2, 300, 348),
    "efficientnet_b0": (4, 32, 64),
    "convnext_tiny": (2, 32, 64),
}

Goldens = dict[str, np.ndarray]


def relative(values: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference in units of the largest value."""
    return float(np.abs(values - expected).max() / np.abs(expected).max())


def layout(shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Returns the entries of a state as text: "conv1.weight 64 3 7 7"."""
    return np.array([" ".join([name, *map(str, s)]) for name, s in shapes.items()])


def evaluate(
    model: torch.nn.Module, images: np.ndarray, dtype: torch.dtype
) -> np.ndarray:
    """Returns the logits of images [batch, height, width, channels]."""
    with torch.no_grad():
        return model(torch_models.to_torch_images(images, dtype)).double().numpy()


def evaluation(name: str) -> tuple[Goldens, dict[str, float]]:
    """Returns the golden values of evaluation, and the calibration."""
    model = torch_models.build_torchvision(name, NUM_CLASSES)
    size = SIZES.get(name, DEFAULT_SIZE)
    images = formula.images(2, *size)
    measured = torch_models.calibrate(
        model, torch_models.to_torch_images(images, torch.float64)
    )
    # Those of auxiliary heads have not been reached.
    shapes = torch_models.shapes(model)
    calibration = {
        norm: measured.get(norm, 1.0) for norm in formula.batch_norms(shapes)
    }
    logits = evaluate(model, images, torch.float64)
    first_norms = train_first_norms(model, images)
    model = torch_models.build_torchvision(
        name, NUM_CLASSES, calibration, torch.float32
    )
    noise = relative(evaluate(model, images, torch.float32), logits)
    spread = (logits[0] - logits[1]).std() / (2**0.5 * logits.std())
    print(
        f"{name}: logits' std {logits.std():.2f}, two images' difference {spread:.2f} of "
        f"independent ones, float32 noise {noise:.0e}"
    )
    assert spread > 0.2 and 0.3 < logits.std() < 30, name
    return {
        "layout": layout(shapes),
        "calibration": np.array(list(calibration.values())),
        "images": np.array(images.shape[:3]),
        "logits": logits,
        "first_norms": first_norms,
    }, calibration


def train_first_norms(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Returns mean and variance of the first batch norm, then of the second, one after the
    other, when the two have seen a batch of training; none for a network without. Leaves the
    model changed."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)][:2]
    for norm in norms:
        norm.train()
    evaluate(model, images, torch.float64)
    statistics = [(norm.running_mean, norm.running_var) for norm in norms]
    return np.concatenate([[], *(each.numpy() for pair in statistics for each in pair)])


def trained(
    name: str, calibration: dict[str, float], dtype: torch.dtype
) -> dict[str, np.ndarray]:
    """Returns the golden values of a step of training."""
    model = torch_models.build_torchvision(name, NUM_CLASSES, calibration, dtype)
    torch_models.train_without_noise(model)
    size = TRAINED[name]
    images = torch_models.to_torch_images(formula.images(*size), dtype)
    labels = formula.labels(size[0], NUM_CLASSES)
    loss, logits, gradients = torch_models.train_step(model, images, labels)
    statistics = {
        key: value
        for key, value in torch_models.state(model).items()
        if key.endswith(("running_mean", "running_var"))
    }
    return {
        "train/images": np.array(size),
        "train/loss": np.array(loss),
        "train/logits": np.stack(logits),
        "train/gradients": signatures(gradients),
        "train/statistics": signatures(statistics),
    }


def signatures(tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Returns float64 [tensors, 3]."""
    rows = [formula.signature(name, value) for name, value in tensors.items()]
    return np.stack(rows) if rows else np.zeros((0, 3))


def training(name: str, calibration: dict[str, float]) -> Goldens:
    """Returns the golden values of a step of training, after comparing them with float32."""
    exact = trained(name, calibration, torch.float64)
    rounded = trained(name, calibration, torch.float32)
    noise = {"loss": relative(rounded["train/loss"], exact["train/loss"])}
    noise["logits"] = relative(rounded["train/logits"], exact["train/logits"])
    for key in ("gradients", "statistics"):
        ours, theirs = rounded[f"train/{key}"], exact[f"train/{key}"]
        norms = theirs[:, :1]
        # Gradients that are zero by arithmetic are left out.
        counted = norms > 1e-9 * np.linalg.norm(norms)
        if counted.any():
            noise[key] = float((np.abs(ours - theirs) / norms)[counted[:, 0]].max())
    print(
        f"  training: loss {float(exact['train/loss']):.3f}, float32 noise "
        + ", ".join(f"{key} {value:.0e}" for key, value in noise.items())
    )
    return exact


def main(names: list[str]) -> None:
    """Writes the golden values of some networks, or of all."""
    goldens: Goldens = {}
    if names:
        goldens = dict(np.load(PATH))
    for name in names or EVALUATED:
        start = time.perf_counter()
        values, calibration = evaluation(name)
        if name in TRAINED:
            values |= training(name, calibration)
        goldens |= {f"{name}/{key}": value for key, value in values.items()}
        print(f"  {time.perf_counter() - start:.1f} s", flush=True)
    np.savez_compressed(PATH, allow_pickle=False, **goldens)
    print(f"{PATH.name}: {PATH.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
