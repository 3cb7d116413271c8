"""What the networks of all families share: their order from stem to head, and the last layer."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

HeadInit = Literal["default", "zero"] | float
"""How a last layer starts: as its family's does, at zero, or at a multiple of the family's."""

Layers = tuple[tuple[str, ...], ...]
"""Names of top-level parts of a network's parameters, grouped by depth, the stem first."""


class Network(nn.Module):
    """A network of the package.

    Class attributes, which every family sets:
      STEM: path of the first layer with a kernel, "conv1".
      HEADS: paths of the layers that give logits, the main one first, then auxiliary ones.
    """

    STEM: ClassVar[str]
    HEADS: ClassVar[tuple[str, ...]]

    @nn.nowrap
    def layers(self) -> Layers:
        """Returns the names of the top level of the parameters, from the stem to the head.

        The parts of one depth stand together: the stem with its norm; each block, with a
        downsampling before it; each further layer with its norm; the last norm with the head
        and the auxiliary heads. Every name is there once, in the order in which the network
        calls them, save that auxiliary heads come last. It is what learning rates that decay
        from layer to layer go by (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146,
        section 3.2).
        """
        raise NotImplementedError

    @nn.nowrap
    def heads(self) -> tuple[str, ...]:
        """Returns the top-level names of the heads that this network has, the main one first."""
        has_auxiliary = getattr(self, "aux_weight", 0) != 0
        paths = self.HEADS if has_auxiliary else self.HEADS[:1]
        return tuple(path.split("/")[0] for path in paths)


def singly(names: Iterable[str]) -> Layers:
    """Returns layers of one name each."""
    return tuple((name,) for name in names)


def blocks(prefix: str, sizes: Iterable[int]) -> Layers:
    """Returns blocks as layers of their own: stages count from 1, their blocks from 0.

    Args:
      prefix: of the names: "stage" gives "stage1_0", "stage1_1", ...
      sizes: blocks in each stage.
    """
    return singly(
        f"{prefix}{stage}_{index}"
        for stage, size in enumerate(sizes, start=1)
        for index in range(size)
    )


def head(
    num_classes: int,
    head_init: HeadInit,
    *,
    name: str,
    dtype: Any,
    kernel_init: nn.initializers.Initializer,
    bias_init: nn.initializers.Initializer = nn.initializers.zeros,
) -> nn.Dense:
    """Returns the layer that gives logits; call it inside of a network.

    Args:
      num_classes: length of the logits.
      head_init: "default" leaves the initial values as they are; "zero" makes them 0, so that
        every class starts equally likely whatever the image; a number multiplies kernel and
        bias (ConvNeXt's fine-tuning takes 0.001).
      name: of the layer.
      dtype: dtype of the computation.
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

    def init(
        rng: jax.Array,
        shape: Sequence[int],
        dtype: Any = jnp.float32,
        out_sharding: Any = None,
    ) -> jax.Array:
        del out_sharding
        return head_init * initializer(rng, shape, dtype)

    return init
