"""Checks a config by itself: types, ranges, and the rules between options."""

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
    _check_batch(config)
    _check_training(config)
    _check_metrics(config)
    _check_placement(config)
    _check_transforms("augment", config.augment)
    _check_transforms("eval_transform", config.eval_transform)
    for transform in config.eval_transform:
        if transform.random:
            raise UserError(
                f"eval_transform contains {type(transform).__name__}, which is random: an "
                "evaluation must give the same number each time. Move it to augment."
            )


def _check_batch(config: Config) -> None:
    """Checks that a batch can be divided as other options ask for."""
    batch_size, group = config.batch_size, config.model.bn_group
    if group is not None and batch_size % group:
        raise UserError(
            f"model.bn_group {group} does not divide batch_size {batch_size}: choose a "
            "divisor, or None for statistics of the whole batch."
        )
    if batch_size % config.data.sampling.repeats:
        raise UserError(
            f"data.sampling.repeats {config.data.sampling.repeats} does not divide batch_size "
            f"{batch_size}: each record of a batch comes so many times."
        )
    if batch_size % config.accumulate:
        raise UserError(
            f"accumulate {config.accumulate} does not divide batch_size {batch_size}."
        )
    part = batch_size // config.accumulate
    if group is not None and part % group:
        raise UserError(
            f"model.bn_group {group} does not divide the {part} images of which "
            f"accumulate={config.accumulate} makes one part: choose a divisor, or None."
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
    """Checks that images which stay on the devices are not to be cropped anew on the host."""
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
    if sum(isinstance(transform, Normalize) for transform in transforms) != 1:
        raise UserError(
            f"{option} must contain Normalize exactly once: the network takes normalised "
            "floats, not grey levels."
        )
    # The first transform that leaves something other than whole grey levels 0..255.
    end: Transform | None = None
    for transform in map(_unwrapped, transforms):
        kind, end_kind = type(transform).__name__, type(end).__name__
        if transform.on_grey_levels and isinstance(end, Normalize):
            raise UserError(
                f"{option} has {kind} after Normalize, but {kind} works on grey levels "
                "0..255: put Normalize behind it."
            )
        if transform.on_grey_levels and end is not None:
            raise UserError(
                f"{option} has {end_kind} before {kind}, but {kind} works on whole grey levels "
                f"0..255, which {end_kind} does not leave: move {end_kind} behind Normalize."
            )
        if isinstance(transform, Normalize):
            end = transform
        elif not isinstance(end, Normalize):
            if isinstance(transform, RandomErasing) and transform.fill != "constant":
                raise UserError(
                    f"{option} has {kind}(fill={transform.fill!r}) before Normalize, but its "
                    "colours are drawn with mean 0 and deviation 1: move it behind Normalize."
                )
            if not transform.keeps_grey_levels:
                end = transform


def _unwrapped(transform: Transform) -> Transform:
    """Returns the transform that changes over the run within a Scheduled or the like."""
    while isinstance(transform, Scheduled | Growing | Staged):
        transform = transform.transform
    return transform
