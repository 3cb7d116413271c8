"""The lesson's CIFAR-10 program in PyTorch: the independent reference of our recipe for it.

    python -m tests.references.lesson_torch --data cifar10 --device cuda

ResNet-18 with a 3x3 stem of stride 1 and no max-pool, batches of 128, AdamW at 1e-3 with decay
0.05 of every parameter, 5 epochs of linear warm-up and a cosine to 1e-6, stepped once an epoch,
label smoothing 0.1, gradients clipped to norm 1.

Needs torch and torchvision (written for 2.13.0 and 0.28.0) and nothing of jaxcls.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from tests.references.torch_models import torchvision

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
CLASSES = 10
SIDE = 32
BATCH, EVAL_BATCH = 128, 256
RATE, LAST_RATE = 1e-3, 1e-6
EPOCHS, WARMUP_EPOCHS = 100, 5


def network() -> nn.Module:
    """Returns torchvision's ResNet-18 with the stem for 32-pixel images, newly initialised."""
    model = torchvision.models.resnet18(weights=None, num_classes=CLASSES)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Returns AdamW with PyTorch's default for what decays: everything, norms and biases too."""
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)


def schedule_of(
    optimizer: torch.optim.Optimizer, epochs: int, warmup_epochs: int = WARMUP_EPOCHS
) -> Any:
    """Returns the scheduler, to be stepped after each epoch.

    Args:
      optimizer: at its peak rate.
      epochs: of the whole run, 1 or more; no more than `warmup_epochs` are a part of the line.
      warmup_epochs: of a line from a hundredth of the peak; 0 begins at the peak.
    """
    cosine = lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=max(epochs - warmup_epochs, 1), eta_min=LAST_RATE
    )
    if not warmup_epochs:
        return cosine
    line = lr_scheduler.LinearLR(
        optimizer, start_factor=0.01, total_iters=warmup_epochs
    )
    return lr_scheduler.SequentialLR(
        optimizer, [line, cosine], milestones=[warmup_epochs]
    )


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Makes one step of training.

    Args:
      model: in training mode.
      optimizer: of its parameters.
      images: normalised floats [batch, 3, height, width].
      labels: int64 [batch].

    Returns:
      The loss before the step, a scalar on the device.
    """
    loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    optimizer.step()
    return loss.detach()


def normalized(images: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns uint8 images [batch, height, width, 3] as the network takes them, [batch, 3,
    height, width]."""
    scaled = torch.tensor(images).permute(0, 3, 1, 2).to(dtype) / 255
    mean, std = (torch.tensor(v, dtype=dtype).reshape(3, 1, 1) for v in (MEAN, STD))
    return ((scaled - mean) / std).contiguous()


def first_losses(
    weights: Mapping[str, np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    steps_per_epoch: int,
    epochs: int = EPOCHS,
    warmup_epochs: int = WARMUP_EPOCHS,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """Trains on batches as they are, normalised but without augmentation.

    Args:
      weights: initial state dict of `network()`.
      batches: (images uint8 [batch, height, width, 3], labels int [batch]), one for each step.
      steps_per_epoch: steps after which the rate changes.
      epochs: of the whole run, on which the rate depends.
      warmup_epochs: 0 begins at the peak rate.
      dtype: of the computation; float64 tells what rounding to float32 alone does.

    Returns:
      The loss of each step, before the step.
    """
    model = network()
    model.load_state_dict(
        {name: torch.tensor(value) for name, value in weights.items()}
    )
    model.to(dtype).train()
    optimizer = optimizer_of(model)
    schedule = schedule_of(optimizer, epochs, warmup_epochs)
    losses = []
    for step, (images, labels) in enumerate(batches, start=1):
        target = torch.tensor(labels).long()
        loss = train_step(model, optimizer, normalized(images, dtype), target)
        losses.append(loss.item())
        if step % steps_per_epoch == 0:
            schedule.step()
    return losses


def augmentation() -> Any:
    """Returns the transforms of a training image, from PIL to a normalised tensor."""
    transforms = torchvision.transforms
    return transforms.Compose(
        [
            transforms.RandomCrop(SIDE, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            transforms.RandAugment(num_ops=2, magnitude=9),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            transforms.RandomErasing(p=0.25),
        ]
    )


def eval_transform() -> Any:
    """Returns the transforms of a test image."""
    transforms = torchvision.transforms
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def loaders(
    data: Path, workers: int, device: torch.device
) -> tuple[DataLoader, DataLoader]:
    """Returns the batches of training and of testing.

    Args:
      data: a folder with the folders "train" and "test", each with a folder for each class.
      workers: processes that decode and augment; 0 does it in this one.
      device: where the batches will go.
    """
    folder = torchvision.datasets.ImageFolder
    shared = {
        "num_workers": workers,
        "pin_memory": device.type == "cuda",
        "persistent_workers": workers > 0,
    }
    train = folder(data / "train", augmentation())
    test = folder(data / "test", eval_transform())
    return (
        DataLoader(train, batch_size=BATCH, shuffle=True, **shared),
        DataLoader(test, batch_size=EVAL_BATCH, **shared),
    )


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader,
    device: torch.device,
) -> tuple[float, float]:
    """Trains for an epoch.

    Returns:
      The mean loss, and images per second with all waiting for data, to the end of the last
      step on the device.
    """
    model.train()
    total, count = torch.zeros((), device=device), 0
    start = time.perf_counter()
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        total += train_step(model, optimizer, images, labels) * len(images)
        count += len(images)
    mean = total.item() / count  # waits for the device
    return mean, count / (time.perf_counter() - start)


@torch.inference_mode()
def accuracy(model: nn.Module, batches: DataLoader, device: torch.device) -> float:
    """Returns the share of the images that the network gets right, 0..1."""
    model.eval()
    right, count = torch.zeros((), dtype=torch.int64, device=device), 0
    for images, labels in batches:
        predicted = model(images.to(device, non_blocking=True)).argmax(1)
        right += (predicted == labels.to(device, non_blocking=True)).sum()
        count += len(images)
    return right.item() / count


def run(data: Path, epochs: int, device: torch.device, workers: int) -> float:
    """Trains and evaluates epoch by epoch, with a line for each; returns the last accuracy."""
    train, test = loaders(data, workers, device)
    model = network().to(device)
    optimizer = optimizer_of(model)
    schedule = schedule_of(optimizer, epochs)
    top1 = 0.0
    for epoch in range(1, epochs + 1):
        rate = optimizer.param_groups[0]["lr"]
        loss, speed = train_epoch(model, optimizer, train, device)
        schedule.step()
        top1 = accuracy(model, test, device)
        print(
            f"epoch {epoch}/{epochs}  rate {rate:.3e}  loss {loss:.4f}  "
            f"test top-1 {top1:.2%}  {speed:,.0f} img/s",
            flush=True,
        )
    return top1


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.references.lesson_torch",
        description="The lesson's CIFAR-10 program in PyTorch.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train/CLASS/* and test/CLASS/*",
    )
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help="of the whole run; its schedule fits"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that load; one for each core unless given",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error(f"--epochs must be 1 or more, not {arguments.epochs}")
    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    print(
        f"torch {torch.__version__} on {device}, {arguments.workers} loading processes"
    )
    run(arguments.data, arguments.epochs, device, arguments.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
