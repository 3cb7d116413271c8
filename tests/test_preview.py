"""The picture of a recipe's augmentation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.augment import HorizontalFlip, MixUp, Normalize, Resize
from jaxcls.config import validate
from jaxcls.inference.forward import input_shape
from jaxcls.preview import main
from jaxcls.report.contact_sheet import CELL, GAP, LINE, label_text
from jaxcls.training.preview import preview
from tests import commands

RECIPE = str(commands.ROOT / "configs" / "lenet5.py")


def test_the_rows_show_what_the_transforms_do() -> None:
    config = commands.load_config(Path(RECIPE))
    normalize = Normalize(mean=(0.5,), std=(0.25,))
    config.augment = (HorizontalFlip(p=1.0), normalize, MixUp(alpha=1.0))
    config.eval_transform = (Resize(size=16), normalize)
    picture = np.asarray(preview(config, count=4))
    source = config.data.source("train")
    side = CELL // 8 * 8
    assert picture.shape[1] == 4 * (side + GAP) + GAP

    def row(top: int) -> list[np.ndarray]:
        lefts = [GAP + i * (side + GAP) for i in range(4)]
        return [picture[top : top + side, left : left + side] for left in lefts]

    originals = row(LINE)
    labels = [int(record["label"]) for record in map(source.__getitem__, range(200))]
    # Ten classes, so the four are of different ones, the first of each.
    first = [labels.index(label) for label in dict.fromkeys(labels)][:4]
    for shown, index in zip(originals, first, strict=True):
        expected = source[index]["image"].repeat(side // 8, 0).repeat(side // 8, 1)
        np.testing.assert_array_equal(shown, np.repeat(expected, 3, -1))
    flipped = row(LINE + side + LINE + 2 * GAP + LINE)
    for shown, original in zip(flipped, originals, strict=True):
        np.testing.assert_array_equal(shown, original[:, ::-1])


def test_the_recipe_of_the_readme_s_picture_is_valid() -> None:
    config = commands.load_config(commands.ROOT / "docs" / "augmentation.py")
    validate(config)
    image = config.data.source("train")[0]["image"]
    trained, evaluated = (
        input_shape(transforms, image.shape)
        for transforms in (config.augment, config.eval_transform)
    )
    assert trained == evaluated == (1, 112, 112, 3)


def test_soft_labels_in_words() -> None:
    names = ("cat", "dog", "cow")
    assert label_text(np.array([0, 1.0, 0]), names) == "dog"
    assert label_text(np.array([0.3, 0.7, 0]), names) == "70% dog\n30% cat"
    assert label_text(np.array([0.3, 0.3, 0.4]), names) == "40% cow\n30% cat\n30% dog"


def test_the_command_writes_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "picture.png"
    arguments = ["--config", RECIPE, "--out", str(out), "--count", "3"]
    assert main(arguments) == 0
    with Image.open(out) as picture:
        assert f"{picture.width} x {picture.height} pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(
            (["--out", f"picture.{end}"], "must end as pictures do")
            for end in ("pgx", "psd", "xbm", "h5", "blp")
        ),
        (["--count", "0"], "--count must lie in 1..1000, not 0"),
        (["--config.augment[0].padding=-1"], "padding must lie in 0..16384, not -1"),
        (["--colour", "red"], "unknown flag --colour"),
        (["--out", "/proc/nothing/picture.png"], "cannot write /proc/nothing"),
    ],
)
def test_mistakes(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(commands.ROOT / "configs" / "resnet18.py")
    assert main(["--config", recipe, "--count", "2", *arguments]) == 2
    assert said in capsys.readouterr().err
