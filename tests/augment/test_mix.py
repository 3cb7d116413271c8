"""Mixed images and labels, against NumPy, and that devices do not change them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcls import options
from jaxcls.augment import Normalize, Transform, apply
from jaxcls.augment.kernels.one_operation import group_rows
from jaxcls.augment.mix import CutMix, MixUp, MixUpOrCutMix, symmetric_beta
from jaxcls.errors import UserError
from jaxcls.parallel import batch_sharded, make_mesh, replicated

HEIGHT, WIDTH = 12, 20
MODES = ("batch", "pair", "image")


def mix(
    transform: Transform, batch: int, seeds: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes images whose pixels all are the image's number, and whose class is it too.

    Returns:
      images [seeds, batch, height, width, 1] and targets [seeds, batch, batch].
    """
    images = np.broadcast_to(
        np.arange(batch, dtype=np.float32)[:, None, None, None],
        (batch, HEIGHT, WIDTH, 1),
    )
    call = jax.vmap(transform, (0, None, None))
    keys = jax.random.split(jax.random.key(0), seeds)
    mixed, targets = jax.jit(call)(keys, images, np.eye(batch, dtype=np.float32))
    return np.asarray(mixed), np.asarray(targets)


def weights_and_partners(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns of targets [seeds, batch, batch] how much each image kept of its own label, and
    whose label the rest is (the image itself if there is none). Fails for more than two."""
    batch = targets.shape[-1]
    np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
    assert targets.min() >= 0
    own = np.diagonal(targets, axis1=1, axis2=2)
    others = targets * (1 - np.eye(batch))
    assert ((others > 0).sum(-1) <= 1).all()
    partners = np.where(others.any(-1), others.argmax(-1), np.arange(batch))
    return own, partners


def pasted(images: np.ndarray) -> np.ndarray:
    """Returns which pixels are not the image's own, bool [seeds, batch, height, width]."""
    own = np.arange(images.shape[1])[:, None, None]
    return images[..., 0] != own


@pytest.mark.parametrize(
    ("batch", "mode"),
    [
        *((2, "batch"), (2, "pair"), (3, "image"), (7, "pair")),
        *((64, mode) for mode in MODES),
    ],
)
def test_images_and_labels_are_mixed_alike(mode: str, batch: int) -> None:
    transform = MixUpOrCutMix(mode=mode, p=0.8)  # type: ignore[arg-type]
    # In the other modes the images of one batch are mixed in many ways.
    seeds = 15 if batch == 64 and mode != "batch" else 40
    images, targets = mix(transform, batch, seeds)
    own, partners = weights_and_partners(targets)
    numbers = np.arange(batch)
    rows = group_rows(batch) if batch % 2 == 0 else batch
    np.testing.assert_array_equal(
        partners // rows, numbers // rows * np.ones((seeds, 1))
    )

    kinds = set()
    for image, weight, number, partner in zip(
        images.reshape(-1, HEIGHT, WIDTH),
        own.ravel(),
        np.tile(numbers, seeds),
        partners.ravel(),
        strict=True,
    ):
        levels = np.unique(image)
        if weight == 1:
            np.testing.assert_array_equal(levels, number)
            kinds.add("kept")
        elif len(levels) == 1 and levels[0] != partner:
            blended = weight * number + (1 - weight) * partner
            np.testing.assert_allclose(levels[0], blended, rtol=1e-5, atol=1e-5)
            kinds.add("blended")
        else:
            # Pixels are copies, and as many as the label says.
            assert set(levels) <= {number, partner}
            np.testing.assert_allclose((image == number).mean(), weight, atol=1e-6)
            kinds.add("pasted")
    assert kinds == {"kept", "blended", "pasted"}

    if mode == "pair":
        at_partner = np.take_along_axis(partners, partners, 1)
        np.testing.assert_array_equal(at_partner, numbers * np.ones((seeds, 1)))
        np.testing.assert_array_equal(np.take_along_axis(own, partners, 1), own)
    if mode == "batch":
        np.testing.assert_array_equal(own, own[:, :1] * np.ones(batch))
        where = pasted(images) & (np.ptp(images, axis=(2, 3)) > 0)[..., 0, None, None]
        np.testing.assert_array_equal(where, np.broadcast_to(where[:, :1], where.shape))
    if mode == "image":
        assert np.median(np.ptp(own, axis=1)) > 0.05


@pytest.mark.parametrize("mode", MODES)
def test_one_image_alone_stays_as_it_is(mode: str) -> None:
    images, targets = mix(MixUpOrCutMix(mode=mode), 1)  # type: ignore[arg-type]
    np.testing.assert_array_equal(images, 0)
    np.testing.assert_array_equal(targets, 1)


def test_label_weight_is_the_fraction_of_ones_pasted_into_zeros() -> None:
    images = np.zeros((2, HEIGHT, WIDTH, 3), np.float32)
    images[1] = 1
    call = jax.jit(CutMix(mode="image").__call__)
    seen = []
    for seed in range(60):
        mixed, targets = jax.device_get(
            call(jax.random.key(seed), images, np.eye(2, dtype=np.float32))
        )
        seen.append(float(targets[0, 1]))
        np.testing.assert_allclose(mixed[0].mean(), targets[0, 1], atol=1e-6)
        np.testing.assert_allclose(mixed[1].mean(), targets[1, 1], atol=1e-6)
    assert min(seen) < 0.1  # clipped boxes among them
    assert max(seen) > 0.6


def test_soft_labels_are_mixed_too() -> None:
    soft = np.random.default_rng(0).dirichlet(np.ones(5), 8).astype(np.float32)
    images = soft[:, :, None, None]
    # The images are the labels: what happens to one happens to the other.
    mixed, targets = jax.device_get(
        jax.jit(MixUp(alpha=1.0, mode="image").__call__)(
            jax.random.key(0), images, soft
        )
    )
    np.testing.assert_allclose(mixed[:, :, 0, 0], targets, rtol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    assert (np.abs(targets - soft).max(1) > 1e-3).sum() > 4


@pytest.mark.parametrize(("batch", "rows"), [(64, 8), (6, 2), (7, 7)])
def test_partners_are_any_other_row_of_the_group(batch: int, rows: int) -> None:
    _, targets = mix(MixUp(alpha=1.0), batch, 500)
    own, partners = weights_and_partners(targets)
    steps = (partners - np.arange(batch)) % rows
    mixed = own[:, 0] < 1
    assert mixed.mean() > 0.99
    steps = steps[mixed]
    # One for all images of a step, and never the image itself.
    np.testing.assert_array_equal(steps, steps[:, :1] * np.ones((1, batch), int))
    counts = np.bincount(steps[:, 0], minlength=rows)
    assert counts[0] == 0
    if rows > 2:
        assert stats.chisquare(counts[1:]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("batch", "rows"),
    [
        *((1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (7, 1), (12, 4), (16, 16), (32, 16)),
        *((48, 16), (63, 1), (64, 8), (66, 2), (96, 8), (100, 4), (127, 1), (128, 16)),
        *((256, 16), (1000, 8), (1024, 16), (1 << 20, 16)),
    ],
)
def test_group_rows(batch: int, rows: int) -> None:
    assert group_rows(batch) == rows


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0])
def test_symmetric_beta_is_that_distribution(alpha: float) -> None:
    # Traced, as an option that grows is.
    draw = jax.jit(lambda a: symmetric_beta(jax.random.key(0), a, (20000,)))
    drawn = np.asarray(draw(alpha))
    assert 0 <= drawn.min() <= drawn.max() <= 1
    places = np.array([0.001, 0.01, 0.1, 0.3, 0.5, 0.6, 0.8, 0.95, 0.999])
    found = (drawn[:, None] <= places).mean(0)
    expected = stats.beta(alpha, alpha).cdf(places)
    spread = np.sqrt(expected * (1 - expected) / 20000)
    assert (np.abs(found - expected) <= 4 * spread + 1e-9).all()
    if alpha >= 0.5:
        # Below, much of the distribution is closer to 1 than float32 can tell.
        assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_alpha_0_blends_nothing() -> None:
    images, targets = mix(MixUp(alpha=0.0, mode="image"), 64)
    assert set(np.unique(targets)) == {0.0, 1.0}
    np.testing.assert_array_equal(images[..., 0, 0, 0], targets.argmax(-1))


def clipped_boxes(count: int, alpha: float) -> np.ndarray:
    """CutMix's boxes in NumPy: first and last row and column + 1, int [boxes, 4]."""
    rng = np.random.default_rng(0)
    found = []
    while len(found) < count:
        side = math.sqrt(1 - rng.beta(alpha, alpha))
        height, width = int(HEIGHT * side), int(WIDTH * side)
        top = rng.integers(HEIGHT) - height // 2
        left = rng.integers(WIDTH) - width // 2
        box = (
            *(max(top, 0), min(top + height, HEIGHT)),
            *(max(left, 0), min(left + width, WIDTH)),
        )
        if box[0] < box[1] and box[2] < box[3]:
            found.append(box)
    return np.array(found)


def boxes(masks: np.ndarray) -> np.ndarray:
    """The boxes of masks [..., height, width] as of clipped_boxes(); fails for other shapes.
    Empty ones are left out."""
    found = []
    for mask in masks.reshape(-1, *masks.shape[-2:]):
        if not mask.any():
            continue
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
        assert mask.sum() == (box[1] - box[0]) * (box[3] - box[2])
        found.append(box)
    return np.array(found)


def test_cutmix_draws_the_published_boxes() -> None:
    images, _ = mix(CutMix(alpha=0.5, mode="image"), 64, 60)
    found = boxes(pasted(images))
    expected = clipped_boxes(len(found), 0.5)
    for side in range(4):
        assert stats.ks_2samp(found[:, side], expected[:, side]).pvalue > 1e-3
    area = [(b[:, 1] - b[:, 0]) * (b[:, 3] - b[:, 2]) for b in (found, expected)]
    assert stats.ks_2samp(*area).pvalue > 1e-3


def test_minmax_bounds_the_sides_of_boxes() -> None:
    images, targets = mix(CutMix(minmax=(0.25, 0.75), mode="image"), 64, 60)
    found = boxes(pasted(images))
    assert len(found) == 64 * 60
    heights, widths = found[:, 1] - found[:, 0], found[:, 3] - found[:, 2]
    for drawn, low, high in ((heights, 3, 9), (widths, 5, 15)):
        assert drawn.min() == low
        assert drawn.max() == high
        assert stats.chisquare(np.bincount(drawn)[low:]).pvalue > 1e-3
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.06
    # The boxes of one height touch every row evenly: none is clipped.
    tops = found[heights == 6, 0]
    assert stats.chisquare(np.bincount(tops, minlength=7)).pvalue > 1e-3
    own, _ = weights_and_partners(targets)
    np.testing.assert_allclose(
        own.ravel(), 1 - heights * widths / (HEIGHT * WIDTH), atol=1e-6
    )
    # Also where it may be MixUp.
    images, _ = mix(
        MixUpOrCutMix(cutmix_minmax=(0.25, 0.25), switch_prob=1.0, mode="image"), 8
    )
    np.testing.assert_array_equal(pasted(images).sum((2, 3)), 3 * 5)


def test_p_and_switch_prob_are_shares() -> None:
    transform = MixUpOrCutMix(p=0.6, switch_prob=0.25, mode="image", mixup_alpha=1.0)
    images, targets = mix(transform, 64, 30)
    own, _ = weights_and_partners(targets)
    number = 64 * 30
    mixed = own < 1
    # A box may be empty: 1 - weight of less than 1 pixel's area.
    assert abs(mixed.mean() - 0.6) < 3 * math.sqrt(0.6 * 0.4 / number) + 0.005
    cut = np.ptp(images, axis=(2, 3, 4)) > 0
    assert abs(cut[mixed].mean() - 0.25) < 0.045
    _, targets = mix(MixUp(p=0.5, alpha=1.0, mode="batch"), 8, 1000)
    own, _ = weights_and_partners(targets)
    assert abs((own[:, 0] < 1).mean() - 0.5) < 3 * 0.5 / math.sqrt(1000)


@pytest.mark.parametrize(
    "transform", [MixUp(p=0.0), CutMix(p=0.0), MixUpOrCutMix(p=0.0)]
)
def test_never_mixing_computes_nothing(transform: Transform) -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((8, 4, 4, 1), jnp.float32)
    targets = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert not jax.make_jaxpr(transform.__call__)(key, images, targets).eqns


NORMALIZE = Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
COLLECTIVES = ("all-gather", "all-to-all", "collective-permute", "all-reduce")


@pytest.mark.parametrize(
    "transforms",
    [
        (NORMALIZE, MixUp(mode="pair"), CutMix(mode="image")),
        (MixUpOrCutMix(mode="batch", p=0.99), NORMALIZE),
    ],
)
def test_eight_devices_give_the_same_bits_and_send_nothing(
    transforms: tuple[Transform, ...],
) -> None:
    images = np.random.default_rng(3).integers(0, 256, (64, 8, 9, 3), dtype=np.uint8)
    targets = np.eye(10, dtype=np.float32)[np.arange(64) % 10]
    results = []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        rows, whole = batch_sharded(mesh), replicated(mesh)
        arguments = (
            jax.device_put(jax.random.key(7), whole),
            jax.device_put(images, rows),
            jax.device_put(targets, rows),
        )
        program = (
            jax.jit(functools.partial(apply, transforms), out_shardings=(rows, rows))
            .lower(*arguments)
            .compile()
        )
        results.append(jax.device_get(program(*arguments)))
    text = program.as_text()
    assert text is not None
    assert "num_partitions=8" in text
    for collective in COLLECTIVES:
        assert collective not in text
    for alone, spread in zip(*results, strict=True):
        np.testing.assert_array_equal(spread, alone)
    assert np.abs(results[0][1] - targets).max() > 0.01


NAN = math.nan


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (MixUp(p=1.5), "MixUp.p must lie in 0..1, not 1.5"),
        (CutMix(p=NAN), "CutMix.p must be a number of sensible size, not nan"),
        (MixUp(alpha=-0.1), "MixUp.alpha must be 0 or more, not -0.1"),
        (
            MixUp(alpha=math.inf),
            "MixUp.alpha must be a number of sensible size, not inf",
        ),
        (MixUp(alpha=NAN), "MixUp.alpha must be a number of sensible size, not nan"),
        (
            MixUp(mode="elem"),  # type: ignore[arg-type]
            "MixUp.mode is 'elem', a str; expected 'batch' or 'pair' or 'image'",
        ),
        (CutMix(alpha=0.0), "CutMix.alpha must be above 0, not 0.0"),
        (CutMix(alpha=NAN), "CutMix.alpha must be a number of sensible size, not nan"),
        *(
            (CutMix(minmax=minmax), f"CutMix.minmax{said}")
            for minmax, said in (
                ((0.5, 0.4), " must be in ascending order, not (0.5, 0.4)"),
                ((-0.1, 0.4), "[0] must lie in 0..1, not -0.1"),
                ((0.1, 1.1), "[1] must lie in 0..1, not 1.1"),
                ((NAN, 1.0), " must be a number of sensible size, not nan"),
                ((0.0, NAN), " must be a number of sensible size, not nan"),
            )
        ),
        (
            MixUpOrCutMix(mixup_alpha=-1.0),
            "MixUpOrCutMix.mixup_alpha must be 0 or more, not -1.0",
        ),
        (MixUpOrCutMix(cutmix_alpha=0.0), "MixUpOrCutMix.cutmix_alpha must be above 0"),
        (MixUpOrCutMix(switch_prob=2.0), "MixUpOrCutMix.switch_prob must lie in 0..1"),
        (
            MixUpOrCutMix(cutmix_minmax=(0.9, 0.1)),
            "cutmix_minmax must be in ascending order, not (0.9, 0.1)",
        ),
    ],
)
def test_values_out_of_range_are_named(transform: Transform, said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(transform)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        MixUp(alpha=0.0, p=0.0),
        CutMix(minmax=(0.0, 1.0), p=1.0),
        MixUpOrCutMix(switch_prob=1.0),
    ],
)
def test_values_at_the_end_of_the_range_are_allowed(transform: Transform) -> None:
    options.check(transform)


def test_a_probability_may_be_a_whole_number() -> None:
    images = np.arange(64, dtype=np.float32).reshape(4, 4, 4, 1)
    targets = np.eye(4, dtype=np.float32)

    @jax.jit
    def mixed(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        return [
            MixUpOrCutMix(switch_prob=p)(key, images, targets) for p in (0, 0.0, 1, 1.0)
        ]

    never, never_too, always, always_too = mixed(jax.random.key(0))
    np.testing.assert_array_equal(never[0], never_too[0])
    np.testing.assert_array_equal(never[1], never_too[1])
    np.testing.assert_array_equal(always[0], always_too[0])
    np.testing.assert_array_equal(always[1], always_too[1])
    assert (np.asarray(never[0]) != always[0]).any()
