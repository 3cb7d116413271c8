"""ResNet-32 for CIFAR, as its paper trained it.

    python -m jaxcls.train --config configs/resnet32.py

Digits: resnet20.py's training there; not measured here.

Other datasets, as configs/resnet32.py:cifar10: resnet20.py's training. 92.49 % on CIFAR-10 in the
paper, on two GPUs (table 6); not measured here.

Network: He et al. 2015, section 4.2 (https://arxiv.org/abs/1512.03385).
"""

from configs.resnet20 import cifar_resnet
from jaxcls.config import Config


def get_config(dataset: str = "digits") -> Config:
    return cifar_resnet("resnet32", dataset)
