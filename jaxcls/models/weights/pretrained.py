"""Published weights: state dicts of torchvision and timm to our variables and back.

variables = load("timm/resnet50.a1_in1k", "resnet50")  # downloaded once, then from the cache
variables = from_torch("resnet50", state_dict)  # a state dict of torchvision or timm
state_dict = to_torch("resnet50", variables)
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxcls.download import fetch
from jaxcls.errors import UserError
from jaxcls.models import create_model, is_weight_set
from jaxcls.models.weights import catalogue as weights
from jaxcls.models.weights.dialects import (
    Dialect,
    flattened_side,
    is_convolution_there,
    torch_layer,
)
from jaxcls.models.weights.files import check_torch, read

Variables = dict[str, Any]
COUNTER = "num_batches_tracked"  # torch's, of each batch norm; nothing here reads it


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of the variables and its counterpart.

    Attributes:
      path: in the variables, ("params", "layer1_0", "conv1", "kernel").
      shape: there.
      key: in the state dict, "layer1.0.conv1.weight".
      torch_shape: there.
      kernel: shape of a kernel as (height, width, inputs, outputs), also of a dense layer's;
        None for what is not transposed.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    key: str
    torch_shape: tuple[int, ...]
    kernel: tuple[int, int, int, int] | None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns the array as the variables have it, float32."""
        array = np.asarray(array, np.float32)
        if self.kernel is not None:
            height, width, inputs, outputs = self.kernel
            array = array.reshape(outputs, inputs, height, width).transpose(2, 3, 1, 0)
        return np.ascontiguousarray(array.reshape(self.shape))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns the array as the state dict has it, float32."""
        array = np.asarray(array, np.float32)
        if self.kernel is not None:
            array = array.reshape(self.kernel).transpose(3, 2, 0, 1)
        return np.ascontiguousarray(array.reshape(self.torch_shape))


@functools.lru_cache(maxsize=8)  # tracing a deep network takes a second
def tensors(module: Any, dialect: Dialect, channels: int = 3) -> tuple[Tensor, ...]:
    """Returns every array of a network's variables with its counterpart.

    Args:
      module: the network.
      dialect: whose state dict, "torchvision" or "timm".
      channels: of the images.

    Raises:
      UserError: for a network without counterpart there.
    """
    images = jnp.zeros((1, 299, 299, channels))  # large enough for every network
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    flat = traverse_util.flatten_dict(dict(shapes))
    return tuple(_tensor(module, dialect, path, flat[path].shape) for path in flat)


def _tensor(
    module: Any, dialect: Dialect, path: tuple[str, ...], shape: tuple[int, ...]
) -> Tensor:
    _, *layers, leaf = path
    layer = "/".join(layers)
    if leaf == "layer_scale":
        layer += "/"  # it belongs to the block itself
        name = "gamma" if dialect == "timm" else "layer_scale"
        key = f"{torch_layer(module, layer, dialect)}.{name}"
        torch_shape = shape if dialect == "timm" else (*shape, 1, 1)
        return Tensor(path, shape, key, torch_shape, None)
    name = {
        "kernel": "weight",
        "scale": "weight",
        "bias": "bias",
        "mean": "running_mean",
        "var": "running_var",
    }[leaf]
    key = f"{torch_layer(module, layer, dialect)}.{name}"
    if leaf != "kernel":
        return Tensor(path, shape, key, shape, None)
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        torch_shape = (outputs, inputs, height, width)
        return Tensor(path, shape, key, torch_shape, (height, width, inputs, outputs))
    side = flattened_side(module, layer)
    inputs, outputs = shape[0] // side**2, shape[1]
    torch_shape = (outputs, shape[0])
    if is_convolution_there(module, layer, dialect):
        torch_shape = (outputs, inputs, side, side)
    return Tensor(path, shape, key, torch_shape, (side, side, inputs, outputs))


def from_torch(
    name: str, state_dict: Mapping[str, np.ndarray], **options: Any
) -> Variables:
    """Turns a state dict of torchvision or timm into the variables of our network.

    The number of classes, the channels of the images and whether there are auxiliary heads are
    those of the state dict. Every tensor is used exactly once, save torch's counters of
    batches, which are left out.

    Args:
      name: of the network, as in jaxcls.models.MODELS.
      state_dict: name -> array.
      **options: of the network (see create_model), where its arrays depend on them.

    Returns:
      {"params": ..., "batch_stats": ...}, NumPy float32; "batch_stats" only where the network
      has any.

    Raises:
      UserError: naming the tensors that are missing, left over or of another shape.
    """
    module = create_model(name, num_classes=1, **options)
    dialect = _dialect(module, state_dict)
    has_heads = any(_is_auxiliary(module, key, dialect) for key in state_dict)
    options = _with_auxiliary(options, module, has_heads)
    head = state_dict.get(f"{torch_layer(module, module.HEADS[0], dialect)}.weight")
    stem = state_dict.get(f"{torch_layer(module, module.STEM, dialect)}.weight")
    if head is None or stem is None or head.ndim < 1 or stem.ndim != 4:
        classes = head.shape[0] if head is not None and head.ndim else 1
        module = create_model(name, num_classes=classes, **options)
        _check_same_tensors(name, tensors(module, dialect), state_dict)
        raise AssertionError("tensors of the wrong rank were let through")
    if 0 in head.shape or 0 in stem.shape:
        raise UserError(f"these are not the weights of {name}: tensors without values.")
    module = create_model(name, num_classes=head.shape[0], **options)
    wanted = tensors(module, dialect, channels=stem.shape[1])
    _check_same_tensors(name, wanted, state_dict)
    _check_values(name, wanted, state_dict)
    flat = {tensor.path: tensor.from_torch(state_dict[tensor.key]) for tensor in wanted}
    return traverse_util.unflatten_dict(flat)


def to_torch(
    name: str, variables: Variables, *, dialect: Dialect = "torchvision", **options: Any
) -> dict[str, np.ndarray]:
    """Turns the variables of our network into a state dict of torchvision or timm.

    Args:
      name: of the network, as in jaxcls.models.MODELS.
      variables: {"params": ..., "batch_stats": ...}.
      dialect: "torchvision" or "timm".
      **options: of the network (see create_model), where its arrays depend on them.

    Returns:
      name -> array, float32; torch's counters of batches are int64 zeros. For torch's
      load_state_dict make tensors of them with torch.from_numpy.

    Raises:
      UserError: for variables of another network, or a network without counterpart there.
    """
    module = create_model(name, num_classes=1, **options)
    has_heads = any(head in variables["params"] for head in ("aux", "aux1"))
    options = _with_auxiliary(options, module, has_heads)
    flat = {
        path: np.asarray(leaf)
        for path, leaf in traverse_util.flatten_dict(dict(variables)).items()
    }
    head = flat.get(("params", *module.HEADS[0].split("/"), "kernel"))
    stem = flat.get(("params", *module.STEM.split("/"), "kernel"))
    if head is None or stem is None or stem.ndim != 4:
        raise UserError(f"these are not the variables of {name}.")
    module = create_model(name, num_classes=head.shape[-1], **options)
    wanted = tensors(module, dialect, channels=stem.shape[2])
    found = {"/".join(path): leaf.shape for path, leaf in flat.items()}
    expected = {"/".join(tensor.path): tensor.shape for tensor in wanted}
    if found != expected:
        raise UserError(
            f"these are not the variables of {name}: {_mismatch(expected, found)}."
        )
    state_dict = {}
    for tensor in wanted:
        state_dict[tensor.key] = tensor.to_torch(flat[tensor.path])
        if tensor.key.endswith("running_var"):
            counter = tensor.key.removesuffix("running_var") + COUNTER
            state_dict[counter] = np.zeros((), np.int64)
    return state_dict


def load(source: str, name: str, **options: Any) -> Variables:
    """Reads published weights.

    Args:
      source: the name of a weight set, which is downloaded to a cache the first time
        (jaxcls.models.weights.catalogue), or the path of a .safetensors or .pth file.
      name: of the network, as in jaxcls.models.MODELS.
      **options: of the network (see create_model), where its arrays depend on them.

    Returns:
      {"params": ..., "batch_stats": ...}, NumPy float32, as in from_torch.

    Raises:
      UserError: for an unknown name, a download that fails, a file that is damaged, or weights
        of another network.
    """
    if not is_weight_set(source):
        return from_torch(name, read(Path(source)), **options)
    weight_set = weights.find(source)
    if weight_set.model != name:
        raise UserError(
            f"the weights {source} are of {weight_set.model}, not of {name}."
        )
    if weight_set.file:  # torchvision's are PyTorch files: say so before the download
        check_torch(weight_set.name, weight_set.twin)
    path = fetch(weight_set)
    try:
        variables = from_torch(name, read(path), **options)
        head = create_model(name, num_classes=1).HEADS[0]
        classes = len(variables["params"][head]["bias"])
        if classes != weight_set.num_classes:
            raise UserError(
                f"these weights have {classes} classes, not {weight_set.num_classes}."
            )
    except UserError as error:
        raise UserError(
            f"the file {path} is not that of {source}: {error} Remove it, and "
            f"{path.name}.sha256 beside it, to have it downloaded again."
        ) from error
    return variables


def fit(
    module: Any, loaded: Variables, target: Variables, *, same_classes: bool = True
) -> tuple[Variables, list[str]]:
    """Brings loaded weights to a network with other classes, channels or auxiliary heads.

    A head for other classes keeps its initial values, as does an auxiliary head that
    the weights lack. A first kernel for other channels is summed over its channels for one, or
    its channels repeated in turn and scaled by old / new channels for more, which keeps the
    size of what it gives (as timm does). Everything else must agree.

    Args:
      module: the network.
      loaded: weights, as from_torch returns them.
      target: the network's variables with their initial values.
      same_classes: False where the classes are others, though they may be as many.

    Returns:
      The variables, with the arrays' paths and shapes of `target`, and a sentence on each thing
      that was changed.

    Raises:
      UserError: naming the arrays that do not agree.
    """
    new = traverse_util.flatten_dict(dict(target), sep="/")
    old = traverse_util.flatten_dict(dict(loaded), sep="/")
    said = []
    # A user's own network need not tell its heads and its stem.
    heads = getattr(module, "HEADS", ())
    for head in heads:
        kernel = f"params/{head}/kernel"
        if kernel in old and kernel in new:
            before, after = old[kernel].shape[-1], new[kernel].shape[-1]
            is_new = before != after or not same_classes
            if is_new and old[kernel].shape[:-1] == new[kernel].shape[:-1]:
                for leaf in ("kernel", "bias"):
                    old[f"params/{head}/{leaf}"] = new[f"params/{head}/{leaf}"]
                were = before if before != after else f"the {before} that it told apart"
                said.append(f"the head {head} is new: {after} classes, not {were}")
    for head in dict.fromkeys(head.split("/")[0] for head in heads[1:]):
        parts = (f"params/{head}/", f"batch_stats/{head}/")
        has, wants = (
            any(path.startswith(parts) for path in paths) for paths in (old, new)
        )
        if has and not wants:
            old = {path: old[path] for path in old if not path.startswith(parts)}
            said.append(f"the auxiliary head {head} is left out")
        elif wants and not has:
            old |= {path: new[path] for path in new if path.startswith(parts)}
            said.append(f"the auxiliary head {head} is new: the weights have none")
    stem = f"params/{getattr(module, 'STEM', '')}/kernel"
    if stem in old and stem in new:
        before, after = old[stem].shape[2], new[stem].shape[2]
        if before != after:
            old[stem] = adapt_channels(old[stem], after)
            said.append(f"{module.STEM} is adapted from {before} channels to {after}")
    expected = {path: tuple(leaf.shape) for path, leaf in new.items()}
    found = {path: tuple(leaf.shape) for path, leaf in old.items()}
    if found != expected:
        raise UserError(
            f"the weights do not fit the network: {_mismatch(expected, found)}. Only heads "
            "and the channels of the first kernel may differ."
        )
    return traverse_util.unflatten_dict(old, sep="/"), said


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel [height, width, channels, features] for images of other channels: its sum
    for one, its channels in turn and scaled by old / new for more (of fewer, the first ones)."""
    kernel = np.asarray(kernel)
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    before = kernel.shape[2]
    return kernel[:, :, np.arange(channels) % before] * np.float32(before / channels)


