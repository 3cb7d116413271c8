"""The command line: what it sets, and one sentence for whatever is wrong with it."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcls import config as config_lib
from jaxcls import flags
from jaxcls.config import Config
from jaxcls.duration import epochs, examples, fraction, steps
from jaxcls.errors import UserError


def bug(reason: str) -> pytest.MarkDecorator:
    """A mistake of the program: once it is mended, this mark must go."""
    return pytest.mark.xfail(strict=True, reason=reason)


CHOICE = bug("ml_collections cannot set a Literal")

ROOT = Path(__file__).parent.parent
LENET = "--config=configs/lenet5.py"
RESNET = "--config=configs/resnet18.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes are named relative to the repository, and each is loaded for the first time."""
    monkeypatch.chdir(ROOT)
    # ml_collections loads every recipe into one module, which keeps what the last one left.
    sys.modules.pop("config_config", None)


def command(*argv: str) -> flags.Command:
    parsed = flags.parse(argv)
    assert parsed is not None
    return parsed


def option(config: Config, path: str) -> Any:
    return config_lib.options(config)[path][1]


def sentence(*argv: str) -> str:
    """The message that a bad command line gives: one line that ends like a sentence."""
    with pytest.raises(UserError) as error:
        flags.parse(argv)
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message
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
        (["--fresh=true"], "runs/lenet5-digits", True),
        (["--nofresh"], "runs/lenet5-digits", False),
    ],
)
def test_workdir_and_fresh(argv: list[str], workdir: str, fresh: bool) -> None:
    for found in (command(LENET, *argv), command(*argv, LENET)):
        assert (found.workdir, found.fresh) == (Path(workdir), fresh)


# Overrides


OVERRIDES: list[Any] = [
    (LENET, "batch_size", "17", 17),
    (LENET, "seed", "123456789012", 123456789012),
    (LENET, "optimizer.learning_rate", "3e-4", 3e-4),
    (LENET, "optimizer.learning_rate", "1", 1.0),
    (LENET, "log.tensorboard", "false", False),
    (RESNET, "optimizer.nesterov", "False", False),
    (LENET, "checkpoint.best", "eval/top5", "eval/top5"),
    (LENET, "augment[1].padding", "3", 3),
    (LENET, "augment[1].fill", "127.5", 127.5),
    (LENET, "augment[2].mean", "(0.25,)", (0.25,)),
    (LENET, "eval_transform[1].std", "(0.1, 0.2, 0.3)", (0.1, 0.2, 0.3)),
    (LENET, "duration", "20 epochs", epochs(20)),
    (LENET, "duration", "500 steps", steps(500)),
    (LENET, "evaluation.every", "10%", fraction(0.1)),
    (LENET, "schedule.warmup", "1e3 examples", examples(1000)),
    (LENET, "clip_norm", "1.5", 1.5),  # None in the recipe
    (LENET, "clip_norm", "2", 2.0),
    (LENET, "devices", "1", 1),
    (LENET, "data.threads", "4", 4),
    (LENET, "ema_decay", "None", None),  # 0.99 in the recipe
    (LENET, "ema_decay", "none", None),
    (RESNET, "clip_norm", "None", None),
    pytest.param(RESNET, "model.stem", "imagenet", "imagenet", marks=CHOICE),
    pytest.param(LENET, "model.dtype", "bfloat16", "bfloat16", marks=CHOICE),
    pytest.param(LENET, "augment[1].mode", "edge", "edge", marks=CHOICE),
]


@pytest.mark.parametrize(("recipe", "path", "text", "value"), OVERRIDES)
def test_an_override_changes_its_option_alone(
    recipe: str, path: str, text: str, value: Any
) -> None:
    before, after = command(recipe).config, command(recipe, f"--config.{path}={text}")
    found = option(after.config, path)
    assert found == value and type(found) is type(value)
    assert option(before, path) != value or path == "optimizer.nesterov"
    was, now = config_lib.options(before), config_lib.options(after.config)
    changed = {name for name in was if was[name][1] != now[name][1]}
    # Recipes may normalise training and test images by one and the same node.
    twin = {
        "augment[2].mean": "eval_transform[1].mean",
        "eval_transform[1].std": "augment[2].std",
    }
    assert changed in ({path}, {path, twin.get(path, path)})


def test_a_value_may_be_a_word_of_its_own() -> None:
    config = command(LENET, "--config.duration", "20 epochs").config
    assert config.duration == epochs(20)


@bug("overrides are applied before there is a recipe")
@pytest.mark.parametrize("argv", [["--config.seed=4"], ["--config.seed", "4"]])
def test_an_override_may_stand_before_the_recipe(argv: list[str]) -> None:
    assert command(*argv, LENET).config.seed == 4


def test_flags_without_a_value_turn_on_and_off() -> None:
    assert command(LENET, "--config.log.tensorboard").config.log.tensorboard is True
    assert command(LENET, "--noconfig.log.tensorboard").config.log.tensorboard is False


