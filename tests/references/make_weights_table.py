"""Makes jaxcls/models/weights/weights.csv and the names in jaxcls/imagenet_classes.txt from
torchvision and timm.

    python tests/references/make_weights_table.py results-imagenet.csv

Needs torchvision 0.28 and timm 1.0.31, downloads no weights, and writes the same bytes each
time. results-imagenet.csv is timm's table of measured accuracies, `results/` in
https://github.com/huggingface/pytorch-image-models (the commit used: aa4b5850).

Only facts are taken over: file names, evaluation sizes, statistics, accuracies, class names.
That a timm architecture is one of our networks is not believed by its name but shown: every
convolution, dense layer and normalisation, in the order in which they are called, is compared
with torchvision's network of the same topology. What is left out is printed, with the reason.
"""

import csv
import functools
import math
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg, list_pretrained
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

MODELS = Path(__file__).parents[2] / "jaxcls" / "models" / "weights"

RESNETS = (
    "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 resnext50_32x4d"
).split()
VGGS = [f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")]
EFFICIENTNETS = [f"efficientnet_b{i}" for i in range(8)]
EFFICIENTNETS_V2 = [f"efficientnet_v2_{size}" for size in "sml"]
CONVNEXTS = [f"convnext_{size}" for size in ("tiny", "small", "base", "large")]
TORCHVISION = [
    "alexnet",
    *VGGS,
    "googlenet",
    "inception_v3",
    *RESNETS,
    *EFFICIENTNETS,
    *EFFICIENTNETS_V2,
    *CONVNEXTS,
]
TIMM = {  # timm's architecture -> our network
    **{name: name for name in (*VGGS, "inception_v3", *RESNETS, *EFFICIENTNETS)},
    **{f"tf_{name}": name for name in EFFICIENTNETS},
    **{f"tf_efficientnetv2_{size}": f"efficientnet_v2_{size}" for size in "sml"},
    **{name: name for name in (*CONVNEXTS, "convnext_xlarge")},
}
TWINS = {"v1": "tv_in1k", "v2": "tv2_in1k"}  # torchvision's own weights at timm
CLASSES = {1000, 11821, 21841, 21843}  # ImageNet-1k, -12k, -22k and Google's -21k
NORMALIZATIONS = {
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "imagenet",
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)): "half",
    (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ): "clip",
}
TRANSFORM_INPUT = ("googlenet", "inception_v3")
"""Networks in which torchvision maps images that are normalised with ImageNet's statistics to
(x - 0.5) / 0.5 before the first layer: our networks take the latter, so "half" it is."""

Row = dict[str, Any]


