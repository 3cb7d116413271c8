"""The optimizer's chain, against the update rules written out in NumPy."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.duration import RunLength, steps
from jaxcls.optim import (
    LAMB,
    LARS,
    SGD,
    Adafactor,
    AdamW,
    AdaptiveClip,
    Clip,
    ClipNorm,
    Freeze,
    Group,
    Muon,
    Optimizer,
    Schedule,
    ScheduleFreeAdamW,
    WarmupCosine,
)
from jaxcls.optim.chain import chain, learning_rate
from jaxcls.optim.groups import resolve
from jaxcls.optim.treatment import Treatments, path_of

STEPS, WARMUP, START, END = 20, 4, 0.1, 0.05
RUN = RunLength(steps_per_epoch=10, batch_size=4, total_steps=STEPS)
SCHEDULE = WarmupCosine(warmup=steps(WARMUP), start=START, end=END)
AT_ITS_PEAK = WarmupCosine(warmup=steps(0))
LAYERS = (("stem", "norm"), ("block",), ("fc",))
FlatTree = dict[str, np.ndarray]


def numpy_factor(t: int) -> float:
    if t < WARMUP:
        return START + (1 - START) * t / WARMUP
    cosine = math.cos(math.pi * (t - WARMUP) / (STEPS - 1 - WARMUP))
    return END + (1 - END) * (1 + cosine) / 2


def initial() -> FlatTree:
    random = np.random.default_rng(0)
    return {
        "stem/kernel": random.normal(size=(3, 3, 2, 4)),
        "norm/scale": random.normal(size=4),
        "norm/bias": random.normal(size=4),
        "block/kernel": random.normal(size=(4, 5)),
        "block/bias": random.normal(size=5),
        "fc/kernel": random.normal(size=(5, 3)),
        "fc/bias": random.normal(size=3),
    }


KERNELS = [name for name in initial() if name.endswith("kernel")]
FC = ["fc/kernel", "fc/bias"]


def tree(flat: FlatTree) -> Any:
    """Makes the parameters of flax of paths and values."""
    nested: dict[str, dict[str, np.ndarray]] = {}
    for name, values in flat.items():
        module, kind = name.split("/")
        nested.setdefault(module, {})[kind] = np.float32(values)
    return nested


def flat(nested: Any) -> FlatTree:
    leaves = jax.tree_util.tree_leaves_with_path(nested)
    return {path_of(keys): np.asarray(leaf) for keys, leaf in leaves}


def gradients() -> list[FlatTree]:
    """Fixed gradients, every third of them ten times larger."""
    random = np.random.default_rng(1)
    return [
        {
            name: random.normal(size=leaf.shape) * (10 if t % 3 == 2 else 1)
            for name, leaf in initial().items()
        }
        for t in range(STEPS)
    ]


def zeros() -> Any:
    return jax.tree.map(np.zeros_like, tree(initial()))


def ones() -> Any:
    return jax.tree.map(np.ones_like, tree(initial()))


def treated(values: FlatTree | None = None, **options: Any) -> Treatments:
    defaults: dict[str, Any] = {
        "groups": (),
        "freeze": (),
        "layer_decay": None,
        "head_rate": 1.0,
        "decays": "kernels",
        "run": RUN,
    }
    params = tree(initial() if values is None else values)
    return resolve(params, LAYERS, ("fc",), **{**defaults, **options})


def frozen(pattern: str, until: int | None = None) -> tuple[Freeze, ...]:
    return (Freeze(pattern=pattern, until=None if until is None else steps(until)),)


def make(
    optimizer: Optimizer,
    schedule: Schedule = SCHEDULE,
    *,
    clip: Clip | None = None,
    decay_schedule: Schedule | None = None,
    run: RunLength = RUN,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    return chain(
        optimizer,
        schedule,
        clip=clip,
        treatments=treated(**options),
        decay_schedule=decay_schedule,
        run=run,
    )


def run(
    tx: optax.GradientTransformationExtraArgs,
    grads: list[FlatTree],
    params: Any,
    state: Any = None,
    first: int = 0,
) -> tuple[list[FlatTree], Any]:
    """Makes a step of each gradient; returns the parameters after each, and the last state."""

    @jax.jit
    def step(grads: Any, state: Any, params: Any, t: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, step=t)
        return optax.apply_updates(params, updates), state

    state = tx.init(params) if state is None else state
    trajectory = []
    for t, gradient in enumerate(grads, start=first):
        params, state = step(tree(gradient), state, params, np.int32(t))
        trajectory.append(flat(params))
    return trajectory, state


def updated(tx: optax.GradientTransformationExtraArgs, grads: Any, t: int = 0) -> Any:
    """The update of a fresh state, as if at step t of the run."""
    update = jax.jit(
        lambda grads, params, t: tx.update(grads, tx.init(params), params, step=t)[0]
    )
    return jax.device_get(update(grads, tree(initial()), np.int32(t)))


def clipped(grads: FlatTree, limit: float | None) -> FlatTree:
    norm = math.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
    if limit is None or norm <= limit:
        return grads
    return {name: leaf * (limit / norm) for name, leaf in grads.items()}


def sgd(momentum: float, nesterov: bool) -> Callable[[np.ndarray, dict, int], Any]:
    """Sutskever et al. 2013, as torch.optim.SGD writes it."""

    def direction(gradient: np.ndarray, memory: dict, t: int) -> np.ndarray:
        memory["v"] = momentum * memory.get("v", 0) + gradient
        return gradient + momentum * memory["v"] if nesterov else memory["v"]

    return direction


def adam(beta1: float, beta2: float, epsilon: float) -> Callable:
    """Kingma & Ba 2014, algorithm 1."""

    def direction(gradient: np.ndarray, memory: dict, t: int) -> np.ndarray:
        memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * gradient
        memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * gradient**2
        mean = memory["m"] / (1 - beta1 ** (t + 1))
        square = memory["v"] / (1 - beta2 ** (t + 1))
        return mean / (np.sqrt(square) + epsilon)

    return direction


DECOUPLED = functools.partial(SGD, decay="decoupled")
CASES = [
    (DECOUPLED(learning_rate=0.05, weight_decay=0.1), sgd(0.9, True), 20.0),
    (AdamW(learning_rate=0.02, weight_decay=0.1), adam(0.9, 0.999, 1e-8), None),
]


@pytest.mark.parametrize(("optimizer", "direction", "limit"), CASES)
def test_twenty_steps_are_the_formula(
    optimizer: Optimizer, direction: Callable, limit: float | None
) -> None:
    """Schedules of rate and decay, groups, layer decay, the head's rate and clipping at once."""
    grads = gradients()
    norms = [math.sqrt(sum((leaf**2).sum() for leaf in g.values())) for g in grads]
    assert min(norms) < 20 < max(norms)  # the limit clips some steps and not others
    tx = make(
        optimizer,
        clip=None if limit is None else ClipNorm(max_norm=limit),
        decay_schedule=SCHEDULE,
        groups=(
            Group(pattern="^block", rate=0.5, decay=3.0),
            Group(pattern="kernel$", rate=0.7),
        ),
        layer_decay=0.8,
        head_rate=2.0,
    )
    multipliers = {
        "stem/kernel": 0.64 * 0.7,
        "norm/scale": 0.64,
        "norm/bias": 0.64,
        "block/kernel": 0.8 * 0.5 * 0.7,
        "block/bias": 0.8 * 0.5,
        "fc/kernel": 2 * 0.7,
        "fc/bias": 2.0,
    }
    decays = {"stem/kernel": 1.0, "block/kernel": 3.0, "fc/kernel": 1.0}

    trajectory, _ = run(tx, grads, tree(initial()))
    reference = initial()
    memories: dict[str, dict] = {name: {} for name in reference}
    for t in range(STEPS):
        rate = optimizer.learning_rate * numpy_factor(t)
        decay = optimizer.weight_decay * numpy_factor(t)
        for name, gradient in clipped(grads[t], limit).items():
            move = direction(gradient, memories[name], t)
            move = move + decay * decays.get(name, 0) * reference[name]
            reference[name] = reference[name] - rate * multipliers[name] * move
        for name, expected in reference.items():
            error = np.abs(trajectory[t][name] - expected).max()
            assert error / np.abs(expected).max() < 1e-5, (t, name)
    for name, before in initial().items():
        assert np.abs(reference[name] - before).max() > 0.02  # it went somewhere


