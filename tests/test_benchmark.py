"""What the benchmark measures is what it says."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import augment
from jaxcls.benchmark import every_branch, lesson, main, medians, photographs


def test_every_branch_applies_as_many_operations_as_asked_for() -> None:
    operations = [
        lambda key, images, number=number: images * 10 + number for number in (1, 2, 3)
    ]
    images = jnp.zeros((600, 1, 1, 1))
    found = every_branch(jax.random.key(0), images, operations, 2).ravel()
    pairs, counts = np.unique(np.asarray(found).astype(int), return_counts=True)
    assert pairs.tolist() == [11, 12, 13, 21, 22, 23, 31, 32, 33]
    assert counts.min() > 30  # of 67; each image draws for itself


def test_the_first_turn_is_not_counted() -> None:
    waits = iter([0.2, 0.01, 0.01, 0.01])
    found = medians({"call": lambda: time.sleep(next(waits))}, turns=3)
    assert 0.01 <= found["call"] < 0.15


def test_the_lessons_pipeline_takes_its_images() -> None:
    images = photographs(16, 32)
    assert images.shape == (16, 32, 32, 3) and images.dtype == np.uint8
    assert images.std((1, 2, 3)).min() > 10  # not flat
    transforms = lesson(32)
    for transform in transforms:
        transform.validate()
    result, _ = jax.eval_shape(
        lambda: augment.apply(transforms, jax.random.key(0), images, jnp.ones((16, 10)))
    )
    assert result.shape == images.shape


def test_what_it_does_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["augmentation"])
    assert error.value.code == 2
    assert "invalid choice: 'augmentation'" in capsys.readouterr().err
