"""The picture of a sweep of learning rates."""

import io
import os
from pathlib import Path

import numpy as np

from jaxcls.errors import UserError


def check_picture(path: Path) -> None:
    """Raises UserError if draw() could not write a picture, without writing anything."""
    # Without pyplot: no window system, and nothing is left over.
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in known:
        endings = ", ".join(f".{ending}" for ending in sorted(known))
        raise UserError(
            f"cannot write the picture {path}: it must end in one of {endings}."
        )
    if path.is_dir():
        raise UserError(f"cannot write the picture {path}: it is a folder.")
    whole = path.absolute()
    place = next(place for place in (whole, *whole.parents) if place.exists())
    if not os.access(place, os.W_OK) or (place != whole and not place.is_dir()):
        kind = "a file" if place == whole else "a folder"
        raise UserError(
            f"cannot write the picture {path}: {place} is not {kind} that may be written."
        )


def draw(
    rates: np.ndarray,
    losses: np.ndarray,
    smoothed: np.ndarray,
    suggested: float,
    path: Path,
) -> None:
    """Draws losses over learning rates into a picture.

    Args:
      rates: learning rates, float [n], rising.
      losses: of each, float [n].
      smoothed: the same, smoothed.
      suggested: the rate to mark.
      path: of the picture; PNG where it has no ending.

    Raises:
      UserError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="lightgrey", label="loss of each step")
    axes.plot(rates, smoothed, label="smoothed")
    axes.axvline(
        suggested, color="tab:red", linestyle="--", label=f"steepest: {suggested:.2g}"
    )
    axes.set_xscale("log")
    axes.set_ylim(0.9 * losses.min(), min(losses.max(), 2 * losses[0]))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend()
    picture = io.BytesIO()  # so that no half of a file is left where drawing fails
    try:
        figure.savefig(picture, dpi=120, format=path.suffix[1:] or "png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.getvalue())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the picture {path}: {error}.") from None
