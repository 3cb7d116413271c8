"""GoogLeNet with its auxiliary heads, as Caffe's replication trained it, and its digits.

    python -m jaxcls.train --config configs/googlenet.py

Digits: enlarged to 32 x 32 pixels, about 2 minutes on 2 busy CPU cores; test top-1 99.17 % raw,
98.89 % EMA (jax 0.10.2, 2026-11-22). The training is ours: AdamW, warm-up and cosine, label
smoothing, shifts of one pixel.

Other datasets, as configs/googlenet.py:imagenet: 60 epochs of SGD with momentum at a rate of
0.01 for 32 images, which falls as the root of what is left (BVLC/caffe,
models/bvlc_googlenet/quick_solver.prototxt; the paper does not give its rate and batch).
Auxiliary heads weigh 0.3, with dropout 0.7, as in the paper's section 5; the random crops are its
section 6's, which Caffe left out. 68.7 % on ImageNet there (models/bvlc_googlenet/readme.md),
without batch norm and on a GPU whose name is not given; here 256 images a step and batch norm: not
measured here.

Network: Szegedy et al. 2014 (https://arxiv.org/abs/1409.4842), with batch norm.
"""

import dataclasses

from jaxcls.config import Checkpoint, Config, Evaluation
from jaxcls.config.dataset_defaults import dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, SGD, AdamW, ClipNorm, Polynomial, WarmupCosine


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    config = Config(
        model=Model(name="googlenet", aux_weight=0.3),
        data=defaults.data(224, crop=224 / 256),
        augment=(*defaults.framing(), *defaults.enlarged(32), defaults.normalize),
        eval_transform=(*defaults.enlarged(32), defaults.normalize),
        optimizer=SGD(
            learning_rate=0.01,
            rate_per=32,
            momentum=0.9,
            nesterov=False,
            weight_decay=2e-4,
            decay="l2",
        ),
        schedule=Polynomial(power=0.5, end_at="after_last"),
        batch_size=256,
        duration=epochs(60),
    )
    if not defaults.is_digits:
        return config
    return dataclasses.replace(
        config,
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=AdamW(learning_rate=2e-3, weight_decay=0.05),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=64,
        duration=epochs(8),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
        evaluation=Evaluation(every=epochs(4)),
        checkpoint=Checkpoint(every=epochs(4)),
    )
