"""What training minimises: a loss for each image, on soft targets.

A dataset with one label an image trains with SoftmaxCrossEntropy, BinaryCrossEntropy or Focal;
one with any number of labels with MultiLabelBinaryCrossEntropy or MultiLabelAsymmetric.
"""

from jaxcls.losses.loss import Loss, as_targets
from jaxcls.losses.multi_label import MultiLabelAsymmetric, MultiLabelBinaryCrossEntropy
from jaxcls.losses.single_label import (
    BinaryCrossEntropy,
    Focal,
    SoftmaxCrossEntropy,
    distillation_loss,
)
