"""The checker of trees of dataclasses: types, ranges, and where an option lies."""

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MinLen, MultipleOf

from jaxcls import options
from jaxcls.duration import Duration, epochs
from jaxcls.errors import UserError
from jaxcls.options import (
    AboveZero,
    Ascending,
    Count,
    Pattern,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ZeroOrMore,
)
from jaxcls.options.ranges import range_name


def node(hint: Any, value: Any) -> Any:
    """Returns a dataclass with one option."""
    return dataclasses.make_dataclass("Node", [("option", hint)])(value)


def refusal(hint: Any, value: Any) -> str:
    """What is said about a value after the name of its option."""
    with pytest.raises(UserError) as error:
        options.check(node(hint, value))
    message = str(error.value)
    assert message.startswith("Node.option") and "\n" not in message
    return message.removeprefix("Node.option").removesuffix(".")


# An annotation, what it allows, what it refuses, and the range that is named.
RANGES: list[tuple[Any, list[Any], list[Any], str]] = [
    (Annotated[float, Gt(2)], [2.1, 3, 9e29], [2.0, 2, -1.0], "be above 2"),
    (Annotated[float, Ge(2)], [2.0, 2, 2.1], [1.9, -1], "be 2 or more"),
    (Annotated[float, Lt(2)], [1.9, -1, -9e29], [2.0, 2, 2.1], "be below 2"),
    (Annotated[int, Le(2)], [2, -(2**31)], [3, 2**32 - 1], "be at most 2"),
    (
        Annotated[float, Interval(gt=-1, lt=1)],
        [0.0, -0.99, 0.99],
        [-1.0, 1.0],
        "lie in -1..1, above -1, below 1",
    ),
    (
        Annotated[int, Interval(ge=0, le=2**32 - 1)],
        [0, 2**32 - 1],
        [-1],
        "lie in 0..4294967295",
    ),
    # Constraints side by side are one range.
    (Annotated[int, Ge(1), Lt(5)], [1, 4], [0, 5], "lie in 1..5, below 5"),
    (Share, [0.0, 0, 0.5, 1, 1.0], [-0.1, 1.1, 2], "lie in 0..1"),
    (ShareAboveZero, [1e-9, 1.0], [0.0, 0, 1.1], "lie in 0..1, above 0"),
    (ShareBelowOne, [0.0, 0.999], [1.0, 1, -0.1], "lie in 0..1, below 1"),
    (AboveZero, [1e-30, 5], [0.0, -1e-30, 0], "be above 0"),
    (ZeroOrMore, [0.0, 0, 5.0], [-1e-30], "be 0 or more"),
    (Count, [1, 2**31], [0, -1], "be 1 or more"),
    (Annotated[str, MinLen(1)], ["a"], [""], "be not empty"),
    (Annotated[int, MultipleOf(8)], [0, 8, -16], [4, 9], "be a multiple of 8"),
    (
        Annotated[float, Interval(ge=0, le=255), MultipleOf(1)],
        [0.0, 127, 255.0],
        [127.5, -1.0],
        "lie in 0..255, whole",
    ),
    (
        Annotated[tuple[int, ...], MinLen(2)],
        [(1, 2), (3, 2, 1)],
        [(), (1,)],
        "be 2 or more values",
    ),
    (
        Annotated[tuple[int, ...], Ascending()],
        [(), (1,), (1, 1, 2)],
        [(2, 1), (1, 3, 2)],
        "be in ascending order",
    ),
    (
        Pattern,
        ["a", "^(?!fc/)", r"\d+"],
        ["", "(", "a**", "[", "\\"],
        "be a regular expression that is not empty",
    ),
]


