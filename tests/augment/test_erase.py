"""Erased boxes, against torchvision's rule in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcls import options
from jaxcls.augment import Transform
from jaxcls.augment.erase import Cutout, RandomErasing
from jaxcls.errors import UserError


def run(transform: Transform, images: np.ndarray, seed: int = 0) -> np.ndarray:
    targets = np.zeros((len(images), 2), np.float32)
    call = jax.jit(transform.__call__)
    return np.asarray(call(jax.random.key(seed), images.astype(np.float32), targets)[0])


def boxes(erased: np.ndarray) -> np.ndarray:
    """Top, left, height and width of each image's erased pixels, int [images, 4]; fails if
    they are not one box. Images of which nothing is erased are left out."""
    found = []
    for mask in erased[erased.any((1, 2))]:
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        top, left = rows[0], columns[0]
        height, width = rows[-1] + 1 - top, columns[-1] + 1 - left
        assert mask.sum() == height * width
        found.append((top, left, height, width))
    return np.array(found)


def torchvisions_boxes(
    images: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Boxes drawn one after the other as torchvision's RandomErasing does, as of boxes()."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(images):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
                if h * w:
                    found.append((top, left, h, w))
                break
    return np.array(found)


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [
        ((0.02, 0.33), (0.3, 3.3)),
        # Of such boxes most do not fit, and a few images in a hundred find none that does.
        ((0.3, 1.0), (0.1, 4.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    images = np.ones((6000, 20, 28, 1))
    erased = run(RandomErasing(p=1.0, scale=scale, ratio=ratio), images)[..., 0] == 0
    found = boxes(erased)
    expected = torchvisions_boxes(6000, 20, 28, scale, ratio)
    # How many images find a box: 4 standard deviations of the difference of two binomials.
    share = len(expected) / 6000
    spread = math.sqrt(2 * share * (1 - share) / 6000)
    assert abs(len(found) / 6000 - share) <= 4 * spread + 1e-9
    for measure in (
        lambda box: box[:, 0],
        lambda box: box[:, 1],
        lambda box: box[:, 2],
        lambda box: box[:, 3],
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 2] / box[:, 3],
        lambda box: box[:, 0] + box[:, 2],
        lambda box: box[:, 1] + box[:, 3],
    ):
        assert stats.ks_2samp(measure(found), measure(expected)).pvalue > 1e-3


def test_a_box_is_smaller_than_the_image_on_both_sides() -> None:
    images = np.ones((50, 10, 10, 1))
    whole = RandomErasing(p=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    np.testing.assert_array_equal(run(whole, images), images)
    largest = RandomErasing(p=1.0, scale=(0.81, 0.81), ratio=(1.0, 1.0))
    erased = run(largest, images)
    np.testing.assert_array_equal((erased == 0).sum((1, 2, 3)), 81)
    # As high as the image, though narrow.
    high = RandomErasing(p=1.0, scale=(0.5, 0.5), ratio=(2.0, 2.0))
    np.testing.assert_array_equal(run(high, images), images)


def test_every_place_is_equally_likely() -> None:
    transform = RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    erased = run(transform, np.ones((3000, 8, 8, 1)))[..., 0] == 0
    found = boxes(erased)
    np.testing.assert_array_equal(found[:, 2:], 4)
    places = found[:, 0] * 5 + found[:, 1]
    assert stats.chisquare(np.bincount(places, minlength=25)).pvalue > 1e-3
    # Neighbours are independent: 1 of 25 share their place.
    assert abs((places[1:] == places[:-1]).mean() - 1 / 25) < 0.011


def test_the_ratio_is_height_by_width() -> None:
    transform = RandomErasing(p=1.0, scale=(0.12, 0.12), ratio=(3.0, 3.0))
    found = boxes(run(transform, np.ones((20, 40, 40, 1)))[..., 0] == 0)
    np.testing.assert_array_equal(found[:, 2:], [[24, 8]] * 20)


def test_p_is_the_share_of_erased_images() -> None:
    images = np.ones((2000, 6, 6, 1))
    erased = (run(RandomErasing(p=0.3, scale=(0.2, 0.3)), images) == 0).any((1, 2, 3))
    assert abs(erased.mean() - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 2000)


@pytest.mark.parametrize(
    "transform", [RandomErasing(p=0.0, fill="pixel"), Cutout(size=3, p=0.0)]
)
def test_never_erasing_computes_nothing(transform: Transform) -> None:
    shape = jax.ShapeDtypeStruct((4, 6, 6, 3), jnp.float32)
    targets = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    assert not jax.make_jaxpr(transform.__call__)(key, shape, targets).eqns


def test_a_constant_has_a_value_for_each_channel() -> None:
    images = np.random.default_rng(0).normal(size=(50, 8, 9, 3)).astype(np.float32)
    color = np.array([7.0, 8.5, -9.0], np.float32)
    erased = run(RandomErasing(p=1.0, value=(7.0, 8.5, -9.0)), images)
    inside = (erased == color).all(-1)
    boxes(inside)
    assert inside.any((1, 2)).all()
    np.testing.assert_array_equal(erased[~inside], images[~inside])


def test_a_color_is_drawn_for_each_box() -> None:
    images = np.full((900, 8, 9, 3), 99.0)
    erased = run(RandomErasing(p=1.0, scale=(0.1, 0.3), fill="color"), images)
    inside = (erased != 99).all(-1)
    np.testing.assert_array_equal(inside, (erased != 99).any(-1))
    boxes(inside)
    colors = []
    for image, mask in zip(erased, inside, strict=True):
        assert (image[mask] == image[mask][0]).all()
        colors.append(image[mask][0])
    # All channels of all images are independent, and normally distributed.
    assert stats.kstest(np.ravel(colors), stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(np.array(colors).T) - np.eye(3)).max() < 0.13
    assert np.unique(colors).size == 2700


def test_a_color_is_drawn_for_each_pixel() -> None:
    images = np.full((100, 8, 9, 3), 99.0)
    erased = run(RandomErasing(p=1.0, scale=(0.1, 0.3), fill="pixel"), images)
    inside = (erased != 99).all(-1)
    np.testing.assert_array_equal(inside, (erased != 99).any(-1))
    boxes(inside)
    drawn = erased[inside]
    assert stats.kstest(drawn.ravel(), stats.norm.cdf).pvalue > 1e-3
    assert np.unique(drawn).size > 0.99 * drawn.size
    assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.15


def test_several_boxes_share_the_area() -> None:
    transform = RandomErasing(
        p=1.0, scale=(0.09, 0.09), ratio=(1.0, 1.0), fill="color", count=(1, 3)
    )
    erased = run(transform, np.full((900, 32, 32, 1), 99.0))
    sides = {1: 10, 2: 7, 3: 6}  # the root of 92.16 / count, rounded
    seen = []
    for image in erased:
        colors, pixels = np.unique(image[image != 99], return_counts=True)
        seen.append(len(colors))
        # Boxes may overlap: the last one is whole.
        side = sides[len(colors)]
        assert pixels.max() == side**2 or len(colors) < 3
        if (pixels == side**2).all():
            for color in colors:
                boxes((image == color)[None, ..., 0])
    # Hiding a box altogether is rare enough for that.
    assert stats.chisquare(np.bincount(seen)[1:]).pvalue > 1e-3


def test_boxes_that_overlap_erase_their_union() -> None:
    images = np.ones((300, 12, 12, 1))
    transform = RandomErasing(
        p=1.0, scale=(0.5, 0.5), ratio=(1.0, 1.0), value=(5.0,), count=(2, 2)
    )
    erased = run(transform, images)
    assert set(np.unique(erased)) == {1.0, 5.0}
    pixels = (erased == 5).sum((1, 2, 3))  # two squares of 6 x 6
    assert pixels.max() == 72
    assert 36 <= pixels.min() < 50


def squares(height: int, width: int, size: int) -> np.ndarray:
    """Cutout's pixels for every middle, row by row, bool [middles, height, width]."""
    found = np.zeros((height * width, height, width), bool)
    for middle, square in enumerate(found):
        y, x = divmod(middle, width)
        top, left = y - size // 2, x - size // 2
        square[max(top, 0) : top + size, max(left, 0) : left + size] = True
    return found


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_sets_a_square_around_any_pixel_to_0(size: int) -> None:
    images = np.random.default_rng(0).normal(size=(3000, 6, 5, 2)).astype(np.float32)
    cut = run(Cutout(size=size), images)
    erased = (cut == 0).all(-1)
    np.testing.assert_array_equal(cut, np.where(erased[..., None], 0, images))
    matches = (erased[:, None] == squares(6, 5, size)).all((2, 3))
    np.testing.assert_array_equal(matches.sum(1), 1)
    middles = matches.argmax(1)
    assert stats.chisquare(np.bincount(middles, minlength=30)).pvalue > 1e-3
    assert abs((middles[1:] == middles[:-1]).mean() - 1 / 30) < 0.01


