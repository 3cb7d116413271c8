"""Measures the input pipeline: `python -m jaxcls.benchmark input [--images DIR]`.

One run measures everything, in turns, and prints medians. The loaders stay open from turn to
turn: neither what they had ready when a turn began is counted, nor the start of processes. Prints

* photographs, decoded and cropped at random to 224 pixels: bare, through the loader, and by
  torchvision and Pillow through PyTorch's DataLoader, where they are installed: to uint8, as
  here, and to normalised float32, as in PyTorch's ImageNet example, which jaxcls leaves to the
  device;
* raw images from record files and arrays of CIFAR's size, through the loader;
* the memory of worker processes, and what 50 epochs add to it.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import multiprocessing
import operator
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcls.data.encoded_images import DecodedSource
from jaxcls.data.formats.folder import FileImages
from jaxcls.data.formats.image_list import Labels
from jaxcls.data.formats.records import Records
from jaxcls.data.formats.synthetic import Synthetic
from jaxcls.data.host_crop import HostRandomResizedCrop
from jaxcls.data.loader import Loader, TrainBatches, available_cores
from jaxcls.data.preparation.writer import write_records
from jaxcls.data.sources import ArraySource, Source
from jaxcls.errors import UserError

TURNS = 5
BATCH = 10
READY = 10
"""Batches that are not counted: a loader may have so many ready when its turn begins."""

PEERS = {"torchvision uint8": False, "torchvision float32": True}
"""What PyTorch's loader is measured with -> whether its images are normalised floats."""
PEER_PLACES = {"in process": 0, "2 workers": 2}
"""Where PyTorch's loader works -> its number of worker processes."""


def find_photographs(folder: Path) -> list[Path]:
    """Returns the JPEG files in a folder and below, sorted.

    Raises:
      UserError: if there are fewer than a batch.
    """
    found = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")
    )
    if len(found) < BATCH:
        raise UserError(
            f"--images={folder} must have {BATCH} .jpg or .jpeg files or more in it or below, "
            f"not {len(found)}."
        )
    return found


def make_photographs(folder: Path, number: int = 100) -> list[Path]:
    """Writes JPEG files of 500 x 375 pixels, parts of scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    paths = [folder / f"{index:03}.jpg" for index in range(number)]
    for path, picture in zip(paths, itertools.cycle(pictures), strict=False):
        height = int(random.integers(300, picture.height + 1))
        width = height * 4 // 3
        left = int(random.integers(picture.width - width + 1))
        top = int(random.integers(picture.height - height + 1))
        part = picture.crop((left, top, left + width, top + height))
        part = part.resize((500, 375), Image.Resampling.BICUBIC)
        part.save(path, quality=92, subsampling=0)
    return paths


def files_of(paths: Sequence[Path]) -> FileImages:
    """Returns image files, all of one class."""
    labels = np.zeros(len(paths), np.int32)
    return FileImages(Labels("files", labels, ("photograph",)), "", map(str, paths))


def speed(batches: Iterator[Any], batch_size: int, count: int) -> float:
    """Returns images a second over `count` batches, after READY that are not counted."""
    for _ in itertools.islice(batches, READY):
        pass
    start = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * batch_size / (time.perf_counter() - start)


def in_turns(
    measures: Mapping[str, Callable[[], float]], turns: int = TURNS
) -> dict[str, list[float]]:
    """Returns what each measure gives, turn by turn; a first turn is not counted."""
    values = [
        {name: measure() for name, measure in measures.items()}
        for _ in range(turns + 1)
    ]
    return {name: [turn[name] for turn in values[1:]] for name in measures}


def compare_speeds(
    batches: Mapping[str, Iterator[Any]], batch_size: int, count: int
) -> dict[str, list[float]]:
    """Measures iterators over batches in turns, prints the median speed of each, and returns
    their speeds, turn by turn."""
    measures = {
        name: functools.partial(speed, each, batch_size, count)
        for name, each in batches.items()
    }
    speeds = in_turns(measures)
    for name, values in speeds.items():
        print(f"  {name:32} {statistics.median(values):10,.0f} img/s")
    return speeds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Returns the median of the ratios, turn by turn."""
    return statistics.median(map(operator.truediv, ours, theirs))


def loaded(source: Source, batch: int, workers: int, threads: int) -> Loader:
    """Returns a loader of batches of `source` without end."""
    batches = TrainBatches(source, seed=0, batch_size=batch, num_steps=10**9)
    return Loader(batches, workers=workers, threads=threads)


def bare(source: DecodedSource) -> Iterator[list[np.ndarray]]:
    """Yields batches with the least that must be done: read, decode, crop."""
    for first in itertools.count(step=BATCH):
        yield [
            source.canvas.place(
                source.encoded.read(index % len(source)), source.channels, index
            )
            for index in range(first, first + BATCH)
        ]


@dataclasses.dataclass
class TorchImages:
    """What torchvision's ImageFolder does to an image file (a PyTorch Dataset)."""

    paths: Sequence[Path]
    transform: Callable[[Image.Image], Any]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with self.paths[index].open("rb") as file:
            return self.transform(Image.open(file).convert("RGB")), 0