@pytest.mark.parametrize(("hint", "allowed", "refused", "wanted"), RANGES, ids=str)
def test_a_range(
    hint: Any, allowed: list[Any], refused: list[Any], wanted: str
) -> None:
    for value in allowed:
        options.check(node(hint, value))
        options.check(node(hint | None, value))
        options.check(node(tuple[hint, ...], (value, value)))
    for value in refused:
        said = f" must {wanted}, not {value!r}"
        assert refusal(hint, value) == said
        assert refusal(hint | None, value) == said
        # Of a tuple the element at fault is named.
        assert refusal(tuple[hint, ...], (allowed[0], value)) == f"[1]{said}"
    options.check(node(hint | None, None))


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (tuple[AboveZero, Share], (0.0, 2.0), "[0] must be above 0, not 0.0"),
        (tuple[AboveZero, Share], (1.0, 2.0), "[1] must lie in 0..1, not 2.0"),
        (tuple[tuple[Share, ...], ...], ((0.5,), (1.5,)), "[1][0] must lie in 0..1"),
        # Elements first, then the tuple.
        (
            Annotated[tuple[AboveZero, AboveZero], Ascending()],
            (2.0, 0.0),
            "[1] must be above 0",
        ),
        (
            Annotated[tuple[AboveZero, AboveZero], Ascending()],
            (2.0, 1.0),
            " must be in ascending order, not (2.0, 1.0)",
        ),
    ],
)
def test_ranges_within_tuples(hint: Any, value: Any, said: str) -> None:
    assert refusal(hint, value).startswith(said)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, " must be 1 or more, not 0"),
        (0.5, None),
        (1.5, " must lie in 0..1, not 1.5"),
        ("", " must be not empty, not ''"),
        ((1, 2), None),
        ((1, 0), "[1] must be 1 or more, not 0"),
        (None, None),
    ],
)
def test_the_range_of_a_union_is_that_of_the_values_type(
    value: Any, said: str | None
) -> None:
    hint = Count | Share | Annotated[str, MinLen(1)] | tuple[Count, ...] | None
    if said is None:
        options.check(node(hint, value))
    else:
        assert refusal(hint, value) == said


TYPES: list[tuple[Any, list[Any], list[Any], str]] = [
    (int, [0, -3], [1.0, "1", None, True, (1,)], "int"),
    (float, [0.5, 1], ["1", None, True, False], "float"),
    (bool, [True, False], [0, 1, "true", None], "bool"),
    (bool | None, [True, None], [1, 0.0], "bool or None"),
    (str, ["", "x"], [1, None, ("x",)], "str"),
    (Duration, [epochs(2)], [2, "2 epochs", None], "Duration"),
    (Literal["a", "b"], ["a", "b"], ["c", "", None], "'a' or 'b'"),
    (Literal["a", "b"] | None, ["a", None], ["c"], "'a' or 'b' or None"),
    (Count | None, [1, None], [1.5, "1", True], "int of 1 or more, or None"),
    (Share | None, [1, 0.5, None], ["1", True], "float in 0..1 or None"),
    (
        ShareBelowOne | None,
        [0.5, None],
        ["1", False],
        "float in 0..1, below 1, or None",
    ),
    (AboveZero | None, [0.5, None], ["1", True], "float above 0 or None"),
    (Annotated[int, Le(9)], [9], [9.0], "int at most 9"),
    (Annotated[str, MinLen(1)], ["x"], [1, None], "str, not empty"),
    (
        Pattern | None,
        ["x", None],
        [1],
        "a regular expression that is not empty or None",
    ),
    (
        tuple[float, ...],
        [(), (1, 0.5)],
        [[0.5], 0.5, ("1",), (0.5, True), None],
        "a tuple (float, ...)",
    ),
    (
        tuple[Share, AboveZero],
        [(0.5, 2)],
        [(0.5,), (0.5, 2.0, 1.0), ("1", 2.0)],
        "a tuple (float in 0..1, float above 0)",
    ),
    (
        Annotated[tuple[int, ...], Ascending()],
        [(1,)],
        [1, [1]],
        "a tuple (int, ...), in ascending order",
    ),
    (
        Annotated[tuple[int, ...], MinLen(2)],
        [(1, 2)],
        [1, [1, 2]],
        "a tuple (int, ...) of 2 or more values",
    ),
]


@pytest.mark.parametrize(("hint", "allowed", "refused", "name"), TYPES, ids=str)
def test_a_type(hint: Any, allowed: list[Any], refused: list[Any], name: str) -> None:
    assert options.type_name(hint) == name
    for value in allowed:
        options.check(node(hint, value))
    for value in refused:
        said = f" is {value!r}, a {type(value).__name__}; expected {name}"
        assert refusal(hint, value) == said


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (float, float("nan"), " must be a number of sensible size, not nan"),
        (float, float("inf"), " must be a number of sensible size, not inf"),
        (Share, float("-inf"), " must be a number of sensible size, not -inf"),
        (AboveZero, 1e30, " must be a number of sensible size, not 1e+30"),
        (tuple[float, ...], (1.0, float("nan")), " must be a number of sensible size"),
        (int, 2**32, " of 4294967296 is beyond every range"),
        (int, -(2**31) - 1, " of -2147483649 is beyond every range"),
        # An int where a float is meant, of which Python could make none.
        (float, 10**400, f" of 1{'0' * 39} is beyond every range"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_number_that_no_device_holds(hint: Any, value: Any, said: str) -> None:
    assert refusal(hint, value).startswith(said)


def test_the_largest_numbers() -> None:
    for hint, value in ((int, 2**32 - 1), (int, -(2**31)), (float, -9.9e29)):
        options.check(node(hint, value))


def test_an_unknown_constraint_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match="str"):
        options.check(node(Annotated[int, "fast"], 3))


