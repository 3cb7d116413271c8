"""Each optimizer through the chain, against its update rule written out in NumPy."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.duration import RunLength, steps
from jaxcls.errors import UserError
from jaxcls.models import MODELS
from jaxcls.optim import (
    LAMB,
    LARS,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    ClipNorm,
    Constant,
    Lion,
    Muon,
    Optax,
    Optimizer,
    RMSpropTF,
    ScheduleFreeAdamW,
    WarmupCosine,
)
from jaxcls.optim.chain import chain
from jaxcls.optim.muon import orthogonalized
from jaxcls.optim.schedule_free import ScheduleFreeState, follow_average
from jaxcls.optim.treatment import Treatment, Treatments, path_of
from jaxcls.options import allows, check
from tests.optim.cases import named

STEPS, WARMUP, START, END = 20, 4, 0.1, 0.05
BATCH = 4
RUN = RunLength(steps_per_epoch=10, batch_size=BATCH, total_steps=STEPS)
SCHEDULE = WarmupCosine(warmup=steps(WARMUP), start=START, end=END)
LIMIT = 20.0
KERNELS = ("conv/kernel", "depthwise/kernel", "dense/kernel", "fc/kernel")
RATES = {"dense/kernel": 0.5, "bn/scale": 2.0}
"""What the groups of the problem multiply the rate by; 1 for the others."""
DECAYS = {"conv/kernel": 0.5, "fc/kernel": 2.0}
Tree = dict[str, np.ndarray]


def initial() -> Tree:
    """No two dimensions of a kernel are equal: Adafactor's choice of them is then clear."""
    random = np.random.default_rng(0)
    shapes = {
        "conv/kernel": (3, 2, 5, 4),
        "depthwise/kernel": (3, 2, 1, 4),
        "dense/kernel": (4, 7),
        "fc/kernel": (7, 3),
        "fc/bias": (3,),
        "bn/scale": (4,),
    }
    return {name: random.normal(size=shape) for name, shape in shapes.items()}


def micro_gradients() -> list[list[Tree]]:
    """Fixed gradients: for each step those of two micro-batches, at every third step ten times
    larger."""
    random = np.random.default_rng(1)
    return [
        [
            {
                name: random.normal(size=leaf.shape) * (10 if t % 3 == 2 else 1)
                for name, leaf in initial().items()
            }
            for _ in range(2)
        ]
        for t in range(STEPS)
    ]


def nested(flat: Tree) -> Any:
    """{"fc/bias": x} -> {"fc": {"bias": x}}, float32."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        layer, kind = name.split("/")
        tree.setdefault(layer, {})[kind] = np.float32(leaf)
    return tree


def flat(tree: Any) -> Tree:
    return {
        f"{layer}/{kind}": np.asarray(leaf)
        for layer, kinds in tree.items()
        for kind, leaf in kinds.items()
    }


def decay_of(optimizer: Optimizer, name: str) -> float:
    if name not in KERNELS and optimizer.decays == "kernels":
        return 0.0
    return optimizer.weight_decay * DECAYS.get(name, 1.0)


def treatments(optimizer: Optimizer) -> Treatments:
    return Treatments(
        {
            name: Treatment(
                rate=RATES.get(name, 1.0),
                decay=DECAYS.get(name, 1.0)
                if name in KERNELS or optimizer.decays == "all"
                else 0.0,
            )
            for name in initial()
        }
    )


def built(
    optimizer: Optimizer, clip: ClipNorm | None = None, schedule: Any = SCHEDULE
) -> optax.GradientTransformationExtraArgs:
    return chain(
        optimizer,
        schedule,
        clip=clip,
        treatments=treatments(optimizer),
        decay_schedule=None,
        run=RUN,
    )


def rate_at(peak: float, t: int) -> float:
    if t < WARMUP:
        return peak * (START + (1 - START) * t / WARMUP)
    cosine = math.cos(math.pi * (t - WARMUP) / (STEPS - 1 - WARMUP))
    return peak * (END + (1 - END) * (1 + cosine) / 2)


def clipped(grads: Tree) -> Tree:
    norm = math.sqrt(sum((leaf**2).sum() for leaf in grads.values()))
    return {name: leaf * min(1, LIMIT / norm) for name, leaf in grads.items()}


@dataclasses.dataclass
class Leaf:
    """One parameter array in the reference, and what its optimizer remembers of it.

    Attributes:
      name: its path.
      w: its value.
      memory: of the formula, empty before the first step.
      t: steps made before this one.
      rate: of this step, the group's multiplier included.
      decay: its weight decay; 0 where it does not decay.
    """

    name: str
    w: np.ndarray
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)
    t: int = 0
    rate: float = 0.0
    decay: float = 0.0

    def average(self, name: str, beta: float, value: Any) -> Any:
        """The running average `name`, corrected for its start at 0."""
        old = self.memory.get(name, 0)
        self.memory[name] = beta * old + (1 - beta) * value
        return self.memory[name] / (1 - beta ** (self.t + 1))

    def trace(self, momentum: float, value: Any) -> Any:
        self.memory["v"] = momentum * self.memory.get("v", 0) + value
        return self.memory["v"]


def sgd(leaf: Leaf, g: Any, *, momentum: float, nesterov: bool, l2: bool) -> Any:
    """torch.optim.SGD's documentation, and Loshchilov & Hutter's algorithm 1 without l2."""
    if l2:
        g = g + leaf.decay * leaf.w
    v = leaf.trace(momentum, g)
    step = g + momentum * v if nesterov else v
    return leaf.w - leaf.rate * (step if l2 else step + leaf.decay * leaf.w)


def adam_direction(leaf: Leaf, g: Any, beta1: float, beta2: float, epsilon: float):
    """Kingma & Ba 2014, algorithm 1."""
    mean = leaf.average("m", beta1, g)
    square = leaf.average("s", beta2, g**2)
    return mean / (np.sqrt(square) + epsilon)


def adamw(leaf: Leaf, g: Any, betas: tuple[float, float] = (0.9, 0.999), eps=1e-8):
    direction = adam_direction(leaf, g, *betas, eps)
    return leaf.w - leaf.rate * (direction + leaf.decay * leaf.w)


def adam(leaf: Leaf, g: Any) -> Any:
    direction = adam_direction(leaf, g + leaf.decay * leaf.w, 0.9, 0.999, 1e-8)
    return leaf.w - leaf.rate * direction


def lion(leaf: Leaf, g: Any, beta1: float = 0.9, beta2: float = 0.99) -> Any:
    """Chen et al. 2023, algorithm 2."""
    m = leaf.memory.get("m", 0)
    direction = np.sign(beta1 * m + (1 - beta1) * g)
    leaf.memory["m"] = beta2 * m + (1 - beta2) * g
    return leaf.w - leaf.rate * (direction + leaf.decay * leaf.w)


def rmsprop_tf(leaf: Leaf, g: Any, *, rho: float, momentum: float, eps: float) -> Any:
    """tf.train.RMSPropOptimizer's ApplyRMSProp."""
    g = g + leaf.decay * leaf.w
    s = leaf.memory.setdefault("s", np.ones_like(leaf.w))
    leaf.memory["s"] = s + (1 - rho) * (g**2 - s)
    return leaf.w - leaf.trace(
        momentum, leaf.rate * g / np.sqrt(leaf.memory["s"] + eps)
    )