def torch_loaded(paths: Sequence[Path], workers: int, floats: bool) -> Iterator[Any]:
    """Returns batches of PyTorch's DataLoader without end, with torchvision's transforms on
    Pillow images: to uint8, or flipped, to float32 and normalised."""
    import torch
    from torchvision import transforms

    # PyTorch does the same in its worker processes: the arrays are too small for more threads.
    torch.set_num_threads(1)
    steps: list[Any] = [transforms.RandomResizedCrop(224), transforms.PILToTensor()]
    if floats:
        steps[1:] = [
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    dataset: Any = TorchImages(paths, transforms.Compose(steps))
    sampler = torch.utils.data.RandomSampler(
        dataset, replacement=True, num_samples=10**9
    )
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=BATCH, sampler=sampler, num_workers=workers
    )
    return iter(loader)


def compare_photographs(paths: Sequence[Path], count: int = 25) -> None:
    """Prints how fast photographs are decoded and cropped."""
    source = DecodedSource(files_of(paths), HostRandomResizedCrop(size=224), 3)
    peers = importlib.util.find_spec("torchvision") is not None
    with contextlib.ExitStack() as stack:
        batches: dict[str, Iterator[Any]] = {"bare, 1 thread": bare(source)}
        for name, workers, threads in (
            ("loader, 1 thread", 0, 1),
            ("loader, 2 threads", 0, 2),
            ("loader, 2 workers", 2, 1),
        ):
            loader = loaded(source, BATCH, workers, threads)
            batches[name] = stack.enter_context(loader)
        for kind, place in itertools.product(PEERS, PEER_PLACES) if peers else ():
            peer = torch_loaded(paths, PEER_PLACES[place], floats=PEERS[kind])
            batches[f"{kind}, {place}"] = peer
        title = f"{len(paths)} photographs, RandomResizedCrop(224)"
        print(f"\n{title}, batches of {BATCH}", flush=True)
        found = compare_speeds(batches, BATCH, count)
    overhead = ratio(found["bare, 1 thread"], found["loader, 1 thread"]) - 1
    print(f"  -> the loader takes {overhead:.1%} more time than decoding alone")
    if not peers:
        print("  (torchvision is not installed: nothing to compare with)")
        return
    for ours, place in (
        ("loader, 1 thread", "in process"),
        ("loader, 2 threads", "in process"),
        ("loader, 2 threads", "2 workers"),
        ("loader, 2 workers", "2 workers"),
    ):
        uint8, float32 = (
            ratio(found[ours], found[f"{kind}, {place}"]) for kind in PEERS
        )
        print(
            f"  -> {ours}: {float32:.2f} times as fast as torchvision float32, {place}; "
            f"{uint8:.2f} times as uint8"
        )


def compare_records(folder: Path, size: int, images: int, batch: int) -> None:
    """Prints how fast raw images come out of record files, written into `folder` for it."""
    made = Synthetic(images=images, size=size, classes=2)
    write_records(made, folder, size=size, format="raw")
    source = Records(path=str(folder)).source("train")
    _compare_threads(f"raw records of {size} x {size} x 3", source, batch)


def compare_arrays(number: int = 50_000, batch: int = 512) -> None:
    """Prints how fast small images come out of memory."""
    images = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), np.uint8)
    source = ArraySource("random", images, np.zeros(number, np.int32), ("one",))
    _compare_threads(f"{number:,} images of 32 x 32 x 3 in memory", source, batch)


def _compare_threads(title: str, source: Source, batch: int, count: int = 50) -> None:
    """Prints the speeds of loaders with one thread and with two."""
    print(f"\n{title}, batches of {batch}", flush=True)
    with loaded(source, batch, 0, 1) as one, loaded(source, batch, 0, 2) as two:
        loaders = {"loader, 1 thread": one, "loader, 2 threads": two}
        compare_speeds(loaders, batch, count)


def memory(paths: Sequence[Path], epochs: int = 50, workers: int = 2) -> None:
    """Prints what worker processes keep in memory, after one epoch and after many."""
    source = DecodedSource(files_of(paths[:20]), HostRandomResizedCrop(size=224), 3)
    epoch = len(source) // BATCH
    steps = epoch * (epochs + 1)
    batches = TrainBatches(source, seed=0, batch_size=BATCH, num_steps=steps)
    print(f"\nresident memory of {workers} worker processes, {len(source)} photographs")
    with Loader(batches, workers=workers, threads=1) as loader:
        for step, _ in enumerate(loader, 1):
            if step in (epoch, steps):
                sizes = [
                    f"{resident(child.pid) / 2**20:.0f} MiB"
                    for child in multiprocessing.active_children()
                    if child.pid is not None
                ]
                print(f"  after {step // epoch:3} epochs: {', '.join(sizes)}")


def resident(pid: int) -> int:
    """Returns the bytes of memory that a process keeps (Linux)."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.benchmark input",
        description="Measures how fast images are loaded on this machine.",
    )
    about = "a folder of JPEG photographs (default: made from scikit-learn's two)"
    parser.add_argument("--images", type=Path, metavar="DIR", help=about)
    folder = parser.parse_args(argv).images
    print(f"{available_cores()} cores")
    with tempfile.TemporaryDirectory() as scratch:
        paths = find_photographs(folder) if folder else make_photographs(Path(scratch))
        compare_photographs(paths)
        compare_records(Path(scratch) / "256", 256, 400, 64)
        compare_records(Path(scratch) / "32", 32, 20_000, 512)
        compare_arrays()
        if sys.platform == "linux":
            memory(paths)
    return 0
