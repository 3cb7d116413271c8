"""The tree of a config: checks, the plan in steps, JSON, and what may change on resume."""

import copy
import dataclasses
import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import docstring_parser
import optax
import pytest

from jaxcls import config as config_lib
from jaxcls.augment import (
    CenterCrop,
    CutMix,
    Cutout,
    FlipViews,
    Growing,
    HorizontalFlip,
    MixUp,
    MixUpOrCutMix,
    Normalize,
    RandAugment,
    RandomCrop,
    RandomErasing,
    Resize,
    Scheduled,
    Staged,
    Transform,
    Views,
)
from jaxcls.config import (
    SAM,
    Checkpoint,
    Config,
    Distillation,
    Evaluation,
    Log,
    Plan,
    StopEarly,
)
from jaxcls.config.help import meaning
from jaxcls.config.kinds import node_classes
from jaxcls.config.overrides import override
from jaxcls.data import Dataset, Digits
from jaxcls.duration import Duration, RunLength, epochs, examples, fraction, steps
from jaxcls.errors import UserError
from jaxcls.losses import (
    Loss,
    MultiLabelBinaryCrossEntropy,
)
from jaxcls.models import Model
from jaxcls.optim import (
    EMA,
    SGD,
    AdamW,
    Clip,
    ClipNorm,
    Freeze,
    Group,
    Optax,
    Optimizer,
    Schedule,
    ScheduleFreeAdamW,
    WarmupCosine,
)

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
NUM_TRAIN = 1437
GREY = Normalize(mean=(0.5,), std=(0.5,))


def load(path: Path) -> ModuleType:
    """The module of a recipe, which lies in no package."""
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recipe(name: str) -> Config:
    """A new config of configs/NAME.py, with the numbers that tests below reckon with."""
    config = load(next(path for path in RECIPES if path.stem == name)).get_config()
    config.batch_size, config.duration = 64, epochs(40)
    config.ema, config.clip = EMA(decay=0.99), ClipNorm(max_norm=1.0)
    return config


def with_option(config: Config, path: str, value: Any) -> Config:
    """A copy with one option changed."""
    # Recipes may use one node in two places: there, both would change.
    config = config_lib.from_dict(config_lib.to_dict(config))
    owner, _ = config_lib.options(config)[path]
    setattr(owner, path.rpartition(".")[2], value)
    return config


# Recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_can_be_planned(path: Path) -> None:
    config = load(path).get_config()
    config_lib.validate(config)
    num_train = len(config.data.source("train"))
    plan = config_lib.plan(config, num_train)
    assert plan.run.batch_size == config.batch_size
    assert plan.run.steps_per_epoch * config.batch_size <= num_train
    assert plan.total_steps >= plan.evaluate_every
    assert config_lib.from_dict(config_lib.to_dict(config)) == config


def test_recipes_are_found() -> None:
    assert {"lenet5", "resnet18"} <= {path.stem for path in RECIPES}


def test_two_configs_of_a_recipe_share_no_node() -> None:
    # An override of one must not reach the other.
    one, other = recipe("lenet5"), recipe("lenet5")
    before = copy.deepcopy(other)
    one.evaluation.batch_size += 1
    one.loss.label_smoothing = 0.5
    one.schedule.end = 0.5  # type: ignore[attr-defined]
    one.log.tensorboard = False
    assert other == before


# Documentation


def all_subclasses(kind: type) -> set[type]:
    below = {kind}
    for subclass in kind.__subclasses__():
        below |= all_subclasses(subclass)
    return below


NODE_CLASSES = sorted(
    {
        kind
        for root in (
            *(Config, Evaluation, Checkpoint, Log, Model, StopEarly, SAM, Distillation),
            *(Dataset, Transform, Views, Optimizer, Schedule, Loss, Clip),
            *(EMA, Freeze, Group),
        )
        for kind in all_subclasses(root)
        # One with an underscore is never part of a recipe.
        if kind.__module__.startswith("jaxcls.") and kind.__name__[0] != "_"
    },
    key=lambda kind: kind.__name__,
)


def test_node_classes_are_found() -> None:
    assert {Digits, SGD, AdamW, WarmupCosine, Resize, RandomCrop} <= set(NODE_CLASSES)
    assert {HorizontalFlip, Normalize, Model, Config} <= set(NODE_CLASSES)


@pytest.mark.parametrize("kind", NODE_CLASSES, ids=lambda kind: kind.__name__)
def test_every_option_says_what_it_means(kind: type) -> None:
    assert dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind):
        text = meaning(kind, field.name)
        assert len(text.split()) >= 2 and "\n" not in text
        assert text.endswith("."), f"{kind.__name__}.{field.name}: {text}"


@pytest.mark.parametrize("kind", NODE_CLASSES, ids=lambda kind: kind.__name__)
def test_no_line_of_documentation_without_its_option(kind: type) -> None:
    documented = [
        parameter.arg_name
        for parameter in docstring_parser.parse(kind.__doc__ or "").params
    ]
    names = {field.name for field in dataclasses.fields(kind)}
    assert set(documented) <= names
    assert len(documented) == len(set(documented))


