"""The command line: what it sets, and one sentence for whatever is wrong with it."""

import dataclasses
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from jaxcls import config as config_lib
from jaxcls.augment import FiveCrops
from jaxcls.config import Config, Distillation
from jaxcls.config import command_line as flags
from jaxcls.config.help import meaning
from jaxcls.config.recipe import load_recipe, unshared
from jaxcls.data import ImageFolder, Letterbox
from jaxcls.duration import epochs, examples, fraction, steps
from jaxcls.errors import UserError
from jaxcls.losses import Focal
from jaxcls.optim import (
    EMA,
    LAMB,
    AdaptiveClip,
    ClipNorm,
    ClipValue,
    Exponential,
    Freeze,
    Group,
    Linear,
    MultiStep,
    OneCycle,
    Step,
)

ROOT = Path(__file__).parents[2]
LENET = "--config=configs/lenet5.py"
RESNET = "--config=configs/resnet18.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are named relative to the repository."""
    monkeypatch.chdir(ROOT)


def command(*argv: str) -> flags.Command:
    parsed = flags.parse(argv)
    assert parsed is not None
    return parsed


def option(config: Config, path: str) -> Any:
    return config_lib.options(config)[path][1]


def line(*argv: str) -> str:
    """The message that a bad command line gives: one line."""
    with pytest.raises(UserError) as error:
        flags.parse(argv)
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def sentence(*argv: str) -> str:
    """The same where no word is another program's: it ends like a sentence."""
    message = line(*argv)
    assert message.endswith((".", "?")), message
    return message


# The recipe


@pytest.mark.parametrize(
    "argv",
    [
        ["--config=configs/lenet5.py"],
        ["--config", "configs/lenet5.py"],
        ["-config", "configs/lenet5.py"],
        ["--config=configs/lenet5.py:digits"],
        ["--config", "configs/lenet5.py:digits"],
        ["--fresh", "--config", "configs/lenet5.py"],
    ],
)
def test_ways_to_name_a_recipe(argv: list[str]) -> None:
    found = command(*argv)
    assert found.config == command(LENET).config
    assert found.config.model.name == "lenet5"
    assert found.config != command(RESNET).config
    assert found.workdir == Path("runs/lenet5-digits")
    assert found.fresh == ("--fresh" in argv)


RECIPE = """
import dataclasses
from jaxcls.augment import Normalize
from jaxcls.config import Config
from jaxcls.data import Digits
from jaxcls.duration import epochs
from jaxcls.models import Model
from jaxcls.optim import SGD

def get_config(dataset="digits"):
    grey = Normalize(mean=(0.5,), std=(0.5,))
    return Config(
        model=Model(name="lenet5"), data=Digits(workers=len(dataset)),
        augment=(grey,), eval_transform=(grey,),
        optimizer=SGD(learning_rate=0.1), batch_size=8, duration=epochs(1),
    )
"""


