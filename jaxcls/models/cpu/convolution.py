"""Convolution that is fast on a CPU too.

XLA runs some convolutions far slower on CPUs than their arithmetic asks for: those with one group
per channel by one to two orders of magnitude, those with a few channels per group by more, those
whose kernel covers the whole map by two orders (3x3 on 2x2 pixels of 512 channels: 200 ms instead
of 2), and the weight gradient of 1x1 kernels several times. This file writes them out as what XLA
is good at there: sums of shifted images, or matrix products. On every other platform, and for
every other kernel, it calls lax.conv_general_dilated.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcls.models.cpu.choice import written_out_on_cpus
from jaxcls.models.cpu.windows import Windows, pad

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **others: Any,
) -> jax.Array:
    """Convolves images with a kernel, as lax.conv_general_dilated does, up to the order of its
    sums.

    nn.Conv calls it in that function's place (see Conv). Only reverse-mode differentiation
    works for the kernels that are written out.

    Args:
      x: [batch, height, width, channels].
      kernel: [kernel height, kernel width, channels / groups, features].
      strides: vertical and horizontal.
      padding: "SAME", "VALID" or ((above, below), (left, right)).
      feature_group_count: groups of channels that are convolved separately.
      **others: what nn.Conv passes besides, at its default and nothing else: no dilation,
        NHWC and HWIO as layout, no precision.

    Returns:
      [batch, height', width', features] in the dtype of x.

    Raises:
      ValueError: for a dilation, another layout or a precision: no network here has them.
    """
    expected = {
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "dimension_numbers": lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT),
        "precision": None,
    }
    for name, given in others.items():
        if given != expected[name]:
            raise ValueError(
                f"this convolution knows {name}={expected[name]} alone, not {given}; "
                "use flax.linen.Conv itself."
            )
    height, width = kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    pads = tuple((int(before), int(after)) for before, after in padding)
    windows = Windows((height, width), tuple(strides), pads)
    pointwise = windows.size == (1, 1) and pads == ((0, 0), (0, 0))
    if feature_group_count > 1 or pointwise or _covers(windows, x):
        return _convolution(windows, x, kernel)
    return _by_xla(windows, x, kernel)


Conv = functools.partial(nn.Conv, conv_general_dilated=convolution)
"""linen's layer with this convolution."""


def _by_xla(windows: Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        windows.strides,
        windows.pads,
        dimension_numbers=_LAYOUT,
        feature_group_count=_groups(x, kernel),
    )


def _groups(x: jax.Array, kernel: jax.Array) -> int:
    return x.shape[-1] // kernel.shape[2]


def _is_depthwise(x: jax.Array, kernel: jax.Array) -> bool:
    return 1 < _groups(x, kernel) == x.shape[-1] == kernel.shape[-1]


def _covers(windows: Windows, x: jax.Array) -> bool:
    """Whether the kernel is at least as large as the map that it makes."""
    return math.prod(windows.size) >= math.prod(windows.count(x))


# Jitted, so that layers of one shape are compiled once.
@functools.partial(jax.jit, static_argnums=0)
def _written_out(windows: Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if _groups(x, kernel) == 1:
        return _matrix_product(windows, x, kernel)
    if _is_depthwise(x, kernel):
        return _shifted(windows, x, kernel)
    return _few_groups(windows, x, kernel)


@functools.partial(jax.jit, static_argnums=0)
def _written_out_gradients(
    windows: Windows, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, ...]:
    if _is_depthwise(x, kernel):
        of_x = _gradient_of_x(windows, x, kernel, grad)
        return of_x, _gradient_of_kernel(windows, x, kernel, grad)
    return jax.vjp(functools.partial(_written_out, windows), x, kernel)[1](grad)


_convolution = written_out_on_cpus(_by_xla, _written_out, _written_out_gradients)


def _matrix_product(windows: Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiplies the pixels that each value of the result sees with the kernel as a matrix."""
    shifts = windows.shifts(pad(x, windows.pads), windows.count(x))
    patches = jnp.concatenate(list(shifts), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _few_groups(windows: Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Eight plain convolutions, or as many as divide the groups: each takes several groups with a
    kernel whose blocks off the diagonal are zero. That is more arithmetic, done much faster."""
    groups = _groups(x, kernel)
    parts = math.gcd(groups, 8)
    merged = groups // parts
    height, width, inputs, features = kernel.shape
    outputs = features // groups
    blocks = kernel.reshape(height, width, inputs, parts, merged, outputs)
    diagonal = jnp.eye(merged, dtype=kernel.dtype)
    # [part, height, width, group, input, group', output]: zero unless group is group'.
    kernels = jnp.einsum("hwipmo,mn->phwnimo", blocks, diagonal)
    kernels = kernels.reshape(parts, height, width, merged * inputs, merged * outputs)
    plain = _matrix_product if _covers(windows, x) else _by_xla
    shares = jnp.split(x, parts, axis=-1)
    results = [plain(windows, part, kernels[i]) for i, part in enumerate(shares)]
    return jnp.concatenate(results, axis=-1)


def _shifted(windows: Windows, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One group per channel: sums, over the kernel's values, each value times the pixels that it
    meets. Computes in float32 whatever the dtype."""
    padded = _padded(windows, x)
    rows = kernel.reshape(-1, kernel.shape[-1]).astype(padded.dtype)
    shifts = windows.shifts(padded, windows.count(x))
    total = sum(shift * row for shift, row in zip(shifts, rows, strict=True))
    return jnp.asarray(total, x.dtype)


def _gradient_of_x(
    windows: Windows, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> jax.Array:
    """Each pixel collects, from every window that it lies in, the window's gradient times the
    value of the kernel that it met there."""
    grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    taps = kernel[:, :, 0].astype(grad.dtype)
    total = windows.gather(lambda g, tap: g * tap, (grad,), taps, x.shape[1:3])
    return total.astype(x.dtype)


def _gradient_of_kernel(
    windows: Windows, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> jax.Array:
    """One reduction per image, with an accumulator for each value of the kernel, reads x once.

    A reduction for each accumulator took 5 to 10 times as long; a loop over the images would
    gather a batch that is spread over devices.
    """
    padded = _padded(windows, x)
    grad = grad.astype(padded.dtype)
    shifts = windows.shifts(padded, grad.shape[1:3])
    products = tuple(shift * grad for shift in shifts)
    zeros = (jnp.zeros((), grad.dtype),) * len(products)
    per_image = lax.reduce(
        products, zeros, lambda a, b: tuple(map(operator.add, a, b)), (1, 2)
    )
    return jnp.stack(per_image).sum(1).reshape(kernel.shape).astype(kernel.dtype)


def _padded(windows: Windows, x: jax.Array) -> jax.Array:
    """Pads in float32 or wider. The barrier keeps XLA from padding anew for every shift."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return lax.optimization_barrier(pad(wide, windows.pads))
