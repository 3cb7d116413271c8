"""EfficientNet-B0 with the stem for small images, on handwritten digits at their 8 x 8 pixels.

    python -m jaxcls.train --config configs/effnet_b0.py

Two and a quarter minutes on 2 CPU cores, compiling included; test top-1 98.33 % raw, 98.61 %
EMA (jax 0.10.2, 2026-11-22).

Network: Tan & Le 2019 (https://arxiv.org/abs/1905.11946), stride 1 in the stem and in the first
stage that has a stride. The training is ours: AdamW, warm-up and cosine, label smoothing,
shifts of one pixel.
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
        model=Model(name="efficientnet_b0", stem="small"),
        data=create_dataset(dataset),
        augment=(RandomCrop(padding=1), normalize),
        eval_transform=(normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(14),
        clip_norm=1.0,
        ema_decay=0.95,
        evaluation=Evaluation(every=epochs(7)),
        checkpoint=Checkpoint(every=epochs(7)),
    )
