"""Convolution that is fast on a CPU too.

XLA runs some convolutions far slower on CPUs than their arithmetic asks for: those with a group
a channel by one to two orders of magnitude, those with a few channels a group by more, and the
weight gradient of 1x1 kernels several times. They are written out as what XLA is good at there:
sums of shifted images, or matrix products. On every other platform, and for every other kernel,
this is lax.conv_general_dilated and its gradients.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **fixed: Any,
) -> jax.Array:
    """Convolves images with a kernel: what lax.conv_general_dilated gives, up to the order in
    which sums are made.

    nn.Conv calls it in that function's place (see Conv). Only reverse-mode differentiation
    works for the kernels that are written out.

    Args:
      x: [batch, height, width, channels].
      kernel: [kernel height, kernel width, channels / groups, features].
      strides: vertical and horizontal.
      padding: "SAME", "VALID" or ((above, below), (left, right)).
      feature_group_count: groups of channels that are convolved apart.
      **fixed: what nn.Conv passes besides: layout, dilations and precision at their defaults.

    Returns:
      [batch, height', width', features] in the dtype of x.
    """
    del fixed
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (above, below), (left, right) = padding
    pads = ((int(above), int(below)), (int(left), int(right)))
    down, across = (int(stride) for stride in strides)
    args = (x, kernel, (down, across), pads, feature_group_count)
    if feature_group_count > 1:
        return _by_platform(*args)
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return _by_platform(*args)
    return _lax(*args)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolution)
"""linen's layer with this convolution."""


def _lax(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, groups: int
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
    )


# The platform is chosen inside the function and inside its gradient, not around both: so no
# derivative of the choice itself is ever taken.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _by_platform(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, groups: int
) -> jax.Array:
    how: dict[str, Any] = {"strides": strides, "pads": pads, "groups": groups}
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_written_out, **how),
        default=functools.partial(_lax, **how),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_platform(x, kernel, strides, pads, groups), (x, kernel)


def _backward(
    strides: tuple[int, int],
    pads: Pads,
    groups: int,
    saved: tuple[jax.Array, jax.Array],
    grad: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    how: dict[str, Any] = {"strides": strides, "pads": pads, "groups": groups}

    def by_lax(
        x: jax.Array, kernel: jax.Array, grad: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(functools.partial(_lax, **how), x, kernel)[1](grad)

    return lax.platform_dependent(
        *saved,
        grad,
        cpu=functools.partial(_written_out_grads, **how),
        default=by_lax,
    )


_by_platform.defvjp(_forward, _backward)


# Jitted, so that layers of one shape are compiled once.
@functools.partial(jax.jit, static_argnames=("strides", "pads", "groups"))
def _written_out(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, groups: int
) -> jax.Array:
    if groups == 1:
        return _matrix_product(x, kernel, strides)
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _shifted(x, kernel, strides, pads)
    return _few_groups(x, kernel, strides, pads, groups)


@functools.partial(jax.jit, static_argnames=("strides", "pads", "groups"))
def _written_out_grads(
    x: jax.Array,
    kernel: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
    groups: int,
) -> tuple[jax.Array, jax.Array]:
    if groups == x.shape[-1] == kernel.shape[-1] and groups > 1:
        to_x = _grad_to_x(x, kernel, grad, strides, pads)
        return to_x, _grad_to_kernel(x, kernel, grad, strides, pads)
    function = functools.partial(
        _written_out, strides=strides, pads=pads, groups=groups
    )
    return jax.vjp(function, x, kernel)[1](grad)


def _matrix_product(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int]
) -> jax.Array:
    """A 1x1 kernel: every stride-th pixel times a matrix."""
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def _few_groups(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads, groups: int
) -> jax.Array:
    """Eight plain convolutions, or as many as divide the groups: each takes several groups with a
    kernel whose blocks off the diagonal are zero. That is more arithmetic, done much faster."""
    parts = math.gcd(groups, 8)
    merged = groups // parts
    height, width, inputs, features = kernel.shape
    outputs = features // groups
    blocks = kernel.reshape(height, width, inputs, parts, merged, outputs)
    diagonal = jnp.eye(merged, dtype=kernel.dtype)
    # [part, height, width, group, input, group', output]: zero unless group is group'.
    kernels = jnp.einsum("hwipmo,mn->phwnimo", blocks, diagonal)
    kernels = kernels.reshape(parts, height, width, merged * inputs, merged * outputs)
    results = [
        _lax(part, kernels[index], strides, pads, 1)
        for index, part in enumerate(jnp.split(x, parts, axis=-1))
    ]
    return jnp.concatenate(results, axis=-1)


def _shifted(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """A group a channel: the sum over the kernel's values of that value, for each channel, times
    the pixels that it meets. In float32 whatever the dtype."""
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
