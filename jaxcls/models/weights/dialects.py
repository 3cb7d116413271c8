"""What our layers are called in the state dicts of torchvision and timm.

A layer's name here is its path in the variables, such as "layer1_0/conv1".
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from jaxcls.errors import UserError
from jaxcls.models.alexnet import AlexNet
from jaxcls.models.convnext import ConvNeXt
from jaxcls.models.efficientnet import EfficientNet
from jaxcls.models.googlenet import GoogLeNet
from jaxcls.models.inception import InceptionV3
from jaxcls.models.resnet import ResNet
from jaxcls.models.vgg import VGG

Dialect = Literal["torchvision", "timm"]


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
    names = _NAMES.get(type(module), {})
    if dialect not in names:
        raise UserError(
            f"{dialect} has no counterpart of {type(module).__name__}: its weights cannot be "
            "exchanged."
        )
    return names[dialect](module, layer)


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


def _alexnet(module: AlexNet, layer: str) -> str:
    del module
    return {
        "conv1": "features.0",
        "conv2": "features.3",
        "conv3": "features.6",
        "conv4": "features.8",
        "conv5": "features.10",
        "fc6": "classifier.1",
        "fc7": "classifier.4",
        "fc8": "classifier.6",
    }[layer]


def _vgg_features(module: VGG, layer: str) -> str:
    """Counts the entries of torchvision's sequence: convolution, (norm,) ReLU, and a pool at the
    end of each stage."""
    parts = re.fullmatch(r"stage(\d)/(conv|bn)(\d)", layer)
    assert parts is not None
    stage, kind, index = int(parts[1]), parts[2], int(parts[3])
    each = 3 if module.batch_norm else 2
    before = each * (sum(module.stage_sizes[: stage - 1]) + index - 1) + stage - 1
    return f"features.{before + (kind == 'bn')}"


def _vgg(module: VGG, layer: str) -> str:
    dense = {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
    return dense.get(layer) or _vgg_features(module, layer)


def _vgg_timm(module: VGG, layer: str) -> str:
    dense = {"fc6": "pre_logits.fc1", "fc7": "pre_logits.fc2", "fc8": "head.fc"}
    return dense.get(layer) or _vgg_features(module, layer)


def _googlenet(module: GoogLeNet, layer: str) -> str:
    del module
    for ours, theirs in (
        (r"branch([23])_reduce/", r"branch\1.0/"),
        (r"branch([23])/", r"branch\1.1/"),
        (r"branch4/", r"branch4.1/"),
    ):
        layer = re.sub(ours, theirs, layer)
    return layer.replace("/", ".")


def _inception_v3(module: InceptionV3, layer: str) -> str:
    del module
    first, *rest = layer.split("/")
    first = "AuxLogits" if first == "aux" else first
    first = re.sub("^(mixed|conv2d)_", lambda kind: kind[0].capitalize(), first)
    return ".".join([first, *rest])


def _resnet(module: ResNet, layer: str) -> str:
    del module
    layer = re.sub(r"^layer(\d)_(\d+)/", r"layer\1.\2.", layer)
    layer = layer.replace("downsample_conv", "downsample.0")
    return layer.replace("downsample_bn", "downsample.1")


def _block(layer: str) -> tuple[int, int, str] | None:
    """Splits "stage2_0/rest" into (2, 0, "rest")."""
    parts = re.fullmatch(r"stage(\d)_(\d+)/(.*)", layer)
    return (int(parts[1]), int(parts[2]), parts[3]) if parts else None


def _efficientnet(module: EfficientNet, layer: str) -> str:
    place = _block(layer)
    if place is None:
        head = len(module.stages) + 1
        return {
            "stem_conv": "features.0.0",
            "stem_bn": "features.0.1",
            "head_conv": f"features.{head}.0",
            "head_bn": f"features.{head}.1",
            "fc": "classifier.1",
        }[layer]
    number, index, inner = place
    stage = module.stages[number - 1]
    # The parts of a block, in order, are numbered there.
    parts = ["expand", "depthwise", "se", "project"]
    if stage.fused:
        parts = ["expand", "project"]
    elif stage.expand == 1:
        parts.remove("expand")
    if inner.startswith("se/"):
        rest = {"se/reduce": "fc1", "se/expand": "fc2"}[inner]
        return f"features.{number}.{index}.block.{parts.index('se')}.{rest}"
    part, _, kind = inner.rpartition("_")
    position = (
        parts.index(part) if part else 0
    )  # the one of a fused block that is alone
    return f"features.{number}.{index}.block.{position}.{int(kind == 'bn')}"


def _efficientnet_timm(module: EfficientNet, layer: str) -> str:
    place = _block(layer)
    if place is None:
        return {
            "stem_conv": "conv_stem",
            "stem_bn": "bn1",
            "head_conv": "conv_head",
            "head_bn": "bn2",
            "fc": "classifier",
        }[layer]
    number, index, inner = place
    stage = module.stages[number - 1]
    if stage.fused:
        names = {
            "conv": "conv",
            "bn": "bn1",
            "expand_conv": "conv_exp",
            "expand_bn": "bn1",
            "project_conv": "conv_pwl",
            "project_bn": "bn2",
        }
    elif stage.expand == 1:
        names = {
            "depthwise_conv": "conv_dw",
            "depthwise_bn": "bn1",
            "project_conv": "conv_pw",
            "project_bn": "bn2",
        }
    else:
        names = {
            "expand_conv": "conv_pw",
            "expand_bn": "bn1",
            "depthwise_conv": "conv_dw",
            "depthwise_bn": "bn2",
            "project_conv": "conv_pwl",
            "project_bn": "bn3",
        }
    names |= {"se/reduce": "se.conv_reduce", "se/expand": "se.conv_expand"}
    return f"blocks.{number - 1}.{index}.{names[inner]}"


def _convnext(module: ConvNeXt, layer: str) -> str:
    del module
    place = _block(layer)
    if place is not None:
        stage, index, inner = place
        rest = {
            "depthwise_conv": ".block.0",
            "norm": ".block.2",
            "fc1": ".block.3",
            "fc2": ".block.5",
            "": "",
        }[inner]
        return f"features.{2 * stage - 1}.{index}{rest}"
    between = re.fullmatch(r"downsample(\d)_(norm|conv)", layer)
    if between:
        return f"features.{2 * int(between[1]) - 2}.{int(between[2] == 'conv')}"
    return {
        "stem_conv": "features.0.0",
        "stem_norm": "features.0.1",
        "norm": "classifier.0",
        "fc": "classifier.2",
    }[layer]


def _convnext_timm(module: ConvNeXt, layer: str) -> str:
    del module
    place = _block(layer)
    if place is not None:
        stage, index, inner = place
        rest = {
            "depthwise_conv": ".conv_dw",
            "norm": ".norm",
            "fc1": ".mlp.fc1",
            "fc2": ".mlp.fc2",
            "": "",
        }[inner]
        return f"stages.{stage - 1}.blocks.{index}{rest}"
    between = re.fullmatch(r"downsample(\d)_(norm|conv)", layer)
    if between:
        stage = int(between[1])
        return f"stages.{stage - 1}.downsample.{int(between[2] == 'conv')}"
    return {
        "stem_conv": "stem.0",
        "stem_norm": "stem.1",
        "norm": "head.norm",
        "fc": "head.fc",
    }[layer]


_NAMES: dict[type, dict[str, Callable[[Any, str], str]]] = {
    AlexNet: {"torchvision": _alexnet},
    VGG: {"torchvision": _vgg, "timm": _vgg_timm},
    GoogLeNet: {"torchvision": _googlenet},
    InceptionV3: {"torchvision": _inception_v3, "timm": _inception_v3},
    ResNet: {"torchvision": _resnet, "timm": _resnet},
    EfficientNet: {"torchvision": _efficientnet, "timm": _efficientnet_timm},
    ConvNeXt: {"torchvision": _convnext, "timm": _convnext_timm},
}
