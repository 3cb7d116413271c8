"""What policies choose, how strongly and how often; their operations are tested elsewhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import options
from jaxcls.augment import policies
from jaxcls.augment.kernels import platforms
from jaxcls.augment.kernels.operations import OPERATIONS, apply_op
from jaxcls.augment.policies import (
    SIGNED,
    AugMix,
    AutoAugment,
    RandAugment,
    ThreeAugment,
    TimmRandAugment,
    TrivialAugmentWide,
    rand_augment_space,
    sub_policies,
    timm_space,
    trivial_augment_space,
)
from jaxcls.augment.policies import augmix_space as mix_space
from jaxcls.errors import UserError

NAMES = list(OPERATIONS)
HEIGHT, WIDTH = 40, 56
BINS = np.arange(31)
ENHANCE = ("Brightness", "Color", "Contrast", "Sharpness")


@dataclasses.dataclass
class Log:
    """What was done to each image: its channels are rounds, last operation, last magnitude."""

    names: np.ndarray
    magnitudes: np.ndarray
    rounds: np.ndarray


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Log]:
    """Returns a function that calls a policy and tells what it did to each image."""

    def noting(index: int) -> Callable[..., jax.Array]:
        def operate(
            images: jax.Array, magnitude: jax.Array, interpolation: str, fill: float
        ) -> jax.Array:
            each = magnitude.reshape(-1, 1, 1) + jnp.zeros(images.shape[:3])
            number = jnp.full_like(each, index)
            return jnp.stack([images[..., 0] + 1, number, each], -1)

        return operate

    for index, name in enumerate(NAMES):
        monkeypatch.setitem(OPERATIONS, name, noting(index))
    # What is written here into pixels are no grey levels.
    monkeypatch.setattr(platforms, "LEVELS", jnp.float32)

    def call(policy: Any, calls: int = 200, batch: int = 64) -> Log:
        def one(rng: jax.Array) -> jax.Array:
            images, _ = policy(rng, jnp.zeros((batch, 2, 3, 3)), jnp.zeros((batch, 2)))
            return images[:, 1, 2]

        keys = jax.random.split(jax.random.key(3), calls)
        found = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys))
        rounds, names, magnitudes = found.reshape(-1, 3).T
        return Log(np.array(NAMES)[names.astype(int)], magnitudes, rounds)

    return call


def near(found: float, expected: float, count: int) -> bool:
    """Whether a frequency lies within six standard deviations of a probability. Images of a
    row share their operation, so that a batch of 64 tells as much as 8 images or more."""
    return abs(found - expected) < 6 * np.sqrt(expected * (1 - expected) / (count / 8))


def by_hand() -> dict[str, np.ndarray]:
    """RandAugment's magnitudes at each of 31 bins."""
    zero = np.zeros(31)
    return {
        "Identity": zero,
        "ShearX": np.linspace(0, 0.3, 31),
        "ShearY": np.linspace(0, 0.3, 31),
        "TranslateX": np.linspace(0, 150 / 331 * WIDTH, 31),
        "TranslateY": np.linspace(0, 150 / 331 * HEIGHT, 31),
        "Rotate": np.linspace(0, 30, 31),
        **{name: np.linspace(0, 0.9, 31) for name in ENHANCE},
        "Posterize": 8 - np.round(BINS / (30 / 4)),
        "Solarize": np.linspace(255, 0, 31),
        "AutoContrast": zero,
        "Equalize": zero,
    }


def test_the_space_of_rand_augment() -> None:
    space = rand_augment_space(HEIGHT, WIDTH, jnp.asarray(BINS / 30, jnp.float32))
    expected = by_hand()
    assert space.keys() == expected.keys()
    for name, magnitudes in expected.items():
        np.testing.assert_allclose(space[name], magnitudes, atol=3e-5, err_msg=name)


