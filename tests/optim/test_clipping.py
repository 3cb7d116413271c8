"""Clipping, against the formulas in NumPy."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.duration import RunLength
from jaxcls.errors import UserError
from jaxcls.optim import SGD, AdaptiveClip, Clip, ClipNorm, ClipValue, Constant
from jaxcls.optim.chain import chain
from jaxcls.optim.treatment import Treatment, Treatments
from jaxcls.options import check

SHAPES = {
    "stem": {"kernel": (3, 3, 2, 4)},
    "depthwise": {"kernel": (3, 3, 1, 4)},
    "fc": {"kernel": (6, 3), "bias": (3,)},
    "bn": {"scale": (4,)},
}


def tree(seed: int, size: float = 1.0) -> Any:
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.float32(random.normal(size=shape) * size),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def clipped(clip: Clip, gradients: Any, params: Any) -> Any:
    check(clip, "clip")
    link = clip.link()
    return jax.jit(link.update)(gradients, link.init(params), params)[0]


def norm(gradients: Any) -> float:
    return math.sqrt(
        sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradients))
    )


def assert_close(values: Any, expected: Any) -> None:
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5),
        values,
        expected,
    )


@pytest.mark.parametrize("share", [0.1, 0.99, 1.01, 10.0])
def test_the_global_norm_is_at_most_the_limit(share: float) -> None:
    gradients = tree(1)
    limit = share * norm(gradients)
    expected = jax.tree.map(lambda g: np.asarray(g) * min(1, share), gradients)
    assert_close(clipped(ClipNorm(max_norm=limit), gradients, tree(0)), expected)


def test_zero_gradients_stay_zero() -> None:
    zeros = jax.tree.map(jnp.zeros_like, tree(0))
    for clip in (ClipNorm(max_norm=1.0), ClipValue(max_value=1.0), AdaptiveClip()):
        jax.tree.map(
            np.testing.assert_array_equal, clipped(clip, zeros, tree(0)), zeros
        )


def test_each_value_is_cut() -> None:
    gradients = tree(1)
    expected = jax.tree.map(lambda g: np.clip(g, -0.5, 0.5), gradients)
    assert_close(clipped(ClipValue(max_value=0.5), gradients, tree(0)), expected)


def adaptive(
    gradient: Any, weights: Any, clipping: float, epsilon: float
) -> np.ndarray:
    """Brock et al. 2021, equation 3, unit by unit."""
    gradient, weights = np.asarray(gradient, float).copy(), np.asarray(weights, float)
    if gradient.ndim == 1:
        gradient, weights = gradient[:, None], weights[:, None]
        units: Any = [0]
    else:
        units = range(gradient.shape[-1])
    for unit in units:
        size = max(np.linalg.norm(weights[..., unit]), epsilon)
        length = np.linalg.norm(gradient[..., unit])
        if length / size > clipping:
            gradient[..., unit] *= clipping * size / length
    return gradient


@pytest.mark.parametrize(("clipping", "epsilon"), [(0.6, 1e-3), (0.45, 5.0)])
def test_each_unit_is_limited_by_its_weights(clipping: float, epsilon: float) -> None:
    gradients, weights = tree(1, 0.6), tree(0)
    clip = AdaptiveClip(clipping=clipping, epsilon=epsilon)
    expected = jax.tree.map(
        lambda g, w: adaptive(g, w, clipping, epsilon).reshape(g.shape),
        gradients,
        weights,
    )
    kept = [
        bool((after == before).all())
        for after, before in zip(
            jax.tree.leaves(expected), jax.tree.leaves(gradients), strict=True
        )
    ]
    assert any(kept) and not all(kept)
    assert_close(clipped(clip, gradients, weights), expected)


def test_weights_of_zero_can_still_move() -> None:
    weights = jax.tree.map(jnp.zeros_like, tree(0))
    after = clipped(AdaptiveClip(clipping=0.1, epsilon=1e-2), tree(1), weights)
    np.testing.assert_allclose(norm(after["fc"]["bias"]), 1e-3, rtol=1e-5)


def test_what_is_excluded_is_not_clipped() -> None:
    gradients, weights = tree(1, 100.0), tree(0)
    everything = clipped(AdaptiveClip(), gradients, weights)
    without = clipped(AdaptiveClip(exclude="^fc/"), gradients, weights)
    jax.tree.map(np.testing.assert_array_equal, without["fc"], gradients["fc"])
    for layer in ("stem", "depthwise", "bn"):
        jax.tree.map(np.testing.assert_array_equal, without[layer], everything[layer])
        assert norm(without[layer]) < 0.1 * norm(gradients[layer])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ClipNorm, "max_norm"),
        (ClipValue, "max_value"),
        (AdaptiveClip, "clipping"),
        (AdaptiveClip, "epsilon"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_values_out_of_range_are_named(kind: Any, name: str, value: float) -> None:
    expected = "above 0" if math.isfinite(value) else "a number of sensible size"
    with pytest.raises(
        UserError, match=rf"clip\.{name} must be {expected}, not {value}"
    ):
        check(kind(**{name: value}), "clip")


@pytest.mark.parametrize(
    ("exclude", "freeze", "said"),
    [
        (
            "^fcc/",
            None,
            "clip.exclude '^fcc/' is found in none of the network's 5 param",
        ),
        (".", None, "leaves nothing to clip: it is found in all 5 parameters"),
        ("^fc/", "^(?!fc/)", "it is found in all 2 parameters that are trained"),
        ("^fc/", None, None),
        ("^fc/kernel", "^(?!fc/)", None),
        (None, "^(?!fc/)", None),
    ],
)
def test_an_exclusion_names_some_of_the_parameters(
    exclude: str | None, freeze: str | None, said: str | None
) -> None:
    names = ["stem/kernel", "depthwise/kernel", "bn/scale", "fc/kernel", "fc/bias"]
    treatments = Treatments(
        {
            name: Treatment(
                thaws_at=math.inf if freeze and re.search(freeze, name) else 0
            )
            for name in names
        }
    )

    def made() -> None:
        chain(
            SGD(learning_rate=0.1),
            Constant(),
            clip=AdaptiveClip(exclude=exclude),
            treatments=treatments,
            decay_schedule=None,
            run=RunLength(steps_per_epoch=10, batch_size=4, total_steps=20),
        )

    if said is None:
        made()
    else:
        with pytest.raises(UserError) as error:
            made()
        assert said in str(error.value)


@pytest.mark.parametrize("pattern", ["", "("])
def test_an_exclusion_must_be_a_pattern(pattern: str) -> None:
    with pytest.raises(UserError, match=r"clip\.exclude must be a regular expression"):
        check(AdaptiveClip(exclude=pattern), "clip")
