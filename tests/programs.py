"""What a traced program computes."""

from collections.abc import Iterator
from typing import Any


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
