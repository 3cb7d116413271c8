"""The networks against plain NumPy, and what create_model promises."""

import functools
import math
import subprocess
import sys
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from jaxcls.errors import UserError
from jaxcls.models import MODELS, Model, create_model, model_options
from jaxcls.models.facts import FACTS
from jaxcls.options import check
from tests.programs import products

Variables = dict[str, Any]

OURS = list(FACTS)
"""The networks of the package; recipes of other tests may register their own in MODELS."""


@pytest.fixture
def only_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in MODELS if name not in OURS]:
        monkeypatch.delitem(MODELS, name)


def shapes(
    name: str, image_shape: tuple[int, ...], num_classes: int = 10, **options: Any
) -> Variables:
    """The variables of a network as shapes, without computing anything."""
    module = create_model(name, num_classes=num_classes, **options)
    return jax.eval_shape(
        functools.partial(module.init, train=False),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
    )


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def drawn(tree: Any, seed: int = 0) -> Any:
    """Values for shapes that keep activations in range: kernels by fan-in, the rest near 1,
    so that exchanging or dropping any of them shows."""
    random = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if len(leaf.shape) > 1:
            fan_in = math.prod(leaf.shape[:-1])
            return np.float32(random.normal(size=leaf.shape) * math.sqrt(2 / fan_in))
        return np.float32(random.uniform(0.5, 1.5, leaf.shape))

    return jax.tree.map(draw, tree)


def images(*shape: int) -> np.ndarray:
    return np.float32(np.random.default_rng(9).normal(size=shape))


@pytest.mark.parametrize(
    ("name", "options", "image_shape", "num_classes", "expected"),
    [
        # Per layer: 156 + 2,416 + 48,120 + 10,164 + 850.
        ("lenet5", {}, (32, 32, 1), 10, 61_706),
        ("resnet18", {"stem": "small"}, (32, 32, 3), 10, 11_173_962),
        # torchvision's resnet18.
        ("resnet18", {}, (224, 224, 3), 1000, 11_689_512),
    ],
)
def test_parameter_counts(
    name: str,
    options: dict[str, Any],
    image_shape: tuple[int, ...],
    num_classes: int,
    expected: int,
) -> None:
    variables = shapes(name, image_shape, num_classes, **options)
    assert count(variables["params"]) == expected
    if name == "resnet18":
        # Mean and variance of each normalised channel: 2 * (64 * 5 + 128 * 5 + ...).
        assert count(variables["batch_stats"]) == 9_600
    else:
        assert "batch_stats" not in variables


# ----------------------------------------------------------------- references in float64


def conv(x: np.ndarray, kernel: np.ndarray, stride: int, pad: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[:2]
    patches = sliding_window_view(x, size, (1, 2))[:, ::stride, ::stride]
    return np.einsum("bhwcij,ijco->bhwo", patches, np.float64(kernel))


def pool(x: np.ndarray, size: int, stride: int, reduce: Any) -> np.ndarray:
    patches = sliding_window_view(x, (size, size), (1, 2))[:, ::stride, ::stride]
    return reduce(patches, axis=(-2, -1))


def lenet5(params: Variables, x: np.ndarray) -> np.ndarray:
    for layer in ("c1", "c3", "c5"):
        x = np.tanh(conv(x, params[layer]["kernel"], 1, 0) + params[layer]["bias"])
        if layer != "c5":
            x = pool(x, 2, 2, np.mean)
    assert x.shape[1:] == (1, 1, 120)
    x = np.tanh(x[:, 0, 0] @ params["f6"]["kernel"] + params["f6"]["bias"])
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def resnet18(variables: Variables, x: np.ndarray, stem: str) -> np.ndarray:
    """torchvision's resnet18 in evaluation: every stride and padding written out."""
    params, stats = variables["params"], variables["batch_stats"]

    def norm(x: np.ndarray, *path: str) -> np.ndarray:
        p, s = params, stats
        for key in path:
            p, s = p[key], s[key]
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    kernel = params["conv1"]["kernel"]
    if stem == "imagenet":
        assert kernel.shape[:2] == (7, 7)
        x = np.maximum(norm(conv(x, kernel, 2, 3), "bn1"), 0)
        border = ((0, 0), (1, 1), (1, 1), (0, 0))
        x = pool(np.pad(x, border, constant_values=-np.inf), 3, 2, np.max)
    else:
        assert kernel.shape[:2] == (3, 3)
        x = np.maximum(norm(conv(x, kernel, 1, 1), "bn1"), 0)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name = f"layer{stage}_{block}"
            p = params[name]
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv(x, p["conv1"]["kernel"], stride, 1)
            y = np.maximum(norm(y, name, "bn1"), 0)
            y = norm(conv(y, p["conv2"]["kernel"], 1, 1), name, "bn2")
            assert ("downsample_conv" in p) == (stride == 2)
            if stride == 2:
                assert p["downsample_conv"]["kernel"].shape[:2] == (1, 1)
                x = norm(
                    conv(x, p["downsample_conv"]["kernel"], 2, 0), name, "downsample_bn"
                )
            x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ params["fc"]["kernel"] + params["fc"]["bias"]


def vgg(params: Variables, x: np.ndarray) -> np.ndarray:
    """torchvision's VGG without batch norm in evaluation, averaged to one pixel."""
    stages = [key for key in sorted(params) if key.startswith("stage")]
    for stage in stages:
        for name in sorted(params[stage]):
            layer = params[stage][name]
            x = np.maximum(conv(x, layer["kernel"], 1, 1) + layer["bias"], 0)
        x = pool(x, 2, 2, np.max)
    x = x.mean((1, 2))
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    return x @ params["fc8"]["kernel"] + params["fc8"]["bias"]


def assert_close(logits: Any, expected: np.ndarray, tolerance: float) -> None:
    """Compares by the spread between images, which shows that the network saw them."""
    spread = expected.std(0).mean()
    assert spread > 0.02 * np.abs(expected).mean()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance * spread)


