"""Whole batches indexed by step, loaded ahead in threads (grain's) or worker processes.

    batches = TrainBatches(source, seed=0, batch_size=128, num_steps=1000)
    with Loader(batches, start=500, workers=2) as loader:
        batch = next(loader)  # {"image": uint8 [128, ...], "label": int32 [128], ...}

A batch has four arrays, one row each for what this host loads:

    "image"  uint8 [rows, height, width, channels]
    "label"  int32 [rows], or uint8 [rows, classes] of ones and zeros where an image may be of
             any number of classes
    "mask"   bool [rows], False where there is no image: padding, or one that cannot be read
    "id"     int64 [rows], the record; -1 for padding. It stays on the host.

This file uses NumPy alone: a worker process never initialises a JAX backend.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator

import numpy as np

from jaxcls.data import order
from jaxcls.data.dataset import Dataset
from jaxcls.data.sampling import Sampling, strata_of
from jaxcls.data.sources import Batch, Source, naming_failures
from jaxcls.data.workers import Batches, Workers
from jaxcls.errors import UserError


def load_rows(
    source: Source, ids: np.ndarray, row_seeds: np.ndarray | None = None
) -> Batch:
    """Loads records as one batch and checks it.

    Args:
      source: the records.
      ids: which ones, int [n], n >= 1.
      row_seeds: uint64 [n], for sources that draw something; None for evaluation.

    Returns:
      "image", "label", "mask" and "id", see above.

    Raises:
      RuntimeError: naming the source, the record and what is wrong with it. One that the
        source raises passes unchanged: it is a sentence that names the file.
    """
    some = ", ".join(map(str, ids[:3]))
    with naming_failures(f"records {some}, ... of {source!r}"):
        batch = source.gather(ids, row_seeds)
    try:
        images, labels = np.asarray(batch["image"]), np.asarray(batch["label"])
    except (TypeError, KeyError, IndexError):
        raise RuntimeError(
            f"{source!r} must give 'image' and 'label', but gives {batch!r:.80}."
        ) from None
    n = len(ids)
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != n:
        raise RuntimeError(
            f"{source!r} gives images of {images.dtype} {images.shape} for {n} records; "
            f"expected uint8 ({n}, height, width, channels)."
        )
    mask = np.asarray(batch.get("mask", np.ones(n, bool)))
    if mask.dtype != bool or mask.shape != (n,):
        raise RuntimeError(
            f"{source!r} gives a mask of {mask.dtype} {mask.shape} for {n} records; expected "
            f"bool ({n},)."
        )
    return {
        "image": images,
        "label": _checked_labels(source, ids, labels),
        "mask": mask,
        "id": np.asarray(ids, np.int64),
    }


def _checked_labels(source: Source, ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the labels of the records `ids` in the type that a batch has.

    Raises:
      RuntimeError: naming the source, if they do not fit its classes.
    """
    n, num_classes = len(ids), len(source.class_names)
    if np.issubdtype(labels.dtype, np.integer) and labels.shape == (n,):
        wrong = ids[(labels < 0) | (labels >= num_classes)]
        if len(wrong):
            raise RuntimeError(
                f"record {wrong[0]} of {source!r} has a label that is no index into its "
                f"{num_classes} class names."
            )
        return labels.astype(np.int32)
    if labels.dtype != np.uint8 or labels.shape != (n, num_classes):
        raise RuntimeError(
            f"{source!r} gives labels of {labels.dtype} {labels.shape} for records "
            f"{ids[0]}, ...; expected integers ({n},), or uint8 ({n}, {num_classes}) for any "
            "number of classes an image."
        )
    wrong = ids[(labels > 1).any(axis=1)]
    if len(wrong):
        raise RuntimeError(
            f"record {wrong[0]} of {source!r} has labels other than ones and zeros."
        )
    return labels


