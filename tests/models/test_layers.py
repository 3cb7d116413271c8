"""Batch normalisation against NumPy, in groups and over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxcls.errors import UserError
from jaxcls.models.layers import BatchNorm
from jaxcls.parallel import batch_sharded, make_mesh, replicated

SHAPE = (16, 3, 5, 6)


def inputs() -> np.ndarray:
    """Images whose channels, and whose single images, differ in mean and spread."""
    random = np.random.default_rng(0)
    x = random.normal(size=SHAPE) * np.linspace(0.3, 3, 6) + np.linspace(-2, 2, 6)
    return np.float32(x * np.linspace(0.5, 2, 16)[:, None, None, None])


def variables() -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "params": {
            "scale": np.float32(random.uniform(0.5, 2, 6)),
            "bias": np.float32(random.normal(size=6)),
        },
        "batch_stats": {
            "mean": np.float32(random.normal(size=6)),
            "var": np.float32(random.uniform(0.5, 2, 6)),
        },
    }


def train(layer: BatchNorm, x: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    y, updated = jax.jit(
        lambda x: layer.apply(variables(), x, mutable=["batch_stats"])
    )(x)
    return np.asarray(y), jax.tree.map(np.asarray, updated["batch_stats"])


def reference(x: np.ndarray, group: int, epsilon: float) -> tuple[np.ndarray, ...]:
    """Result, and mean and unbiased variance averaged over the groups, in float64."""
    params = variables()["params"]
    results, means, unbiased = [], [], []
    for start in range(0, len(x), group):
        part = np.float64(x[start : start + group])
        mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
        normalized = (part - mean) / np.sqrt(var + epsilon)
        results.append(normalized * params["scale"] + params["bias"])
        means.append(mean)
        unbiased.append(part.reshape(-1, 6).var(0, ddof=1))
    return np.concatenate(results), np.mean(means, 0), np.mean(unbiased, 0)


@pytest.mark.parametrize(
    ("group", "images"), [(None, 16), (16, 16), (4, 4), (2, 2), (1, 1)]
)
def test_training_normalises_each_group(group: int | None, images: int) -> None:
    x = inputs()
    y, stats = train(BatchNorm(train=True, group=group), x)
    expected, mean, var = reference(x, images, 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    # Torch's rule: the running variance takes n/(n-1) of the variance that normalises.
    old = variables()["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-5)


def test_momentum_and_epsilon_are_honoured() -> None:
    x = inputs()
    y, stats = train(BatchNorm(train=True, momentum=0.25, epsilon=0.5), x)
    expected, mean, _ = reference(x, 16, 0.5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    old = variables()["batch_stats"]["mean"]
    np.testing.assert_allclose(stats["mean"], 0.25 * old + 0.75 * mean, rtol=1e-5)


def test_the_whole_batch_is_one_group() -> None:
    x = inputs()
    whole, one = (
        train(BatchNorm(train=True), x),
        train(BatchNorm(train=True, group=16), x),
    )
    jax.tree.map(np.testing.assert_array_equal, whole, one)


def test_evaluation_uses_the_running_statistics() -> None:
    # Seven images: a group that divides the batch matters in training only.
    x = inputs()[:7]
    layer = BatchNorm(train=False, group=4)
    y, updated = layer.apply(variables(), x, mutable=["batch_stats"])
    params, stats = variables()["params"], variables()["batch_stats"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    expected = expected * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        np.testing.assert_array_equal, dict(updated.get("batch_stats", stats)), stats
    )


def test_a_frozen_layer_works_as_in_evaluation() -> None:
    frozen = {**variables(), "frozen": {"frozen": np.True_}}
    # A group that does not divide the batch matters only where it is used.
    layer = BatchNorm(train=True, group=5)
    y, updated = jax.jit(
        lambda v: layer.apply(v, inputs(), mutable=["batch_stats", "moments"])
    )(frozen)
    expected = jax.jit(lambda v: BatchNorm(train=False).apply(v, inputs()))(variables())
    np.testing.assert_array_equal(y, expected)
    stats = dict(updated.get("batch_stats", variables()["batch_stats"]))
    jax.tree.map(np.testing.assert_array_equal, stats, variables()["batch_stats"])
    assert "moments" not in updated


@pytest.mark.parametrize("group", [None, 4])
def test_moments_are_those_of_the_whole_step(group: int | None) -> None:
    x = inputs()
    layer = BatchNorm(train=True, group=group)
    _, updated = layer.apply(variables(), x, mutable=["batch_stats", "moments"])
    values = np.float64(x).reshape(-1, 6)
    moments = updated["moments"]
    np.testing.assert_allclose(moments["mean"], values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(moments["mean_square"], (values**2).mean(0), rtol=1e-5)
    assert moments["count"] == len(values) == 16 * 3 * 5
    _, plain = layer.apply(variables(), x, mutable=["batch_stats"])
    assert set(plain) == {"batch_stats"}


def test_it_starts_as_no_change() -> None:
    for is_training in (False, True):
        fresh = BatchNorm(train=is_training).init(jax.random.key(0), inputs())
        expected = {
            "params": {"scale": np.ones(6), "bias": np.zeros(6)},
            # Making the variables must not count as a step.
            "batch_stats": {"mean": np.zeros(6), "var": np.ones(6)},
        }
        jax.tree.map(np.testing.assert_array_equal, dict(fresh), expected)


def test_one_value_has_no_variance_to_divide_by() -> None:
    # n = 1: n/(n-1) would be infinite.
    y, stats = train(BatchNorm(train=True, group=1), np.float32(np.ones((2, 1, 1, 6))))
    np.testing.assert_allclose(
        y, np.broadcast_to(variables()["params"]["bias"], y.shape)
    )
    assert np.isfinite(stats["var"]).all()


def test_gradients_flow_through_the_statistics() -> None:
    x, cotangent = inputs(), np.random.default_rng(2).normal(size=SHAPE)
    params = variables()["params"]

    @jax.jit
    def gradients(x: jax.Array) -> tuple[jax.Array, Any]:
        def result(x: jax.Array, params: Any) -> jax.Array:
            y, _ = BatchNorm(train=True, group=4).apply(
                {**variables(), "params": params},
                x,
                mutable=["batch_stats"],
            )
            return (y * cotangent).sum()

        return jax.grad(result, argnums=(0, 1))(x, params)

    found, of_params = gradients(x)
    # Ioffe & Szegedy 2015, section 3, in closed form, group by group.
    for start in range(0, 16, 4):
        part = np.float64(x[start : start + 4])
        g = cotangent[start : start + 4] * params["scale"]
        deviation = np.sqrt(part.var((0, 1, 2)) + 1e-5)
        z = (part - part.mean((0, 1, 2))) / deviation
        expected = g - g.mean((0, 1, 2)) - z * (g * z).mean((0, 1, 2))
        np.testing.assert_allclose(
            found[start : start + 4], expected / deviation, rtol=1e-3, atol=1e-4
        )
    np.testing.assert_allclose(of_params["bias"], cotangent.sum((0, 1, 2)), rtol=1e-4)
    normalized = (reference(x, 4, 1e-5)[0] - params["bias"]) / params["scale"]
    np.testing.assert_allclose(
        of_params["scale"],
        (normalized * cotangent).sum((0, 1, 2)),
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_group_that_does_not_divide_the_batch_is_an_error() -> None:
    for group in (3, 5, 32, 0, -1, -4):
        with pytest.raises(UserError, match=f"bn_group {group} .*batch of 16 images"):
            jax.eval_shape(
                lambda x, g=group: train(BatchNorm(train=True, group=g), x), inputs()
            )


def test_statistics_are_float32_below_a_bfloat16_result() -> None:
    # 200 has 8 bits: the variance of values around it would drown in bfloat16.
    x = jnp.asarray(inputs() + 200, jnp.bfloat16)
    y, stats = train(BatchNorm(train=True, dtype=jnp.bfloat16), x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in stats.values()} == {np.dtype("float32")}
    expected, mean, var = reference(np.asarray(x, np.float32), 16, 1e-5)
    old = variables()["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * old["var"] + 0.1 * var, rtol=2e-2)
    np.testing.assert_allclose(np.float32(y), expected, rtol=0.05, atol=0.05)
    # Without a dtype the input's stays.
    assert train(BatchNorm(train=True), x)[0].dtype == jnp.bfloat16


def input_gradient(group: int | None, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles forward and backward pass with respect to the input alone: gradients of the
    parameters are summed over devices by any layer."""

    def both(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        def forward(x: jax.Array) -> jax.Array:
            y, _ = BatchNorm(train=True, group=group).apply(
                variables(), x, mutable=["batch_stats"]
            )
            return y

        y, backward = jax.vjp(forward, x)
        return y, backward(cotangent)[0]

    rows = batch_sharded(mesh)
    shape = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    jitted = jax.jit(both, in_shardings=(rows, rows), out_shardings=(rows, rows))
    return jitted.lower(shape, shape).compile()


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute")


@pytest.mark.parametrize("group", [1, 2])
def test_whole_groups_on_a_device_need_no_messages(group: int) -> None:
    text = input_gradient(group, make_mesh(8)).as_text()
    assert text is not None
    assert "num_partitions=8" in text
    for collective in COLLECTIVES:
        assert collective not in text


def test_statistics_of_the_whole_batch_are_one_message_each_way() -> None:
    # The control of the test above, and the promise that mean and square travel together.
    text = input_gradient(None, make_mesh(8)).as_text()
    assert text is not None
    messages = text.count(" all-reduce(") + text.count(" all-reduce-start(")
    assert messages == 2


@pytest.mark.parametrize("group", [None, 2, 8])
def test_the_result_does_not_depend_on_the_number_of_devices(group: int | None) -> None:
    x, cotangent = inputs(), np.float32(np.random.default_rng(2).normal(size=SHAPE))
    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        rows, whole = batch_sharded(mesh), replicated(mesh)
        y, gradient = input_gradient(group, mesh)(
            jax.device_put(x, rows), jax.device_put(cotangent, rows)
        )
        _, stats = jax.jit(
            lambda x: BatchNorm(train=True, group=group).apply(
                variables(), x, mutable=["batch_stats"]
            ),
            out_shardings=(rows, whole),
        )(jax.device_put(x, rows))
        results.append((y, gradient, stats))
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(eight, one, rtol=1e-4, atol=1e-5),
        *results,
    )
