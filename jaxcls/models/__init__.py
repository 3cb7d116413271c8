"""The networks, by name.

module = create_model("resnet18", num_classes=10, stem="small")
variables = module.init(rng, images, train=False)
logits = module.apply(variables, images, train=False)  # float32 [batch, 10]
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import Interval, MinLen

from jaxcls.errors import UserError, did_you_mean
from jaxcls.models import (
    alexnet,
    convnext,
    efficientnet,
    googlenet,
    inception,
    keras_resnet,
    lenet,
    resnet,
    vgg,
)
from jaxcls.models.network import HeadInit
from jaxcls.models.weights.catalogue import find_weights, is_weight_set
from jaxcls.options import ShareBelowOne

FAMILIES = (
    lenet,
    alexnet,
    vgg,
    googlenet,
    inception,
    resnet,
    keras_resnet,
    efficientnet,
    convnext,
)
MODELS: dict[str, Callable[..., nn.Module]] = {
    name: variant for family in FAMILIES for name, variant in family.VARIANTS.items()
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
    known = model_options(name)
    if num_classes < 1:
        raise UserError(f"num_classes must be 1 or more, not {num_classes}.")
    _check_options(name, options, known)
    return MODELS[name](num_classes=num_classes, **options)


def model_options(name: str) -> list[str]:
    """Returns the names of the options that `create_model(name)` takes.

    Raises:
      UserError: for an unknown network.
    """
    if name not in MODELS:
        raise UserError(
            f"unknown model '{name}'.{did_you_mean(name, MODELS)} "
            f"`python -m jaxcls.models` lists all {len(MODELS)}."
        )
    inside = {"num_classes", "parent", "name"}  # ours and linen's own
    attributes = inspect.signature(MODELS[name]).parameters
    return [attribute for attribute in attributes if attribute not in inside]


def _check_options(name: str, options: Iterable[str], known: Sequence[str]) -> None:
    for option in options:
        if option not in known:
            raise UserError(
                f"model '{name}' has no option '{option}'.{did_you_mean(option, known)} "
                f"Its options: {', '.join(known)}."
            )


CountUpTo65536 = Annotated[int, Interval(ge=1, le=65536)]
ShareInside = Annotated[float, Interval(gt=0, lt=1)]


@dataclasses.dataclass(kw_only=True)
class Model:
    """The network of a config. An option that is None is left at the network's default.

    Attributes:
      name: a key of jaxcls.models.MODELS; `python -m jaxcls.models` lists them.
      weights: what to begin with instead of random weights: the name of published ones
        ("torchvision/resnet50:v2", "timm/resnet50.a1_in1k"), the path of a .safetensors or
        .pth file with a state dict of torchvision or timm, or the folder of a run of ours. A
        head for other classes is replaced.
      stem: "imagenet" for photographs, "small" for 32-pixel images.
      width: channels of the first stage.
      dropout: probability of dropping an input of the last layer, 0..1 (VGG, AlexNet: of the
        hidden layers).
      drop_path: rate of stochastic depth, 0..1, by the rule of the network's paper.
      aux_weight: weight of each auxiliary head's loss; 0 builds no auxiliary heads.
      bn_group: images that share batch statistics in training; None for the whole batch.
      bn_momentum: share of the running statistics that EfficientNet's batch norms keep at each
        step; TensorFlow's have 0.99, torchvision's 0.9 up to B4.
      bn_epsilon: of EfficientNet's batch norms; published weights that are named bring theirs.
      padding: of EfficientNet's strided convolutions, "symmetric" as torchvision or "same" as
        TensorFlow; published weights that are named bring theirs.
      remat: recompute blocks in the backward pass instead of keeping their activations: less
        memory, more time.
      head_init: initial values of the last layer, and of those of auxiliary heads, where they
        are new, that is, not loaded with the weights: "default" is the network's own rule,
        "zero" begins with equal logits for all classes, a number multiplies the network's own
        values (0.001 where ConvNeXt is fine-tuned).
      dtype: dtype of the computation, "float32" or "bfloat16"; parameters are float32. None is
        bfloat16 on GPUs and TPUs, which is faster and takes half the memory for activations,
        and float32 on CPUs, where it would be slower. With "float32" an accelerator multiplies
        at JAX's default precision, which is TF32 on recent GPUs and bfloat16 on TPUs.
    """

    name: str
    weights: Annotated[str, MinLen(1)] | None = None
    stem: Literal["imagenet", "small"] | None = None
    width: CountUpTo65536 | None = None
    dropout: ShareBelowOne | None = None
    drop_path: ShareBelowOne | None = None
    aux_weight: Annotated[float, Interval(ge=0, lt=1_000_000)] | None = None
    bn_group: CountUpTo65536 | None = None
    bn_momentum: ShareInside | None = None
    bn_epsilon: ShareInside | None = None
    padding: Literal["symmetric", "same"] | None = None
    remat: bool = False
    head_init: HeadInit = "default"
    dtype: Literal["float32", "bfloat16"] | None = None

    def create(self, num_classes: int, platform: str = "cpu") -> nn.Module:
        """Returns the linen module.

        Args:
          num_classes: length of the logits.
          platform: of the devices that will compute, "cpu", "gpu" or "tpu": it decides a dtype
            of None. (JAX is not asked: a config is checked before JAX starts.)

        Raises:
          UserError: for an unknown network or an option it does not have.
        """
        # An option at its default is left out, because the network may not have it.
        fields = dataclasses.fields(self)
        options = {
            field.name: value
            for field in fields
            if (value := getattr(self, field.name)) != field.default
        }
        name, weights = options.pop("name"), options.pop("weights", None)
        default = "float32" if platform == "cpu" else "bfloat16"
        options["dtype"] = jnp.dtype(self.dtype or default)
        if weights is not None and is_weight_set(weights):
            options = {**find_weights(weights).options, **options}
        known = model_options(name)
        _check_options(name, options, [f.name for f in fields if f.name in known])
        return create_model(name, num_classes=num_classes, **options)

    def validate(self) -> None:
        """Raises UserError for an unknown network, an option that it does not have, or weights of
        another network."""
        if self.weights is not None and is_weight_set(self.weights):
            of = find_weights(self.weights).model
            if of != self.name:
                raise UserError(
                    f"model.weights {self.weights} are weights of {of}, not of {self.name}."
                )
        self.create(num_classes=1)