def test_the_last_of_two_values_counts() -> None:
    argv = ["--config.clip_norm=3", "--config.clip_norm=4"]
    assert command(LENET, *argv).config.clip_norm == 4
    argv = ["--config.clip_norm=3", "--config.clip_norm=None"]
    assert command(LENET, *argv).config.clip_norm is None


@bug("None is always set last")
def test_none_does_not_count_after_a_later_value() -> None:
    argv = ["--config.clip_norm=None", "--config.clip_norm=3"]
    assert command(LENET, *argv).config.clip_norm == 3


@bug("only =None is understood")
def test_none_may_be_a_word_of_its_own() -> None:
    assert command(LENET, "--config.ema_decay", "None").config.ema_decay is None


@bug("the config is of the last, the folder of the first")
def test_two_recipes_are_not_mixed() -> None:
    """Either the last counts, for the folder too, or it is an error."""
    try:
        found = command(LENET, RESNET)
    except UserError:
        return
    assert found.workdir == Path(f"runs/{found.config.model.name}-digits")


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
        assert listed[path][2] == flags.meaning(type(owner), path.rpartition(".")[2])
    assert listed["batch_size"][:2] == ("17", "int")
    assert listed["clip_norm"][1] == "float or None"
    assert listed["checkpoint.every"][:2] == ('"1 epochs"', "duration")
    assert listed["model.stem"][1] == "'imagenet' or 'small' or None"
    assert "Trains the recipe" in "\n".join(lines)


def test_help_shows_values_that_can_be_typed_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags.parse([LENET, "--help"])
    shown = re.findall(
        r"  --config\.([^=]+)=(.*)  \((?:.*duration|int|float|bool|a tuple.*)\)\n",
        capsys.readouterr().out,
    )
    assert len(shown) > 20
    argv = [f"--config.{path}={value.strip(chr(34))}" for path, value in shown]
    assert command(LENET, *argv).config == command(LENET).config


# Mistakes


