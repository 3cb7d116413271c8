"""The root of a config: a tree of typed dataclasses, each beside the code it configures.

A recipe is a Python file with `get_config(dataset="digits") -> Config`. What is chosen among
kinds (dataset, transform, optimizer, schedule) is a dataclass that also does the work, so
there is nothing to look up: follow the class.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxcls.augment import Transform, Views
from jaxcls.data import Dataset
from jaxcls.duration import Duration, epochs, steps
from jaxcls.losses import Loss, SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, Clip, Freeze, Group, Optimizer, Schedule, WarmupCosine


@dataclasses.dataclass(kw_only=True)
class Evaluation:
    """When and how the test split is evaluated.

    Attributes:
      every: between evaluations; the end of the run is always evaluated.
      batch_size: images in a step of evaluation, over all devices (rounded up to a multiple
        of their number by padding; it does not change the numbers).
    """

    every: Duration = dataclasses.field(default_factory=lambda: epochs(1))
    batch_size: int = 256


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """When checkpoints are saved and which are kept.

    Attributes:
      every: between checkpoints; the end of the run is always saved.
      keep: newest checkpoints that are kept, 1 or more; the best one is kept besides.
      best: the accuracy, as evaluation logs it, whose highest value is the best. Choosing
        by the test split makes that one number optimistic: report the last.
    """

    every: Duration = dataclasses.field(default_factory=lambda: epochs(1))
    keep: int = 2
    best: str = "eval/top1"


@dataclasses.dataclass(kw_only=True)
class Log:
    """What is written while training.

    Attributes:
      every: between lines of training metrics.
      tensorboard: also write TensorBoard event files.
    """

    every: Duration = dataclasses.field(default_factory=lambda: steps(50))
    tensorboard: bool = True


@dataclasses.dataclass(kw_only=True)
class StopEarly:
    """Ends the run where a metric of the evaluations has stopped rising.

    The run is then complete: the best checkpoint is kept besides the last. Choosing the end by
    the test split makes its number optimistic; keep a split of your own for the final one.

    Attributes:
      metric: an accuracy, as evaluation logs it.
      patience: length without an evaluation that is better than the best before it.
      min_delta: rise of the metric that counts as better, 0..1.
    """

    metric: str = "eval/top1"
    patience: Duration = dataclasses.field(default_factory=lambda: epochs(5))
    min_delta: float = 0.0

    def best(self, evaluations: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns the evaluation that none after it has exceeded by more than min_delta.

        Args:
          evaluations: in the order of their steps, one at least; each has "step" and the metric.
        """
        best = evaluations[0]
        for evaluation in evaluations[1:]:
            if evaluation[self.metric] > best[self.metric] + self.min_delta:
                best = evaluation
        return best

    def reached(
        self, evaluations: Sequence[dict[str, Any]], patience: int | None
    ) -> bool:
        """Whether the last evaluation is `patience` steps or more after the best.

        A function of the evaluations alone: a run that is continued ends where it would have
        ended.

        Args:
          evaluations: in the order of their steps; each has "step" and the metric.
          patience: that of this node in steps, as its Plan has it.
        """
        if not evaluations:
            return False
        assert patience is not None
        return evaluations[-1]["step"] - self.best(evaluations)["step"] >= patience


@dataclasses.dataclass(kw_only=True)
class SAM:
    """Sharpness-aware minimisation: the gradients are taken where the loss is the worst within
    a small ball (Foret et al. 2020, https://arxiv.org/abs/2010.01412, equations 2 and 3), at the
    cost of a second pass. Goes with every optimizer.

    Attributes:
      rho: radius of the ball, in the Euclidean norm of all parameters, above 0.
      adaptive: measure the ball relative to each parameter (Kwon et al. 2021,
        https://arxiv.org/abs/2102.11600, equation 8, without its offset); rho is then about
        ten times larger.
    """

    rho: float = 0.05
    adaptive: bool = False


@dataclasses.dataclass(kw_only=True)
class Distillation:
    """Learns from a teacher's logits besides the labels (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531, section 2). The teacher sees the same augmented images.

    Attributes:
      teacher: the folder of a run of ours on the same classes, whose averaged weights teach if
        it has them; or the name or file of published weights that have as many classes.
      teacher_model: the network of published weights, a key of jaxcls.models.MODELS; None for
        a run's folder, which knows.
      temperature: by which both logits are divided, above 0.
      alpha: share of the teacher's loss, 0..1; the rest is that of the labels.
    """

    teacher: str
    teacher_model: str | None = None
    temperature: float = 4.0
    alpha: float = 0.9