def test_meaning_is_the_line_of_the_class_that_declares_the_option() -> None:
    assert meaning(SGD, "momentum").startswith("share of the last direction")
    assert meaning(SGD, "learning_rate") == meaning(Optimizer, "learning_rate")
    with pytest.raises(KeyError, match="beta1"):
        meaning(SGD, "beta1")


# Validation


RULES: list[tuple[str, str, Any]] = [
    ("lenet5", "batch_size", 0),
    ("lenet5", "batch_size", -4),
    ("lenet5", "evaluation.batch_size", 0),
    ("lenet5", "max_bad_steps", 0),
    ("lenet5", "checkpoint.keep", 0),
    ("lenet5", "devices", 0),
    ("lenet5", "seed", -1),
    ("lenet5", "accumulate", 0),
    ("lenet5", "steps_per_call", 0),
    ("lenet5", "accumulate", 48),  # no divisor of the batch of 64
    ("lenet5", "clip.max_norm", 0.0),
    ("lenet5", "clip.max_norm", -1.5),
    ("lenet5", "clip.max_norm", float("nan")),
    ("lenet5", "clip.max_norm", float("inf")),
    ("lenet5", "ema.decay", 1.0),
    ("lenet5", "ema.decay", -0.1),
    ("lenet5", "layer_decay", 0.0),
    ("lenet5", "layer_decay", 1.5),
    ("lenet5", "head_rate", 0.0),
    ("lenet5", "head_rate", 1e6),
    ("lenet5", "precise_bn", 0),
    ("lenet5", "checkpoint.best", "eval/top2"),
    ("lenet5", "data.workers", -1),
    ("lenet5", "data.workers", 257),
    ("lenet5", "data.threads", 0),
    ("lenet5", "data.threads", 257),
    ("lenet5", "data.prefetch", 0),
    ("lenet5", "data.prefetch", 1025),
    ("lenet5", "loss.label_smoothing", 1.0),
    ("lenet5", "loss.label_smoothing", -0.1),
    ("lenet5", "optimizer.learning_rate", 0.0),
    ("lenet5", "optimizer.learning_rate", float("nan")),
    ("lenet5", "optimizer.learning_rate", float("inf")),
    ("lenet5", "optimizer.weight_decay", -0.01),
    ("lenet5", "optimizer.weight_decay", float("nan")),
    ("lenet5", "optimizer.weight_decay", float("inf")),
    ("lenet5", "optimizer.beta1", 1.0),
    ("lenet5", "optimizer.beta2", -0.5),
    ("lenet5", "optimizer.epsilon", 0.0),
    ("resnet18", "optimizer.momentum", 1.0),
    ("resnet18", "optimizer.momentum", -0.9),
    ("lenet5", "schedule.start", 0.0),
    ("lenet5", "schedule.start", 1.5),
    ("lenet5", "schedule.end", -0.5),
    ("lenet5", "schedule.end", 1.5),
    ("lenet5", "model.name", "lenet6"),
    ("resnet18", "model.width", 0),
    ("resnet18", "model.width", 65537),
    ("resnet18", "model.bn_group", -8),
    ("resnet18", "model.bn_group", 65537),
    ("resnet18", "model.bn_group", 48),  # no divisor of the batch of 64
    ("resnet18", "model.bn_group", 128),
    ("lenet5", "augment[0].size", 0),
    ("lenet5", "augment[0].size", 3_000_000_000),
    ("lenet5", "augment[1].padding", -1),
    ("lenet5", "augment[1].padding", 3_000_000_000),
    ("lenet5", "augment[1].fill", 256.0),
    ("lenet5", "augment[1].fill", -1.0),
    ("lenet5", "augment[1].fill", 127.5),
    # Of a tuple the last is at fault, and it alone is named.
    ("lenet5", "augment[2].std", (0.0,)),
    ("lenet5", "eval_transform[1].std", (0.5, -0.5)),
    ("lenet5", "eval_transform[1].std", (0.5, 58.4)),
    ("lenet5", "augment[2].mean", (0.5, 123.7)),
    ("lenet5", "eval_transform[1].mean", (0.5, 0.0, -0.1)),
]


@pytest.mark.parametrize(("name", "option", "value"), RULES)
def test_a_value_out_of_range_is_named(name: str, option: str, value: Any) -> None:
    config = recipe(name)
    config_lib.validate(config)  # so that the value alone is at fault
    with pytest.raises(UserError) as error:
        config_lib.validate(with_option(config, option, value))
    message = str(error.value)
    if isinstance(value, tuple):
        assert message.endswith(f", not {value[-1]}.")
    else:
        assert str(value) in message
    last = option.rpartition(".")[2]
    assert ("unknown model" if option == "model.name" else last) in message
    assert "\n" not in message


TEACHER = Distillation(teacher="runs/big")

