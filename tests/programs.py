"""What a traced program computes."""

from collections.abc import Iterator
from typing import Any

import pytest

to_the_last_bit = pytest.mark.parametrize(
    "exact", [False, pytest.param(True, marks=pytest.mark.slow)]
)
"""For what two programs compute alike: to the last bit where XLA optimizes, as it does in slow
tests, and to rounding where it does not."""


def products(jaxpr: Any) -> Iterator[Any]:
    """Yields the equations of convolutions and matrix products, wherever they are nested; of a
    choice between platforms, those of the last, which is the one for every accelerator."""
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        if kind in ("conv_general_dilated", "dot_general"):
            yield equation
        elif kind == "cond":
            yield from products(equation.params["branches"][-1].jaxpr)
        else:
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from products(inner)
