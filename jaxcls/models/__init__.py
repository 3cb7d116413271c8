"""The networks, by name.

module = create_model("resnet18", num_classes=10, stem="small")
variables = module.init(rng, images, train=False)
logits = module.apply(variables, images, train=False)  # float32 [batch, 10]
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxcls.errors import UserError, did_you_mean
from jaxcls.models.lenet import LeNet5
from jaxcls.models.resnet import ResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
}


def create_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Returns the linen module of one network.

    Args:
      name: a key of MODELS.
      num_classes: length of the logits, 1 or more.
      **options: attributes of the network's module (its docstring lists them).

    Returns:
      A module called as `module.apply(variables, images, train=False)` on float images
      [batch, height, width, channels], giving logits float32 [batch, num_classes].

    Raises:
      UserError: for an unknown network, an option it does not have, or num_classes < 1.
    """
    if name not in MODELS:
        raise UserError(
            f"unknown model '{name}'.{did_you_mean(name, MODELS)} "
            f"Known models: {', '.join(MODELS)}."
        )
    if num_classes < 1:
        raise UserError(f"num_classes must be 1 or more, not {num_classes}.")
    known = model_options(name)
    for option in options:
        if option not in known:
            raise UserError(
                f"model '{name}' has no option '{option}'.{did_you_mean(option, known)} "
                f"Its options: {', '.join(known)}."
            )
    return MODELS[name](num_classes=num_classes, **options)


def model_options(name: str) -> list[str]:
    """Returns the names of the options that `create_model(name)` takes, of a known name."""
    inside = {"num_classes", "parent", "name"}  # ours and linen's own
    return [
        key for key in inspect.signature(MODELS[name]).parameters if key not in inside
    ]


@dataclasses.dataclass(kw_only=True)
class Model:
    """The network of a config. An option that is None is left at the network's default.

    Attributes:
      name: a key of jaxcls.models.MODELS.
      stem: "imagenet" for photographs, "small" for 32-pixel images.
      width: channels of the first stage.
      bn_group: images that share batch statistics in training; None for the whole batch.
      dtype: dtype of the computation, "float32" or "bfloat16"; parameters are float32. With
        "float32" an accelerator multiplies at JAX's default precision, which is TF32 on
        recent GPUs and bfloat16 on TPUs.
    """

    name: str
    stem: Literal["imagenet", "small"] | None = None
    width: int | None = None
    bn_group: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    def create(self, num_classes: int) -> nn.Module:
        """Returns the linen module.

        Raises:
          UserError: for an unknown network or an option it does not have.
        """
        options = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        options["dtype"] = jnp.dtype(self.dtype)
        return create_model(num_classes=num_classes, **options)

    def validate(self) -> None:
        """Raises UserError for an unknown network, option or value out of range."""
        for option in ("width", "bn_group"):
            value = getattr(self, option)
            if value is not None and not 1 <= value <= 65536:
                raise UserError(f"model.{option} must lie in 1..65536, not {value}.")
        self.create(num_classes=1)
