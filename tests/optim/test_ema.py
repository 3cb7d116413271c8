"""The moving average of the weights, against its recursion in NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.duration import Duration, RunLength, epochs, examples, fraction, steps
from jaxcls.errors import UserError
from jaxcls.optim import ema as ema_lib
from jaxcls.optim.ema import EMA
from jaxcls.options import check

RUN = RunLength(steps_per_epoch=10, batch_size=4, total_steps=1000)


def averaged(ema: EMA, average: Any, sequence: Any, first: int = 0) -> list[Any]:
    """Returns the average after each step of a sequence of weights."""
    update = jax.jit(
        lambda average, values, t: ema_lib.update(ema, average, values, t, RUN)
    )
    trajectory = []
    for t, values in enumerate(sequence, start=first):
        average = update(average, values, jnp.int32(t))
        trajectory.append(average)
    return trajectory


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("warm_up", [True, False])
def test_equal_values_stay_exactly_equal(every: int, warm_up: bool) -> None:
    random = np.random.default_rng(2)
    values = {"kernel": jnp.float32(random.normal(size=(40, 25)) * 10.0)}
    ema = EMA(decay=0.997, every=every, warm_up=warm_up)
    last = averaged(ema, values, [values] * 20)[-1]
    np.testing.assert_array_equal(last["kernel"], values["kernel"])


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("every", [1, 4])
def test_it_is_the_recursion(decay: float, every: int) -> None:
    sequence = np.random.default_rng(3).normal(size=(30, 7))
    found = averaged(
        EMA(decay=decay, every=every),
        [jnp.zeros(7)],
        [[jnp.float32(v)] for v in sequence],
    )
    reference, updates = np.zeros(7), 0
    for t, values in enumerate(sequence):
        if (t + 1) % every == 0:
            # The num_updates rule of TensorFlow's ExponentialMovingAverage.
            share = min(decay, (1 + updates) / (10 + updates))
            reference = share * reference + (1 - share) * values
            updates += 1
        np.testing.assert_allclose(found[t][0], reference, rtol=1e-5, atol=1e-6)


def test_between_its_updates_it_does_not_change() -> None:
    sequence = np.random.default_rng(4).normal(size=(20, 3))
    found = averaged(
        EMA(decay=0.5, every=5), jnp.zeros(3), [jnp.float32(v) for v in sequence]
    )
    before = np.zeros(3)
    for t, average in enumerate(found):
        changed = bool((np.asarray(average) != before).any())
        assert changed == (t in (4, 9, 14, 19)), t
        before = np.asarray(average)


def test_a_continued_run_averages_on() -> None:
    sequence = [jnp.float32(v) for v in np.random.default_rng(5).normal(size=(20, 3))]
    ema = EMA(decay=0.9, every=3)
    whole = averaged(ema, jnp.zeros(3), sequence)
    half = averaged(ema, jnp.zeros(3), sequence[:10])
    rest = averaged(ema, half[-1], sequence[10:], first=10)
    np.testing.assert_array_equal(whole, half + rest)


@pytest.mark.parametrize("every", [1, 2, 10])
@pytest.mark.parametrize(
    "half_life", [steps(40), epochs(4), fraction(0.04), Duration(160, "examples")]
)
def test_half_of_a_half_life_ago_is_left(every: int, half_life: Duration) -> None:
    ema = EMA(decay=None, half_life=half_life, every=every, warm_up=False)
    found = averaged(ema, jnp.ones(2), [jnp.zeros(2)] * 80)
    np.testing.assert_allclose(found[39], 0.5, rtol=1e-5)
    np.testing.assert_allclose(found[79], 0.25, rtol=1e-5)


def test_five_thousand_steps_computed_in_bfloat16_move_it() -> None:
    """A share of 1e-4 is lost in bfloat16, whose numbers near 1 are 0.004 apart."""
    ema = EMA(decay=0.9999, warm_up=False)
    weights = {"kernel": jnp.full(3, 2.0, jnp.bfloat16)}

    @jax.jit
    def run(average: Any) -> Any:
        def step(t: Any, average: Any) -> Any:
            return ema_lib.update(ema, average, weights, t, RUN)

        return jax.lax.fori_loop(0, 5000, step, average)

    average = run({"kernel": jnp.ones(3, jnp.float32)})["kernel"]
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 2 - 0.9999**5000, rtol=1e-4)


def test_no_digit_of_a_decay_near_one_is_lost() -> None:
    """1 - float32(0.9999999) would be a fifth too large."""
    ema = EMA(decay=0.9999999)
    share = ema_lib.share_at(ema, ema.share(RUN), 2**30)
    np.testing.assert_allclose(float(share), 1e-7, rtol=1e-6)
    # A half-life of a billion steps: log(2) of a step's share.
    ema = EMA(decay=None, half_life=steps(1e9))
    np.testing.assert_allclose(ema.share(RUN), math.log(2) / 1e9, rtol=1e-6)


def test_without_warm_up_the_first_update_has_the_whole_decay() -> None:
    for warm_up, expected in ((False, 0.1), (True, 0.9)):
        (average,) = averaged(
            EMA(decay=0.9, warm_up=warm_up), jnp.zeros(2), [jnp.ones(2)]
        )
        np.testing.assert_allclose(average, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("ema", "said"),
    [
        (EMA(decay=1.0), "EMA.decay must lie in 0..1, below 1, not 1.0."),
        (EMA(decay=-0.1), "not -0.1"),
        (EMA(decay=math.nan), "not nan"),
        (
            EMA(decay=None),
            "EMA.decay is None and EMA.half_life is None: give exactly one",
        ),
        (EMA(half_life=steps(5)), "EMA.decay is 0.9999 and EMA.half_life is 5 steps"),
        (EMA(every=0), "EMA.every must be 1 or more, not 0."),
    ],
)
def test_values_out_of_range_are_named(ema: EMA, said: str) -> None:
    with pytest.raises(UserError) as error:
        check(ema)
    assert said in str(error.value)


def test_a_half_life_of_less_than_a_step_is_named() -> None:
    for half_life in (examples(1), epochs(0)):
        said = rf"half_life of {half_life} is less than one step"
        with pytest.raises(UserError, match=said):
            EMA(decay=None, half_life=half_life).share(RUN)


def test_an_average_that_is_never_updated_is_named() -> None:
    for every in (1001, 5000):
        with pytest.raises(
            UserError, match=rf"EMA.every is {every} steps in a run of 1000"
        ):
            EMA(every=every).share(RUN)
    assert EMA(decay=0.75, every=1000).share(RUN) == 0.25


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    check(EMA(decay=0.0))
    check(EMA(decay=None, half_life=steps(1)))
