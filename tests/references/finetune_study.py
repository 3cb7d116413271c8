"""What fine-tuning gains over training from scratch, and class weights over none, on photographs.

    python -m tests.references.finetune_study --data cifar10 --out runs/study

`--data` is a folder with ten classes of small images, train/CLASS/ and test/CLASS/, as CIFAR-10's.
A ResNet of eight layers learns the first five classes (in the order of their names). Then the other
five are learned from 50 images of each, from random weights and from those of the first run in
several ways, all with the same images, steps and augmentation. Random weights get the best of
three learning rates, chosen by the very test images that are reported; the others have one each,
which was set after a first look at seed 0.
Last, two of the classes are told apart with nine times as many images of one as of the other.

Each seed has training images, an order and a new network of its own. What is complete in `--out`
is not run again: the same command continues.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import re
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.augment import HorizontalFlip, Normalize, RandomCrop
from jaxcls.config import Checkpoint, Config, Evaluation, Log
from jaxcls.config.dataset_defaults import CIFAR10
from jaxcls.data import Dataset, Manifest, Records, Sampling
from jaxcls.data.preparation.writer import write_records
from jaxcls.duration import Duration, epochs, fraction, steps
from jaxcls.inference.evaluation import evaluate_checkpoint
from jaxcls.losses import SoftmaxCrossEntropy
from jaxcls.models import MODELS, Model
from jaxcls.models.resnet import ResNet
from jaxcls.optim import AdamW, WarmupCosine
from jaxcls.parallel import keep_freed_memory
from jaxcls.probe import probe
from jaxcls.train import train

# ResNet-20 with one block a stage instead of three: 6n + 2 layers (He et al. 2015, section 4.2).
MODELS["resnet8"] = functools.partial(
    ResNet, stage_sizes=(1, 1, 1), stem="small", width=16, shortcut="pad"
)

CLASSES = 5
"""Classes of the first network, and of those that follow."""
IMAGES = 50
"""Training images of each of the other classes."""
FREQUENT, RARE = 900, 100
"""Training images of the two classes that are told apart at last."""
STEPS = steps(200)
"""Length of every run but the first, of batches of BATCH."""
BATCH = 50
SCRATCH_RATES = (3e-3, 1e-2, 3e-2)

METHODS: dict[str, dict[str, Any]] = {
    "all layers": {"rate": 3e-3},
    "layer_decay=0.7": {"rate": 5e-3, "layer_decay": 0.7},
    "freeze all but the last stage": {"rate": 3e-3, "freeze": "^(?!fc/|layer3)"},
    "freeze all but the head": {"rate": 1e-2, "freeze": "^(?!fc/)"},
}
"""Ways to begin with the first network's weights."""

LOSSES = {
    "as they are": SoftmaxCrossEntropy(),
    'class_weights="auto"': SoftmaxCrossEntropy(class_weights="auto"),
    "logit_adjustment=1": SoftmaxCrossEntropy(logit_adjustment=1.0),
}


