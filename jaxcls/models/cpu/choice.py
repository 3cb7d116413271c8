"""The choice between XLA's own operation and one that is written out for CPUs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxcls.models.cpu.windows import Windows


def written_out_on_cpus(
    operation: Callable[..., jax.Array],
    on_cpus: Callable[..., jax.Array],
    gradients_on_cpus: Callable[..., tuple[jax.Array, ...]],
) -> Callable[..., jax.Array]:
    """Returns an operation that CPUs compute by other means than the other platforms.

    The platform is chosen inside the function and inside its gradient, not around both: so no
    derivative of the choice itself is ever taken. Only reverse-mode differentiation works.

    Args:
      operation: takes windows and arrays, returns an array; all platforms but CPUs compute it
        and its gradient.
      on_cpus: likewise, for CPUs; may be `operation` itself.
      gradients_on_cpus: takes windows, the arrays and the gradient of the result; returns the
        gradient of each array.

    Returns:
      A function of windows and arrays, as `operation` is.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def chosen(windows: Windows, *arrays: jax.Array) -> jax.Array:
        if on_cpus is operation:
            return operation(windows, *arrays)
        return lax.platform_dependent(
            *arrays,
            cpu=functools.partial(on_cpus, windows),
            default=functools.partial(operation, windows),
        )

    def forward(windows: Windows, *arrays: jax.Array) -> Any:
        return chosen(windows, *arrays), arrays

    def backward(
        windows: Windows, arrays: tuple[jax.Array, ...], grad: jax.Array
    ) -> tuple[jax.Array, ...]:
        def elsewhere(*operands: jax.Array) -> tuple[jax.Array, ...]:
            *arrays, grad = operands
            return jax.vjp(functools.partial(operation, windows), *arrays)[1](grad)

        on_cpus = functools.partial(gradients_on_cpus, windows)
        return lax.platform_dependent(*arrays, grad, cpu=on_cpus, default=elsewhere)

    chosen.defvjp(forward, backward)
    return chosen
