"""Adafactor: the mean squares of a matrix kept as those of its rows and columns."""

import dataclasses

import optax

from jaxcls.optim.optimizers import Links, MomentumDtype, Optimizer
from jaxcls.options import AboveZero, Count, ShareBelowOne


@dataclasses.dataclass(kw_only=True)
class Adafactor(Optimizer):
    """Adam's scaling with next to no memory (Shazeer & Stern 2018,
    https://arxiv.org/abs/1804.04235, algorithm 4): of a kernel's mean squares only the means over
    its two largest dimensions are kept, and their product stands for it.

    The rate is that of the schedule, not the paper's relative step; the decay is decoupled. A
    momentum, which the paper leaves out, is taken before the rate (Zhai et al. 2021, "Scaling
    Vision Transformers", section 3.4, https://arxiv.org/abs/2106.04560).

    Attributes:
      decay_exponent: the mean square of step t (from 1) keeps 1 - t^-this of its past, above 0.
      clip_rms: root mean square that the direction of a parameter array is cut to, above 0;
        None does not cut.
      parameter_scale: multiply by the root mean square of the parameter array, 0.001 at least:
        the rate is then relative to the weights, as in the paper.
      factored_from: a kernel is factored where its two largest dimensions are at least this.
      epsilon: added to the squares of the gradients, above 0.
      momentum: share of the mean direction that is kept, 0..1; None or 0 for no momentum.
      momentum_dtype: of the mean direction; "bfloat16" halves its memory.
    """

    decay_exponent: AboveZero = 0.8
    clip_rms: AboveZero | None = 1.0
    parameter_scale: bool = True
    factored_from: Count = 128
    epsilon: AboveZero = 1e-30
    momentum: ShareBelowOne | None = None
    momentum_dtype: MomentumDtype = "float32"

    def transformation(self, links: Links) -> optax.GradientTransformation:
        direction = [
            optax.scale_by_factored_rms(
                decay_rate=self.decay_exponent,
                min_dim_size_to_factor=self.factored_from,
                epsilon=self.epsilon,
            )
        ]
        if self.clip_rms is not None:
            direction.append(optax.clip_by_block_rms(self.clip_rms))
        if self.momentum:
            direction.append(
                optax.ema(
                    self.momentum, debias=False, accumulator_dtype=self.momentum_dtype
                )
            )
        if self.parameter_scale:
            direction.append(optax.scale_by_param_block_rms())
        return optax.chain(*direction, links.decay, links.rate)
