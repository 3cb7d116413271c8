"""Convolutions that are written out on CPUs, against XLA's own in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcls.models.cpu.convolution import Conv, convolution
from jaxcls.parallel import batch_sharded, make_mesh, replicated
from tests.optim.cases import named

# (channels, features, groups, kernel, stride, padding, height, width)
CASES = {
    "depthwise 3x3": (6, 6, 6, (3, 3), 1, ((1, 1), (1, 1)), 7, 6),
    "depthwise 3x3, stride 2, even": (6, 6, 6, (3, 3), 2, ((1, 1), (1, 1)), 8, 6),
    "depthwise 3x3, stride 2, odd": (6, 6, 6, (3, 3), 2, ((1, 1), (1, 1)), 7, 9),
    "depthwise 5x5, stride 2, same": (4, 4, 4, (5, 5), 2, "SAME", 8, 11),
    "depthwise 5x5, stride 2": (4, 4, 4, (5, 5), 2, ((2, 2), (2, 2)), 6, 5),
    "depthwise 7x7": (4, 4, 4, (7, 7), 1, ((3, 3), (3, 3)), 5, 9),
    "depthwise on one pixel": (4, 4, 4, (3, 3), 1, ((1, 1), (1, 1)), 1, 1),
    "depthwise, valid, oblong, stride 3": (4, 4, 4, (2, 3), 3, "VALID", 9, 10),
    "32 groups": (64, 64, 32, (3, 3), 1, ((1, 1), (1, 1)), 5, 4),
    "32 groups, stride 2": (64, 128, 32, (3, 3), 2, ((1, 1), (1, 1)), 6, 5),
    "2 groups": (6, 8, 2, (5, 5), 1, ((2, 2), (2, 2)), 6, 5),
    "1x1": (6, 5, 1, (1, 1), 1, "VALID", 4, 5),
    "1x1, stride 2, even": (6, 5, 1, (1, 1), 2, ((0, 0), (0, 0)), 4, 6),
    "1x1, stride 2, odd": (6, 5, 1, (1, 1), 2, "SAME", 5, 7),
    "1x1, padded": (3, 5, 1, (1, 1), 1, ((1, 1), (0, 2)), 4, 4),
    "3x3 on 2x2 pixels": (5, 7, 1, (3, 3), 1, ((1, 1), (1, 1)), 2, 2),
    "3x3 on one pixel": (5, 7, 1, (3, 3), 1, ((1, 1), (1, 1)), 1, 1),
    "3x3 to 2x2 pixels, stride 2": (5, 7, 1, (3, 3), 2, ((0, 1), (1, 0)), 4, 3),
    "7x7 as large as the image": (3, 4, 1, (7, 7), 1, "VALID", 7, 7),
    "2 groups on 2x1 pixels": (6, 8, 2, (3, 3), 1, ((1, 1), (1, 1)), 2, 1),
    "a multiplier of 2 for each channel": (4, 8, 4, (3, 3), 1, "SAME", 5, 5),
}
# Those that must not reach XLA's convolutions on a CPU: one of each kind.
NEVER_XLA = ["depthwise 3x3", "32 groups", "1x1", "3x3 on 2x2 pixels"]


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    channels, features, groups, kernel, _, _, height, width = CASES[name]
    random = np.random.default_rng(0)
    x = random.normal(size=(3, height, width, channels))
    return x, random.normal(size=(*kernel, channels // groups, features))


def reference(name: str, x: Any, kernel: Any) -> Any:
    _, _, groups, _, stride, padding, _, _ = CASES[name]
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def ours(name: str, x: Any, kernel: Any) -> Any:
    _, _, groups, _, stride, padding, _, _ = CASES[name]
    strides = (stride, stride)
    return convolution(x, kernel, strides, padding, feature_group_count=groups)


def test_values_and_gradients_are_those_of_xla() -> None:
    """All cases in two programs: ours in float32, and XLA's own in float64."""

    def both(function: Any, given: Any) -> Any:
        """The result, and the gradients of image and kernel, of each case."""
        found = {}
        for name, (x, kernel, cotangent) in given.items():
            with named(name):
                result, backward = jax.vjp(functools.partial(function, name), x, kernel)
                found[name] = (result, *backward(cotangent))
        return found

    given = {}
    for name in CASES:
        x, kernel = inputs(name)
        shape = jax.eval_shape(functools.partial(reference, name), x, kernel).shape
        given[name] = (x, kernel, np.random.default_rng(1).normal(size=shape))
    with jax.enable_x64(True):
        expected = jax.device_get(jax.jit(functools.partial(both, reference))(given))
    single = jax.tree.map(np.float32, given)
    found = jax.device_get(jax.jit(functools.partial(both, ours))(single))
    for name in CASES:
        for what, value, exact in zip(
            ("result", "gradient of the image", "gradient of the kernel"),
            found[name],
            expected[name],
            strict=True,
        ):
            assert (value.dtype, exact.dtype) == (np.float32, np.float64)
            tolerance = 1e-5 * np.abs(exact).max()
            np.testing.assert_allclose(
                value, exact, rtol=0, atol=tolerance, err_msg=f"{name}: {what}"
            )


