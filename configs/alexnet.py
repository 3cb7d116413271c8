"""AlexNet on handwritten digits, enlarged to 64 x 64 pixels.

    python -m jaxcls.train --config configs/alexnet.py

A minute and a half on 2 CPU cores; test top-1 96.67 % (jax 0.10.2, 2026-11-22).

Network: Krizhevsky 2014 (https://arxiv.org/abs/1404.5997). The training is ours: AdamW (no
average of 57 million weights), warm-up and cosine, label smoothing, shifts of one pixel.
"""

from jaxcls.augment import Normalize, RandomCrop, Resize
from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.data import create_dataset
from jaxcls.duration import epochs
from jaxcls.models import Model
from jaxcls.optim import AdamW, WarmupCosine
from jaxcls.training.loss import SoftmaxCrossEntropy


def get_config(dataset: str = "digits") -> Config:
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="alexnet"),
        data=create_dataset(dataset),
        augment=(RandomCrop(padding=1), Resize(size=64), normalize),
        eval_transform=(Resize(size=64), normalize),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=5e-4, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(8),
        clip_norm=1.0,
        evaluation=Evaluation(every=epochs(4)),
        checkpoint=Checkpoint(every=epochs(4)),
    )