@pytest.mark.parametrize("optimizer", [DECOUPLED, AdamW])
@pytest.mark.parametrize("decays", ["kernels", "all"])
def test_without_gradients_only_what_decays_shrinks(
    optimizer: Callable[..., Optimizer], decays: str
) -> None:
    # Powers of two, so that lr * wd and the products are exact in float32.
    config = optimizer(learning_rate=0.5, weight_decay=0.25)
    tx = make(config, AT_ITS_PEAK, decays=decays)
    before, updates = flat(tree(initial())), flat(updated(tx, zeros()))
    for name in before:
        shrinks = decays == "all" or name in KERNELS
        expected = before[name] - np.float32(0.125) * before[name] * shrinks
        np.testing.assert_array_equal(before[name] + updates[name], expected)


def test_without_decay_and_gradients_nothing_moves() -> None:
    tx = make(SGD(learning_rate=0.5), clip=ClipNorm(max_norm=1.0))
    # Clipping divides by the norm, which is 0 here.
    for leaf in jax.tree.leaves(updated(tx, zeros())):
        np.testing.assert_array_equal(leaf, 0)


def test_decay_is_not_scaled_by_the_size_of_the_gradients() -> None:
    """Decoupled: AdamW divides gradients by their size, never the decay."""
    params = tree(initial())
    moved = {}
    for decay in (0.0, 0.5):
        config = AdamW(learning_rate=0.1, weight_decay=decay)
        tx = make(config, AT_ITS_PEAK)
        grads = jax.tree.map(lambda leaf: np.full_like(leaf, 1000), params)
        moved[decay] = updated(tx, grads)["fc"]["kernel"]
    np.testing.assert_allclose(
        moved[0.5] - moved[0.0], -0.05 * params["fc"]["kernel"], rtol=1e-4, atol=1e-6
    )


