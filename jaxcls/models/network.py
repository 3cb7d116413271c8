"""What the families share: options of their networks, the order of layers, the last layer."""

import functools
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Interval

from jaxcls.models.cpu.convolution import Conv
from jaxcls.models.layers import BatchNorm, ConvNorm

HeadInit = Literal["default", "zero"] | Annotated[float, Interval(ge=0, le=1_000_000)]
"""How a last layer starts: as its family's does, at zero, or at a multiple of the family's."""

Layers = tuple[tuple[str, ...], ...]
"""Names of top-level parts of a network's parameters, grouped by depth, the stem first."""


class Network(nn.Module):
    """A network of the package.

    Class attributes, which every family sets:
      STEM: path of the first layer with a kernel, "conv1".
      HEADS: paths of the layers that give logits, the main one first, then auxiliary ones.

    Attributes:
      num_classes: length of the logits.
      head_init: initial values of the last layer, and of those of auxiliary heads (see head).
      dtype: dtype of the computation; parameters and statistics are float32.
    """

    STEM: ClassVar[str]
    HEADS: ClassVar[tuple[str, ...]]

    num_classes: int
    head_init: HeadInit = "default"
    dtype: Any = jnp.float32

    @nn.nowrap
    def layers(self) -> Layers:
        """Returns the names of the top level of the parameters, from the stem to the head.

        The parts of one depth stand together: the stem with its norm; each block, with a
        downsampling before it; each further layer with its norm; the last norm with the head
        and the auxiliary heads. Every name is there once, in the order in which the network
        calls them, save that auxiliary heads come last. Learning rates that decay from layer
        to layer follow it (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146, section 3.2).
        """
        raise NotImplementedError(f"{type(self).__name__} does not name its layers.")

    @nn.nowrap
    def heads(self) -> tuple[str, ...]:
        """Returns the top-level names of the heads that this network has, the main one first."""
        has_auxiliary = getattr(self, "aux_weight", 0) != 0
        paths = self.HEADS if has_auxiliary else self.HEADS[:1]
        return tuple(path.split("/")[0] for path in paths)

    @nn.nowrap
    def head_layer(self) -> functools.partial[nn.Dense]:
        """Returns the layer that gives logits, which lacks its name and its family's initial
        values (see head)."""
        return functools.partial(head, self.num_classes, self.head_init, self.dtype)

    @nn.nowrap
    def logits(self, x: jax.Array, **initial: nn.initializers.Initializer) -> jax.Array:
        """Maps features [batch, inputs] to logits float32 [batch, num_classes].

        Args:
          x: the features.
          **initial: "kernel_init" and "bias_init" of the family (see head).
        """
        layer = self.head_layer()(name=self.HEADS[0], **initial)
        return layer(x).astype(jnp.float32)


class BatchNormNetwork(Network):
    """A network with batch norm, whose blocks can be recomputed.

    Attributes:
      bn_group: images that share batch statistics in training (see BatchNorm); None for all.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    bn_group: int | None = None
    remat: bool = False

    @nn.nowrap
    def norm_layer(
        self, train: bool, momentum: float = 0.9, epsilon: float = 1e-5
    ) -> functools.partial[BatchNorm]:
        """Returns the network's batch norm, which only lacks a name."""
        return functools.partial(
            BatchNorm, train, self.bn_group, momentum, epsilon, self.dtype
        )

    @nn.nowrap
    def conv_norm_layer(self, train: bool, std: float) -> functools.partial[ConvNorm]:
        """Returns the convolution, batch norm and ReLU of GoogLeNet and Inception v3, which lack
        their shape and a name. Kernels start normal with standard deviation `std`."""
        init = nn.initializers.normal(std)
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=init, dtype=self.dtype
        )
        return functools.partial(ConvNorm, conv, self.norm_layer(train, epsilon=1e-3))


def singly(names: Iterable[str]) -> Layers:
    """Returns layers of one name each."""
    return tuple((name,) for name in names)


def places(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Returns (stage, index in it) of each block: stages count from 1, their blocks from 0.

    Args:
      sizes: blocks in each stage.
    """
    return [
        (stage, index)
        for stage, size in enumerate(sizes, start=1)
        for index in range(size)
    ]


def blocks(prefix: str, sizes: Iterable[int]) -> Layers:
    """Returns blocks as layers of their own: "stage" names them "stage1_0", "stage1_1", ...

    Args:
      prefix: of the names.
      sizes: blocks in each stage.
    """
    return singly(f"{prefix}{stage}_{index}" for stage, index in places(sizes))


def head(
    num_classes: int,
    head_init: HeadInit,
    dtype: Any,
    *,
    name: str,
    kernel_init: nn.initializers.Initializer,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
) -> nn.Dense:
    """Returns the layer that gives logits; call it inside a network.

    Args:
      num_classes: length of the logits.
      head_init: "default" leaves the initial values as they are; "zero" makes them 0, so that
        every class starts equally likely whatever the image; a number multiplies kernel and
        bias (ConvNeXt's fine-tuning takes 0.001).
      dtype: dtype of the computation.
      name: of the layer.
      kernel_init: initial values of the family's kernel.
      bias_init: of its bias.
    """
    return nn.Dense(
        num_classes,
        kernel_init=_scaled(kernel_init, head_init),
        bias_init=_scaled(bias_init, head_init),
        dtype=dtype,
        name=name,
    )


def _scaled(
    initializer: nn.initializers.Initializer, head_init: HeadInit
) -> nn.initializers.Initializer:
    """Returns the initialiser that `head_init` makes of one."""
    if head_init == "default":
        return initializer
    if head_init == "zero":
        return nn.initializers.zeros

    def init(*args: Any, **options: Any) -> jax.Array:
        return head_init * initializer(*args, **options)

    return init
