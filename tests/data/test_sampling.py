"""Balanced classes, copies of records, few records of each class: counted one by one."""

import collections
import pickle

import numpy as np
import pytest

from jaxcls.data import ArraySource
from jaxcls.data.loader import Loader, TrainBatches
from jaxcls.data.order import Strata, record_ids
from jaxcls.data.sampling import (
    Sampling,
    few_of_each_class,
    one_label_each,
)
from jaxcls.data.sources import Source
from jaxcls.errors import UserError
from jaxcls.options import check

# 110 records of class 0, 7 of class 1, none of 2, 1 of 3, 42 of 4.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3, 4], [110, 7, 1, 42]))


def source(labels: np.ndarray = LABELS) -> ArraySource:
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    return ArraySource("uneven", images, labels, tuple("abcde"))


def batches_of(sampling: Sampling, *, seed: int, batch_size: int) -> TrainBatches:
    return TrainBatches(
        source(), seed=seed, batch_size=batch_size, num_steps=1, sampling=sampling
    )


def epoch_of(
    sampling: Sampling, epoch: int, batch_size: int = 8, seed: int = 3
) -> list:
    """The records of an epoch, one list for each step."""
    drawn = batches_of(sampling, seed=seed, batch_size=batch_size)
    steps = len(LABELS) // batch_size
    return [drawn.ids(epoch * steps + step).tolist() for step in range(steps)]


def test_by_default_records_come_as_they_always_did() -> None:
    drawn = batches_of(Sampling(), seed=3, batch_size=8)
    for step in (0, 19, 20, 1234):
        assert drawn.ids(step).tolist() == record_ids(3, step, 8, 160).tolist()


def test_balanced_classes_come_equally_often() -> None:
    leftover = collections.Counter()
    for epoch in range(60):
        ids = [i for step in epoch_of(Sampling(balance=True), epoch, 7) for i in step]
        assert len(ids) == 154  # 22 steps of 7
        classes = np.bincount(LABELS[ids], minlength=5)
        assert classes[2] == 0 and classes.sum() == 154
        assert set(classes[[0, 1, 3, 4]]) <= {38, 39}
        leftover.update(np.flatnonzero(classes == 39).tolist())
        # Within a class no record comes again before all have come.
        for label in (0, 1, 3, 4):
            of_class = np.bincount(ids, minlength=160)[LABELS == label]
            assert of_class.max() - of_class.min() <= 1
    # Two of four classes get one more, each as often as the others.
    assert sum(leftover.values()) == 120
    assert all(18 <= leftover[label] <= 42 for label in (0, 1, 3, 4))


def test_balanced_batches_are_shuffled_anew() -> None:
    first, again, other = (
        epoch_of(Sampling(balance=True), epoch, seed=seed)
        for epoch, seed in ((0, 3), (1, 3), (0, 4))
    )
    assert first == epoch_of(Sampling(balance=True), 0)
    assert first != again and first != other and again != other
    # The classes of a batch vary as those of independent draws would.
    per_batch = [
        np.sum(LABELS[ids] == 4)
        for e in range(50)
        for ids in epoch_of(Sampling(balance=True), e)
    ]
    assert np.mean(per_batch) == pytest.approx(2, abs=0.01)
    assert np.var(per_batch) == pytest.approx(8 * 0.25 * 0.75 * 152 / 159, rel=0.15)


def test_shares_are_exact_in_every_epoch() -> None:
    strata = Strata([np.arange(5), np.arange(5, 1000)], [3, 1])
    for epoch in range(20):
        ids = strata.draw(0, epoch, 400)
        assert np.bincount(ids < 5).tolist() == [100, 300]
        assert np.bincount(ids[ids < 5]).tolist() == [60] * 5
        assert np.bincount(ids[ids >= 5]).max() == 1
    # Where an epoch has fewer draws than groups, each comes as often as the others.
    groups = Strata([np.array([i]) for i in range(30)], [1] * 30)
    seen = np.bincount(np.concatenate([groups.draw(0, e, 7) for e in range(900)]))
    assert ((seen - 210) ** 2 / 210).sum() < 59.7  # chi-square of 29, 1 in 1,000


