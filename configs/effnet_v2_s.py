"""EfficientNetV2-S as its authors trained it, with images that grow, and its digits.

    python -m jaxcls.train --config configs/effnet_v2_s.py

Digits: the stem for small images at 8 x 8 pixels, about 8 minutes on 2 busy CPU cores; test top-1
88.06 % raw, 87.78 % EMA (jax 0.10.2, 2026-11-22). The training is ours: AdamW, warm-up and cosine,
label smoothing, shifts of one pixel.

Other datasets, as configs/effnet_v2_s.py:imagenet: effnet_b0.py's optimizer, with four stages of
171, 214, 257 and 300 pixels under a RandAugment that grows from 5 to 10, and evaluation at 384
(google/automl's efficientnetv2/main.py, hparams.py and effnetv2_configs.py; the paper's table 6
has 15, and lets dropout grow too, which they do not). 83.9 % on ImageNet there, on 32 TPU v3 cores
(table 7); not measured here. Small images do not grow in size.

Network: Tan & Le 2021 (https://arxiv.org/abs/2104.00298); for small images stride 1 in the stem
and the first strided stage.
"""

import dataclasses

from jaxcls.augment import Growing, Normalize, RandAugment, Resize, Staged
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

SIZES = (171, 214, 257, 300)


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    # (grey level - 128) / 128 there.
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    growing_size = Staged(transform=Resize(size=SIZES[-1]), field="size", values=SIZES)
    config = Config(
        model=Model(name="efficientnet_v2_s", stem=defaults.stem, drop_path=0.2),
        data=defaults.data(384, crop=384 / (384 + 32)),
        augment=(
            *((growing_size,) if defaults.photographs else ()),
            *defaults.framing(),
            Growing(
                transform=RandAugment(num_ops=2, bins=11),
                field="magnitude",
                first=5.0,
                last=10.0,
            ),
            normalize,
        ),
        eval_transform=(normalize,),
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
        augment=(*defaults.framing(), normalize),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(8),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
        evaluation=Evaluation(every=epochs(4)),
        checkpoint=Checkpoint(every=epochs(4)),
    )