def test_the_recipe_gets_what_follows_the_colon(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    found = command(f"--config={file}:seven77")
    assert found.config.data.workers == 7
    assert found.workdir == Path("runs/mine-seven77")
    found = command("--config", f"{file}", "--config.data.workers=1")
    assert found.config.data.workers == 1
    assert found.workdir == Path("runs/mine-digits")


@pytest.mark.parametrize(
    ("argv", "workdir", "fresh"),
    [
        ([], "runs/lenet5-digits", False),
        (["--workdir=a/b"], "a/b", False),
        (["--workdir", "a b"], "a b", False),
        (["-workdir", "x", "--fresh"], "x", True),
        (["--fresh"], "runs/lenet5-digits", True),
        (["--fresh", "-fresh"], "runs/lenet5-digits", True),
    ],
)
def test_workdir_and_fresh(argv: list[str], workdir: str, fresh: bool) -> None:
    for found in (command(LENET, *argv), command(*argv, LENET)):
        assert (found.workdir, found.fresh) == (Path(workdir), fresh)


# Overrides


OVERRIDES: list[Any] = [
    (LENET, "batch_size", "17", 17),
    (LENET, "batch_size", "1e3", 1000),
    (LENET, "batch_size", "48.0", 48),
    (LENET, "seed", "4294967295", 2**32 - 1),
    (LENET, "optimizer.learning_rate", "3e-4", 3e-4),
    (LENET, "optimizer.learning_rate", "1", 1.0),
    (LENET, "log.tensorboard", "false", False),
    (LENET, "log.tensorboard", "FALSE", False),
    (RESNET, "optimizer.nesterov", "False", False),
    (LENET, "checkpoint.best", "eval/top5", "eval/top5"),
    (LENET, "augment[1].padding", "3", 3),
    (LENET, "augment[1].fill", "127", 127.0),
    (LENET, "augment[2].mean", "(0.25,)", (0.25,)),
    (LENET, "augment[2].mean", "[0.25]", (0.25,)),
    (LENET, "augment[2].mean", "0.1, 1, 0", (0.1, 1.0, 0.0)),
    (LENET, "eval_transform[1].std", "(0.1, 0.2, 0.3)", (0.1, 0.2, 0.3)),
    (LENET, "duration", "20 epochs", epochs(20)),
    (LENET, "duration", "500 steps", steps(500)),
    (LENET, "evaluation.every", "10%", fraction(0.1)),
    (LENET, "schedule.warmup", "1e3 examples", examples(1000)),
    (LENET, "layer_decay", "0.5", 0.5),  # None in the recipe
    (LENET, "layer_decay", "1", 1.0),
    (LENET, "freeze", "^conv1/", "^conv1/"),
    (LENET, "devices", "1", 1),
    (LENET, "data.threads", "4", 4),
    (RESNET, "model.stem", "imagenet", "imagenet"),
    (RESNET, "model.stem", "None", None),  # "small" in the recipe
    (LENET, "model.dtype", "bfloat16", "bfloat16"),
    (LENET, "augment[1].mode", "edge", "edge"),
]


@pytest.mark.parametrize(("recipe", "path", "text", "value"), OVERRIDES)
def test_an_override_changes_its_option_alone(
    recipe: str, path: str, text: str, value: Any
) -> None:
    before, after = command(recipe).config, command(recipe, f"--config.{path}={text}")
    found = option(after.config, path)
    assert found == value and type(found) is type(value)
    if isinstance(value, tuple):
        assert {type(element) for element in found} == {float}
    was, now = config_lib.options(before), config_lib.options(after.config)
    assert was.keys() == now.keys()
    # Alone, though these recipes normalise training and test images by one and the same node.
    assert {name for name in was if was[name][1] != now[name][1]} == {path}


def test_no_node_is_shared_after_copying() -> None:
    config = load_recipe("configs/lenet5.py", "")
    config.eval_transform = (*config.eval_transform[:-1], config.augment[-1])
    copy = unshared(config)
    assert copy == config
    nodes = [node for _, node in config_lib.nodes(copy)]
    assert len({id(node) for node in nodes}) == len(nodes)
    assert not {id(node) for node in nodes} & {
        id(node) for _, node in config_lib.nodes(config)
    }


@pytest.mark.parametrize(
    ("path", "word", "value"),
    [
        ("duration", "20 epochs", epochs(20)),
        ("ema", "None", None),
        ("log.tensorboard", "false", False),
        ("seed", "4", 4),
    ],
)
def test_a_value_may_be_a_word_of_its_own(path: str, word: str, value: Any) -> None:
    config = command(LENET, f"--config.{path}", word, "--fresh").config
    assert option(config, path) == value
    assert command(LENET, f"-config.{path}={word}").config == config


def test_a_word_that_begins_with_a_single_dash_is_a_value() -> None:
    assert "not -3" in sentence(LENET, "--config.batch_size", "-3")


@pytest.mark.parametrize("argv", [["--config.seed=4"], ["--config.seed", "4"]])
def test_an_override_may_stand_before_the_recipe(argv: list[str]) -> None:
    assert command(*argv, LENET).config.seed == 4


@pytest.mark.parametrize(
    ("first", "last", "value"),
    [("3", "4", 4), ("3", "None", None), ("None", "3", 3), ("None", "none", None)],
)
def test_the_last_of_two_values_counts(first: str, last: str, value: Any) -> None:
    argv = [f"--config.precise_bn={first}", f"--config.precise_bn={last}"]
    assert command(LENET, *argv).config.precise_bn == value
    assert command(argv[0], LENET, argv[1]).config.precise_bn == value


# Kinds


def test_a_kind_is_chosen_by_its_name_and_keeps_what_the_recipe_has_set() -> None:
    config = command(
        LENET, "--config.optimizer=LAMB", "--config.optimizer.weight_decay=0.5"
    ).config
    before = command(LENET).config.optimizer
    assert config.optimizer == LAMB(
        learning_rate=before.learning_rate, weight_decay=0.5
    )
    config = command(LENET, "--config.schedule=Linear").config
    assert config.schedule == Linear(warmup=command(LENET).config.schedule.warmup)


@pytest.mark.parametrize("inner_first", [False, True])
def test_a_kind_within_a_kind_is_chosen_in_either_order(
    tmp_path: Path, inner_first: bool
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)  # on digits, which have no canvas, whatever it is asked for
    argv = ["--config.data=ImageFolder", "--config.data.canvas=Letterbox"]
    argv = argv[::-1] if inner_first else argv
    found = command(f"--config={file}", *argv, "--config.data.path=photos").config.data
    assert isinstance(found, ImageFolder) and found.path == "photos"
    assert type(found.canvas) is Letterbox


def test_a_kind_where_there_was_none_and_none_where_there_was_one() -> None:
    assert command(LENET).config.clip is None
    config = command(LENET, "--config.clip=ClipNorm", "--config.ema=None").config
    assert config.clip == ClipNorm() and config.ema is None
    config = command(
        LENET, "--config.clip=adaptiveclip", "--config.clip.clipping=0.02"
    ).config
    assert config.clip == AdaptiveClip(clipping=0.02)
    smoothing = command(LENET).config.loss.label_smoothing
    loss = command(LENET, "--config.loss=Focal").config.loss
    assert loss == Focal(label_smoothing=smoothing)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimizer=LAMP", ["'LAMP'", "Did you mean 'LAMB'?", "AdamW"]),
        ("--config.optimizer=None", ["'None' none of its kinds"]),
        ("--config.clip=2", ["'2' none of its kinds", "ClipNorm, ", "None"]),
        (
            "--config.clip=ClipValue",
            ["clip=ClipValue needs max_value: give --config.clip.max_value="],
        ),
        (
            "--config.distill=Distillation",
            ["needs teacher: give --config.distill.teacher="],
        ),
        ("--config.optimizer=Optax", ["needs direction", "in the recipe"]),
        ("--config.schedule=Piecewise", ["needs points", "in the recipe"]),
        (
            "--config.distill.teacher=runs/big",
            ["config.distill is None", "first --config.distill=Distillation."],
        ),
        (
            "--config.clip.max_value=2",
            ["config.clip is None", "first --config.clip=ClipValue."],
        ),
        (
            "--config.schedule.period=2 epochs",
            ["config.schedule is WarmupCosine", "=CosineRestarts", "Exponential have"],
        ),
        ("--config.augment=ClipNorm", ["options of its own", "edit the recipe"]),
    ],
)
def test_a_kind_that_cannot_be_chosen(argument: str, words: list[str]) -> None:
    said = sentence(LENET, argument)
    for word in words:
        assert word in said


