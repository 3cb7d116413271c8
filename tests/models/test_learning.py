"""Every family learns 64 digits by heart."""

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxcls.data import Digits
from jaxcls.models import create_model
from tests.models.tiny import TINY

# The quickest to learn, in every test run: a plain network and a residual one, of two stages.
QUICK: dict[str, dict[str, Any]] = {"lenet5": {}, "resnet18": {"stage_sizes": (1, 1)}}
RATES = {"alexnet": 3e-4, "alexnet_2012": 1e-3, "vgg11": 2e-3, "inception_v3": 1e-3}


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """64 digits, -1..1 float32 [64, 8, 8, 1], and their labels."""
    source = Digits().source("train")
    records = [source[index] for index in range(64)]
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records])
    assert set(labels) == set(range(10))
    return np.float32(images) / 127.5 - 1, labels


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        *(pytest.param(*case, id=case[0]) for case in QUICK.items()),
        # And each at the depth that it has in TINY.
        *(
            pytest.param(name, {}, marks=pytest.mark.slow, id=f"{name}-full")
            for name in TINY
            if QUICK.get(name) != {}
        ),
    ],
)
def test_it_learns_64_digits_by_heart(name: str, changed: dict[str, Any]) -> None:
    options, side = TINY[name]
    quiet = {"dropout": 0.0, "drop_path": 0.0, "aux_dropout": 0.0}
    module = create_model(name, num_classes=10, **{**options, **changed})
    module = module.clone(**{o: v for o, v in quiet.items() if hasattr(module, o)})
    pixels, labels = digits()
    nearest = (2 * np.arange(side) + 1) * 8 // (2 * side)
    images = pixels[:, nearest][:, :, nearest]
    targets = np.eye(10, dtype=np.float32)[labels]
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(RATES.get(name, 3e-3))
    )

    @jax.jit
    def start() -> Any:
        variables = module.init(jax.random.key(0), images[:1])
        params = variables["params"]
        return params, variables.get("batch_stats", {}), optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        params, stats, opt_state = state

        def loss(params: Any) -> Any:
            logits, updated = module.apply(
                {"params": params, "batch_stats": stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            correct = logits.argmax(-1) == labels
            losses = optax.softmax_cross_entropy(logits, targets)
            return losses.mean(), (updated.get("batch_stats", {}), correct.mean())

        gradients, (stats, accuracy) = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), accuracy

    state = start()
    for _ in range(300):
        state, accuracy = step(state)
        if float(accuracy) == 1:
            return
    pytest.fail(f"only {accuracy:.1%} of the digits after 300 steps")
