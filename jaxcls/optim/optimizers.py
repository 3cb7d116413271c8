"""Directions of descent: how gradients become an update, before rate and decay."""

import abc
import dataclasses

import optax

from jaxcls.errors import UserError


@dataclasses.dataclass(kw_only=True)
class Optimizer(abc.ABC):
    """What every optimizer of a config has.

    Attributes:
      learning_rate: the peak rate; the schedule scales it by a factor in 0..1.
      weight_decay: decoupled decay: each step shrinks kernels by learning rate x this.
    """

    learning_rate: float
    weight_decay: float = 0.0

    @abc.abstractmethod
    def direction(self) -> optax.GradientTransformation:
        """Returns the link that turns gradients into a direction."""

    def validate(self) -> None:
        """Raises UserError for values out of range."""
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(
                f"optimizer.learning_rate must be a number above 0, not {self.learning_rate}."
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise UserError(
                f"optimizer.weight_decay must be a number, 0 or more, not {self.weight_decay}."
            )


@dataclasses.dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (the direction of torch.optim.SGD without
    dampening).

    The decay is decoupled: it does not pass through the momentum as torch's does. A published
    recipe's decay, coupled, corresponds to about 1 / (1 - momentum) times itself here.

    Attributes:
      momentum: share of the last direction that is kept, 0..1.
      nesterov: look one step of momentum ahead (Sutskever et al. 2013).
    """

    momentum: float = 0.9
    nesterov: bool = True

    def direction(self) -> optax.GradientTransformation:
        return optax.trace(decay=self.momentum, nesterov=self.nesterov)

    def validate(self) -> None:
        super().validate()
        if not 0 <= self.momentum < 1:
            raise UserError(
                f"optimizer.momentum must lie in 0..1, below 1, not {self.momentum}."
            )


@dataclasses.dataclass(kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled decay (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101,
    algorithm 2, in torch's form: the decay is scaled by the rate).

    Attributes:
      beta1: decay of the mean gradient, 0..1.
      beta2: decay of the mean squared gradient, 0..1.
      epsilon: added to the root of the mean square, above 0.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=self.beta1, b2=self.beta2, eps=self.epsilon)

    def validate(self) -> None:
        super().validate()
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise UserError(
                    f"optimizer.{name} must lie in 0..1, below 1, not {value}."
                )
        if not self.epsilon > 0:
            raise UserError(f"optimizer.epsilon must be above 0, not {self.epsilon}.")
