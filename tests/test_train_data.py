"""Whole runs: the same data from several places, and data that is not as it should be: bad
images, classes in another order."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcls.config import Config
from jaxcls.data import (
    ArraySource,
    CenterSquare,
    Dataset,
    Digits,
    ImageFolder,
    Records,
)
from jaxcls.data.preparation.writer import write_records
from jaxcls.data.sampling import Sampling
from jaxcls.data.sources import Split
from jaxcls.duration import steps
from jaxcls.errors import UserError
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.train import train
from tests import commands
from tests.programs import to_the_last_bit
from tests.torn import TornSource


@dataclasses.dataclass(kw_only=True)
class Torn(Digits):
    """Digits with bad images.

    Attributes:
      bad: indices of the bad ones, in either split.
      max_bad_share: of which a run ends.
      test_names: names of the classes of the test split, in its order.
    """

    bad: tuple[int, ...] = ()
    max_bad_share: float = 0.01
    test_names: tuple[str, ...] = tuple("0123456789")

    def source(self, split: Split) -> ArraySource:
        digits = super().source(split)
        names, labels = digits.class_names, digits.labels
        if split == "test":
            names = self.test_names
            labels = np.array([names.index(str(label)) for label in labels])
        source = TornSource(f"torn-{split}", digits.images, labels, names)
        source.bad, source.max_bad_share = self.bad, self.max_bad_share
        return source


def tiny(data: Dataset, **changes: Any) -> Config:
    """Returns the tiny recipe on `data`, for 30 steps: more than an epoch."""
    config = commands.load_config(commands.RECIPES / "tiny.py")
    return dataclasses.replace(
        config, **{"data": data, "duration": steps(30), **changes}
    )


def digits_as_jpegs(folder: Path, each: int) -> None:
    """Writes `each` training and test digits of each class as folder/split/class/index.jpg."""
    for split in ("train", "test"):
        source = Digits().source(split)
        for label, name in enumerate(source.class_names):
            directory = folder / split / name
            directory.mkdir(parents=True)
            for index in np.flatnonzero(source.labels == label)[:each]:
                image = Image.fromarray(source.images[index, ..., 0])
                image.save(directory / f"{index:04}.jpg", quality=90)


@to_the_last_bit
def test_files_records_and_device_memory_give_the_same_losses(
    tmp_path: Path, exact: bool
) -> None:
    digits_as_jpegs(tmp_path / "jpegs", each=30)
    files = ImageFolder(
        path=str(tmp_path / "jpegs"), channels=1, canvas=CenterSquare(size=8)
    )
    write_records(files, tmp_path / "records", size=8, format="raw")
    records = Records(path=str(tmp_path / "records"), channels=1)
    metrics = {}
    for name, data in {
        "files": files,
        "in workers": dataclasses.replace(files, workers=1),
        "records": records,
        "on device": dataclasses.replace(records, placement="device"),
    }.items():
        config = tiny(data, duration=steps(14))  # two epochs and a bit
        config.log.every = steps(1)
        train(config, tmp_path / name)
        metrics[name] = [
            {key: value for key, value in line.items() if "/" in key}
            for line in commands.metrics(tmp_path / name)
        ]
    assert len(metrics["files"]) > 14
    assert metrics["files"] == metrics["in workers"] == metrics["records"]
    atol = 0.0 if exact else 1e-5
    for line, other in zip(metrics["files"], metrics["on device"], strict=True):
        assert other == pytest.approx(line, rel=0, abs=atol)


def said(output: str) -> list[str]:
    return [line for line in output.splitlines() if "left out" in line]


@pytest.mark.parametrize(
    ("placement", "workers"),
    [("host", 1), pytest.param("host", 2, marks=pytest.mark.slow), ("device", 0)],
)
def test_bad_images_are_left_out_and_counted(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    placement: Any,
    workers: int,
) -> None:
    data = Torn(bad=(3, 50, 77), workers=workers, placement=placement)
    config = tiny(data, batch_size=64)
    config.evaluation.every = steps(15)
    result = train(config, tmp_path / "run")
    # Both splits have these records; each is said once, though evaluated twice.
    line = "left out, a bad image of the {} split: digit-{}.png: torn."
    found = said(capfd.readouterr().out)
    assert len(found) == len(set(found))
    assert {line.format("test", i) for i in data.bad} <= set(found)
    assert {line.format("train", i) for i in data.bad} <= set(found)
    assert result.metrics["eval/examples"] == 357
    assert result.metrics["eval/bad_images"] == 3
    lines = commands.metrics(tmp_path / "run")
    assert [x for x in lines if "train/loss" in x][-1]["bad_images"] == 3
    assert all(np.isfinite(x["train/loss"]) for x in lines if "train/loss" in x)
    again = evaluate_checkpoint(tmp_path / "run")
    assert again["eval/examples"] == 357 and again["eval/bad_images"] == 3
    assert again["eval/top1"] == result.metrics["eval/top1"]
    assert len(said(capfd.readouterr().out)) == 3


def test_too_many_bad_images_end_the_run(tmp_path: Path) -> None:
    config = tiny(Torn(bad=tuple(range(0, 1437, 20))), duration=steps(15))
    with pytest.raises(
        UserError, match=r"of the 1437 images of the train split are bad"
    ):
        train(config, tmp_path / "run")
    # With a larger share the run goes on; from evaluation just as well.
    config.data.max_bad_share = 0.06
    assert train(config, tmp_path / "run").complete
    config = tiny(Torn(bad=tuple(range(5)), max_bad_share=0.005), duration=steps(8))
    with pytest.raises(UserError, match=r"of the 360 images of the test split are bad"):
        train(config, tmp_path / "other")


def test_the_names_of_classes_are_those_of_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = {}
    for order in ("0123456789", "9876543210"):
        config = tiny(Torn(test_names=tuple(order)), duration=steps(10))
        results[order] = train(config, tmp_path / order).metrics
        again = evaluate_checkpoint(tmp_path / order)
        assert again["eval/top1"] == results[order]["eval/top1"] > 0.15
    one, other = results.values()
    assert one["eval/loss"] == other["eval/loss"]
    assert "note:" not in capfd.readouterr().err
    with pytest.raises(UserError, match=r"has classes unknown in training: ten\."):
        train(tiny(Torn(test_names=(*"0123456789", "ten"))), tmp_path / "ten")


def test_weights_of_classes_are_saved_as_they_were_given(tmp_path: Path) -> None:
    data = Torn(sampling=Sampling(limit=20))
    losses = {}
    for weights in (None, "auto", tuple([2.0] * 10), (1.0, 2.0)):
        config = tiny(data, duration=steps(8), batch_size=32)
        config.log.every = steps(1)
        config.loss.class_weights = weights
        folder = tmp_path / str(weights)
        if weights == (1.0, 2.0):
            with pytest.raises(UserError, match="has 2 numbers for the 10 classes"):
                train(config, folder)
            continue
        train(config, folder)
        lines = commands.metrics(folder)
        losses[weights] = lines[0]["train/loss"]
        # The same command again finds the same run.
        if weights is not None:
            assert train(config, folder).complete
    # Twenty of each class: automatic weights are all 1.
    assert losses["auto"] == pytest.approx(losses[None], rel=1e-5)
    assert losses[tuple([2.0] * 10)] == pytest.approx(2 * losses[None], rel=1e-5)