def lamb(leaf: Leaf, g: Any, always_adapt: bool = False, eps: float = 1e-6) -> Any:
    """You et al. 2019, algorithm 2."""
    u = adam_direction(leaf, g, 0.9, 0.999, eps) + leaf.decay * leaf.w
    ratio = 1.0
    norms = np.linalg.norm(leaf.w), np.linalg.norm(u)
    if (leaf.decay or always_adapt) and all(norms):
        ratio = norms[0] / norms[1]
    return leaf.w - leaf.rate * ratio * u


def lars(leaf: Leaf, g: Any, trust: float, momentum: float) -> Any:
    """You et al. 2017, algorithm 1."""
    ratio = 1.0
    if leaf.decay:
        weights = np.linalg.norm(leaf.w)
        ratio = trust * weights / (np.linalg.norm(g) + leaf.decay * weights)
    pull = g + leaf.decay * leaf.w
    return leaf.w - leaf.trace(momentum, leaf.rate * ratio * pull)


def adafactor(
    leaf: Leaf,
    g: Any,
    *,
    clip: float | None = 1.0,
    scaled: bool = True,
    momentum: float = 0.0,
    factored_from: int = 4,
    exponent: float = 0.8,
) -> Any:
    """Shazeer & Stern 2018, algorithm 4 (and 5 for what is not factored)."""
    keep = 1 - (leaf.t + 1.0) ** -exponent
    square = g**2 + 1e-30
    rows, columns = sorted(np.argsort(g.shape)[-2:]) if g.ndim > 1 else (0, 0)
    if g.ndim > 1 and min(g.shape[rows], g.shape[columns]) >= factored_from:
        r, c = leaf.memory.get("r", 0), leaf.memory.get("c", 0)
        r = keep * r + (1 - keep) * square.mean(columns, keepdims=True)
        c = keep * c + (1 - keep) * square.mean(rows, keepdims=True)
        leaf.memory.update(r=r, c=c)
        v = r * c / r.mean(rows, keepdims=True)
    else:
        v = keep * leaf.memory.get("v2", 0) + (1 - keep) * square
        leaf.memory["v2"] = v
    u = g / np.sqrt(v)
    if clip is not None:
        u = u / max(1, np.sqrt((u**2).mean()) / clip)
    leaf.memory["m"] = momentum * leaf.memory.get("m", 0) + (1 - momentum) * u
    u = leaf.memory["m"]
    if scaled:
        u = u * max(1e-3, np.sqrt((leaf.w**2).mean()))
    return leaf.w - leaf.rate * (u + leaf.decay * leaf.w)


