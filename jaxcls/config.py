"""The root of a config: a tree of typed dataclasses, each beside the code it configures.

A recipe is a Python file with `get_config(dataset="digits") -> Config`. What is chosen among
kinds (dataset, transform, optimizer, schedule) is a dataclass that also does the work, so
there is nothing to look up: follow the class.
"""

import dataclasses
import functools
import importlib
import operator
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from jaxcls.augment import (
    Growing,
    Normalize,
    RandomErasing,
    Scheduled,
    Staged,
    Transform,
    Views,
)
from jaxcls.data import Dataset
from jaxcls.data.canvas import HostRandomResizedCrop
from jaxcls.data.order import steps_per_epoch
from jaxcls.duration import Duration, RunLength, epochs, steps
from jaxcls.errors import UserError, did_you_mean
from jaxcls.hints import allows
from jaxcls.models import Model
from jaxcls.optim import (
    EMA,
    Clip,
    Freeze,
    Group,
    Optimizer,
    Schedule,
    WarmupCosine,
)
from jaxcls.training.loss import Loss, SoftmaxCrossEntropy
from jaxcls.training.metrics import metric_names

MAY_CHANGE_ON_RESUME = (
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.placement",
    "data.cache_mb",
    # These decide whether a bad image ends the run, not what is learned from the others.
    "data.on_bad_image",
    "data.max_bad_share",
    "steps_per_call",
    "devices",
    "evaluation",
    "checkpoint",
    "log",
)
"""Options (or nodes) that do not change the result of a run, so that a run may be continued
with other values."""


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


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, dataclass) for every dataclass of a config, the root first with path ""."""
    yield path, node
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        below = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(value):
            yield from nodes(value, below)
        elif isinstance(value, tuple):
            for index, element in enumerate(value):
                if dataclasses.is_dataclass(element):
                    yield from nodes(element, f"{below}[{index}]")


def options(config: Config) -> dict[str, tuple[Any, Any]]:
    """Returns every option that is not itself a node: path -> (owning node, value)."""
    found = {}
    for path, node in nodes(config):
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            holds_nodes = isinstance(value, tuple) and any(
                dataclasses.is_dataclass(element) for element in value
            )
            if not dataclasses.is_dataclass(value) and not holds_nodes:
                found[f"{path}.{field.name}" if path else field.name] = (node, value)
    return found


def validate(config: Config) -> None:
    """Checks a config by itself, before data or devices are touched.

    Raises:
      UserError: for a value of the wrong type, out of range, or at odds with another.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"get_config must return a jaxcls.config.Config, not {type(config).__name__}."
        )
    for path, node in nodes(config):
        _check_types(path, node)
    for name, (_, value) in options(config).items():
        _check_representable(name, value)
    for _, node in nodes(config):
        if hasattr(node, "validate"):
            node.validate()
    _check_ranges(config)
    if config.data.placement == "device":
        for path, node in nodes(config.data, "data"):
            if isinstance(node, HostRandomResizedCrop):
                raise UserError(
                    f"data.placement is 'device', but {path} is HostRandomResizedCrop: the "
                    "images would keep the one crop they are loaded with. Crop on the "
                    "devices (CenterSquare as canvas, RandomResizedCrop in augment), or set "
                    "data.placement to 'host'."
                )
    for name, transforms in (
        ("augment", config.augment),
        ("eval_transform", config.eval_transform),
    ):
        if sum(isinstance(transform, Normalize) for transform in transforms) != 1:
            raise UserError(
                f"{name} must contain Normalize exactly once: the network takes normalised "
                "floats, not grey levels."
            )
        _check_grey_levels(name, transforms)
    for transform in config.eval_transform:
        if transform.random:
            raise UserError(
                f"eval_transform contains {type(transform).__name__}, which is random: an "
                "evaluation must give the same number each time. Move it to augment."
            )


