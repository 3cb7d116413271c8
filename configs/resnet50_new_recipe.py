"""ResNet-50 by torchvision's "new recipe" of 2021.

    python -m jaxcls.train --config configs/resnet50_new_recipe.py

Digits: the stem for small images at 8 x 8 pixels, with the same kinds of everything in 6 epochs;
not measured here.

Other datasets, as configs/resnet50_new_recipe.py:imagenet: 600 epochs of SGD at 0.5 for 1,024
images, a cosine after 5 epochs of warm-up, label smoothing, TrivialAugment, random erasing, mixup
or cutmix, each image four times in a batch, averaged weights; trained with 176 and evaluated with
224 pixels. 80.858 % on ImageNet there, on 8 GPUs (ResNet50_Weights.IMAGENET1K_V2; commands in
https://github.com/pytorch/vision/issues/3995); not measured here. There the average begins after
the warm-up, and crops are made at 176 pixels at once, not at 224 and then reduced.

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), strides in the 3x3 convolutions.
"""

from jaxcls.augment import MixUpOrCutMix, RandomErasing, TrivialAugmentWide
from jaxcls.config import Config
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, SGD, WarmupCosine

BATCH, EPOCHS = 1024, 600
EMA_STEPS = 32


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    data = defaults.data(224, crop=224 / 232)
    data.sampling.repeats = 4
    return Config(
        model=Model(name="resnet50", stem=defaults.stem),
        data=data,
        augment=(
            *defaults.reduced(176),
            *defaults.framing(),
            TrivialAugmentWide(),
            defaults.normalize,
            RandomErasing(p=0.1),
            MixUpOrCutMix(mixup_alpha=0.2, cutmix_alpha=1.0, switch_prob=0.5),
        ),
        eval_transform=(defaults.normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=SGD(
            learning_rate=defaults.choose(0.5, digits=0.1),
            momentum=0.9,
            nesterov=False,
            weight_decay=2e-5,
            decay="l2",
        ),
        schedule=WarmupCosine(
            warmup=defaults.choose(epochs(5), digits=epochs(1)),
            start=0.01,
            every="epoch",
            end_at="after_last",
        ),
        batch_size=defaults.choose(BATCH, digits=64),
        duration=defaults.choose(epochs(EPOCHS), digits=epochs(6)),
        # --model-ema-decay=0.99998, which torchvision adapts to batch, steps and epochs.
        ema=EMA(
            decay=defaults.choose(1 - 2e-5 * BATCH * EMA_STEPS / EPOCHS, digits=0.9),
            every=defaults.choose(EMA_STEPS, digits=1),
        ),
    )