@pytest.mark.parametrize("name", NEVER_XLA)
def test_no_grouped_convolution_is_left_to_a_cpu_and_all_to_others(name: str) -> None:
    x, kernel = inputs(name)

    def gradients(x: Any, kernel: Any) -> Any:
        return jax.grad(lambda *a: (ours(name, *a) ** 2).sum(), argnums=(0, 1))(
            x, kernel
        )

    def lowered(platform: str) -> str:
        traced = jax.jit(gradients).trace(np.float32(x), np.float32(kernel))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    groups = CASES[name][2]
    cpu, tpu = lowered("cpu"), lowered("tpu")
    if groups > 1:
        assert f"feature_group_count = {groups}" in tpu
    assert tpu.count("stablehlo.convolution(") == 3  # forward and two gradients
    assert "stablehlo.dot" not in tpu and "optimization_barrier" not in tpu
    if groups == 1:
        assert "stablehlo.convolution(" not in cpu
    assert "group_count = 1 " in cpu or "stablehlo.convolution(" not in cpu
    assert f"group_count = {max(groups, 2)} " not in cpu


@pytest.mark.parametrize("name", ["depthwise 3x3, stride 2, even", "32 groups", "1x1"])
def test_a_batch_on_eight_devices_sends_the_kernels_gradient_alone(name: str) -> None:
    x, kernel = inputs(name)
    x = np.concatenate([x] * 8)[:16]
    mesh = make_mesh(8)

    def gradients(x: Any, kernel: Any) -> Any:
        return jax.grad(lambda *a: (ours(name, *a) ** 2).sum(), argnums=(0, 1))(
            x, kernel
        )

    rows, whole = batch_sharded(mesh), replicated(mesh)
    compiled = (
        jax.jit(gradients, in_shardings=(rows, whole), out_shardings=(rows, whole))
        .lower(np.float32(x), np.float32(kernel))
        .compile()
    )
    text = compiled.as_text()
    assert text is not None
    messages = text.count(" all-reduce(") + text.count(" all-reduce-start(")
    assert messages == 1
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text


def test_the_layer_has_linens_parameters() -> None:
    import flax.linen as nn

    images = np.float32(np.random.default_rng(0).normal(size=(2, 5, 5, 6)))
    options: dict[str, Any] = {"padding": 1, "feature_group_count": 6, "name": "c"}
    layers = [kind(6, (3, 3), 2, **options) for kind in (nn.Conv, Conv)]
    key = jax.random.key(1)
    (theirs, linens), (found, ours) = jax.device_get(
        jax.jit(lambda x: [layer.init_with_output(key, x) for layer in layers])(images)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, linens)
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-6)


def test_half_precision_is_summed_in_float32() -> None:
    # 49 ones and a small value: bfloat16 would lose it from the sum of a 7x7 kernel.
    bfloat16 = np.dtype(jnp.bfloat16)
    x = np.ones((1, 7, 7, 2), bfloat16)
    kernel = np.full((7, 7, 1, 2), 1 / 256, bfloat16)
    kernel[0, 0] = 1
    result = np.asarray(
        jax.jit(lambda *a: convolution(*a, (1, 1), "VALID", feature_group_count=2))(
            x, kernel
        )
    )
    assert result.dtype == bfloat16
    np.testing.assert_array_equal(
        np.float32(result), np.float32(bfloat16.type(1 + 48 / 256))
    )


@pytest.mark.parametrize(
    "option",
    [
        {"kernel_dilation": 2},
        {"input_dilation": 2},
        {"precision": jax.lax.Precision.HIGHEST},
    ],
)
def test_what_it_does_not_know_is_refused(option: dict[str, Any]) -> None:
    layer = Conv(4, (3, 3), **option)
    with pytest.raises(ValueError, match=r"this convolution knows \w+=.* alone, not"):
        layer.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