def _dialect(module: Any, state_dict: Mapping[str, Any]) -> Dialect:
    """Returns the dialect that shares more names with a state dict."""
    dialects: tuple[Dialect, ...] = ("torchvision", "timm")
    shared = {}
    for dialect in dialects:
        try:
            names = {tensor.key for tensor in tensors(module, dialect)}
        except UserError:
            continue
        shared[dialect] = len(names & set(state_dict))
    if not shared:
        torch_layer(module, module.STEM, "torchvision")  # raises
    return max(shared, key=lambda dialect: shared[dialect])


def _with_auxiliary(
    options: dict[str, Any], module: Any, has_heads: bool
) -> dict[str, Any]:
    """Returns the options with which a network has auxiliary heads, or has none.

    What the caller says of their loss is not asked: its weight's default gives heads, 0 none.
    """
    if not hasattr(module, "aux_weight"):
        return options
    others = {name: value for name, value in options.items() if name != "aux_weight"}
    return others if has_heads else others | {"aux_weight": 0.0}


def _is_auxiliary(module: Any, key: str, dialect: Dialect) -> bool:
    heads = [head.split("/")[0] for head in module.HEADS[1:]]
    return any(key.startswith(torch_layer(module, head, dialect)) for head in heads)


def _check_same_tensors(
    name: str, wanted: Iterable[Tensor], state_dict: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError unless a state dict has exactly these tensors, counters aside."""
    shapes = {tensor.key: tensor.torch_shape for tensor in wanted}
    found = {key: tuple(array.shape) for key, array in state_dict.items()}
    counters = [key for key in found if key.endswith(COUNTER)]
    strays = [
        key
        for key in counters
        if key.removesuffix(COUNTER) + "running_var" not in shapes
    ]
    for key in counters:
        del found[key]
    if found != shapes or strays:
        # What is wrong besides tells more than the counters of another network's norms.
        why = _mismatch(shapes, found) or f"{len(strays)} left over ({_some(strays)})"
        raise UserError(f"these are not the weights of {name}: {why}.")


def _check_values(
    name: str, wanted: Iterable[Tensor], state_dict: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError for tensors that cannot be weights."""
    for tensor in wanted:
        array = np.asarray(state_dict[tensor.key])
        # bfloat16 is a type of ml_dtypes' that NumPy files under "V".
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise UserError(
                f"{tensor.key} of {name} holds {array.dtype.name}, not floats."
            )
        if tensor.path[-1] == "var" and (array < 0).any():
            raise UserError(f"{tensor.key} of {name} is a variance below zero.")


def _mismatch(expected: Iterable[str], found: Iterable[str]) -> str:
    """Says in words how names (or names with shapes) differ."""
    parts = []
    for kind, names in (
        ("missing", [key for key in expected if key not in found]),
        ("left over", [key for key in found if key not in expected]),
    ):
        if names:
            parts.append(f"{len(names)} {kind} ({_some(names)})")
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        reshaped = [
            f"{key} is {list(found[key])}, expected {list(expected[key])}"
            for key in expected
            if key in found and found[key] != expected[key]
        ]
        if reshaped:
            parts.append(f"{len(reshaped)} of another shape ({_some(reshaped)})")
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
