"""VGG-16 as torchvision trained it, and its digits.

    python -m jaxcls.train --config configs/vgg16.py

Digits: with batch norm and small dense layers, enlarged to 32 x 32 pixels, about 2 minutes on 2
busy CPU cores; test top-1 76.39 % after two epochs (jax 0.10.2, 2026-11-22). The training is ours:
AdamW, warm-up and cosine, label smoothing, shifts of one pixel.

Other datasets, as configs/vgg16.py:imagenet: resnet50.py's training, at a tenth of its rate where
there is no batch norm, which small images have. 71.592 % on ImageNet there, on 8 V100
(torchvision's VGG16_Weights.IMAGENET1K_V1; references/classification/README.md); not measured
here. --config.model.name=vgg11, vgg13 or vgg19 (and with _bn) are its siblings.

Network: Simonyan & Zisserman 2014 (https://arxiv.org/abs/1409.1556); for small images hidden
layers of 512.
"""

import dataclasses

from configs.resnet50 import classic
from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import AdamW, ClipNorm, WarmupCosine


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    if defaults.photographs:
        return classic(defaults, Model(name="vgg16"), rate=0.01)
    model = Model(name="vgg16_bn", stem="small", dropout=0.2)
    config = classic(defaults, model, rate=0.1, at_least=32)
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(0.5)),
        batch_size=32,
        duration=epochs(2),
        clip=ClipNorm(max_norm=1.0),
        evaluation=Evaluation(every=epochs(2)),
        checkpoint=Checkpoint(every=epochs(2)),
    )
