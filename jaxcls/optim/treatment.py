"""What the optimizer does with each parameter: its rate, its decay, and when it moves.

A parameter is named by its path in the tree, "layer1_0/conv1/kernel".
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Treatment:
    """What the chain does with one parameter.

    Attributes:
      rate: multiplies the learning rate, above 0.
      decay: multiplies the weight decay; 0 where it does not decay.
      thaws_at: the first optimizer step that moves it: 0 if it is never frozen, math.inf if
        it never thaws.
    """

    rate: float = 1.0
    decay: float = 1.0
    thaws_at: float = 0


@dataclasses.dataclass(frozen=True)
class Treatments:
    """The treatment of each parameter of a network.

    Attributes:
      by_path: "layer1_0/conv1/kernel" -> its treatment.
    """

    by_path: Mapping[str, Treatment]

    def of(self, tree: Any) -> Any:
        """Returns a tree of Treatments like `tree`, which is shaped like the parameters or,
        as within optax.masked, like some of them."""
        return map_with_path(lambda path, leaf: self.by_path[path], tree)

    def decays(self, params: Any) -> Any:
        """Returns a tree of bools like `params`: which of them decay."""
        return jax.tree.map(lambda treatment: treatment.decay > 0, self.of(params))

    def frozen(self, step: int) -> frozenset[str]:
        """Returns the paths of the parameters that the optimizer step `step` leaves alone."""
        return frozenset(p for p, one in self.by_path.items() if step < one.thaws_at)

    def trained(self) -> list[str]:
        """Returns the paths of the parameters that move at some step of the run."""
        return [p for p, one in self.by_path.items() if one.thaws_at < math.inf]

    def frozen_by_step(self) -> list[tuple[int, frozenset[str]]]:
        """Returns the parts of the run between thaws: the first optimizer step of each, 0 for
        the first part, and the paths that are frozen in it."""
        # Something moves from the start (resolve() sees to it): 0 is among them.
        thaws = {one.thaws_at for one in self.by_path.values()} - {math.inf}
        return [(int(first), self.frozen(int(first))) for first in sorted(thaws)]

    def frozen_modules(self, frozen: frozenset[str]) -> frozenset[str]:
        """Returns the modules ("layer1_0", "layer1_0/bn1") all of whose parameters are frozen.

        A batch norm among them must run in eval mode. With the statistics of the batch, and
        running averages that move, its output would change although its parameters do not.

        Args:
          frozen: paths of the parameters that are frozen.
        """
        moving = self.by_path.keys() - frozen
        return _modules_of(frozen) - _modules_of(moving)


def path_of(keys: Sequence[Any]) -> str:
    """Returns "layer1_0/conv1/kernel" for the keys by which jax reaches a leaf."""
    return "/".join(str(key.key) for key in keys)


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns a tree of function(path, leaf) for one like the parameters, or some of them."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(path_of(keys), leaf), tree
    )


def shapes_of(params: Any) -> dict[str, tuple[int, ...]]:
    """Returns path -> shape of each parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_of(keys): leaf.shape for keys, leaf in leaves}


def _modules_of(paths: Iterable[str]) -> frozenset[str]:
    """Returns every module that holds one of the parameters: "a" and "a/b" for "a/b/kernel"."""
    parts = [path.split("/") for path in paths]
    return frozenset(
        "/".join(part[:end]) for part in parts for end in range(1, len(part))
    )


def stop_gradients(params: Any, frozen: frozenset[str]) -> Any:
    """Returns the parameters, those at the paths `frozen` as constants to differentiation: the
    backward pass then ends above the lowest one that moves, instead of going on for gradients
    that the chain would throw away."""

    def stopped(path: str, leaf: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(leaf) if path in frozen else leaf

    return map_with_path(stopped, params)
