"""ResNet-50 with the stem for small images, on handwritten digits at their 8 x 8 pixels.

    python -m jaxcls.train --config configs/resnet50.py

About 3 minutes on 2 busy CPU cores; test top-1 94.72 % raw, 94.44 % EMA (jax 0.10.2,
2026-11-22).

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), 3x3 stem of stride 1 and no pool.
The training is ours: AdamW, warm-up and cosine, label smoothing, shifts of one pixel.
"""

from jaxcls.augment import Normalize, RandomCrop
from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.data import create_dataset
from jaxcls.duration import epochs
from jaxcls.models import Model
from jaxcls.optim import AdamW, WarmupCosine
from jaxcls.training.loss import SoftmaxCrossEntropy


def get_config(dataset: str = "digits") -> Config:
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="resnet50", stem="small"),
        data=create_dataset(dataset),
        augment=(RandomCrop(padding=1), normalize),
        eval_transform=(normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=1e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=32,
        duration=epochs(4),
        clip_norm=1.0,
        ema_decay=0.9,
        evaluation=Evaluation(every=epochs(4)),
        checkpoint=Checkpoint(every=epochs(4)),
    )
