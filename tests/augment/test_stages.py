"""Options that change in stages of a run, on images whose size is one of them."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import config as config_lib
from jaxcls import options
from jaxcls.augment import (
    CutMix,
    GaussianBlur,
    HorizontalFlip,
    Normalize,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Scheduled,
    Staged,
    stages_of_run,
)
from jaxcls.config import Config
from jaxcls.data import Digits
from jaxcls.duration import steps
from jaxcls.errors import UserError
from jaxcls.models import MODELS, Model
from jaxcls.optim import SGD
from jaxcls.train import train

NORMALIZE = Normalize(mean=(0.5,), std=(0.25,))


def staged(*values: int) -> Staged:
    return Staged(transform=Resize(size=99), field="size", values=values)


def test_stages_divide_the_run_evenly() -> None:
    crop = RandomCrop(padding=1)
    assert stages_of_run((crop, NORMALIZE), 10) == [(0, (crop, NORMALIZE))]
    found = stages_of_run((staged(4, 6, 8), crop), 10)
    assert [first for first, _ in found] == [0, 3, 7]
    assert [transforms[0] for _, transforms in found] == [
        Resize(size=size) for size in (4, 6, 8)
    ]
    assert all(transforms[1] is crop for _, transforms in found)
    # Two of them change whenever either does.
    found = stages_of_run((staged(4, 8), staged(1, 2, 3)), 6)
    sizes = [(first, a.size, b.size) for first, (a, b) in found]  # type: ignore[attr-defined]
    assert sizes == [(0, 4, 1), (2, 4, 2), (3, 8, 2), (4, 8, 3)]


def test_outside_of_a_run_it_has_its_last_value() -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    targets = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    images, _ = jax.eval_shape(staged(4, 6), key, images, targets)
    assert images.shape == (1, 6, 6, 1)


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (Staged(transform=Resize(size=8), field="sizes"), "Did you mean 'size'"),
        (
            Staged(transform=Resize(size=8), values=()),
            r"values must be not empty, not \(\)",
        ),
        (staged(4, 0), r"Resize.size must lie in 1..16384, not 0"),
        (
            Staged(transform=RandAugment(), field="num_ops", values=(1, -1)),
            "num_ops must lie in 0..100, not -1",
        ),
        *(
            (
                Staged(transform=inner, field=field, values=(4, 5)),
                f"values has 4, but {type(inner).__name__}.{field} is .*: only options that",
            )
            for inner, field in (
                (GaussianBlur(kernel_size=3), "sigma"),
                (RandomResizedCrop(size=8), "scale"),
                (RandomResizedCrop(size=8), "antialiased"),
                (RandomErasing(), "count"),
                (RandomErasing(), "value"),
                (RandomAffine(degrees=1.0), "translate"),
                (CutMix(), "minmax"),
                (Scheduled(transform=RandAugment()), "transform"),
                (staged(4, 8), "values"),
                (RandomCrop(padding=1), "mode"),
                (NORMALIZE, "mean"),
            )
        ),
    ],
)
def test_bad_options(transform: Staged, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.check(transform)


def test_a_whole_number_is_a_value_of_an_option_with_fractions() -> None:
    flip = Staged(transform=HorizontalFlip(), field="p", values=(0, 1))
    options.check(flip)
    images = np.arange(8, dtype=np.float32).reshape(2, 1, 4, 1)
    found, _ = jax.jit(flip.__call__)(
        jax.random.key(0), images, np.eye(2, dtype=np.float32)
    )
    np.testing.assert_array_equal(found, images[:, :, ::-1])


class Pooled(nn.Module):
    """A convolution and the mean over its pixels, of images of any size."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


def config(*sizes: int, name: str = "pooled") -> Config:
    return Config(
        model=Model(name=name),
        data=Digits(),
        augment=(staged(*sizes), NORMALIZE),
        eval_transform=(Resize(size=sizes[-1]), NORMALIZE),
        optimizer=SGD(learning_rate=0.1),
        batch_size=16,
        devices=2,
        duration=steps(6),
    )


def test_the_stages_of_a_run_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "pooled", Pooled)
    losses = {}
    for name, sizes in (("staged", (4, 8)), ("again", (4, 8)), ("plain", (8,))):
        run = train(config(*sizes), tmp_path / name)
        assert run.complete and run.step == 6
        losses[name] = run.metrics["eval/loss"]
    assert losses["staged"] == losses["again"] != losses["plain"]
    assert np.isfinite(losses["staged"])


def test_a_network_that_takes_one_size_says_so(tmp_path: Path) -> None:
    wanted = dataclasses.replace(config(28, 32, name="lenet5"))
    config_lib.validate(wanted)
    with pytest.raises(UserError, match="lenet5 takes images of 32x32, not 28x28"):
        train(wanted, tmp_path)
