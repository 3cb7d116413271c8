"""Groups of parameters: which rate, which decay, and when they move."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.duration import Duration, RunLength, epochs, fraction, steps
from jaxcls.errors import UserError
from jaxcls.optim.groups import Freeze, Group, resolve
from jaxcls.optim.treatment import Treatment, Treatments, stop_gradients
from jaxcls.options import check

RUN = RunLength(steps_per_epoch=10, batch_size=4, total_steps=100)


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


PARAMS: Any = {
    "conv1": {"kernel": array(3, 3, 3, 4)},
    "bn1": {"scale": array(4), "bias": array(4)},
    "layer1_0": {
        "conv1": {"kernel": array(3, 3, 4, 4)},
        "bn1": {"scale": array(4), "bias": array(4)},
    },
    "layer2_0": {"conv1": {"kernel": array(3, 3, 4, 8)}, "gamma": array(8)},
    "fc": {"kernel": array(8, 2), "bias": array(2)},
    "fc8": {"kernel": array(8, 2), "bias": array(2)},
    "aux": {"conv0": {"kernel": array(1, 1, 8, 8)}, "fc": {"kernel": array(8, 2)}},
}
LAYERS = (("conv1", "bn1"), ("layer1_0",), ("layer2_0",), ("fc", "fc8", "aux"))
NAMES = (
    "conv1/kernel bn1/scale bn1/bias layer1_0/conv1/kernel layer1_0/bn1/scale "
    "layer1_0/bn1/bias layer2_0/conv1/kernel layer2_0/gamma fc/kernel fc/bias fc8/kernel "
    "fc8/bias aux/conv0/kernel aux/fc/kernel"
).split()


def resolved(heads: tuple[str, ...] = ("fc", "aux/fc"), **options: Any) -> Treatments:
    defaults: dict[str, Any] = {
        "groups": (),
        "freeze": (),
        "layer_decay": None,
        "head_rate": 1.0,
        "decays": "kernels",
        "run": RUN,
    }
    return resolve(PARAMS, LAYERS, heads, **{**defaults, **options})


def rates(treatments: Treatments) -> dict[str, float]:
    return {name: one.rate for name, one in treatments.by_path.items()}


def test_without_options_all_move_and_kernels_decay() -> None:
    treatments = resolved()
    assert treatments.by_path == {
        name: Treatment(rate=1, decay=float(name.endswith("kernel")), thaws_at=0)
        for name in NAMES
    }
    assert {one.decay for one in resolved(decays="all").by_path.values()} == {1}


def test_each_layer_learns_slower_than_the_one_above() -> None:
    found = rates(resolved(layer_decay=0.5))
    depth = {"conv1": 0, "bn1": 0, "layer1_0": 1, "layer2_0": 2}
    assert found == {
        name: 0.5 ** (3 - depth.get(name.split("/")[0], 3)) for name in NAMES
    }


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (
            (*LAYERS[:3], ("fc", "fc8", "aux/fc")),
            "aux/conv0/kernel belongs to 0 of the 4 layers that the network's",
        ),
        ((*LAYERS, ("fc8",)), "fc8/bias belongs to 2 of the 5 layers"),
    ],
)
def test_a_parameter_that_is_not_in_one_of_the_layers_is_named(
    layers: Any, said: str
) -> None:
    with pytest.raises(UserError) as error:
        resolve(
            PARAMS,
            layers,
            ("fc",),
            groups=(),
            freeze=(),
            layer_decay=0.5,
            head_rate=1.0,
            decays="kernels",
            run=RUN,
        )
    assert said in str(error.value)


def test_heads_are_whole_names_and_may_lie_within_a_module() -> None:
    found = rates(resolved(head_rate=10.0))
    assert {name for name, rate in found.items() if rate == 10} == {
        "fc/kernel",
        "fc/bias",
        "aux/fc/kernel",
    }


def test_all_multipliers_multiply() -> None:
    treatments = resolved(
        groups=(
            Group(pattern="^fc/", rate=3.0, decay=5.0),
            Group(pattern="kernel$", rate=0.3, decay=0.5),
            Group(pattern="bias$", rate=7.0, decay=2.0),
        ),
        layer_decay=0.9,
        head_rate=2.0,
    )
    one = treatments.by_path
    assert math.isclose(one["fc/kernel"].rate, 2 * 3 * 0.3)
    assert math.isclose(one["fc/kernel"].decay, 5 * 0.5)
    assert math.isclose(one["bn1/bias"].rate, 0.9**3 * 7)
    # What does not decay does not begin to by a multiplier.
    assert one["fc/bias"].decay == 0 and one["bn1/bias"].decay == 0
    assert one["conv1/kernel"].decay == 0.5


def test_a_group_without_decay_is_not_among_those_that_decay() -> None:
    treatments = resolved(groups=(Group(pattern="^conv1", decay=0.0),))
    decays = treatments.decays(PARAMS)
    assert decays["conv1"]["kernel"] is False
    assert decays["layer1_0"]["conv1"]["kernel"] is True
    assert decays["fc"] == {"kernel": True, "bias": False}


@pytest.mark.parametrize(
    ("until", "first"),
    [
        (steps(7), 7),
        (epochs(3), 30),
        (fraction(0.2), 20),
        (Duration(100, "examples"), 25),
        (steps(99), 99),
        (None, math.inf),
    ],
)
def test_a_freeze_ends_when_it_says(until: Duration | None, first: float) -> None:
    treatments = resolved(freeze=(Freeze(pattern="^layer1_0/bn1", until=until),))
    bn = {"layer1_0/bn1/scale", "layer1_0/bn1/bias"}
    for name, one in treatments.by_path.items():
        assert one.thaws_at == (first if name in bn else 0), name
    assert treatments.frozen(0) == bn
    if math.isinf(first):
        assert treatments.frozen_by_step() == [(0, bn)]
        assert treatments.frozen(99) == bn
    else:
        assert treatments.frozen_by_step() == [(0, bn), (first, frozenset())]
        assert (
            treatments.frozen(first - 1) == bn
            and treatments.frozen(first) == frozenset()
        )


def test_the_longest_freeze_counts_and_thaws_are_in_order() -> None:
    freeze = (
        Freeze(pattern="^(conv1|bn1|layer1)", until=steps(60)),
        Freeze(pattern="^(layer1|layer2)", until=steps(20)),
        Freeze(pattern="bn1/scale$"),
    )
    for order in (freeze, freeze[::-1]):
        treatments = resolved(freeze=order)
        scales = {"bn1/scale", "layer1_0/bn1/scale"}
        early = {
            "conv1/kernel",
            "bn1/bias",
            "layer1_0/conv1/kernel",
            "layer1_0/bn1/bias",
        }
        second = {"layer2_0/conv1/kernel", "layer2_0/gamma"}
        assert treatments.frozen_by_step() == [
            (0, scales | early | second),
            (20, scales | early),
            (60, scales),
        ]


def test_without_a_freeze_nothing_thaws() -> None:
    assert resolved().frozen_by_step() == [(0, frozenset())]


def test_modules_are_frozen_with_the_last_of_their_parameters() -> None:
    freeze = (Freeze(pattern="^layer1_0/bn1/|^layer2_0/conv1|^conv1|^aux/fc|scale$"),)
    treatments = resolved(freeze=freeze)
    assert treatments.frozen_modules(treatments.frozen(0)) == {
        "conv1",
        "layer1_0/bn1",
        "layer2_0/conv1",
        "aux/fc",
    }
    whole = resolved(freeze=(Freeze(pattern="^layer1_0/"),))
    assert whole.frozen_modules(whole.frozen(0)) == {
        "layer1_0",
        "layer1_0/conv1",
        "layer1_0/bn1",
    }
    assert treatments.frozen_modules(frozenset()) == frozenset()


def test_frozen_parameters_have_no_gradients_and_the_others_keep_theirs() -> None:
    params = {"a": {"w": jnp.float32(3.0)}, "b": {"w": jnp.float32(5.0)}}

    def loss(params: Any, frozen: frozenset[str]) -> jax.Array:
        params = stop_gradients(params, frozen)
        return params["a"]["w"] ** 2 * params["b"]["w"]

    free = jax.grad(loss)(params, frozenset())
    some = jax.grad(loss)(params, frozenset({"a/w"}))
    assert (free["a"]["w"], free["b"]["w"]) == (30, 9)
    assert (some["a"]["w"], some["b"]["w"]) == (0, 9)


def test_a_tree_of_some_parameters_has_their_treatments() -> None:
    """As within optax.masked, where the others' places are empty."""
    import optax

    treatments = resolved(head_rate=10.0)
    some = {"fc": {"kernel": np.zeros((8, 2)), "bias": optax.MaskedNode()}}
    found = treatments.of(some)
    assert found["fc"]["kernel"].rate == 10
    assert isinstance(found["fc"]["bias"], optax.MaskedNode)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            Freeze(pattern="^fc9"),
            "Freeze.pattern '^fc9' is found in none of the network's 14",
        ),
        (Freeze(pattern="^layer1_0/con1/"), "Did you mean 'layer1_0/conv1'"),
        (
            Group(pattern="layer1_0/conv1/kernels"),
            "Did you mean 'layer1_0/conv1/kernel'",
        ),
        (Group(pattern="qqq"), "They are called 'aux/conv0/kernel', "),
        (
            Freeze(pattern="fc", until=steps(100)),
            "Freeze.until of 'fc' is 100 steps in a run of 100 steps: it must",
        ),
        (
            Freeze(pattern="fc", until=epochs(11)),
            "is 11 epochs, or 110 steps, in a run of",
        ),
        (Freeze(pattern="fc", until=epochs(0.01)), "it must be at least one step"),
        (Freeze(pattern="fc", until=epochs(0)), "it must be at least one step"),
        (Freeze(pattern="."), "nothing that is trained in this run: all 14 parameters"),
        (Freeze(pattern=".", until=steps(5)), "nothing that is trained before step 5"),
    ],
)
def test_options_that_do_not_fit_are_named(option: Any, said: str) -> None:
    which = "groups" if isinstance(option, Group) else "freeze"
    with pytest.raises(UserError) as error:
        resolved(**{which: (option,)})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (Group(pattern=""), "Group.pattern must be a regular expression that is not"),
        (Freeze(pattern=""), "Freeze.pattern must be a regular expression that is not"),
        (Freeze(pattern="("), "Freeze.pattern must be a regular expression"),
        (Group(pattern="["), "Group.pattern must be a regular expression"),
        (Group(pattern="a", rate=0.0), "Group.rate must be above 0, not 0.0"),
        (Group(pattern="a", rate=math.inf), "Group.rate must be a number of sensible"),
        (Group(pattern="a", rate=math.nan), "not nan"),
        (Group(pattern="a", decay=-1.0), "Group.decay must be 0 or more, not -1.0"),
        (Group(pattern="a", decay=math.nan), "not nan"),
    ],
)
def test_values_out_of_range_are_named(node: Group | Freeze, said: str) -> None:
    with pytest.raises(UserError) as error:
        check(node)
    assert said in str(error.value)


def test_values_at_the_end_of_the_range_are_allowed() -> None:
    check(Group(pattern=".", rate=1e-9, decay=0.0))
    check(Freeze(pattern="^(?!fc/)"))
    check(Freeze(pattern="a", until=steps(1)))
