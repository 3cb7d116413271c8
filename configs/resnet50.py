"""ResNet-50 as torchvision first trained it, and its digits.

    python -m jaxcls.train --config configs/resnet50.py

Digits: the stem for small images at 8 x 8 pixels, about 3 minutes on 2 busy CPU cores; test
top-1 94.72 % raw, 94.44 % EMA (jax 0.10.2, 2026-11-22). The training is ours: AdamW, warm-up and
cosine, label smoothing, shifts of one pixel.

Other datasets, as configs/resnet50.py:imagenet: SGD with momentum, a tenth of the rate every 30
of 90 epochs. 76.13 % on ImageNet there, on 8 V100 (torchvision's ResNet50_Weights.IMAGENET1K_V1;
references/classification/README.md); not measured here.

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), strides in the 3x3 convolutions.
"""

import dataclasses

from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.config.dataset_defaults import DatasetDefaults, dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, SGD, AdamW, ClipNorm, Step, WarmupCosine


def classic(
    defaults: DatasetDefaults, model: Model, *, rate: float, at_least: int = 1
) -> Config:
    """Returns what torchvision's networks of 2017 were trained with, AlexNet to ResNet-152.

    Args:
      defaults: what follows from the dataset; photographs are trained at 224 pixels.
      model: the network.
      rate: 0.1, or 0.01 for networks without batch norm.
      at_least: pixels of a side to which small images are enlarged.
    """
    return Config(
        model=model,
        data=defaults.data(224, crop=224 / 256),
        augment=(*defaults.framing(), *defaults.enlarged(at_least), defaults.normalize),
        eval_transform=(*defaults.enlarged(at_least), defaults.normalize),
        optimizer=SGD(
            learning_rate=rate,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            decay="l2",
            decays="all",
        ),
        schedule=Step(period=epochs(30), decay=0.1, every="epoch"),
        batch_size=256,
        duration=epochs(90),
    )


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    config = classic(defaults, Model(name="resnet50", stem=defaults.stem), rate=0.1)
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=32,
        duration=epochs(4),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
        evaluation=Evaluation(every=epochs(4)),
        checkpoint=Checkpoint(every=epochs(4)),
    )
