"""The optimizer as one optax chain, and the rate that it follows."""

from jaxcls.optim.optimizers import SGD, AdamW, Optimizer
from jaxcls.optim.schedules import Schedule, WarmupCosine

__all__ = ["SGD", "AdamW", "Optimizer", "Schedule", "WarmupCosine"]
