"""A dataset of one's own: windows of the two photographs that scikit-learn's wheel carries.

"china.jpg" by Jason Zhang and "flower.jpg" by dany13, both CC BY 2.0.
"""

import dataclasses

import numpy as np

from jaxcls.data import ArraySource, Dataset

SIDE = 128


@dataclasses.dataclass(kw_only=True)
class Photographs(Dataset):
    """Windows of 128 pixels side by side, 15 from each photograph at half its size."""

    def source(self, split: str) -> ArraySource:
        from sklearn.datasets import load_sample_images

        windows, labels = [], []
        for label, photograph in enumerate(load_sample_images().images):
            small = photograph[::2, ::2]
            for top in range(0, small.shape[0] - SIDE + 1, 42):
                for left in range(0, small.shape[1] - SIDE + 1, 48):
                    windows.append(small[top : top + SIDE, left : left + SIDE])
                    labels.append(label)
        return ArraySource(
            f"photographs-{split}",
            np.stack(windows),
            np.array(labels),
            ("china", "flower"),
        )