MISTAKES: list[tuple[list[str], list[str]]] = [
    ([], ["no recipe", "--config FILE", "configs/lenet5.py"]),
    (["--workdir=x"], ["no recipe"]),
    (["configs/lenet5.py"], ["no recipe"]),
    # The file
    (["--config=configs/lenet.py"], ["configs/lenet.py", "Did you mean", "lenet5.py'"]),
    (["--config=zzz"], ["there is no recipe zzz", "configs/resnet18.py"]),
    (["--config=configs"], ["there is no recipe configs"]),
    (["--config", "--fresh"], ["there is no recipe --fresh"]),
    (["--config=configs/lenet5.py:mnist"], ["unknown dataset 'mnist'", "digits"]),
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
    ([LENET, "--config.emadecay=None"], ["'emadecay'", "Did you mean 'ema_decay'?"]),
    ([LENET, "--config.batch_size.x=3"], ["no option 'batch_size.x'"]),
    ([LENET, "--config.model=resnet18"], ["--config.model", "options of its own"]),
    ([LENET, "--config.evaluation=5"], ["--config.evaluation", "--help"]),
    ([LENET, "--config.augment[0]=5"], ["--config.augment[0]", "--help"]),
    ([LENET, "--workdri=3"], ["unknown flag --workdri", "Did you mean 'workdir'?"]),
    ([LENET, "--frsh"], ["unknown flag --frsh", "Did you mean 'fresh'?"]),
    ([LENET, "--conf.batch_size=3"], ["unknown flag --conf.batch_size", "--help"]),
    ([LENET, "--batch_size=3"], ["unknown flag --batch_size"]),
    ([LENET, "stray"], ["'stray' is not a flag", "--config.OPTION=VALUE"]),
    ([LENET, "batch_size=3"], ["'batch_size=3' is not a flag"]),
    ([LENET, "--fresh", "stray"], ["'stray' is not a flag"]),
    ([LENET, "--", "--fresh"], ["'--fresh' is not a flag"]),
    ([LENET, "--workdir"], ["--workdir"]),
    ([LENET, "--fresh=maybe"], ["--fresh=maybe"]),
    # Values
    ([LENET, "--config.batch_size=abc"], ["--config.batch_size is 'abc'", "int"]),
    ([LENET, "--config.batch_size=64.5"], ["'64.5'", "expected int"]),
    ([LENET, "--config.batch_size="], ["--config.batch_size is ''", "expected int"]),
    ([LENET, "--config.batch_size=True"], ["'True'", "expected int"]),
    ([LENET, "--config.batch_size"], ["--config.batch_size"]),
    ([LENET, "--config.optimizer.learning_rate=fast"], ["'fast'", "expected float"]),
    ([LENET, "--config.log.tensorboard=maybe"], ["'maybe'", "expected bool"]),
    ([LENET, "--config.clip_norm=big"], ["'big'", "expected float or None"]),
    ([LENET, "--config.devices=all"], ["'all'", "expected int or None"]),
    ([LENET, "--config.augment[1].padding=x"], ["augment[1].padding", "'x'", "int"]),
    ([LENET, "--config.augment[2].mean=(0.8"], ["augment[2].mean", "(0.8", "tuple"]),
    ([LENET, '--config.augment[2].mean=("a",)'], ["augment[2].mean", "'a'", "tuple"]),
    ([LENET, "--config.augment=3"], ["config.augment", "3", "tuple"]),
    ([LENET, "--config.duration=20"], ["--config.duration", "'20'"]),
    ([LENET, "--config.duration=20 parsecs"], ["unknown unit 'parsecs'", "epochs"]),
    ([LENET, "--config.duration=20 epcohs"], ["Did you mean 'epochs'?"]),
    ([LENET, "--config.duration=-1 epochs"], ["0 or more", "-1 epochs"]),
    ([LENET, "--config.batch_size=None"], ["--config.batch_size is 'None'", "int"]),
    ([LENET, "--config.duration=None"], ["--config.duration is 'None'"]),
    ([LENET, "--config.model.name=None"], ["--config.model.name is 'None'", "str"]),
    ([LENET, "--config.data=None"], ["'data'"]),
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


@bug("ml_collections sets any attribute, without a check")
@pytest.mark.parametrize(
    "argument", ["--config.duration.unit=parsecs", "--config.duration.value=-3"]
)
def test_a_duration_is_only_set_whole(argument: str) -> None:
    sentence(LENET, argument)


@CHOICE
@pytest.mark.parametrize("path", ["model.dtype", "augment[1].mode", "model.stem"])
def test_a_choice_lists_the_others(path: str) -> None:
    message = sentence(LENET, f"--config.{path}=wrap")
    assert path in message and "wrap" in message
    for choice in {"model.dtype": ["bfloat16"], "model.stem": ["small"]}.get(
        path, ["constant", "reflect"]
    ):
        assert choice in message


@bug("other exceptions get through")
@pytest.mark.parametrize("argument", ["--config.=3", "--flagfile=no_such_file"])
def test_odd_arguments_are_one_sentence(argument: str) -> None:
    sentence(LENET, argument)


BROKEN: dict[str, tuple[str, list[str]]] = {
    "returns_dict": ("def get_config(dataset=''):\n    return {'a': 1}", ["dict"]),
    "returns_none": ("def get_config(dataset=''):\n    pass", ["NoneType"]),
    "user_error": (
        "from jaxcls.errors import UserError\n"
        "def get_config(dataset=''):\n    raise UserError('no images today.')",
        ["no images today."],
    ),
    "value_error": (
        "def get_config(dataset=''):\n\n    raise ValueError('bad luck')",
        ["{file}", "ValueError: bad luck", "line 3 of {file}"],
    ),
    "wrong_argument": (
        "from jaxcls.data import Digits\n"
        "def get_config(dataset=''):\n    return Digits(root=3)",
        ["{file}", "TypeError", "root"],
    ),
    "two_lines": (
        "def get_config(dataset=''):\n    raise ValueError('one\\ntwo')",
        ["{file}", "ValueError", "one"],
    ),
    "zero_division": (
        "def get_config(dataset=''):\n    return 1 / 0",
        ["{file}", "ZeroDivisionError", "line 2"],
    ),
    "raises_on_import": ("x = []\nx[1]", ["{file}", "IndexError", "line 2"]),
    "key_error": (
        "def get_config(dataset=''):\n    return {}['cifar']",
        ["{file}", "KeyError", "cifar", "line 2"],
    ),
    "import_error": ("import no_such_module", ["{file}", "no_such_module", "line 1"]),
    "missing_file": (
        "def get_config(dataset=''):\n    open('no_such_file')",
        ["{file}", "no_such_file"],
    ),
    "syntax_error": ("def get_config(:\n    pass", ["{file}", "SyntaxError", "line 1"]),
    "no_get_config": ("x = 1", ["{file}", "get_config"]),
    "assertion": (
        "def get_config(dataset=''):\n    assert dataset, 'which one?'",
        ["{file}", "which one?", "line 2"],
    ),
}


@pytest.mark.filterwarnings("ignore:.*get_config.. returned None")
@pytest.mark.parametrize("override", [[], ["--config.batch_size=3"]])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recipe_is_one_sentence(
    case: str, override: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    good = {"user_error", "value_error", "wrong_argument"}
    if case not in good and not (case.startswith("returns") and not override):
        request.applymarker(bug("only ValueError and TypeError are caught"))
    text, words = BROKEN[case]
    file = tmp_path / f"{case}.py"
    file.write_text(text + "\n")
    message = sentence(f"--config={file}", *override)
    for word in words:
        assert word.format(file=file) in message
