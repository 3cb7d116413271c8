"""The optimizers beside torch's and timm's own, where they are installed.

pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31
python -m pytest -m torch tests/optim/test_optimizers_live.py
"""

import functools
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
    Adam,
    AdamW,
    AdaptiveClip,
    Clip,
    ClipNorm,
    ClipValue,
    Lion,
    Muon,
    Optimizer,
    RMSpropTF,
    WarmupCosine,
)
from jaxcls.optim.chain import chain, learning_rate
from jaxcls.optim.treatment import Treatment, Treatments

torch = pytest.importorskip("torch")
pytest.importorskip("tests.references.torch_models")
timm_optim = pytest.importorskip("timm.optim")
timm_muon = pytest.importorskip("timm.optim.muon")
timm_agc = pytest.importorskip("timm.utils.agc")

pytestmark = pytest.mark.torch

STEPS, DECAY = 20, 0.1
RUN = RunLength(steps_per_epoch=10, batch_size=4, total_steps=STEPS)
SCHEDULE = WarmupCosine(warmup=steps(4), start=0.1, end=0.05)
SHAPES = {"conv": (3, 2, 5, 4), "kernel": (4, 7), "bias": (7,), "scale": (4,)}
Tree = dict[str, np.ndarray]


def initial() -> Tree:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape) for name, shape in SHAPES.items()}


def gradients() -> list[Tree]:
    random = np.random.default_rng(1)
    return [
        {
            name: random.normal(size=shape) * (10 if t % 3 == 2 else 1)
            for name, shape in SHAPES.items()
        }
        for t in range(STEPS)
    ]