def test_the_space_of_trivial_augment() -> None:
    space = trivial_augment_space(jnp.asarray(BINS / 30, jnp.float32))
    expected = by_hand() | {name: np.linspace(0, 0.99, 31) for name in ENHANCE}
    expected |= {f"Shear{axis}": np.linspace(0, 0.99, 31) for axis in "XY"}
    expected |= {f"Translate{axis}": np.linspace(0, 32, 31) for axis in "XY"}
    expected["Rotate"] = np.linspace(0, 135, 31)
    expected["Posterize"] = 8 - np.round(BINS / (30 / 6))
    assert space.keys() == expected.keys()
    for name, magnitudes in expected.items():
        np.testing.assert_allclose(space[name], magnitudes, atol=3e-5, err_msg=name)


@pytest.mark.torch
def test_the_spaces_are_torchvisions() -> None:
    from tests.references.torch_models import torchvision

    transforms = torchvision.transforms
    level = jnp.asarray(BINS / 30, jnp.float32)
    tenth = jnp.asarray(np.arange(10) / 9, jnp.float32)
    size = (HEIGHT, WIDTH)
    auto = {**rand_augment_space(*size, tenth), "Invert": jnp.zeros(10)}
    for ours, theirs in (
        (
            rand_augment_space(*size, level),
            transforms.RandAugment()._augmentation_space(31, size),
        ),
        (
            trivial_augment_space(level),
            transforms.TrivialAugmentWide()._augmentation_space(31),
        ),
        (auto, transforms.AutoAugment()._augmentation_space(10, size)),
        (mix_space(*size, tenth), transforms.AugMix()._augmentation_space(10, size)),
    ):
        assert set(theirs) <= set(ours)
        for name, (magnitudes, signed) in theirs.items():
            assert signed == (name in SIGNED)
            expected = np.broadcast_to(magnitudes.numpy(), ours[name].shape)
            np.testing.assert_allclose(ours[name], expected, atol=3e-5, err_msg=name)
    for policy in transforms.AutoAugmentPolicy:
        table = transforms.AutoAugment(policy)._get_policies(policy)
        expected = [tuple((n, p, b or 0) for n, p, b in pair) for pair in table]
        assert sub_policies(policy.value) == expected


@pytest.mark.torch
def test_the_space_of_timm() -> None:
    from timm.data import auto_augment

    for increasing in (True, False):
        names = (
            auto_augment._RAND_INCREASING_TRANSFORMS
            if increasing
            else auto_augment._RAND_TRANSFORMS
        )
        for tenths in (0, 1, 2.5, 5, 7.5, 9, 10):
            space = timm_space(
                HEIGHT, WIDTH, jnp.float32(tenths / 10), increasing=increasing
            )
            assert len(names) == len(space) == 15
            for theirs, (name, magnitude) in zip(names, space.items(), strict=True):
                assert theirs.removesuffix("Rel").removesuffix("Increasing") == name
                function = auto_augment.LEVEL_TO_ARG[theirs]
                expected = float(abs(function(tenths, {})[0])) if function else 0.0
                if name in ENHANCE:
                    # Factors there, differences from 1 here; either sign if increasing.
                    found = 1 + float(magnitude)
                    assert min(abs(found - expected), abs(2 - found - expected)) < 1e-5
                    continue
                if name.startswith("Translate"):
                    expected *= WIDTH if name.endswith("X") else HEIGHT
                assert abs(float(magnitude) - expected) < 1e-4, (theirs, tenths)


def test_rand_augment_applies_the_operations_asked_for(log: Any) -> None:
    found = log(RandAugment(num_ops=3, magnitude=10))
    assert (found.rounds == 3).all()
    for name, magnitudes in by_hand().items():
        chosen = found.names == name
        assert near(chosen.mean(), 1 / 14, len(chosen))
        expected = rand_augment_space(2, 3, jnp.float32(1 / 3))[name]
        if not name.startswith("Translate"):
            np.testing.assert_allclose(expected, magnitudes[10], atol=1e-5)
        given = found.magnitudes[chosen]
        if name in SIGNED:
            # Drawn for each image, not for its row or batch.
            assert near((given > 0).mean(), 0.5, 8 * len(given))
            given = np.abs(given)
        np.testing.assert_allclose(given, expected, atol=1e-5)


