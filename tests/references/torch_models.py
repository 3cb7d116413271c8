"""torchvision's and timm's networks with the formula's weights: the references, in PyTorch.

Written for torch 2.13.0, torchvision 0.28.0 and timm 1.0.31. Only tests with the marker "torch"
and the script that writes the golden values import this module.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import library

from tests.references import formula

try:
    import torchvision
except RuntimeError:
    # A torchvision compiled for CUDA beside a PyTorch without: none of its own operators load,
    # and two of them, which no classifier calls, are looked up unconditionally. Declared before
    # it is imported again, they are found; the object must live as long as they do.
    _OPERATORS = library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(
            f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    import torchvision


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every entry of a network's state."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns a network's state as NumPy arrays."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


def load(
    model: torch.nn.Module, calibration: dict[str, float], dtype: torch.dtype
) -> torch.nn.Module:
    """Gives a network the formula's weights, in evaluation mode."""
    values = formula.state_dict(shapes(model), calibration)
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in values.items()}
    )
    return model.to(dtype).eval()


def build_torchvision(
    name: str,
    num_classes: int,
    calibration: dict[str, float] | None = None,
    dtype: torch.dtype = torch.float64,
) -> torch.nn.Module:
    """Returns a network of torchvision with the formula's weights, in evaluation mode."""
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # otherwise it warns, and takes a minute
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **options
        )
    return load(model.to_empty(device="cpu"), calibration or {}, dtype)


def build_timm(
    name: str, num_classes: int, dtype: torch.dtype = torch.float64
) -> torch.nn.Module:
    """Returns a network of timm with the formula's weights, in evaluation mode."""
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return load(model, {}, dtype)


def calibrate(model: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Fits the running statistics of every batch norm to what reaches it.

    One forward pass does it, in which every batch norm measures its input before it normalises.

    Returns:
      The mean square of each batch norm's input, which the formula makes its statistics from.
    """
    measured: dict[str, float] = {}

    def hook(name: str) -> Callable[[torch.nn.Module, Any], None]:
        def measure(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
            measured[name] = float(inputs[0].square().mean())
            for field in ("running_mean", "running_var"):
                buffer = getattr(module, field)
                values = formula.running_statistics(
                    f"{name}.{field}", tuple(buffer.shape), measured[name]
                )
                buffer.copy_(torch.from_numpy(values))

        return measure

    hooks = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(images)
    for handle in hooks:
        handle.remove()
    return measured


def train_without_noise(model: torch.nn.Module) -> torch.nn.Module:
    """Puts a network into training mode with every kind of dropout at probability 0."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0
    return model.train()


def to_torch_images(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Returns images [batch, height, width, channels] in PyTorch's order."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)


def train_step(
    model: torch.nn.Module, images: torch.Tensor, labels: np.ndarray
) -> tuple[float, list[np.ndarray], dict[str, np.ndarray]]:
    """Computes what one step of training computes: mean cross-entropy, with the auxiliary
    heads' at the weights of the networks' papers.

    Returns:
      The loss; the logits of the network and of its auxiliary heads, in the order in which the
      images reach them; the gradient of every parameter. The model keeps its new statistics.
    """
    outputs = model(images)
    if isinstance(outputs, torch.Tensor):
        logits = [outputs]
    else:
        # torchvision puts GoogLeNet's second head before its first.
        logits = [outputs[0], *outputs[:0:-1]]
    weights = [1.0, *[0.3 if len(logits) == 3 else 0.4] * (len(logits) - 1)]
    target = torch.from_numpy(labels).long()
    loss = sum(
        weight * torch.nn.functional.cross_entropy(each, target)
        for weight, each in zip(weights, logits, strict=True)
    )
    model.zero_grad()
    loss.backward()
    gradients = {
        name: parameter.grad.numpy() for name, parameter in model.named_parameters()
    }
    return loss.item(), [each.detach().numpy() for each in logits], gradients