@dataclasses.dataclass
class Study:
    """Where everything lies, and what of the recipe is the same for all runs.

    Attributes:
      data: the folder of images.
      out: the folder of records and runs.
      size: pixels of a side, to which images are resized.
      seeds: repetitions of each run, 1 or more.
    """

    data: Path
    out: Path
    size: int
    seeds: int

    @functools.cached_property
    def halves(self) -> tuple[list[str], list[str]]:
        """The classes of the first network, and the others."""
        names = sorted(path.name for path in (self.data / "train").iterdir())
        if len(names) != 2 * CLASSES:
            raise SystemExit(
                f"{self.data} has {len(names)} classes, expected {2 * CLASSES}."
            )
        return names[:CLASSES], names[CLASSES:]

    def files(self, split: str, name: str) -> list[Path]:
        return sorted((self.data / split / name).iterdir())

    def records(self, name: str, classes: Sequence[str]) -> Records:
        """Returns some of the classes, resized once."""
        rows = [
            (path, label, split)
            for split in ("train", "test")
            for label in classes
            for path in self.files(split, label)
        ]
        table = write_table(self.out / f"{name}.csv", rows)
        folder = self.out / name
        with said_in(self.out / f"{name}.txt"):
            write_records(
                Manifest(path=str(table), split_column="split"),
                folder,
                size=self.size,
                format="raw",
            )
        return Records(path=str(folder), placement="device")

    def imbalanced(self, seed: int) -> Manifest:
        """Returns two of the other classes: many images of one, few of the other."""
        random = np.random.default_rng(seed)
        frequent, rare = self.halves[1][0], self.halves[1][2]
        rows = []
        for label, count in ((frequent, FREQUENT), (rare, RARE)):
            files = self.files("train", label)
            chosen = random.choice(len(files), count, replace=False)
            rows += [(files[index], label, "train") for index in sorted(chosen)]
            rows += [(path, label, "test") for path in self.files("test", label)]
        table = write_table(self.out / f"imbalanced-{seed}.csv", rows)
        data = Manifest(path=str(table), split_column="split", placement="device")
        data.canvas.size = self.size
        return data

    def config(
        self, data: Dataset, *, rate: float, duration: Duration = STEPS, **changes: Any
    ) -> Config:
        normalize = Normalize(mean=CIFAR10[0], std=CIFAR10[1])
        config = Config(
            model=Model(name="resnet8"),
            data=data,
            augment=(
                RandomCrop(padding=self.size // 8),
                HorizontalFlip(),
                normalize,
            ),
            eval_transform=(normalize,),
            optimizer=AdamW(learning_rate=rate, weight_decay=0.05),
            schedule=WarmupCosine(warmup=fraction(0.1)),
            batch_size=BATCH,
            duration=duration,
            evaluation=Evaluation(every=duration, batch_size=500),
            checkpoint=Checkpoint(every=duration),
            log=Log(tensorboard=False),
        )
        return dataclasses.replace(config, **changes)

    def run(self, name: str, config: Config) -> dict[str, Any]:
        """Returns the evaluation at the end of a run, which is made if it has not been."""
        folder = self.out / plain(name)
        started = time.perf_counter()
        with said_in(self.out / f"{plain(name)}.txt"):
            result = train(config, folder)
        if not result.complete:
            raise SystemExit("stopped: run the same command again to continue.")
        tell(name, result.metrics, started)
        return result.metrics

    def probe(self, name: str, config: Config) -> dict[str, Any]:
        """Returns the evaluation of a linear probe."""
        folder = self.out / plain(name)
        started = time.perf_counter()
        with said_in(self.out / f"{plain(name)}.txt"):
            made = folder.exists()
            metrics = evaluate_checkpoint(folder) if made else probe(config, folder)
        tell(name, metrics, started)
        return metrics


def write_table(path: Path, rows: Iterable[tuple[Path, str, str]]) -> Path:
    """Writes a manifest of (image, class, split)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows((image.absolute(), *rest) for image, *rest in rows)
    return path


def plain(name: str) -> str:
    """Returns the name of a run as that of its folder."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


@contextlib.contextmanager
def said_in(path: Path) -> Any:
    """Has what is printed written to a file."""
    with path.open("a") as file, contextlib.redirect_stdout(file):
        yield


def tell(name: str, metrics: dict[str, Any], started: float) -> None:
    """Prints the end of a run."""
    seconds = time.perf_counter() - started
    print(
        f"{name}: top-1 {metrics['eval/top1']:.2%}, balanced "
        f"{metrics['eval/balanced_top1']:.2%}, {seconds:.0f} s",
        flush=True,
    )


def pretrained(study: Study, duration: Duration) -> str:
    """Returns the folder of the run that learns the first classes."""
    data = study.records("first", study.halves[0])
    config = study.config(data, rate=4e-3, duration=duration, batch_size=100)
    study.run("pretrain", config)
    return str(study.out / "pretrain")


def few_images(study: Study, weights: str) -> dict[str, list[float]]:
    """Returns the test top-1 on the other classes of each method: a number for each seed."""
    other = study.records("other", study.halves[1])
    from_weights = Model(name="resnet8", weights=weights, head_init="zero")
    found: dict[str, list[float]] = {}

    def add(method: str, metrics: dict[str, Any]) -> None:
        found.setdefault(method, []).append(metrics["eval/top1"])

    for seed in range(study.seeds):
        few = Sampling(limit=IMAGES, limit_seed=seed)
        data = dataclasses.replace(other, sampling=few)
        for rate in SCRATCH_RATES:
            name = f"from scratch, rate {rate:g}"
            config = study.config(data, rate=rate, seed=seed)
            add(name, study.run(f"{name}, seed {seed}", config))
        for name, options in METHODS.items():
            config = study.config(data, model=from_weights, seed=seed, **options)
            add(name, study.run(f"{name}, seed {seed}", config))
        config = study.config(data, model=from_weights, seed=seed, rate=1.0)
        add("linear probe", study.probe(f"linear probe, seed {seed}", config))
    return found


def rare_class(study: Study, weights: str) -> dict[str, list[float]]:
    """Returns the balanced test top-1 of each loss: a number for each seed."""
    # Not from zero: features are never negative, so that at first all weights of such a head turn
    # to the frequent class, and with Adam and the plain loss none comes back. The plain loss then
    # scores 50 %, which says nothing of class weights.
    model = Model(name="resnet8", weights=weights)
    found: dict[str, list[float]] = {name: [] for name in LOSSES}
    for seed in range(study.seeds):
        data = study.imbalanced(seed)
        for name, loss in LOSSES.items():
            config = study.config(data, rate=3e-3, model=model, loss=loss, seed=seed)
            metrics = study.run(f"imbalanced, {name}, seed {seed}", config)
            found[name].append(metrics["eval/balanced_top1"])
    return found


def table(title: str, found: dict[str, list[float]]) -> str:
    """Returns a line for each method: the mean, then each seed's number, in percent."""
    width = max(map(len, [title, *found]))
    lines = [f"{title:<{width}}    mean  each seed"]
    for name, values in found.items():
        each = "  ".join(f"{100 * value:6.2f}" for value in values)
        lines.append(f"{name:<{width}}  {100 * np.mean(values):6.2f}  {each}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        prog="python -m tests.references.finetune_study",
        description="Fine-tuning beside training from scratch, on few images; class weights.",
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of ten classes"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (3)")
    parser.add_argument("--size", type=int, default=16, help="pixels of a side (16)")
    parser.add_argument(
        "--epochs", type=float, default=15, help="of the first run (15)"
    )
    given = parser.parse_args(argv)
    started = time.perf_counter()
    given.out.mkdir(parents=True, exist_ok=True)
    study = Study(given.data, given.out.absolute(), given.size, given.seeds)
    print(f"first {', '.join(study.halves[0])}; then {', '.join(study.halves[1])}")
    weights = pretrained(study, epochs(given.epochs))
    few = few_images(study, weights)
    rare = rare_class(study, weights)
    print(table(f"top-1, {IMAGES} images a class", few))
    print(table(f"balanced top-1, {FREQUENT} and {RARE} images", rare))
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