AT_ODDS: list[tuple[dict[str, Any], list[str]]] = [
    (
        {
            "optimizer": AdamW(learning_rate=0.1),
            "decay_schedule": WarmupCosine(),
        },
        ["decay_schedule", "weight_decay is 0"],
    ),
    ({"freeze": ""}, ["freeze must be a regular expression that is not empty, not ''"]),
    ({"freeze": "("}, ["freeze must be a regular expression", "not '('"]),
    (
        {"sam": SAM(rho=0.0)},
        ["sam.rho must lie in 0..1000000, above 0, below 1000000, not 0.0"],
    ),
    ({"sam": SAM(rho=1e6)}, ["sam.rho must lie in 0..1000000", "not 1000000.0"]),
    ({"ema": None, "precise_bn": 100}, ["precise_bn", "set ema"]),
    (
        {"optimizer": ScheduleFreeAdamW(learning_rate=0.1)},
        ["ScheduleFreeAdamW averages", "set ema to None"],
    ),
    (
        {"distill": dataclasses.replace(TEACHER, alpha=1.5)},
        ["distill.alpha must lie in 0..1, not 1.5"],
    ),
    (
        {"distill": dataclasses.replace(TEACHER, temperature=0.0)},
        ["distill.temperature must lie in 0..1000000, above 0, below 1000000, not 0.0"],
    ),
    (
        {"distill": dataclasses.replace(TEACHER, teacher="")},
        ["distill.teacher must be not empty, not ''"],
    ),
    (
        {"distill": TEACHER, "loss": MultiLabelBinaryCrossEntropy()},
        ["distill compares softmax"],
    ),
    ({"stop_early": StopEarly(metric="eval/loss")}, ["stop_early.metric", "eval/loss"]),
    (
        {"stop_early": StopEarly(metric="eval/balanced_top")},
        ["Did you mean 'eval/balanced_top1"],
    ),
    (
        {"stop_early": StopEarly(min_delta=1.0)},
        ["stop_early.min_delta must lie in 0..1, below 1, not 1.0"],
    ),
    (
        {"stop_early": StopEarly(metric="eval/top1_ema"), "ema": None},
        ["stop_early.metric is 'eval/top1_ema'"],
    ),
]


@pytest.mark.parametrize(("options", "words"), AT_ODDS)
def test_options_at_odds_are_named(options: dict[str, Any], words: list[str]) -> None:
    config = dataclasses.replace(recipe("lenet5"), **options)
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    for word in words:
        assert word in str(error.value)


def test_a_part_of_the_batch_holds_whole_groups_of_its_norms() -> None:
    config = recipe("resnet18")
    config.accumulate, config.model.bn_group = 4, 16
    config_lib.validate(config)
    config.model.bn_group = 32
    with pytest.raises(UserError, match="bn_group 32 does not divide the 16 images"):
        config_lib.validate(config)


def test_patience_is_planned_in_steps() -> None:
    config = recipe("lenet5")
    assert config_lib.plan(config, NUM_TRAIN).patience is None
    config.stop_early = StopEarly(patience=epochs(3))
    assert config_lib.plan(config, NUM_TRAIN).patience == 3 * 22
    config.stop_early.patience = examples(1)
    with pytest.raises(UserError, match=r"stop_early\.patience of 1 examples"):
        config_lib.plan(config, NUM_TRAIN)


def test_functions_of_a_recipe_are_saved_by_their_names() -> None:
    config = recipe("lenet5")
    for direction in (
        optax.scale_by_belief,
        functools.partial(optax.scale_by_yogi, b1=0.8),
    ):
        config.optimizer = Optax(learning_rate=0.1, direction=direction)
        config_lib.validate(config)
        saved = json.loads(json.dumps(config_lib.to_dict(config)))
        rebuilt = config_lib.from_dict(saved)
        assert config_lib.to_dict(rebuilt) == config_lib.to_dict(config)
        found = rebuilt.optimizer.direction
        if isinstance(direction, functools.partial):
            assert (found.func, found.keywords) == (direction.func, {"b1": 0.8})
        else:
            assert found is direction


def test_a_function_that_cannot_be_imported_is_named() -> None:
    for path in ("no_such_module:scale", "optax:no_such_direction"):
        saved = config_lib.to_dict(Optax(learning_rate=0.1, direction=optax.lion))
        saved["direction"] = {"function": path, "keywords": {"b1": 0.8}}
        with pytest.raises(UserError, match=f"names '{path}', which cannot be rebuilt"):
            config_lib.from_dict(saved)