KINDS: list[tuple[list[str], str, Any]] = [
    (["clip=ClipValue", "clip.max_value=0.5"], "clip", ClipValue(max_value=0.5)),
    (["clip.max_value=0.5", "clip=ClipValue"], "clip", ClipValue(max_value=0.5)),
    # The last choice counts.
    (
        ["clip=ClipNorm", "clip=clipvalue", "clip.max_value=3"],
        "clip",
        ClipValue(max_value=3.0),
    ),
    (["clip=ClipValue", "clip=None"], "clip", None),
    (["ema.decay=0.9", "ema=None"], "ema", None),
    (["ema=None", "ema=EMA", "ema.decay=0.9"], "ema", EMA(decay=0.9)),
    (
        ["distill=Distillation", "distill.teacher=runs/big", "distill.alpha=0.5"],
        "distill",
        Distillation(teacher="runs/big", alpha=0.5),
    ),
    (["schedule=Step", "schedule.period=2 epochs"], "schedule", Step(period=epochs(2))),
    (
        ["schedule.decay=0.9", "schedule=Exponential", "schedule.period=3 steps"],
        "schedule",
        Exponential(period=steps(3), decay=0.9),
    ),
    (
        ["schedule=MultiStep", "schedule.milestones=('30 epochs', '5 steps')"],
        "schedule",
        MultiStep(milestones=(epochs(30), steps(5))),
    ),
    (["eval_views=FiveCrops", "eval_views.size=24"], "eval_views", FiveCrops(size=24)),
]


@pytest.mark.parametrize(("choice", "path", "made"), KINDS, ids=str)
def test_a_kind_that_needs_options_gets_them_from_the_same_command(
    choice: list[str], path: str, made: Any
) -> None:
    found = getattr(command(LENET, *(f"--config.{o}" for o in choice)).config, path)
    if path == "schedule":  # the recipe's warm-up is kept
        made = dataclasses.replace(made, warmup=command(LENET).config.schedule.warmup)
    assert found == made


