"""Draws what a recipe does to images: `python -m jaxcls.preview --config configs/resnet18.py`.

From Python: `preview(config).save("preview.png")`.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxcls import augment
from jaxcls.augment import Normalize, Transform
from jaxcls.config import Config
from jaxcls.config import command_line as flags
from jaxcls.errors import UserError
from jaxcls.losses import as_targets

CELL, GAP, LINE = 112, 4, 14
"""Pixels: least side of an image, space between two, height of a line of text."""


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
    return _draw(rows, targets, names)


def _examples(source: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of the first records, one of each class (or choice of classes,
    where an image may be of any number) before a second of any."""
    looked_at = [source[i] for i in range(min(len(source), max(20 * count, 200)))]
    seen: dict[bytes, int] = {}
    order = []
    for place, record in enumerate(looked_at):
        label = np.asarray(record["label"]).tobytes()
        order.append((seen.get(label, 0), place))
        seen[label] = seen.get(label, 0) + 1
    chosen = [looked_at[place] for _, place in sorted(order)[:count]]
    images = np.stack([record["image"] for record in chosen])
    return images, np.stack([record["label"] for record in chosen])


def _apply(
    transforms: Sequence[Transform], rng: jax.Array, images: Any, targets: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Applies transforms; returns grey levels, with any Normalize undone, and targets."""
    changed, mixed = jax.jit(
        lambda rng, images, targets: augment.apply(transforms, rng, images, targets)
    )(rng, images, targets)
    for transform in transforms:
        if isinstance(transform, Normalize):
            mean, std = np.array(transform.mean), np.array(transform.std)
            changed = (np.asarray(changed) * std + mean) * 255
    return np.asarray(changed), np.asarray(mixed)


def _draw(
    rows: list[tuple[str, np.ndarray, np.ndarray]],
    targets: np.ndarray,
    names: Sequence[str],
) -> Image.Image:
    """Lays the rows out below one another, with their names and the labels that changed."""
    font = ImageFont.load_default(LINE - 3)
    pictures = [[_picture(image) for image in images] for _, images, _ in rows]
    widest = max(picture.width for row in pictures for picture in row)
    count = len(pictures[0])
    captions = [
        [
            "" if (mixed[i] == targets[i]).all() else words(mixed[i], names)
            for i in range(count)
        ]
        for _, _, mixed in rows
    ]
    captions[0] = [words(target, names) for target in targets]
    lines = [
        max(caption.count("\n") + 1 if caption else 0 for caption in row)
        for row in captions
    ]
    heights = [
        LINE + max(picture.height for picture in row) + LINE * extra + 2 * GAP
        for row, extra in zip(pictures, lines, strict=True)
    ]
    sheet = Image.new("RGB", (count * (widest + GAP) + GAP, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for (title, _, _), row, text, height in zip(
        rows, pictures, captions, heights, strict=True
    ):
        draw.text((GAP, top), title, fill="black", font=font)
        for index, picture in enumerate(row):
            left = GAP + index * (widest + GAP)
            sheet.paste(picture, (left, top + LINE))
            below = (left, top + LINE + picture.height)
            draw.text(below, text[index], fill="black", font=font, spacing=1)
        top += height
    return sheet


def _picture(image: np.ndarray) -> Image.Image:
    """Returns an image [height, width, channels] of grey levels, enlarged to CELL or more by
    whole pixels, so that one sees each."""
    levels = np.clip(np.round(image), 0, 255).astype(np.uint8)
    levels = np.repeat(levels, 3, axis=-1) if levels.shape[-1] == 1 else levels[..., :3]
    times = max(1, CELL // max(levels.shape[:2]))
    return Image.fromarray(levels.repeat(times, 0).repeat(times, 1))


def words(target: np.ndarray, names: Sequence[str]) -> str:
    """Returns a soft label in words, its largest parts first: "70% cat\\n30% dog"."""
    order = np.argsort(-target, kind="stable")
    parts = [index for index in order[:3] if target[index] > 0.005]
    if all(target[part] > 0.995 for part in parts):  # whole labels, one or several
        return "\n".join(str(names[part]) for part in parts)
    return "\n".join(f"{target[index]:.0%} {names[index]}" for index in parts)


def _may_be_written(suffix: str) -> bool:
    """Whether Pillow writes colour pictures to files that end so: many formats it only reads,
    or writes in grey, which only an attempt tells."""
    kind = Image.registered_extensions().get(suffix)
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind)
    except (KeyError, OSError, ValueError):
        return False
    return True


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a mistake in it."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.preview",
        usage="%(prog)s --config FILE[:DATASET] [--config.OPTION=VALUE ...] [--out FILE] "
        "[--count N] [--seed N]",
        description="Draws what a recipe does to the images of its dataset.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="preview.png", help="the picture; preview.png")
    parser.add_argument("--count", type=int, default=16, help="images in a row; 16")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random transforms; 0"
    )
    ours, recipe = parser.parse_known_args(argv)
    try:
        command = flags.parse(recipe, flags.OF_RECIPE)
        if command is None:
            return 0
        out = Path(ours.out)
        if not _may_be_written(out.suffix.lower()):
            raise UserError(
                f"--out {out} must end as pictures do: .png, .jpg or .webp, for example."
            )
        picture = preview(command.config, count=ours.count, seed=ours.seed)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            picture.save(out)
        except OSError as error:
            raise UserError(f"cannot write {out} ({error}).") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {picture.width} x {picture.height} pixels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