LIMITS: list[tuple[str, str, Any]] = [
    ("lenet5", "batch_size", 1),
    ("lenet5", "devices", None),
    ("lenet5", "devices", 1),
    ("lenet5", "seed", 0),
    ("lenet5", "seed", 2**32 - 1),
    ("lenet5", "accumulate", 32),
    ("lenet5", "clip.max_norm", 1e-9),
    ("lenet5", "ema.decay", 0.0),
    ("lenet5", "layer_decay", 1.0),
    ("lenet5", "precise_bn", 1),
    ("lenet5", "deterministic", True),
    ("lenet5", "checkpoint.best", "eval/top5"),
    ("lenet5", "checkpoint.best", "eval/top1_ema"),
    ("lenet5", "data.threads", None),
    ("lenet5", "data.threads", 256),
    ("lenet5", "data.workers", 0),
    ("lenet5", "data.workers", 256),
    ("lenet5", "data.prefetch", 1),
    ("lenet5", "data.prefetch", 1024),
    ("resnet18", "model.width", 1),
    ("resnet18", "model.width", 65536),
    ("resnet18", "model.bn_group", None),
    ("resnet18", "model.bn_group", 1),
    ("resnet18", "model.bn_group", 64),
    ("lenet5", "loss.label_smoothing", 0.0),
    ("lenet5", "optimizer.weight_decay", 0.0),
    ("lenet5", "optimizer.learning_rate", 1),  # an int where a float is meant
    ("resnet18", "optimizer.momentum", 0.0),
    ("lenet5", "schedule.start", 1.0),
    ("lenet5", "schedule.end", 1.0),
    ("lenet5", "schedule.end", 0.0),
    ("lenet5", "augment[1].padding", 0),
    ("lenet5", "augment[1].fill", 255.0),
    ("lenet5", "augment[2].mean", (0.0, 1.0)),
    ("lenet5", "augment[2].std", (1e-6, 1.0)),
]


@pytest.mark.parametrize(("name", "option", "value"), LIMITS)
def test_the_ends_of_a_range_are_allowed(name: str, option: str, value: Any) -> None:
    config_lib.validate(with_option(recipe(name), option, value))


HUGE: list[tuple[str, Any, str]] = [
    ("seed", 2**32, "is beyond every range."),
    ("seed", 2**63, "is beyond every range."),
    ("batch_size", 2**32, "is beyond every range."),
    ("max_bad_steps", -(2**31) - 1, "is beyond every range."),
    ("devices", 10**20, "is beyond every range."),
    ("data.workers", 10**20, "is beyond every range."),
    ("optimizer.learning_rate", 10**20, "is beyond every range."),
    # Python cannot make a float of it.
    ("checkpoint.keep", 10**400, "is beyond every range."),
    ("optimizer.learning_rate", 1e30, "must be a number of sensible size, not 1e+30."),
    ("head_rate", 1e300, "must be a number of sensible size, not 1e+300."),
    ("layer_decay", float("nan"), "must be a number of sensible size, not nan."),
    ("augment[1].fill", float("-inf"), "must be a number of sensible size, not -inf."),
    ("augment[2].std", (0.5, float("nan")), "of sensible size, not nan."),
]


@pytest.mark.parametrize(
    ("option", "value", "said"), HUGE, ids=lambda value: str(value)[:24]
)
def test_a_number_that_no_device_holds_is_named(
    option: str, value: Any, said: str
) -> None:
    with pytest.raises(UserError) as error:
        config_lib.validate(with_option(recipe("lenet5"), option, value))
    message = str(error.value)
    assert message.startswith(f"{option} ") and message.endswith(said)


def test_a_group_of_images_divides_the_batch() -> None:
    config = with_option(recipe("resnet18"), "model.bn_group", 48)
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    said = "model.bn_group 48 does not divide batch_size 64: "
    assert str(error.value).startswith(said)
    config.batch_size = 96
    config_lib.validate(config)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_probability_of_a_flip(p: float) -> None:
    config = recipe("lenet5")
    config.augment = (HorizontalFlip(p=p), GREY)
    with pytest.raises(UserError, match=rf"^augment\[0\]\.p must lie .* not {p}"):
        config_lib.validate(config)
    config.augment = (HorizontalFlip(p=0.0), HorizontalFlip(p=1.0), GREY)
    config_lib.validate(config)


WRONG_TYPES: list[Any] = [
    ("batch_size", "64", "int of 1 or more"),
    ("batch_size", 64.0, "int of 1 or more"),
    ("batch_size", True, "int of 1 or more"),
    ("batch_size", None, "int of 1 or more"),
    ("layer_decay", True, "float in 0..1, above 0, or None"),
    ("layer_decay", "1", "float in 0..1, above 0, or None"),
    ("devices", 1.5, "int of 1 or more, or None"),
    ("duration", 20, "Duration"),
    ("duration", "20 epochs", "Duration"),
    ("log.tensorboard", 1, "bool"),
    ("optimizer.learning_rate", "fast", "float above 0"),
    ("optimizer.learning_rate", False, "float above 0"),
    ("augment[2].mean", (True,), "a tuple (float, ...), not empty"),
    ("model.dtype", "float16", "'float32' or 'bfloat16' or None"),
    ("model.stem", "big", "'imagenet' or 'small' or None"),
    ("augment[1].mode", "wrap", "'constant' or 'edge' or 'reflect'"),
    ("augment[2].mean", 0.5, "a tuple (float, ...), not empty"),
    ("augment[2].mean", [0.5], "a tuple (float, ...), not empty"),
    ("augment[2].mean", ("a",), "a tuple (float, ...), not empty"),
    ("augment[2].mean", (0.5, "a"), "a tuple (float, ...), not empty"),
]