def muon(
    leaf: Leaf,
    g: Any,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    rms: float | None = None,
    by_adam: tuple[str, ...] = ("depthwise/kernel", "fc/kernel"),
    adam_rate: float = 0.015,
) -> Any:
    """Jordan's post: Newton-Schulz on singular values is a polynomial of them."""
    if g.ndim < 2 or leaf.name in by_adam:
        leaf = dataclasses.replace(leaf, rate=leaf.rate * adam_rate)
        return adamw(leaf, g, (0.9, 0.95))
    v = leaf.trace(momentum, g)
    step = g + momentum * v if nesterov else v
    matrix = step.reshape(-1, step.shape[-1])
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.linalg.norm(s) + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    ins, outs = matrix.shape
    scale = rms * max(ins, outs) ** 0.5 if rms else max(1, outs / ins) ** 0.5
    direction = scale * ((u * s) @ vt).reshape(g.shape)
    return leaf.w - leaf.rate * (direction + leaf.decay * leaf.w)


def schedule_free(leaf: Leaf, g: Any, beta1: float, beta2: float) -> Any:
    """Defazio et al. 2024, algorithm 1, in its own x, y, z; leaf.w is y."""
    memory = leaf.memory
    z, x = memory.get("z", leaf.w), memory.get("x", leaf.w)
    root = np.sqrt(leaf.average("s", beta2, g**2)) + 1e-8
    memory["max"] = max(memory.get("max", 0), leaf.rate)
    memory["sum"] = memory.get("sum", 0) + memory["max"] ** 2
    c = memory["max"] ** 2 / memory["sum"]
    memory["z"] = z - leaf.rate * (g / root + leaf.decay * leaf.w)
    memory["x"] = (1 - c) * x + c * memory["z"]
    return (1 - beta1) * memory["z"] + beta1 * memory["x"]


def belief(leaf: Leaf, g: Any, beta1: float) -> Any:
    """Zhuang et al. 2020 (https://arxiv.org/abs/2010.07468), algorithm 2."""
    beta2, epsilon = 0.999, 1e-16
    mean = leaf.average("m", beta1, g)
    off = (g - leaf.memory["m"]) ** 2
    leaf.memory["s"] = beta2 * leaf.memory.get("s", 0) + (1 - beta2) * off + epsilon
    root = np.sqrt(leaf.memory["s"] / (1 - beta2 ** (leaf.t + 1)))
    return leaf.w - leaf.rate * (mean / (root + epsilon) + leaf.decay * leaf.w)


Case = tuple[Optimizer, Callable[..., Any]]
FAST = {"learning_rate": 0.05, "weight_decay": 0.1}
SLOW = {"learning_rate": 0.01, "weight_decay": 0.1}
CASES: dict[str, Case] = {
    "sgd": (
        SGD(**FAST, decay="decoupled"),
        functools.partial(sgd, momentum=0.9, nesterov=True, l2=False),
    ),
    "sgd-l2": (
        SGD(**FAST, decay="l2", momentum=0.8, nesterov=False),
        functools.partial(sgd, momentum=0.8, nesterov=False, l2=True),
    ),
    "sgd-l2-nesterov": (
        SGD(**FAST, decay="l2"),
        functools.partial(sgd, momentum=0.9, nesterov=True, l2=True),
    ),
    "sgd-plain": (
        SGD(learning_rate=0.05, momentum=0.0),
        functools.partial(sgd, momentum=0.0, nesterov=False, l2=False),
    ),
    "adamw": (AdamW(**SLOW), adamw),
    "adamw-options": (
        AdamW(**SLOW, beta1=0.8, beta2=0.95, epsilon=0.1, decays="all"),
        functools.partial(adamw, betas=(0.8, 0.95), eps=0.1),
    ),
    "adam": (Adam(**SLOW), adam),
    "lion": (Lion(**SLOW), lion),
    "lion-options": (
        Lion(**SLOW, beta1=0.7, beta2=0.9),
        functools.partial(lion, beta1=0.7, beta2=0.9),
    ),
    "rmsprop": (
        RMSpropTF(**SLOW),
        functools.partial(rmsprop_tf, rho=0.9, momentum=0.9, eps=1e-3),
    ),
    "rmsprop-options": (
        RMSpropTF(**SLOW, rho=0.8, momentum=0.0, epsilon=0.1),
        functools.partial(rmsprop_tf, rho=0.8, momentum=0.0, eps=0.1),
    ),
    "lamb": (LAMB(**SLOW), lamb),
    "lamb-always": (
        LAMB(**SLOW, always_adapt=True, epsilon=0.01),
        functools.partial(lamb, always_adapt=True, eps=0.01),
    ),
    "lars": (
        LARS(learning_rate=5.0, weight_decay=0.1, trust=0.01, momentum=0.8),
        functools.partial(lars, trust=0.01, momentum=0.8),
    ),
    "adafactor": (Adafactor(**SLOW, factored_from=4), adafactor),
    "adafactor-options": (
        Adafactor(
            **SLOW,
            factored_from=5,
            momentum=0.8,
            clip_rms=None,
            parameter_scale=False,
            decay_exponent=0.5,
        ),
        functools.partial(
            adafactor,
            factored_from=5,
            momentum=0.8,
            clip=None,
            scaled=False,
            exponent=0.5,
        ),
    ),
    "muon": (Muon(**FAST, precision="float32"), muon),
    "muon-options": (
        Muon(
            **FAST,
            precision="float32",
            momentum=0.8,
            nesterov=False,
            consistent_rms=0.2,
            exclude="^conv/",
            adam_rate=0.5,
        ),
        functools.partial(
            muon,
            momentum=0.8,
            nesterov=False,
            rms=0.2,
            by_adam=("depthwise/kernel", "conv/kernel"),
            adam_rate=0.5,
        ),
    ),
    "schedule-free": (
        ScheduleFreeAdamW(**SLOW),
        functools.partial(schedule_free, beta1=0.9, beta2=0.999),
    ),
    "schedule-free-options": (
        ScheduleFreeAdamW(**SLOW, beta1=0.6, beta2=0.9),
        functools.partial(schedule_free, beta1=0.6, beta2=0.9),
    ),
    "optax": (
        Optax(
            **SLOW,
            direction=functools.partial(optax.scale_by_belief, b1=0.8, eps=1e-16),
        ),
        functools.partial(belief, beta1=0.8),
    ),
}