def padded_rows(batch_size: int, multiple: int) -> int:
    """Returns the rows of a batch: its size rounded up to a multiple (of the devices)."""
    return -(-batch_size // multiple) * multiple


@dataclasses.dataclass(eq=False)
class TrainBatches:
    """The training set as a sequence of batches: element k holds this host's rows of step k.

    Row r of a step is the same record, and has the same seed, whatever the number of hosts.

    Attributes:
      source: the training set, after sampling.limit.
      seed: the run's seed.
      batch_size: images in a step over all hosts.
      num_steps: length of the sequence.
      sampling: how records are drawn; by default each once an epoch.
      host: this host, 0 <= host < num_hosts.
      num_hosts: hosts that train together.

    Raises:
      ValueError: if the batch is larger than the training set or does not divide into equal
        parts for the hosts, or for the copies of a record.
    """

    source: Source
    _: dataclasses.KW_ONLY
    seed: int
    batch_size: int
    num_steps: int
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    host: int = 0
    num_hosts: int = 1

    def __post_init__(self) -> None:
        size, repeats = self.batch_size, self.sampling.repeats
        if size > len(self.source):
            raise ValueError(
                f"batch_size {size} is larger than {self.source!r}: use at most "
                f"{len(self.source)}."
            )
        if size % self.num_hosts:
            raise ValueError(
                f"batch_size {size} does not divide among {self.num_hosts} hosts."
            )
        if size % repeats:
            raise ValueError(
                f"batch_size {size} is no multiple of data.sampling.repeats {repeats}."
            )
        self._strata = strata_of(self.source, self.sampling)
        rows = size // self.num_hosts
        self.host_rows = slice(self.host * rows, (self.host + 1) * rows)

    def __len__(self) -> int:
        return self.num_steps

    def ids(self, step: int) -> np.ndarray:
        """Returns the records of this host's rows of step `step`: int64 [rows]."""
        size, strata, repeats = len(self.source), self._strata, self.sampling.repeats
        ids = order.record_ids(
            self.seed, step, self.batch_size, size, strata=strata, repeats=repeats
        )
        return ids[self.host_rows]

    def __getitem__(self, step: int) -> Batch:
        seeds = order.row_seeds(self.seed, step, self.batch_size)[self.host_rows]
        return load_rows(self.source, self.ids(step), seeds)


@dataclasses.dataclass(eq=False)
class EvalBatches:
    """A split in its own order, every record in exactly one batch.

    All batches have `rows` rows on this host. Rows beyond the last record are zeros with mask
    False.

    Attributes:
      source: the records, at least one.
      batch_size: records in a batch over all hosts.
      rows_multiple: the rows of a batch are padded to a multiple of this (the number of devices
        over all hosts, itself a multiple of num_hosts).
      host: this host, 0 <= host < num_hosts.
      num_hosts: hosts that evaluate together.
    """

    source: Source
    _: dataclasses.KW_ONLY
    batch_size: int
    rows_multiple: int = 1
    host: int = 0
    num_hosts: int = 1

    def __post_init__(self) -> None:
        multiple = math.lcm(self.rows_multiple, self.num_hosts)
        self.rows = padded_rows(self.batch_size, multiple) // self.num_hosts
        self.first_row = self.host * self.rows

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        end = min(first + self.batch_size, len(self.source))
        ids = np.arange(first, end)[self.first_row : self.first_row + self.rows]
        # A host whose rows are all padding still needs the shape of an image.
        batch = load_rows(self.source, ids if len(ids) else np.array([first]))
        padded = {}
        for name, values in batch.items():
            padded[name] = np.zeros((self.rows, *values.shape[1:]), values.dtype)
            padded[name][: len(ids)] = values[: len(ids)]
        padded["id"][len(ids) :] = -1
        return padded


class Loader(Iterator[Batch], contextlib.AbstractContextManager["Loader"]):
    """Runs a sequence of batches ahead of its reader, in threads or worker processes.

    The batches and their order do not depend on `workers` or `threads`. Use it in a `with`
    statement: leaving it ends the worker processes. They also end when the trainer is killed.
    """

    def __init__(
        self,
        batches: Batches,
        *,
        start: int = 0,
        repeat: bool = False,
        workers: int = 0,
        threads: int | None = None,
        prefetch: int = 2,
    ):
        """Starts loading.

        Args:
          batches: a sequence of batches, indexed by step.
          start: the first element to load.
          repeat: begin again after the last element, without end.
          workers: worker processes; 0 uses threads of this process alone.
          threads: threads a process; None takes one for each core it may use, 16 at most.
          prefetch: batches that each process keeps ready.
        """
        if threads is None:
            threads = min(16, max(1, available_cores() // max(workers, 1)))
        self._iterator: Iterator[Batch]
        if workers == 0 or start >= len(batches):
            import grain  # it imports jax, which the worker processes have no use for

            dataset = grain.MapDataset.source(batches)[start:]
            dataset = dataset.repeat() if repeat else dataset
            options = grain.ReadOptions(
                num_threads=threads, prefetch_buffer_size=max(prefetch, threads)
            )
            self._iterator = iter(dataset.to_iter_dataset(options))
        else:
            steps = range(start, len(batches))
            self._iterator = Workers(batches, steps, repeat, workers, threads, prefetch)

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
          StopIteration: after the last one.
          UserError: if the data cannot be read; the loader is closed then.
        """
        try:
            return next(self._iterator)
        except StopIteration:
            raise
        except RuntimeError as error:
            self.close()
            raise UserError(str(error)) from error  # load_rows says what to mend
        except BaseException:
            self.close()  # the next batch is half read, or lost
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes and threads. Can be called twice."""
        iterator, self._iterator = self._iterator, iter(())
        if hasattr(iterator, "close"):
            iterator.close()


def available_cores() -> int:
    """Returns the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_loader(
    batches: Batches, data: Dataset, *, start: int = 0, repeat: bool = False
) -> Loader:
    """Returns a Loader with the options of a config's dataset."""
    return Loader(
        batches,
        start=start,
        repeat=repeat,
        workers=data.workers,
        threads=data.threads,
        prefetch=data.prefetch,
    )