@pytest.mark.parametrize(("option", "value", "expected"), WRONG_TYPES)
def test_a_wrong_type_is_named(option: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError) as error:
        config_lib.validate(with_option(recipe("lenet5"), option, value))
    message = str(error.value)
    assert message.startswith(f"{option} is {value!r}, a {type(value).__name__}")
    assert message.endswith(f"; expected {expected}.")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "lenet5"),
        ("optimizer", 3e-4),
        ("data", {"workers": 1}),
        ("evaluation", None),
        ("augment", GREY),
        ("augment", [GREY]),
        ("augment", ("flip", GREY)),
        ("augment", (GREY, "flip")),
    ],
)
def test_a_node_of_the_wrong_kind_is_named(field: str, value: Any) -> None:
    config = recipe("lenet5")
    setattr(config, field, value)
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert str(error.value).startswith(f"{field} is {value!r}, a ")


@pytest.mark.parametrize("field", ["augment", "eval_transform"])
@pytest.mark.parametrize("transforms", [(), (Resize(size=8),), (GREY, GREY)])
def test_normalize_stands_exactly_once(
    field: str, transforms: tuple[Transform, ...]
) -> None:
    config = recipe("lenet5")
    setattr(config, field, transforms)
    with pytest.raises(UserError, match=f"^{field} must contain Normalize exactly"):
        config_lib.validate(config)


@pytest.mark.parametrize("field", ["augment", "eval_transform"])
@pytest.mark.parametrize(
    "transform", [Resize(size=8), CenterCrop(size=8), RandomCrop(padding=1)]
)
def test_grey_levels_end_with_normalize(field: str, transform: Transform) -> None:
    config = recipe("lenet5")
    setattr(config, field, (GREY, transform))
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    kind = type(transform).__name__
    assert str(error.value).startswith(f"{field} has {kind} after Normalize, but ")
    # Not the next to Normalize alone.
    config = recipe("lenet5")
    config.augment = (GREY, HorizontalFlip(), transform)
    with pytest.raises(UserError, match=f"^augment has {kind} after Normalize"):
        config_lib.validate(config)


def test_what_takes_any_floats_may_follow_normalize() -> None:
    config = recipe("lenet5")
    config.augment = (Resize(size=32), RandomCrop(padding=2), GREY, HorizontalFlip())
    config_lib.validate(config)


@pytest.mark.parametrize(
    "wrapper",
    [
        Scheduled(transform=RandAugment(), stop=0.9),
        Growing(transform=RandAugment()),
        Staged(transform=RandAugment(), field="num_ops", values=(1, 2)),
        Scheduled(transform=Growing(transform=RandAugment()), stop=0.9),
    ],
    ids=repr,
)
def test_the_transform_within_one_that_changes_is_named(wrapper: Transform) -> None:
    config = recipe("lenet5")
    config.augment = (GREY, wrapper)
    with pytest.raises(UserError, match=r"^augment has RandAugment after Normalize"):
        config_lib.validate(config)
    config.augment = (Scheduled(transform=MixUp(), stop=0.9), wrapper, GREY)
    with pytest.raises(UserError, match=r"^augment has MixUp before RandAugment"):
        config_lib.validate(config)


def test_normalize_holds_for_the_whole_run() -> None:
    config = recipe("lenet5")
    config.augment = (Scheduled(transform=GREY, stop=0.5), GREY)
    with pytest.raises(UserError, match=r"^Scheduled contains Normalize"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    "ending",
    [MixUp(), MixUpOrCutMix(), RandomErasing(value=(-50.0,))],
    ids=lambda node: type(node).__name__,
)
def test_what_leaves_no_whole_grey_levels_comes_behind_those_who_want_them(
    ending: Transform,
) -> None:
    config = recipe("lenet5")
    config.augment = (ending, HorizontalFlip(), RandAugment(), GREY)
    kind = type(ending).__name__
    with pytest.raises(UserError) as error:
        config_lib.validate(config)
    assert str(error.value) == (
        f"augment has {kind} before RandAugment, but RandAugment works on whole grey "
        f"levels 0..255, which {kind} does not leave: move {kind} behind Normalize."
    )
    for allowed in ((RandAugment(), ending, GREY), (RandAugment(), GREY, ending)):
        config.augment = allowed
        config_lib.validate(config)


def test_whole_grey_levels_may_be_pasted_anywhere() -> None:
    config = recipe("lenet5")
    pasting = (CutMix(), Cutout(size=4), RandomErasing(value=(127.0,)))
    config.augment = (*pasting, RandAugment(), GREY)
    config_lib.validate(config)