@pytest.mark.parametrize("balance", [False, True])
def test_copies_of_a_record_share_a_batch(balance: bool) -> None:
    sampling = Sampling(repeats=3, balance=balance)
    drawn = batches_of(sampling, seed=3, batch_size=24)
    for step in range(40):
        counts = collections.Counter(drawn.ids(step).tolist())
        # The only record of a class may be drawn more than once.
        assert all(n % 3 == 0 if balance else n == 3 for n in counts.values())
        assert counts.total() == 24
    if not balance:
        # 20 steps of 8 different records are one pass over all 160.
        seen = collections.Counter(i for step in range(20) for i in drawn.ids(step))
        assert set(seen.values()) == {3} and len(seen) == 160
    # Copies are not always as far from each other.
    apart = {
        tuple(np.flatnonzero(ids == ids[0]))
        for ids in (drawn.ids(step) for step in range(40))
    }
    assert len(apart) > 30


def test_copies_must_divide_the_batch() -> None:
    with pytest.raises(
        ValueError, match=r"batch_size 8 is no multiple of data.sampling.repeats 3"
    ):
        batches_of(Sampling(repeats=3), seed=0, batch_size=8)


def test_a_few_of_each_class() -> None:
    few = few_of_each_class(LABELS, 5, seed=0)
    assert np.bincount(LABELS[few], minlength=5).tolist() == [5, 5, 0, 1, 5]
    assert (np.diff(few) > 0).all()
    more = few_of_each_class(LABELS, 20, seed=0)
    assert np.bincount(LABELS[more], minlength=5).tolist() == [20, 7, 0, 1, 20]
    assert set(few) < set(more)
    assert few.tolist() != few_of_each_class(LABELS, 5, seed=1).tolist()
    assert few_of_each_class(LABELS, 10**6, seed=1).tolist() == list(range(160))
    # Every record of a class is as likely as the others.
    of_0 = np.flatnonzero(LABELS == 0)
    chosen = np.concatenate(
        [few_of_each_class(LABELS, 11, seed=s) for s in range(1000)]
    )
    counts = np.bincount(chosen, minlength=160)[of_0]
    assert ((counts - 100) ** 2 / 90).sum() < 163  # chi-square of 109, 1 in 1,000


def test_hosts_and_workers_draw_alike() -> None:
    sampling = Sampling(balance=True, repeats=2)
    options = {"seed": 1, "batch_size": 8, "num_steps": 45, "sampling": sampling}
    whole = batches_of(sampling, seed=1, batch_size=8)
    parts = []
    for host, workers in ((0, 0), (1, 2)):
        batches = TrainBatches(source(), host=host, num_hosts=2, **options)  # type: ignore[arg-type]
        with Loader(batches, start=30, workers=workers) as loader:
            parts.append([batch["id"] for batch in loader])
    for step, rows in enumerate(zip(*parts, strict=True), start=30):
        assert np.concatenate(rows).tolist() == whole.ids(step).tolist()
    unpickled = pickle.loads(pickle.dumps(whole))
    assert unpickled.ids(44).tolist() == whole.ids(44).tolist()


def test_a_source_without_labels_is_named() -> None:
    class Blind(Source):
        class_names = ("a", "b")

        def __len__(self) -> int:
            return 3

        def __repr__(self) -> str:
            return "blind(3)"

    with pytest.raises(UserError, match=r"blind\(3\) does not tell the class"):
        one_label_each(Blind())
    with pytest.raises(UserError, match="blind"):
        few = Blind()
        few.labels = np.zeros((3, 4), np.uint8)
        one_label_each(few)


@pytest.mark.parametrize(
    ("option", "value"),
    [("repeats", 0), ("limit", 0), ("limit_seed", -1), ("limit_seed", 2**32)],
)
def test_options_out_of_range_are_named(option: str, value: int) -> None:
    high = {"repeats": 1024, "limit": 2**31, "limit_seed": 2**32 - 1}[option]
    low = int(option != "limit_seed")
    with pytest.raises(UserError) as error:
        check(Sampling(**{option: value}), "data.sampling")
    said = str(error.value)
    if value < 2**32:
        assert said == f"data.sampling.{option} must lie in {low}..{high}, not {value}."
    else:
        assert said == f"data.sampling.{option} of {value} is beyond every range."
    check(Sampling(balance=True, repeats=3, limit=1, limit_seed=2**32 - 1))