def test_trivial_augment_applies_one_at_any_magnitude(log: Any) -> None:
    found = log(TrivialAugmentWide())
    assert (found.rounds == 1).all()
    solarized = found.magnitudes[found.names == "Solarize"]
    bins = np.round((255 - solarized) / 8.5).astype(int)
    np.testing.assert_allclose(bins * 8.5, 255 - solarized, atol=1e-3)
    counts = np.bincount(bins, minlength=31)
    assert counts.shape == (31,) and near(counts.min() / len(bins), 1 / 31, len(bins))
    rotated = found.magnitudes[found.names == "Rotate"]
    assert near((rotated > 0).mean(), 15 / 31, len(rotated))


def test_timm_draws_strength_and_probability_for_each_image(log: Any) -> None:
    found = log(TimmRandAugment(num_ops=2, magnitude=5, magnitude_std=2, p=0.3))
    assert near((found.rounds == 0).mean(), 0.7**2, 8 * len(found.rounds))
    assert near((found.rounds == 2).mean(), 0.3**2, 8 * len(found.rounds))
    rotated = np.abs(found.magnitudes[(found.names == "Rotate") & (found.rounds > 0)])
    assert abs(rotated.mean() / 3 - 5) < 0.3 and abs(rotated.std() / 3 - 2) < 0.2
    fixed = log(TimmRandAugment(magnitude=5, magnitude_std=0, p=1, increasing=False))
    # Without "increasing" half strength changes no colour.
    colours = np.isin(fixed.names, ENHANCE)
    np.testing.assert_allclose(fixed.magnitudes[colours], 0, atol=1e-6)


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_auto_augment_applies_pairs_with_their_probabilities(
    log: Any, policy: Any
) -> None:
    found = log(AutoAugment(policy=policy), calls=600)
    table = sub_policies(policy)
    assert len(table) == 25
    both = np.mean([a[1] * b[1] for a, b in table])
    neither = np.mean([(1 - a[1]) * (1 - b[1]) for a, b in table])
    count = len(found.rounds)
    assert near((found.rounds == 2).mean(), both, count)
    assert near((found.rounds == 0).mean(), neither, count)
    # The operation seen last: the second, or the first alone.
    for name in {entry[0] for pair in table for entry in pair}:
        share = np.mean(
            [
                b[1] * (b[0] == name) + (1 - b[1]) * a[1] * (a[0] == name)
                for a, b in table
            ]
        )
        chosen = (found.names == name) & (found.rounds > 0)
        assert near(chosen.mean(), max(share, 1e-3), count), name
        ninths = {b / 9 for pair in table for n, p, b in pair if n == name and p > 0}
        for value in np.unique(np.abs(found.magnitudes[chosen])):
            known = [
                float({**rand_augment_space(2, 3, jnp.float32(x)), "Invert": 0.0}[name])
                for x in ninths
            ]
            assert min(abs(np.array(known) - value)) < 1e-4, name


def test_augmix_of_unchanged_images_is_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in NAMES:
        monkeypatch.setitem(OPERATIONS, name, lambda images, *rest: images)
    images = np.random.default_rng(0).integers(0, 256, (16, 4, 5, 3)).astype(np.float32)
    mixed, _ = jax.jit(AugMix().__call__)(
        jax.random.key(0), images, np.zeros((16, 2), np.float32)
    )
    np.testing.assert_array_equal(mixed, images)


def test_augmix_mixes_chains_of_one_to_three_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in NAMES:
        monkeypatch.setitem(OPERATIONS, name, lambda images, *rest: images + 1000.0)

    def mean(depth: int) -> float:
        policy = AugMix(depth=depth)
        mixed, _ = jax.jit(policy.__call__)(
            jax.random.key(1),
            np.zeros((1024, 1, 1, 1), np.float32),
            np.zeros((1024, 2), np.float32),
        )
        return float(np.mean(mixed)) / 1000

    # Half of the weight is the chains', whose weights sum to 1; two operations on average.
    assert abs(mean(4) - 2.0) < 0.24
    assert abs(mean(-1) - 1.0) < 0.12


