"""scikit-learn's handwritten digits: the embedded dataset, which needs no download.

Digits().source("train").images  # uint8 [1437, 8, 8, 1]
"""

import dataclasses

import numpy as np

from jaxcls.data.dataset import Dataset
from jaxcls.data.sources import ArraySource, Split


@dataclasses.dataclass(kw_only=True)
class Digits(Dataset):
    """scikit-learn's 1,797 real handwritten digits, which its wheel carries.

    8 x 8 grey images, the test part of the UCI set "Optical Recognition of Handwritten
    Digits" (https://doi.org/10.24432/C50P49). Their 17 grey levels (0..16) are spread over
    0..255. The split is fixed: with the images sorted by class (stably, so in scikit-learn's
    order within a class), every fifth, beginning with the first, is for testing. That gives
    1,437 training and 360 test images with every class in proportion.
    """

    def source(self, split: Split) -> ArraySource:
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        by_class = np.argsort(digits.target, kind="stable")
        is_test = np.zeros(len(by_class), bool)
        is_test[by_class[::5]] = True
        chosen = is_test if split == "test" else ~is_test
        images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        names = tuple(str(name) for name in digits.target_names)
        return ArraySource(
            f"digits-{split}", images[..., None], digits.target[chosen], names
        )
