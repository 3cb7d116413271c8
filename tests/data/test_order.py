"""The order of the data: uniform, independent from epoch to epoch, and fixed for ever."""

import collections
import itertools

import numpy as np
import pytest

from jaxcls.data.order import (
    LARGEST_ARRAY,
    enciphered,
    epoch_permutation,
    record_ids,
    steps_per_epoch,
)

CHANGED = (
    "The order of the data has changed: runs can no longer be continued exactly from older "
    "checkpoints, and published results no longer repeated. Undo the change, or, if it is "
    "meant, say so in the release notes and write the new numbers here."
)


GOLDEN_0_0 = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
GOLDEN_1_0 = [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]
GOLDEN_0_1 = [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
GOLDEN_IDS = [46, 30, 40, 42]
GOLDEN_CIPHER = [8, 4, 2, 7, 6, 5, 1, 3, 0, 9]
GOLDEN_LARGE_CIPHER = [803538756277, 586051551602, 277640208655]


def test_golden_orders() -> None:
    assert epoch_permutation(0, 0, 10).tolist() == GOLDEN_0_0, CHANGED
    assert epoch_permutation(1, 0, 10).tolist() == GOLDEN_1_0, CHANGED
    assert epoch_permutation(0, 1, 10).tolist() == GOLDEN_0_1, CHANGED
    # 12 steps an epoch: the fifth of epoch 10.
    assert record_ids(7, 124, 4, 50).tolist() == GOLDEN_IDS, CHANGED


def philox(key: tuple[int, int], num_words: int) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, section 3.3 and table 2, in plain integers;
    the counter begins at 1, as NumPy's does."""
    mask = 2**64 - 1
    words: list[int] = []
    for counter in itertools.count(1):
        c0, c1, c2, c3 = counter, 0, 0, 0
        k0, k1 = key
        for _ in range(10):
            product0, product1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
            c0, c1, c2, c3 = (
                (product1 >> 64) ^ c1 ^ k0,
                product1 & mask,
                (product0 >> 64) ^ c3 ^ k1,
                product0 & mask,
            )
            k0 = (k0 + 0x9E3779B97F4A7C15) & mask
            k1 = (k1 + 0xBB67AE8584CAA73B) & mask
        words += [c0, c1, c2, c3]
        if len(words) >= num_words:
            return words[:num_words]
    raise AssertionError


@pytest.mark.parametrize(
    ("seed", "epoch", "n"),
    [
        (0, 0, 1),
        (0, 0, 50),
        (3, 17, 201),
        (2**63 - 1, 5, 30),
        (2**64 - 1, 5, 30),
    ],
)
def test_order_sorts_the_words_of_philox(seed: int, epoch: int, n: int) -> None:
    words = philox((seed, epoch), n)
    expected = sorted(range(n), key=words.__getitem__)
    assert epoch_permutation(seed, epoch, n).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 7, 1437])
def test_each_epoch_is_a_permutation(n: int) -> None:
    for epoch in range(5):
        order = epoch_permutation(3, epoch, n)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(n))


def test_every_seed_and_epoch_has_its_own_order() -> None:
    # A sum of seed and epoch, say, would give (0, 1) the order of (1, 0).
    seeds = [0, 1, 2, 3, 2**32, 2**32 + 1, 2**63 - 1]
    orders = {
        tuple(epoch_permutation(seed, epoch, 30).tolist())
        for seed in seeds
        for epoch in range(4)
    }
    assert len(orders) == len(seeds) * 4


def test_orders_are_uniform() -> None:
    counts: collections.Counter[tuple[int, ...]] = collections.Counter()
    for seed in range(60):
        for epoch in range(100):
            counts[tuple(epoch_permutation(seed, epoch, 5).tolist())] += 1
    expected = 6000 / 120
    found = [counts[order] for order in itertools.permutations(range(5))]
    chi_square = sum((count - expected) ** 2 / expected for count in found)
    # 119 degrees of freedom: mean 119, standard deviation 15.4. Too even is no chance either.
    assert 119 - 5 * 15.4 < chi_square < 119 + 5 * 15.4


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_neighbours_epochs_and_seeds_are_uncorrelated() -> None:
    n = 20_000
    order = epoch_permutation(0, 0, n)
    limit = 4 / np.sqrt(n)
    for lag in (1, 2, 3, 4, 5):  # Philox makes words by fours
        assert abs(correlation(order[:-lag], order[lag:])) < limit
    assert abs(correlation(order, np.arange(n))) < limit
    assert abs(correlation(order, epoch_permutation(0, 1, n))) < limit
    assert abs(correlation(order, epoch_permutation(1, 0, n))) < limit


