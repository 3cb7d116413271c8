"""What our layers are called in the state dicts of torchvision and timm.

A layer's name here is its path in the variables, such as "layer1_0/conv1".
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from jaxcls.errors import UserError
from jaxcls.models.alexnet import AlexNet
from jaxcls.models.convnext import ConvNeXt
from jaxcls.models.efficientnet import EfficientNet, Stage
from jaxcls.models.googlenet import GoogLeNet
from jaxcls.models.inception import InceptionV3
from jaxcls.models.resnet import ResNet
from jaxcls.models.vgg import VGG

Dialect = Literal["torchvision", "timm"]


def dialects(module: Any) -> tuple[Dialect, ...]:
    """Returns the dialects that have a counterpart of a network."""
    return _NETWORKS[type(module)][0] if type(module) in _NETWORKS else ()


def torch_layer(module: Any, layer: str, dialect: Dialect) -> str:
    """Returns the name of a layer in a state dict.

    Args:
      module: the network.
      layer: path of one of its layers, "layer1_0/conv1".
      dialect: whose state dict.

    Returns:
      Its prefix, "layer1.0.conv1".

    Raises:
      UserError: for a network without counterpart there.
    """
    if dialect not in dialects(module):
        raise UserError(
            f"{dialect} has no counterpart of {type(module).__name__}: its weights cannot be "
            "exchanged."
        )
    _, name = _NETWORKS[type(module)]
    return name(module, layer, dialect)


def flattened_side(module: Any, layer: str) -> int:
    """Returns the height and width of the maps that a dense layer takes flattened, 1 where it
    takes plain values. Torch flattens them channels first, we channels last."""
    if isinstance(module, AlexNet) and layer == "fc6":
        return 6
    if isinstance(module, VGG) and layer == "fc6":
        return 1 if module.stem == "small" else 7
    if isinstance(module, GoogLeNet) and layer in ("aux1/fc1", "aux2/fc1"):
        return 4
    return 1


def is_convolution_there(module: Any, layer: str, dialect: Dialect) -> bool:
    """Whether the other side has a convolution for a dense layer of ours."""
    return isinstance(module, VGG) and dialect == "timm" and layer in ("fc6", "fc7")


# The tables below: our name, then torchvision's and timm's.
_VGG_DENSE = {
    "fc6": ("classifier.0", "pre_logits.fc1"),
    "fc7": ("classifier.3", "pre_logits.fc2"),
    "fc8": ("classifier.6", "head.fc"),
}
_EFFICIENTNET = {
    "stem_conv": ("features.0.0", "conv_stem"),
    "stem_bn": ("features.0.1", "bn1"),
    "head_conv": ("features.{last}.0", "conv_head"),
    "head_bn": ("features.{last}.1", "bn2"),
    "fc": ("classifier.1", "classifier"),
}
_CONVNEXT = {
    "stem_conv": ("features.0.0", "stem.0"),
    "stem_norm": ("features.0.1", "stem.1"),
    "downsample_norm": ("features.{even}.0", "stages.{below}.downsample.0"),
    "downsample_conv": ("features.{even}.1", "stages.{below}.downsample.1"),
    "stage": ("features.{odd}.{index}", "stages.{below}.blocks.{index}"),
    "norm": ("classifier.0", "head.norm"),
    "fc": ("classifier.2", "head.fc"),
}
_CONVNEXT_BLOCK = {
    "depthwise_conv": (".block.0", ".conv_dw"),
    "norm": (".block.2", ".norm"),
    "fc1": (".block.3", ".mlp.fc1"),
    "fc2": (".block.5", ".mlp.fc2"),
}


def _column(dialect: Dialect) -> int:
    """Returns where a dialect's names stand in the tables."""
    return ("torchvision", "timm").index(dialect)


def _vgg(module: VGG, layer: str, dialect: Dialect) -> str:
    if layer in _VGG_DENSE:
        return _VGG_DENSE[layer][_column(dialect)]
    parts = re.fullmatch(r"stage(\d)/(conv|bn)(\d)", layer)
    assert parts is not None
    stage, kind, index = int(parts[1]), parts[2], int(parts[3])
    # A sequence: convolution, (norm,) ReLU, and a pool at the end of each stage.
    each = 3 if module.batch_norm else 2
    before = each * (sum(module.stage_sizes[: stage - 1]) + index - 1) + stage - 1
    return f"features.{before + (kind == 'bn')}"


