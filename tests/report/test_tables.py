"""What a run says about itself."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcls.duration import RunLength, steps
from jaxcls.models import create_model
from jaxcls.optim import SGD, Muon
from jaxcls.optim.groups import Freeze, Group, resolve
from jaxcls.optim.treatment import Treatments
from jaxcls.report import tables
from jaxcls.training.program import trained_alike


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def resolved(params: Any, layers: Any = (), **options: Any) -> Treatments:
    defaults: dict[str, Any] = {
        "groups": (),
        "freeze": (),
        "layer_decay": None,
        "head_rate": 1.0,
        "decays": "kernels",
        "run": RunLength(steps_per_epoch=10, batch_size=4, total_steps=10_000),
    }
    return resolve(params, layers, ("fc",), **{**defaults, **options})


PARAMS = {
    "conv1": {"kernel": array(3, 3, 3, 4)},
    "bn1": {"scale": array(4), "bias": array(4)},
    **{f"layer{i}": {"conv1": {"kernel": array(10, 100)}} for i in range(1, 5)},
    "fc": {"kernel": array(4, 2), "bias": array(2)},
}


def cells(table: str) -> list[list[str]]:
    """Splits the columns, which are two spaces or more apart."""
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()]
        for line in table.splitlines()
    ]


def test_kernels_and_the_rest_have_a_line_each() -> None:
    found = cells(
        tables.treatments(
            trained_alike(PARAMS, resolved(PARAMS), 0.25, 0.05, SGD(learning_rate=1.0))
        )
    )
    assert found == [
        ["learning rate", "weight decay", "trained", "values", "arrays", "which"],
        [
            *("0.25", "0.05", "always", "4,116", "6"),
            "conv1, fc, ... layer4 (6 layers): kernel",
        ],
        ["0.25", "0", "always", "10", "3", "bn1, fc: bias, scale"],
    ]


def test_what_differs_has_a_line_and_what_is_frozen_comes_last() -> None:
    groups = resolved(
        PARAMS,
        groups=(Group(pattern="^layer4", rate=0.1, decay=3.0),),
        freeze=(
            Freeze(pattern="^(conv1|bn1)"),
            Freeze(pattern="layer3", until=steps(1200)),
        ),
        head_rate=10.0,
    )
    assert cells(
        tables.treatments(
            trained_alike(PARAMS, groups, 0.01, 0.05, SGD(learning_rate=1.0))
        )
    )[1:] == [
        ["0.1", "0.05", "always", "8", "1", "fc: kernel"],
        ["0.1", "0", "always", "2", "1", "fc: bias"],
        ["0.01", "0.05", "always", "2,000", "2", "layer1, layer2: kernel"],
        ["0.001", "0.15", "always", "1,000", "1", "layer4: kernel"],
        ["0.01", "0.05", "from step 1,200", "1,000", "1", "layer3: kernel"],
        ["-", "-", "never", "116", "3", "bn1, conv1: bias, kernel, scale"],
    ]


def test_muons_table_says_what_adamw_trains_at_its_own_rate() -> None:
    muon = Muon(learning_rate=0.02, adam_rate=0.015, weight_decay=0.1)
    groups = resolved(
        PARAMS,
        head_rate=10.0,
        freeze=(Freeze(pattern="^layer1"), Freeze(pattern="bn1/bias")),
    )
    assert cells(tables.treatments(trained_alike(PARAMS, groups, 0.02, 0.1, muon))) == [
        [
            "by",
            "learning rate",
            "weight decay",
            *("trained", "values", "arrays", "which"),
        ],
        [
            *("Muon", "0.02", "0.1", "always", "3,108", "4"),
            "conv1, layer2, ... layer4 (4 layers): kernel",
        ],
        ["AdamW", "0.003", "0.1", "always", "8", "1", "fc: kernel"],
        ["AdamW", "0.003", "0", "always", "2", "1", "fc: bias"],
        ["AdamW", "0.0003", "0", "always", "4", "1", "bn1: scale"],
        ["-", "-", "-", "never", "1,004", "2", "bn1, layer1: bias, kernel"],
    ]


def test_what_two_algorithms_train_alike_has_two_lines() -> None:
    muon = Muon(learning_rate=0.02, adam_rate=1.0, consistent_rms=0.2)
    groups = resolved(PARAMS, decays="all")
    lines = cells(tables.treatments(trained_alike(PARAMS, groups, 0.02, 0.1, muon)))[1:]
    assert [line[:2] for line in lines] == [["AdamW", "0.02"], ["Muon", "0.02"]]


def test_a_resnet_50_with_layer_decay_has_two_lines_a_layer() -> None:
    model: Any = create_model("resnet50", num_classes=10)
    image = jnp.zeros((1, 64, 64, 3))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))[
        "params"
    ]
    groups = resolved(params, model.layers(), layer_decay=0.8)
    lines = cells(
        tables.treatments(
            trained_alike(params, groups, 1e-3, 0.05, SGD(learning_rate=1.0))
        )
    )[1:]
    assert len(lines) == 36
    assert lines[0] == ["0.001", "0.05", "always", "20,480", "1", "fc: kernel"]
    assert lines[-2] == ["2.252e-05", "0.05", "always", "9,408", "1", "conv1: kernel"]
    count = sum(int(line[3].replace(",", "")) for line in lines)
    assert count == sum(leaf.size for leaf in jax.tree.leaves(params))
    text = tables.parameters(params)
    assert "layer4_2/conv3/kernel" in text and max(map(len, text.splitlines())) < 100
