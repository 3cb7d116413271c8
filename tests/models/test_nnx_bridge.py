"""The way from linen to NNX: Flax's bridge wraps our networks as they are.

Linen stays. But a network that the bridge wraps learns the same in NNX, so recipes, weights and
checkpoints would outlive a change.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, traverse_util

from jaxcls.models import create_model

RATE = 0.1
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
LABELS = jnp.arange(4) % 3
# On CPUs both are equal to the last bit. But they are compiled separately, so another compiler may
# make their sums in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def small_network() -> tuple[Any, dict[str, Any]]:
    """A network with batch norm and dropout, and variables that no initialiser draws."""
    module = create_model(
        "resnet18", num_classes=3, stem="small", width=4, stage_sizes=(1,), dropout=0.5
    )
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGES))
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.float32(random.uniform(0.2, 0.8, leaf.shape)), dict(shapes)
    )
    return module, variables


def bridged(module: Any, variables: dict[str, Any]) -> Any:
    """The network as an NNX module that holds the same variables."""
    network = nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(IMAGES)
    for kind, collection in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        values = traverse_util.flatten_dict(variables[collection])
        state = nnx.to_flat_state(nnx.state(network, kind))
        for path, variable in state:
            variable.set_value(jnp.asarray(values.pop(path)))
        assert not values  # all of them found their places
        nnx.update(network, nnx.from_flat_state(state))
    return network


def held(network: Any, kind: Any) -> dict[tuple[Any, ...], np.ndarray]:
    """The values of an NNX module of one kind, by their paths."""
    state = nnx.to_flat_state(nnx.state(network, kind))
    return {path: np.asarray(variable.get_value()) for path, variable in state}


def assert_same(found: dict[tuple[Any, ...], np.ndarray], expected: Any) -> None:
    expected = traverse_util.flatten_dict(expected)
    assert found.keys() == expected.keys()
    for path, value in found.items():
        np.testing.assert_allclose(
            value, expected[path], **TOLERANCE, err_msg=str(path)
        )


def loss_of(logits: jax.Array) -> jax.Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return losses.mean()


def test_a_bridged_network_has_the_logits_of_linen() -> None:
    module, variables = small_network()
    expected = jax.jit(module.apply)(variables, IMAGES)
    found = nnx.jit(lambda network: network(IMAGES))(bridged(module, variables))
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert np.ptp(expected) > 100 * TOLERANCE["rtol"]


def test_a_bridged_network_learns_in_a_step_what_linen_learns() -> None:
    module, variables = small_network()
    network = bridged(module, variables)
    key = nnx.Rngs(dropout=5).dropout()  # what the bridge hands on of such a stream

    @jax.jit
    def linen_step(variables: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, updated = module.apply(
                {**variables, "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            return loss_of(logits), updated["batch_stats"]

        params = variables["params"]
        grads, stats = jax.grad(loss, has_aux=True)(params)
        updates, _ = (sgd := optax.sgd(RATE)).update(grads, sgd.init(params))
        return optax.apply_updates(params, updates), stats

    @nnx.jit
    def nnx_step(network: Any, optimizer: Any) -> None:
        def loss(network: Any) -> jax.Array:
            rngs = nnx.Rngs(dropout=5)
            logits = network(IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)
            return loss_of(logits)

        optimizer.update(network, nnx.grad(loss)(network))

    params, stats = linen_step(variables)
    nnx_step(network, nnx.Optimizer(network, optax.sgd(RATE), wrt=nnx.Param))
    assert_same(held(network, nnx.Param), params)
    assert_same(held(network, nnx.BatchStat), stats)
    # The step moved something: both are not merely what they were.
    for new, old in ((params, variables["params"]), (stats, variables["batch_stats"])):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), new, old)
        assert max(jax.tree.leaves(moved)) > 1e-3