def test_an_order_cannot_be_spoiled_for_the_next_reader() -> None:
    # It is kept for the other steps of the epoch.
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(0, 0, 10)[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        record_ids(0, 0, 5, 10)[:] = 0


@pytest.mark.parametrize(("n", "batch"), [(50, 7), (48, 8), (10, 10), (10, 6), (5, 1)])
def test_an_epoch_takes_whole_batches_without_repeats(n: int, batch: int) -> None:
    per_epoch = n // batch
    assert steps_per_epoch(n, batch) == per_epoch
    left_out = []
    for epoch in range(6):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        ids = [i for step in steps for i in record_ids(9, step, batch, n).tolist()]
        assert len(ids) == len(set(ids)) == per_epoch * batch
        assert set(ids) <= set(range(n))
        # The order itself is the epoch's, from its beginning.
        assert ids == epoch_permutation(9, epoch, n)[: len(ids)].tolist()
        left_out.append(frozenset(range(n)) - set(ids))
    if n % batch:
        assert len(set(left_out)) > 1, "the same records would never be trained on"


def test_steps_need_no_history() -> None:
    forwards = [record_ids(4, step, 6, 20).tolist() for step in range(40)]
    epoch_permutation.cache_clear()
    backwards = [record_ids(4, step, 6, 20).tolist() for step in reversed(range(40))]
    assert forwards == backwards[::-1]
    epoch_permutation.cache_clear()
    assert record_ids(4, 31, 6, 20).tolist() == forwards[31]
    # Far on in a long run.
    far = record_ids(4, 10**9, 6, 20).tolist()
    assert len(set(far)) == 6 and set(far) <= set(range(20))


# Sets too large for an array


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 1000, 1437, 65537])
def test_a_cipher_permutes(n: int) -> None:
    for epoch in range(3):
        order = enciphered(7, epoch, n, np.arange(n))
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(n))
        # Each place by itself.
        some = np.array([n - 1, 0, n // 2])
        assert enciphered(7, epoch, n, some).tolist() == order[some].tolist()


def test_golden_cipher() -> None:
    assert enciphered(0, 0, 10, np.arange(10)).tolist() == GOLDEN_CIPHER, CHANGED
    large = enciphered(3, 1, 2**40 + 1, np.array([0, 1, 2**40])).tolist()
    assert large == GOLDEN_LARGE_CIPHER, CHANGED


def test_ciphers_are_close_to_uniform() -> None:
    n, epochs = 24, 4800
    orders = np.stack([enciphered(1, e, n, np.arange(n)) for e in range(epochs)])
    counts = np.stack(
        [np.bincount(orders[:, place], minlength=n) for place in range(n)]
    )
    expected = epochs / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 23 x 23 degrees of freedom: mean 529, standard deviation 32.5.
    assert abs(chi_square - 529) < 4 * 32.5


def test_a_large_order_looks_shuffled() -> None:
    n = 1_000_003
    order = enciphered(5, 2, n, np.arange(n))
    assert (np.bincount(order, minlength=n) == 1).all()
    # Where the records of each hundredth go to, in hundredths.
    table = np.histogram2d(np.arange(n), order, bins=100, range=[(0, n), (0, n)])[0]
    expected = n / 1e4
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert abs(chi_square - 99**2) < 4 * np.sqrt(2 * 99**2)
    for lag in (1, 2, 1000):  # about the side of the rectangle
        correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(n)
    for other in (enciphered(5, 3, n, np.arange(n)), enciphered(6, 2, n, np.arange(n))):
        assert abs(np.corrcoef(order, other)[0, 1]) < 4 / np.sqrt(n)


def test_only_sets_too_large_for_an_array_are_enciphered() -> None:
    n = LARGEST_ARRAY
    ids = record_ids(2, 3, 8, n)
    assert ids.tolist() == epoch_permutation(2, 0, n)[24:32].tolist()
    n += 1
    step = n // 8 + 5  # of epoch 1
    assert record_ids(2, step, 8, n).tolist() == (
        enciphered(2, 1, n, np.arange(40, 48)).tolist()
    )
