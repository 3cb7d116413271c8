"""What the picture of the augmentation in the README is drawn from.

python -m jaxcls.preview --config docs/augmentation.py --count 8 --out docs/augmentation.png
"""

from docs.photographs import Photographs
from jaxcls.augment import (
    AutoAugment,
    ColorJitter,
    GaussianBlur,
    HorizontalFlip,
    MixUpOrCutMix,
    Normalize,
    RandAugment,
    RandomAffine,
    RandomErasing,
    RandomPerspective,
    RandomResizedCrop,
    Resize,
    TrivialAugmentWide,
)
from jaxcls.config import Config
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import AdamW, WarmupCosine


def get_config() -> Config:
    normalize = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return Config(
        model=Model(name="resnet18"),
        data=Photographs(),
        augment=(
            RandomResizedCrop(size=112),
            HorizontalFlip(),
            RandomAffine(degrees=15, translate=(0.1, 0.1), shear=(-10, 10)),
            RandomPerspective(distortion_scale=0.4, p=1.0),
            ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            GaussianBlur(kernel_size=9, p=0.5),
            RandAugment(num_ops=2, magnitude=9),
            AutoAugment(),
            TrivialAugmentWide(),
            normalize,
            RandomErasing(p=0.5),
            MixUpOrCutMix(),
        ),
        eval_transform=(Resize(size=112), normalize),
        loss=SoftmaxCrossEntropy(),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=8,
        duration=epochs(2),
    )
