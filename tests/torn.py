"""Digits that cannot be read. Worker processes import this file: it needs no JAX."""

import numpy as np

from jaxcls.data import ArraySource


class TornSource(ArraySource):
    """Digits, of which those with certain indices cannot be read."""

    bad: tuple[int, ...] = ()

    def gather(
        self, indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        batch = super().gather(indices)
        mask = ~np.isin(indices, self.bad)
        images = batch["image"] * mask[:, None, None, None].astype(np.uint8)
        return {**batch, "image": images, "mask": mask}

    def explain(self, index: int) -> str | None:
        return f"digit-{index}.png: torn." if index in self.bad else None
