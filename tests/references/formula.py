"""Weights and images that follow from their names, so that no test has to store or load them.

Every number comes from the raw stream of a NumPy bit generator, which NumPy promises never to
change, through sums that are exact and operations that IEEE 754 rounds in one way only: the
values are the same on every machine. Names and shapes are PyTorch's.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np

CENTRED = 0.5
"""The share of a filter's mean that is taken out of it (see `weight`). Measured on ResNet-152:
with 0 the logits of two images correlate by 0.998, so that a test of them proves little; with 1
float32's rounding errors grow to 1e-4 of the logits; with 0.5 it is 0.94 and 1e-5."""

DEPTHWISE = 0.1
"""The gain of depthwise kernels. A normalisation follows each of them, so that the gain changes
only how much that normalisation's epsilon weighs: enough to notice a wrong one."""


def uniform(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 in -1..1, multiples of 2^-16 that depend on the name only."""
    size = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(-(-size // 4))
    # Four numbers of 16 bits from each draw; the half puts their mean at zero.
    values = raw.astype("<u8", copy=False).view("<u2")[:size].astype(np.float32)
    values -= np.float32(32767.5)
    values *= np.float32(2**-15)
    return values.reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the kernel [out, in, ...] of a convolution or the matrix [out, in] of a dense layer.

    The variance, 2 / fan-in, passes a signal through ReLUs unchanged. What all images have in
    common grows from layer to layer of a random network until they look alike, so filters over
    many channels lose a part of their mean.
    """
    values = uniform(name, shape)
    fan_in = math.prod(shape[1:])
    gain = math.sqrt(3 * 2 / fan_in)
    if shape[1] == 1:
        gain *= DEPTHWISE
    else:
        # In float64 the sum is exact, whatever its order.
        sums = values.sum(tuple(range(1, len(shape))), dtype=np.float64, keepdims=True)
        values -= np.float32(CENTRED / fan_in * sums)
    values *= np.float32(gain)
    return values


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the value of a trained parameter."""
    if len(shape) in (2, 4):
        return weight(name, shape)
    values = uniform(name, shape)
    if name.endswith(("layer_scale", "gamma")):
        # ConvNeXt starts at 1e-6, where its blocks do nothing.
        return np.float32(0.2) + np.float32(0.1) * values
    if name.endswith("bias"):
        return np.float32(0.2) * values
    return np.float32(1) + np.float32(0.4) * values


def running_statistics(
    name: str, shape: tuple[int, ...], mean_square: float
) -> np.ndarray:
    """Returns the running mean or variance of a batch norm with inputs of this mean square."""
    values = uniform(name, shape)
    if name.endswith("running_mean"):
        return np.float32(0.3 * math.sqrt(mean_square)) * values
    return np.float32(mean_square) * (np.float32(1) + np.float32(0.4) * values)


def state_dict(
    shapes: Mapping[str, tuple[int, ...]], calibration: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Returns a whole network's state.

    Args:
      shapes: of every entry, as in PyTorch's state_dict.
      calibration: for each batch norm, by its name, the mean square of its inputs, which keeps
        the activations of a deep network in range; 1 where it is missing.
    """
    state: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        module, _, field = name.rpartition(".")
        if field == "num_batches_tracked":
            state[name] = np.zeros(shape, np.int64)
        elif field in ("running_mean", "running_var"):
            mean_square = calibration.get(module, 1.0)
            state[name] = running_statistics(name, shape, mean_square)
        else:
            state[name] = parameter(name, shape)
    return state


def batch_norms(names: Iterable[str]) -> list[str]:
    """Returns the batch norms among the entries of a state, in their order."""
    suffix = ".running_mean"
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def images(count: int, height: int, width: int) -> np.ndarray:
    """Returns float32 [count, height, width, 3], in the range of normalised photographs.

    Each image has a colour, blocks of 8 pixels and noise of its own: images differ at every
    scale, and no two rows, columns or channels are alike.
    """
    result = np.empty((count, height, width, 3), np.float32)
    for index in range(count):
        colour = uniform(f"image{index}.colour", (3,))
        rows, columns = -(-height // 8), -(-width // 8)
        blocks = uniform(f"image{index}.blocks", (rows, columns, 3))
        blocks = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
        noise = uniform(f"image{index}.noise", (height, width, 3))
        result[index] = np.float32(0.5) * colour + blocks + np.float32(0.8) * noise
    return result


def labels(count: int, num_classes: int) -> np.ndarray:
    """Returns int32 [count], classes that have nothing to do with the images."""
    return (37 * np.arange(count, dtype=np.int32) + 5) % num_classes


def signature(name: str, values: np.ndarray) -> np.ndarray:
    """Returns float64 [3] that stand for a tensor: its norm and two random projections.

    The norm notices a wrong scale, the projections wrong values, places and signs.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    rays = uniform(f"{name}#rays", (2, flat.size)).astype(np.float64)
    return np.array([np.linalg.norm(flat), *(rays @ flat)])
