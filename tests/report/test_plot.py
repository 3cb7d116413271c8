"""Curves in plain characters, against pictures drawn by hand."""

import math

import pytest

from jaxcls.report.plot import schedule_plot


def test_each_value_has_its_column_and_row() -> None:
    values = [
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
        4.0,
        3.0,
        2.0,
        1.0,
        0.0,
        0.0,
        0.0,
        4.0,
        4.0,
        1.0,
        2.0,
    ]
    assert schedule_plot(values, width=16, height=5, title="learning rate") == (
        "learning rate\n"
        "4 |    **      **\n"
        "  |   *  *\n"
        "2 |  *    *       *\n"
        "  | *      *     *\n"
        "0 |*        ***\n"
        "  +----------------\n"
        "   0    step     15"
    )


def test_many_values_of_a_column_are_all_shown() -> None:
    # Two values a column: a peak of one step, and a fall of half the height, stay visible.
    values = [0.0] * 6 + [0.0, 1e-3] + [1e-3] * 8 + [1e-3, 0.0] + [0.0] * 14
    assert schedule_plot(values, width=16, height=3) == (
        " 0.001 |   ******\n"
        "0.0005 |   *    *\n"
        "     0 |****    ********\n"
        "       +----------------\n"
        "        0    step     31"
    )


def test_few_values_are_stairs_as_wide_as_the_plot() -> None:
    assert schedule_plot([1.0, 0.5, 0.25], width=18, height=5) == (
        "  1 |******\n"
        "    |\n"
        "0.5 |      ******\n"
        "    |            ******\n"
        "  0 |\n"
        "    +------------------\n"
        "     0      step      2"
    )


def test_a_long_run_names_its_last_step() -> None:
    plot = schedule_plot([0.25] * 100, width=30, height=2, last_step=1_234_567)
    assert plot == (
        f"0.25 |{'*' * 30}\n   0 |\n     +{'-' * 30}\n      0{'step':^20}1,234,567"
    )


@pytest.mark.parametrize(
    ("values", "rows"), [([0.0], [" ", "*"]), ([-1.0], [" ", "*"]), ([2.0], ["*", " "])]
)
def test_a_single_value(values: list[float], rows: list[str]) -> None:
    lines = schedule_plot(values, width=16, height=2).splitlines()
    curves = [line.partition("|")[2] for line in lines[:2]]
    assert curves == [(row * 16).rstrip() for row in rows]


def test_values_below_zero_lower_the_axis() -> None:
    lines = schedule_plot([1.0] * 8 + [-1.0] * 8, width=16, height=3).splitlines()
    assert lines[:3] == [" 1 |********", " 0 |", "-1 |        ********"]


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_cannot_be_drawn_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="all of them finite"):
        schedule_plot(values)


@pytest.mark.parametrize("size", [(15, 10), (60, 1)])
def test_a_plot_too_small_for_its_labels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="too small"):
        schedule_plot([1.0], *size)
