"""Published weights: state dicts of torchvision and timm to our variables and back.

variables = load_variables("timm/resnet50.a1_in1k", "resnet50")  # downloaded once
variables = from_torch("resnet50", state_dict)  # a state dict of torchvision or timm
state_dict = to_torch("resnet50", variables)
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxcls.download import fetch
from jaxcls.errors import UserError
from jaxcls.models import create_model, model_options
from jaxcls.models.weights.catalogue import find_weights, is_weight_set
from jaxcls.models.weights.dialects import (
    Dialect,
    dialects,
    flattened_side,
    is_convolution_there,
    torch_layer,
)
from jaxcls.models.weights.files import check_torch, read_state_dict

Variables = dict[str, Any]
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "layer_scale": "gamma",  # timm's; torchvision's has our name
}
"""Torch's name of an array, by ours."""
COUNTER = "num_batches_tracked"  # torch's, of each batch norm; nothing here reads it

# A kernel's axes: ours are height, width, inputs, outputs; torch's outputs, inputs, height, width.
_TO_TORCH, _FROM_TORCH = (3, 2, 0, 1), (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array of the variables and its counterpart.

    Attributes:
      path: in the variables, "params/layer1_0/conv1/kernel".
      shape: there.
      key: in the state dict, "layer1.0.conv1.weight".
      torch_shape: there.
      kernel: shape of a kernel as (height, width, inputs, outputs), also of a dense layer's;
        None for what is not transposed.
    """

    path: str
    shape: tuple[int, ...]
    key: str
    torch_shape: tuple[int, ...]
    kernel: tuple[int, ...] | None = None

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns the array as the variables have it, float32."""
        array = np.asarray(array, np.float32)
        if self.kernel is not None:
            there = [self.kernel[axis] for axis in _TO_TORCH]
            array = array.reshape(there).transpose(_FROM_TORCH)
        return np.ascontiguousarray(array.reshape(self.shape))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns the array as the state dict has it, float32."""
        array = np.asarray(array, np.float32)
        if self.kernel is not None:
            array = array.reshape(self.kernel).transpose(_TO_TORCH)
        return np.ascontiguousarray(array.reshape(self.torch_shape))


def tensors(module: Any, dialect: Dialect, channels: int = 3) -> tuple[Tensor, ...]:
    """Returns every array of a network's variables with its counterpart.

    Args:
      module: the network.
      dialect: whose state dict, "torchvision" or "timm".
      channels: of the images.

    Raises:
      UserError: for a network without counterpart there.
    """
    return tuple(
        _tensor(module, dialect, path, shape)
        for path, shape in _shapes(module, channels).items()
    )


@functools.lru_cache(maxsize=8)  # tracing a deep network takes a second
def _shapes(module: Any, channels: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of a network's variables, by its path."""
    images = jnp.zeros((1, 299, 299, channels))  # large enough for every network
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    return {path: leaf.shape for path, leaf in _flat(shapes).items()}


def _tensor(module: Any, dialect: Dialect, path: str, shape: tuple[int, ...]) -> Tensor:
    _, *parts, leaf = path.split("/")
    layer = "/".join(parts)
    prefix = torch_layer(module, layer, dialect)
    if leaf == "layer_scale" and dialect == "torchvision":
        return Tensor(path, shape, f"{prefix}.layer_scale", (*shape, 1, 1))
    key = f"{prefix}.{LEAVES[leaf]}"
    if leaf != "kernel":
        return Tensor(path, shape, key, shape)
    side = flattened_side(module, layer)
    kernel = (side, side, shape[0] // side**2, shape[1]) if len(shape) == 2 else shape
    if len(shape) == 2 and not is_convolution_there(module, layer, dialect):
        return Tensor(path, shape, key, shape[::-1], kernel)
    return Tensor(path, shape, key, tuple(kernel[i] for i in _TO_TORCH), kernel)


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
    module = _network(name, options, num_classes=1, has_auxiliary=True)

    def shared(dialect: Dialect) -> int:
        return len({t.key for t in tensors(module, dialect)} & set(state_dict))

    # Raises the error for a network without counterpart: every other has one in torchvision.
    torch_layer(module, module.STEM, "torchvision")
    dialect = max(dialects(module), key=shared)
    paths = {tensor.key: tensor.path for tensor in tensors(module, dialect)}
    by_path = {paths.get(key, key): array for key, array in state_dict.items()}
    wanted = _tensors_like(by_path, name, options, dialect, inputs=1)
    _check_tensors(name, wanted, state_dict)
    arrays = {one.path: one.from_torch(state_dict[one.key]) for one in wanted}
    return traverse_util.unflatten_dict(arrays, sep="/")


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
    arrays = {path: np.asarray(leaf) for path, leaf in _flat(variables).items()}
    wanted = _tensors_like(arrays, name, options, dialect, inputs=2)
    if differences := _differences({one.path: one.shape for one in wanted}, arrays):
        raise UserError(f"these are not the variables of {name}: {differences}.")
    state_dict = {}
    for tensor in wanted:
        state_dict[tensor.key] = tensor.to_torch(arrays[tensor.path])
        if tensor.key.endswith("running_var"):
            counter = tensor.key.removesuffix("running_var") + COUNTER
            state_dict[counter] = np.zeros((), np.int64)
    return state_dict


def load_variables(source: str, name: str, **options: Any) -> Variables:
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
        return from_torch(name, read_state_dict(Path(source)), **options)
    weight_set = find_weights(source)
    if weight_set.model != name:
        raise UserError(
            f"the weights {source} are of {weight_set.model}, not of {name}."
        )
    if weight_set.file:  # torchvision's are PyTorch files: say so before the download
        check_torch(weight_set.name, weight_set.twin)
    path = fetch(weight_set)
    try:
        variables = from_torch(name, read_state_dict(path), **options)
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
    """Fits loaded weights to a network with other classes, channels or auxiliary heads.

    A head for other classes keeps its initial values, as does an auxiliary head that
    the weights lack. A first kernel for other channels is summed over its channels for one, or
    its channels repeated in turn and scaled by old / new channels for more, which keeps the
    size of what it gives (as timm does). Everything else must agree.

    Args:
      module: the network.
      loaded: weights, as from_torch returns them.
      target: the network's variables with their initial values.
      same_classes: False if the classes differ, even where their number does not.

    Returns:
      The variables, with the paths and shapes of `target`, and a sentence on each change.

    Raises:
      UserError: naming the arrays that do not agree.
    """
    new, old = _flat(target), _flat(loaded)
    changes = []
    for head in getattr(module, "HEADS", ()):  # a user's own network need not have it
        kernel, bias = (f"params/{head}/{leaf}" for leaf in ("kernel", "bias"))
        if kernel in old and kernel in new:
            (*inputs, before), (*wanted, after) = old[kernel].shape, new[kernel].shape
            if inputs == wanted and (before != after or not same_classes):
                old |= {path: new[path] for path in (kernel, bias)}
                were = before if before != after else f"the {before} that it told apart"
                changes.append(f"the head {head} is new: {after} classes, not {were}")
    for head in _auxiliary(module):
        parts = (f"params/{head}/", f"batch_stats/{head}/")
        theirs, ours = ([p for p in flat if p.startswith(parts)] for flat in (old, new))
        if theirs and not ours:
            old = {path: old[path] for path in old if path not in theirs}
            changes.append(f"the auxiliary head {head} is left out")
        elif ours and not theirs:
            old |= {path: new[path] for path in ours}
            changes.append(f"the auxiliary head {head} is new: the weights have none")
    stem = f"params/{getattr(module, 'STEM', '')}/kernel"
    if stem in old and stem in new:
        before, after = old[stem].shape[2], new[stem].shape[2]
        if before != after:
            old[stem] = adapt_channels(old[stem], after)
            changes.append(
                f"{module.STEM} is adapted from {before} channels to {after}"
            )
    differences = _differences({path: leaf.shape for path, leaf in new.items()}, old)
    if differences:
        raise UserError(
            f"the weights do not fit the network: {differences}. Only heads and the channels "
            "of the first kernel may differ."
        )
    return traverse_util.unflatten_dict(old, sep="/"), changes


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Returns a kernel [height, width, channels, features] for images of other channels: its sum
    for one, its channels in turn and scaled by old / new for more (of fewer, the first ones)."""
    kernel = np.asarray(kernel)
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    before = kernel.shape[2]
    return kernel[:, :, np.arange(channels) % before] * np.float32(before / channels)


def _flat(variables: Variables) -> dict[str, Any]:
    """Returns the arrays of variables by their paths, "params/conv1/kernel"."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def _auxiliary(module: Any) -> list[str]:
    """Returns the top-level names of the auxiliary heads that a network may have."""
    heads = getattr(module, "HEADS", ())
    return [head.split("/")[0] for head in heads[1:]]


def _tensors_like(
    arrays: Mapping[str, np.ndarray],
    name: str,
    options: dict[str, Any],
    dialect: Dialect,
    *,
    inputs: int,
) -> tuple[Tensor, ...]:
    """Returns the tensors of the network whose classes, channels and auxiliary heads are those
    of arrays.

    Args:
      arrays: by our paths, in either layout.
      name: of the network.
      options: of the network.
      dialect: whose state dict.
      inputs: axis of the first kernel on which the channels lie.
    """
    module = _network(name, options, num_classes=1, has_auxiliary=True)
    auxiliary = tuple(f"params/{head}/" for head in _auxiliary(module))
    has_auxiliary = any(path.startswith(auxiliary) for path in arrays)
    # If either array is missing or has an odd shape, the caller's comparison says so.
    bias = arrays.get(f"params/{module.HEADS[0]}/bias", np.empty(1))
    classes = max(math.prod(bias.shape), 1)
    stem = arrays.get(f"params/{module.STEM}/kernel", np.empty(0))
    channels = stem.shape[inputs] if stem.ndim == 4 and stem.size else 3
    module = _network(name, options, num_classes=classes, has_auxiliary=has_auxiliary)
    return tensors(module, dialect, channels)


def _network(
    name: str, options: dict[str, Any], *, num_classes: int, has_auxiliary: bool
) -> Any:
    """Returns a network with auxiliary heads, if it knows any, or without.

    An `aux_weight` among the options is ignored: its default builds the heads, 0 builds none.
    """
    if "aux_weight" in model_options(name):
        options = {key: options[key] for key in options if key != "aux_weight"}
        if not has_auxiliary:
            options["aux_weight"] = 0.0
    return create_model(name, num_classes=num_classes, **options)


def _check_tensors(
    name: str, wanted: Iterable[Tensor], state_dict: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError unless a state dict has exactly these tensors, with values that weights
    can have; the counters of their batch norms may be there too."""
    shapes = {tensor.key: tensor.torch_shape for tensor in wanted}
    counters = {k.replace("running_var", COUNTER) for k in shapes if "running_var" in k}
    found = {key: array for key, array in state_dict.items() if key not in counters}
    tensors_alone = {key: found[key] for key in found if not key.endswith(COUNTER)}
    # What is wrong besides tells more than the counters of another network's norms.
    differences = _differences(shapes, tensors_alone) or _differences(shapes, found)
    if differences:
        raise UserError(f"these are not the weights of {name}: {differences}.")
    for tensor in wanted:
        array = np.asarray(state_dict[tensor.key])
        # bfloat16 is a type of ml_dtypes' that NumPy files under "V".
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise UserError(
                f"{tensor.key} of {name} holds {array.dtype.name}, not floats."
            )
        if tensor.path.endswith("/var") and (array < 0).any():
            raise UserError(f"{tensor.key} of {name} is a variance below zero.")


def _differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]
) -> str:
    """Says in words how arrays differ from the names and shapes expected; "" if they do not."""
    kinds = {
        "missing": [key for key in expected if key not in found],
        "left over": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} is {list(found[key].shape)}, expected {list(shape)}"
            for key, shape in expected.items()
            if key in found and found[key].shape != shape
        ],
    }
    return "; ".join(
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for kind, names in kinds.items()
        if names
    )
