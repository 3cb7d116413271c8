"""ConvNeXt-T as its paper trained it, and its digits.

    python -m jaxcls.train --config configs/convnext_tiny.py

Digits: the stem for small images, enlarged to 16 x 16 pixels, about 6 minutes on 2 busy CPU cores;
test top-1 96.39 % raw and EMA (jax 0.10.2, 2026-11-22). The training is ours: AdamW, warm-up and
cosine, label smoothing, shifts of one pixel.

Other datasets, as configs/convnext_tiny.py:imagenet: 300 epochs of AdamW at 4e-3 for 4,096 images,
a cosine after 20 epochs of warm-up, RandAugment, random erasing, mixup or cutmix, stochastic depth
(table 5 of the paper; facebookresearch/ConvNeXt's TRAINING.md). 82.1 % on ImageNet there, on 32
GPUs (table 1); not measured here. (Its colour jitter of 0.4 is left out by timm beside
RandAugment, and here.)

Network: Liu et al. 2022 (https://arxiv.org/abs/2201.03545); for small images patches of 2 x 2
pixels.
"""

import dataclasses

from jaxcls.augment import MixUpOrCutMix, RandomErasing, TimmRandAugment
from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, AdamW, ClipNorm, WarmupCosine


def convnext(name: str, dataset: str, *, drop_path: float) -> Config:
    """Returns the training of Liu et al. 2022 for one of the family.

    Args:
      name: of the network.
      dataset: its name.
      drop_path: rate of stochastic depth.
    """
    defaults = dataset_defaults(dataset)
    config = Config(
        model=Model(name=name, stem=defaults.stem, drop_path=drop_path),
        data=defaults.data(224, crop=0.875, interpolation="bicubic"),
        augment=(
            *defaults.framing(),
            *defaults.enlarged(16),
            TimmRandAugment(magnitude=9, magnitude_std=0.5, interpolation="bicubic"),
            defaults.normalize,
            RandomErasing(p=0.25, fill="pixel"),
            MixUpOrCutMix(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5),
        ),
        eval_transform=(*defaults.enlarged(16), defaults.normalize),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=4e-3, weight_decay=0.05),
        # The warm-up begins at 0 there: this is its second step or so.
        schedule=WarmupCosine(warmup=epochs(20), start=1e-4, end=1e-6 / 4e-3),
        batch_size=4096,
        duration=epochs(300),
        ema=EMA(decay=0.9999),
    )
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        augment=(*defaults.framing(), *defaults.enlarged(16), defaults.normalize),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(10),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
        evaluation=Evaluation(every=epochs(5)),
        checkpoint=Checkpoint(every=epochs(5)),
    )


def get_config(dataset: str = "digits") -> Config:
    return convnext("convnext_tiny", dataset, drop_path=0.1)
