"""The published weights for our networks, by name.

    weights = find_weights("torchvision/resnet50:v2")
    create_model(weights.model, num_classes=weights.num_classes, **weights.options)
    prepare = published_transform(**weights.preprocessing)  # on the device; jaxcls.augment

They come from torchvision (PyTorch files) and, where its networks are exactly ours, from timm
(safetensors files on the Hugging Face hub). weights.csv holds what varies, and
imagenet_classes.txt the class names in torchvision's wording and order; both are facts from the
metadata of torchvision 0.28 and timm 1.0.31, written by tests/references/make_weights_table.py.
"""

import csv
import dataclasses
import importlib.resources
import os
import re
import urllib.parse
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaxcls.errors import UserError, did_you_mean
from jaxcls.imagenet_classes import imagenet_classes

TORCHVISION = "https://download.pytorch.org/models"
HUB = "https://huggingface.co"
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and standard deviation of red, green and blue in 0..1, by their name in weights.csv."""


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """Published weights of one of our networks, and how its images are prepared.

    Attributes:
      name: "torchvision/resnet50:v2", "timm/resnet50.a1_in1k".
      model: our network's name.
      options: of the network, where these weights need another value than its default:
        bn_epsilon (a float) and padding ("same").
      file: the file's name at torchvision, "" for those on the hub.
      resize: pixels to which the shorter side of an image is resized.
      size: pixels of the square that is then cut from its centre.
      interpolation: of the resizing.
      mean: of red, green and blue in 0..1, subtracted.
      std: what the difference is divided by.
      num_classes: length of the logits.
      top1: published accuracy in percent on ImageNet-1k's 50,000 validation images with this
        very preparation; None where none was published.
      twin: the name of a set with the same tensors as a safetensors file, for people without
        PyTorch; "" if there is none. Its preparation may differ.
    """

    name: str
    model: str
    options: dict[str, Any] = dataclasses.field(hash=False)
    file: str
    resize: int
    size: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int
    top1: float | None
    twin: str

    @property
    def url(self) -> str:
        """Where the file is. The environment's HF_ENDPOINT names another hub, as it does for
        Hugging Face's own tools.

        Raises:
          UserError: if HF_ENDPOINT cannot be an address.
        """
        if self.file:
            return f"{TORCHVISION}/{self.file}"
        hub = os.environ.get("HF_ENDPOINT") or HUB
        url = f"{hub.rstrip('/')}/{self.name}/resolve/main/model.safetensors"
        if not _is_address(url):
            raise UserError(
                f"{url} is no address to download from: HF_ENDPOINT must be like {HUB}, or "
                "not set."
            )
        return url

    @property
    def sha256(self) -> str:
        """The start of the file's SHA-256 in hexadecimal, which torchvision writes into the name;
        "" for files on the hub, which tells it when asked."""
        return PurePosixPath(self.file).stem.rpartition("-")[2]

    @property
    def place(self) -> str:
        """The file's path in the cache folder (jaxcls.download)."""
        name = self.name.replace("/", "--").replace(":", "-")
        return f"weights/{name}{PurePosixPath(self.file or 'model.safetensors').suffix}"

    @property
    def instead(self) -> str:
        """What else to do if the download fails. A path brings no options, so the text names
        those of this set."""
        needed = "".join(f", model.{k}={v!r}" for k, v in self.options.items())
        return f"give the path of a file instead of the name{needed}"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """resize, size, interpolation, mean and std, as keyword arguments."""
        names = ("resize", "size", "interpolation", "mean", "std")
        return {name: getattr(self, name) for name in names}

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of ImageNet-1k's classes in the order of the logits; None for others."""
        return tuple(imagenet_classes().values()) if self.num_classes == 1000 else None


def is_weight_set(source: str) -> bool:
    """Whether a string names a weight set, known or not, rather than a path (a folder of
    that name is "./timm/...")."""
    return source.startswith(("torchvision/", "timm/"))


def find_weights(name: str) -> WeightSet:
    """Returns the weight set of a name.

    Raises:
      UserError: if there is none, with those of the network that the name may mean.
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    near = _of_network(name)
    if near:
        hint = did_you_mean(name, near) if re.search("[:.]", name) else ""
        raise UserError(
            f"there are no weights '{name}'.{hint} Those of that network: "
            f"{', '.join(near)}."
        )
    networks = dict.fromkeys(weights.model for weights in WEIGHTS.values())
    raise UserError(
        f"there are no weights '{name}'.{did_you_mean(name, WEIGHTS)} A name is like "
        "torchvision/resnet50:v2 or timm/resnet50.a1_in1k; a network's name alone lists its "
        f"weights. Networks with weights: {', '.join(networks)}."
    )


def _of_network(name: str) -> list[str]:
    """Returns the names of a network's sets. `name` may be "resnet50", "torchvision/resnet50" or
    "timm/resnet50", or have a version that does not exist."""
    source = name.rpartition("/")[0]
    return [
        weights.name
        for weights in WEIGHTS.values()
        if source in ("", weights.name.partition("/")[0])
        # timm's name of a network, such as "tf_efficientnet_b0", is not always ours.
        and _network(name) in (weights.model, _network(weights.name))
    ]


def _network(name: str) -> str:
    """Returns "resnet50" of "torchvision/resnet50:v2" and of "timm/resnet50.a1_in1k"."""
    return re.split("[:.]", name.rpartition("/")[2])[0]


def _is_address(url: str) -> bool:
    try:
        scheme = urllib.parse.urlsplit(url).scheme
    except ValueError:  # "http://["
        return False
    return scheme in ("http", "https") and url.isascii()


def _weight_set(row: dict[str, Any]) -> WeightSet:
    """Returns the weight set of a row of weights.csv; an empty field is the default."""
    options: dict[str, Any] = {}
    if epsilon := row.pop("bn_epsilon"):
        options["bn_epsilon"] = float(epsilon)
    if padding := row.pop("padding"):
        options["padding"] = padding
    mean, std = NORMALIZATIONS[row.pop("normalization")]
    row |= {field: int(row[field]) for field in ("resize", "size", "num_classes")}
    row["top1"] = float(row["top1"]) if row["top1"] else None
    return WeightSet(**row, options=options, mean=mean, std=std)


_TABLE = importlib.resources.files(__package__) / "weights.csv"
WEIGHTS: dict[str, WeightSet] = {
    row["name"]: _weight_set(row)
    for row in csv.DictReader(_TABLE.read_text(encoding="utf-8").splitlines())
}
"""All weight sets by name."""


def check_path(source: str) -> None:
    """Raises UserError if weights that are no weight set are no file or folder either."""
    if not Path(source).exists():
        raise UserError(
            f"there is no file or folder {source}.{did_you_mean(source, WEIGHTS)} "
            "`python -m jaxcls.models resnet50` lists the names of published weights."
        )
