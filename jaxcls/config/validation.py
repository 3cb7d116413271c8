"""Checks a config by itself: types, ranges, and the rules between fields."""

from collections.abc import Sequence

from jaxcls.augment import (
    Growing,
    Normalize,
    RandomErasing,
    Scheduled,
    Staged,
    Transform,
)
from jaxcls.config.tree import Config
from jaxcls.data.host_crop import HostRandomResizedCrop
from jaxcls.errors import UserError, did_you_mean
from jaxcls.metrics import metric_names
from jaxcls.options import check, nodes


def validate(config: Config) -> None:
    """Checks a config by itself, before data or devices are touched.

    Raises:
      UserError: for a value of the wrong type, out of range, or at odds with another.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"get_config must return a jaxcls.config.Config, not {type(config).__name__}."
        )
    check(config, "")
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