@pytest.mark.parametrize("fill", ["color", "pixel"])
def test_normal_colours_are_no_grey_levels(fill: Any) -> None:
    config = recipe("lenet5")
    config.augment = (MixUp(), RandomErasing(fill=fill), GREY)
    with pytest.raises(UserError, match=rf"RandomErasing\(fill='{fill}'\) before Nor"):
        config_lib.validate(config)
    config.augment = (GREY, RandomErasing(fill=fill))
    config_lib.validate(config)


@pytest.mark.parametrize("random", [RandomCrop(padding=1), HorizontalFlip()])
def test_evaluation_is_not_random(random: Transform) -> None:
    config = recipe("lenet5")
    config.eval_transform = (random, GREY)
    with pytest.raises(UserError, match=f"eval_transform.*{type(random).__name__}"):
        config_lib.validate(config)


def test_the_best_of_an_average_needs_an_average() -> None:
    config = with_option(recipe("lenet5"), "checkpoint.best", "eval/top1_ema")
    config_lib.validate(config)
    config.ema = None
    with pytest.raises(UserError, match=r"checkpoint\.best is 'eval/top1_ema'"):
        config_lib.validate(config)


def test_an_option_that_the_network_lacks_is_named() -> None:
    with pytest.raises(UserError, match="'lenet5' has no option 'stem'"):
        config_lib.validate(with_option(recipe("lenet5"), "model.stem", "small"))


@pytest.mark.parametrize("value", [{"batch_size": 3}, None, Config])
def test_only_a_config_is_a_config(value: Any) -> None:
    with pytest.raises(UserError, match=f"not {type(value).__name__}"):
        config_lib.validate(value)


# The plan


def test_plan_by_hand() -> None:
    config = recipe("lenet5")
    config.batch_size = 64
    config.duration = epochs(40)
    config.evaluation.every = epochs(5)
    config.checkpoint.every = fraction(0.1)
    config.log.every = examples(640)
    plan = config_lib.plan(config, NUM_TRAIN)
    # 1437 // 64 = 22 batches; the 29 images left over are not a step.
    assert plan == Plan(RunLength(22, 64, 880), 110, 88, 10)
    assert plan.total_steps == 880


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 1438, "batch_size 1438 .* 1437"),
        (
            "duration",
            examples(31),
            "duration of 31 examples is 0 steps: it must be at least one",
        ),
        ("duration", steps(0), "duration of 0 steps is 0 steps: it must be at least"),
        ("duration", steps(2**31), r"is 2\.15e\+09 steps: .* fewer than 2\*\*31\."),
        ("duration", epochs(1e8), r"duration of 100000000 epochs is 2\.2e\+09 steps"),
        ("duration", fraction(0.5), "0.5 run"),
        ("schedule.warmup", epochs(40), "schedule.warmup of 40 epochs is 880 steps"),
        ("schedule.warmup", fraction(1), "schedule.warmup of 1 run is 880 steps"),
        ("schedule.warmup", steps(879), "is 879 steps, but the whole run has 880"),
        ("evaluation.every", steps(0), "evaluation.every of 0 steps is less"),
        ("checkpoint.every", fraction(1e-4), "checkpoint.every of 0.0001 run is less"),
        ("log.every", examples(1), "log.every of 1 examples is less"),
    ],
)
def test_what_does_not_fit_is_named(option: str, value: Any, message: str) -> None:
    config = with_option(recipe("lenet5"), option, value)
    config_lib.validate(config)
    with pytest.raises(UserError, match=message):
        config_lib.plan(config, NUM_TRAIN)


def test_the_longest_run_fits() -> None:
    config = with_option(recipe("lenet5"), "duration", steps(2**31 - 1))
    assert config_lib.plan(config, NUM_TRAIN).total_steps == 2**31 - 1


def test_the_largest_batch_and_the_shortest_run_fit() -> None:
    config = with_option(recipe("lenet5"), "batch_size", NUM_TRAIN)
    config.duration = steps(1)
    config.schedule.warmup = steps(0)  # type: ignore[attr-defined]
    plan = config_lib.plan(config, NUM_TRAIN)
    assert (plan.run.steps_per_epoch, plan.total_steps) == (1, 1)


def test_due_at_multiples_and_at_the_end_once() -> None:
    plan = Plan(RunLength(5, 8, total_steps=17), 5, 5, 5)
    due = [step for step in range(18) if plan.is_due(5, step)]
    assert due == [5, 10, 15, 17]
    assert [step for step in range(18) if plan.is_due(17, step)] == [17]
    assert [step for step in range(18) if plan.is_due(100, step)] == [17]


