"""The optimizer's chain, against the update rules written out in NumPy."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.duration import RunLength, steps
from jaxcls.errors import UserError
from jaxcls.optim import SGD, AdamW, Optimizer, WarmupCosine
from jaxcls.optim.chain import chain, ema_decay, ema_update, learning_rate

STEPS, WARMUP, START, END = 20, 4, 0.1, 0.05
RUN = RunLength(steps_per_epoch=10, batch_size=4, total_steps=STEPS)
SCHEDULE = WarmupCosine(warmup=steps(WARMUP), start=START, end=END)
Tree = dict[str, np.ndarray]


def numpy_rate(peak: float, t: int) -> float:
    if t < WARMUP:
        return peak * (START + (1 - START) * t / WARMUP)
    cosine = math.cos(math.pi * (t - WARMUP) / (STEPS - 1 - WARMUP))
    return peak * (END + (1 - END) * (1 + cosine) / 2)


def initial() -> Tree:
    random = np.random.default_rng(0)
    return {
        "conv": random.normal(size=(3, 3, 2, 4)),
        "kernel": random.normal(size=(5, 4)),
        "bias": random.normal(size=4),
        "scale": random.normal(size=4),
    }


def gradients() -> list[Tree]:
    """Fixed gradients, every third of them ten times larger."""
    random = np.random.default_rng(1)
    return [
        {
            name: random.normal(size=leaf.shape) * (10 if t % 3 == 2 else 1)
            for name, leaf in initial().items()
        }
        for t in range(STEPS)
    ]


def clipped(grads: Tree, limit: float | None) -> Tree:
    norm = math.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
    if limit is None or norm <= limit:
        return grads
    return {name: leaf * (limit / norm) for name, leaf in grads.items()}


def sgd(momentum: float, nesterov: bool) -> Callable[[np.ndarray, dict, int], Any]:
    """Sutskever et al. 2013, as torch.optim.SGD writes it."""

    def direction(gradient: np.ndarray, memory: dict, t: int) -> np.ndarray:
        memory["v"] = momentum * memory.get("v", 0) + gradient
        return gradient + momentum * memory["v"] if nesterov else memory["v"]

    return direction


def adam(beta1: float, beta2: float, epsilon: float) -> Callable:
    """Kingma & Ba 2014, algorithm 1."""

    def direction(gradient: np.ndarray, memory: dict, t: int) -> np.ndarray:
        memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * gradient
        memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * gradient**2
        mean = memory["m"] / (1 - beta1 ** (t + 1))
        square = memory["v"] / (1 - beta2 ** (t + 1))
        return mean / (np.sqrt(square) + epsilon)

    return direction


CASES = [
    (SGD(learning_rate=0.05, weight_decay=0.1), sgd(0.9, True), 20.0),
    (
        SGD(learning_rate=0.05, weight_decay=0.1, momentum=0.8, nesterov=False),
        sgd(0.8, False),
        20.0,
    ),
    (SGD(learning_rate=0.05, momentum=0.0), sgd(0.0, False), None),
    (AdamW(learning_rate=0.01, weight_decay=0.1), adam(0.9, 0.999, 1e-8), 20.0),
    (
        AdamW(learning_rate=0.01, beta1=0.8, beta2=0.95, epsilon=0.1),
        adam(0.8, 0.95, 0.1),
        None,
    ),
]


@pytest.mark.parametrize(("optimizer", "direction", "clip_norm"), CASES)
def test_twenty_steps_are_the_formula(
    optimizer: Optimizer, direction: Callable, clip_norm: float | None
) -> None:
    grads = gradients()
    norms = [math.sqrt(sum((leaf**2).sum() for leaf in g.values())) for g in grads]
    assert min(norms) < 20 < max(norms)  # the limit clips some steps and not others

    tx = chain(optimizer, SCHEDULE, clip_norm, RUN)

    @jax.jit
    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params: Any = jax.tree.map(jnp.float32, initial())
    state = tx.init(params)
    reference = initial()
    memories: dict[str, dict] = {name: {} for name in reference}
    for t in range(STEPS):
        params, state = update(jax.tree.map(jnp.float32, grads[t]), state, params)
        rate = numpy_rate(optimizer.learning_rate, t)
        for name, gradient in clipped(grads[t], clip_norm).items():
            step = direction(gradient, memories[name], t)
            if name in ("conv", "kernel"):
                step = step + optimizer.weight_decay * reference[name]
            reference[name] = reference[name] - rate * step
        for name, expected in reference.items():
            error = np.abs(params[name] - expected).max() / np.abs(expected).max()
            assert error < 1e-5, (t, name)
    for name, before in initial().items():
        assert np.abs(reference[name] - before).max() > 0.02  # it went somewhere


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_without_gradients_only_kernels_shrink(optimizer: type[Optimizer]) -> None:
    # Powers of two, so that lr * wd and the products are exact in float32.
    config = optimizer(learning_rate=0.5, weight_decay=0.25)
    tx = chain(config, WarmupCosine(warmup=steps(0)), None, RUN)
    params: Any = jax.tree.map(jnp.float32, initial())
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    for name in ("conv", "kernel"):
        np.testing.assert_array_equal(
            after[name], params[name] - np.float32(0.125) * params[name]
        )
    for name in ("bias", "scale"):
        np.testing.assert_array_equal(after[name], params[name])


def test_without_decay_and_gradients_nothing_moves() -> None:
    tx = chain(SGD(learning_rate=0.5), SCHEDULE, 1.0, RUN)
    params: Any = jax.tree.map(jnp.float32, initial())
    zeros = jax.tree.map(jnp.zeros_like, params)
    # Clipping divides by the norm, which is 0 here.
    updates, _ = tx.update(zeros, tx.init(params), params)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, 0)


def test_decay_is_not_scaled_by_the_size_of_the_gradients() -> None:
    """Decoupled: AdamW divides gradients by their size, never the decay."""
    params: Any = jax.tree.map(jnp.float32, initial())
    moved = {}
    for decay in (0.0, 0.5):
        config = AdamW(learning_rate=0.1, weight_decay=decay)
        tx = chain(config, WarmupCosine(warmup=steps(0)), None, RUN)
        grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1000), params)
        updates, _ = tx.update(grads, tx.init(params), params)
        moved[decay] = updates["kernel"]
    np.testing.assert_allclose(
        moved[0.5] - moved[0.0], -0.05 * params["kernel"], rtol=1e-4, atol=1e-6
    )


def test_the_reported_rate_is_the_one_that_is_used() -> None:
    config = SGD(learning_rate=0.3, momentum=0.0)
    tx = chain(config, SCHEDULE, None, RUN)
    rate = learning_rate(config, SCHEDULE, RUN)
    params: Any = {"bias": jnp.zeros(1)}
    state = tx.init(params)
    for t in range(STEPS):
        updates, state = tx.update({"bias": jnp.ones(1)}, state, params)
        np.testing.assert_allclose(-updates["bias"][0], rate(t), rtol=1e-6)
        np.testing.assert_allclose(rate(t), numpy_rate(0.3, t), rtol=1e-5)


def test_ema_keeps_equal_values_exactly() -> None:
    random = np.random.default_rng(2)
    values = {"kernel": jnp.float32(random.normal(size=(40, 25)) * 10.0)}
    average: Any = values
    for t in range(20):
        average = ema_update(average, values, ema_decay(0.997, t))
    np.testing.assert_array_equal(average["kernel"], values["kernel"])


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9999])
def test_ema_is_the_recursion(decay: float) -> None:
    random = np.random.default_rng(3)
    sequence = random.normal(size=(30, 7))
    average: Any = [jnp.zeros(7)]
    reference = np.zeros(7)
    for t, values in enumerate(sequence):
        average = ema_update(average, [jnp.float32(values)], ema_decay(decay, t))
        # The num_updates rule of TensorFlow's ExponentialMovingAverage.
        share = min(decay, (1 + t) / (10 + t))
        reference = share * reference + (1 - share) * values
        np.testing.assert_allclose(average[0], reference, rtol=1e-5, atol=1e-6)


def test_ema_stays_float32() -> None:
    average = ema_update(
        {"kernel": jnp.ones(3)},
        {"kernel": jnp.zeros(3, jnp.bfloat16)},
        ema_decay(0.9, 0),
    )
    assert average["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(average["kernel"], 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        *(
            (
                kind(learning_rate=rate),
                f"learning_rate must be a number above 0, not {rate}.",
            )
            for kind, rate in (
                (SGD, 0.0),
                (AdamW, -1.0),
                (SGD, np.nan),
                (AdamW, np.inf),
            )
        ),
        *(
            (
                SGD(learning_rate=1.0, weight_decay=decay),
                f"optimizer.weight_decay must be a number, 0 or more, not {decay}.",
            )
            for decay in (-0.1, np.nan, np.inf)
        ),
        (SGD(learning_rate=1.0, momentum=1.0), "optimizer.momentum must lie in 0..1"),
        (SGD(learning_rate=1.0, momentum=-0.1), "not -0.1"),
        (AdamW(learning_rate=1.0, beta1=1.0), "optimizer.beta1 must lie in 0..1"),
        (AdamW(learning_rate=1.0, beta2=-0.5), "below 1, not -0.5"),
        (AdamW(learning_rate=1.0, epsilon=0.0), "optimizer.epsilon must be above 0"),
    ],
)
def test_values_out_of_range_are_named(optimizer: Optimizer, said: str) -> None:
    with pytest.raises(UserError) as error:
        optimizer.validate()
    assert said in str(error.value)


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    SGD(learning_rate=1e-9, momentum=0.0).validate()
    AdamW(learning_rate=10.0, beta1=0.0, beta2=0.0).validate()


def test_an_optimizer_without_a_direction_says_so() -> None:
    class Forgetful(Optimizer):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*direction"):
        Forgetful(learning_rate=1.0)  # type: ignore[abstract]
