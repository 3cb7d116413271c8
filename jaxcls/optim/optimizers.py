"""Optimizers: how gradients become what is added to the parameters.

    gradients, already clipped -> [direction, decay, rate in an order of the optimizer's own]

Decay and rate differ between parameters and change over the run. The chain knows how, and hands
both in as links (Links); an optimizer only says where they stand in its formula. The optimizers
here treat each number alone; the others are in layerwise.py, adafactor.py, muon.py and
schedule_free.py.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from jaxcls.errors import UserError
from jaxcls.options import AboveZero, Count, ShareBelowOne, ZeroOrMore

MomentumDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Links:
    """What the chain gives an optimizer to put in its places.

    All that changes over a run follows `step`, an int32 scalar: the good optimizer steps made
    before this one, given to the chain's update as an extra argument.

    Attributes:
      learning_rate: the rate at a step, peak x factor of the schedule, before the multipliers of
        groups.
      decay: adds weight_decay(step) x multiplier of the group x parameter to the updates of the
        parameters that decay; does nothing where there is no decay.
      rate: multiplies by -(learning_rate(step) x multiplier of the group).
      decays: which parameters decay: a tree of bool like the given one.
    """

    learning_rate: optax.Schedule
    decay: optax.GradientTransformationExtraArgs
    rate: optax.GradientTransformationExtraArgs
    decays: Callable[[Any], Any]


@dataclasses.dataclass(kw_only=True)
class Optimizer(abc.ABC):
    """What every optimizer of a config has.

    Attributes:
      learning_rate: the peak rate; the schedule scales it by a factor in 0..1.
      rate_per: images in a batch that learning_rate is given for, 256 or 1024 in most recipes:
        the peak then follows batch_size; None takes learning_rate as it is.
      rate_scaling: how the peak follows batch_size: "linear" (Goyal et al. 2017, section 2.1,
        https://arxiv.org/abs/1706.02677; for SGD) or by the square "root" (You et al. 2019,
        https://arxiv.org/abs/1904.00962; for Adam and its kin).
      weight_decay: pull of the parameters towards 0, times the rate where it is decoupled.
      decays: what decays: "kernels" (two dimensions or more), or "all" parameters, biases and
        norms included, as with torch's and Keras' optimizers unless told otherwise.
    """

    learning_rate: AboveZero
    rate_per: Count | None = None
    rate_scaling: Literal["linear", "root"] = "linear"
    weight_decay: ZeroOrMore = 0.0
    decays: Literal["kernels", "all"] = "kernels"

    averages: ClassVar[bool] = False
    """Whether evaluation takes the weights of average() in place of the trained ones."""

    def peak(self, batch_size: int) -> float:
        """Returns the peak rate for batches of `batch_size` images."""
        if self.rate_per is None:
            return self.learning_rate
        ratio = batch_size / self.rate_per
        return self.learning_rate * (
            ratio if self.rate_scaling == "linear" else math.sqrt(ratio)
        )

    @abc.abstractmethod
    def transformation(self, links: Links) -> optax.GradientTransformation:
        """Returns the link from clipped gradients to the update that is added to the
        parameters."""

    def trains(self, path: str, shape: tuple[int, ...]) -> tuple[str, float]:
        """Returns the name of the algorithm that trains a parameter, and what that multiplies
        the learning rate by, groups aside.

        Args:
          path: of the parameter, "fc/kernel".
          shape: of the parameter.
        """
        return type(self).__name__, 1.0

    def check_params(self, params: Any) -> None:  # noqa: B027 - most have no patterns
        """Raises UserError if an option does not fit the network.

        Args:
          params: all its parameters, or their jax.ShapeDtypeStruct.
        """

    def average(self, opt_state: optax.OptState, params: Any) -> Any:
        """Returns the weights to evaluate with, a tree like `params`; only called where
        `averages` is True.

        Args:
          opt_state: the state of the chain, however deep this optimizer's lies in it.
          params: the trained parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} does not average.")


