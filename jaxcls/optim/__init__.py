"""The optimizer as one optax chain, and the rate that it follows."""

from jaxcls.optim.adafactor import Adafactor
from jaxcls.optim.clipping import AdaptiveClip, Clip, ClipNorm, ClipValue
from jaxcls.optim.ema import EMA
from jaxcls.optim.groups import Freeze, Group
from jaxcls.optim.layerwise import LAMB, LARS
from jaxcls.optim.muon import Muon
from jaxcls.optim.optimizers import SGD, Adam, AdamW, Lion, Optax, Optimizer, RMSpropTF
from jaxcls.optim.schedule_free import ScheduleFreeAdamW
from jaxcls.optim.schedules import (
    Constant,
    CosineRestarts,
    Exponential,
    InverseSqrt,
    Linear,
    MultiStep,
    OneCycle,
    Piecewise,
    Polynomial,
    Schedule,
    Step,
    WarmupCosine,
    WarmupStableDecay,
)
