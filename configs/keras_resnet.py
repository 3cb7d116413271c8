"""A residual network in the manner of Keras, on handwritten digits at their 8 x 8 pixels.

    python -m jaxcls.train --config configs/keras_resnet.py

About 2 minutes on 2 busy CPU cores; test top-1 98.06 % raw, 98.33 % EMA (jax 0.10.2, 2026-11-22).

Network: a small relative of He et al. 2015 (https://arxiv.org/abs/1512.03385). Its batch norm
keeps 0.99 of its running statistics, which needs some 500 steps: hence the small batches. The
training is ours: SGD with Nesterov momentum, warm-up and cosine, label smoothing, shifts of one
pixel.
"""

from jaxcls.augment import Normalize, RandomCrop
from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.data import create_dataset
from jaxcls.duration import epochs
from jaxcls.models import Model
from jaxcls.optim import SGD, WarmupCosine
from jaxcls.training.loss import SoftmaxCrossEntropy


def get_config(dataset: str = "digits") -> Config:
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="keras_resnet"),
        data=create_dataset(dataset),
        augment=(RandomCrop(padding=1), normalize),
        eval_transform=(normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=SGD(learning_rate=0.03, weight_decay=5e-3),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=16,
        duration=epochs(6),
        clip_norm=1.0,
        ema_decay=0.9,
        evaluation=Evaluation(every=epochs(3)),
        checkpoint=Checkpoint(every=epochs(3)),
    )
