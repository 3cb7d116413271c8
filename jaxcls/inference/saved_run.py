"""An open checkpoint, which needs nothing of its run but itself."""

import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxcls import config as config_lib
from jaxcls.checkpoint import checkpoints
from jaxcls.config import Config
from jaxcls.data.opening import open_split
from jaxcls.data.sources import Source, Split
from jaxcls.errors import UserError
from jaxcls.inference.forward import Forward
from jaxcls.parallel import make_mesh


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network and its weights.

    Attributes:
      model: the network, with as many classes as the weights have.
      variables: "params", and "batch_stats" if it has any: NumPy float32.
      source: which weights these are, in words.
      class_names: in the order of the logits; None where the weights do not say them.
    """

    model: nn.Module
    variables: dict[str, Any]
    source: str
    class_names: tuple[str, ...] | None = None

    def digest(self) -> str:
        """Returns a number for the content of the weights, in hexadecimal digits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.variables):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a checkpoint holds besides its weights, and the way to them.

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
        info = checkpoints.read_info(folder)
        return cls(folder, info, config_lib.from_dict(info["config"]))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the logits."""
        return tuple(self.info["class_names"])

    def source(self, split: Split) -> Source:
        """Opens a split of its data; prints a note on stderr if the split has changed."""
        source = open_split(self.config.data, split)
        was = self.info[f"{split}_source"]
        if repr(source) != was:
            print(
                f"note: the {split} split of the run was {was}, this is {source!r}",
                file=sys.stderr,
            )
        return source

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
        wanted = forward.weight_shapes()
        if not ema:
            wanted.pop("ema", None)
        if not raw:
            wanted = {"ema": wanted["ema"]}
        found = checkpoints.restore(self.folder, wanted)
        averaged = {"ema": found.pop("ema")} if "ema" in found else {}
        return {"raw": found, **averaged} if raw else averaged

    def trained(self, name: str | None = None, platform: str = "cpu") -> Trained:
        """Reads the network and its weights, averaged ones where the run has them.

        Args:
          name: of the network that it must be; None takes any.
          platform: of the devices that will compute (see Model.create).

        Raises:
          UserError: if the checkpoint is damaged or of another network.
        """
        config, averaged = self.config, self.config.has_average
        if name not in (None, config.model.name):
            raise UserError(
                f"the weights {self.folder} are of {config.model.name}, not of {name}."
            )
        # Read whole onto one device: they are put where they belong afterwards.
        weights = self.weights(self.forward(make_mesh(1)), raw=not averaged)
        variables = jax.device_get(weights["ema" if averaged else "raw"])
        return Trained(
            config.model.create(len(self.class_names), platform),
            {name: tree for name, tree in variables.items() if tree},
            f"the {'averaged' if averaged else 'raw'} weights of step {self.info['step']} in "
            f"{self.folder}",
            self.class_names,
        )
