"""Progress for people: a live bar on a terminal, plain lines where output is redirected."""

import sys
from typing import Any

from tqdm import tqdm


class Progress:
    """Shows how far a run is.

    On a terminal a bar stays at the bottom, with the latest metrics; otherwise each line of
    training metrics is printed.
    """

    def __init__(self, *, step: int, total_steps: int):
        """Begins at `step` of `total_steps`."""
        self._total_steps = total_steps
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total_steps,
                initial=step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{n_fmt}/{total_fmt} steps {bar} {desc}",
            )

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def train_line(self, values: dict[str, Any]) -> None:
        """Shows a line of training metrics, as the loop writes them."""
        seconds_left = (self._total_steps - values["step"]) * values["seconds_per_step"]
        text = (
            f"loss {values['train/loss']:.4f}  top-1 {values['train/top1']:.2%}  "
            f"lr {values['lr']:.2e}  {values['img_per_s']:,.0f} img/s  "
            f"data wait {values['data_wait']:.0%}  ETA {tqdm.format_interval(seconds_left)}"
        )
        if values["bad_steps"]:
            text += f"  {values['bad_steps']} steps that changed nothing"
        if "bad_images" in values:
            text += f"  bad images: {values['bad_images']}"
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {values['epoch']:.1f}  {text}")
        else:
            say(
                f"step {values['step']:>6}/{self._total_steps}  "
                f"epoch {values['epoch']:6.2f}  {text}"
            )

    def close(self) -> None:
        """Leaves the bar as it stands. Can be called twice."""
        if self._bar is not None:
            self._bar.close()


def say(text: str) -> None:
    """Prints a line, above the bar if there is one; in any thread."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def eval_line(values: dict[str, Any]) -> str:
    """Returns an evaluation as one line: raw and averaged weights."""
    text = (
        f"evaluation at step {values['step']} on {values['eval/examples']} images: "
        f"{_measured(values, '')}"
    )
    if "eval/bad_images" in values:
        text += f"  (bad images left out: {values['eval/bad_images']})"
    if "eval/top1_ema" in values:
        text += f"  |  EMA: {_measured(values, '_ema')}"
    return text


def _measured(values: dict[str, Any], suffix: str) -> str:
    """Returns the metrics of one set of weights, as far as there are any, in percent, and the
    loss."""
    titles = dict(top1="top-1", balanced_top1="balanced", top5="top-5", mAP="mAP")
    parts = [
        f"{title} {values[f'eval/{name}{suffix}']:.2%}"
        for name, title in titles.items()
        if f"eval/{name}{suffix}" in values
    ]
    return "  ".join([*parts, f"loss {values[f'eval/loss{suffix}']:.4f}"])