# JSON


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_json_gives_the_config_back(name: str) -> None:
    config = recipe(name)
    config.augment = (
        *config.augment[:-1],
        HorizontalFlip(p=1 / 3),
        Normalize(mean=(0.1, 0.2, 1 / 3), std=(1e-6, 0.2, 1.0)),
    )
    config.duration = examples(1e6)
    config.schedule = WarmupCosine(warmup=fraction(1 / 3))
    config.seed = 2**32 - 1
    text = json.dumps(config_lib.to_dict(config))
    again = config_lib.from_dict(json.loads(text))
    assert again == config
    assert [type(node) for _, node in config_lib.nodes(again)] == [
        type(node) for _, node in config_lib.nodes(config)
    ]
    assert json.dumps(config_lib.to_dict(again)) == text
    config_lib.validate(again)  # tuples are tuples again


def test_json_names_our_classes_by_name() -> None:
    saved = config_lib.to_dict(recipe("lenet5"))
    assert saved["type"] == "Config"
    assert saved["optimizer"]["type"] == "AdamW"
    assert saved["duration"] == {"type": "Duration", "value": 40.0, "unit": "epochs"}


def test_names_of_node_classes_are_unique() -> None:
    names = [kind.__name__ for kind in node_classes()]
    assert len(names) == len(set(names))
    # Those with an underscore, which no recipe has, are among them.
    assert set(NODE_CLASSES) | {Duration} <= node_classes()


# A run's config.json of version 0.1 -> how its command line differed from the recipe.
SAVED_BY_0_1 = {
    "lenet5": {},
    "convnext_tiny": {
        "duration": "20 steps",
        "schedule.warmup": "2 steps",
        "evaluation.every": "20 steps",
        "log.every": "5 steps",
    },
}


@pytest.mark.parametrize("name", SAVED_BY_0_1)
def test_a_config_of_version_0_1_is_the_recipe_of_today(name: str) -> None:
    path = Path(__file__).parent / "saved_by_0_1" / f"{name}.json"
    saved = json.loads(path.read_text())
    assert saved["type"] == "jaxcls.config:Config"
    expected = load(next(p for p in RECIPES if p.stem == name)).get_config()
    for option, text in SAVED_BY_0_1[name].items():
        override(expected, option, text)
    config = config_lib.from_dict(saved)
    assert config == expected
    assert (
        config_lib.differences(config_lib.to_dict(config), config_lib.to_dict(expected))
        == []
    )


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("jaxcls.anything:os.system", "there is no such class."),
        ("jaxcls.anything:system", "there is no such class."),
        ("jaxcls:os", "there is no such class."),
        ("jaxcls.never_there:Normalise", "Did you mean 'Normalize'?"),
        ("Normalise", "Did you mean 'Normalize'?"),
        ("jaxcls.config:from_dict", "there is no such class."),
        ("os.system", "there is no such class."),
        ("posix:system", "it is not a part of a config"),
    ],
)
def test_a_class_that_is_none_of_ours_is_not_looked_for(
    path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> ModuleType:
        assert name == "posix", "only what is not ours may be imported"
        return sys.modules[name]

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(UserError, match="cannot be rebuilt here") as error:
        config_lib.from_dict({"type": path, "command": "true"})
    assert repr(path) in str(error.value) and said in str(error.value)


def test_a_path_of_a_file_that_has_moved_leads_to_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def import_module(name: str) -> ModuleType:
        raise AssertionError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    for path in ("jaxcls.long.gone:ClipNorm", "jaxcls:ClipNorm", "ClipNorm"):
        saved = {"type": path, "max_norm": 2.0}
        assert config_lib.from_dict(saved) == ClipNorm(max_norm=2.0)


class Outer:
    @dataclasses.dataclass(kw_only=True)
    class Doubled(Dataset):
        def source(self, split: Any) -> Any:
            return Digits().source(split)


def test_a_class_within_a_class_comes_back() -> None:
    saved = config_lib.to_dict(Outer.Doubled(workers=3))
    assert saved["type"] == f"{__name__}:Outer.Doubled"
    assert config_lib.from_dict(saved) == Outer.Doubled(workers=3)


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"type": "jaxcls.optim.optimizers:Lamb", "learning_rate": 1.0}, "Lamb"),
        ({"type": "no_such_module:Thing"}, "no_such_module:Thing"),
        (
            {"type": "jaxcls.losses:SoftmaxCrossEntropy", "gamma": 2.0},
            "gamma",
        ),
        ({"type": "jaxcls.data.formats.digits:Digits", "root": "/data"}, "root"),
        ({"type": "os:system", "command": "true"}, "os:system"),
        ({"type": "builtins:dict"}, "builtins:dict"),
        ({"type": f"{__name__}:GREY", "mean": ()}, f"{__name__}:GREY"),
        (
            {"type": "jaxcls.data.formats.digits.Digits"},
            "jaxcls.data.formats.digits.Digits",
        ),
        ({"type": "jaxcls.duration:Duration", "value": 1, "unit": "eons"}, "eons"),
        ({"type": "Config"}, "'Config'"),
        ({"learning_rate": 1.0}, "None"),
        ({"type": 3}, "3"),
    ],
)
def test_a_config_that_cannot_be_rebuilt_is_named(
    saved: dict[str, Any], names: str
) -> None:
    with pytest.raises(UserError, match="cannot be rebuilt here") as error:
        config_lib.from_dict({"type": "jaxcls.config:Log", "every": saved})
    assert names in str(error.value)


