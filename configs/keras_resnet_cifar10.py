"""The lesson's CIFAR-10 program in Keras: a small residual network with AdamW.

    python -m jaxcls.train --config configs/keras_resnet_cifar10.py

Digits: 8 x 8 pixels in batches of 16, 6 epochs in 5 minutes on 2 very busy CPU cores; test top-1
99.44 % (jax 0.10.2, 2026-11-23).

CIFAR-10, as configs/keras_resnet_cifar10.py:cifar10, or with --config.data.path=DIR from a folder
of its images: every number is the listing's. Mirrors, translations, zooms and contrasts of Keras's
layers, pixels / 255; 100 epochs of 128 images; 5 epochs of linear warm-up to the rate and a cosine
to a millionth of it, which change at each step; label smoothing; every variable decays, as Keras's
AdamW has it, whose epsilon is 1e-7. Its accuracy and hardware are not given, and it is not measured
here. A warm-up from 0 begins at a millionth here: a rate of 0 would waste the step. Keras adds
its epsilon before it corrects the bias of the mean square, which makes a difference in the first
steps alone.

Network: a small relative of He et al. 2015 (https://arxiv.org/abs/1512.03385). Its batch norm
keeps 0.99 of its running statistics, which needs some 500 steps: digits come in small batches.
"""

from jaxcls.augment import (
    HorizontalFlip,
    Normalize,
    RandomContrast,
    RandomTranslation,
    RandomZoom,
)
from jaxcls.config import Config, Evaluation
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import AdamW, WarmupCosine


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset, small=32)
    normalize = Normalize(mean=(0.0,), std=(1.0,))  # pixels / 255
    return Config(
        model=Model(name="keras_resnet"),
        data=defaults.data(32),
        augment=(
            *((HorizontalFlip(),) if defaults.mirrors else ()),
            RandomTranslation(height_factor=0.1, width_factor=0.1),
            RandomZoom(height_factor=0.1),
            RandomContrast(factor=0.2),
            normalize,
        ),
        eval_transform=(normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(
            learning_rate=1e-3, weight_decay=0.05, decays="all", epsilon=1e-7
        ),
        schedule=WarmupCosine(
            warmup=defaults.choose(epochs(5), digits=epochs(1)),
            start=1e-6,
            end=1e-6,
            end_at="after_last",
        ),
        batch_size=defaults.choose(128, digits=16),
        duration=defaults.choose(epochs(100), digits=epochs(6)),
        evaluation=Evaluation(every=defaults.choose(epochs(1), digits=epochs(3))),
    )
