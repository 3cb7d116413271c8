"""Transforms that mix each image and its label with another one of the batch.

Images are mixed among the rows of a group (kernels/one_operation.py), so that none is sent to
another device. All are the same sum

    mixed = kept * image + (1 - kept) * partner

where `kept` is a number in 0..1 for MixUp and a map of ones and zeros for CutMix. It does not
matter whether the images are normalised before or after.
"""

import abc
import dataclasses
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxcls.augment.kernels.boxes import Boxes, below
from jaxcls.augment.kernels.one_operation import group_rows
from jaxcls.augment.pipeline import Batch, Transform
from jaxcls.options import AboveZero, Ascending, Share, ZeroOrMore

Mode = Literal["batch", "pair", "image"]

Shape = tuple[int, ...]

Sides = Annotated[tuple[Share, Share], Ascending()]
"""Smallest and largest side of a box, as fractions of the image's."""


class _Kept(NamedTuple):
    """How much of itself each image keeps.

    Attributes:
      pixels: float32 [..., height or 1, width or 1, 1] in 0..1.
      label: float32 [...] in 0..1, the mean of the pixels.
    """

    pixels: jax.Array
    label: jax.Array

    @classmethod
    def blended(cls, weight: jax.Array) -> "_Kept":
        """Returns what MixUp keeps: of every pixel its weight, float32 [...]."""
        return cls(weight[..., None, None, None], weight)

    def where(self, chosen: jax.Array, other: "_Kept") -> "_Kept":
        """Returns this one where bool [...] is true, else the other."""
        which = chosen[..., None, None, None]
        pixels = jnp.where(which, self.pixels, other.pixels)
        return _Kept(pixels, jnp.where(chosen, self.label, other.label))