# Resuming


RESUMABLE = {
    *("data.workers", "data.threads", "data.prefetch", "data.placement"),
    *("evaluation.every", "evaluation.batch_size"),
    *("checkpoint.every", "checkpoint.keep", "checkpoint.best"),
    *("devices", "steps_per_call", "log.every", "log.tensorboard"),
}


def other_value(value: Any) -> Any:
    """Some value that differs; nobody validates it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (*value, 0.125)
    if isinstance(value, Duration):
        return dict(steps=epochs, epochs=steps, run=steps)[value.unit](1)
    assert value is None
    return 7


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_each_option_is_compared_or_may_change(name: str) -> None:
    config = recipe(name)
    before = config_lib.to_dict(config)
    found = config_lib.options(config)
    crop = "augment[1].padding" if name == "lenet5" else "augment[0].padding"
    assert set(found) >= {*RESUMABLE, "seed", crop, "schedule.end"}
    for option, (_, value) in found.items():
        changed = with_option(config, option, other_value(value))
        after = json.loads(json.dumps(config_lib.to_dict(changed)))
        lines = config_lib.differences(before, after)
        if option in RESUMABLE:
            assert lines == [], option
        else:
            assert lines, option
            assert all(line.startswith(option) for line in lines)
    assert config_lib.differences(before, json.loads(json.dumps(before))) == []


def test_a_difference_shows_both_values() -> None:
    config = recipe("lenet5")
    changed = with_option(config, "duration", steps(7))
    assert config_lib.differences(
        config_lib.to_dict(config), config_lib.to_dict(changed)
    ) == ["duration.value: 40.0 -> 7.0", "duration.unit: epochs -> steps"]


def test_another_kind_of_node_is_a_difference() -> None:
    config, changed = recipe("lenet5"), recipe("lenet5")
    changed.optimizer = SGD(
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )
    lines = config_lib.differences(
        config_lib.to_dict(config), config_lib.to_dict(changed)
    )
    assert any("AdamW -> " in line and line.endswith("SGD") for line in lines)
    assert "optimizer.momentum: absent -> 0.9" in lines
    assert "optimizer.beta1: 0.9 -> absent" in lines


@pytest.mark.parametrize(
    "augment",
    [
        (RandomCrop(padding=2), Resize(size=32), GREY),
        (Resize(size=32), GREY),
        (Resize(size=32), RandomCrop(padding=2), HorizontalFlip(), GREY),
        (),
    ],
)
def test_another_order_or_number_of_transforms_is_a_difference(
    augment: tuple[Transform, ...],
) -> None:
    config, changed = recipe("lenet5"), recipe("lenet5")
    changed.augment = augment
    before, after = config_lib.to_dict(config), config_lib.to_dict(changed)
    assert config_lib.differences(before, after)
    assert config_lib.differences(after, before)


def test_what_may_change_is_no_mere_prefix() -> None:
    # "log" stands for the node of that name, not for all that begins so.
    assert config_lib.differences({"logits": 1}, {"logits": 2}) == ["logits: 1 -> 2"]
    assert config_lib.differences({"devices_x": 1}, {"devices_x": 2})
    assert config_lib.differences({"evaluations": 1}, {"evaluations": 2})


# Options and nodes


def test_options_are_the_leaves_by_path() -> None:
    config = recipe("lenet5")
    found = config_lib.options(config)
    for path, (_, value) in found.items():
        assert eval(f"config.{path}", {"config": config}) is value
    for absent in ("model", "augment", "augment[0]", "log", "duration.value"):
        assert absent not in found
    leaves = {"model.name", "augment[1].fill", "eval_transform[1].mean", "duration"}
    assert leaves <= set(found)
    paths = [path for path, _ in config_lib.nodes(config)]
    assert paths[0] == "" and len(paths) == len(set(paths))
    assert {"data", "augment[2]", "evaluation"} <= set(paths)


def test_transforms_within_transforms_are_stored_and_overridden() -> None:
    config = recipe("resnet18")
    config.eval_views = FlipViews()
    config.augment = (
        Scheduled(transform=RandAugment(), stop=0.9),
        Growing(transform=RandAugment(), first=1.0, last=3.0),
        *config.augment,
        MixUpOrCutMix(cutmix_minmax=(0.2, 0.4)),
    )
    config_lib.validate(config)
    saved = json.loads(json.dumps(config_lib.to_dict(config)))
    assert config_lib.from_dict(saved) == config
    override(config, "augment[0].transform.magnitude", "5")
    assert config.augment[0] == Scheduled(transform=RandAugment(magnitude=5), stop=0.9)
    override(config, "augment[0].transform.magnitude", "50")
    with pytest.raises(UserError, match=r"magnitude must lie in 0\.\.30, not 50"):
        config_lib.validate(config)