def test_a_kind_keeps_only_what_it_accepts() -> None:
    assert command(LENET).config.schedule.warmup.value > 0
    found = command(LENET, "--config.schedule=OneCycle").config.schedule
    assert found == OneCycle()
    every = "--config.schedule.every=epoch"
    found = command(LENET, "--config.schedule=OneCycle", every).config.schedule
    assert found == OneCycle(every="epoch")
    # But what is typed is not left out.
    said = sentence(
        LENET, "--config.schedule=OneCycle", "--config.schedule.warmup=2 steps"
    )
    assert "must be 0 steps with OneCycle" in said


def test_a_kind_keeps_the_rest_of_what_the_recipe_has_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    schedule = "schedule=WarmupCosine(start=0.1, warmup=epochs(1), end=0.02)"
    text = RECIPE.replace("batch_size=8", f"batch_size=8, {schedule}")
    file.write_text(text.replace("import SGD", "import SGD, WarmupCosine"))
    recipe = f"--config={file}"
    found = command(recipe, "--config.schedule=OneCycle").config.schedule
    assert found == OneCycle(start=0.1, end=0.02)
    # What does not go with the new kind's defaults is said, or goes with what is typed.
    file.write_text(
        file.read_text()
        .replace("SGD(learning_rate=0.1)", "AdamW(learning_rate=0.1, weight_decay=0.5)")
        .replace("import SGD", "import AdamW")
    )
    assert "decay" in sentence(recipe, "--config.optimizer=SGD")
    argv = [recipe, "--config.optimizer=SGD", "--config.optimizer.decay=l2"]
    assert command(*argv).config.optimizer.weight_decay == 0.5
    file.write_text(file.read_text().replace("start=0.1", "start=2.25"))
    assert "must lie in 0..1" in sentence(recipe, "--config.schedule=OneCycle")


def test_none_is_no_misspelling() -> None:
    assert "Did you mean" not in sentence(LENET, "--config.optimizer=None")


STAGED = RECIPE.replace(
    "batch_size=8",
    "batch_size=8, freeze=(Freeze(pattern='a'), Freeze(pattern='b')), "
    "groups=(Group(pattern='c'),)",
).replace("import SGD", "import SGD, Freeze, Group")


