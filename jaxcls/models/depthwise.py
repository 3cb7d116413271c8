"""Depthwise convolution that is fast on a CPU too.

XLA runs a convolution of one group a channel far slower on CPUs than its arithmetic asks for.
A depthwise convolution is a sum of kernel height x width shifted images, each times a row of
the kernel, which XLA fuses into one vectorised loop: on CPUs it is written out as that, and so
are its gradients. On every other platform it is lax.conv_general_dilated and its gradients.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **fixed: Any,
) -> jax.Array:
    """Convolves each channel with a kernel of its own.

    Called by nn.Conv in the place of lax.conv_general_dilated:
    `nn.Conv(channels, ..., feature_group_count=channels, conv_general_dilated=depthwise_conv)`.
    Differentiable in reverse mode alone. On CPUs sums are in float32 whatever the dtype.

    Args:
      x: [batch, height, width, channels].
      kernel: [kernel height, kernel width, 1, channels].
      strides: vertical and horizontal.
      padding: "SAME", "VALID" or ((above, below), (left, right)).
      **fixed: what nn.Conv passes besides; dilations and precision stay at their defaults.

    Returns:
      [batch, height', width', channels] in the dtype of x.
    """
    del fixed
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (above, below), (left, right) = padding
    pads = ((int(above), int(below)), (int(left), int(right)))
    return _depthwise(x, kernel, (int(strides[0]), int(strides[1])), pads)


# The platform is chosen inside the function and inside its gradient, not around both: so no
# derivative of the choice itself is ever taken.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted, strides=strides, pads=pads),
        default=functools.partial(_convolution, strides=strides, pads=pads),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: tuple[int, int],
    pads: Pads,
    saved: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(
        *saved,
        grad,
        cpu=functools.partial(_shifted_grads, strides=strides, pads=pads),
        default=functools.partial(_convolution_grads, strides=strides, pads=pads),
    )


_depthwise.defvjp(_forward, _backward)


def _convolution(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=_LAYOUT,
        feature_group_count=x.shape[-1],
    )


def _convolution_grads(
    x: jax.Array,
    kernel: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
) -> tuple[jax.Array, jax.Array]:
    convolution = functools.partial(_convolution, strides=strides, pads=pads)
    return jax.vjp(convolution, x, kernel)[1](grad)


# Jitted, so that layers of one shape are compiled once.
@functools.partial(jax.jit, static_argnames=("strides", "pads"))
def _shifted(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    size = kernel.shape[:2]
    height, width = (
        (side + sum(pad) - k) // stride + 1
        for side, pad, k, stride in zip(x.shape[1:3], pads, size, strides, strict=True)
    )
    padded = _padded(x, pads)
    rows = kernel.reshape(-1, kernel.shape[-1]).astype(padded.dtype)
    shifts = _shifts(padded, size, strides, (height, width))
    total = sum(shift * row for shift, row in zip(shifts, rows, strict=True))
    return jnp.asarray(total, x.dtype)


@functools.partial(jax.jit, static_argnames=("strides", "pads"))
def _shifted_grads(
    x: jax.Array,
    kernel: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
) -> tuple[jax.Array, jax.Array]:
    to_x = _grad_to_x(x, kernel, grad, strides, pads)
    return to_x, _grad_to_kernel(x, kernel, grad, strides, pads)


def _grad_to_x(
    x: jax.Array,
    kernel: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
) -> jax.Array:
    """Row m * stride + r of the padded input meets row t * stride + r of the kernel in row m - t
    of the result; columns likewise. So with the kernel viewed as [t, r] and the input as
    [m, r] the gradient is a sum over t of shifted gradients, whatever the stride."""
    batch, height, width, channels = x.shape
    (above, _), (left, _) = pads
    down, right = strides
    tall, wide = -(-kernel.shape[0] // down), -(-kernel.shape[1] // right)
    rows, columns = -(-(height + above) // down), -(-(width + left) // right)
    grad = _padded(
        grad,
        ((tall - 1, rows - grad.shape[1]), (wide - 1, columns - grad.shape[2])),
    )
    fill = (
        (0, tall * down - kernel.shape[0]),
        (0, wide * right - kernel.shape[1]),
        (0, 0),
    )
    taps = jnp.pad(kernel[:, :, 0].astype(grad.dtype), fill)
    taps = taps.reshape(tall, down, wide, right, channels)
    total: Any = 0
    for i in range(tall):
        for j in range(wide):
            top, start = tall - 1 - i, wide - 1 - j
            shifted = lax.slice(
                grad,
                (0, top, start, 0),
                (batch, top + rows, start + columns, channels),
            )
            total += shifted[:, :, None, :, None] * taps[i, :, j][:, None]
    total = total.reshape(batch, rows * down, columns * right, channels)
    crop = (
        (-above, height + above - rows * down),
        (-left, width + left - columns * right),
    )
    return _pad(total.astype(x.dtype), crop)


def _grad_to_kernel(
    x: jax.Array,
    kernel: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
) -> jax.Array:
    """One reduction with an accumulator for each value of the kernel, for each image: so x is
    read once. (A reduction for each of them took 5 to 10 times as long; a loop over the images
    would gather a batch that is spread over devices.)"""
    padded = _padded(x, pads)
    grad = grad.astype(padded.dtype)
    shifts = _shifts(padded, kernel.shape[:2], strides, grad.shape[1:3])
    products = tuple(shift * grad for shift in shifts)
    zeros = (jnp.zeros((), grad.dtype),) * len(products)
    per_image = lax.reduce(
        products,
        zeros,
        lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)),
        (1, 2),
    )
    return jnp.stack(per_image).sum(1).reshape(kernel.shape).astype(kernel.dtype)


def _shifts(
    padded: jax.Array,
    size: Sequence[int],
    strides: tuple[int, int],
    result: Sequence[int],
) -> Iterator[jax.Array]:
    """Yields for each value of a kernel, row by row, the pixels that it meets."""
    batch, _, _, channels = padded.shape
    for i in range(size[0]):
        for j in range(size[1]):
            bottom = i + (result[0] - 1) * strides[0] + 1
            right = j + (result[1] - 1) * strides[1] + 1
            stop = (batch, bottom, right, channels)
            yield lax.slice(padded, (0, i, j, 0), stop, (1, *strides, 1))


def _padded(x: jax.Array, pads: Pads) -> jax.Array:
    """Pads in float32 or wider. The barrier keeps XLA from padding anew for every shift."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return lax.optimization_barrier(_pad(wide, pads))


def _pad(x: jax.Array, pads: Pads) -> jax.Array:
    """Pads, or where negative crops, height and width."""
    config = ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), config)
