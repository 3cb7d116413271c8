"""Host side: from images as they lie to whole uint8 batches. No JAX arrays here."""

from jaxcls.data.datasets import DATASETS, create_dataset
from jaxcls.data.encoded import Encoded
from jaxcls.data.encoded_images import DecodedSource, Images
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
from jaxcls.data.host_crop import (
    Canvas,
    CenterSquare,
    HostRandomResizedCrop,
    Letterbox,
)
from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import ArraySource, Dataset, Record, Source
from jaxcls.data.subset import Mixture

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
