"""ResNet-50 by procedure A3 of "ResNet strikes back": a short one, with smaller images.

    python -m jaxcls.train --config configs/resnet50_rsb_a3.py

Digits: as resnet50_rsb_a1.py; not measured here.

Other datasets, as configs/resnet50_rsb_a3.py:imagenet: 100 epochs at 160 pixels and evaluation at
224, a higher rate, weaker RandAugment, each image once in a batch, no stochastic depth. 78.1 % on
ImageNet there, 15 hours on 4 V100 (table 2; 78.05 % in timm's results for its weights
resnet50.a3_in1k); not measured here. Crops are made at 224 pixels and then reduced.

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), strides in the 3x3 convolutions.
Training: Wightman et al. 2021, table 2 (https://arxiv.org/abs/2110.00476).
"""

from configs.resnet50_rsb_a1 import strikes_back
from jaxcls.config import Config


def get_config(dataset: str = "digits") -> Config:
    return strikes_back(
        dataset,
        num_epochs=100,
        batch_size=2048,
        rate=8e-3,
        train_size=160,
        magnitude=6.0,
        repeats=1,
        drop_path=0.0,
    )
