"""A run of seconds that has everything: batch norm, augmentation, EMA, clipping, evaluations
and saves in mid-epoch. For tests; the argument names the dataset and only "digits" exists."""

import functools

from jaxcls.augment import HorizontalFlip, Normalize, RandomCrop
from jaxcls.config import Checkpoint, Config, Evaluation, Log
from jaxcls.data import Digits
from jaxcls.duration import steps
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import MODELS, Model
from jaxcls.models.resnet import ResNet
from jaxcls.optim import EMA, SGD, ClipNorm, WarmupCosine

# Two stages of one block: a tenth of ResNet-18's time to compile.
MODELS["resnet_narrow"] = functools.partial(ResNet, stage_sizes=(1, 1))


def get_config(dataset: str = "digits") -> Config:
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="resnet_narrow", stem="small", width=8),
        data=Digits(),
        augment=(RandomCrop(padding=1, mode="edge"), HorizontalFlip(), normalize),
        eval_transform=(normalize,),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1),
        optimizer=SGD(learning_rate=0.05, weight_decay=1e-3, decay="decoupled"),
        schedule=WarmupCosine(warmup=steps(4)),
        batch_size=48,
        duration=steps(40),
        clip=ClipNorm(max_norm=1.0),
        ema=EMA(decay=0.9),
        evaluation=Evaluation(every=steps(10), batch_size=64),
        checkpoint=Checkpoint(every=steps(5)),
        log=Log(every=steps(4)),
    )
