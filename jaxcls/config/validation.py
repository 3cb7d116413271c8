"""Checks a config alone: types, ranges, and the rules between options."""

import itertools
from collections.abc import Sequence

from jaxcls.augment import Normalize, RandomErasing, Transform
from jaxcls.augment.schedule import Growing, Scheduled, Staged
from jaxcls.config.tree import Config
from jaxcls.data.host_crop import HostRandomResizedCrop
from jaxcls.errors import UserError, did_you_mean
from jaxcls.metrics import metric_names
from jaxcls.options import check, nodes


def validate(config: Config) -> None:
    """Checks a config alone, before data or devices are touched.

    Raises:
      UserError: for a value of the wrong type, out of range, or at odds with another.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"get_config must return a jaxcls.config.Config, not {type(config).__name__}."
        )
    check(config, "")
    _check_batch(config)
    _check_training(config)
    _check_metrics(config)
    _check_placement(config)
    _check_transforms("augment", config.augment)
    _check_transforms("eval_transform", config.eval_transform)
    random = [type(one).__name__ for one in config.eval_transform if one.random]
    if random:
        raise UserError(
            f"eval_transform contains {random[0]}, which is random: an evaluation must give "
            "the same number each time. Move it to augment."
        )


def _check_batch(config: Config) -> None:
    """Checks that a batch can be divided as other options ask."""
    batch_size, accumulate = config.batch_size, config.accumulate
    for option, divisor in (
        ("accumulate", accumulate),
        ("data.sampling.repeats", config.data.sampling.repeats),
    ):
        if batch_size % divisor:
            raise UserError(
                f"{option} {divisor} does not divide batch_size {batch_size}: choose a divisor."
            )
    part, group = batch_size // accumulate, config.model.bn_group
    if group is not None and part % group:
        images = f"the {part} images of each of the {accumulate} parts (accumulate)"
        raise UserError(
            f"model.bn_group {group} does not divide "
            f"{f'batch_size {batch_size}' if accumulate == 1 else images}: choose a divisor, "
            "or None for statistics of all of them."
        )


def _check_training(config: Config) -> None:
    """Checks that the options of training agree with each other."""
    if config.decay_schedule is not None and not config.optimizer.weight_decay:
        raise UserError(
            "decay_schedule changes the weight decay, but optimizer.weight_decay is 0: set "
            "one, or decay_schedule to None."
        )
    if config.ema is not None and config.optimizer.averages:
        raise UserError(
            f"{type(config.optimizer).__name__} averages the weights by itself: set ema to "
            "None."
        )
    if config.precise_bn is not None and not config.has_average:
        raise UserError(
            "precise_bn estimates the statistics of averaged weights, but there are none: "
            "set ema."
        )
    if config.distill is not None and config.loss.multi_label:
        raise UserError(
            "distill compares softmax probabilities, which labels that do not exclude each "
            "other do not have: set distill to None."
        )


def _check_metrics(config: Config) -> None:
    """Checks the names of the metrics that choose the best checkpoint and the end."""
    known = metric_names(config.loss.multi_label)
    known = [name for name in known if name != "eval/loss"]  # lower is better
    if config.has_average:
        known += [f"{name}_ema" for name in known]
    chosen = {"checkpoint.best": config.checkpoint.best}
    if config.stop_early is not None:
        chosen["stop_early.metric"] = config.stop_early.metric
    for option, metric in chosen.items():
        if metric not in known:
            raise UserError(
                f"{option} is '{metric}', which is no accuracy that evaluation logs."
                f"{did_you_mean(metric, known)} Known: {', '.join(known)}."
            )


def _check_placement(config: Config) -> None:
    """Checks that the host need not crop images again that stay on the devices."""
    if config.data.placement != "device":
        return
    for path, node in nodes(config.data, "data"):
        if isinstance(node, HostRandomResizedCrop):
            raise UserError(
                f"data.placement is 'device', but {path} is HostRandomResizedCrop: the images "
                "would keep the one crop they are loaded with. Crop on the devices "
                "(CenterSquare as canvas, RandomResizedCrop in augment), or set "
                "data.placement to 'host'."
            )


def _check_transforms(option: str, transforms: Sequence[Transform]) -> None:
    """Checks that Normalize stands once, and that what works on grey levels gets them."""
    inner = [_unwrapped(transform) for transform in transforms]
    ends = [index for index, one in enumerate(inner) if isinstance(one, Normalize)]
    if len(ends) != 1:
        raise UserError(
            f"{option} must contain Normalize exactly once: the network takes normalised "
            "floats, not grey levels."
        )
    end = ends[0]
    for transform in inner[end:]:
        if transform.on_grey_levels:
            kind = type(transform).__name__
            raise UserError(
                f"{option} has {kind} after Normalize, but {kind} works on grey levels 0..255: "
                "put Normalize behind it."
            )
    for transform in inner[:end]:
        if isinstance(transform, RandomErasing) and transform.fill != "constant":
            raise UserError(
                f"{option} has RandomErasing(fill={transform.fill!r}) before Normalize, but its "
                "colours are drawn with mean 0 and deviation 1: move it behind Normalize."
            )
    for first, second in itertools.combinations(inner[:end], 2):
        if second.on_grey_levels and not first.keeps_grey_levels:
            early, late = type(first).__name__, type(second).__name__
            raise UserError(
                f"{option} has {early} before {late}, but {late} works on whole grey levels "
                f"0..255, which {early} does not leave: move {early} behind Normalize."
            )


def _unwrapped(transform: Transform) -> Transform:
    """Returns the transform that changes over the run within a Scheduled or the like."""
    while isinstance(transform, Scheduled | Growing | Staged):
        transform = transform.transform
    return transform
