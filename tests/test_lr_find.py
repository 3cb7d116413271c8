"""The learning-rate finder: its curve, its suggestion, its picture and its sentences."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcls.config import Config
from jaxcls.errors import UserError
from jaxcls.lr_find import Curve, advice, main, suggestion, sweep
from jaxcls.optim import EMA
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


def test_the_steepest_place_of_a_curve_that_is_known() -> None:
    rates = np.logspace(-5, 1, 200)
    # Falls around 1e-2 as a logistic curve does, rises from 1 on.
    depth = 1 / (1 + np.exp(-4 * (np.log10(rates) + 2)))
    losses = 2.3 - 2 * depth + np.maximum(np.log10(rates), 0) * 9
    found = suggestion(Curve(rates, losses))
    # The smoothing lags behind by some ten steps, a third of a decade.
    assert 1e-2 < found < 3e-2


def test_a_curve_that_never_falls_has_no_suggestion() -> None:
    rates = np.logspace(-3, 0, 30)
    with pytest.raises(UserError, match=r"never falls between the rates 0\.001 and 1"):
        suggestion(Curve(rates, np.linspace(2, 3, 30)))


def test_the_smoothed_loss_is_the_moving_average_without_bias() -> None:
    losses = np.random.default_rng(0).normal(size=20)
    weights = 0.9 ** np.arange(20)[::-1]
    expected = [
        np.average(losses[: n + 1], weights=weights[19 - n :]) for n in range(20)
    ]
    found = Curve(np.arange(20.0), losses).smoothed()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


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


def test_a_picture_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in (tmp_path / "curve.docx", tmp_path):
        assert main([TINY, f"--out={out}", "--steps=20", "--low=1e-3"]) == 2
        assert "cannot write the picture" in capsys.readouterr().err
