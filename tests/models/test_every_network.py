"""Every network at its full size, traced once: its parameters, its cost, its tensors' names."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from jaxcls.models import MODELS, create_model
from jaxcls.models.facts import FACTS
from jaxcls.models.weights import pretrained
from jaxcls.models.weights.catalogue import WEIGHTS
from jaxcls.models.weights.pretrained import COUNTER
from tests.programs import products

REFERENCES = Path(__file__).parents[1] / "references"
# Names and shapes of every tensor of torchvision's and timm's networks, as a digest.
STATE_DICTS = json.loads((REFERENCES / "state_dicts.json").read_text())
DIALECTS: Any = ("torchvision", "timm")


@pytest.mark.parametrize("name", FACTS)
def test_parameters_multiply_adds_and_tensors_are_those_written_down(name: str) -> None:
    facts = FACTS[name]
    module = create_model(name, num_classes=facts.num_classes)
    size = (1, facts.size, facts.size, facts.channels)
    images = jax.ShapeDtypeStruct(size, jnp.float32)
    # Initial values are not drawn by products, so that all are those of the forward pass.
    traced, variables = jax.make_jaxpr(
        lambda x: module.init(jax.random.key(0), x), return_shape=True
    )(images)
    shapes = {
        path: leaf.shape
        for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items()
    }
    count = sum(math.prod(s) for path, s in shapes.items() if path.startswith("params"))
    assert count == facts.parameters
    if hasattr(
        module, "aux_weight"
    ):  # evaluation, which is counted, leaves the heads out
        traced = jax.make_jaxpr(module.apply)(variables, images)
    assert round(multiply_adds(traced.jaxpr) / 1e9, 4) == facts.gmacs
    for dialect in DIALECTS:
        entry = f"{dialect}/{name}"
        if entry == "timm/inception_v3":  # timm builds it without its head unless asked
            shapes = {path: s for path, s in shapes.items() if "/aux/" not in path}
        if entry in STATE_DICTS:
            found = digest(state_dict(module, dialect, shapes))
            assert found == STATE_DICTS[entry], dialect


def multiply_adds(jaxpr: Any) -> int:
    """Counts those of convolutions and matrix products."""
    total = 0
    for equation in products(jaxpr):
        left, right = (variable.aval.shape for variable in equation.invars)
        if equation.primitive.name == "conv_general_dilated":
            each = math.prod(right[:3])
        else:
            (contracted, _), _ = equation.params["dimension_numbers"]
            each = math.prod(left[i] for i in contracted)
        total += math.prod(equation.outvars[0].aval.shape) * each
    return total


def state_dict(
    module: Any, dialect: Any, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a state dict, from those of the variables.

    What pretrained.tensors gives, without its trace of the network.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path, shape in shapes.items():
        tensor = pretrained._tensor(module, dialect, path, shape)
        assert tensor.key not in found
        found[tensor.key] = tensor.torch_shape
        if tensor.key.endswith("running_var"):
            found[tensor.key.replace("running_var", COUNTER)] = ()
    return found


def digest(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """As tests/references/make_state_dicts.py makes it."""
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    text = "\n".join(lines).encode()
    return {"tensors": len(lines), "sha256": hashlib.sha256(text).hexdigest()}


def test_every_network_has_its_facts() -> None:
    # Recipes of other tests may register networks of their own.
    assert [name for name in MODELS if name in FACTS] == list(FACTS)


def test_all_published_networks_are_checked() -> None:
    for weights in WEIGHTS.values():
        assert f"{weights.name.split('/')[0]}/{weights.model}" in STATE_DICTS


def test_facts_are_of_the_networks_that_have_weights() -> None:
    assert {entry.partition("/")[2] for entry in STATE_DICTS} <= set(FACTS)
