"""Lengths of training: what is read, what is refused, and how many steps it makes."""

import pytest

from jaxcls.duration import (
    UNITS,
    Duration,
    RunLength,
    epochs,
    examples,
    fraction,
    steps,
)
from jaxcls.errors import UserError

RUN = RunLength(steps_per_epoch=22, batch_size=64, total_steps=880)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("20 epochs", 20, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("500 steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("500steps", 500, "steps"),
        # "20e" must not be taken for a number.
        ("20epochs", 20, "epochs"),
        ("3examples", 3, "examples"),
        ("2e3examples", 2000, "examples"),
        ("1.e-1epochs", 0.1, "epochs"),
        ("1e6 examples", 1_000_000, "examples"),
        ("1E+3 examples", 1000, "examples"),
        ("0.05 run", 0.05, "run"),
        (".5 run", 0.5, "run"),
        ("5e-2 run", 0.05, "run"),
        ("5%", 0.05, "run"),
        (" 12.5 % ", 0.125, "run"),
        ("100%", 1, "run"),
        ("0 steps", 0, "steps"),
        ("2 EPOCHS", 2, "epochs"),
    ],
)
def test_parse_reads(text: str, value: float, unit: str) -> None:
    parsed = Duration.parse(text)
    assert (parsed.value, parsed.unit) == (pytest.approx(value, rel=1e-15), unit)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "'' is not a duration"),
        ("20", "'20' is not a duration"),
        ("epochs", "'epochs' is not a duration"),
        ("20 40 steps", "'20 40 steps' is not a duration"),
        ("--3 steps", "'--3 steps' is not a duration"),
        ("1.2.3 steps", "'1.2.3 steps' is not a duration"),
        ("inf steps", "'inf steps' is not a duration"),
        ("5% run", "'5% run' is not a duration"),
        ("20 epochs 3 steps", "'20 epochs 3 steps' is not a duration"),
        ("20 parsecs", "unknown unit 'parsecs'"),
        ("20e", "unknown unit 'e'"),
        ("1e3", "'1e3' is not a duration"),
        (". steps", "'. steps' is not a duration"),
        ("20 epoch5", "'20 epoch5' is not a duration"),
        ("20 eopchs", "Did you mean 'epochs'?"),
        ("-3 steps", "not -3 steps"),
        ("1e999 steps", "not inf steps"),
        ("150%", "not 1.5"),
        ("2 run", "not 2:"),
    ],
)
def test_parse_refuses_and_names_the_value(text: str, names: str) -> None:
    with pytest.raises(UserError) as error:
        Duration.parse(text)
    assert names in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("unit", UNITS)
def test_text_of_a_duration_reads_back_as_itself(unit: str) -> None:
    # 1/3 has no short decimal: nothing may be rounded on the way.
    for value in (0, 1, 0.1, 1 / 3, 1e-7):
        duration = Duration(value, unit)
        assert Duration.parse(str(duration)) == duration
        assert eval(repr(duration), {"Duration": Duration}) == duration


def test_equal_durations_hash_equally_and_units_differ() -> None:
    assert steps(3) == Duration(3.0, "steps") == Duration.parse("3 steps")
    assert len({steps(3), Duration(3.0, "steps"), epochs(3), examples(3)}) == 3
    assert steps(1) != fraction(1)
    assert steps(3) != 3


@pytest.mark.parametrize("value", [-1, -1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("unit", UNITS)
def test_values_out_of_range_are_refused(value: float, unit: str) -> None:
    with pytest.raises(UserError, match=f"{value:g} {unit}"):
        Duration(value, unit)


def test_more_than_the_whole_run_is_refused() -> None:
    assert fraction(1.0).to_steps(RUN) == 880
    with pytest.raises(UserError, match=r"between 0 and 1, not 1\.01"):
        fraction(1.01)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (steps(7), 7),
        (steps(0), 0),
        (epochs(2), 44),
        (epochs(0.25), 6),  # 5.5: both neighbours are as near, Python takes the even
        (epochs(0.26), 6),  # 5.72
        (epochs(0.24), 5),  # 5.28
        (examples(640), 10),
        (examples(33), 1),  # 0.52 of a batch
        (examples(31), 0),
        (fraction(0.05), 44),
        (fraction(0.0503), 44),  # 44.264
        (fraction(0.0499), 44),  # 43.912
        (fraction(0), 0),
    ],
)
def test_steps(duration: Duration, expected: int) -> None:
    found = duration.to_steps(RUN)
    assert found == expected
    assert isinstance(found, int)


def test_only_a_fraction_needs_the_length_of_the_run() -> None:
    unknown = RunLength(steps_per_epoch=22, batch_size=64)
    assert epochs(3).to_steps(unknown) == 66
    assert steps(3).to_steps(unknown) == 3
    assert examples(128).to_steps(unknown) == 2
    with pytest.raises(UserError, match=r"0\.5 run.*steps, epochs or examples"):
        fraction(0.5).to_steps(unknown)