def updater(tx: Any) -> Callable[..., tuple[Any, Any]]:
    @jax.jit
    def update(grads: Any, state: Any, params: Any, step: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state

    return update


def first_update(tx: Any, params: Any, grads: Any = None) -> Any:
    """The first update of a run; without gradients if none are given."""
    if grads is None:
        grads = jax.tree.map(np.zeros_like, params)
    update = jax.jit(
        lambda grads, params: tx.update(
            grads, tx.init(params), params, step=jnp.int32(0)
        )[0]
    )
    return jax.device_get(update(grads, params))


def assert_near(tree: Any, expected: Tree, what: Any = "") -> None:
    for name, values in flat(tree).items():
        error = np.abs(values - expected[name]).max() / np.abs(expected[name]).max()
        assert error < 1e-5, (what, name, error)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_the_formula(case: str) -> None:
    optimizer, formula = CASES[case]
    check(optimizer)
    # Given per 8 images, for batches of 4: the peak is half of it.
    optimizer = dataclasses.replace(
        optimizer, learning_rate=2 * optimizer.learning_rate, rate_per=2 * BATCH
    )
    peak = optimizer.learning_rate / 2
    tx = built(optimizer, ClipNorm(max_norm=LIMIT))
    update = updater(tx)
    params = nested(initial())
    state = tx.init(params)
    leaves = {name: Leaf(name, w) for name, w in initial().items()}
    norms = []
    for t, micro in enumerate(micro_gradients()):
        mean = {name: (g + micro[1][name]) / 2 for name, g in micro[0].items()}
        norms.append(math.sqrt(sum((g**2).sum() for g in mean.values())))
        # As they are accumulated, in float32.
        grads = jax.tree.map(lambda a, b: (a + b) / 2, *map(nested, micro))
        params, state = update(grads, state, params, np.int32(t))
        for name, g in clipped(mean).items():
            leaf = leaves[name]
            leaf.t, leaf.rate = t, rate_at(peak, t) * RATES.get(name, 1.0)
            leaf.decay = decay_of(optimizer, name)
            leaf.w = formula(leaf, g)
        assert_near(params, {name: leaf.w for name, leaf in leaves.items()}, t)
    assert min(norms) < LIMIT < max(norms)  # some steps are clipped and others are not
    for name, before in initial().items():
        assert np.abs(leaves[name].w - before).max() > 1e-3, name  # it went somewhere
    if optimizer.averages:
        average = {name: leaf.memory["x"] for name, leaf in leaves.items()}
        assert_near(optimizer.average(state, params), average)


@functools.cache
def without_gradients(weight_decay: float) -> dict[str, Tree]:
    """The first update of each case at a rate of 0.01, by one program."""
    chains = {
        case: built(
            dataclasses.replace(
                optimizer, learning_rate=0.01, weight_decay=weight_decay
            ),
            ClipNorm(max_norm=1.0),
            WarmupCosine(warmup=steps(0)),
        )
        for case, (optimizer, _) in CASES.items()
    }

    @jax.jit
    def update(zeros: Any, params: Any) -> dict[str, Any]:
        updates = {}
        for case, tx in chains.items():
            with named(case):
                state = tx.init(params)
                updates[case], _ = tx.update(zeros, state, params, step=jnp.int32(0))
        return updates

    params = nested(initial())
    updates = update(jax.tree.map(np.zeros_like, params), params)
    return {case: flat(tree) for case, tree in updates.items()}


@pytest.mark.parametrize("case", CASES)
def test_without_gradients_only_what_decays_shrinks(case: str) -> None:
    optimizer, formula = CASES[case]
    optimizer = dataclasses.replace(optimizer, weight_decay=0.25)
    for name, update in without_gradients(weight_decay=0.25)[case].items():
        w = initial()[name]
        decay = decay_of(optimizer, name)
        leaf = Leaf(name, w, rate=0.01 * RATES.get(name, 1.0), decay=decay)
        expected = formula(leaf, np.zeros_like(w)) - w
        if decay:
            # Adam's 1 - 0.999 has five digits in float32.
            assert np.abs(update - expected).max() < 3e-5 * np.abs(expected).max(), name
            assert (update * w < 0).all(), name
        else:
            np.testing.assert_array_equal(update, 0, err_msg=name)
            np.testing.assert_array_equal(expected, 0, err_msg=name)


DECOUPLED = ("sgd", "adamw", "lion", "adafactor", "muon", "schedule-free", "optax")


@pytest.mark.parametrize("case", DECOUPLED)
def test_a_decoupled_decay_is_rate_times_decay_exactly(case: str) -> None:
    # Powers of two, so that the products are exact in float32.
    optimizer = dataclasses.replace(
        CASES[case][0], learning_rate=0.5, weight_decay=0.25
    )
    if isinstance(optimizer, Muon):
        optimizer.adam_rate = 1.0
    tx = built(optimizer, schedule=WarmupCosine(warmup=steps(0)))
    updates = flat(first_update(tx, nested(initial())))
    for name in KERNELS:
        before = np.float32(initial()[name])
        share = 0.125 * RATES.get(name, 1.0) * DECAYS.get(name, 1.0)
        np.testing.assert_array_equal(
            before + updates[name], before - np.float32(share) * before
        )


@pytest.mark.parametrize("case", CASES)
def test_without_decay_and_gradients_nothing_moves(case: str) -> None:
    for name, update in without_gradients(weight_decay=0.0)[case].items():
        np.testing.assert_array_equal(update, 0, err_msg=name)


def test_lamb_scales_kernels_without_decay_too() -> None:
    """The step of a kernel is rate x its norm, whatever the gradient."""
    tx = built(LAMB(learning_rate=0.5), schedule=WarmupCosine(warmup=steps(0)))
    updates = first_update(tx, nested(initial()), nested(micro_gradients()[0][0]))
    for name, update in flat(updates).items():
        rate = 0.5 * RATES.get(name, 1.0)
        size = np.linalg.norm(initial()[name]) if name in KERNELS else update.size**0.5
        np.testing.assert_allclose(np.linalg.norm(update), rate * size, rtol=1e-4)


def test_weights_of_zero_can_move_where_steps_follow_their_size() -> None:
    for optimizer in (
        LAMB(learning_rate=0.1, weight_decay=0.1),
        LARS(learning_rate=0.1, weight_decay=0.1),
        Adafactor(learning_rate=0.1),
    ):
        params = jax.tree.map(np.zeros_like, nested(initial()))
        grads = nested(micro_gradients()[0][0])
        for leaf in jax.tree.leaves(first_update(built(optimizer), params, grads)):
            assert np.isfinite(leaf).all() and (leaf != 0).all()


# The first moment in bfloat16


MOMENTUM = {
    case: dataclasses.replace(CASES[case][0], momentum_dtype="bfloat16")
    for case in (
        "sgd",
        "adamw",
        "adam",
        "lion",
        "rmsprop",
        "lamb",
        "lars",
        "adafactor-options",
        "muon",
    )
}


def same_dtype(one: jax.Array, other: jax.Array) -> None:
    assert one.dtype == other.dtype


@pytest.mark.parametrize("case", MOMENTUM)
def test_the_momentum_may_be_bfloat16(case: str) -> None:
    def some(tree: Tree) -> Any:
        return nested({name: tree[name] for name in ("conv/kernel", "bn/scale")})

    moved = {}
    for optimizer in (CASES[case][0], MOMENTUM[case]):
        tx = built(optimizer, schedule=WarmupCosine(warmup=steps(0)))
        params = some(initial())
        state = tx.init(params)
        sizes: dict[Any, int] = {}
        update = updater(tx)
        for t in range(3):
            before = state
            grads = some(micro_gradients()[t][0])
            params, state = update(grads, state, params, np.int32(t))
            jax.tree.map(same_dtype, state, before)
        for leaf in jax.tree.leaves(state):
            sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + leaf.size
        moved[optimizer.momentum_dtype] = params, sizes
    count = sum(leaf.size for leaf in jax.tree.leaves(some(initial())))
    assert moved["bfloat16"][1]["bfloat16"] == count
    assert "bfloat16" not in moved["float32"][1]
    # Only the momentum is shortened.
    assert moved["bfloat16"][1].get("float32", 0) == (
        moved["float32"][1]["float32"] - count
    )
    for name, values in flat(moved["bfloat16"][0]).items():
        assert values.dtype == np.float32
        exact = flat(moved["float32"][0])[name]
        travelled = np.abs(exact - initial()[name]).mean()
        off = np.abs(values - exact).mean()
        assert off < 0.02 * travelled, name


def test_no_memory_for_a_momentum_of_0() -> None:
    params = nested(initial())
    for optimizer in (
        SGD(learning_rate=0.1, momentum=0.0),
        LARS(learning_rate=0.1, momentum=0.0),
    ):
        assert not jax.tree.leaves(built(optimizer).init(params))


def test_adafactor_keeps_rows_and_columns_of_what_it_factors() -> None:
    params = nested({"dense/kernel": np.zeros((128, 256)), "bn/scale": np.zeros(256)})
    optimizer = Adafactor(learning_rate=0.1)
    tx = chain(
        optimizer,
        SCHEDULE,
        clip=None,
        treatments=Treatments({"dense/kernel": Treatment(), "bn/scale": Treatment()}),
        decay_schedule=None,
        run=RUN,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(tx.init(params))) < 700


# Muon


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16), (1, 5)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_singular_values_become_about_1(
    shape: tuple[int, int], precision: str, size: float
) -> None:
    matrix = np.random.default_rng(4).normal(size=shape) * size
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    orthogonalize = jax.jit(orthogonalized, static_argnums=(1, 2))
    made = np.asarray(orthogonalize(np.float32(matrix), 5, precision))
    assert made.dtype == np.float32
    near = u.T @ made @ vt.T  # diagonal where the singular vectors are kept
    values = np.diag(near)
    usual = values[s > 0.05 * np.linalg.norm(s)]
    assert 0.65 < usual.min() and usual.max() < 1.25
    tolerance = 1e-4 if precision == "float32" else 0.08
    assert np.abs(near - np.diag(values)).max() < tolerance


