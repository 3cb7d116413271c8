"""Mixtures of sources, against the records one by one."""

import pickle

import numpy as np
import pytest

from jaxcls.data.loader import Loader, TrainBatches, load_rows
from jaxcls.data.mixture import MixedSource, Mixture
from jaxcls.data.opening import open_split
from jaxcls.data.sampling import Sampling
from jaxcls.errors import UserError
from jaxcls.options import check
from tests.data.examples import Given, OneByOne, Seeded, numbered


def test_a_mixture_is_its_sources_one_after_the_other() -> None:
    parts = [numbered(7, 0), OneByOne(numbered(5, 100)), Seeded()]
    mixed = MixedSource(parts, (1.0, 1.0, 2.0))  # type: ignore[arg-type]
    assert len(mixed) == 32 and mixed.class_names == tuple("abc")
    mixed = pickle.loads(pickle.dumps(mixed))
    ids = np.array([31, 0, 7, 12, 6, 11, 7, 30])
    seeds = np.arange(8, dtype=np.uint64) * 10
    batch = load_rows(mixed, ids, seeds)
    expected = [19 + 0, 0, 100, 0 + 30, 6, 104, 100, 18 + 70]
    assert batch["image"].ravel().tolist() == expected
    assert batch["label"].tolist() == [19 % 3, 0, 0, 0, 0, 1, 0, 0]
    assert batch["mask"].tolist() == [True, True, True, False, True, True, True, True]
    for row, index in enumerate(ids[[1, 2, 4, 5]]):
        assert mixed[int(index)]["image"].item() == [0, 100, 6, 104][row]
    assert mixed.explain(12) == "file 0: torn" and mixed.explain(13) is None
    assert repr(mixed) == (
        "mixture(1 of from-0(7 images 1x1x1), 1 of one-by-one, 2 of seeded(20))"
    )


def test_a_mixture_keeps_its_proportions_in_every_epoch() -> None:
    data = Mixture(
        datasets=(Given(n=10), Given(n=90, first=100, sampling=Sampling(limit=10))),
        weights=(0.75, 0.25),
    )
    check(data)
    source = open_split(data, "train")
    assert len(source) == 40
    batches = TrainBatches(source, seed=0, batch_size=8, num_steps=50)
    with Loader(batches) as loader:
        seen = [batch["image"].ravel() for batch in loader]
    for epoch in range(10):
        pixels = np.concatenate(seen[5 * epoch : 5 * epoch + 5])
        assert (pixels < 100).sum() == 30
        assert np.bincount(pixels[pixels < 100]).tolist() == [3] * 10
    assert len(open_split(data, "test")) == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": (1.0,)}, "2 datasets and 1 weights"),
        ({"weights": (1.0, 0.0)}, r"data.weights\[1\] must be above 0, not 0.0"),
        ({"datasets": (), "weights": ()}, r"data.datasets must be not empty, not \(\)"),
        ({"sampling": Sampling(balance=True)}, "data.sampling.balance"),
        ({"sampling": Sampling(limit=3)}, "data.sampling.limit"),
        ({"datasets": (Given(), Given(workers=2))}, r"datasets\[1\].workers"),
        (
            {"datasets": (Given(sampling=Sampling(repeats=2)), Given())},
            r"datasets\[0\].sampling.repeats",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_named(options: dict, said: str) -> None:
    good = {"datasets": (Given(), Given(first=50)), "weights": (1.0, 2.0)}
    check(Mixture(**good))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said):
        check(Mixture(**{**good, **options}), "data")  # type: ignore[arg-type]


def test_a_mixture_has_one_list_of_classes() -> None:
    data = Mixture(datasets=(Given(), Given(names="abd")), weights=(1.0, 1.0))
    with pytest.raises(UserError, match="different classes"):
        data.source("train")