def test_the_decay_follows_its_own_schedule() -> None:
    """Without gradients a kernel shrinks by rate x decay x the factor of the decay's schedule."""
    optimizer = DECOUPLED(learning_rate=0.5, weight_decay=0.25)
    tx = make(optimizer, AT_ITS_PEAK, decay_schedule=SCHEDULE)
    params = tree(initial())
    update = jax.jit(
        lambda params, t: tx.update(zeros(), tx.init(params), params, step=t)[0]
    )
    for t in (0, 3, 4, 11):
        updates = update(params, np.int32(t))
        peak = (1 + math.cos(math.pi * t / (STEPS - 1))) / 2
        np.testing.assert_allclose(
            updates["fc"]["kernel"] / params["fc"]["kernel"],
            -0.5 * peak * 0.25 * numpy_factor(t),
            rtol=1e-5,
        )


def test_the_rate_is_that_of_the_step_it_is_given() -> None:
    """Nothing in the chain counts for itself: after bad steps the rate is where it was."""
    config = SGD(learning_rate=0.3, momentum=0.0)
    tx = make(config)
    reported = learning_rate(config, SCHEDULE, RUN)
    params = tree(initial())
    state = tx.init(params)
    update = jax.jit(lambda state, t: tx.update(ones(), state, params, step=t))
    for t in (0, 7, 7, 2, STEPS - 1):
        updates, state = update(state, np.int32(t))
        np.testing.assert_allclose(-updates["fc"]["bias"], reported(t), rtol=1e-6)
        np.testing.assert_allclose(reported(t), 0.3 * numpy_factor(t), rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "expected"), [("linear", 0.3 * 64 / 256), ("root", 0.3 * 0.5)]
)
def test_a_rate_per_256_images_follows_the_batch(scaling: Any, expected: float) -> None:
    config = SGD(learning_rate=0.3, rate_per=256, rate_scaling=scaling, momentum=0.0)
    large = RunLength(steps_per_epoch=10, batch_size=64, total_steps=STEPS)
    tx = make(config, run=large)
    updates = updated(tx, ones(), WARMUP)
    np.testing.assert_allclose(-updates["fc"]["bias"], expected, rtol=1e-6)
    reported = learning_rate(config, SCHEDULE, large)
    np.testing.assert_allclose(reported(WARMUP), expected, rtol=1e-6)


def test_updates_keep_their_type_under_x64() -> None:
    with jax.enable_x64(True):
        tx = make(
            DECOUPLED(learning_rate=0.1, weight_decay=0.1), decay_schedule=SCHEDULE
        )
        updates = updated(tx, ones())
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