def to_torch(value: np.ndarray) -> np.ndarray:
    """[height, width, in, out] -> [out, in, height, width], and [in, out] -> [out, in]."""
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def from_torch(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def torch_run(build: Callable[..., Any], rates: list[float], clip: Any = None) -> Tree:
    """The parameters after all steps of an optimizer of torch, in float64.

    Args:
      build: parameter groups -> optimizer.
      rates: of each step.
      clip: of torch's, called with the parameters; None does not clip.
    """
    params = {
        name: torch.nn.Parameter(torch.tensor(to_torch(value)))
        for name, value in initial().items()
    }
    kernels = [p for p in params.values() if p.ndim > 1]
    others = [p for p in params.values() if p.ndim == 1]
    optimizer = build(
        [
            {"params": kernels, "weight_decay": DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
    )
    for rate, grads in zip(rates, gradients(), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, param in params.items():
            param.grad = torch.tensor(to_torch(grads[name]))
        if clip is not None:
            clip(list(params.values()))
        optimizer.step()
    return {name: from_torch(p.detach().numpy()) for name, p in params.items()}


def jax_run(optimizer: Optimizer, schedule: Any, clip: Clip | None = None) -> Tree:
    treatments = Treatments(
        {
            name: Treatment(decay=1.0 if len(shape) > 1 else 0.0)
            for name, shape in SHAPES.items()
        }
    )
    tx = chain(
        optimizer,
        schedule,
        clip=clip,
        treatments=treatments,
        decay_schedule=None,
        run=RUN,
    )

    @jax.jit
    def update(grads: Any, state: Any, params: Any, step: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, step=step)
        return optax.apply_updates(params, updates), state

    params: Any = jax.tree.map(jnp.float32, initial())
    state = tx.init(params)
    for t, grads in enumerate(gradients()):
        grads = jax.tree.map(jnp.float32, grads)
        params, state = update(grads, state, params, jnp.int32(t))
    return params


def assert_close(values: Tree, expected: Tree, tolerance: float = 1e-5) -> None:
    for name, value in expected.items():
        assert np.abs(value - initial()[name]).max() > 1e-3, name
        error = np.abs(np.asarray(values[name]) - value).max() / np.abs(value).max()
        assert error < tolerance, (name, error)


RATE: Any = {"learning_rate": 0.01, "weight_decay": DECAY}
OPTIMIZERS: dict[str, tuple[Optimizer, Callable[..., Any]]] = {
    "sgd": (
        SGD(**RATE, decay="l2"),
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    ),
    "sgd-heavy-ball": (
        SGD(**RATE, decay="l2", momentum=0.8, nesterov=False),
        lambda groups: torch.optim.SGD(groups, momentum=0.8),
    ),
    "adam": (Adam(**RATE), torch.optim.Adam),
    "adamw": (
        AdamW(**RATE, beta1=0.8, beta2=0.95, epsilon=1e-3),
        lambda groups: torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3),
    ),
    "rmsprop": (
        RMSpropTF(**RATE),
        lambda groups: timm_optim.RMSpropTF(groups, momentum=0.9, eps=1e-3),
    ),
    "lion": (Lion(**RATE), timm_optim.Lion),
    "lamb": (
        LAMB(**RATE),
        lambda groups: timm_optim.Lamb(groups, max_grad_norm=None),
    ),
    "lamb-always": (
        LAMB(**RATE, always_adapt=True),
        lambda groups: timm_optim.Lamb(groups, max_grad_norm=None, always_adapt=True),
    ),
    "adafactor": (
        Adafactor(**RATE, factored_from=4, momentum=0.9, parameter_scale=False),
        lambda groups: timm_optim.AdafactorBigVision(
            groups,
            min_dim_size_to_factor=4,
            momentum=0.9,
            momentum_dtype=torch.float64,
            clipping_threshold=1.0,
            eps=1e-30,
        ),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_are_those_of_torch_or_timm(name: str) -> None:
    optimizer, build = OPTIMIZERS[name]
    rate = learning_rate(optimizer, SCHEDULE, RUN)
    expected = torch_run(build, [float(rate(t)) for t in range(STEPS)])
    assert_close(jax_run(optimizer, SCHEDULE), expected)


def test_lars_is_timms_at_a_constant_rate() -> None:
    """timm keeps the rate outside the momentum, You et al. inside: without a schedule the two
    are one."""
    optimizer = LARS(learning_rate=2.0, weight_decay=DECAY, trust=0.01)
    flat = WarmupCosine(warmup=steps(0), end=1.0)
    expected = torch_run(
        lambda groups: timm_optim.Lars(groups, momentum=0.9, trust_coeff=0.01, eps=0.0),
        [2.0] * STEPS,
    )
    assert_close(jax_run(optimizer, flat), expected)


@pytest.mark.parametrize(
    ("rms", "adjust"), [(None, "original"), (0.2, "match_rms_adamw")]
)
def test_muon_is_timms(
    rms: float | None, adjust: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Nesterov's momentum, which timm also gives to the AdamW of the rest."""
    exact = functools.partial(
        timm_muon.zeropower_via_newtonschulz,
        dtype=torch.float64,  # not bfloat16
    )
    monkeypatch.setattr(timm_muon, "zeropower_via_newtonschulz", exact)
    optimizer = Muon(
        **RATE,
        nesterov=False,
        consistent_rms=rms,
        adam_rate=0.5,
        exclude=None,
        precision="float32",
    )
    rate = learning_rate(optimizer, SCHEDULE, RUN)
    expected = torch_run(
        lambda groups: timm_optim.Muon(
            groups,
            momentum=0.95,
            ns_coefficients="original",
            adjust_lr_fn=adjust,
            fallback_lr_scale=0.5,
        ),
        [float(rate(t)) for t in range(STEPS)],
    )
    assert_close(jax_run(optimizer, SCHEDULE), expected)


CLIPS: dict[str, tuple[Clip, Callable[..., Any]]] = {
    "norm": (
        ClipNorm(max_norm=20.0),
        lambda params: torch.nn.utils.clip_grad_norm_(params, 20.0),
    ),
    "value": (
        ClipValue(max_value=0.5),
        lambda params: torch.nn.utils.clip_grad_value_(params, 0.5),
    ),
    "adaptive": (
        AdaptiveClip(clipping=0.5),
        lambda params: timm_agc.adaptive_clip_grad(params, clip_factor=0.5, eps=1e-3),
    ),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clipping_is_that_of_torch_or_timm(name: str) -> None:
    clip, reference = CLIPS[name]
    optimizer = SGD(**RATE, decay="l2")
    rate = learning_rate(optimizer, SCHEDULE, RUN)
    expected = torch_run(
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
        [float(rate(t)) for t in range(STEPS)],
        reference,
    )
    assert_close(jax_run(optimizer, SCHEDULE, clip), expected)
