"""Muon: momentum, made orthogonal."""

import dataclasses
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxcls.errors import UserError
from jaxcls.optim.groups import check_found
from jaxcls.optim.optimizers import AdamMoments, Links, momentum_link
from jaxcls.optim.treatment import map_with_path, shapes_of
from jaxcls.options import AboveZero, Count, Pattern, ShareBelowOne

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5 that Jordan chose: steepest at 0, and after five rounds every
singular value of a matrix of norm 1 that is not tiny lies near 0.7..1.2."""


USUAL_HEADS = "(^|/)(fc|fc8|output|head|classifier|aux[0-9]/fc2)/"
"""Where classifiers usually are: as a default, this may be found in no kernel of a network."""


@dataclasses.dataclass(kw_only=True)
class Muon(AdamMoments):
    """Steps whose singular values are all about 1 (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/): the momentum of each kernel, a matrix
    [height * width * in, out], is made nearly orthogonal by five Newton-Schulz rounds.

        v <- momentum * v + g;   u = orthogonal(g + momentum * v), without Nesterov's of v
        parameter <- parameter - rate * (sqrt(max(1, out / (height * width * in))) * u + decay)

    AdamW trains the rest with a rate of its own: biases, norms, what `exclude` names, and kernels
    of one input channel, whose filters have nothing to do with each other (depthwise
    convolutions; also the first layer on grey images).

    The decay is decoupled, in both parts. Optax's contrib.muon is not used: it takes convolutions
    only through a private class, and its Nesterov is Dozat's, corrected for a start at 0.

    Attributes:
      momentum: share of v that is kept, 0..1.
      nesterov: look one step of momentum ahead.
      rounds: of Newton-Schulz, 1 or more.
      precision: of the Newton-Schulz products; "bfloat16" is enough, and fast on accelerators.
      consistent_rms: gives each step this root mean square, through sqrt(max(height * width * in,
        out)) in place of the factor above (Liu et al. 2025, https://arxiv.org/abs/2502.16982,
        equation 4): at 0.2 a rate and decay tuned for AdamW fit, with adam_rate 1; None for
        Jordan's factor.
      exclude: a regular expression, searched in the paths of kernels ("fc/kernel"), of those that
        AdamW trains too; Jordan leaves it the classifier, here the usual names of one. Another
        one must be found in a kernel, and leave Muon one. None leaves AdamW no kernels.
      adam_rate: AdamW's rate as a multiple of the rate, above 0; Jordan's is 3e-4 beside 0.02.
      beta1: share that AdamW's mean of the gradients keeps, 0..1.
      beta2: share that AdamW's mean of their squares keeps, 0..1.
      epsilon: added to the root of AdamW's mean square, above 0.
      momentum_dtype: of v and of AdamW's mean; "bfloat16" halves their memory.
    """

    momentum: ShareBelowOne = 0.95
    nesterov: bool = True
    rounds: Count = 5
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    consistent_rms: AboveZero | None = None
    exclude: Pattern | None = USUAL_HEADS
    adam_rate: AboveZero = 0.015
    beta2: ShareBelowOne = 0.95

    def transformation(self, links: Links) -> optax.GradientTransformation:
        orthogonal = optax.chain(
            momentum_link(self.momentum, self.momentum_dtype, self.nesterov),
            optax.stateless_with_tree_map(lambda v, _: self._step(v)),
        )
        names = {True: "adam", False: "muon"}
        directions = optax.partition(
            {"adam": self.direction(), "muon": orthogonal},
            lambda params: jax.tree.map(names.get, self._by_adam(params)),
        )
        # It scales AdamW's decay too, as if the parameters had an optimizer of their own.
        adam_rate = optax.masked(optax.scale(self.adam_rate), self._by_adam)
        return optax.chain(directions, links.decay, adam_rate, links.rate)

    def _by_adam(self, params: Any) -> Any:
        """Returns a tree of bools like `params`: which of them AdamW trains."""
        return map_with_path(
            lambda path, leaf: self._is_by_adam(path, leaf.shape), params
        )

    def _is_by_adam(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether AdamW trains a parameter."""
        if len(shape) < 2 or shape[-2] == 1:
            return True
        return self.exclude is not None and bool(re.search(self.exclude, path))

    def trains(self, path: str, shape: tuple[int, ...]) -> tuple[str, float]:
        if self._is_by_adam(path, shape):
            return "AdamW", self.adam_rate
        return "Muon", 1.0

    def check_params(self, params: Any) -> None:
        if self.exclude is None or self.exclude == USUAL_HEADS:
            return
        shapes = shapes_of(params)
        kernels = [path for path, shape in shapes.items() if len(shape) > 1]
        check_found("optimizer.exclude", self.exclude, kernels or list(shapes))
        if all(self._is_by_adam(path, shapes[path]) for path in kernels):
            raise UserError(
                f"optimizer.exclude '{self.exclude}' leaves Muon nothing: AdamW would train "
                f"all {len(kernels)} kernels. Let it name some only, as '^fc/' does the layer "
                "fc, or take AdamW as optimizer."
            )

    def _step(self, v: jax.Array) -> jax.Array:
        """Returns a momentum [..., in, out], made orthogonal and scaled by its shape."""
        matrix = v.reshape(-1, v.shape[-1])
        fan_in, out = matrix.shape
        if self.consistent_rms is None:
            scale = math.sqrt(max(1, out / fan_in))
        else:
            scale = self.consistent_rms * math.sqrt(max(fan_in, out))
        u = orthogonalized(matrix, self.rounds, self.precision)
        return scale * u.reshape(v.shape)


def orthogonalized(matrix: jax.Array, rounds: int, precision: str) -> jax.Array:
    """Returns U S' V^T for a matrix U S V^T, all values of S' near 1, float32 [m, n].

    Each round makes every singular value s into a s + b s^3 + c s^5 (QUINTIC), by products alone.
    A matrix of zeros stays one.

    Args:
      matrix: float32 [m, n], of any norm.
      rounds: of Newton-Schulz.
      precision: dtype of the products.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    # The Gram matrix of the shorter side is the cheaper one.
    x = matrix.T if tall else matrix
    # The Frobenius norm is the largest singular value's upper bound.
    x = (x / (jnp.linalg.norm(x) + 1e-7)).astype(precision)
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.astype(jnp.float32)
    return x.T if tall else x
