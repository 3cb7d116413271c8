"""Fine-tuning pays: runs that begin with another run's weights, on few images; and rare classes.

tests/references/finetune_study.py shows the same on photographs, which takes longer.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcls.augment import Normalize, RandomCrop, Resize
from jaxcls.checkpoint import checkpoints as checkpoint
from jaxcls.config import Checkpoint, Config, Evaluation, Log
from jaxcls.data import ArraySource, Digits, Sampling
from jaxcls.data.sources import Split
from jaxcls.duration import steps
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import MODELS, Model
from jaxcls.models.resnet import ResNet
from jaxcls.optim import SGD
from jaxcls.probe import probe
from jaxcls.report.writers import read_metrics
from jaxcls.train import train
from tests import commands
from tests.recipes import tiny  # noqa: F401 (registers the network)

# One block of two convolutions.
SHALLOW = "resnet_shallow"
MODELS[SHALLOW] = functools.partial(ResNet, stage_sizes=(1,))

FIRST, OTHER = (0, 1, 2, 3), (4, 5, 6, 7, 8)


@dataclasses.dataclass(kw_only=True)
class SomeDigits(Digits):
    """Some of the ten digits.

    Attributes:
      classes: which.
      images: training images of each, in the order of `classes`; empty for all.
    """

    classes: tuple[int, ...] = ()
    images: tuple[int, ...] = ()

    def source(self, split: Split) -> ArraySource:
        digits = super().source(split)
        ids = [np.flatnonzero(digits.labels == label) for label in self.classes]
        if split == "train" and self.images:
            counted = zip(ids, self.images, strict=True)
            ids = [members[:count] for members, count in counted]
        labels = np.repeat(np.arange(len(ids)), [len(members) for members in ids])
        names = tuple(map(str, self.classes))
        chosen = np.concatenate(ids)
        return ArraySource(f"some-{split}", digits.images[chosen], labels, names)


def config(data: Digits, length: int, *, rate: float = 0.05, **changes: Any) -> Config:
    """Returns a run of a network of three convolutions, evaluated and saved at its end."""
    normalize = Normalize(mean=(0.5,), std=(0.5,))
    made = Config(
        model=Model(name=SHALLOW, stem="small", width=24),
        data=data,
        augment=(RandomCrop(padding=1), normalize),
        eval_transform=(normalize,),
        optimizer=SGD(learning_rate=rate),
        batch_size=24,
        devices=1,
        duration=steps(length),
        evaluation=Evaluation(every=steps(length)),
        checkpoint=Checkpoint(every=steps(length)),
        log=Log(tensorboard=False),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned four of the digits."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    metrics = train(config(SomeDigits(classes=FIRST), 200), workdir).metrics
    assert metrics["eval/top1"] > 0.95
    return workdir


FEW = SomeDigits(classes=OTHER, sampling=Sampling(limit=5))
"""Five images of each digit that the first run has not seen."""


def begins_with(weights: Path) -> Model:
    return Model(
        name=SHALLOW,
        stem="small",
        width=24,
        weights=str(weights),
        head_init="zero",
    )


def test_a_trained_network_learns_more_from_few_images(
    first: Path, tmp_path: Path
) -> None:
    scratch = train(config(FEW, 40), tmp_path / "scratch").metrics
    tuned = train(config(FEW, 40, model=begins_with(first)), tmp_path / "tuned").metrics
    probed = probe(config(FEW, 40, model=begins_with(first)), tmp_path / "probe")
    assert tuned["eval/top1"] > scratch["eval/top1"] + 0.05
    assert probed["eval/top1"] > scratch["eval/top1"] + 0.05


# Learning rate and layers of each line of the table of groups, from the head to the stem.
DECAYED = [("0.08", "fc"), ("0.04", "layer1_0")]
DECAYED += [("0.02", "conv1"), ("0.02", "bn1")]  # of which kernels alone decay
HEAD_ONLY = [("0.08", "fc"), ("-", "bn1, conv1, layer1_0")]


@pytest.mark.parametrize(
    "options, groups",
    [
        ({"layer_decay": 0.5}, DECAYED),
        ({"freeze": "^(?!fc/)"}, HEAD_ONLY),
    ],
)
def test_each_layer_learns_at_the_rate_of_the_table(
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    groups: list[tuple[str, str]],
) -> None:
    made = config(FEW, 10, rate=0.08, model=begins_with(first), **options)
    assert train(made, tmp_path / "run").metrics["eval/top1"] > 0.3  # chance is 0.2
    said = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(said) if "learning rate  weight" in line)
    assert "the head fc is new: 5 classes, not 4" in said
    lines = []
    for line in said[start + 1 :]:
        if not line.startswith(" "):
            break
        rate, *_, where = re.split(r"\s{2,}", line.strip())
        lines.append((rate, where.partition(":")[0]))
    assert list(dict.fromkeys(lines)) == groups
    before = commands.arrays(checkpoint.find_checkpoint(first))
    after = commands.arrays(checkpoint.find_checkpoint(tmp_path / "run"))
    for name in before:
        if name.startswith(("params/", "batch_stats/")) and "/fc/" not in name:
            same = np.array_equal(before[name], after[name])
            assert same == ("freeze" in options), name


def test_class_weights_raise_the_recall_of_the_rare_class(tmp_path: Path) -> None:
    data = SomeDigits(classes=(8, 9), images=(135, 15))
    balanced = {}
    for weights in (None, "auto"):
        loss = SoftmaxCrossEntropy(class_weights=weights)
        made = config(data, 30, loss=loss, model=Model(name="tiny"))
        metrics = train(made, tmp_path / str(weights)).metrics
        balanced[weights] = metrics["eval/balanced_top1"]
    # Without weights it has learned something too: at 0.5 it would call every image frequent.
    assert balanced[None] > 0.6
    assert balanced["auto"] > balanced[None] + 0.1


# ------------------------------------------------------------------ a folder, from a shell


def write_folder(folder: Path, classes: tuple[int, ...], each: int) -> None:
    """Writes digits as photographs would lie: split/class/index.png, 32 x 32, grey."""
    for split in ("train", "val"):
        source = Digits().source("train" if split == "train" else "test")
        for label in classes:
            place = folder / split / f"digit-{label}"
            place.mkdir(parents=True)
            for index in np.flatnonzero(source.labels == label)[:each]:
                digit = Image.fromarray(source.images[index, ..., 0])
                digit.resize((32, 32)).save(place / f"{index}.png")


@pytest.mark.slow
def test_fine_tuning_takes_a_folder_and_the_weights_of_a_run(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets", (0, 1), 40)
    shown = Normalize(mean=(0.5,), std=(0.5,))
    big = (Resize(size=32), shown)
    knows = config(SomeDigits(classes=(4, 5, 6)), 60, augment=big, eval_transform=big)
    knows.model = Model(name="lenet5")
    train(knows, tmp_path / "knows")
    done = commands.run(
        "jaxcls.train",
        "--config=configs/finetune.py",
        f"--config.data.path={tmp_path / 'pets'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model.weights={tmp_path / 'knows'}",
        "--config.model.name=lenet5",
        "--config.model.stem=None",
        "--config.data.canvas.size=32",
        "--config.duration=6 epochs",
        "--config.checkpoint.every=6 epochs",
    )
    assert done.returncode == 0, done.stderr
    assert "the head output is new: 2 classes, not 3" in done.stdout
    assert "c1 is adapted from 1 channels to 3" in done.stdout
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["eval/examples"] == 72
    assert last["eval/top1"] > 0.8  # chance is 0.5