# Trees


@dataclasses.dataclass
class Leaf:
    size: Count = 1
    name: str = "leaf"


@dataclasses.dataclass
class Branch:
    leaf: Leaf = dataclasses.field(default_factory=Leaf)
    others: tuple[Leaf, ...] = ()
    rate: ZeroOrMore = 0.5

    def validate(self) -> None:
        if self.rate > self.leaf.size:
            raise UserError("rate must not be above leaf.size.")


@dataclasses.dataclass
class Special(Leaf):
    extra: AboveZero = 1.0


@dataclasses.dataclass
class Root:
    branch: Branch
    act: Callable[[int], int] = abs
    maybe: Leaf | None = None


def tree() -> Root:
    return Root(Branch(others=(Leaf(), Special())))


def test_nodes_and_options_of_a_tree() -> None:
    root = tree()
    assert dict(options.nodes(root)) == {
        "": root,
        "branch": root.branch,
        "branch.leaf": root.branch.leaf,
        "branch.others[0]": root.branch.others[0],
        "branch.others[1]": root.branch.others[1],
    }
    assert [path for path, _ in options.nodes(root.branch, "data")] == [
        "data",
        "data.leaf",
        "data.others[0]",
        "data.others[1]",
    ]
    found = options.options(root)
    assert list(found) == [
        "act",
        "maybe",
        "branch.rate",
        "branch.leaf.size",
        "branch.leaf.name",
        "branch.others[0].size",
        "branch.others[0].name",
        "branch.others[1].size",
        "branch.others[1].name",
        "branch.others[1].extra",
    ]
    owner, value = found["branch.others[1].extra"]
    assert owner is root.branch.others[1] and value == 1.0


@pytest.mark.parametrize("path", ["branch.leaf", "branch.others[0]"])
def test_a_value_deep_in_a_tree_is_named_by_its_path(path: str) -> None:
    root = tree()
    dict(options.nodes(root))[path].size = 0
    for name, place in ((None, "Root."), ("", ""), ("mine", "mine.")):
        said = f"{place}{path}.size must be 1 or more, not 0."
        with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
            options.check(root, name)


def test_types_come_before_ranges_and_ranges_before_rules() -> None:
    root = tree()
    root.branch.leaf = Leaf(size=0, name=3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^branch\.leaf\.name is 3, a int; expected"):
        options.check(root, "")
    root.branch.leaf.name = ""
    with pytest.raises(UserError, match=r"^branch\.leaf\.size must be 1 or more"):
        options.check(root, "")
    root.branch.leaf.size = 1
    options.check(root)
    root.branch.rate = 1.5
    with pytest.raises(UserError, match=r"^rate must not be above leaf\.size\.$"):
        options.check(root, "")
    root.branch.leaf.size = 2
    options.check(root, "")


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("branch", Leaf(), "Branch"),
        ("branch", None, "Branch"),
        ("maybe", "leaf", "Leaf or None"),
        ("act", 3, "collections.abc.Callable[[int], int]"),
    ],
)
def test_a_node_of_the_wrong_class(field: str, value: Any, expected: str) -> None:
    root = tree()
    setattr(root, field, value)
    with pytest.raises(UserError) as error:
        options.check(root, "")
    kind = type(value).__name__
    assert str(error.value) == f"{field} is {value!r}, a {kind}; expected {expected}."


def test_a_subclass_is_of_its_class_and_has_its_own_options() -> None:
    root = tree()
    root.maybe = Special(extra=0.0)
    with pytest.raises(UserError, match=r"^maybe\.extra must be above 0, not 0\.0\.$"):
        options.check(root, "")


def test_range_name_of_a_regex_needs_no_type() -> None:
    assert range_name(Pattern) == options.type_name(Pattern)
