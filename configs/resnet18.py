"""ResNet-18 as torchvision trained it, and its digits.

    python -m jaxcls.train --config configs/resnet18.py

Digits: the stem for small images (3x3, stride 1, no pool) at 8 x 8 pixels, about a minute on 2
busy CPU cores; test top-1 98.61 % raw and EMA (jax 0.10.2, 2026-11-22). The training is ours: SGD
with Nesterov momentum, warm-up and cosine, label smoothing, shifts.

Other datasets, as configs/resnet18.py:imagenet: resnet50.py's training. 69.758 % on ImageNet
there, on 8 V100 (torchvision's ResNet18_Weights.IMAGENET1K_V1;
references/classification/README.md); not measured here.

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385).
"""

import dataclasses

from configs.resnet50 import classic
from jaxcls.config import Config
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, SGD, ClipNorm, WarmupCosine


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    config = classic(defaults, Model(name="resnet18", stem=defaults.stem), rate=0.1)
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=SGD(learning_rate=0.1, weight_decay=5e-3, decay="decoupled"),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=128,
        duration=epochs(10),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
    )
