"""EfficientNet-B0 as its paper trained it, and its digits.

    python -m jaxcls.train --config configs/effnet_b0.py

Digits: the stem for small images at 8 x 8 pixels, two and a quarter minutes on 2 CPU cores,
compiling included; test top-1 98.33 % raw, 98.61 % EMA (jax 0.10.2, 2026-11-22). The training is
ours: AdamW, warm-up and cosine, label smoothing, shifts of one pixel.

Other datasets, as configs/effnet_b0.py:imagenet: 350 epochs of TensorFlow's RMSProp at 0.016 for
256 images, 0.97 of it every 2.4 epochs, AutoAugment, dropout, stochastic depth, averaged weights
(section 5.2; what the paper leaves open is tensorflow/tpu's models/official/efficientnet/main.py).
77.1 % on ImageNet there, on Cloud TPUs (table 2); not measured here. There the rate falls from the
start of the run, here from the end of the warm-up.

Network: Tan & Le 2019 (https://arxiv.org/abs/1905.11946); for small images stride 1 in the stem
and in the first stage that has a stride.
"""

import dataclasses

from jaxcls.augment import AutoAugment
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


def efficientnet(name: str, dataset: str, *, size: int, dropout: float) -> Config:
    """Returns the training of Tan & Le 2019 for one of the family.

    Args:
      name: of the network.
      dataset: its name.
      size: pixels of photographs, in training and evaluation.
      dropout: of the inputs of the last layer.
    """
    defaults = dataset_defaults(dataset)
    # TensorFlow's network; digits, which are measured, have torchvision's.
    model = Model(
        name=name,
        stem=defaults.stem,
        dropout=dropout,
        drop_path=0.2,
        bn_momentum=defaults.choose(0.99, digits=None),
        bn_epsilon=defaults.choose(1e-3, digits=None),
        padding=defaults.choose("same", digits=None),
    )
    config = Config(
        model=model,
        # The middle is 32 pixels smaller than the image.
        data=defaults.data(size, crop=size / (size + 32), interpolation="bicubic"),
        augment=(
            *defaults.framing(),
            AutoAugment(policy="imagenet"),
            defaults.normalize,
        ),
        eval_transform=(defaults.normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=RMSpropTF(
            learning_rate=0.016,
            rate_per=256,
            rho=0.9,
            momentum=0.9,
            epsilon=1e-3,
            weight_decay=1e-5,
        ),
        schedule=Exponential(
            warmup=epochs(5), period=epochs(2.4), decay=0.97, staircase=True
        ),
        batch_size=4096,
        duration=epochs(350),
        ema=EMA(decay=0.9999),
    )
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        augment=(*defaults.framing(), defaults.normalize),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(14),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.95),
        evaluation=Evaluation(every=epochs(7)),
        checkpoint=Checkpoint(every=epochs(7)),
    )


def get_config(dataset: str = "digits") -> Config:
    return efficientnet("efficientnet_b0", dataset, size=224, dropout=0.2)