def _check_grey_levels(name: str, transforms: Sequence[Transform]) -> None:
    """Checks that what works on grey levels 0..255 is given such.

    Args:
      name: of the option, for messages.
      transforms: with Normalize exactly once.
    """
    ends_them: Transform | None = None
    for transform in map(_unwrapped, transforms):
        kind = type(transform).__name__
        if transform.on_grey_levels and ends_them is not None:
            end = type(ends_them).__name__
            if isinstance(ends_them, Normalize):
                raise UserError(
                    f"{name} has {kind} after Normalize, but {kind} works on grey levels "
                    "0..255: put Normalize behind it."
                )
            raise UserError(
                f"{name} has {end} before {kind}, but {kind} works on whole grey levels "
                f"0..255, which {end} does not leave: move {end} behind Normalize."
            )
        if isinstance(transform, Normalize):
            ends_them = transform
        elif not isinstance(ends_them, Normalize):
            if isinstance(transform, RandomErasing) and transform.fill != "constant":
                raise UserError(
                    f"{name} has {kind}(fill={transform.fill!r}) before Normalize, but its "
                    "colours are drawn with mean 0 and deviation 1: move it behind Normalize."
                )
            if not transform.keeps_grey_levels:
                ends_them = transform


def _unwrapped(transform: Transform) -> Transform:
    """Returns the transform that one that changes over a run applies, else the one itself."""
    while isinstance(transform, Scheduled | Growing | Staged):
        transform = transform.transform
    return transform


def _check_types(path: str, node: Any) -> None:
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        hint = hints[field.name]
        if not allows(hint, value):
            name = f"{path}.{field.name}" if path else field.name
            raise UserError(
                f"config.{name} is {value!r}, a {type(value).__name__}; expected "
                f"{type_name(hint)}."
            )