def test_layers_move_by_the_table() -> None:
    """Plain gradient descent on equal gradients moves each layer by its multiplier."""
    tx = make(
        SGD(learning_rate=0.3, momentum=0.0),
        layer_decay=0.65,
        head_rate=10.0,
        groups=(Group(pattern="bias$", rate=2.0),),
    )
    updates = updated(tx, ones(), WARMUP)
    for name, expected in {
        "stem/kernel": 0.65**2,
        "norm/scale": 0.65**2,
        "norm/bias": 2 * 0.65**2,
        "block/kernel": 0.65,
        "block/bias": 2 * 0.65,
        "fc/kernel": 10.0,
        "fc/bias": 20.0,
    }.items():
        measured = -flat(updates)[name] / 0.3
        np.testing.assert_allclose(measured, expected, rtol=1e-6, err_msg=name)


BACKBONE = "^(?!fc/)"


@pytest.mark.parametrize("optimizer", [DECOUPLED, AdamW])
def test_frozen_parameters_stay_to_the_last_bit(
    optimizer: Callable[..., Optimizer],
) -> None:
    config = optimizer(learning_rate=0.1, weight_decay=0.5)
    tx = make(config, freeze=frozen(BACKBONE), decays="all")
    before = tree(initial())
    trajectory, state = run(tx, gradients()[:10], before)
    for name, values in flat(before).items():
        if name in FC:
            assert (trajectory[-1][name] != values).all(), name
        else:
            np.testing.assert_array_equal(trajectory[-1][name], values, err_msg=name)
    # Nothing is remembered of them.
    shapes = {leaf.shape for leaf in jax.tree.leaves(state)}
    assert shapes <= {(), (5, 3), (3,)} and shapes >= {(5, 3), (3,)}


@pytest.mark.parametrize("until", [None, 15])
def test_what_is_frozen_has_no_share_in_the_norm(until: int | None) -> None:
    """The rest moves as if there were nothing else, whatever the frozen gradients are."""
    rest = {name: value for name, value in initial().items() if name in FC}
    alone = [{name: g[name] for name in FC} for g in gradients()[:10]]
    norms = [math.sqrt(sum((leaf**2).sum() for leaf in g.values())) for g in alone]
    assert min(norms) < 8 < max(norms)
    optimizer, clip = SGD(learning_rate=0.1), ClipNorm(max_norm=8.0)
    tx = make(optimizer, clip=clip, values=rest)
    expected, _ = run(tx, alone, tree(rest))

    grads = gradients()[:10]
    for t, gradient in enumerate(grads):
        gradient["stem/kernel"][...] = (np.nan, np.inf, 1e30)[t % 3]
    tx = make(optimizer, clip=clip, freeze=frozen(BACKBONE, until))
    given, _ = run(tx, grads, tree(initial()))
    for t in range(10):
        for name in FC:
            np.testing.assert_allclose(given[t][name], expected[t][name], rtol=1e-6)
        for name in ("stem/kernel", "block/bias"):
            np.testing.assert_array_equal(
                given[t][name], np.float32(initial()[name]), err_msg=name
            )


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(learning_rate=0.1, weight_decay=0.3),
        DECOUPLED(learning_rate=0.1, weight_decay=0.3),
    ],
)
def test_what_thaws_begins_with_a_fresh_optimizer(optimizer: Optimizer) -> None:
    thaw = 12
    grads = gradients()
    tx = make(optimizer, freeze=frozen("^block", thaw))
    trajectory, _ = run(tx, grads, tree(initial()))
    before = flat(tree(initial()))
    block = ["block/kernel", "block/bias"]
    for t in range(thaw):
        for name in block:
            np.testing.assert_array_equal(trajectory[t][name], before[name])
    fresh = make(optimizer)
    # From the same parameters, at the same point of the schedule.
    expected, _ = run(fresh, grads[thaw:], tree(initial()), first=thaw)
    for t in range(thaw, STEPS):
        for name in block:
            np.testing.assert_allclose(
                trajectory[t][name], expected[t - thaw][name], rtol=1e-6, atol=1e-7
            )
    # What was never frozen notices nothing of all this.
    never, _ = run(make(optimizer), grads, tree(initial()))
    for name in set(before) - set(block):
        np.testing.assert_allclose(
            trajectory[-1][name], never[-1][name], rtol=1e-6, atol=1e-7
        )


