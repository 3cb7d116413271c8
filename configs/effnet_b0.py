"""EfficientNet-B0 with the stem for small images, on handwritten digits.

    python -m jaxcls.train --config configs/effnet_b0.py

Network: Tan & Le 2019 (https://arxiv.org/abs/1905.11946). The training is ours.
"""

from jaxcls.augment import Normalize, RandomCrop, Resize
from jaxcls.config import Config, Evaluation
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
        augment=(RandomCrop(padding=1), Resize(size=16), normalize),
        eval_transform=(Resize(size=16), normalize),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(2)),
        batch_size=64,
        duration=epochs(20),
        clip_norm=1.0,
        ema_decay=0.98,
        evaluation=Evaluation(every=epochs(2)),
    )
