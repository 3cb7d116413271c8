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

Only NumPy is used here: a worker process never initialises a JAX backend.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxcls.data import order
from jaxcls.data.sampling import Draws, Sampling
from jaxcls.data.sources import Dataset, Source, stacked, takes_words
from jaxcls.data.workers import Batch, Workers
from jaxcls.errors import UserError


def load_rows(
    source: Source, ids: np.ndarray, words: np.ndarray | None = None
) -> Batch:
    """Returns the records `ids` [n] as one batch, after checking them.

    Args:
      source: the records.
      ids: which ones, int [n], n >= 1.
      words: a random word for each, uint64 [n], for sources that draw something.

    Returns:
      "image", "label", "mask" and "id", see above.

    Raises:
      RuntimeError: naming the source and what is wrong with which record. One that the source
        raises itself passes as it is: a sentence that names the file.
    """
    gather = getattr(source, "gather", None)
    some = f"records {', '.join(map(str, ids[:3]))}, ..."
    if gather is not None:
        drawn = {"words": words} if takes_words(source) else {}
        batch = _call(source, some, functools.partial(gather, ids, **drawn))
    else:
        records = [
            _call(source, f"record {i}", functools.partial(source.__getitem__, int(i)))
            for i in ids
        ]
        batch = _call(source, some, functools.partial(stacked, records))
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
    """Returns the labels of the records `ids` as a batch has them.

    Raises:
      RuntimeError: naming the source, if they are no labels of its classes.
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


def _call(source: Source, what: str, read: Callable[[], Any]) -> Any:
    """Calls the code of a source, naming what it was asked for if it fails."""
    try:
        return read()
    except Exception as error:
        if type(error) is RuntimeError:  # no subclass, such as RecursionError
            raise
        raise RuntimeError(
            f"{what} of {source!r} cannot be read: {type(error).__name__}: {error}"
        ) from None


def padded_rows(batch_size: int, multiple: int) -> int:
    """Returns the rows of a batch: its size rounded up to a multiple (of the devices)."""
    return -(-batch_size // multiple) * multiple


class TrainBatches:
    """The training set as a sequence of batches: element k holds this host's rows of step k.

    Row r of a step is the same record, and has the same random word, whatever the number of
    hosts.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        batch_size: int,
        num_steps: int,
        sampling: Sampling | None = None,
        host: int = 0,
        num_hosts: int = 1,
    ):
        """Makes the sequence for host `host` of `num_hosts`.

        Args:
          source: the training set; sampling.limit has been applied to it.
          seed: the run's seed.
          batch_size: images in a step over all hosts.
          num_steps: length of the sequence.
          sampling: how records are drawn; None takes each once an epoch.
          host: this host, 0 <= host < num_hosts.
          num_hosts: hosts that train together.

        Raises:
          ValueError: if the batch is larger than the training set or does not divide into
            equal parts for the hosts, or for the copies of a record.
        """
        if batch_size > len(source):
            raise ValueError(
                f"batch_size {batch_size} is larger than {source!r}: use at most "
                f"{len(source)}."
            )
        if batch_size % num_hosts:
            raise ValueError(
                f"batch_size {batch_size} does not divide among {num_hosts} hosts."
            )
        self.source = source
        self.seed = seed
        self.batch_size = batch_size
        self.num_steps = num_steps
        self._draws = Draws(
            source, sampling or Sampling(), seed=seed, batch_size=batch_size
        )
        rows = batch_size // num_hosts
        self.host_rows = slice(host * rows, (host + 1) * rows)

    def __len__(self) -> int:
        return self.num_steps

    def ids(self, step: int) -> np.ndarray:
        """Returns the records of this host's rows of step `step`: int64 [rows]."""
        return self._draws.ids(step)[self.host_rows]

    def __getitem__(self, step: int) -> Batch:
        words = order.row_words(self.seed, step, self.batch_size)[self.host_rows]
        return load_rows(self.source, self.ids(step), words)


class EvalBatches:
    """A split in its own order, every record in exactly one batch.

    All batches have `rows` rows on this host: where the records run out, they are filled with
    zeros and masked False.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        rows_multiple: int = 1,
        host: int = 0,
        num_hosts: int = 1,
    ):
        """Makes the sequence for host `host` of `num_hosts`.

        Args:
          source: the records, at least one.
          batch_size: records in a batch over all hosts.
          rows_multiple: the rows of a batch are padded to a multiple of this (the number of
            devices over all hosts, itself a multiple of num_hosts).
          host: this host, 0 <= host < num_hosts.
          num_hosts: hosts that evaluate together.
        """
        multiple = int(np.lcm(rows_multiple, num_hosts))
        self.source = source
        self.batch_size = batch_size
        self.rows = padded_rows(batch_size, multiple) // num_hosts
        self.first_row = host * self.rows

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self.batch_size
        end = min(first + self.batch_size, len(self.source))
        ids = np.arange(first, end)[self.first_row : self.first_row + self.rows]
        num_padded = self.rows - len(ids)
        # A host whose rows are all padding still needs the shape of an image.
        batch = load_rows(self.source, ids if len(ids) else np.array([first]))
        padded = {
            name: np.pad(
                values[: len(ids)], [(0, num_padded)] + [(0, 0)] * (values.ndim - 1)
            )
            for name, values in batch.items()
        }
        padded["id"][len(ids) :] = -1
        return padded


class Loader:
    """Runs a sequence of batches ahead of its reader, in threads or worker processes.

    The batches and their order do not depend on `workers` or `threads`. Use it in a `with`
    statement: leaving it ends the worker processes. They also end by themselves when the
    trainer is killed.
    """

    def __init__(
        self,
        batches: TrainBatches | EvalBatches,
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
            self._iterator = _in_threads(batches, start, repeat, threads, prefetch)
        else:
            self._iterator = Workers(
                batches,
                start=start,
                repeat=repeat,
                workers=workers,
                threads=threads,
                prefetch=prefetch,
            )

    def __iter__(self) -> Iterator[Batch]:
        return self

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
        except EOFError as error:
            self.close()
            raise UserError(
                "a process that loads data was killed, perhaps for want of memory: run the "
                "same command again, with fewer data.workers or a smaller prefetch."
            ) from error
        except RuntimeError as error:
            self.close()
            raise UserError(str(error)) from error  # load_rows says what to mend
        except BaseException:
            self.close()  # what comes next is not the next batch: it is half read, or lost
            raise

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes and threads. Can be called twice."""
        iterator, self._iterator = self._iterator, iter(())
        if hasattr(iterator, "close"):
            iterator.close()


def _in_threads(
    batches: TrainBatches | EvalBatches,
    start: int,
    repeat: bool,
    threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """Returns the batches as threads of this process load them; arguments as Loader's."""
    import grain  # it imports jax, which the worker processes have no use for

    dataset = grain.MapDataset.source(batches)[start:]
    if repeat:
        dataset = dataset.repeat()
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(prefetch, threads)
    )
    return iter(dataset.to_iter_dataset(options))


def available_cores() -> int:
    """Returns the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def start_loader(
    batches: TrainBatches | EvalBatches,
    data: Dataset,
    *,
    start: int = 0,
    repeat: bool = False,
) -> Loader:
    """Returns a Loader that works as a config's dataset says; other arguments as Loader's."""
    return Loader(
        batches,
        start=start,
        repeat=repeat,
        workers=data.workers,
        threads=data.threads,
        prefetch=data.prefetch,
    )
