"""EfficientNet-B6 as its paper trained it: effnet_b0.py's training at 528 pixels.

    python -m jaxcls.train --config configs/effnet_b6.py

Digits: effnet_b0.py's training there; not measured here.

Other datasets, as configs/effnet_b6.py:imagenet: 84.0 % on ImageNet in the paper, on Cloud TPUs
(table 2); not measured here.

Network: Tan & Le 2019 (https://arxiv.org/abs/1905.11946).
"""

from configs.effnet_b0 import efficientnet
from jaxcls.config import Config


def get_config(dataset: str = "digits") -> Config:
    return efficientnet("efficientnet_b6", dataset, size=528, dropout=0.5)