def _efficientnet(module: EfficientNet, layer: str, dialect: Dialect) -> str:
    if layer in _EFFICIENTNET:
        name = _EFFICIENTNET[layer][_column(dialect)]
        return name.format(last=len(module.stages) + 1)
    block = re.fullmatch(r"stage(\d)_(\d+)/(?:([a-z]+)[_/])?([a-z]+)", layer)
    assert block is not None
    number, index, part, kind = int(block[1]), block[2], block[3] or "", block[4]
    parts = _efficientnet_parts(module.stages[number - 1])
    if dialect == "torchvision":  # numbers the parts
        position = list(parts).index(part)
        inner = {"conv": "0", "bn": "1", "reduce": "fc1", "expand": "fc2"}[kind]
        return f"features.{number}.{index}.block.{position}.{inner}"
    if part == "se":
        inner = f"se.conv_{kind}"
    elif kind == "conv":
        inner = parts[part]
    else:  # numbers the norms
        normed = [name for name in parts if name != "se"]
        inner = f"bn{normed.index(part) + 1}"
    return f"blocks.{number - 1}.{index}.{inner}"


def _efficientnet_parts(stage: Stage) -> dict[str, str]:
    """Returns the parts of a block in order, with timm's names of their convolutions."""
    if stage.fused and stage.expand == 1:
        return {"": "conv"}
    if stage.fused:
        return {"expand": "conv_exp", "project": "conv_pwl"}
    if stage.expand == 1:
        return {"depthwise": "conv_dw", "se": "", "project": "conv_pw"}
    rest = {"depthwise": "conv_dw", "se": "", "project": "conv_pwl"}
    return {"expand": "conv_pw", **rest}


def _convnext(module: ConvNeXt, layer: str, dialect: Dialect) -> str:
    del module
    column = _column(dialect)
    outer, _, inner = layer.partition("/")
    # "stage2_0" has a stage and an index, "downsample2_norm" a stage, "fc" neither.
    stage, index, *_ = (*map(int, re.findall(r"\d+", outer)), 0, 0)
    name = _CONVNEXT[re.sub(r"\d(_\d+)?", "", outer)][column].format(
        index=index, below=stage - 1, even=2 * stage - 2, odd=2 * stage - 1
    )
    return name + (_CONVNEXT_BLOCK[inner][column] if inner else "")


_Name = Callable[[Any, str, Dialect], str]


def _renamed(*pairs: tuple[str, str]) -> _Name:
    """Returns the names that regular expressions, replaced in turn, make of ours."""

    def name(module: Any, layer: str, dialect: Dialect) -> str:
        del module, dialect
        for ours, theirs in pairs:
            layer = re.sub(ours, theirs, layer)
        return layer.replace("/", ".")

    return name


_alexnet = _renamed(
    ("conv1", "features.0"),
    ("conv2", "features.3"),
    ("conv3", "features.6"),
    ("conv4", "features.8"),
    ("conv5", "features.10"),
    ("fc6", "classifier.1"),
    ("fc7", "classifier.4"),
    ("fc8", "classifier.6"),
)
_googlenet = _renamed(
    (r"branch([23])_reduce/", r"branch\1.0/"), (r"branch([234])/", r"branch\1.1/")
)
_inception_v3 = _renamed(
    (r"^aux\b", "AuxLogits"), ("^mixed_", "Mixed_"), ("^conv2d_", "Conv2d_")
)
_resnet = _renamed(
    (r"^layer(\d)_(\d+)/", r"layer\1.\2."),
    ("downsample_conv", "downsample.0"),
    ("downsample_bn", "downsample.1"),
)

_BOTH: tuple[Dialect, ...] = ("torchvision", "timm")
_TORCHVISION: tuple[Dialect, ...] = ("torchvision",)
_NETWORKS: dict[type, tuple[tuple[Dialect, ...], _Name]] = {
    AlexNet: (_TORCHVISION, _alexnet),
    VGG: (_BOTH, _vgg),
    GoogLeNet: (_TORCHVISION, _googlenet),
    InceptionV3: (_BOTH, _inception_v3),
    ResNet: (_BOTH, _resnet),
    EfficientNet: (_BOTH, _efficientnet),
    ConvNeXt: (_BOTH, _convnext),
}