def test_three_augment_is_one_of_three() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (64, 9, 9, 3)).astype(np.float32)
    changed = np.asarray(
        jax.jit(ThreeAugment().__call__)(jax.random.key(0), images, jnp.zeros((64, 2)))[
            0
        ]
    )
    grey = (changed == changed[..., :1]).all((1, 2, 3))
    solarized = (changed == np.where(images >= 128, 255 - images, images)).all(
        (1, 2, 3)
    )
    assert (grey & solarized).sum() == 0
    blurred = ~grey & ~solarized
    assert grey.sum() >= 8 and solarized.sum() >= 8 and blurred.sum() >= 8
    means = changed[blurred].mean((1, 2, 3)) - images[blurred].mean((1, 2, 3))
    assert np.abs(means).max() < 8


def test_an_operation_by_name() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 7, 3)).astype(np.float32)
    # As it stands, and within jax.jit.
    inverted = apply_op("Invert", images, np.zeros(2))
    added, moved = jax.device_get(
        jax.jit(
            lambda images: (
                apply_op("SolarizeAdd", images, np.array([0.0, 100.0])),
                apply_op("TranslateX", images, np.array([0.0, 2.9]), fill=7),
            )
        )(images)
    )
    np.testing.assert_array_equal(inverted, 255 - images)
    np.testing.assert_array_equal(added[0], images[0])
    expected = np.where(images[1] < 128, np.minimum(images[1] + 100, 255), images[1])
    np.testing.assert_array_equal(added[1], expected)
    np.testing.assert_array_equal(moved[0], images[0])
    np.testing.assert_array_equal(moved[1, :, 2:], images[1, :, :-2])
    assert (moved[1, :, :2] == 7).all()
    with pytest.raises(UserError, match=r"unknown operation 'Rotat'.*'Rotate'"):
        apply_op("Rotat", images, np.zeros(2))
    with pytest.raises(
        UserError, match=r"each of 2 images, not an array of shape \(3,\)"
    ):
        apply_op("Rotate", images, np.zeros(3))


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (RandAugment(magnitude=31), r"RandAugment.magnitude must lie in 0..30, not 31"),
        (RandAugment(num_ops=-1), "num_ops must lie in 0..100, not -1"),
        (
            RandAugment(magnitude=float("nan")),
            "magnitude must be a number of sensible size, not nan",
        ),
        (RandAugment(magnitude=-1.0), "magnitude must be 0 or more, not -1.0"),
        (RandAugment(interpolation="cubic"), "is 'cubic', a str; expected .*'bicubic'"),  # type: ignore[arg-type]
        (RandAugment(fill=256.0), "fill must lie in 0..255, not 256.0"),
        (TrivialAugmentWide(bins=1), "bins must lie in 2..1000, not 1"),
        (TimmRandAugment(magnitude=11), "magnitude must lie in 0..10, not 11"),
        (TimmRandAugment(p=1.5), r"p must lie in 0..1, not 1.5"),
        (AutoAugment(policy="cifar"), "is 'cifar', a str; expected .*'svhn'"),  # type: ignore[arg-type]
        (AugMix(depth=0), "depth must lie in 1..100, not 0"),
        (AugMix(severity=11), "severity must lie in 1..10, not 11"),
        (
            ThreeAugment(sigma=(2.0, 1.0)),
            r"sigma must be in ascending order, not \(2.0",
        ),
        (
            ThreeAugment(sigma=(0.0, 1.0)),
            r"sigma\[0\] must lie in 0..100, above 0, not 0",
        ),
        (ThreeAugment(sigma=(1.0, 101.0)), r"sigma\[1\] must lie in 0..100.* not 101"),
    ],
)
def test_bad_options(policy: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        options.check(policy)


def test_no_operations_change_nothing() -> None:
    images = np.ones((16, 4, 4, 3), np.float32)
    targets = np.ones((16, 2), np.float32)
    call = jax.jit(RandAugment(num_ops=0).__call__)
    same, _ = call(jax.random.key(0), images, targets)
    np.testing.assert_array_equal(same, images)
    assert policies.SIGNED < set(NAMES)
