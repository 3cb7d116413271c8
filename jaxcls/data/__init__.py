"""Host side: from images as they lie to whole uint8 batches. No JAX arrays here."""

from jaxcls.data.archives import Cifar10, Cifar100, FashionMnist, Mnist
from jaxcls.data.canvas import (
    Canvas,
    CenterSquare,
    HostRandomResizedCrop,
    Letterbox,
)
from jaxcls.data.datasets import DATASETS, create_dataset
from jaxcls.data.derived import Mixture
from jaxcls.data.encoded import Encoded
from jaxcls.data.folder import ImageFolder
from jaxcls.data.huggingface import HuggingFace
from jaxcls.data.imagenet import ImageNet
from jaxcls.data.images import DecodedSource, Images
from jaxcls.data.manifest import Manifest
from jaxcls.data.records import Records
from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import ArraySource, Dataset, Digits, Record, Source
from jaxcls.data.synthetic import Synthetic
from jaxcls.data.tfds import Tfds
from jaxcls.data.webtar import WebTar

__all__ = [
    "DATASETS",
    "ArraySource",
    "Canvas",
    "CenterSquare",
    "Cifar10",
    "Cifar100",
    "Dataset",
    "DecodedSource",
    "Digits",
    "Encoded",
    "FashionMnist",
    "HostRandomResizedCrop",
    "HuggingFace",
    "ImageFolder",
    "ImageNet",
    "Images",
    "Letterbox",
    "Manifest",
    "Mixture",
    "Mnist",
    "Record",
    "Records",
    "Sampling",
    "Source",
    "Synthetic",
    "Tfds",
    "WebTar",
    "create_dataset",
]