def test_consistent_rms_is_the_root_mean_square_of_a_step() -> None:
    optimizer = Muon(learning_rate=1.0, consistent_rms=0.2, precision="float32")
    tx = built(optimizer, schedule=WarmupCosine(warmup=steps(0)))
    updates = first_update(tx, nested(initial()), nested(micro_gradients()[0][0]))
    rms = math.sqrt((updates["conv"]["kernel"] ** 2).mean())
    assert 0.2 * 0.7 < rms < 0.2 * 1.2


def test_muon_leaves_the_classifier_of_every_network_to_adamw() -> None:
    optimizer = Muon(learning_rate=0.1)
    modules = {name: variant(num_classes=2) for name, variant in MODELS.items()}
    ours = {
        n: m for n, m in modules.items() if type(m).__module__.startswith("jaxcls.")
    }
    assert len(ours) > 40
    for name, module in ours.items():
        for head in module.HEADS:
            by, rate = optimizer.trains(f"{head}/kernel", (8, 2))
            assert (by, rate) == ("AdamW", optimizer.adam_rate), (name, head)
    assert optimizer.trains("layer1_0/conv1/kernel", (3, 3, 4, 8)) == ("Muon", 1.0)


LAYERS = {
    "conv1": {
        "kernel": np.zeros((3, 3, 1, 4), np.float32),
        "bias": np.zeros(4, np.float32),
    },
    "conv2": {"kernel": np.zeros((3, 3, 4, 8), np.float32)},
    "last": {"kernel": np.zeros((8, 2), np.float32)},
}


