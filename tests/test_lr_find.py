"""The learning-rate finder: its curve, its suggestion, its picture and its sentences."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcls import lr_find
from jaxcls.augment import RandomResizedCrop, Staged
from jaxcls.config import Config
from jaxcls.duration import fraction, steps
from jaxcls.errors import UserError
from jaxcls.lr_find import main
from jaxcls.optim import EMA, Freeze
from jaxcls.training.lr_sweep import Curve, _opened, advice, suggestion, sweep
from tests import commands

TINY = f"--config={commands.RECIPES / 'tiny.py'}"


def tiny(**options: Any) -> Config:
    config = commands.load_config(commands.RECIPES / "tiny.py")
    return dataclasses.replace(config, **options)


@pytest.fixture(scope="module")
def curve() -> Curve:
    return sweep(tiny(ema=EMA()), num_steps=60, low=1e-5, high=100.0)


def test_the_rate_grows_by_one_ratio_until_the_loss_explodes(curve: Curve) -> None:
    ratio = (100.0 / 1e-5) ** (1 / 59)
    expected = 1e-5 * ratio ** np.arange(len(curve.rates))
    np.testing.assert_allclose(curve.rates, expected, rtol=1e-4)
    assert len(curve.rates) == len(curve.losses) < 60
    assert np.isfinite(curve.losses).all()
    assert curve.losses[0] == pytest.approx(math.log(10), abs=0.5)
    assert (curve.losses[:-1] <= 4 * np.minimum.accumulate(curve.losses)[:-1]).all()


def test_the_suggestion_is_a_rate_that_trains(curve: Curve) -> None:
    # The recipe has 0.05, which trains well; a hundredth learns nothing, ten diverge.
    assert 0.005 < suggestion(curve) < 1.0


@pytest.mark.parametrize("num_steps", [40, 100, 300])
@pytest.mark.parametrize("steepness", [1.0, 4.0])
def test_the_steepest_place_of_a_curve_that_is_known(
    num_steps: int, steepness: float
) -> None:
    rates = np.logspace(-6, 1, num_steps)
    # A logistic curve, by its formula the steepest at 1e-3.
    losses = 2.3 - 2 / (1 + np.exp(-steepness * (np.log10(rates) + 3)))
    assert suggestion(Curve(rates, losses)) == pytest.approx(1e-3, rel=0.15)


def test_where_the_loss_explodes_does_not_move_the_suggestion() -> None:
    rates = np.logspace(-6, 1, 100)
    losses = 2.3 - 2 / (1 + np.exp(-4 * (np.log10(rates) + 3)))
    losses += 9 * np.maximum(np.log10(rates), 0)
    losses += np.random.default_rng(0).normal(0, 0.05, 100)
    assert suggestion(Curve(rates, losses)) == pytest.approx(1e-3, rel=0.15)


def test_a_curve_that_never_falls_has_no_suggestion() -> None:
    rates = np.logspace(-3, 0, 30)
    with pytest.raises(UserError, match=r"never falls between the rates 0\.001 and 1"):
        suggestion(Curve(rates, np.linspace(2, 3, 30)))


@pytest.mark.parametrize("drop", [0.0, 0.02])
def test_a_curve_that_hardly_changes_asks_for_larger_rates(drop: float) -> None:
    rates = np.logspace(-8, -5, 60)
    losses = 2.3 * np.linspace(1, 1 - drop, 60)
    losses += np.random.default_rng(0).normal(0, 0.05, 60)
    with pytest.raises(UserError, match=r"between the rates 1e-08 and 1e-05.*--high"):
        suggestion(Curve(rates, losses))


def test_the_smoothed_loss_looks_as_far_ahead_as_back() -> None:
    losses = np.random.default_rng(0).normal(size=20)
    expected = [
        np.average(losses, weights=[0.8 ** abs(n - step) for step in range(20)])
        for n in range(20)
    ]
    found = Curve(np.arange(20.0), losses).smoothed()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    backwards = Curve(np.arange(20.0), losses[::-1]).smoothed()
    np.testing.assert_allclose(backwards[::-1], found, rtol=1e-12)


def test_what_thaws_after_the_sweep_stays_frozen() -> None:
    config = tiny(
        freeze=(
            Freeze(pattern="Conv_0", until=steps(30)),
            Freeze(pattern="bias", until=fraction(0.25)),  # of 40 steps, not of 20
            Freeze(pattern="scale"),
        )
    )
    program = _opened(config, 20, 1e-4, 1.0).program
    found = {name: one.thaws_at for name, one in program.treatments.by_path.items()}
    assert found == {
        "Conv_0/kernel": math.inf,
        "BatchNorm_0/bias": 10,
        "BatchNorm_0/scale": math.inf,
        "Dense_0/bias": 10,
        "Dense_0/kernel": 0,
    }


def test_images_have_the_size_of_the_first_stage() -> None:
    crop = RandomResizedCrop(size=8)
    staged = Staged(transform=crop, field="size", values=(4, 6, 8))
    config = tiny()
    config.augment = (staged, *config.augment)
    found = _opened(config, 20, 1e-4, 1.0).config.augment
    assert found == (dataclasses.replace(crop, size=4), *config.augment[1:])


def test_the_option_is_given_as_the_recipe_counts_it() -> None:
    curve = Curve(np.logspace(-3, 0, 30), np.linspace(3, 1, 30))
    config = tiny()
    assert "learning_rate=0.1" in advice(config, curve, 0.1)
    config.optimizer.rate_per = 96  # the batch has 48 images
    assert "learning_rate=0.2" in advice(config, curve, 0.1)


def test_the_command_draws_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "curve.png"
    assert main([TINY, f"--out={out}", "--steps=30", "--low=1e-4"]) == 0
    said = capsys.readouterr().out
    assert "--config.optimizer.learning_rate=" in said and str(out) in said
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    # The curve, the mark and the paper.
    assert len(np.unique(pixels, axis=0)) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps=5"], "--steps must be 10 or more, not 5"),
        (["--low=2", "--high=1"], "--low and --high"),
        (["--low=0"], "--low and --high"),
        (["--config.optimizer=LAMP"], "Did you mean 'LAMB'?"),
        (["--fresh"], "--fresh is a flag of jaxcls.train"),
        (["--workdir=x"], "--workdir is a flag of jaxcls.train"),
        (["--dry_run"], "--dry_run is a flag of jaxcls.train"),
        (["--steps=12", "--low=1e4", "--high=1e5"], "smaller --low"),
    ],
)
def test_a_mistake_is_a_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([TINY, f"--out={tmp_path / 'curve.png'}", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("curve.docx", "it must end in one of ."),
        ("", "it is a folder"),
        ("file/curve.png", "file is not a folder that may be written"),
        ("file/new/curve.png", "file is not a folder that may be written"),
        ("closed/curve.png", "closed is not a folder that may be written"),
        ("closed/new/curve.png", "closed is not a folder that may be written"),
        ("kept.png", "kept.png is not a file that may be written"),
    ],
)
def test_a_picture_that_cannot_be_written_is_found_before_the_sweep(
    out: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    (tmp_path / "kept.png").touch()
    kept = [tmp_path / "closed", tmp_path / "kept.png"]
    # The superuser, as whom tests may run, is let in everywhere.
    monkeypatch.setattr("os.access", lambda path, mode: path not in kept)
    monkeypatch.setattr(lr_find, "sweep", lambda *_, **__: pytest.fail("it sweeps"))
    before = sorted(tmp_path.rglob("*"))
    assert main([TINY, f"--out={tmp_path / out}"]) == 2
    said = capsys.readouterr().err
    assert "cannot write the picture" in said and words in said
    assert sorted(tmp_path.rglob("*")) == before


def drawn(curve: Curve) -> tuple[np.ndarray, ...]:
    return curve.rates, curve.losses, curve.smoothed()


@pytest.mark.parametrize("out", ["new/curve.png", "curve.PDF", "curve"])
def test_looking_whether_a_picture_can_be_written_writes_nothing(
    out: str, tmp_path: Path
) -> None:
    lr_find.check_picture(tmp_path / out)
    assert not list(tmp_path.iterdir())
    lr_find.draw(
        *drawn(Curve(np.logspace(-3, 0, 30), np.linspace(3, 1, 30))),
        0.1,
        tmp_path / out,
    )
    lr_find.check_picture(tmp_path / out)  # it may be written again
    assert (tmp_path / out).stat().st_size > 1000


def test_a_file_whose_drawing_fails_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, file: Any, **_: Any) -> None:
        if isinstance(file, Path):
            file.touch()
        raise ValueError("no ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    curve = Curve(np.logspace(-3, 0, 30), np.linspace(3, 1, 30))
    with pytest.raises(UserError, match=r"cannot write the picture .*: no ink"):
        lr_find.draw(*drawn(curve), 0.1, tmp_path / "new" / "curve.png")
    assert not list(tmp_path.iterdir())
