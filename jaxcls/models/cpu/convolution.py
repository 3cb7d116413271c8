"""Convolution that is fast on a CPU too.

XLA runs some convolutions far slower on CPUs than their arithmetic asks for: those with a group
a channel by one to two orders of magnitude, those with a few channels a group by more, those of a
kernel that covers its whole map by two orders (3x3 on 2x2 pixels of 512 channels: 200 ms instead
of 2), and the weight gradient of 1x1 kernels several times. They are written out as what XLA is
good at there: sums of shifted images, or matrix products. On every other platform, and for every
other kernel, this is lax.conv_general_dilated and its gradients.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcls.models.cpu import windows
from jaxcls.models.cpu.windows import Pads

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
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
      lhs_dilation: as all that nn.Conv passes besides, at its default and nothing else.
      rhs_dilation: likewise.
      dimension_numbers: likewise: NHWC and HWIO.
      feature_group_count: groups of channels that are convolved apart.
      precision: as dilations.

    Returns:
      [batch, height', width', features] in the dtype of x.

    Raises:
      ValueError: for a dilation, another layout or a precision: no network here has them.
    """
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT)
    for name, given, expected in (
        ("lhs_dilation", tuple(lhs_dilation), (1, 1)),
        ("rhs_dilation", tuple(rhs_dilation), (1, 1)),
        ("dimension_numbers", dimension_numbers or layout, layout),
        ("precision", precision, None),
    ):
        if given != expected:
            raise ValueError(
                f"this convolution knows {name}={expected} alone, not {given}; "
                "use flax.linen.Conv itself."
            )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (above, below), (left, right) = padding
    pads = ((int(above), int(below)), (int(left), int(right)))
    down, across = (int(stride) for stride in strides)
    args = (x, kernel, (down, across), pads, feature_group_count)
    pointwise = kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))
    if feature_group_count > 1 or pointwise or _covers(*args[:4]):
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
        return _matrix_product(x, kernel, strides, pads)
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


def _covers(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> bool:
    """Whether the kernel is at least as large as the map that it makes."""
    size = windows.count(x.shape[1:3], kernel.shape[:2], strides, pads)
    return math.prod(kernel.shape[:2]) >= math.prod(size)


def _matrix_product(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """The pixels that each value of the result sees, times the kernel as one matrix."""
    shifts = windows.shifts(
        windows.pad(x, pads),
        kernel.shape[:2],
        strides,
        windows.count(x.shape[1:3], kernel.shape[:2], strides, pads),
    )
    patches = jnp.concatenate(list(shifts), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


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
    whole = functools.partial(_lax, groups=1)
    plain = _matrix_product if _covers(x, kernel, strides, pads) else whole
    results = [
        plain(part, kernels[index], strides, pads)
        for index, part in enumerate(jnp.split(x, parts, axis=-1))
    ]
    return jnp.concatenate(results, axis=-1)


def _shifted(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """A group a channel: the sum over the kernel's values of that value, for each channel, times
    the pixels that it meets. In float32 whatever the dtype."""
    padded = _padded(x, pads)
    rows = kernel.reshape(-1, kernel.shape[-1]).astype(padded.dtype)
    size = windows.count(x.shape[1:3], kernel.shape[:2], strides, pads)
    shifts = windows.shifts(padded, kernel.shape[:2], strides, size)
    total = sum(shift * row for shift, row in zip(shifts, rows, strict=True))
    return jnp.asarray(total, x.dtype)


def _grad_to_x(
    x: jax.Array,
    kernel: jax.Array,
    grad: jax.Array,
    strides: tuple[int, int],
    pads: Pads,
) -> jax.Array:
    """To a pixel, from each window that it lies in: the window's gradient times the value of the
    kernel that it met there."""
    grad = grad.astype(jnp.promote_types(grad.dtype, jnp.float32))
    taps = kernel[:, :, 0].astype(grad.dtype)
    image = x.shape[1], x.shape[2]
    total = windows.gather(lambda g, tap: g * tap, (grad,), taps, strides, pads, image)
    return total.astype(x.dtype)


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
    shifts = windows.shifts(padded, kernel.shape[:2], strides, grad.shape[1:3])
    products = tuple(shift * grad for shift in shifts)
    zeros = (jnp.zeros((), grad.dtype),) * len(products)
    per_image = lax.reduce(
        products,
        zeros,
        lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True)),
        (1, 2),
    )
    return jnp.stack(per_image).sum(1).reshape(kernel.shape).astype(kernel.dtype)


def _padded(x: jax.Array, pads: Pads) -> jax.Array:
    """Pads in float32 or wider. The barrier keeps XLA from padding anew for every shift."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return lax.optimization_barrier(windows.pad(wide, pads))