@pytest.mark.parametrize(
    ("exclude", "said"),
    [
        (
            "^lost/",
            "optimizer.exclude '^lost/' is found in none of the network's 3 par",
        ),
        ("bias$", "optimizer.exclude 'bias$' is found in none of the network's 3 par"),
        (".", "leaves Muon nothing: AdamW would train all 3 kernels"),
        ("conv2|last", "leaves Muon nothing"),  # conv1 has one input channel
        ("^last/", None),
        ("^conv1/", None),
        (Muon(learning_rate=0.1).exclude, None),  # these are only usual names
        (None, None),
    ],
)
def test_what_muon_excludes_are_some_of_the_kernels(
    exclude: str | None, said: str | None
) -> None:
    by_path = {
        path_of(keys): Treatment()
        for keys, _ in jax.tree_util.tree_leaves_with_path(LAYERS)
    }
    tx = chain(
        Muon(learning_rate=0.1, exclude=exclude),
        SCHEDULE,
        clip=None,
        treatments=Treatments(by_path),
        decay_schedule=None,
        run=RUN,
    )
    if said is None:
        jax.eval_shape(tx.init, LAYERS)
    else:
        with pytest.raises(UserError) as error:
            jax.eval_shape(tx.init, LAYERS)
        assert said in str(error.value)


