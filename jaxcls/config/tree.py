"""The root of a config: a tree of typed dataclasses, each beside the code it configures.

A recipe is a Python file with `get_config(dataset="digits") -> Config`. What is chosen among
kinds (dataset, transform, optimizer, schedule) is a dataclass that also does the work, so
there is nothing to look up: follow the class.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Interval, MinLen

from jaxcls.augment import Transform, Views
from jaxcls.data import Dataset
from jaxcls.duration import Duration, epochs, steps
from jaxcls.losses import Loss, SoftmaxCrossEntropy
from jaxcls.models import Model
from jaxcls.optim import EMA, Clip, Freeze, Group, Optimizer, Schedule, WarmupCosine
from jaxcls.options import Count, Pattern, Share, ShareAboveZero, ShareBelowOne

Factor = Annotated[float, Interval(gt=0, lt=1_000_000)]
"""A positive number that still leaves room for products in float32."""


@dataclasses.dataclass(kw_only=True)
class Evaluation:
    """When and how the test split is evaluated.

    Attributes:
      every: between evaluations; the end of the run is always evaluated.
      batch_size: images in a step of evaluation, over all devices. Padding rounds it up to a
        multiple of their number; it does not change the numbers.
    """

    every: Duration = dataclasses.field(default_factory=lambda: epochs(1))
    batch_size: Count = 256


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """When checkpoints are saved and which are kept.

    Attributes:
      every: between checkpoints; the end of the run is always saved.
      keep: newest checkpoints that are kept, 1 or more; the best one is kept as well.
      best: the accuracy, as evaluation logs it, whose highest value is the best. Choosing
        by the test split makes that one number optimistic: report the last.
    """

    every: Duration = dataclasses.field(default_factory=lambda: epochs(1))
    keep: Count = 2
    best: str = "eval/top1"


@dataclasses.dataclass(kw_only=True)
class Log:
    """What is written while training.

    Attributes:
      every: between lines of training metrics.
      tensorboard: also writes TensorBoard event files.
    """

    every: Duration = dataclasses.field(default_factory=lambda: steps(50))
    tensorboard: bool = True


@dataclasses.dataclass(kw_only=True)
class StopEarly:
    """Ends the run where a metric of the evaluations has stopped rising.

    The run is then complete: the best checkpoint is kept as well as the last. Choosing the end
    by the test split makes its number optimistic; keep a split of your own for the final one.

    Attributes:
      metric: an accuracy, as evaluation logs it.
      patience: length without an evaluation that is better than the best before it.
      min_delta: rise of the metric that counts as better, 0..1.
    """

    metric: str = "eval/top1"
    patience: Duration = dataclasses.field(default_factory=lambda: epochs(5))
    min_delta: ShareBelowOne = 0.0

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
    """Sharpness-aware minimisation: takes the gradients where the loss is worst within a small
    ball (Foret et al. 2020, https://arxiv.org/abs/2010.01412, equations 2 and 3), at the cost of
    a second pass. Works with every optimizer.

    Attributes:
      rho: radius of the ball, in the Euclidean norm of all parameters, above 0.
      adaptive: measures the ball relative to each parameter (Kwon et al. 2021,
        https://arxiv.org/abs/2102.11600, equation 8, without its offset); rho is then about
        ten times larger.
    """

    rho: Factor = 0.05
    adaptive: bool = False


@dataclasses.dataclass(kw_only=True)
class Distillation:
    """Learns from a teacher's logits as well as from the labels (Hinton et al. 2015,
    https://arxiv.org/abs/1503.02531, section 2). The teacher sees the same augmented images.

    Attributes:
      teacher: the folder of a run of ours on the same classes (its averaged weights teach, if
        it has some); or the name or file of published weights with as many classes.
      teacher_model: the network of published weights, a key of jaxcls.models.MODELS; None for
        a run's folder, which names it.
      temperature: divides the logits of both, above 0.
      alpha: share of the teacher's loss, 0..1; the rest is the loss of the labels.
    """

    teacher: Annotated[str, MinLen(1)]
    teacher_model: str | None = None
    temperature: Factor = 4.0
    alpha: Share = 0.9


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
      accumulate: parts into which a step divides its batch. It takes one after the other, to
        save memory. Nothing else changes, except that batch norms see one part at a time.
      duration: length of the run, in steps, epochs or examples.
      clip: how gradients are limited, once for the whole batch; None leaves them.
      sam: sharpness-aware minimisation; None takes the gradients where the parameters are.
      groups: multipliers of rate and decay for parameters whose path matches.
      layer_decay: factor of the rate from each layer to the one before it, 0..1, above 0: the
        head has the whole rate, the stem the least; None gives all layers one rate.
      head_rate: multiplier of the rate for the last layer, above 0.
      freeze: what is not trained: a regex of parameter paths ("^(?!fc)" is all but "fc"), or
        a tuple of Freeze(pattern, until); None trains all. Batch norms whose parameters are
        all frozen keep their statistics.
      ema: the moving average of the weights; None keeps no average.
      precise_bn: training images from which the batch statistics of the averaged weights are
        estimated anew before each evaluation and each save; None averages the statistics.
      stop_early: ends the run on a plateau; None trains to the end of duration.
      max_bad_steps: non-finite steps in a row that end the run.
      steps_per_call: most steps that the devices make in one call of the host. More than one
        saves the cost of calling, where a step takes a few milliseconds. A call ends where a
        line of metrics, an evaluation or a checkpoint is due, and the steps that do not fill
        a call are made singly: let it divide log.every, evaluation.every and checkpoint.every.
        Signals are answered between calls. Leave it at 1 on a CPU, where XLA makes
        convolutions within a loop several times slower.
      seed: decides the initial weights, the order of the data, augmentation and dropout;
        0..2**32 - 1.
      devices: accelerators to use; None takes all.
      deterministic: forbids GPU programs whose result depends on the order in which threads
        finish: slower, but the same to the last bit each time. CPUs and TPUs always are.
      evaluation: when and how the test split is evaluated.
      checkpoint: when checkpoints are saved and which are kept.
      log: what is written while training.
    """

    model: Model
    data: Dataset
    augment: tuple[Transform, ...]
    eval_transform: tuple[Transform, ...]
    optimizer: Optimizer
    batch_size: Count
    duration: Duration
    loss: Loss = dataclasses.field(default_factory=SoftmaxCrossEntropy)
    distill: Distillation | None = None
    schedule: Schedule = dataclasses.field(default_factory=WarmupCosine)
    decay_schedule: Schedule | None = None
    eval_views: Views | None = None
    accumulate: Count = 1
    clip: Clip | None = None
    sam: SAM | None = None
    groups: tuple[Group, ...] = ()
    layer_decay: ShareAboveZero | None = None
    head_rate: Factor = 1.0
    freeze: Pattern | tuple[Freeze, ...] | None = None
    ema: EMA | None = None
    precise_bn: Count | None = None
    stop_early: StopEarly | None = None
    max_bad_steps: Count = 10
    steps_per_call: Count = 1
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0
    devices: Count | None = None
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
        """What is not trained, always as a tuple."""
        if isinstance(self.freeze, str):
            return (Freeze(pattern=self.freeze),)
        return self.freeze or ()
