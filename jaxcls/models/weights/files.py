"""State dicts from files: every tensor of a safetensors or a PyTorch file, or an error.

    arrays = read_state_dict("resnet50.safetensors")  # {"conv1.weight": [64, 3, 7, 7], ...}

A safetensors file is data alone. A PyTorch file is a pickle, a program that builds objects:
PyTorch reads it with `weights_only=True`, which builds tensors and plain containers and calls
nothing that the file names.
"""

import contextlib
import importlib.metadata
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp  # also teaches NumPy the name bfloat16, which safetensors uses
import numpy as np
import safetensors.numpy

from jaxcls.errors import UserError

PYTORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")
OLDEST_TORCH = (2, 10)
"""Before it, a file could run code in spite of weights_only=True (CVE-2025-32434 up to 2.5,
CVE-2026-24747 up to 2.9)."""


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file.

    From a training checkpoint, as torchvision's and timm's reference scripts write them, it takes
    those under "model" or "state_dict". It removes the prefix "module." of PyTorch's DataParallel
    if all names share it.

    Args:
      path: of a .safetensors file, or of a .pth, .pt, .bin or .pth.tar file of PyTorch.

    Returns:
      name -> array in main memory. Floating-point numbers of any size are float32, whole
      numbers stay as they are.

    Raises:
      UserError: if the file cannot be read, holds anything but tensors, or holds numbers that
        are not finite.
    """
    path = Path(path)
    with _sentence(path):
        if not path.exists():
            raise UserError(f"there is no file {path}.")
        if not path.is_file():
            raise UserError(f"{path} is not a file: give one with weights in it.")
        if path.name.endswith(".safetensors"):
            arrays: Mapping[Any, Any] = safetensors.numpy.load_file(path)
        elif path.name.endswith(PYTORCH_SUFFIXES):
            check_torch(str(path))
            arrays = _read_pytorch(path)
        else:
            raise UserError(
                f"{path} does not end as a file of weights does: expected .safetensors, or "
                f"{', '.join(PYTORCH_SUFFIXES)} of PyTorch."
            )
    if not arrays:
        raise UserError(f"{path} has no tensors in it.")
    prefix = "module." if all(name.startswith("module.") for name in arrays) else ""
    found = {name.removeprefix(prefix): array for name, array in arrays.items()}
    return {name: _usable(array, name, path) for name, array in found.items()}


def check_torch(source: str, twin: str = "") -> None:
    """Checks, without importing PyTorch, that PyTorch files can be read here.

    Args:
      source: a path or the name of a weight set, for the message.
      twin: name of a weight set with the same tensors that needs no PyTorch, or "".

    Raises:
      UserError: if PyTorch is missing, or too old to read files without running them.
    """
    instead = f"take {twin}, the same weights" if twin else "take a .safetensors file"
    way_out = f'pip install "jaxcls[torch]", or {instead}, which needs no PyTorch.'
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{source} is a PyTorch file, and PyTorch is missing: {way_out}"
        ) from None
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise UserError(
            f"{source} is a PyTorch file, which PyTorch {version} cannot read without the "
            f"danger of running code in it; {oldest} or later can: {way_out}"
        )


def _read_pytorch(path: Path) -> Mapping[Any, Any]:
    """Returns the state dict of a PyTorch file, as NumPy arrays.

    Raises:
      UserError: if there is none, or the file holds anything but data.
    """
    with warnings.catch_warnings():
        # Old files make PyTorch warn of deprecated storage; nobody here can do anything about it.
        warnings.simplefilter("ignore")
        import torch

        # The scripts keep their options beside the weights in a Namespace, a bag of values.
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        state_dict = _state_dict(content, path)
        for name, value in state_dict.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise UserError(
                    f"{path} is not a state dict: it has {name!r} with a value of type "
                    f"{type(value).__name__}, expected names with tensors. "
                    "Save model.state_dict()."
                )
        return {
            name: (t.float() if t.is_floating_point() else t).numpy(force=True)
            for name, t in state_dict.items()
        }


def _state_dict(content: Any, path: Path) -> Mapping[Any, Any]:
    """Returns what a training checkpoint has under "state_dict" or "model", or all of it.

    Raises:
      UserError: if that is not a mapping.
    """
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path} is not a state dict: it has a {type(content).__name__} in it, expected "
            "names with tensors. Save model.state_dict()."
        )
    inside = (content.get(key) for key in ("state_dict", "model"))
    return next((found for found in inside if isinstance(found, Mapping)), content)


def _usable(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Returns an array with floating-point numbers as float32.

    Raises:
      UserError: if any of them is not finite.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):  # of a float64; the check finds it
        array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise UserError(
            f"{path} has numbers in '{name}' that are not finite: the training that wrote it "
            "diverged, or the file is damaged. Take another one."
        )
    return array


@contextlib.contextmanager
def _sentence(path: Path) -> Iterator[None]:
    """Turns what the two libraries raise at a file into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of many types: damage shows in many places
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # in PyTorch's refusal
        if named:
            raise UserError(
                f"{path} has more in it than tensors: it names {named[1]}, which is not "
                "called, for a file could run any code in this way. In the program that "
                "wrote it, save model.state_dict()."
            ) from error
        reason = str(error).strip().split("\n")[0].split(". ")[0][:200]
        raise UserError(
            f"{path} cannot be read as a file of weights ({reason or type(error).__name__}). "
            "If it was downloaded or copied, it may have been cut short: get it again."
        ) from error
