"""Every network: sizes against counts of torchvision's, and what holds in training."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxcls.errors import UserError
from jaxcls.models import MODELS, Model, create_model
from jaxcls.models.__main__ import main
from jaxcls.models.efficientnet import BASE, scale_channels, scale_stages
from jaxcls.models.facts import FACTS
from jaxcls.models.layers import BatchNorm, DropPath
from jaxcls.options import check
from tests.models.tiny import (
    TINY,
    apply_in_training,
    each_of_tiny,
    modules_called,
    shapes,
    trained,
)
from tests.programs import products


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# Parameters


@pytest.mark.parametrize("layers", [20, 32, 44, 56, 110])
def test_cifar_resnets_have_the_papers_parameters(layers: int) -> None:
    # He et al. 2015, section 4.2: 3x3 stem, 6n layers of 16, 32 and 64 channels, shortcuts
    # without parameters, 10-way dense layer; two values a channel for each norm.
    n = (layers - 2) // 6
    widths = [16] * 2 * n + [32] * 2 * n + [64] * 2 * n
    inputs = [16, *widths[:-1]]
    expected = 3 * 9 * 16 + 2 * 16
    expected += sum(9 * a * b + 2 * b for a, b in zip(inputs, widths, strict=True))
    expected += 64 * 10 + 10
    # What the network has is compared with its facts where all are (test_every_network.py).
    assert FACTS[f"resnet{layers}"].parameters == expected


def test_published_counts() -> None:
    keras = shapes(create_model("keras_resnet", num_classes=10), 32)
    assert count(keras["params"]) == 4_330_890
    assert count(keras["batch_stats"]) == 6_272
    assert count(keras) == 4_337_162
    small = create_model("resnet18", num_classes=10, stem="small")
    assert count(shapes(small, 32)["params"]) == 11_173_962
    without = create_model("googlenet", num_classes=1000, aux_weight=0.0)
    assert count(shapes(without, 224)["params"]) == 6_624_904
    without = create_model("inception_v3", num_classes=1000, aux_weight=0.0)
    assert count(shapes(without, 299)["params"]) == 23_834_568


def test_compound_scaling_rounds_channels_to_eights() -> None:
    # By hand: 32 x 1.1 = 35.2 -> 32 (not below 31.7); 16 x 1.4 = 22.4 -> 24;
    # 24 x 1.4 = 33.6 -> 32; 40 x 1.1 = 44 -> 48; 10 x 1 -> 8 is below 9, so 16.
    found = [
        scale_channels(*pair)
        for pair in [(32, 1.1), (16, 1.4), (24, 1.4), (40, 1.1), (10, 1.0), (4, 0.1)]
    ]
    assert found == [32, 24, 32, 48, 16, 8]
    # Table 1's depths x 3.1, rounded up: EfficientNet-B7 has 55 blocks.
    blocks = [stage.blocks for stage in scale_stages(BASE, 2.0, 3.1)]
    assert blocks == [4, 7, 7, 10, 10, 13, 4]


# Training


# In every test run: networks without golden values to compare with, and two blocks or stages of
# those whose gradients are not compared with torchvision's (test_parity.py).
DIFFERENTIATED: dict[str, dict[str, Any]] = {
    "alexnet_2012": {},
    "resnet20": {},
    "keras_resnet": {},
    "vgg11_bn": {"stage_sizes": (1, 1)},
    "resnet50": {"stage_sizes": (1, 1)},
    "convnext_tiny": {"depths": (1, 1)},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(*case, id=case[0]) for case in DIFFERENTIATED.items()),
        # And each at the depth that it has in TINY.
        *(
            pytest.param(name, {}, marks=pytest.mark.slow, id=f"{name}-full")
            for name in TINY
            if DIFFERENTIATED.get(name) != {}
        ),
    ],
)
def test_every_parameter_gets_a_gradient(name: str, options: dict[str, Any]) -> None:
    module, variables, images = trained(name, **options)
    # Dropout and stochastic depth may leave a part out by chance.
    module = module.clone(
        **{
            option: 0.0
            for option in ("dropout", "aux_dropout", "drop_path")
            if hasattr(module, option)
        }
    )

    # Otherwise half of the units after plain layers are silent for all of so few images: a bias
    # of 1 keeps their inputs, whose spread kernels of half the size keep near 1, above zero.
    def lifted(path: Any, leaf: Any) -> Any:
        layer, name = (key.key for key in path[-2:])
        if name == "kernel":
            return leaf / 2
        plain = name == "bias" and not layer.endswith(("bn", "norm"))
        return leaf + 1 if plain else leaf

    params = jax.tree_util.tree_map_with_path(lifted, variables["params"])
    variables = {**variables, "params": params}  # the others' are shared by tests

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> jax.Array:
        logits, updated = apply_in_training(
            module, {**variables, "params": params}, images
        )
        outputs = [logits, *jax.tree.leaves(updated.get("aux_logits", {}))]
        return sum((output**3).sum() for output in outputs)

    def is_cancelled(path: tuple[str, ...]) -> bool:
        """Whether a bias is taken away again by the batch norm that follows."""
        norms = name in ("vgg11_bn", "keras_resnet")
        return norms and path[-1] == "bias" and "conv" in path[-2]

    gradients = traverse_util.flatten_dict(
        jax.device_get(gradient(variables["params"]))
    )
    largest = max(np.abs(leaf).max() for leaf in gradients.values())
    for path, leaf in gradients.items():
        if is_cancelled(path):
            assert np.abs(leaf).max() < 1e-4 * largest, path
        else:
            # Every output channel, but for a few that ReLU silences, or that the next batch norm
            # takes away again. (At few pixels the rim of a large kernel meets nothing but
            # padding.)
            channels = (leaf != 0).reshape(-1, leaf.shape[-1]).any(0)
            assert channels.mean() > 0.7, path


@pytest.mark.parametrize(
    ("name", "options", "shares"),
    [
        # Huang et al. 2016, equation 4.
        ("resnet18", {"stage_sizes": (1, 2)}, [1 / 3, 2 / 3, 1]),
        ("keras_resnet", {}, [i / 9 for i in range(1, 10)]),
        # A block of an EfficientNet that changes the shape has no shortcut, so nothing to drop:
        # of 1, 1, 1, 2, 2, 2 and 1 blocks those that are second in their stage have one.
        ("efficientnet_b0", {"depth_factor": 0.5}, [4 / 10, 6 / 10, 8 / 10]),
        ("convnext_tiny", {"depths": (1, 2)}, [0, 1 / 2, 1]),
        # The same at their full depth.
        *(
            pytest.param(name, {}, shares, marks=pytest.mark.slow)
            for name, shares in {
                "resnet50": [i / 16 for i in range(1, 17)],
                "efficientnet_v2_s": [
                    i / 40 for i in range(40) if i not in (2, 6, 10, 16, 25)
                ],
                "convnext_tiny": [i / 17 for i in range(18)],
            }.items()
        ),
    ],
)
def test_stochastic_depth_follows_the_papers_rule(
    name: str, options: dict[str, Any], shares: list[float]
) -> None:
    module = create_model(name, num_classes=10, drop_path=0.4, **options)
    called, _ = modules_called(module, FACTS[name].size)
    rates = [m.rate for m in called if isinstance(m, DropPath)]
    np.testing.assert_allclose(rates, [0.4 * share for share in shares], rtol=1e-6)


def test_drop_path_keeps_the_expectation() -> None:
    branch = np.ones((4000, 2, 3), np.float32)
    layer = DropPath(0.3, train=True)
    apply = jax.jit(lambda x: layer.apply({}, x, rngs={"dropout": jax.random.key(0)}))
    result = np.asarray(apply(branch))
    # An image keeps all of its branch, scaled up, or nothing.
    assert (result == result[:, :1, :1]).all()
    values = result[:, 0, 0]
    kept = values != 0
    np.testing.assert_allclose(values[kept], 1 / 0.7, rtol=1e-6)
    # Four standard deviations of the share that is kept.
    assert abs(kept.mean() - 0.7) < 4 * math.sqrt(0.3 * 0.7 / 4000)
    for unchanged in (DropPath(0.3, train=False), DropPath(0.0, train=True)):
        np.testing.assert_array_equal(unchanged.apply({}, branch), branch)


SHALLOW = {"depth_factor": 0.1}
NORMS: dict[str, tuple[float, float, dict[str, Any]]] = {
    "resnet18": (1e-5, 0.9, {"stage_sizes": (1, 1)}),
    "vgg11_bn": (1e-5, 0.9, {}),
    "googlenet": (1e-3, 0.9, {}),
    "inception_v3": (1e-3, 0.9, {}),
    "keras_resnet": (1e-3, 0.99, {}),
    "efficientnet_b0": (1e-5, 0.9, SHALLOW),
    "efficientnet_b7": (1e-3, 0.99, SHALLOW),
}
"""Epsilon and momentum, and options that leave fewer blocks, which are all alike."""


@pytest.mark.parametrize("name", NORMS)
def test_every_batch_norm_has_the_networks_constants_and_group(name: str) -> None:
    *constants, options = NORMS[name]
    module = create_model(
        name, num_classes=10, bn_group=2, dtype=jnp.bfloat16, **options
    )
    called, variables = modules_called(module, 75 if name == "inception_v3" else 64)
    norms = {m.path: m for m in called if isinstance(m, BatchNorm)}
    stats = traverse_util.flatten_dict(variables["batch_stats"])
    assert set(norms) == {path[:-1] for path in stats}
    found = {(m.epsilon, m.momentum, m.group, m.train, m.dtype) for m in norms.values()}
    assert found == {(*constants, 2, True, jnp.bfloat16)}


def test_every_efficientnet_has_its_constants() -> None:
    # torchvision's: B5 to B7 and the second version have TensorFlow's epsilon, B5 to B7 its
    # momentum too.
    for name in FACTS:
        if name.startswith("efficientnet_"):
            module: Any = create_model(name, num_classes=10)
            tensorflow = name[-2:] in ("b5", "b6", "b7")
            epsilon = 1e-3 if tensorflow or "_v2_" in name else 1e-5
            momentum = 0.99 if tensorflow else 0.9
            found = (module.bn_epsilon, module.bn_momentum)
            assert found == (epsilon, momentum), name


# One of each class of networks, in which the others differ in numbers alone.
CLASSES = {"lenet5", "alexnet", "alexnet_2012", "vgg11_bn", "resnet50", "keras_resnet"}
CLASSES |= {"efficientnet_b0", "convnext_tiny"}


@each_of_tiny(*(set(TINY) - CLASSES))
def test_bfloat16_computes_and_float32_keeps(name: str) -> None:
    options, side = TINY[name]
    half = create_model(name, num_classes=5, dtype=jnp.bfloat16, **options)
    variables = shapes(half, side)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
    traced, result = jax.make_jaxpr(
        lambda v, x: apply_in_training(half, v, x), return_shape=True
    )(variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype("float32")}
    found = list(products(traced.jaxpr))
    paths = traverse_util.flatten_dict(variables["params"])
    assert len(found) >= sum(path[-1] == "kernel" for path in paths)
    for equation in found:
        operands = {variable.aval.dtype for variable in equation.invars}
        assert operands == {jnp.dtype("bfloat16")}, equation


@each_of_tiny(*(set(TINY) - {"lenet5", "resnet20", "efficientnet_b0"}))
def test_bfloat16_is_near_float32(name: str) -> None:
    module, variables, images = trained(name)
    half = module.clone(dtype=jnp.bfloat16)
    exact, rounded = jax.device_get(
        jax.jit(lambda: tuple(m.apply(variables, images) for m in (module, half)))()
    )
    assert exact.dtype == rounded.dtype == np.float32
    difference = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    # bfloat16 has 8 bits; equal would mean that the option is not read.
    assert 1e-6 < difference < 0.02


@each_of_tiny(*(set(TINY) - CLASSES), without=("lenet5", "alexnet", "alexnet_2012"))
def test_remat_wraps_the_blocks(name: str) -> None:
    options, side = TINY[name]
    images = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
    module = create_model(name, num_classes=5, **options)
    variables = shapes(module, side)
    for is_on in (False, True):
        again = module.clone(remat=is_on)
        traced = jax.make_jaxpr(lambda v, x, m=again: apply_in_training(m, v, x)[0])(
            variables, images
        )
        assert ("checkpoint" in str(traced) or "remat" in str(traced)) == is_on


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vgg11", marks=pytest.mark.slow),
        "resnet20",
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
    ],
)
def test_remat_changes_nothing_but_the_memory(name: str) -> None:
    module, variables, images = trained(name)

    def gradients(module: nn.Module) -> Any:
        def total(params: Any) -> jax.Array:
            logits, _ = apply_in_training(
                module, {**variables, "params": params}, images
            )
            return (logits**2).sum()

        return jax.grad(total)(variables["params"])

    plain, recomputed = jax.device_get(
        jax.jit(lambda: (gradients(module), gradients(module.clone(remat=True))))()
    )
    # The same random numbers too: dropout and stochastic depth are on.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            b, a, rtol=1e-3, atol=1e-3 * abs(a).max()
        ),
        plain,
        recomputed,
    )


# Auxiliary heads


@pytest.mark.parametrize(
    ("name", "heads"),
    [("googlenet", 2), pytest.param("inception_v3", 1, marks=pytest.mark.slow)],
)
def test_auxiliary_heads_are_computed_in_training_alone(name: str, heads: int) -> None:
    options, side = TINY[name]
    module = create_model(name, num_classes=5, **options)
    variables = shapes(module, side)
    images = jax.ShapeDtypeStruct((4, side, side, 3), jnp.float32)
    _, updated = jax.eval_shape(
        lambda v, x: apply_in_training(module, v, x), variables, images
    )
    logits = jax.tree.leaves(updated["aux_logits"])
    assert [leaf.shape for leaf in logits] == [(4, 5)] * heads
    # Evaluation does not even look at their parameters.
    without = {
        kind: {k: v for k, v in tree.items() if not k.startswith("aux")}
        for kind, tree in variables.items()
    }
    assert count(without) < count(variables)
    result, changed = jax.eval_shape(
        lambda v, x: module.apply(v, x, train=False, mutable=True), without, images
    )
    assert result.shape == (4, 5)
    assert "aux_logits" not in changed
    assert set(variables) == {"params", "batch_stats"}


# Stems


def test_small_stems_keep_the_strides_that_they_promise() -> None:
    # Side of the maps at the end of each stage for images of 32 pixels.
    plans = {
        "resnet18": [32, 16, 8, 4],
        "resnet20": [32, 16, 8],
        "efficientnet_b0": [32, 32, 16, 8, 8, 4, 4],
        "efficientnet_v2_s": [32, 32, 16, 8, 8, 4],
        "convnext_tiny": [16, 8, 4, 2],
        "vgg11": [16, 8, 4, 2, 1],
    }
    for name, plan in plans.items():
        options = {**TINY[name][0], "stem": "small"}
        module = create_model(name, num_classes=10, **options)
        ends: dict[str, int] = {}
        for path, side in block_sides(module, 32):
            ends[path.split("_")[0]] = side
        assert list(ends.values()) == plan, name


def block_sides(module: nn.Module, side: int) -> Iterator[tuple[str, int]]:
    found = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        path = context.module.path
        if len(path) == 1 and path[0].startswith(("layer", "stage")):
            found.append((path[0], result.shape[1]))
        return result

    with nn.intercept_methods(note):
        shapes(module, side)
    yield from found


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("alexnet", 62, {}),
        ("vgg16", 31, {}),
        ("inception_v3", 74, {}),
        ("convnext_tiny", 31, {}),
        ("convnext_tiny", 15, {"stem": "small"}),
    ],
)
def test_images_that_are_too_small_are_an_error(
    name: str, side: int, options: dict[str, Any]
) -> None:
    module = create_model(name, num_classes=10, **options)
    with pytest.raises(UserError, match=rf"{side + 1}x{side + 1} or more, not {side}x"):
        shapes(module, side)
    shapes(module, side + 1)


# Options and the command


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(name="lenet5", dropout=0.5), "'lenet5' has no option 'dropout'"),
        (Model(name="vgg16", dropout=1.0), "model.dropout must lie in 0..1"),
        (Model(name="resnet18", drop_path=-0.1), "model.drop_path must lie in 0..1"),
        (
            Model(name="googlenet", aux_weight=-1.0),
            "model.aux_weight must lie in 0..1000000, below 1000000, not -1.0",
        ),
        (Model(name="vgg16", aux_weight=1.0), "no option 'aux_weight'"),
        # Only what a config can set is offered.
        (
            Model(name="efficientnet_b0", width=7),
            "Its options: stem, dropout, drop_path, ",
        ),
        (Model(name="vgg16", padding="same"), "no option 'padding'"),
        (
            Model(name="efficientnet_b0", bn_epsilon=0.0),
            "bn_epsilon must lie in 0..1, above 0",
        ),
        (
            Model(name="efficientnet_b0", bn_momentum=1.0),
            "bn_momentum must lie in 0..1, above 0, below 1",
        ),
        (Model(name="vgg16", weights=""), "model.weights must be not empty"),
        (
            Model(name="resnet18", weights="timm/resnet50.a1_in1k"),
            "are weights of resnet50, not of resnet18",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_an_error(model: Model, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(model, "model")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vgg11", {"bn_group": 2}, "no batch norm"),
        ("resnext50_32x4d", {"width": 8}, "leaves 16 channels for 32 groups"),
        ("efficientnet_b0", {"padding": "bogus"}, "'symmetric' or 'same', not 'bogus'"),
    ],
)
def test_options_that_make_no_network_are_an_error(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        shapes(create_model(name, num_classes=10, **options), 64)


def test_weights_bring_their_constants(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Wherever the command is given: a folder of that name changes nothing.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm" / "tf_efficientnet_b0.in1k").mkdir(parents=True)
    model = Model(name="efficientnet_b0", weights="timm/tf_efficientnet_b0.in1k")
    module: Any = model.create(10)
    assert (module.padding, module.bn_epsilon) == ("same", 1e-3)


def test_the_command_lists_networks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(MODELS) - set(FACTS):  # registered by recipes of other tests
        monkeypatch.delitem(MODELS, name)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(MODELS)
    row = next(line for line in lines if line.startswith("resnet50 ")).split()
    assert row[1:4] == ["25,557,032", "4.089", "224"]
    assert main(["*net50*"]) == 0
    text = capsys.readouterr().out
    assert "wide_resnet50_2" in text and "lenet5" not in text
    # The published accuracy beside the very size that it was measured at.
    assert "torchvision/resnet50:v2" in text and "80.86 %" in text
    assert main(["resnt50"]) == 2
    assert "Did you mean 'resnet50'?" in capsys.readouterr().err
    assert main(["RESNET50"]) == 0
    assert main(["efficientnetv2"]) == 2
    assert "Some contain 'effic': efficientnet_b0, " in capsys.readouterr().err
