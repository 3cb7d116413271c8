"""What a person can get wrong: each ends with code 2 and a sentence that names the value and
the way out, before anything is compiled, and loses nothing."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from jaxcls import evaluate as evaluate_command
from jaxcls import train as train_command
from jaxcls.config import to_dict
from jaxcls.data import CenterSquare, ImageFolder
from jaxcls.errors import UserError
from jaxcls.training import run_folder
from tests import commands
from tests.recipes.narrow import get_config

RECIPE = str(commands.RECIPES / "narrow.py")
TINY = str(commands.RECIPES / "tiny.py")  # where a run is made


def fails(
    capsys: pytest.CaptureFixture[str],
    workdir: Path | str,
    *arguments: str,
    recipe: str = RECIPE,
) -> str:
    """Runs the train command, which must refuse; returns what it says."""
    code = train_command.main(
        [
            "--config",
            recipe,
            "--config.devices=1",
            "--workdir",
            str(workdir),
            *arguments,
        ]
    )
    output = capsys.readouterr()
    assert code == 2
    assert output.err.startswith("error: ")
    assert "Traceback" not in output.err
    assert "compiled" not in output.out
    return output.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.optimizer.learning_rat=1"], ["learning_rat", "Did you mean"]),
        (["--config.batch_size=many"], ["batch_size", "many", "int"]),
        (["--config.batch_size=50", "--config.devices=8"], ["50", "8", "48 or 56"]),
        (["--config.batch_size=2000"], ["2000", "1437"]),
        (["--config.schedule.warmup=80 steps"], ["80 steps", "40"]),
        (["--config.model.name=resnet81"], ["resnet81", "Did you mean 'resnet18'"]),
        (["--config.model.bn_group=7"], ["bn_group 7", "48"]),
        (["--config.model.name=lenet5"], ["lenet5", "stem"]),
        (["--config.devices=9"], ["9", "8"]),
        (["--config.duration=10 epoch s"], ["10 epoch s", "20 epochs"]),
        (["--config.checkpoint.best=eval/top2"], ["eval/top2", "eval/top1"]),
        (["--config.data.workers=-1"], ["data.workers", "-1"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_wrong_config(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    said: list[str],
) -> None:
    message = fails(capsys, tmp_path / "run", *arguments)
    for part in said:
        assert part in message
    assert not list(tmp_path.rglob("checkpoints/*"))


def test_workdir_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    message = fails(capsys, tmp_path / "file" / "run")
    assert str(tmp_path / "file" / "run") in message
    assert "--workdir" in message


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ten steps."""
    workdir = tmp_path_factory.mktemp("finished")
    code = train_command.main(
        [
            "--config",
            TINY,
            "--config.duration=10 steps",
            "--workdir",
            str(workdir),
        ]
    )
    assert code == 0
    return workdir


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


TEN = "--config.duration=10 steps"


def test_changed_config_shows_the_difference(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    before = commands.metrics(run)
    message = fails(
        capsys, run, TEN, "--config.optimizer.learning_rate=0.1", recipe=TINY
    )
    assert "optimizer.learning_rate: 0.05 -> 0.1" in message
    assert "--fresh" in message
    assert commands.metrics(run) == before
    # What does not change the result may change.
    code = train_command.main(
        [
            *("--config", TINY, "--workdir", str(run), TEN),
            *("--config.data.workers=2", "--config.devices=2"),
            "--config.log.every=1 steps",
        ]
    )
    assert code == 0


def test_checkpoint_of_another_network(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    # As if the code of the network had changed under an unchanged config.
    metadata = run / "checkpoints" / "10" / "run" / "metadata"
    saved = json.loads(metadata.read_text())
    saved["config"] |= {"model": to_dict(get_config())["model"]}
    metadata.write_text(json.dumps(saved))
    (run / "metrics.jsonl").unlink()  # or the run would just be complete
    network = ["name=resnet_narrow", "stem=small", "width=8"]
    options = [f"--config.model.{option}" for option in network]
    message = fails(capsys, run, TEN, *options, recipe=TINY)
    assert "another network" in message and "params/" in message
    code = evaluate_command.main(["--checkpoint", str(run)])
    assert code == 2
    assert "another network" in capsys.readouterr().err


# Orbax leaves its event loops open where reading fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", ["state", "run", "state/d", "state/_METADATA", "."])
def test_half_deleted_checkpoint(
    capsys: pytest.CaptureFixture[str], run: Path, part: str
) -> None:
    newest = run / "checkpoints" / "10"
    target = newest / part
    if part == ".":
        shutil.rmtree(newest)
        newest.mkdir()
    elif target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    (run / "metrics.jsonl").unlink()
    message = fails(capsys, run, TEN, recipe=TINY)
    assert str(newest) in message
    assert "go back to step 5" in message
    assert evaluate_command.main(["--checkpoint", str(run)]) == 2
    assert str(newest) in capsys.readouterr().err
    # The way out that it names is one.
    shutil.rmtree(newest)
    arguments = ["--config", TINY, "--workdir", str(run), TEN]
    assert train_command.main(arguments) == 0
    assert "continuing at step 5" in capsys.readouterr().out


def test_flipped_bits_in_a_checkpoint_are_noticed(
    capsys: pytest.CaptureFixture[str], run: Path
) -> None:
    """Orbax and TensorStore read changed data without an error."""
    (run / "metrics.jsonl").unlink()
    files = [p for p in run.glob("checkpoints/10/state/**/d/*") if p.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(biggest.read_bytes())
    content[len(content) // 2] ^= 0b100
    biggest.write_bytes(content)
    assert str(run / "checkpoints" / "10") in fails(capsys, run, TEN, recipe=TINY)


def test_nothing_to_evaluate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert evaluate_command.main(["--checkpoint", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def test_second_trainer_in_the_same_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with run_folder.locked(tmp_path, fresh=False):
        assert "another process" in fails(capsys, tmp_path)


def test_one_class(tmp_path: Path) -> None:
    for part in ("train", "val"):
        (tmp_path / "data" / part / "cat").mkdir(parents=True)
        for number in range(9):
            picture = Image.new("RGB", (8, 8), (number, 0, 0))
            picture.save(tmp_path / "data" / part / "cat" / f"{number}.png")
    data = ImageFolder(path=str(tmp_path / "data"), canvas=CenterSquare(size=8))
    config = dataclasses.replace(get_config(), data=data)
    with pytest.raises(UserError, match="one class, 'cat': nothing can be") as caught:
        train_command.train(config, tmp_path / "run")
    assert f"for each class with its images, at {tmp_path}/data." in str(caught.value)
    assert not (tmp_path / "run").exists()
