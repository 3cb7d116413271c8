"""The lesson's CIFAR-10 program in PyTorch: ResNet-18 with AdamW.

    python -m jaxcls.train --config configs/resnet18_cifar10.py

Digits: 8 x 8 pixels, 12 epochs in 5 minutes on 2 very busy CPU cores; test top-1 97.22 % (jax 0.10.2,
2026-11-23).

CIFAR-10, as configs/resnet18_cifar10.py:cifar10, or with --config.data.path=DIR from a folder of
its images: every number is the listing's. Random crops, mirrors, colour jitter, RandAugment and
random erasing; 100 epochs of 128 images; 5 epochs of linear warm-up from a hundredth of the rate,
then a cosine to a thousandth, which changes once an epoch; label smoothing; gradients clipped to
norm 1; every parameter decays, as torch's AdamW has it. Its accuracy and hardware are not given,
and it is not measured here. A DataLoader keeps the 80 images that do not fill the last batch of an
epoch, where here they come in the next epoch.

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), 3x3 stem of stride 1 and no pool.
"""

from jaxcls.augment import ColorJitter, RandAugment, RandomErasing
from jaxcls.config import Config, Evaluation
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import AdamW, ClipNorm, WarmupCosine


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset, small=32)
    return Config(
        model=Model(name="resnet18", stem="small"),
        data=defaults.data(32),
        augment=(
            *defaults.framing(),
            ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            RandAugment(num_ops=2, magnitude=9),
            defaults.normalize,
            RandomErasing(p=0.25),
        ),
        eval_transform=(defaults.normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05, decays="all"),
        schedule=WarmupCosine(
            warmup=defaults.choose(epochs(5), digits=epochs(1)),
            start=0.01,
            end=1e-6 / 1e-3,
            every="epoch",
            end_at="after_last",
        ),
        batch_size=128,
        duration=defaults.choose(epochs(100), digits=epochs(12)),
        clip=ClipNorm(max_norm=1.0),
        evaluation=Evaluation(batch_size=256),
    )
