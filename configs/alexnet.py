"""AlexNet as torchvision trained it, and its digits.

    python -m jaxcls.train --config configs/alexnet.py

Digits: enlarged to 64 x 64 pixels, a minute and a half on 2 CPU cores; test top-1 96.67 % (jax
0.10.2, 2026-11-22). The training is ours: AdamW (no average of 57 million weights), warm-up and
cosine, label smoothing, shifts of one pixel.

Other datasets, as configs/alexnet.py:imagenet: resnet50.py's training at a tenth of its rate.
56.522 % on ImageNet there, on 8 V100 (torchvision's AlexNet_Weights.IMAGENET1K_V1;
references/classification/README.md); not measured here.

Network: Krizhevsky 2014 (https://arxiv.org/abs/1404.5997); small images are enlarged to 64 pixels.
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
    config = classic(defaults, Model(name="alexnet"), rate=0.01, at_least=64)
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=5e-4, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(8),
        clip=ClipNorm(max_norm=1.0),
        evaluation=Evaluation(every=epochs(4)),
        checkpoint=Checkpoint(every=epochs(4)),
    )
