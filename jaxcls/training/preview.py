"""Draws what a recipe does to images."""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcls import augment
from jaxcls.augment import Normalize, Transform
from jaxcls.config import Config
from jaxcls.errors import UserError
from jaxcls.losses import as_targets
from jaxcls.report.contact_sheet import contact_sheet


def preview(config: Config, *, count: int = 16, seed: int = 0) -> Image.Image:
    """Draws a grid: the originals, each transform of `augment` by itself on them, all of them
    together twice, and what evaluation sees.

    Rows that mix images say below each what its label became. Grey levels are drawn as they
    are; what follows Normalize is drawn with the normalisation undone.

    Args:
      config: a valid recipe.
      count: images in a row, the first of the training set that are of different classes as
        far as possible; also the batch that the transforms see.
      seed: of the random transforms.

    Raises:
      UserError: if the dataset cannot be read, or a transform cannot take its images.
    """
    if not 1 <= count <= 1000:
        raise UserError(f"--count must lie in 1..1000, not {count}.")
    source = config.data.source("train")
    count = min(count, len(source))
    images, labels = _examples(source, count)
    names = source.class_names
    targets = np.asarray(as_targets(jnp.asarray(labels), len(names)))
    rng = jax.random.key(seed)
    before, after = augment.around_normalize(config.augment)
    normalize = after[0]
    rows = [("originals", images.astype(np.float32), targets)]
    for index, transform in enumerate(config.augment):
        if transform is not normalize:
            alone = (transform,) if index < len(before) else (normalize, transform)
            made = _apply(alone, jax.random.fold_in(rng, index), images, targets)
            rows.append((repr(transform), *made))
    for name, transforms in (
        ("all of augment", config.augment),
        ("all of augment, again", config.augment),
        ("eval_transform", config.eval_transform),
    ):
        key = jax.random.fold_in(rng, len(rows))
        rows.append((name, *_apply(transforms, key, images, targets)))
    return contact_sheet(rows, targets, names)


def _examples(source: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of the first records, one of each class (or choice of classes,
    where an image may be of any number) before a second of any."""
    looked_at = [source[i] for i in range(min(len(source), max(20 * count, 200)))]
    by_label = collections.defaultdict(list)
    for place, record in enumerate(looked_at):
        by_label[np.asarray(record["label"]).tobytes()].append(place)
    order = [pair for places in by_label.values() for pair in enumerate(places)]
    chosen = [looked_at[place] for _, place in sorted(order)[:count]]
    images = np.stack([record["image"] for record in chosen])
    return images, np.stack([record["label"] for record in chosen])


def _apply(
    transforms: Sequence[Transform], rng: jax.Array, images: Any, targets: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Applies transforms; returns grey levels, with any Normalize undone, and targets."""
    apply = jax.jit(functools.partial(augment.apply, transforms))
    changed, mixed = apply(rng, images, targets)
    for transform in transforms:
        if isinstance(transform, Normalize):
            mean, std = np.array(transform.mean), np.array(transform.std)
            changed = (np.asarray(changed) * std + mean) * 255
    return np.asarray(changed), np.asarray(mixed)
