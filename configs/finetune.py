"""Fine-tuning: a network that knows images learns the classes of a folder.

    python -m jaxcls.train --config configs/finetune.py

Digits: from random weights, as there are none of theirs, 14 epochs in 8 minutes on 2 very busy CPU
cores; test top-1 97.78 % (jax 0.10.2, 2026-11-23).

A folder of your images, a folder for each class: --config.data.path=DIR is all it takes; the
argument names other datasets (configs/finetune.py:cifar10). EfficientNet-B0 then begins with
published weights of ImageNet (77.7 % there), which are downloaded the first time; a new last layer
starts at zero, and layers learn the more slowly the further they are from it. It ends early on a
plateau, and rare classes weigh as much as frequent ones. Not measured here. (A zero head and
AdamW need that weighing where classes are very unequal, or --config.model.head_init=default.)

* Other weights: --config.model.name=resnet50 --config.model.weights=timm/resnet50.a1_in1k, or the
  folder of a run of yours, or a .safetensors or .pth file. `python -m jaxcls.models resnet50`
  lists the names. A run on small images has its own --config.model.stem=small.
* The last layer only: --config.freeze="^(?!fc/)". All layers at one rate:
  --config.layer_decay=None. To the end whatever comes: --config.stop_early=None.

The training is ours. Network: Tan & Le 2019 (https://arxiv.org/abs/1905.11946).
"""

from jaxcls.augment import Normalize, TrivialAugmentWide
from jaxcls.config import Config, StopEarly
from jaxcls.config.dataset_defaults import IMAGENET, dataset_defaults
from jaxcls.duration import epochs
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import AdamW, ClipNorm, WarmupCosine

WEIGHTS = "timm/efficientnet_b0.ra_in1k"
"""The same as torchvision/efficientnet_b0:v1, in a file that needs no PyTorch."""


def get_config(dataset: str = "digits") -> Config:
    defaults = dataset_defaults(dataset)
    # Published weights are of three channels.
    weights = WEIGHTS if defaults.in_colour else None
    enlarged = defaults.enlarged(224) if weights else ()
    normalize = (
        Normalize(mean=IMAGENET[0], std=IMAGENET[1]) if weights else defaults.normalize
    )
    return Config(
        model=Model(
            name="efficientnet_b0",
            weights=weights,
            stem="imagenet" if weights else defaults.stem,
            head_init="zero" if weights else "default",
        ),
        data=defaults.data(224, crop=0.875, scale=(0.25, 1.0), interpolation="bicubic"),
        augment=(
            *defaults.framing(),
            *enlarged,
            *defaults.choose((TrivialAugmentWide(),), digits=()),
            normalize,
        ),
        eval_transform=(*enlarged, normalize),
        loss=SoftmaxCrossEntropy(label_smoothing=0.1, class_weights="auto"),
        optimizer=AdamW(
            learning_rate=defaults.choose(1e-3, digits=2e-3), weight_decay=0.05
        ),
        schedule=WarmupCosine(warmup=epochs(1)),
        batch_size=defaults.choose(32, digits=64),
        duration=defaults.choose(epochs(20), digits=epochs(14)),
        layer_decay=0.75 if weights else None,
        clip=ClipNorm(max_norm=1.0),
        stop_early=StopEarly(metric="eval/balanced_top1", patience=epochs(8)),
    )