def test_muon_says_what_trains_each_parameter_and_how_fast() -> None:
    """What it says is what it does: gradients of zero leave the decay, times the rate."""
    optimizer = Muon(
        learning_rate=0.1,
        adam_rate=0.25,
        exclude="^last/",
        weight_decay=0.5,
        decays="all",
    )
    by_path = {
        path_of(keys): Treatment()
        for keys, _ in jax.tree_util.tree_leaves_with_path(LAYERS)
    }
    tx = chain(
        optimizer,
        Constant(),
        clip=None,
        treatments=Treatments(by_path),
        decay_schedule=None,
        run=RUN,
    )
    updates = first_update(tx, jax.tree.map(np.ones_like, LAYERS))
    by = {}
    for keys, update in jax.tree_util.tree_leaves_with_path(updates):
        by[path_of(keys)], multiplier = optimizer.trains(path_of(keys), update.shape)
        np.testing.assert_allclose(update, -0.1 * 0.5 * multiplier, rtol=1e-6)
    assert by == {
        "conv1/bias": "AdamW",
        "conv1/kernel": "AdamW",
        "conv2/kernel": "Muon",
        "last/kernel": "AdamW",
    }
    assert SGD(learning_rate=0.1).trains("fc/bias", (4,)) == ("SGD", 1.0)


# The average of the schedule-free one


def test_the_average_is_found_within_any_nesting() -> None:
    optimizer = ScheduleFreeAdamW(**SLOW)
    params = nested(initial())
    grads = nested(micro_gradients()[0][0])
    tx = built(optimizer)
    all_moving = treatments(optimizer).by_path
    for thaw in (0, 2):
        by_path = {
            name: dataclasses.replace(
                one, thaws_at=thaw if name.startswith("conv/") else one.thaws_at
            )
            for name, one in all_moving.items()
        }
        by_path["bn/scale"] = dataclasses.replace(
            by_path["bn/scale"], thaws_at=math.inf
        )
        tx = chain(
            optimizer,
            SCHEDULE,
            clip=ClipNorm(max_norm=1.0),
            treatments=Treatments(by_path),
            decay_schedule=None,
            run=RUN,
        )
        now, state = params, tx.init(params)
        update = updater(tx)
        for t in range(2):
            now, state = update(grads, state, now, np.int32(t))
        average = flat(optimizer.average(state, now))
        # Frozen for good, or not thawed yet: the weights themselves.
        np.testing.assert_array_equal(average["bn/scale"], params["bn"]["scale"])
        if thaw:
            np.testing.assert_array_equal(
                average["conv/kernel"], params["conv"]["kernel"]
            )
        else:
            assert (average["conv/kernel"] != now["conv"]["kernel"]).any()
        assert (average["fc/kernel"] != now["fc"]["kernel"]).any()
        leads = [
            node.lead
            for node in jax.tree.leaves(
                state, is_leaf=lambda node: isinstance(node, ScheduleFreeState)
            )
            if isinstance(node, ScheduleFreeState)
        ]
        assert len(leads) == (2 if thaw else 1)


def test_the_average_at_the_start_is_the_weights() -> None:
    optimizer = ScheduleFreeAdamW(learning_rate=0.1)
    params = nested(initial())
    average = optimizer.average(built(optimizer).init(params), params)
    jax.tree.map(np.testing.assert_array_equal, average, params)


def test_only_the_schedule_free_one_averages() -> None:
    assert [case for case, (one, _) in CASES.items() if one.averages] == [
        "schedule-free",
        "schedule-free-options",
    ]
    with pytest.raises(NotImplementedError, match="SGD"):
        SGD(learning_rate=0.1).average((), {})


# Rates


@pytest.mark.parametrize(
    ("options", "peak"),
    [
        ({}, 0.1),
        ({"rate_per": 256}, 0.4),
        ({"rate_per": 256, "rate_scaling": "root"}, 0.2),
        ({"rate_per": 4096}, 0.025),
        ({"rate_scaling": "root"}, 0.1),
    ],
)
def test_the_peak_follows_the_batch(options: dict[str, Any], peak: float) -> None:
    optimizer = SGD(learning_rate=0.1, **options)
    assert optimizer.peak(1024) == pytest.approx(peak, rel=1e-12)


def test_a_rate_of_0_for_a_while_leaves_the_average_finite() -> None:
    """A schedule whose first factor is 0 gives the first step of the average no weight."""
    link = follow_average(lambda step: jnp.float32(0.0), 0.9)
    params = nested(initial())
    zeros = jax.tree.map(np.zeros_like, params)
    update = jax.jit(
        lambda zeros, params: link.update(zeros, link.init(params), params, step=0)
    )
    for leaf in jax.tree.leaves(update(zeros, params)):
        assert np.isfinite(leaf).all()


# Optax


def lookalike() -> Any:
    return 3


