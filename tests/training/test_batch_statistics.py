"""Statistics of batch norms over many batches, against NumPy on what the norms saw."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxcls.augment import Normalize
from jaxcls.errors import UserError
from jaxcls.models import create_model
from jaxcls.models.layers import BatchNorm, frozen_collection
from jaxcls.training.batch_statistics import from_moments, moments_step

NORMALIZE = Normalize(mean=(0.4,), std=(0.2,))
BATCHES, ROWS = 3, 4


def network(**options: Any) -> nn.Module:
    return create_model(
        "resnet18", num_classes=3, stem="small", width=2, stage_sizes=(1, 1), **options
    )


@functools.cache
def variables() -> dict[str, Any]:
    """Weights and statistics, no two alike."""
    made = jax.eval_shape(
        lambda: network().init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    )
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: np.float32(random.uniform(0.2, 1, leaf.shape)), dict(made)
    )


def batches() -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [
        {
            # Some batches are brighter, so that their means spread too.
            "image": random.integers(0, 80 + 80 * i, (ROWS, 4, 4, 1)).astype(np.uint8),
            "label": np.zeros(ROWS, np.int32),
            "mask": np.ones(ROWS, bool),
        }
        for i in range(BATCHES)
    ]


@functools.cache
def step(**options: Any) -> Any:
    return jax.jit(
        functools.partial(
            moments_step,
            model=network(**options),
            transforms=(NORMALIZE,),
        )
    )


def seen_by_norms(batches: list[Any]) -> dict[str, np.ndarray]:
    """The inputs of every norm in training without noise, [values, channels]."""

    @jax.jit
    def inputs(image: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            if isinstance(module, BatchNorm) and context.method_name == "__call__":
                found["/".join(module.path)] = args[0]
            return call(*args, **kwargs)

        images = (image / 255.0 - 0.4) / 0.2
        with nn.intercept_methods(note):
            network().apply(variables(), images, train=True, mutable=["batch_stats"])
        return found

    parts = [inputs(np.float32(batch["image"])) for batch in batches]
    return {
        path: np.concatenate(
            [np.float64(part[path]).reshape(-1, part[path].shape[-1]) for part in parts]
        )
        for path in parts[0]
    }


def flat(tree: Any) -> dict[str, np.ndarray]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


# Dropping would need random numbers, which the step does not give.
@pytest.mark.parametrize("options", [{}, {"drop_path": 0.5, "dropout": 0.5}])
def test_statistics_are_those_of_all_that_the_norms_saw(options: Any) -> None:
    given = batches()
    parts = [step(**options)(variables(), batch) for batch in given]
    found = flat(from_moments(variables()["batch_stats"], parts))
    seen = seen_by_norms(given)
    assert set(found) == {f"{path}/{of}" for path in seen for of in ("mean", "var")}
    for path, values in seen.items():
        np.testing.assert_allclose(found[f"{path}/mean"], values.mean(0), rtol=1e-4)
        np.testing.assert_allclose(
            found[f"{path}/var"], values.var(0, ddof=1), rtol=1e-4
        )
        assert found[f"{path}/var"].dtype == np.float32


def test_groups_do_not_change_what_the_first_norm_saw() -> None:
    given = batches()
    whole, halves = (
        flat(
            from_moments(
                variables()["batch_stats"],
                [step(**options)(variables(), batch) for batch in given],
            )
        )
        for options in ({}, {"bn_group": 2})
    )
    for name in ("bn1/mean", "bn1/var"):
        np.testing.assert_allclose(halves[name], whole[name], rtol=1e-5)
    # Deeper norms see what groups of two images gave.
    assert (
        np.abs(halves["layer2_0/bn2/var"] / whole["layer2_0/bn2/var"] - 1).max() > 0.01
    )


def test_a_batch_that_is_not_full_counts_for_nothing() -> None:
    first, second, third = batches()
    torn = {**second, "mask": np.array([True, True, False, True])}
    with_torn, without = (
        from_moments(
            variables()["batch_stats"],
            [step()(variables(), batch) for batch in given],
        )
        for given in ([first, torn, third], [first, third])
    )
    jax.tree.map(np.testing.assert_array_equal, with_torn, without)
    with pytest.raises(UserError, match="none of 1 batches has an image in every row"):
        from_moments(variables()["batch_stats"], [step()(variables(), torn)])


def test_frozen_norms_keep_their_statistics() -> None:
    stats = variables()["batch_stats"]
    frozen = frozen_collection(stats, lambda path: path.startswith("layer1_0"))
    with_frozen = {**variables(), "frozen": frozen}
    parts = [step()(with_frozen, batch) for batch in batches()]
    found = flat(from_moments(stats, parts))
    for path, old in flat(stats).items():
        is_same = np.array_equal(found[path], old)
        assert is_same == path.startswith("layer1_0"), path


def test_a_network_without_norms_has_nothing_to_change() -> None:
    assert from_moments({}, [{}, {}]) == {}