def momentum_link(
    momentum: float, dtype: MomentumDtype, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns v <- momentum * v + g; the update is v, or g + momentum * v with Nesterov's.

    Without momentum there is nothing to remember: no memory is spent on v.
    """
    if momentum == 0:
        return optax.identity()
    return optax.trace(momentum, nesterov=nesterov, accumulator_dtype=dtype)


@dataclasses.dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; with decay="l2" it is torch.optim.SGD without
    dampening, number for number.

        v <- momentum * v + g
        parameter <- parameter - rate * v, or with Nesterov's - rate * (g + momentum * v)

    Attributes:
      momentum: share of the last direction v that is kept, 0..1.
      nesterov: look one step of momentum ahead (Sutskever et al. 2013).
      decay: required where weight_decay is above 0, because 1e-4 can mean two things: "l2" adds
        it to the gradient, through the momentum, as torch, Keras and the papers do; "decoupled"
        shrinks by rate x weight_decay beside it (Loshchilov & Hutter 2017, algorithm 1). The
        same strength is 1 / (1 - momentum) times as much in the second.
      momentum_dtype: of v; "bfloat16" halves its memory.
    """

    momentum: ShareBelowOne = 0.9
    nesterov: bool = True
    decay: Literal["decoupled", "l2"] | None = None
    momentum_dtype: MomentumDtype = "float32"

    def transformation(self, links: Links) -> optax.GradientTransformation:
        direction = momentum_link(self.momentum, self.momentum_dtype, self.nesterov)
        if self.decay == "l2":
            return optax.chain(links.decay, direction, links.rate)
        return optax.chain(direction, links.decay, links.rate)

    def validate(self) -> None:
        """Raises UserError for a weight_decay without a decay that says what it means."""
        if self.weight_decay and self.decay is None:
            raise UserError(
                f"optimizer.weight_decay is {self.weight_decay}, but optimizer.decay does not "
                'say which: "l2", through the momentum, as torch.optim.SGD and published '
                'recipes mean it, or "decoupled", beside it (there the same strength is '
                f"{1 / (1 - self.momentum):g} times the number)."
            )


@dataclasses.dataclass(kw_only=True)
class AdamMoments(Optimizer):
    """What Adam and its kin share: two running averages, corrected for their start at 0
    (Kingma & Ba 2014, https://arxiv.org/abs/1412.6980, algorithm 1).

    Attributes:
      beta1: share that the mean of the gradients keeps, 0..1.
      beta2: share that the mean of their squares keeps, 0..1.
      epsilon: added to the root of the mean square, above 0.
      momentum_dtype: of the mean of the gradients; "bfloat16" halves its memory.
    """

    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.999
    epsilon: AboveZero = 1e-8
    momentum_dtype: MomentumDtype = "float32"

    def direction(self) -> optax.GradientTransformation:
        """Returns the link from gradients to mean / (root of mean square + epsilon)."""
        return optax.scale_by_adam(
            b1=self.beta1, b2=self.beta2, eps=self.epsilon, mu_dtype=self.momentum_dtype
        )


@dataclasses.dataclass(kw_only=True)
class AdamW(AdamMoments):
    """Adam with decoupled decay (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101,
    algorithm 2, in torch's form: the decay is scaled by the rate)."""

    def transformation(self, links: Links) -> optax.GradientTransformation:
        return optax.chain(self.direction(), links.decay, links.rate)


@dataclasses.dataclass(kw_only=True)
class Adam(AdamMoments):
    """Adam with the decay added to the gradient (torch.optim.Adam). Both moments then see it, so
    that parameters with large gradients hardly decay: choose AdamW, unless you repeat an older
    recipe."""

    def transformation(self, links: Links) -> optax.GradientTransformation:
        return optax.chain(links.decay, self.direction(), links.rate)


@dataclasses.dataclass(kw_only=True)
class Lion(Optimizer):
    """The sign of a momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2).
    Every parameter moves by the rate itself at each step: it wants a rate 3 to 10 times smaller
    than AdamW's, and a weight decay as many times larger.

        parameter <- parameter - rate * (sign(beta1 * m + (1 - beta1) * g) + decay)
        m <- beta2 * m + (1 - beta2) * g

    Attributes:
      beta1: share of m in the direction, 0..1.
      beta2: share of m that is kept, 0..1.
      momentum_dtype: of m; "bfloat16" halves its memory.
    """

    beta1: ShareBelowOne = 0.9
    beta2: ShareBelowOne = 0.99
    momentum_dtype: MomentumDtype = "float32"

    def transformation(self, links: Links) -> optax.GradientTransformation:
        direction = optax.scale_by_lion(
            b1=self.beta1, b2=self.beta2, mu_dtype=self.momentum_dtype
        )
        return optax.chain(direction, links.decay, links.rate)


@dataclasses.dataclass(kw_only=True)
class RMSpropTF(Optimizer):
    """RMSProp as TensorFlow 1 computes it (tf.train.RMSPropOptimizer; timm's RMSpropTF), which
    EfficientNet and MobileNet were trained with. Unlike torch.optim.RMSprop, epsilon stands
    within the root, the mean square begins at 1, and the rate goes into the momentum, which
    therefore still moves by the rates of the past. The decay is added to the gradient.

        s <- rho * s + (1 - rho) * g^2
        v <- momentum * v + rate * g / sqrt(s + epsilon);   parameter <- parameter - v

    Attributes:
      rho: share that the mean square keeps, 0..1.
      momentum: share of v that is kept, 0..1.
      epsilon: added to the mean square, above 0; EfficientNet's is 1e-3.
      momentum_dtype: of v; "bfloat16" halves its memory.
    """

    rho: ShareBelowOne = 0.9
    momentum: ShareBelowOne = 0.9
    epsilon: AboveZero = 1e-3
    momentum_dtype: MomentumDtype = "float32"

    def transformation(self, links: Links) -> optax.GradientTransformation:
        root = optax.scale_by_rms(
            decay=self.rho, eps=self.epsilon, initial_scale=1.0, eps_in_sqrt=True
        )
        momentum = momentum_link(self.momentum, self.momentum_dtype)
        return optax.chain(links.decay, root, links.rate, momentum)


@dataclasses.dataclass(kw_only=True)
class Optax(Optimizer):
    """Any other direction that optax has, with decoupled decay: optax.scale_by_belief,
    optax.scale_by_radam, optax.contrib.scale_by_adopt, ...

    Attributes:
      direction: a function of a module, or functools.partial of one with its options by name,
        that returns the transformation from gradients to a direction: a scale_by_... of optax,
        without rate and decay of its own.
    """

    direction: Callable[[], optax.GradientTransformation]

    def transformation(self, links: Links) -> optax.GradientTransformation:
        """Raises UserError if `direction` gives no link, or one with a rate of its own."""
        try:
            direction = self.direction()
            points_uphill = _points_uphill(direction)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"optimizer.direction, {self.direction}, does not work as a link from gradients "
                f"and parameters alone ({type(error).__name__}: {error}): give a function "
                "without further arguments that returns one, such as optax.scale_by_belief, its "
                "options bound by functools.partial."
            ) from None
        if not points_uphill:
            raise UserError(
                f"optimizer.direction, {self.direction}, points downhill by itself: it has a "
                "rate of its own, as optax.adam has. Give the scale_by_... that it is made of: "
                "rate and decay are added here."
            )
        return optax.chain(direction, links.decay, links.rate)

    def validate(self) -> None:
        """Raises UserError for a direction that a saved config could not name."""
        function = self.direction
        if isinstance(function, functools.partial):
            if function.args:
                raise UserError(
                    f"optimizer.direction binds {function.args} by place: bind options by name, "
                    "functools.partial(function, option=value)."
                )
            function = function.func
        if "<" in getattr(function, "__qualname__", "<"):
            raise UserError(
                f"optimizer.direction is {function}, which no checkpoint can find again by its "
                "name: give a function of a module that can be imported."
            )


def _points_uphill(direction: optax.GradientTransformation) -> bool:
    """Whether the first update of a 2 x 2 kernel does not point against its gradient, as it
    would with a rate of its own; the chain's rate turns it round. It may be 0: some directions
    only look at the first gradient."""
    kernel = {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}
    gradient = jax.tree.map(jnp.ones_like, kernel)
    updates, _ = direction.update(gradient, direction.init(kernel), kernel)
    return bool(jnp.sum(updates["kernel"]) >= 0)
