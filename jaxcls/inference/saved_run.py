"""A checkpoint, opened: it stands alone, whatever has become of its run."""

import dataclasses
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxcls import config as config_lib
from jaxcls.checkpoint import checkpoints
from jaxcls.config import Config
from jaxcls.inference.forward import Forward


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What lies beside the weights of a checkpoint, and the way to them.

    Attributes:
      folder: of its step.
      info: the JSON that was saved with it (see checkpoint/checkpoints.py).
      config: of its run.
    """

    folder: Path
    info: dict[str, Any]
    config: Config

    @classmethod
    def open(cls, path: str | Path) -> "SavedRun":
        """Opens the newest checkpoint in a run's folder, or that in a step's folder.

        Raises:
          UserError: if there is none, or it cannot be read.
        """
        folder = checkpoints.find_checkpoint(Path(path))
        info = checkpoints.read_run(folder)
        return cls(folder, info, config_lib.from_dict(info["config"]))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the logits."""
        return tuple(self.info["class_names"])

    def forward(self, mesh: Mesh) -> Forward:
        """Binds its config to devices."""
        return Forward(
            self.config,
            mesh=mesh,
            num_classes=len(self.class_names),
            image_shape=self.info["image_shape"],
        )

    def weights(
        self, forward: Forward, *, raw: bool = True, ema: bool = True
    ) -> dict[str, dict[str, Any]]:
        """Reads weights onto the devices of `forward`.

        Args:
          forward: this run's.
          raw: read the trained weights.
          ema: read their average, if the run keeps one.

        Returns:
          Variables {"params", "batch_stats"}, by "raw" and "ema".

        Raises:
          UserError: if the checkpoint is damaged or of another network.
        """
        shapes = forward.weight_shapes()
        wanted = {"ema": shapes.pop("ema")} if "ema" in shapes and ema else {}
        wanted |= shapes if raw else {}
        found = checkpoints.restore(self.folder, wanted)
        averaged = {"ema": found.pop("ema")} if "ema" in found else {}
        return {"raw": found, **averaged} if raw else averaged
