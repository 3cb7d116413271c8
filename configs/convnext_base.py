"""ConvNeXt-B as its paper trained it: convnext_tiny.py's training with more stochastic depth.

    python -m jaxcls.train --config configs/convnext_base.py

Digits: convnext_tiny.py's training there; not measured here.

Other datasets, as configs/convnext_base.py:imagenet: 83.8 % on ImageNet in the paper, on 32 GPUs
(table 1); not measured here.

Network: Liu et al. 2022 (https://arxiv.org/abs/2201.03545); for small images patches of 2 x 2
pixels.
"""

from configs.convnext_tiny import convnext
from jaxcls.config import Config


def get_config(dataset: str = "digits") -> Config:
    return convnext("convnext_base", dataset, drop_path=0.5)