def test_cutout_may_be_larger_than_the_image_and_rare() -> None:
    images = np.ones((2000, 3, 4, 1))
    cut = run(Cutout(size=9, p=0.25), images)
    erased = (cut == 0).all((1, 2, 3))
    np.testing.assert_array_equal(erased, (cut == 0).any((1, 2, 3)))
    assert abs(erased.mean() - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 2000)


def test_as_many_values_as_channels() -> None:
    with pytest.raises(UserError, match=r"has 2 values but the images have 3 channels"):
        run(RandomErasing(value=(1.0, 2.0)), np.ones((1, 4, 4, 3)))


NAN = math.nan


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (RandomErasing(p=1.5), "RandomErasing.p must lie in 0..1, not 1.5"),
        (
            RandomErasing(p=NAN),
            "RandomErasing.p must be a number of sensible size, not nan",
        ),
        *(
            (RandomErasing(scale=scale), f"RandomErasing.scale{said}")
            for scale, said in (
                ((0.3, 0.1), " must be in ascending order, not (0.3, 0.1)"),
                ((-0.1, 0.1), "[0] must lie in 0..1, not -0.1"),
                ((0.5, 1.1), "[1] must lie in 0..1, not 1.1"),
                ((NAN, 1.0), " must be a number of sensible size, not nan"),
                ((0.0, NAN), " must be a number of sensible size, not nan"),
            )
        ),
        *(
            (RandomErasing(ratio=ratio), f"RandomErasing.ratio{said}")
            for ratio, said in (
                ((2.0, 1.0), " must be in ascending order, not (2.0, 1.0)"),
                ((0.0, 1.0), "[0] must be above 0, not 0.0"),
                ((NAN, 1.0), " must be a number of sensible size, not nan"),
                ((1.0, NAN), " must be a number of sensible size, not nan"),
                ((1.0, math.inf), " must be a number of sensible size, not inf"),
            )
        ),
        (
            RandomErasing(fill="zero"),  # type: ignore[arg-type]
            "fill is 'zero', a str; expected 'constant' or 'color' or 'pixel'",
        ),
        (RandomErasing(value=()), "RandomErasing.value must be not empty, not ()"),
        (
            RandomErasing(value=(0.0, NAN)),
            "RandomErasing.value must be a number of sensible size, not nan",
        ),
        *(
            (RandomErasing(count=count), f"RandomErasing.count{said}")
            for count, said in (
                ((0, 1), "[0] must lie in 1..100, not 0"),
                ((3, 2), " must be in ascending order, not (3, 2)"),
                ((1, 101), "[1] must lie in 1..100, not 101"),
                ((1, 10**9), "[1] must lie in 1..100, not 1000000000"),
            )
        ),
        (Cutout(size=0), "Cutout.size must lie in 1..16384, not 0"),
        (Cutout(size=3 * 10**9), "Cutout.size must lie in 1..16384, not 3000000000"),
        (Cutout(size=1, p=-0.1), "Cutout.p must lie in 0..1, not -0.1"),
    ],
)
def test_values_out_of_range_are_named(transform: Transform, said: str) -> None:
    with pytest.raises(UserError) as error:
        options.check(transform)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "transform",
    [
        RandomErasing(),
        RandomErasing(p=1.0, scale=(0.0, 1.0), ratio=(1.0, 1.0), count=(2, 2)),
        RandomErasing(count=(100, 100)),
        Cutout(size=1, p=0.0),
        Cutout(size=16384),
    ],
)
def test_values_at_the_end_of_the_range_are_allowed(transform: Transform) -> None:
    options.check(transform)


@pytest.mark.parametrize(
    ("transform", "keeps"),
    [
        (RandomErasing(value=(0.0, 127.0, 255.0)), True),
        (RandomErasing(value=(0.5,)), False),
        (RandomErasing(value=(-50.0,)), False),
        (RandomErasing(value=(0.0, 256.0, 0.0)), False),
        (RandomErasing(fill="color"), False),
        (RandomErasing(fill="pixel"), False),
        (Cutout(size=2), True),
    ],
)
def test_whether_grey_levels_stay_such(transform: Transform, keeps: bool) -> None:
    assert transform.keeps_grey_levels is keeps