def test_lenet5_is_a_plain_numpy_network() -> None:
    params = drawn(shapes("lenet5", (32, 32, 3), 7)["params"])
    module = create_model("lenet5", num_classes=7)
    x = images(4, 32, 32, 3)
    logits = jax.jit(module.apply)({"params": params}, x)
    assert_close(logits, lenet5(params, np.float64(x)), 1e-4)


def test_a_vgg_without_batch_norm_is_a_plain_numpy_network() -> None:
    options: Any = {"stem": "small", "width": 4, "stage_sizes": (1, 2)}
    params = jax.tree.map(
        # Centred biases, or hardly a value would be below zero for ReLU to cut.
        lambda leaf: leaf - 1 if leaf.ndim == 1 else leaf,
        drawn(shapes("vgg11", (32, 32, 3), 5, **options)["params"]),
    )
    module = create_model("vgg11", num_classes=5, **options)
    x = images(3, 32, 32, 3)
    logits = jax.jit(module.apply)({"params": params}, x)
    assert_close(logits, vgg(params, np.float64(x)), 1e-3)


# Even sizes, not square: "SAME" paddings are wrong at even sizes only.
@pytest.mark.parametrize(
    ("stem", "image_shape"), [("small", (16, 24, 3)), ("imagenet", (64, 96, 3))]
)
def test_resnet18_is_torchvisions_structure(
    stem: str, image_shape: tuple[int, ...]
) -> None:
    variables = drawn(shapes("resnet18", image_shape, 5, stem=stem, width=4))
    module = create_model("resnet18", num_classes=5, stem=stem, width=4)
    x = images(3, *image_shape)
    logits = jax.jit(functools.partial(module.apply, train=False))(variables, x)
    assert_close(logits, resnet18(variables, np.float64(x), stem), 1e-3)