@pytest.mark.parametrize(
    ("direction", "said"),
    [
        (optax.adamw, "missing 1 required"),
        (lookalike, "does not work as a link"),
        (functools.partial(optax.adam, learning_rate=0.1), "has a rate of its own"),
        (functools.partial(optax.sgd, learning_rate=0.1), "points downhill by itself"),
        (optax.scale_by_polyak, "value"),
    ],
)
def test_a_direction_that_is_none_is_refused(direction: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        built(Optax(learning_rate=0.1, direction=direction))


def test_a_direction_that_no_checkpoint_could_find_is_refused() -> None:
    for direction in (
        lambda: optax.scale_by_belief(),
        functools.partial(lambda b1: optax.scale_by_belief(b1), b1=0.5),
    ):
        with pytest.raises(UserError, match="no checkpoint can find again"):
            check(Optax(learning_rate=0.1, direction=direction))
    bound: Any = functools.partial(optax.scale_by_belief, 0.5)
    with pytest.raises(UserError, match="bind options by name"):
        check(Optax(learning_rate=0.1, direction=bound))
    check(Optax(learning_rate=0.1, direction=optax.scale_by_belief))


@pytest.mark.parametrize(
    "direction",
    [
        optax.scale_by_radam,
        optax.contrib.scale_by_adopt,  # its first update is 0
        functools.partial(optax.scale_by_adam, nesterov=True),
    ],
)
def test_directions_of_optax_are_accepted(direction: Any) -> None:
    optimizer = Optax(learning_rate=0.1, direction=direction)
    check(optimizer)
    built(optimizer)
    assert allows(typing.get_type_hints(Optax)["direction"], direction)


# Validation


KINDS: tuple[Callable[..., Optimizer], ...] = (
    SGD,
    AdamW,
    Adam,
    Lion,
    RMSpropTF,
    LAMB,
    LARS,
    Adafactor,
    Muon,
    ScheduleFreeAdamW,
    functools.partial(Optax, direction=optax.scale_by_belief),
)
BAD_SHARES = (1.0, -0.1, math.nan, math.inf)
BAD_SIZES = (0.0, -1.0, math.nan, math.inf)
SHARES = [
    *(
        (kind, name)
        for kind in (AdamW, Adam, LAMB, Muon)
        for name in ("beta1", "beta2")
    ),
    *(
        (kind, name)
        for kind in (Lion, ScheduleFreeAdamW)
        for name in ("beta1", "beta2")
    ),
    *((kind, "momentum") for kind in (SGD, RMSpropTF, LARS, Adafactor, Muon)),
    (RMSpropTF, "rho"),
]
SIZES = [
    *((kind, "learning_rate") for kind in KINDS),
    *((kind, "epsilon") for kind in (AdamW, Adam, LAMB, Muon, ScheduleFreeAdamW)),
    *((kind, "epsilon") for kind in (RMSpropTF, Adafactor)),
    (LARS, "trust"),
    (Adafactor, "decay_exponent"),
    (Adafactor, "clip_rms"),
    (Muon, "consistent_rms"),
    (Muon, "adam_rate"),
]
OTHERS = [
    *((kind, "rate_per", value) for kind in KINDS for value in (0, -256)),
    *((k, "weight_decay", v) for k in KINDS for v in (-0.1, math.nan, math.inf)),
    (Adafactor, "factored_from", 0),
    (Muon, "rounds", 0),
    (Muon, "exclude", "("),
    (Muon, "exclude", ""),
    (ScheduleFreeAdamW, "beta1", 0.0),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *((kind, name, value) for kind, name in SHARES for value in BAD_SHARES),
        *((kind, name, value) for kind, name in SIZES for value in BAD_SIZES),
        *OTHERS,
    ],
)
def test_values_out_of_range_are_named(
    kind: Callable[..., Optimizer], name: str, value: Any
) -> None:
    with pytest.raises(UserError) as error:
        check(kind(**{"learning_rate": 0.1, name: value}), "optimizer")
    assert f"optimizer.{name}" in str(error.value)
    assert str(value) in str(error.value)


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    check(SGD(learning_rate=1e-9, momentum=0.0, rate_per=1))
    check(AdamW(learning_rate=10.0, beta1=0.0, beta2=0.0))
    check(Adafactor(learning_rate=1.0, momentum=0.0, clip_rms=None, factored_from=1))
    check(Muon(learning_rate=1.0, exclude=None, rounds=1))
    for kind in KINDS:
        check(kind(learning_rate=1e-3))


def test_sgd_wants_to_know_which_decay() -> None:
    with pytest.raises(UserError, match=r"weight_decay is 0.0001.*\"l2\".*10 times"):
        check(SGD(learning_rate=0.1, weight_decay=1e-4))
    check(SGD(learning_rate=0.1, weight_decay=1e-4, decay="l2"))
    check(SGD(learning_rate=0.1))


def test_an_optimizer_without_a_transformation_says_so() -> None:
    class Forgetful(Optimizer):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*transformation"):
        Forgetful(learning_rate=1.0)  # type: ignore[abstract]