@dataclasses.dataclass(kw_only=True)
class Config:
    """Everything that determines a run.

    Attributes:
      model: the network.
      data: the dataset and how it is loaded.
      augment: transforms of training images, in order, on the devices.
      eval_transform: deterministic transforms of test images; kept with every checkpoint.
      eval_views: views of each test image over which the logits are averaged (test-time
        augmentation), taken before Normalize; None for the image alone.
      loss: the loss of each image.
      distill: a teacher to learn from; None for the labels alone.
      optimizer: the optimizer, its peak rate and decay.
      schedule: the factor of the peak rate over the run.
      decay_schedule: the factor of the weight decay over the run; None leaves it constant.
      batch_size: images in a training step, over all devices.
      accumulate: parts in which a step takes its batch, one after the other, to save memory;
        divides batch_size. Nothing else changes, but that batch norms see one part at a time.
      duration: length of the run, in steps, epochs or examples.
      clip: how gradients are limited, once for the whole batch; None leaves them.
      sam: sharpness-aware minimisation; None takes the gradients where the parameters are.
      groups: multipliers of rate and decay for parameters whose path matches.
      layer_decay: factor of the rate from each layer to the one before it, 0..1: the head has
        the whole rate, the stem the least; None gives all layers one rate.
      head_rate: multiplier of the rate for the last layer, above 0.
      freeze: what is not trained: a regex of parameter paths ("^(?!fc)" is all but "fc"), or
        Freeze(pattern, until) for each, in a tuple; None trains all. Batch norms whose
        parameters are all frozen keep their statistics.
      ema: the moving average of the weights; None keeps no average.
      precise_bn: training images over which the batch statistics of the averaged weights are
        estimated anew before they are evaluated or saved, instead of averaged; None averages.
      stop_early: ends the run on a plateau; None trains to the end of duration.
      max_bad_steps: this many non-finite steps in a row end the run.
      steps_per_call: steps that the devices make in one call of the host, at most: more than
        one takes away what calling costs, where a step takes a few milliseconds. A call ends
        where a line of metrics, an evaluation or a checkpoint is due, and the steps that do
        not fill one are made singly: let it divide log.every, evaluation.every and
        checkpoint.every. Signals are answered between calls. Leave it at 1 on a CPU, where
        XLA makes convolutions within a loop several times slower.
      seed: of the initial weights, the order of the data, augmentation and dropout.
      devices: accelerators to use; None takes all.
      deterministic: forbid GPU programs whose result depends on the order in which threads
        finish: slower, and the same to the last bit each time. CPUs and TPUs always are.
      evaluation: when and how the test split is evaluated.
      checkpoint: when checkpoints are saved and which are kept.
      log: what is written while training.
    """

    model: Model
    data: Dataset
    augment: tuple[Transform, ...]
    eval_transform: tuple[Transform, ...]
    optimizer: Optimizer
    batch_size: int
    duration: Duration
    loss: Loss = dataclasses.field(default_factory=SoftmaxCrossEntropy)
    distill: Distillation | None = None
    schedule: Schedule = dataclasses.field(default_factory=WarmupCosine)
    decay_schedule: Schedule | None = None
    eval_views: Views | None = None
    accumulate: int = 1
    clip: Clip | None = None
    sam: SAM | None = None
    groups: tuple[Group, ...] = ()
    layer_decay: float | None = None
    head_rate: float = 1.0
    freeze: str | tuple[Freeze, ...] | None = None
    ema: EMA | None = None
    precise_bn: int | None = None
    stop_early: StopEarly | None = None
    max_bad_steps: int = 10
    steps_per_call: int = 1
    seed: int = 0
    devices: int | None = None
    deterministic: bool = False
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    log: Log = dataclasses.field(default_factory=Log)

    @property
    def has_average(self) -> bool:
        """Whether averaged weights are kept beside the raw ones."""
        return self.ema is not None or self.optimizer.averages

    @property
    def frozen(self) -> tuple[Freeze, ...]:
        """What is not trained, as nodes."""
        if isinstance(self.freeze, str):
            return (Freeze(pattern=self.freeze),)
        return self.freeze or ()
