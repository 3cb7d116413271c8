"""The config of a run: a typed tree, from the recipe to the checkpoint."""

from jaxcls.config.plan import Plan, plan
from jaxcls.config.saved import differences, from_dict, to_dict
from jaxcls.config.tree import (
    SAM,
    Checkpoint,
    Config,
    Distillation,
    Evaluation,
    Log,
    StopEarly,
)
from jaxcls.config.validation import validate
from jaxcls.options import nodes, options
