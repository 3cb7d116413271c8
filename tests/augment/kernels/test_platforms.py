"""That each platform gets its formulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment.kernels.platforms import by_platform, repeated


@pytest.mark.parametrize(
    ("platform", "wanted"), [("cpu", "sine"), ("tpu", "tanh"), ("cuda", "cosine")]
)
def test_a_program_has_the_formulation_of_its_platform_alone(
    platform: str, wanted: str
) -> None:
    compute = by_platform(jnp.cos, cpu=jnp.sin, tpu=jnp.tanh)
    traced = jax.jit(compute).trace(jnp.ones(3))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    for name in ("sine", "tanh", "cosine"):
        assert (f"stablehlo.{name}" in program) == (name == wanted)


def test_steps_are_repeated_on_bytes() -> None:
    def step(index: jax.Array, images: jax.Array) -> jax.Array:
        assert images.dtype == jnp.uint8
        return images * 10 + index.astype(jnp.uint8)

    images = jnp.ones((1, 2, 2, 1))
    found = repeated(2, step, images, tpu_dtype=jnp.uint8)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, 101.0)  # (1 * 10 + 0) * 10 + 1
