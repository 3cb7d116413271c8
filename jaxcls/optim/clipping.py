"""Clipping: makes gradients that are too large smaller, before the optimizer sees them."""

import abc
import dataclasses
import functools
import re

import optax

from jaxcls.errors import UserError
from jaxcls.optim.groups import check_found
from jaxcls.optim.treatment import Treatments, map_with_path
from jaxcls.options import AboveZero, Pattern


@dataclasses.dataclass(kw_only=True)
class Clip(abc.ABC):
    """A way to clip gradients."""

    @abc.abstractmethod
    def link(self) -> optax.GradientTransformation:
        """Returns the link from gradients to clipped gradients."""

    def check_treatments(self, treatments: Treatments) -> None:  # noqa: B027
        """Raises UserError if an option does not fit the network; most have none that could.

        Args:
          treatments: the treatment of each of its parameters.
        """


@dataclasses.dataclass(kw_only=True)
class ClipNorm(Clip):
    """Scales all gradients by one factor so that their global norm is at most max_norm
    (Pascanu et al. 2012, https://arxiv.org/abs/1211.5063, algorithm 1). The factor is
    max_norm / norm; torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6.

    Attributes:
      max_norm: largest norm of all gradients together, above 0.
    """

    max_norm: AboveZero = 1.0

    def link(self) -> optax.GradientTransformation:
        return optax.clip_by_global_norm(self.max_norm)


@dataclasses.dataclass(kw_only=True)
class ClipValue(Clip):
    """Cuts each number of the gradients to -max_value..max_value, which changes their direction
    (torch.nn.utils.clip_grad_value_).

    Attributes:
      max_value: largest absolute value of a gradient, above 0.
    """

    max_value: AboveZero

    def link(self) -> optax.GradientTransformation:
        return optax.clip(self.max_value)


@dataclasses.dataclass(kw_only=True)
class AdaptiveClip(Clip):
    """Limits the gradient of each unit relative to its weights (AGC, Brock et al. 2021,
    https://arxiv.org/abs/2102.06171, equation 3), for networks without batch norm:

        |g| <= clipping * max(|weights|, epsilon)

    A unit is what feeds one output: a kernel [..., out] without its last axis; a bias or the
    scale of a norm is one unit as a whole.

    Attributes:
      clipping: largest norm of a gradient as a share of the weights', above 0.
      epsilon: the least that the norm of weights counts as, so that those of 0 can move; above 0.
      exclude: a regular expression, searched in the paths of parameters ("fc/kernel"), of those
        that are not clipped; the paper leaves out the classifier, "^fc/" where it is called so.
        It must be found in some, and leave something that is trained. None clips all.
    """

    clipping: AboveZero = 0.01
    epsilon: AboveZero = 1e-3
    exclude: Pattern | None = None

    def link(self) -> optax.GradientTransformation:
        clip = optax.adaptive_grad_clip(self.clipping, self.epsilon)
        if self.exclude is None:
            return clip
        excluded = re.compile(self.exclude).search
        is_clipped = functools.partial(
            map_with_path, lambda path, _: not excluded(path)
        )
        return optax.masked(clip, is_clipped)

    def check_treatments(self, treatments: Treatments) -> None:
        if self.exclude is None:
            return
        check_found("clip.exclude", self.exclude, list(treatments.by_path))
        trained = treatments.trained()
        if all(re.search(self.exclude, path) for path in trained):
            raise UserError(
                f"clip.exclude '{self.exclude}' leaves nothing to clip: it is found in all "
                f"{len(trained)} parameters that are trained. Let it name some only, as '^fc/' "
                "does the layer fc, or set clip to None."
            )