@pytest.mark.parametrize(
    ("argument", "freeze", "groups"),
    [
        ("freeze=None", None, 1),
        ("freeze=none", None, 1),
        ("freeze=Conv", "Conv", 1),
        ("freeze=()", (), 1),
        ("groups=()", 2, 0),
        ("freeze[1].pattern=x", 2, 1),
    ],
)
def test_a_tuple_of_parts_is_replaced_by_what_has_none(
    argument: str, freeze: Any, groups: int, tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(STAGED)
    config = command(f"--config={file}", f"--config.{argument}").config
    if freeze == 2:
        last = "x" if "pattern" in argument else "b"
        freeze = (Freeze(pattern="a"), Freeze(pattern=last))
    assert config.freeze == freeze
    assert config.groups == (Group(pattern="c"),) * groups
    said = sentence(f"--config={file}", "--config.groups=None")
    assert "config.groups is a part of the recipe" in said
    assert "in the recipe; '()'" in sentence(LENET, "--config.groups=('fc',)")


def test_a_dry_run_is_asked_for() -> None:
    assert command(LENET, "--dry_run").dry_run
    assert not command(LENET).dry_run


# Help


def test_help_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    for argument in ("--help", "-h", "-help"):
        assert flags.parse([argument]) is None
        text = capsys.readouterr().out
        for flag in ("--config FILE", "--workdir DIR", "--fresh", "--config.OPTION"):
            assert flag in text


@pytest.mark.parametrize("recipe", [LENET, RESNET])
def test_help_lists_every_option_with_its_value_and_meaning(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flags.parse([recipe, "--config.batch_size=17", "--help"]) is None
    lines = capsys.readouterr().out.splitlines()
    config = command(recipe, "--config.batch_size=17").config
    found = config_lib.options(config)
    listed = {}
    for line, below in itertools.pairwise(lines):
        if match := re.fullmatch(r"  --config\.([^=]+)=(.*)  \((.+)\)", line):
            listed[match[1]] = (match[2], match[3], below.strip())
    assert set(listed) == set(found)
    for path, (owner, _) in found.items():
        assert listed[path][2] == meaning(type(owner), path.rpartition(".")[2])
    assert listed["batch_size"][:2] == ("17", "int of 1 or more")
    assert listed["layer_decay"][1] == "float in 0..1, above 0, or None"
    assert listed["head_rate"][1] == "float in 0..1000000, above 0, below 1000000"
    assert listed["seed"][1] == "int in 0..4294967295"
    assert listed["devices"][1] == "int of 1 or more, or None"
    assert listed["checkpoint.every"][:2] == ('"1 epochs"', "Duration")
    assert listed["model.stem"][1] == "'imagenet' or 'small' or None"
    assert "Trains the recipe" in "\n".join(lines)


@pytest.mark.parametrize("recipe", [LENET, RESNET])
def test_help_shows_values_that_can_be_typed_back(
    recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags.parse([recipe, "--help"])
    shown = re.findall(
        r"  --config\.([^=]+)=(.*)  \(.*\)\n",
        capsys.readouterr().out,
    )
    config = command(recipe).config
    assert [path for path, _ in shown] == list(config_lib.options(config))
    # A shell takes the quotes away.
    argv = [
        arg for path, value in shown for arg in shlex.split(f"--config.{path}={value}")
    ]
    other = RESNET if recipe == LENET else LENET
    assert len(argv) == len(shown)
    assert command(recipe, *argv).config == config
    assert command(other).config != config


def test_help_lists_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert flags.parse([LENET, "--help"]) is None
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    clip = next(i for i, line in enumerate(lines) if line.startswith("--config.clip="))
    assert lines[clip] == "--config.clip=None  (Clip or None)"
    assert lines[clip + 2] == "kinds: ClipNorm, ClipValue, AdaptiveClip, None"
    for path, kinds in (
        ("optimizer", {"AdamW", "LAMB", "Muon"}),
        ("schedule", {"OneCycle", "Piecewise"}),
        ("data", {"Cifar10", "ImageFolder"}),
    ):
        kind = type(getattr(command(LENET).config, path)).__name__
        start = f"{path}: {kind}. "
        place = next(i for i, line in enumerate(lines) if line.startswith(start))
        listed = lines[place + 1]
        assert listed.startswith("kinds: ") and f"--config.{path}=KIND" in listed
        names = set(listed.removeprefix("kinds: ").partition(" (")[0].split(", "))
        assert kinds | {kind} <= names


def test_help_after_a_choice_lists_what_is_still_to_be_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert flags.parse([LENET, "--config.clip=ClipValue", "--help"]) is None
    text = capsys.readouterr().out
    assert "  --config.clip.max_value=...  (float above 0)\n" in text
    assert meaning(ClipValue, "max_value") in text
    choice = [LENET, "--config.schedule=MultiStep", "--help"]
    milestones = "--config.schedule.milestones=('2 epochs', '3 steps')"
    assert flags.parse([*choice, milestones]) is None
    (shown,) = re.findall(r"  (--config\S+milestones=.*)  \(", capsys.readouterr().out)
    assert shlex.split(shown) == [milestones]  # as it was typed


@pytest.mark.parametrize(
    "argument", ["--fresh", "-fresh", "--dry_run", "--workdir=x", "--workdir"]
)
def test_a_command_that_does_not_train_refuses_the_flags_of_training(
    argument: str,
) -> None:
    with pytest.raises(UserError, match=r"^--\w+ is a flag of jaxcls\.train: see"):
        flags.parse([LENET, argument], flags.OF_RECIPE)
    assert flags.parse([LENET, "--config.seed=3"], flags.OF_RECIPE) is not None
    with pytest.raises(UserError) as error:
        flags.parse([LENET, "--frsh"], flags.OF_RECIPE)
    assert "Did you mean" not in str(error.value)


# Mistakes


MISTAKES: list[tuple[list[str], list[str]]] = [
    ([], ["no recipe", "--config FILE", "configs/lenet5.py"]),
    (["--workdir=x"], ["no recipe"]),
    (["configs/lenet5.py"], ["'configs/lenet5.py' is not a flag"]),
    # The file
    (["--config=configs/lenet.py"], ["configs/lenet.py", "Did you mean", "lenet5.py'"]),
    (["--config=zzz"], ["there is no recipe zzz", "configs/resnet18.py"]),
    (["--config=configs"], ["there is no recipe configs"]),
    (["--config", "--fresh"], ["--config needs a value"]),
    (["--config"], ["--config needs a value"]),
    (["--config="], ["--config needs a value: write --config=VALUE."]),
    (["--config", ""], ["--config needs a value: write --config=VALUE."]),
    ([LENET, RESNET], ["--config is given twice", "lenet5.py'", "resnet18.py'"]),
    ([LENET, LENET], ["--config is given twice"]),
    ([LENET, "--workdir=a", "--workdir=b"], ["--workdir is given twice: 'a' and 'b'"]),
    (["--config=configs/lenet5.py:svhn"], ["unknown dataset 'svhn'", "digits"]),
    (["--config=configs/resnet18.py:digit"], ["'digit'", "Did you mean 'digits'?"]),
    # Names
    ([LENET, "--config.batch_sise=3"], ["'batch_sise'", "Did you mean 'batch_size'?"]),
    (
        [LENET, "--config.learning_rte=3"],
        ["'learning_rte'", "Did you mean 'optimizer.learning_rate'?"],
    ),
    ([LENET, "--config.augment[1].paddin=3"], ["Did you mean 'augment[1].padding'?"]),
    ([LENET, "--config.augment[7].padding=3"], ["augment[7].padding", "augment[1]"]),
    ([LENET, "--config.augment[x].padding=3"], ["augment[x].padding"]),
    ([LENET, "--config.nope=None"], ["no option 'nope'"]),
    (
        [LENET, "--config.layerdecay=None"],
        ["'layerdecay'", "Did you mean 'layer_decay'?"],
    ),
    ([LENET, "--config.batch_size.x=3"], ["no option 'batch_size.x'"]),
    ([LENET, "--config.model=resnet18"], ["config.model ", "options of its own"]),
    ([LENET, "--config.evaluation=5"], ["config.evaluation ", "own", "--help"]),
    ([LENET, "--config.augment[0]=5"], ["config.augment[0] ", "own", "--help"]),
    ([LENET, "--config.augment[7]=5"], ["config.augment[7] ", "--help"]),
    ([LENET, "--config.augment=3"], ["config.augment ", "own", "--help"]),
    ([LENET, "--config.data=None"], ["config.data ", "own", "--help"]),
    ([LENET, "--config.=3"], ["no option ''"]),
    ([LENET, "--config.duration.unit=steps"], ["'duration.unit'", "'duration'"]),
    ([LENET, "--config.duration.value=3"], ["'duration.value'", "'duration'"]),
    ([LENET, "--workdri=3"], ["unknown flag --workdri", "Did you mean 'workdir'?"]),
    ([LENET, "--frsh"], ["unknown flag --frsh", "Did you mean 'fresh'?"]),
    ([LENET, "--conf.batch_size=3"], ["unknown flag --conf.batch_size", "--help"]),
    ([LENET, "--batch_size=3"], ["unknown flag --batch_size"]),
    ([LENET, "stray"], ["'stray' is not a flag", "--config.OPTION=VALUE"]),
    ([LENET, "batch_size=3"], ["'batch_size=3' is not a flag"]),
    ([LENET, "--fresh", "stray"], ["'stray' is not a flag"]),
    ([LENET, "--", "--fresh"], ["'--' is not a flag"]),
    ([LENET, "--workdir"], ["--workdir needs a value"]),
    ([LENET, "--workdir", "--fresh"], ["--workdir needs a value"]),
    ([LENET, "--workdir="], ["--workdir needs a value: write --workdir=VALUE."]),
    ([LENET, "--workdir", ""], ["--workdir needs a value: write --workdir=VALUE."]),
    ([LENET, "--fresh=maybe"], ["--fresh takes no value", "'maybe'"]),
    ([LENET, "--fresh=false"], ["--fresh takes no value", "'false'"]),
    ([LENET, "--fresh", "false"], ["'false' is not a flag"]),
    ([LENET, "--nofresh"], ["unknown flag --nofresh", "Did you mean 'fresh'?"]),
    ([LENET, "--help=true"], ["--help takes no value", "'true'"]),
    ([LENET, "--flagfile=no_such_file"], ["unknown flag --flagfile"]),
    (
        [LENET, "--noconfig.log.tensorboard"],
        ["unknown flag --noconfig.log.tensorboard"],
    ),
    ([LENET, "--config.log.tensorboard"], ["--config.log.tensorboard needs a value"]),
    # Values
    ([LENET, "--config.batch_size=abc"], ["--config.batch_size is 'abc'", "int"]),
    ([LENET, "--config.batch_size=64.5"], ["'64.5'", "expected int"]),
    ([LENET, "--config.batch_size="], ["--config.batch_size is ''", "expected int"]),
    ([LENET, "--config.batch_size=True"], ["'True'", "expected int"]),
    ([LENET, "--config.batch_size=a\nb"], [r"--config.batch_size is 'a\nb'", "int"]),
    ([LENET, "--config.batch_size=it's"], ['--config.batch_size is "it\'s"', "int"]),
    ([LENET, "--config.batch_size=1e400"], ["--config.batch_size is '1e400'", "int"]),
    ([LENET, "--config.batch_size"], ["--config.batch_size needs a value"]),
    ([LENET, "--config.batch_size", "--fresh"], ["--config.batch_size needs a value"]),
    ([LENET, "--config.optimizer.learning_rate=fast"], ["'fast'", "expected float"]),
    ([LENET, "--config.log.tensorboard=maybe"], ["'maybe'", "expected bool"]),
    ([LENET, "--config.log.tensorboard=1"], ["'1'", "expected bool"]),
    (
        [LENET, "--config.layer_decay=big"],
        ["'big'", "expected float in 0..1, above 0, or None."],
    ),
    ([LENET, "--config.devices=all"], ["'all'", "expected int of 1 or more, or None."]),
    ([LENET, "--config.augment[1].padding=x"], ["augment[1].padding", "'x'", "int"]),
    ([LENET, "--config.augment[2].mean=(0.8"], ["augment[2].mean", "(0.8", "tuple"]),
    (
        [LENET, '--config.augment[2].mean=("a",)'],
        ["augment[2].mean", '("a",)', "tuple"],
    ),
    ([LENET, "--config.augment[2].mean=0.5"], ["augment[2].mean", "'0.5'", "tuple"]),
    ([LENET, "--config.augment[2].mean={[]: 1}"], ["augment[2].mean", "{[]", "tuple"]),
    ([LENET, "--config.duration=20"], ["--config.duration", "'20'"]),
    ([LENET, "--config.duration=20 parsecs"], ["unknown unit 'parsecs'", "epochs"]),
    ([LENET, "--config.duration=20 epcohs"], ["Did you mean 'epochs'?"]),
    ([LENET, "--config.duration=-1 epochs"], ["0 or more", "-1 epochs"]),
    ([LENET, "--config.batch_size=None"], ["--config.batch_size is 'None'", "int"]),
    ([LENET, "--config.duration=None"], ["--config.duration: 'None' is not"]),
    (
        [LENET, "--config.model.name=None"],
        ["unknown model 'None'", "python -m jaxcls.models"],
    ),
    (
        [LENET, "--config.model.dtype=float16"],
        ["'float16' is not one of float32, bfloat16"],
    ),
    # Ranges, from validate()
    ([LENET, "--config.batch_size=0"], ["batch_size must be 1 or more, not 0"]),
    ([LENET, "--config.optimizer.learning_rate=nan"], ["learning_rate", "nan"]),
    ([LENET, "--config.model.name=lenet6"], ["'lenet6'", "Did you mean 'lenet5'?"]),
    ([LENET, "--config.model.width=3"], ["'lenet5' has no option 'width'"]),
    # The first at fault of several
    (
        [LENET, "--config.seed=1", "--config.batch_size=abc", "--config.devices=1"],
        ["--config.batch_size is 'abc'"],
    ),
]


@pytest.mark.parametrize(
    ("argv", "words"), MISTAKES, ids=lambda value: " ".join(value)[:60]
)
def test_a_mistake_is_one_sentence(argv: list[str], words: list[str]) -> None:
    message = sentence(*argv)
    for word in words:
        assert word in message


@pytest.mark.parametrize("value", ["20", "20 parsecs", "-1 epochs", "5 %%"])
def test_a_bad_duration_names_its_option(value: str) -> None:
    # A recipe has six durations.
    message = sentence(LENET, f"--config.evaluation.every={value}")
    assert "evaluation.every" in message


@pytest.mark.parametrize(
    ("path", "choices"),
    [
        ("model.dtype", "float32, bfloat16"),
        ("model.stem", "imagenet, small"),
        ("augment[1].mode", "constant, edge, reflect"),
    ],
)
def test_a_choice_lists_the_others(path: str, choices: str) -> None:
    said = f"--config.{path}: 'qqq' is not one of {choices}."
    assert sentence(LENET, f"--config.{path}=qqq") == said
    last = choices.split(", ")[-1]
    message = sentence(LENET, f"--config.{path}={last}s")
    assert message.endswith(f"{choices}. Did you mean '{last}'?")


# Name -> the text of a recipe, and what is said of it after its path.
BROKEN: dict[str, tuple[str, str]] = {
    "value_error": (
        "def get_config(dataset=''):\n\n    raise ValueError('bad luck')",
        ", line 3: ValueError: bad luck",
    ),
    "wrong_argument": (
        "from jaxcls.data import Digits\n"
        "def get_config(dataset=''):\n    return Digits(root=3)",
        ", line 3: TypeError: .*'root'",
    ),
    "two_lines": (
        "def get_config(dataset=''):\n    raise ValueError('one\\ntwo')",
        ", line 2: ValueError: one two",
    ),
    "zero_division": (
        "def get_config(dataset=''):\n    return 1 / 0",
        ", line 2: ZeroDivisionError: .*zero",
    ),
    "on_import": ("x = []\nx[1]", ", line 2: IndexError: .*"),
    "key_error": (
        "def get_config(dataset=''):\n    return {}['cifar']",
        ", line 2: KeyError: 'cifar'",
    ),
    "import_error": (
        "import no_such_module",
        ", line 1: ModuleNotFoundError: .*no_such_module.*",
    ),
    # The line of the recipe, not of the library that it calls.
    "deep_inside": (
        "import json\n\ndef get_config(dataset=''):\n    return json.loads('[')",
        ", line 4: JSONDecodeError: .*",
    ),
    "missing_file": (
        "def get_config(dataset=''):\n    open('no_such_file')",
        ", line 2: FileNotFoundError: .*'no_such_file'",
    ),
    "syntax_error": ("def get_config(:\n    pass", r": SyntaxError: .*line 1\)"),
    "no_get_config": ("x = 1", ": AttributeError: .*'get_config'"),
    "no_dataset": ("def get_config():\n    pass", ": TypeError: .*argument.*"),
    "exit": (
        "import sys\ndef get_config(dataset=''):\n    sys.exit('no images')",
        ", line 3: SystemExit: no images",
    ),
    "exit_on_import": ("raise SystemExit(3)", ", line 1: SystemExit: 3"),
    "assertion": (
        "def get_config(dataset=''):\n    assert not dataset, 'which one?'",
        r", line 2: AssertionError: which one\?",
    ),
}


@pytest.mark.parametrize("override", [[], ["--config.batch_size=3"]])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recipe_is_one_line(
    case: str, override: list[str], tmp_path: Path
) -> None:
    text, said = BROKEN[case]
    file = tmp_path / f"{case}.py"
    file.write_text(text + "\n")
    message = line(*override, f"--config={file}:x")
    assert re.fullmatch(rf"the recipe {re.escape(str(file))} fails{said}", message)


def test_a_broken_recipe_named_from_here_shows_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(BROKEN["value_error"][0])
    monkeypatch.chdir(tmp_path)
    for path in ("mine.py", "./mine.py"):
        said = f"the recipe {path} fails, line 3: ValueError: bad luck"
        assert line(f"--config={path}") == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("return {'a': 1}", "{file} must return a jaxcls.config.Config, not dict."),
        ("pass", "{file} must return a jaxcls.config.Config, not NoneType."),
        ("raise UserError('no images today.')", "no images today."),
    ],
)
@pytest.mark.parametrize("override", [[], ["--config.batch_size=3"]])
def test_a_recipe_that_gives_no_config_is_one_sentence(
    text: str, said: str, override: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from jaxcls.errors import UserError\n"
        f"def get_config(dataset=''):\n    {text}\n"
    )
    message = sentence(f"--config={file}", *override)
    assert message.removeprefix("get_config of ") == said.format(file=file)


def test_a_file_that_is_not_python_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(RECIPE)
    said = f"the recipe {file} is not a Python file (.py)."
    assert sentence(f"--config={file}") == said


OWN = """
import dataclasses
from jaxcls import augment, config, data, optim

@dataclasses.dataclass(kw_only=True)
class Mine({base}):
    def source(self, split):
        return data.Digits().source(split)
    def __call__(self, rng, images, targets):
        return images, targets
"""


@pytest.mark.parametrize(
    ("base", "made", "place"),
    [
        ("data.Digits", "data=Mine()", "config.data"),
        ("augment.Transform", "augment=(grey, Mine())", "config.augment[1]"),
        ("optim.SGD", "optimizer=Mine(learning_rate=0.1)", "config.optimizer"),
    ],
)
@pytest.mark.parametrize("override", [[], ["--config.batch_size=3"]])
def test_a_class_of_the_recipe_itself_is_one_sentence(
    base: str, made: str, place: str, override: list[str], tmp_path: Path
) -> None:
    """A checkpoint of it could not be read without the recipe."""
    usual = {
        "data": "data=Digits(workers=len(dataset))",
        "augment": "augment=(grey,)",
        "optimizer": "optimizer=SGD(learning_rate=0.1)",
    }[made.partition("=")[0]]
    assert RECIPE.count(f" {usual}") == 1
    file = tmp_path / "mine.py"
    text = OWN.format(base=base) + RECIPE.replace(f" {usual}", f" {made}")
    file.write_text(text)
    message = sentence(f"--config={file}:x", *override)
    said = f"Mine ({place}) is defined in the recipe {file}, where no checkpoint "
    assert message.startswith(said)
    # What the recipe defines and does not use is its own affair.
    file.write_text(OWN.format(base=base) + RECIPE)
    assert command(f"--config={file}:x").config.data.workers == 1
