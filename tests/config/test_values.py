"""What a text typed for an option is read as."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Interval

from jaxcls.config.values import can_be_typed, parse_value
from jaxcls.duration import Duration, epochs, fraction, steps
from jaxcls.errors import UserError
from jaxcls.optim import Freeze
from jaxcls.options import Ascending, Count, Pattern, Share


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        (" 3 ", int, 3),
        ("1e3", int, 1000),
        ("4294967295", int, 2**32 - 1),
        ("9007199254740993", int, 2**53 + 1),  # no float
        ("3", float, 3.0),
        ("3e-4", float, 3e-4),
        ("3", int | float, 3.0),
        ("TRUE", bool, True),
        ("false", bool | None, False),
        ("none", bool | None, None),
        ("True", str, "True"),
        ("3", str, "3"),
        ("(1, 2)", str, "(1, 2)"),
        ("20 epochs", str, "20 epochs"),
        ("None", str, "None"),
        ("None", str | None, None),
        ("", str, ""),
        ("b", Literal["a", "b"], "b"),
        ("3", Literal[1, 3], 3),
        ("None", Literal["a"] | None, None),
        ("0.5", Literal["a"] | float, 0.5),
        ("20 epochs", Duration, epochs(20)),
        ("5%", Duration | None, fraction(0.05)),
        ("None", Duration | None, None),
        ("(1, 0.5)", tuple[float, ...], (1.0, 0.5)),
        ("[1, 2]", tuple[int, ...], (1, 2)),
        ("1, 2", tuple[int, int], (1, 2)),
        ("()", tuple[float, ...], ()),
        ("('2 epochs', '3 steps')", tuple[Duration, ...], (epochs(2), steps(3))),
        ("('a', 'b')", tuple[str, ...], ("a", "b")),
        ("()", str | tuple[Freeze, ...] | None, ()),
        ("fc", str | tuple[Freeze, ...] | None, "fc"),
        # Ranges neither matter nor hinder.
        ("0.5", Share, 0.5),
        ("7", Share | None, 7.0),
        ("0", Count | None, 0),
        ("()", Pattern | tuple[Freeze, ...] | None, ()),
        ("(2, 1)", Annotated[tuple[Share, Share], Ascending()], (2.0, 1.0)),
        ("('2 steps',)", tuple[Annotated[Duration, "x"], ...] | None, (steps(2),)),
    ],
)
def test_a_text_is_read_as_its_type(text: str, hint: Any, value: Any) -> None:
    found = parse_value(text, hint, "x")
    assert found == value and type(found) is type(value)
    if isinstance(value, tuple):
        assert list(map(type, found)) == list(map(type, value))
    assert can_be_typed(hint)


IN_THE_RECIPE = ": this option can only be set in the recipe"


@pytest.mark.parametrize(
    ("text", "hint", "said"),
    [
        ("x", int, " is 'x'; expected int."),
        ("0.5", Count | None, " is '0.5'; expected int of 1 or more, or None."),
        ("None", float, " is 'None'; expected float."),
        ("1", bool, " is '1'; expected bool."),
        ("(1,)", float, " is '(1,)'; expected float."),
        ("1", tuple[float, ...], " is '1'; expected a tuple (float, ...)."),
        ("(True,)", tuple[float, ...], " is '(True,)'; expected a tuple (float, ...)."),
        ("(1,)", tuple[int, int], " is '(1,)'; expected a tuple (int, int)."),
        ("c", Literal["aa", "b"], ": 'c' is not one of aa, b."),
        (
            "a",
            Literal["aa", "b"] | None,
            ": 'a' is not one of aa, b. Did you mean 'aa'?",
        ),
        ("c", Literal["a"] | float, " is 'c'; expected 'a' or float."),
        ("2 eopchs", Duration | None, ": unknown unit 'eopchs'"),
        ("('2 steps', '2 eopchs')", tuple[Duration, ...], ": unknown unit 'eopchs'"),
        ("2 steps", tuple[Duration, ...], " is '2 steps'; expected a tuple (Duration"),
        ("('a',)", tuple[Freeze, ...], f"{IN_THE_RECIPE}; '()' makes it empty."),
        ("abs", Callable[[int], int], f"{IN_THE_RECIPE}."),
        ("Freeze", Freeze, f"{IN_THE_RECIPE}."),
    ],
)
def test_a_text_that_is_not_of_the_type(text: str, hint: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_value(text, hint, "--config.x")
    assert str(error.value).startswith(f"--config.x{said}")


@pytest.mark.parametrize(
    "hint",
    [
        Freeze,
        tuple[Freeze, ...],
        Callable[[int], int],
        tuple[tuple[Duration, float], ...],
        Annotated[tuple[tuple[Duration, Share], ...], Ge(0)],
    ],
)
def test_what_only_a_recipe_can_say(hint: Any) -> None:
    assert not can_be_typed(hint)


def test_constraints_of_a_whole_annotation_do_not_hinder() -> None:
    assert parse_value("3", Annotated[int, Interval(ge=0, le=2)], "x") == 3
