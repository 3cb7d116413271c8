"""The last layer of a network by itself: least squares or logistic regression on features that
do not change.

    head, strength = fit("ridge", features, labels, num_classes=10)
    logits = features @ head.kernel + head.bias

Both penalise the squared size of the kernel and leave the bias free. The strength of the penalty
is relative to the mean variance of the features, so that one grid serves for all networks: where
features are twice as large, a kernel half as large gives the same logits and is penalised alike.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.special

from jaxcls.errors import UserError

STRENGTHS = tuple(10.0**exponent for exponent in range(2, -7, -1))
"""The strengths that are tried, the strongest first: 100, 10, ..., 1e-6."""

HELD_OUT = 0.2
"""Share of the images of each class that choose the strength."""

CHUNK = 8192
"""Images whose features are turned into float64 at once."""


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear layer.

    Attributes:
      kernel: float64 [features, classes].
      bias: float64 [classes].
    """

    kernel: np.ndarray
    bias: np.ndarray

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Returns how often the strongest logit is the label's, 0..1; float [n, features] and
        int [n]."""
        return float(np.mean((features @ self.kernel + self.bias).argmax(1) == labels))


def fit(
    kind: str,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> tuple[Head, float]:
    """Fits a head, with the strength that does best on images held out: of equals the largest.

    Args:
      kind: a key of KINDS.
      features: float32 [n, features].
      labels: int [n].
      num_classes: length of the logits.
      strengths: what to choose among, from the largest down until two in a row do worse than
        the best; a single one is taken as it is.
      seed: of which images are held out. The head is fitted to all of them in the end.

    Returns:
      The head, and its strength.

    Raises:
      UserError: if all features are constant, or no images can be held out.
    """
    fits = KINDS[kind]
    chosen = max(strengths)
    if len(strengths) > 1:
        tried = sorted(strengths, reverse=True)
        held = held_out(labels, HELD_OUT, seed)
        if not held.any():
            raise UserError(
                "every class has one training image, so that none can be held out to choose "
                "the strength of the penalty by: give --strength."
            )
        scores: list[float] = []
        for head in fits(features[~held], labels[~held], num_classes, tried):
            scores.append(head.accuracy(features[held], labels[held]))
            # The weakest ones take logistic() the longest.
            if max(scores[-2:]) < max(scores):
                break
        chosen = tried[int(np.argmax(scores))]
    (head,) = fits(features, labels, num_classes, [chosen])
    return head, chosen


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns which images are held out, bool [n]: that share of each class, at least one of
    those that have several."""
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        of_class = random.permutation(np.flatnonzero(labels == label))
        count = max(1, round(share * len(of_class))) if len(of_class) > 1 else 0
        held[of_class[:count]] = True
    return held


def ridge(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    strengths: Sequence[float],
) -> Iterator[Head]:
    """Yields the least squares on one-hot targets y for each strength, in closed form (Hoerl &
    Kennard 1970, https://doi.org/10.1080/00401706.1970.10488634, equation 2.1).

        minimise  sum over images |x K + b - y|^2  +  strength * n * v * |K|^2

    with v the mean variance of the features. In float64; one decomposition for all strengths.

    Args:
      features: x, float32 [n, features].
      labels: int [n].
      num_classes: length of y.
      strengths: above 0.
    """
    centre = features.mean(0, dtype=np.float64)
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    width = features.shape[1]
    gram, cross = np.zeros((width, width)), np.zeros((width, num_classes))
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        centred = features[rows] - centre
        gram += centred.T @ centred
        cross += centred.T @ (np.eye(num_classes)[labels[rows]] - shares)
    scale = np.trace(gram) / width
    _check_scale(scale)
    values, vectors = scipy.linalg.eigh(gram)
    rotated = vectors.T @ cross
    for strength in strengths:
        shrunk = rotated / (np.maximum(values, 0) + strength * scale)[:, None]
        kernel = vectors @ shrunk
        yield Head(kernel, shares - centre @ kernel)


def logistic(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    strengths: Sequence[float],
) -> Iterator[Head]:
    """Yields the multinomial logistic regression for each strength, by L-BFGS from the one
    before (so Kornblith et al. 2019 compare what networks see,
    https://arxiv.org/abs/1805.08974).

        minimise  mean over images of cross_entropy(x K + b)  +  strength / 2 * v * |K|^2

    with v the mean variance of the features. In float64, which holds n x features of it.

    Args:
      features: x, float32 [n, features].
      labels: int [n].
      num_classes: length of the logits.
      strengths: above 0, from the strongest down, which makes each the start of the next.
    """
    centre = features.mean(0, dtype=np.float64)
    scaled = features - centre
    scale = float(np.sqrt(np.mean(scaled**2)))
    _check_scale(scale)
    scaled /= scale
    shape = (features.shape[1] + 1, num_classes)
    theta = np.zeros(shape).ravel()
    for strength in strengths:
        found = scipy.optimize.minimize(
            _cross_entropy,
            theta,
            args=(scaled, labels, strength),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 1000, "maxfun": 2000, "gtol": 1e-6, "ftol": 1e-14},
        )
        if not found.success:
            print(
                f"note: the regression of strength {strength:g} has not converged "
                f"({found.message}): its numbers may be below what it can reach",
                file=sys.stderr,
            )
        theta = found.x
        solution = theta.reshape(shape)
        kernel = solution[:-1] / scale
        yield Head(kernel, solution[-1] - centre @ kernel)


def _cross_entropy(
    theta: np.ndarray, features: np.ndarray, labels: np.ndarray, strength: float
) -> tuple[float, np.ndarray]:
    """Returns what logistic() minimises and its gradient, for features of mean 0 and variance 1.

    Args:
      theta: kernel and bias below it, float64 [(features + 1) * classes].
      features: float64 [n, features].
      labels: int [n].
      strength: of the penalty.
    """
    solution = theta.reshape(features.shape[1] + 1, -1)
    kernel, bias = solution[:-1], solution[-1]
    rows = np.arange(len(labels))
    log_shares = scipy.special.log_softmax(features @ kernel + bias, axis=1)
    loss = -log_shares[rows, labels].mean() + strength / 2 * np.sum(kernel**2)
    errors = np.exp(log_shares)
    errors[rows, labels] -= 1
    errors /= len(labels)
    gradient = np.vstack([features.T @ errors + strength * kernel, errors.sum(0)])
    return float(loss), gradient.ravel()


def _check_scale(scale: float) -> None:
    if not 0 < scale < np.inf:
        raise UserError(
            "the features of all training images are the same, or not finite: the network "
            "does not tell images apart. Look at model.weights and eval_transform."
        )


KINDS: dict[str, Callable[..., Iterator[Head]]] = {"ridge": ridge, "logistic": logistic}
"""The kinds of heads, by the name that --head takes."""