def main(results_csv: str) -> None:
    """Writes the two files; `results_csv` is the path of timm's results-imagenet.csv."""
    with open(results_csv, newline="") as file:
        results = {
            (row["model"], int(row["img_size"])): row for row in csv.DictReader(file)
        }
    rows = [row for name in TORCHVISION for row in torchvision_rows(name)]
    rows += [row for name in TIMM for row in timm_rows(name, results)]
    with open(MODELS / "weights.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    classes = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    table = MODELS.parents[1] / "imagenet_classes.txt"
    synsets = [line.split()[0] for line in table.read_text().splitlines()]
    table.write_text(
        "".join(f"{s} {name}\n" for s, name in zip(synsets, classes, strict=True))
    )
    print(f"{len(rows)} weight sets, {len(classes)} classes")


def torchvision_rows(model: str) -> list[Row]:
    """Returns a row for each of torchvision's weight sets of one of our networks."""
    rows = []
    for weights in torchvision.models.get_model_weights(model):
        if not weights.name.startswith("IMAGENET1K_V"):
            print(f"left out: {weights}, which is not a whole classifier")
            continue
        version = weights.name.removeprefix("IMAGENET1K_").lower()
        preset = weights.transforms()
        (resize,), (size,) = preset.resize_size, preset.crop_size
        normalization = NORMALIZATIONS[tuple(preset.mean), tuple(preset.std)]
        if model in TRANSFORM_INPUT:
            assert normalization == "imagenet"
            normalization = "half"
        twin = f"{model}.{TWINS[version]}"
        rows.append(
            {
                "name": f"torchvision/{model}:{version}",
                "model": model,
                "bn_epsilon": "",
                "padding": "",
                "file": weights.url.removeprefix(
                    "https://download.pytorch.org/models/"
                ),
                "resize": resize,
                "size": size,
                "interpolation": preset.interpolation.value,
                "normalization": normalization,
                "num_classes": len(weights.meta["categories"]),
                "top1": weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
                "twin": f"timm/{twin}" if twin in list_pretrained(twin) else "",
            }
        )
    return rows


def timm_rows(architecture: str, results: dict[tuple[str, int], Row]) -> list[Row]:
    """Returns a row for each of timm's weight sets of one architecture."""
    model = TIMM[architecture]
    names = list_pretrained(f"{architecture}.*")
    options = compare(architecture, model) if names else {}
    rows = []
    for name in sorted(names):
        config = get_pretrained_cfg(name)
        if config.num_classes not in CLASSES:
            print(
                f"left out: {name} with {config.num_classes} outputs, not a classifier"
            )
            continue
        assert config.hf_hub_id == f"timm/{name}" and not config.hf_hub_filename
        assert not config.custom_load and not config.label_offset
        evaluation = best_evaluation(name, config, results)
        rows.append(
            {
                "name": config.hf_hub_id,
                "model": model,
                "bn_epsilon": options.get("bn_epsilon", ""),
                "padding": options.get("padding", ""),
                "file": "",
                "resize": evaluation["resize"],
                "size": evaluation["size"],
                "interpolation": config.interpolation,
                "normalization": NORMALIZATIONS[tuple(config.mean), tuple(config.std)],
                "num_classes": config.num_classes,
                "top1": evaluation["top1"],
                "twin": "",
            }
        )
    return rows


def best_evaluation(name: str, config: Any, results: dict[tuple[str, int], Row]) -> Row:
    """Returns resize, size and top1 of a timm set.

    timm measures at the size of the training and, where it has one, at a larger one for
    testing. The better is taken (one set of 2022 loses four points at the larger size), the
    testing size where nothing was measured.

    Sets of crop_mode "squash" were measured on whole images squeezed to a square. We have the
    centre crop alone; it is a fair way to use them, but the published accuracy is not its.
    """
    train = (config.input_size[-1], config.crop_pct)
    test = (
        (config.test_input_size or config.input_size)[-1],
        config.test_crop_pct or config.crop_pct,
    )
    measured = []
    for size, crop in (test, train):
        row = results.get((name, size))
        if row is None:
            continue
        same = math.isclose(float(row["crop_pct"]), crop, abs_tol=5e-4)
        if same and row["interpolation"] == config.interpolation:
            measured.append((float(row["top1"]), size, crop))
        else:
            print(
                f"not believed: {name} at {size}, measured in another way than it says"
            )
    top1, size, crop = max(measured, key=lambda item: item[0], default=(None, *test))
    if config.crop_mode != "center":
        print(f"without top1: {name}, measured with crop_mode {config.crop_mode}")
        top1 = None
    return {"resize": math.floor(size / crop), "size": size, "top1": top1}


def compare(architecture: str, model: str) -> Row:
    """Shows that a timm architecture is one of our networks.

    Returns:
      The options with which it is: bn_epsilon and padding where they differ from
      torchvision's network.

    Raises:
      ValueError: if it is another network.
    """
    size = 299 if model == "inception_v3" else 224
    theirs = layers(timm.create_model, architecture, size)
    ours = layers(reference, model, size)
    # An option holds for the whole network, so no layer may be an exception.
    assert len({other["eps"] for other in theirs if other["kind"] == "batch"}) <= 1
    strided = [other for other in theirs if other.get("stride", (1, 1)) != (1, 1)]
    assert len({other["padding"] == "same" for other in strided}) <= 1
    options: Row = {}
    for mine, other in zip(ours, theirs, strict=True):
        if other.get("padding") == "same" and mine["stride"] != (1, 1):
            options["padding"] = "same"
            other["padding"] = mine["padding"]
        if mine["kind"] == other["kind"] == "batch" and mine["eps"] != other["eps"]:
            options["bn_epsilon"] = other["eps"]
            other["eps"] = mine["eps"]
        if model == "inception_v3" and mine["kind"] == "all":
            mine["activations"] = {"ReLU"}  # torchvision calls the function instead
        if mine != other:
            raise ValueError(f"{architecture} is not {model}: {other}, expected {mine}")
    return options


def reference(model: str) -> nn.Module:
    """Returns torchvision's network, or its parts put together for the size that it lacks."""
    if model == "convnext_xlarge":
        widths = (256, 512, 1024, 2048, None)
        depths = (3, 3, 27, 3)
        blocks = zip(widths, widths[1:], depths, strict=False)
        return ConvNeXt([CNBlockConfig(*block) for block in blocks])
    heads = {"aux_logits": False} if model in TRANSFORM_INPUT else {}
    inits = {"init_weights": False} if model in (*VGGS, *TRANSFORM_INPUT) else {}
    return torchvision.models.get_model(model, weights=None, **heads, **inits)


def layers(build: Any, name: str, size: int) -> list[Row]:
    """Returns what every layer of a network is, in the order of the calls, and how many
    parameters and which activations there are in all. Computes nothing: shapes alone."""
    with torch.device("meta"):
        network = build(name).eval()
        activations = {
            type(module).__name__
            for module in network.modules()
            if type(module).__module__.endswith(("activation", "activations"))
        }
        found: list[Row] = []
        for module in network.modules():
            module.register_forward_hook(functools.partial(record, found))
        network(torch.empty(1, 3, size, size))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    found.append({"kind": "all", "parameters": parameters, "activations": activations})
    return found


def record(
    found: list[Row], module: nn.Module, inputs: Any, output: torch.Tensor
) -> None:
    """Appends the description of a layer that was called."""
    if isinstance(module, nn.Conv2d):
        taps = (*inputs[0].shape[2:], *output.shape[2:])
        if taps == (*module.kernel_size, 1, 1):  # sees all of its input: a dense layer
            width = module.in_channels * math.prod(module.kernel_size) // module.groups
            found.append(dense(width, module))
            return
        static = not type(module).__name__.endswith("Same")
        found.append(
            {
                "kind": "conv",
                "weight": tuple(module.weight.shape),
                "bias": module.bias is not None,
                "stride": module.stride,
                "groups": module.groups,
                "padding": module.padding if static else "same",
            }
        )
    elif isinstance(module, nn.Linear):
        found.append(dense(module.in_features, module))
    elif isinstance(module, nn.BatchNorm2d):
        found.append({"kind": "batch", "width": module.num_features, "eps": module.eps})
    elif isinstance(module, nn.LayerNorm):
        found.append(
            {
                "kind": "layer",
                "shape": tuple(module.normalized_shape),
                "eps": module.eps,
            }
        )


def dense(width: int, module: nn.Module) -> Row:
    """Returns the description of a dense layer, or of a convolution that is one."""
    shape = (module.weight.shape[0], width)
    return {"kind": "dense", "weight": shape, "bias": module.bias is not None}


if __name__ == "__main__":
    main(*sys.argv[1:])