@dataclasses.dataclass(kw_only=True)
class _Mixing(Transform):
    """What all transforms that mix have in common.

    Attributes:
      p: probability that something is mixed at all, 0..1; drawn as often as `mode` says.
      mode: what one draw of weights and boxes is for: "batch", "pair" (two images that are
        each other's partner) or "image". timm's modes "batch", "pair" and "elem".
    """

    random: ClassVar[bool] = True

    p: Share = 1.0
    mode: Mode = "batch"

    @abc.abstractmethod
    def _kept(self, rng: jax.Array, shape: Shape, height: int, width: int) -> _Kept:
        """Draws how much images of height x width keep of themselves, [*shape, ...]."""

    def __call__(self, rng: jax.Array, images: jax.Array, targets: jax.Array) -> Batch:
        batch, height, width, _ = images.shape
        if self.p == 0 or batch == 1:
            return images, targets
        rows = group_rows(batch)
        if rows == 1:
            # No number of devices divides an odd batch well: it is likely to lie on one.
            rows = batch
        groups = batch // rows
        draws = dict(batch=(1, 1), pair=(groups, (rows + 1) // 2), image=(groups, rows))
        shape = draws[self.mode]
        kept_rng, p_rng, shift_rng = jax.random.split(rng, 3)
        kept = self._kept(kept_rng, shape, height, width)
        if self.p != 1:
            everything = _Kept.blended(jnp.ones(shape))
            kept = kept.where(jax.random.bernoulli(p_rng, self.p, shape), everything)
        if self.mode == "pair":
            # The last rows of a group get what was drawn for the first, in reverse order.
            last = [part[:, : rows // 2][:, ::-1] for part in kept]
            both = zip(kept, last, strict=True)
            kept = _Kept(*(jnp.concatenate(parts, axis=1) for parts in both))
        # From 1 to rows - 1, so that no image meets itself.
        shift = jax.random.randint(shift_rng, (), 1, rows)

        def mixed(values: jax.Array, share: jax.Array) -> jax.Array:
            own = values.reshape(groups, rows, *values.shape[1:])
            pairs = self.mode == "pair"
            partner = own[:, ::-1] if pairs else jnp.roll(own, shift, axis=1)
            # One product: of two, the compiler would be free to round either.
            blended = partner + share * (own - partner)
            return jnp.where(share == 1, own, blended).reshape(values.shape)

        return mixed(images, kept.pixels), mixed(targets, kept.label[..., None])


@dataclasses.dataclass(kw_only=True)
class MixUp(_Mixing):
    """Blends each image and its label with another (Zhang et al. 2018, arXiv 1710.09412).

    The weight is drawn from Beta(alpha, alpha); torchvision's MixUp draws one for the batch.

    Attributes:
      alpha: of the Beta distribution, 0 or more: the smaller, the closer are the weights to 0
        or 1, and 0 blends nothing.
    """

    keeps_grey_levels: ClassVar[bool] = False

    alpha: ZeroOrMore = 0.2

    def _kept(self, rng: jax.Array, shape: Shape, height: int, width: int) -> _Kept:
        return _Kept.blended(symmetric_beta(rng, self.alpha, shape))


@dataclasses.dataclass(kw_only=True)
class CutMix(_Mixing):
    """Pastes a box of another image over each image (Yun et al. 2019, arXiv 1905.04899).

    The box covers 1 - weight of the area, where the weight is drawn from Beta(alpha, alpha). It
    has the image's aspect ratio, and its middle is any pixel with equal probability. The part
    outside of the image is lost: the label's weight is the fraction of pixels really pasted.

    Attributes:
      alpha: of the Beta distribution, above 0; has no effect if `minmax` is given.
      minmax: smallest and largest side of a box as fractions of the image's, in 0..1: height
        and width are then drawn evenly and separately, and the box lies inside the image
        (timm's cutmix_minmax, except that the largest is drawn too). None draws the area.
    """

    alpha: AboveZero = 1.0
    minmax: Sides | None = None

    def _kept(self, rng: jax.Array, shape: Shape, height: int, width: int) -> _Kept:
        draw = self._by_area if self.minmax is None else self._by_sides
        boxes = draw(rng, shape, height, width)
        outside = ~boxes.mask(height, width)
        pasted = boxes.height * boxes.width / (height * width)
        return _Kept(outside.astype(jnp.float32), 1 - pasted)

    def _by_area(self, rng: jax.Array, shape: Shape, height: int, width: int) -> Boxes:
        """Draws boxes of 1 - weight of the area, clipped to the image."""
        weight_rng, middle_rng = jax.random.split(rng)
        side = jnp.sqrt(1 - symmetric_beta(weight_rng, self.alpha, shape))
        box_height = jnp.floor(height * side).astype(jnp.int32)
        box_width = jnp.floor(width * side).astype(jnp.int32)
        row, column = jax.random.uniform(middle_rng, (2, *shape))
        top = below(height, row) - box_height // 2
        left = below(width, column) - box_width // 2
        return Boxes(top, left, box_height, box_width).clipped(height, width)

    def _by_sides(self, rng: jax.Array, shape: Shape, height: int, width: int) -> Boxes:
        """Draws boxes with sides in `minmax`, anywhere inside of the image."""

        def side(length: int, share: jax.Array) -> jax.Array:
            assert self.minmax is not None
            low, high = (int(length * fraction) for fraction in self.minmax)
            return low + below(high - low + 1, share)

        box_height, box_width, row, column = jax.random.uniform(rng, (4, *shape))
        box_height, box_width = side(height, box_height), side(width, box_width)
        top = below(height - box_height + 1, row)
        left = below(width - box_width + 1, column)
        return Boxes(top, left, box_height, box_width)


@dataclasses.dataclass(kw_only=True)
class MixUpOrCutMix(_Mixing):
    """Draws whether to apply MixUp or CutMix (timm's Mixup, without its label smoothing).

    Attributes:
      mixup_alpha: of MixUp's Beta distribution, 0 or more.
      cutmix_alpha: of CutMix's Beta distribution, above 0; has no effect if
        `cutmix_minmax` is given.
      switch_prob: probability of CutMix, 0..1; drawn as often as `mode` says.
      cutmix_minmax: smallest and largest side of CutMix's box as fractions of the image's;
        None draws its area.
    """

    keeps_grey_levels: ClassVar[bool] = False

    mixup_alpha: ZeroOrMore = 0.8
    cutmix_alpha: AboveZero = 1.0
    switch_prob: Share = 0.5
    cutmix_minmax: Sides | None = None

    def _kept(self, rng: jax.Array, shape: Shape, height: int, width: int) -> _Kept:
        switch_rng, mixup_rng, cutmix_rng = jax.random.split(rng, 3)
        cutmix = CutMix(alpha=self.cutmix_alpha, minmax=self.cutmix_minmax)
        pasted = cutmix._kept(cutmix_rng, shape, height, width)
        blended = MixUp(alpha=self.mixup_alpha)._kept(mixup_rng, shape, height, width)
        share = jnp.float32(self.switch_prob)
        switched = jax.random.bernoulli(switch_rng, share, shape)
        return pasted.where(switched, blended)


def symmetric_beta(rng: jax.Array, alpha: float, shape: Shape) -> jax.Array:
    """Draws from Beta(alpha, alpha), without the rejections of jax.random.beta: their loops
    make a GPU wait for the host.

    By Bailey's polar method (1994, Mathematics of Computation 62, 779-781) for Student's t
    with 2 alpha degrees of freedom: t / sqrt(2 alpha + t^2) is a symmetric Beta in -1..1.

    Args:
      rng: a random key.
      alpha: 0 or more, also traced; 0 gives 0 or 1.
      shape: of the result.

    Returns:
      float32 in 0..1.
    """
    radius, angle = jax.random.uniform(rng, (2, *shape))
    near = radius ** jnp.divide(1, alpha)
    cosine = jnp.cos(2 * jnp.pi * angle)
    # t^2 / (2 alpha) is far / near, where near may be 0.
    far = (1 - near) * cosine**2
    return 0.5 + 0.5 * jnp.sign(cosine) * jnp.sqrt(far / (near + far))
