"""ResNet-18 with the stem for small images, on handwritten digits at their 8 x 8 pixels.

    python -m jaxcls.train --config configs/resnet18.py

About a minute on 2 busy CPU cores; test top-1 98.61 % raw and EMA (jax 0.10.2, 2026-11-22).

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), 3x3 stem of stride 1 and no pool.
The training is ours: SGD with Nesterov momentum, warm-up and cosine, label smoothing, shifts.
"""

from jaxcls.augment import Normalize, RandomCrop
from jaxcls.config import Config
from jaxcls.data import create_dataset
from jaxcls.duration import epochs
from jaxcls.models import Model
from jaxcls.optim import SGD, WarmupCosine
from jaxcls.training.loss import SoftmaxCrossEntropy


def get_config(dataset: str = "digits") -> Config:
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="resnet18", stem="small"),
        data=create_dataset(dataset),
        augment=(RandomCrop(padding=1), normalize),
        eval_transform=(normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=SGD(learning_rate=0.1, weight_decay=5e-3),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=128,
        duration=epochs(10),
        clip_norm=1.0,
        ema_decay=0.9,
    )