def test_the_first_update_after_a_thaw_is_no_larger_than_the_rate() -> None:
    """Adam's first update is the sign of the gradient times the rate. With moments of zero that
    had been counted for 12 steps it would be 0.1 / (1 - 0.9^13) over the root of
    0.001 / (1 - 0.999^13), about 1.6 times as much, and after thousands of steps 3 times."""
    tx = make(AdamW(learning_rate=0.1), freeze=frozen("^block", 12))
    before, after = run(tx, gradients()[:13], tree(initial()))[0][-2:]
    moved = np.abs(after["block/kernel"] - before["block/kernel"])
    np.testing.assert_allclose(moved, 0.1 * numpy_factor(12), rtol=1e-4)


def test_stages_thaw_one_after_the_other() -> None:
    freeze = (
        Freeze(pattern="^(stem|norm)", until=steps(6)),
        Freeze(pattern="^block", until=steps(3)),
        Freeze(pattern="^norm"),
    )
    tx = make(DECOUPLED(learning_rate=0.1, weight_decay=0.1), freeze=freeze)
    trajectory, _ = run(tx, gradients()[:8], tree(initial()))
    before = flat(tree(initial()))
    for name, first in {
        "stem/kernel": 6,
        "norm/scale": None,
        "norm/bias": None,
        "block/kernel": 3,
        "block/bias": 3,
        "fc/kernel": 0,
        "fc/bias": 0,
    }.items():
        moved = [bool((step[name] != before[name]).any()) for step in trajectory]
        assert moved == [first is not None and t >= first for t in range(8)], name


@pytest.mark.parametrize(
    "optimizer",
    [
        kind(learning_rate=0.01, weight_decay=0.1, **options)
        for kind, options in (
            (LAMB, {}),
            (LARS, {}),
            (Muon, {"exclude": "^fc/"}),
            (Adafactor, {}),
            (ScheduleFreeAdamW, {}),
        )
    ],
)
def test_optimizers_that_look_at_parameters_bear_frozen_ones(
    optimizer: Optimizer,
) -> None:
    """Norms, masks, matrices and averages within a tree where some parameters are missing."""
    freeze = (*frozen("^stem"), *frozen("^block", 2))
    clip = AdaptiveClip(clipping=0.1)
    tx = make(optimizer, clip=clip, freeze=freeze, layer_decay=0.9)
    trajectory, state = run(tx, gradients()[:4], tree(initial()))
    before = flat(tree(initial()))
    for name, values in before.items():
        moved = [bool((step[name] != values).any()) for step in trajectory]
        first = {"stem/kernel": 4, "block/kernel": 2, "block/bias": 2}.get(name, 0)
        assert moved == [t >= first for t in range(4)], name
    if optimizer.averages:
        average = flat(optimizer.average(state, tree(trajectory[-1])))
        np.testing.assert_array_equal(average["stem/kernel"], before["stem/kernel"])
        for name in ("block/kernel", "fc/kernel"):
            assert (average[name] != trajectory[-1][name]).any()


@pytest.mark.parametrize("freeze", [(), (*frozen("^stem"), *frozen("^block", 12))])
def test_a_continued_run_takes_the_same_steps(freeze: tuple[Freeze, ...]) -> None:
    def fresh() -> optax.GradientTransformationExtraArgs:
        return make(
            AdamW(learning_rate=0.1, weight_decay=0.1),
            clip=ClipNorm(max_norm=20.0),
            decay_schedule=SCHEDULE,
            freeze=freeze,
        )

    grads = gradients()
    whole, _ = run(fresh(), grads, tree(initial()))
    half, state = run(fresh(), grads[:10], tree(initial()))
    # What a checkpoint keeps: arrays, in the order of a state that is made anew.
    saved = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    tx = fresh()
    structure = jax.tree.structure(tx.init(tree(initial())))
    restored = jax.tree.unflatten(structure, [jnp.asarray(leaf) for leaf in saved])
    rest, _ = run(tx, grads[10:], tree(half[-1]), restored, first=10)
    for t, expected in enumerate(whole):
        for name, value in expected.items():
            np.testing.assert_array_equal((half + rest)[t][name], value)


def test_without_freezing_the_state_is_the_optimizers_own() -> None:
    """Groups alone put nothing around it: an Adam has a counter and two moments."""
    tx = make(
        AdamW(learning_rate=0.1, weight_decay=0.1),
        layer_decay=0.5,
        groups=(Group(pattern="bias", rate=2.0),),
    )
    ((adam_state, *rest),) = tx.init(tree(initial()))
    assert isinstance(adam_state, optax.ScaleByAdamState)
    assert not jax.tree.leaves(rest)
    assert jax.tree.structure(adam_state.mu) == jax.tree.structure(tree(initial()))