def test_every_parameter_has_a_gradient() -> None:
    image_shape = (16, 16, 3)
    options: Any = {"stem": "small", "width": 2, "bn_group": 4}
    module = create_model("resnet18", num_classes=3, **options)
    variables = drawn(shapes("resnet18", image_shape, 3, **options))

    @jax.jit
    def gradients(params: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = module.apply(
                {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
            )
            return (jax.nn.log_softmax(logits)[:, 0]).mean()

        return jax.grad(loss)(params)

    for path, gradient in flax.traverse_util.flatten_dict(
        gradients(variables["params"], images(8, *image_shape))
    ).items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 1e-6, path


def test_training_uses_the_batch_and_evaluation_the_running_statistics() -> None:
    options: Any = {"stem": "small", "width": 2, "stage_sizes": (1,)}
    module = create_model("resnet18", num_classes=3, **options)
    variables = drawn(shapes("resnet18", (4, 4, 1), 3, **options))
    x = images(4, 4, 4, 1)
    other = x.copy()
    other[1:] += images(3, 4, 4, 1) ** 2

    @functools.partial(jax.jit, static_argnames="train")
    def first(x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        """The logits of the first image, the same in both batches, and the statistics."""
        logits, updated = module.apply(
            variables, x, train=train, mutable=["batch_stats"]
        )
        return logits[0], updated["batch_stats"]

    logits, stats = first(x, train=False)
    np.testing.assert_allclose(logits, first(other, train=False)[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])

    logits, stats = first(x, train=True)
    assert np.abs(logits - first(other, train=True)[0]).max() > 1e-2
    changes = jax.tree.map(
        lambda new, old: np.abs(new - old).max(), stats, variables["batch_stats"]
    )
    # Each of the three layers, or one of them would evaluate as it started.
    assert min(jax.tree.leaves(changes)) > 1e-2


def test_bn_group_reaches_every_batch_norm() -> None:
    """With groups of 2, images 0 and 1 do not see what images 2 and 3 are."""
    options: Any = {"stem": "small", "width": 2, "stage_sizes": (1, 1), "bn_group": 2}
    module = create_model("resnet18", num_classes=3, **options)
    variables = drawn(shapes("resnet18", (4, 4, 1), 3, **options))

    @jax.jit
    def logits(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    x = images(4, 4, 4, 1)
    other = x.copy()
    other[2:] += 1 + images(2, 4, 4, 1) ** 2
    np.testing.assert_allclose(logits(x)[:2], logits(other)[:2], rtol=1e-5)
    assert np.abs(logits(x)[2:] - logits(other)[2:]).max() > 1e-2


# ----------------------------------------------------------------------------- precision


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_bfloat16_computes_and_float32_stays(name: str) -> None:
    narrow: Any = {"width": 4, "stem": "small"} if name == "resnet18" else {}
    module = create_model(name, num_classes=5, dtype=jnp.bfloat16, **narrow)
    variables = shapes(name, (32, 32, 3), 5, dtype=jnp.bfloat16, **narrow)
    float32 = jnp.dtype("float32")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {float32}

    def train(variables: Any, x: Any) -> Any:
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    jaxpr, (logits, updated) = jax.make_jaxpr(train, return_shape=True)(variables, x)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(updated)} <= {float32}
    found = list(products(jaxpr))
    # LeNet-5: 3 convolutions and 2 matrices. ResNet-18: its 18 layers and 3 shortcuts.
    assert len(found) == {"lenet5": 5, "resnet18": 21}[name]
    for equation in found:
        assert {v.aval.dtype for v in equation.invars} == {jnp.dtype("bfloat16")}


# -------------------------------------------------------------------------- initial values


@pytest.fixture(scope="module")
def fresh_resnet() -> dict[str, np.ndarray]:
    """The initial parameters of a ResNet that is short but not narrow."""
    module = create_model("resnet18", num_classes=50, stage_sizes=(1, 1))
    init = jax.jit(functools.partial(module.init, train=False))
    params = init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
    return flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")


def test_convolutions_start_normal_by_fan_out(
    fresh_resnet: dict[str, np.ndarray],
) -> None:
    checked = 0
    for name, kernel in fresh_resnet.items():
        if kernel.ndim != 4:
            continue
        checked += 1
        height, width, _, features = kernel.shape
        std = math.sqrt(2 / (height * width * features))  # He et al. 2015, equation 14
        # Three standard errors.
        assert abs(kernel.std() / std - 1) < 3 / math.sqrt(2 * kernel.size), name
        assert abs(kernel.mean()) < 4 * std / math.sqrt(kernel.size), name
        assert np.abs(kernel).max() > 3 * std, name  # not truncated
    assert checked == 6


def test_the_last_layer_starts_uniform(fresh_resnet: dict[str, np.ndarray]) -> None:
    bound = 128**-0.5  # torch.nn.Linear: 1 / sqrt(fan-in), for kernel and bias
    for name in ("fc/kernel", "fc/bias"):
        values = fresh_resnet[name]
        assert np.abs(values).max() <= bound
        assert np.abs(values).max() > 0.9 * bound
        assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 3 / math.sqrt(
            values.size
        )


def test_batch_norms_start_at_one_and_zero(fresh_resnet: dict[str, np.ndarray]) -> None:
    for name, values in fresh_resnet.items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(values, 1)
        elif name.endswith("bias") and name != "fc/bias":
            np.testing.assert_array_equal(values, 0)


def test_lenet5_starts_with_variance_one_over_fan_in() -> None:
    module = create_model("lenet5", num_classes=10)
    params = jax.jit(module.init)(
        jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32)
    )
    for name, layer in params["params"].items():
        kernel = np.asarray(layer["kernel"])
        fan_in = math.prod(kernel.shape[:-1])
        # LeCun et al. 1998, "Efficient BackProp", equation 16; three standard errors.
        relative = kernel.std() * math.sqrt(fan_in) - 1
        assert abs(relative) < 3 / math.sqrt(2 * kernel.size), name
        np.testing.assert_array_equal(layer["bias"], 0)


# ---------------------------------------------------------------------------- the registry


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet81", {}, "unknown model 'resnet81'. Did you mean 'resnet18'?"),
        ("lenet", {}, "Did you mean 'lenet5'? `python -m jaxcls.models` lists"),
        ("xyz", {}, "unknown model 'xyz'. `python -m jaxcls.models` lists all"),
        (
            "resnet18",
            {"widht": 3},
            "model 'resnet18' has no option 'widht'. Did you mean 'width'?",
        ),
        (
            "lenet5",
            {"stem": "small"},
            "has no option 'stem'. Its options: head_init, dtype.",
        ),
    ],
)
@pytest.mark.usefixtures("only_ours")
def test_unknown_names_are_errors_that_suggest(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        create_model(name, num_classes=10, **options)
    assert said in str(error.value)


def test_no_classes_are_an_error() -> None:
    with pytest.raises(UserError, match="num_classes must be 1 or more, not 0"):
        create_model("lenet5", num_classes=0)


@pytest.mark.parametrize("stem", ["imgenet", "Small", None])
def test_an_unknown_stem_is_an_error(stem: Any) -> None:
    with pytest.raises(UserError, match=f"'imagenet' or 'small', not {stem!r}"):
        shapes("resnet18", (32, 32, 3), stem=stem)


def test_options_are_those_of_the_network() -> None:
    assert model_options("lenet5") == ["head_init", "dtype"]
    assert set(model_options("resnet18")) == {
        "stage_sizes",
        "block",
        "shortcut",
        "groups",
        "group_width",
        "stem",
        "width",
        "dropout",
        "drop_path",
        "bn_group",
        "remat",
        "head_init",
        "dtype",
    }


def test_lenet5_names_the_size_it_takes() -> None:
    with pytest.raises(
        UserError, match=r"images of 32x32, not 28x30.*Resize\(size=32\)"
    ):
        shapes("lenet5", (28, 30, 1))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Model(name="resnet81"), "Did you mean 'resnet18'?"),
        (Model(name="resnet18", width=0), "model.width must lie in 1..65536, not 0."),
        (
            Model(name="resnet18", width=65537),
            "model.width must lie in 1..65536, not 65537.",
        ),
        (
            Model(name="resnet18", bn_group=-2),
            "model.bn_group must lie in 1..65536, not -2.",
        ),
        (
            Model(name="resnet18", bn_group=65537),
            "model.bn_group must lie in 1..65536, not 65537.",
        ),
        (
            Model(name="resnet18", head_init=-0.5),
            "model.head_init must lie in 0..1000000, not -0.5.",
        ),
        (Model(name="lenet5", width=8), "model 'lenet5' has no option 'width'"),
    ],
)
@pytest.mark.usefixtures("only_ours")
def test_a_configs_model_is_validated(model: Model, said: str) -> None:
    with pytest.raises(UserError) as error:
        check(model, "model")
    assert said in str(error.value)