def _check_representable(name: str, value: Any) -> None:
    """Refuses numbers that the devices could not hold: they compute in int32 and float32."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and not -(2**31) <= number < 2**32:
            raise UserError(f"{name} of {str(number)[:40]} is beyond every range.")
        if isinstance(number, float) and not abs(number) < 1e30:
            raise UserError(f"{name} must be a number of sensible size, not {number}.")


def type_name(hint: Any) -> str:
    """Returns a type as a person would write it: 'int', 'float or None', '"a" or "b"'."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = ", ".join(
            "..." if part is ... else type_name(part) for part in typing.get_args(hint)
        )
        return f"a tuple ({inner})"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _check_ranges(config: Config) -> None:
    """Checks the root's numbers and the few nodes that are defined here."""
    at_least_one = {
        "batch_size": config.batch_size,
        "evaluation.batch_size": config.evaluation.batch_size,
        "max_bad_steps": config.max_bad_steps,
        "steps_per_call": config.steps_per_call,
        "accumulate": config.accumulate,
        "checkpoint.keep": config.checkpoint.keep,
        "devices": 1 if config.devices is None else config.devices,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise UserError(f"{name} must be 1 or more, not {value}.")
    if not 0 <= config.seed < 2**32:
        raise UserError(f"seed must lie in 0..2**32 - 1, not {config.seed}.")
    group = config.model.bn_group
    if group is not None and config.batch_size % group:
        raise UserError(
            f"model.bn_group {group} does not divide batch_size {config.batch_size}: choose a "
            "divisor, or None for statistics of the whole batch."
        )
    if config.batch_size % config.data.sampling.repeats:
        raise UserError(
            f"data.sampling.repeats {config.data.sampling.repeats} does not divide batch_size "
            f"{config.batch_size}: each record of a batch comes so many times."
        )
    if config.batch_size % config.accumulate:
        raise UserError(
            f"accumulate {config.accumulate} does not divide batch_size {config.batch_size}."
        )
    micro = config.batch_size // config.accumulate
    if group is not None and micro % group:
        raise UserError(
            f"model.bn_group {group} does not divide the {micro} images of which "
            f"accumulate={config.accumulate} makes one part: choose a divisor, or None."
        )
    _check_training(config)
    _check_metrics(config)


def _check_training(config: Config) -> None:
    """Checks how parameters are trained."""
    if config.layer_decay is not None and not 0 < config.layer_decay <= 1:
        raise UserError(
            f"layer_decay must lie in 0..1, above 0, or be None, not {config.layer_decay}."
        )
    if not 0 < config.head_rate < 1e6:
        raise UserError(f"head_rate must be above 0, not {config.head_rate}.")
    if config.freeze == "":
        raise UserError(
            "freeze is '', which matches everything: give a regex of parameter paths, or None "
            "to train all."
        )
    if config.decay_schedule is not None and not config.optimizer.weight_decay:
        raise UserError(
            "decay_schedule changes the weight decay, but optimizer.weight_decay is 0: set "
            "one, or decay_schedule to None."
        )
    if config.sam is not None and not 0 < config.sam.rho < 1e6:
        raise UserError(f"sam.rho must be above 0, not {config.sam.rho}.")
    if config.ema is not None and config.optimizer.averages:
        raise UserError(
            f"{type(config.optimizer).__name__} averages the weights by itself: set ema to "
            "None."
        )
    if config.precise_bn is not None:
        if config.precise_bn < 1:
            raise UserError(f"precise_bn must be 1 or more, not {config.precise_bn}.")
        if not config.has_average:
            raise UserError(
                "precise_bn estimates the statistics of averaged weights, but there are none: "
                "set ema."
            )
    if (distill := config.distill) is not None:
        if not 0 <= distill.alpha <= 1:
            raise UserError(f"distill.alpha must lie in 0..1, not {distill.alpha}.")
        if not 0 < distill.temperature < 1e6:
            raise UserError(
                f"distill.temperature must be above 0, not {distill.temperature}."
            )
        if not distill.teacher:
            raise UserError("distill.teacher is empty: name a run's folder or weights.")
        if config.loss.multi_label:
            raise UserError(
                "distill compares softmax probabilities, which labels that do not exclude "
                "each other have not: set distill to None."
            )


def _check_metrics(config: Config) -> None:
    """Checks the names of metrics by which is chosen."""
    known = metric_names(config.loss.multi_label)
    known = [name for name in known if name != "eval/loss"]  # lower is better
    if config.has_average:
        known += [f"{name}_ema" for name in known]
    chosen = {"checkpoint.best": config.checkpoint.best}
    if config.stop_early is not None:
        chosen["stop_early.metric"] = config.stop_early.metric
        if not 0 <= config.stop_early.min_delta < 1:
            raise UserError(
                "stop_early.min_delta must lie in 0..1, below 1, not "
                f"{config.stop_early.min_delta}."
            )
    for option, metric in chosen.items():
        if metric not in known:
            raise UserError(
                f"{option} is '{metric}', which is no accuracy that evaluation logs."
                f"{did_you_mean(metric, known)} Known: {', '.join(known)}."
            )


@dataclasses.dataclass(frozen=True)
class Plan:
    """The durations of a config in steps.

    Attributes:
      run: length of the run, an epoch and a batch.
      evaluate_every: steps between evaluations, 1 or more.
      save_every: steps between checkpoints, 1 or more.
      log_every: steps between lines of training metrics, 1 or more.
      steps_per_call: steps that fill a call, 1 or more.
      patience: steps without a better evaluation that end the run; None for no end but its own.
    """

    run: RunLength
    evaluate_every: int
    save_every: int
    log_every: int
    steps_per_call: int = 1
    patience: int | None = None

    @property
    def total_steps(self) -> int:
        assert self.run.total_steps is not None
        return self.run.total_steps

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that happens every `every` steps and at the end is due."""
        return step == self.total_steps or (step > 0 and step % every == 0)

    def call_lengths(self, step: int) -> list[int]:
        """Returns the lengths that calls() may give, longest first."""
        every = (self.evaluate_every, self.save_every, self.log_every)
        ends = [step, self.total_steps, *(n for n in every if n < self.total_steps)]
        divides = all(end % self.steps_per_call == 0 for end in ends)
        return [self.steps_per_call] if divides else [self.steps_per_call, 1]

    def calls(self, step: int) -> Iterator[int]:
        """Yields the lengths of the calls from `step` to the end of the run: steps_per_call,
        or 1 where something is due before so many steps are made.

        What comes after a step does not depend on how it was reached, so that a run which is
        continued makes the same calls.
        """
        while step < self.total_steps:
            every = (self.evaluate_every, self.save_every, self.log_every)
            due = min(self.total_steps, *(step - step % n + n for n in every))
            length = self.steps_per_call if due - step >= self.steps_per_call else 1
            yield length
            step += length


def plan(config: Config, num_train: int) -> Plan:
    """Works out the durations of a valid config in steps.

    Args:
      config: a config that validate() has passed.
      num_train: images in the training split.

    Raises:
      UserError: if the batch is larger than the training set, a duration comes to nothing or
        the warm-up does not fit into the run.
    """
    if config.batch_size > num_train:
        raise UserError(
            f"batch_size {config.batch_size} is larger than the training set of {num_train} "
            f"images: use at most {num_train}."
        )
    batch_size = config.batch_size
    run = RunLength(steps_per_epoch(num_train, batch_size), batch_size)
    total = config.duration.to_steps(run)
    if not 1 <= total < 2**31:
        raise UserError(
            f"duration of {config.duration} is {total:.3g} steps: it must be at least one, "
            "and fewer than 2**31."
        )
    run = dataclasses.replace(run, total_steps=total)
    for schedule in (config.schedule, config.decay_schedule):
        if schedule is not None:
            schedule.factor(run)  # raises where the warm-up does not fit
    if config.ema is not None:
        config.ema.share(run)  # raises where the run has no update of the average
    durations = {
        "evaluation.every": config.evaluation.every,
        "checkpoint.every": config.checkpoint.every,
        "log.every": config.log.every,
    }
    if config.stop_early is not None:
        durations["stop_early.patience"] = config.stop_early.patience
    every = {}
    for name, duration in durations.items():
        every[name] = duration.to_steps(run)
        if every[name] < 1:
            raise UserError(
                f"{name} of {duration} is less than one step ({run.steps_per_epoch} steps "
                "are an epoch)."
            )
    due = (
        every[name] for name in ("evaluation.every", "checkpoint.every", "log.every")
    )
    per_call = min(config.steps_per_call, total, *due)
    return Plan(
        run,
        every["evaluation.every"],
        every["checkpoint.every"],
        every["log.every"],
        per_call,
        every.get("stop_early.patience"),
    )


def to_dict(value: Any) -> Any:
    """Turns a config, or any part of it, into what JSON can hold.

    A node becomes a dict with the import path of its class under "type", a function (or a
    functools.partial of keywords) one with its import path under "function".
    """
    if dataclasses.is_dataclass(value):
        kind = type(value)
        fields = {
            field.name: to_dict(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return {"type": f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, Duration):
        path = f"{Duration.__module__}:{Duration.__qualname__}"
        return {"type": path, "value": value.value, "unit": value.unit}
    if isinstance(value, tuple):
        return [to_dict(element) for element in value]
    if isinstance(value, functools.partial):
        keywords = {name: to_dict(given) for name, given in value.keywords.items()}
        return {**to_dict(value.func), "keywords": keywords}
    if callable(value):
        return {"function": f"{value.__module__}:{value.__qualname__}"}
    return value


def from_dict(value: Any) -> Any:
    """Rebuilds what to_dict() made.

    Raises:
      UserError: if a class can no longer be imported or its fields have changed.
    """
    if isinstance(value, list):
        return tuple(from_dict(element) for element in value)
    if not isinstance(value, dict):
        return value
    if "function" in value:
        function = _imported(value["function"])
        keywords = {key: from_dict(v) for key, v in value.get("keywords", {}).items()}
        return functools.partial(function, **keywords) if keywords else function
    fields = {key: from_dict(field) for key, field in value.items() if key != "type"}
    try:
        kind = _imported(value["type"])
        in_configs = dataclasses.is_dataclass(kind) or kind is Duration
        if not in_configs:
            raise TypeError("it is not a part of a config")
        return kind(**fields)
    except (ImportError, AttributeError, TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"the saved config names {value.get('type')!r}, which cannot be rebuilt here "
            f"({error}): use the version of jaxcls, and of your own modules, that saved it."
        ) from None


def _imported(path: str) -> Any:
    """Returns what "module:name" names."""
    module, _, name = path.partition(":")
    return operator.attrgetter(name)(importlib.import_module(module))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Returns a line for each option that differs between two configs as to_dict() gives them,
    leaving out those of MAY_CHANGE_ON_RESUME."""
    before, after = _flatten(old), _flatten(new)
    # Where evaluations decide about the end of the run, they do change its result.
    decides = ("evaluation.every",) if new.get("stop_early") else ()
    lines = []
    for name in dict.fromkeys([*before, *after]):
        may_change = any(
            name == may or name.startswith(f"{may}.") for may in MAY_CHANGE_ON_RESUME
        )
        if may_change and not name.startswith(decides):
            continue
        was, now = before.get(name, "absent"), after.get(name, "absent")
        if was != now:
            lines.append(f"{name}: {was} -> {now}")
    return lines


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts = [
            (f"{path}.{key}" if path else key, part) for key, part in value.items()
        ]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {path: value}
    return {
        name: leaf for key, part in parts for name, leaf in _flatten(part, key).items()
    }
