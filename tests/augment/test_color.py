"""Pixel values, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.augment import Normalize
from jaxcls.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("mean", "std"), [(MEAN, STD), ((0.5,), (0.25,)), (MEAN, (0.25,))]
)
def test_normalize_is_to_tensor_and_normalize(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    # Every grey level in every channel, in a different order in each.
    levels = np.arange(256.0)
    images = np.stack([levels, levels[::-1], np.roll(levels, 100)], -1)
    images = images.reshape(4, 8, 8, 3)
    targets = np.eye(4, dtype=np.float32)
    normalized, kept = Normalize(mean=mean, std=std)(
        jax.random.key(0), jnp.float32(images), jnp.asarray(targets)
    )
    assert normalized.dtype == jnp.float32
    reference = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalized, reference, rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(kept, targets)


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5, 0.5), (0.5,), "2 values of mean but the images have 3 channels"),
        ((0.5,), (0.5, 0.5), "2 values of std but the images have 3 channels"),
        ((), (0.5,), "0 values of mean but the images have 3 channels"),
    ],
)
def test_a_wrong_number_of_channels_is_named(
    mean: tuple[float, ...], std: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Normalize(mean=mean, std=std)(
            jax.random.key(0), jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2))
        )


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((0.5,), (0.0,), r"Normalize.std must lie in 0..1, above 0, .*, not 0.0."),
        ((0.5,), (0.2, -0.1, 0.2), r"Normalize.std must lie in .*, not -0.1."),
        ((0.5,), (np.nan,), r"Normalize.std must lie in .*, not nan."),
        ((0.5,), (np.inf,), r"Normalize.std must lie in .*, not inf."),
        # The way out of the commonest mistake: numbers for grey levels 0..255.
        (
            (0.5,),
            (0.2, 58.4),
            r"Normalize.std .* 1 stands for grey level 255, not 58.4",
        ),
        (
            (0.5, 123.7),
            (0.2,),
            r"Normalize.mean must lie in 0..1, where .*, not 123.7.",
        ),
        ((-0.1,), (0.2,), r"Normalize.mean must lie in 0..1, where .*, not -0.1."),
        ((np.nan,), (0.2,), r"Normalize.mean must lie in .*, not nan."),
        ((), (0.2,), r"Normalize.mean is empty"),
        ((0.5,), (), r"Normalize.std is empty"),
    ],
)
def test_values_out_of_range_are_named(
    mean: tuple[float, ...], std: tuple[float, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Normalize(mean=mean, std=std).validate()


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    Normalize(mean=(0.0, 1.0), std=(1e-9, 1.0)).validate()
    Normalize(mean=(0.5,), std=(0.2, 0.1, 0.2)).validate()
