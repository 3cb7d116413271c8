"""Inception v3 with its auxiliary head, as its paper trained it, and its digits.

    python -m jaxcls.train --config configs/inception_v3.py

Digits: enlarged to 75 x 75 pixels, the smallest images that it takes, about 5 minutes on 2 busy
CPU cores; test top-1 94.72 % raw, 93.89 % EMA (jax 0.10.2, 2026-11-22). The training is ours:
AdamW, warm-up and cosine, label smoothing, shifts of one pixel.

Other datasets, as configs/inception_v3.py:imagenet: the paper's section 8: RMSProp with epsilon 1,
0.94 of the rate every 2 of 100 epochs, gradients clipped to 2, label smoothing, averaged weights.
78.8 % on one crop of ImageNet there (table 3), on 50 replicas with a Kepler GPU and 32 images each
that did not wait for each other. Here a step is of all their images, at the rate of one of them:
not measured here. The paper does not give the decay of its average, nor a momentum: 0.9999, 0.9.

Network: Szegedy et al. 2015 (https://arxiv.org/abs/1512.00567).
"""

import dataclasses

from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import (
    EMA,
    AdamW,
    ClipNorm,
    Exponential,
    RMSpropTF,
    WarmupCosine,
)


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    config = Config(
        model=Model(name="inception_v3"),
        data=defaults.data(299, crop=0.875),
        augment=(*defaults.framing(), *defaults.enlarged(75), defaults.normalize),
        eval_transform=(*defaults.enlarged(75), defaults.normalize),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=RMSpropTF(learning_rate=0.045, rho=0.9, momentum=0.9, epsilon=1.0),
        schedule=Exponential(period=epochs(2), decay=0.94, staircase=True),
        batch_size=50 * 32,
        duration=epochs(100),
        clip=ClipNorm(max_norm=2.0),
        ema=EMA(decay=0.9999),
    )
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=32,
        duration=epochs(3),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
        evaluation=Evaluation(every=epochs(3)),
        checkpoint=Checkpoint(every=epochs(3)),
    )
