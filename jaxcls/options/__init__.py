"""The options of a tree of dataclasses: where they are, and which values they may have.

An option states its type and its range in its annotation; the constraints are those of
annotated-types, and the two of ranges.py:

    rho: Annotated[float, Gt(0)] = 0.05
    p: Share = 0.5
    sigma: Annotated[tuple[AboveZero, AboveZero], Ascending()] = (0.1, 2.0)
    devices: Count | None = None

check() compares every value of a tree with them. A dataclass needs a `validate` method only for
the rules between its options.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

from jaxcls.options.ranges import Ascending, Regex, allows, bare, members, type_name
from jaxcls.options.tree import check, hints, join, nodes, options

Share = Annotated[float, Interval(ge=0, le=1)]
ShareAboveZero = Annotated[float, Interval(gt=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
AboveZero = Annotated[float, Gt(0)]
ZeroOrMore = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
Pattern = Annotated[str, Regex()]