def test_a_configs_model_passes_its_options_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model(name="resnet18", stem="small", width=3, bn_group=4, dtype="bfloat16")
    check(model)
    created: Any = model.create(num_classes=7)
    found = {
        key: getattr(created, key)
        for key in ("num_classes", "stem", "width", "bn_group", "dtype")
    }
    assert found == {
        "num_classes": 7,
        "stem": "small",
        "width": 3,
        "bn_group": 4,
        "dtype": jnp.bfloat16,
    }
    # What is None keeps the network's default.
    default: Any = Model(name="resnet18").create(num_classes=7)
    assert default == create_model(
        "resnet18", num_classes=7, dtype=jnp.dtype("float32")
    )
    check(Model(name="lenet5"))
    assert Model(name="lenet5", head_init=0.0).create(num_classes=7).head_init == 0
    # What asks for nothing asks it also of networks that lack the option.
    monkeypatch.setitem(MODELS, "plain", lambda num_classes, dtype: dtype)
    assert Model(name="plain").create(num_classes=7) == jnp.dtype("float32")
    with pytest.raises(UserError, match="'plain' has no option 'head_init'"):
        check(Model(name="plain", head_init="zero"))


@pytest.mark.parametrize(
    ("dtype", "platform", "expected"),
    [
        (None, "cpu", "float32"),
        (None, "gpu", "bfloat16"),
        (None, "tpu", "bfloat16"),
        ("float32", "tpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
    ],
)
def test_the_platform_decides_a_dtype_that_is_not_given(
    dtype: Any, platform: str, expected: str
) -> None:
    model: Any = Model(name="lenet5", dtype=dtype).create(10, platform)
    assert model.dtype == jnp.dtype(expected)


def test_a_config_is_checked_before_jax_starts() -> None:
    """What JAX computes on is settled by its first use; a check must not be that."""
    code = (
        "from jaxcls.models import Model; from jaxcls.options import check;"
        "check(Model(name='resnet18', head_init=0.1));"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
