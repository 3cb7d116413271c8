"""Host side: from images as they lie to whole uint8 batches. No JAX arrays here."""

from jaxcls.data.dataset import Dataset
from jaxcls.data.encoded_images import DecodedSource, Encoded, Images
from jaxcls.data.formats.archives import Cifar10, Cifar100, FashionMnist, Mnist
from jaxcls.data.formats.digits import Digits
from jaxcls.data.formats.folder import ImageFolder
from jaxcls.data.formats.huggingface import HuggingFace
from jaxcls.data.formats.imagenet import ImageNet
from jaxcls.data.formats.manifest import Manifest
from jaxcls.data.formats.records import Records
from jaxcls.data.formats.synthetic import Synthetic
from jaxcls.data.formats.tfds import Tfds
from jaxcls.data.formats.webtar import WebTar
from jaxcls.data.host_crop import Canvas, CenterSquare, HostRandomResizedCrop, Letterbox
from jaxcls.data.mixture import Mixture
from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import ArraySource, Record, Source
from jaxcls.errors import UserError, did_you_mean

DATASETS: dict[str, type[Dataset]] = {
    "digits": Digits,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "imagenet": ImageNet,
    "folder": ImageFolder,
    "records": Records,
    "manifest": Manifest,
    "webtar": WebTar,
    "tfds": Tfds,
    "huggingface": HuggingFace,
    "synthetic": Synthetic,
}
"""The datasets that a recipe's argument can name: `--config configs/resnet18.py:folder`."""


def create_dataset(name: str) -> Dataset:
    """Returns a dataset by name, with its default options.

    Raises:
      UserError: for a name that is not in DATASETS.
    """
    if name not in DATASETS:
        raise UserError(
            f"unknown dataset '{name}'.{did_you_mean(name, DATASETS)} Known datasets: "
            f"{', '.join(DATASETS)}."
        )
    return DATASETS[name]()
