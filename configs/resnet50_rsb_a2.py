"""ResNet-50 by procedure A2 of "ResNet strikes back": half as long as A1.

    python -m jaxcls.train --config configs/resnet50_rsb_a2.py

Digits: as resnet50_rsb_a1.py; not measured here.

Other datasets, as configs/resnet50_rsb_a2.py:imagenet: A1 in 300 epochs, with twice the weight
decay, half of mixup's alpha and no label smoothing. 79.8 % on ImageNet there, 55 hours on 4 V100
(table 2; 79.83 % in timm's results for its weights resnet50.a2_in1k); not measured here. As for A1
a batch is of 2,016 images, not 2,048.

Network: He et al. 2015 (https://arxiv.org/abs/1512.03385), strides in the 3x3 convolutions.
Training: Wightman et al. 2021, table 2 (https://arxiv.org/abs/2110.00476).
"""

from configs.resnet50_rsb_a1 import strikes_back
from jaxcls.config import Config


def get_config(dataset: str = "digits") -> Config:
    return strikes_back(dataset, num_epochs=300)
