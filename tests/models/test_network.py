"""What all networks share: the order of their layers, the head, its input, frozen norms."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxcls.inference.features import features
from jaxcls.models import create_model
from jaxcls.models.layers import frozen_collection
from jaxcls.models.network import head
from tests.models.tiny import (
    TINY,
    apply_in_training,
    each_of_tiny,
    shapes,
    trained,
)

# Layers


@functools.cache
def started(module: nn.Module, side: int) -> tuple[list[nn.Module], set[str]]:
    """The modules in the order of the calls, and the top-level parts that have parameters."""
    called: list[nn.Module] = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        called.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        params = shapes(module, side)["params"]
    return called, set(params)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        *((name, *tiny) for name, tiny in TINY.items()),
        # Networks at their full depth, and without auxiliary heads.
        ("resnet50", {}, 64),
        ("convnext_small", {}, 64),
        ("googlenet", {"aux_weight": 0.0}, 32),
        ("inception_v3", {"aux_weight": 0.0}, 75),
    ],
)
def test_layers_are_in_the_order_of_the_calls(
    name: str, options: dict[str, Any], side: int
) -> None:
    module: Any = create_model(name, num_classes=5, **options)
    modules, with_parameters = started(module, side)
    names = dict.fromkeys(module.path[0] for module in modules if module.path)
    called = [name for name in names if name in with_parameters]
    layers = module.layers()
    flat = [part for layer in layers for part in layer]
    assert len(flat) == len(set(flat)) and set(flat) == with_parameters
    auxiliary = {"aux", "aux1", "aux2"}
    assert [p for p in flat if p not in auxiliary] == [
        p for p in called if p not in auxiliary
    ]
    # The stem comes first; the head, with the auxiliary ones, last.
    assert module.STEM.split("/")[0] in layers[0]
    assert {path.split("/")[0] for path in module.HEADS} & set(flat) <= set(layers[-1])
    assert auxiliary & set(flat) <= set(layers[-1])


def test_layers_group_what_is_of_one_depth() -> None:
    resnet: Any = create_model("resnet18", num_classes=2)
    assert resnet.layers() == (
        ("conv1", "bn1"),
        *((f"layer{stage}_{block}",) for stage in (1, 2, 3, 4) for block in (0, 1)),
        ("fc",),
    )
    convnext: Any = create_model("convnext_tiny", num_classes=2, depths=(2, 1))
    assert convnext.layers() == (
        ("stem_conv", "stem_norm"),
        ("stage1_0",),
        ("stage1_1",),
        ("downsample2_norm", "downsample2_conv", "stage2_0"),
        ("norm", "fc"),
    )
    # The stem, nine modules and two convolutions, the heads.
    googlenet: Any = create_model("googlenet", num_classes=2)
    assert len(googlenet.layers()) == 13
    assert googlenet.layers()[-1] == ("fc", "aux1", "aux2")
    efficientnet: Any = create_model("efficientnet_b0", num_classes=2)
    assert len(efficientnet.layers()) == 1 + 16 + 2
    assert efficientnet.layers()[-2] == ("head_conv", "head_bn")


# Heads


@pytest.mark.parametrize("name", TINY)
def test_every_head_starts_as_it_is_told(name: str) -> None:
    options, side = TINY[name]

    def heads(head_init: Any) -> dict[tuple[str, ...], nn.Dense]:
        """The dense layers of a network that starts, by their paths."""
        module = create_model(name, num_classes=5, head_init=head_init, **options)
        called, _ = started(module, side)
        return {layer.path: layer for layer in called if isinstance(layer, nn.Dense)}

    def drawn(layer: nn.Dense) -> list[np.ndarray]:
        key = jax.random.key(3)
        kernel = layer.kernel_init(key, (4, 5), jnp.float32)
        return [np.asarray(kernel), np.asarray(layer.bias_init(key, (5,), jnp.float32))]

    default, scaled = heads("default"), heads(0.25)
    own: Any = create_model(name, num_classes=5)
    paths = {tuple(path.split("/")) for path in own.HEADS}
    assert paths <= set(default)
    for path, layer in default.items():
        factor = 0.25 if path in paths else 1
        for usual, small in zip(drawn(layer), drawn(scaled[path]), strict=True):
            np.testing.assert_array_equal(small, factor * usual)
        assert np.abs(drawn(layer)[0]).max() > 0


def test_a_head_of_zeros_finds_all_classes_equally_likely() -> None:
    layer = head(
        3,
        "zero",
        jnp.float32,
        name="fc",
        kernel_init=nn.initializers.ones,
        bias_init=nn.initializers.ones,
    )
    logits, _ = layer.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    np.testing.assert_array_equal(logits, np.zeros((2, 3)))


@each_of_tiny(*(set(TINY) - {"lenet5", "resnet20"}))
def test_logits_are_the_head_of_the_features(name: str) -> None:
    module: Any
    module, variables, images = trained(name)
    (seen, logits), plain = jax.device_get(
        jax.jit(lambda v, x: (features(module, v, x), module.apply(v, x)))(
            variables, images
        )
    )
    layer = variables["params"][module.HEADS[0]]
    assert seen.shape == (len(images), layer["kernel"].shape[0])
    expected = np.float64(seen) @ np.float64(layer["kernel"]) + layer["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # Not so by chance: images differ, and the logits are those of a plain call.
    assert (seen[0] != seen[1]).any()
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-6)


def test_features_are_float32_of_a_bfloat16_network() -> None:
    options, side = TINY["resnet20"]
    module: Any = create_model("resnet20", num_classes=5, dtype=jnp.bfloat16, **options)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    seen, _ = jax.eval_shape(
        lambda v, x: features(module, v, x), shapes(module, side), images
    )
    assert seen.shape == (2, 32) and seen.dtype == jnp.float32


# Frozen norms

NORMED = [name for name in TINY if name not in ("lenet5", "alexnet", "alexnet_2012")]
NORMED = [name for name in NORMED if name not in ("vgg11", "convnext_tiny")]
# Their blocks are those of resnet50, efficientnet_b0 and googlenet with other layers inside.
ALIKE = ("resnet18", "resnet20", "efficientnet_v2_s", "inception_v3")


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("resnet18", False),
        *(
            pytest.param(name, True, marks=[pytest.mark.slow] * (name in ALIKE))
            for name in NORMED
        ),
    ],
)
def test_every_batch_norm_can_be_frozen(name: str, remat: bool) -> None:
    """A norm that computes as in training sows its moments: all do, or none."""
    options, side = TINY[name]
    module = create_model(name, num_classes=5, remat=remat, **options)
    variables = shapes(module, side)
    images = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)

    def sown(variables: Any) -> set[tuple[str, ...]]:
        _, updated = jax.eval_shape(
            lambda v, x: module.apply(
                v,
                x,
                train=True,
                mutable=["batch_stats", "moments"],
                rngs={"dropout": jax.random.key(0)},
            ),
            variables,
            images,
        )
        moments = traverse_util.flatten_dict(updated.get("moments", {}))
        return {path[:-1] for path in moments}

    stats = variables["batch_stats"]
    norms = {path[:-1] for path in traverse_util.flatten_dict(stats)}
    assert norms and sown(variables) == norms
    frozen = frozen_collection(stats, lambda path: True)
    assert sown({**variables, "frozen": frozen}) == set()


def test_frozen_norms_stay_while_others_learn() -> None:
    module = create_model(
        "resnet18", num_classes=3, stem="small", width=2, stage_sizes=(1, 1), remat=True
    )
    random = np.random.default_rng(1)
    images = np.float32(random.normal(size=(4, 4, 4, 1)))
    variables = jax.tree.map(
        lambda leaf: np.float32(random.uniform(0.5, 1.5, leaf.shape)),
        shapes(module, 4, channels=1),
    )
    chosen = ("bn1", "layer1_0/bn2", "layer2_0/downsample_bn")
    frozen = frozen_collection(variables["batch_stats"], lambda path: path in chosen)

    @jax.jit
    def step(variables: Any) -> Any:
        return apply_in_training(module, variables, images)[1]["batch_stats"]

    before = traverse_util.flatten_dict(variables["batch_stats"], sep="/")
    learned = jax.device_get(step({**variables, "frozen": frozen}))
    after = traverse_util.flatten_dict(learned, sep="/")
    for path, old in before.items():
        same = np.array_equal(old, after[path])
        assert same == (path.rpartition("/")[0] in chosen), path


def test_freezing_asks_for_every_norm_by_its_path() -> None:
    stats = {"bn1": {"mean": 0, "var": 0}, "layer1_0": {"bn1": {"mean": 0, "var": 0}}}
    asked: list[str] = []

    def is_frozen(path: str) -> bool:
        asked.append(path)
        return path == "layer1_0/bn1"

    found = frozen_collection(stats, is_frozen)
    assert sorted(asked) == ["bn1", "layer1_0/bn1"]
    assert jax.tree.structure(found) == jax.tree.structure(
        {"layer1_0": {"bn1": {"frozen": 0}}}
    )
    assert frozen_collection({}, is_frozen) == {}
