"""A run that begins with weights: a file's, published ones, another run's."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxcls import config as config_lib
from jaxcls.augment import Normalize, Resize
from jaxcls.config import Config
from jaxcls.data import Digits
from jaxcls.duration import steps
from jaxcls.errors import UserError
from jaxcls.inference.trained import Trained, check_teaches, load_trained
from jaxcls.models import MODELS, Model, create_model
from jaxcls.models.efficientnet import EfficientNet
from jaxcls.models.weights.pretrained import fit, to_torch
from jaxcls.optim import EMA, SGD
from jaxcls.parallel import make_mesh, replicated
from jaxcls.train import train
from jaxcls.training.program import Program
from jaxcls.training.state import TrainState, create_state
from jaxcls.training.warm_start import warm_start
from tests import commands
from tests.recipes import narrow  # noqa: F401 (registers the network)

NARROW, WIDTH = "resnet_narrow", 4
NORMALIZE = Normalize(mean=(0.5,), std=(0.25,))


def config(weights: str | None = None, name: str = NARROW, **changes: Any) -> Config:
    made = Config(
        model=Model(name=name, stem="small", width=WIDTH, weights=weights),
        data=Digits(),
        augment=(NORMALIZE,),
        eval_transform=(NORMALIZE,),
        optimizer=SGD(learning_rate=0.1),
        batch_size=16,
        duration=steps(2),
        ema=EMA(decay=0.5),
    )
    return dataclasses.replace(made, **changes)


def teacher(
    source: str, names: tuple[str, ...], model: str | None = None, channels: int = 1
) -> Trained:
    trained = load_trained(source, model)
    check_teaches(trained, config(), names, (8, 8, channels))
    return trained


def program(config: Config, num_classes: int = 10) -> Program:
    config_lib.validate(config)
    plan = config_lib.plan(config, 1437)
    mesh = make_mesh(1)
    return Program(
        config, plan, mesh=mesh, num_classes=num_classes, image_shape=(8, 8, 1)
    )


def begun(bound: Program) -> TrainState:
    """A state before the first step, with numbers of its own in place of the initial ones:
    drawing those takes a compilation a program."""
    rng = np.random.default_rng(3)

    def leaf(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        numbers = rng.normal(0, 0.1, shape.shape) if shape.ndim else np.zeros(())
        return numbers.astype(shape.dtype)

    numbers = jax.tree.map(leaf, bound.state_shapes)
    return jax.device_put(numbers, replicated(bound.mesh))


@functools.cache
def pretrained(classes: int = 1000) -> dict[str, Any]:
    """Variables of the network for three channels."""
    module = create_model(NARROW, num_classes=classes, stem="small", width=WIDTH)
    images = jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(9), images))
    rng = np.random.default_rng(9)
    return jax.tree.map(
        lambda leaf: rng.normal(0.5, 0.1, leaf.shape).astype(np.float32), dict(shapes)
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "weights.safetensors"
    save_file(to_torch(NARROW, pretrained(), stem="small", width=WIDTH), path)
    yield path


def test_a_file_is_the_start_of_a_run(file: Path) -> None:
    bound = program(config(str(file)))
    initial = begun(bound)
    state, said = warm_start(initial, bound, str(file))
    assert said[0].startswith(f"begins with the weights {file}: ")
    assert said[1:] == [
        "the head fc is new: 10 classes, not 1000",
        "conv1 is adapted from 3 channels to 1",
    ]
    source = pretrained()
    kernel = source["params"]["conv1"]["kernel"].sum(2, keepdims=True)
    np.testing.assert_allclose(state.params["conv1"]["kernel"], kernel, rtol=1e-6)
    fresh = initial.params["fc"]
    jax.tree.map(np.testing.assert_array_equal, state.params["fc"], fresh)
    block = "layer2_0"
    jax.tree.map(
        np.testing.assert_array_equal, state.params[block], source["params"][block]
    )
    # The statistics come along, and the average begins with the same weights.
    jax.tree.map(
        np.testing.assert_array_equal, state.batch_stats, source["batch_stats"]
    )
    jax.tree.map(np.testing.assert_array_equal, state.ema["params"], state.params)
    assert int(state.step) == 0
    leaves = jax.tree.leaves(state)
    assert all(leaf.committed for leaf in jax.tree.leaves(state.params))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size > 1]
    assert len(set(pointers)) == len(pointers)  # a donated state holds no buffer twice


def test_a_run_says_so_and_its_weights_start_another(
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = tmp_path / "first"
    assert train(config(str(file)), first).complete
    text = capsys.readouterr().out
    assert f"begins with the weights {file}" in text
    assert "the head fc is new: 10 classes, not 1000" in text
    # Complete: nothing is read again, the file may be gone.
    file.unlink()
    assert train(config(str(file)), first).complete

    bound = program(config(str(first)))
    initial = begun(bound)
    state, said = warm_start(initial, bound, str(first))
    assert len(said) == 2
    assert said[0].startswith(f"the averaged weights of step 2 in {first}")
    # The averaged weights of the run, head included: the classes are the same.
    saved = commands.arrays(first / "checkpoints" / "2")
    for leaf in ("kernel", "bias"):
        np.testing.assert_array_equal(
            state.params["fc"][leaf], saved[f"ema/params/fc/{leaf}"]
        )
    assert (saved["ema/params/fc/kernel"] != saved["params/fc/kernel"]).any()
    ten = program(config(str(first)), num_classes=3)
    _, said = warm_start(begun(ten), ten, str(first))
    assert said[2:] == ["the head fc is new: 3 classes, not 10"]
    # As many classes, but others: their head is new, too.
    names = tuple("0123456789")
    bound = program(config(str(first)))
    same, said = warm_start(begun(bound), bound, str(first), names)
    np.testing.assert_array_equal(
        same.params["fc"]["kernel"], state.params["fc"]["kernel"]
    )
    assert len(said) == 2
    other, said = warm_start(begun(bound), bound, str(first), names[::-1])
    assert said[2:] == ["the head fc is new: 10 classes, not the 10 that it told apart"]
    jax.tree.map(
        np.testing.assert_array_equal, other.params["fc"], initial.params["fc"]
    )
    # It teaches, if its classes are the data's.
    digits = tuple("0123456789")
    taught = teacher(str(first), digits)
    assert taught.source == said[0].rstrip(":")
    jax.tree.map(
        np.testing.assert_array_equal, taught.variables["params"], dict(state.params)
    )
    on_gpu: Any = load_trained(str(first), None, platform="gpu").model
    assert on_gpu.dtype == jnp.bfloat16
    exchanged = ("0", "2", "1", *digits[3:])
    with pytest.raises(
        UserError, match=r"class 1 is '1' for the teacher .* and '2' in"
    ):
        teacher(str(first), exchanged)
    with pytest.raises(UserError, match="tells 10 classes apart, the data has 9"):
        teacher(str(first), digits[:9])
    with pytest.raises(UserError, match="are of resnet_narrow, not of resnet50"):
        load_trained(str(first), "resnet50")
    # The images of the run that begins with them may be of another size.
    larger = config(str(first), augment=(Resize(size=12), NORMALIZE))
    larger.eval_transform = larger.augment
    bound = program(larger)
    again, _ = warm_start(begun(bound), bound, str(first))
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    imagenet = config(str(first))
    imagenet.model.stem = "imagenet"
    bound = program(imagenet)
    with pytest.raises(UserError, match=r"model\.stem='small', not 'imagenet'"):
        warm_start(begun(bound), bound, str(first))
    monkeypatch.setitem(MODELS, "resnet18", MODELS[NARROW])  # it is about the name
    other = config(str(first), model=Model(name="resnet18", stem="small", width=WIDTH))
    bound = program(other)
    with pytest.raises(UserError, match="are of resnet_narrow, not of resnet18"):
        warm_start(begun(bound), bound, str(first))


def test_a_new_head_starts_as_it_is_told(file: Path) -> None:
    factors: dict[Any, float] = {"default": 1.0, "zero": 0.0, 0.5: 0.5}
    bounds = {}
    for head_init in factors:
        told = config(str(file))
        told.model.head_init = head_init
        bounds[head_init] = program(told)

    @jax.jit
    def initial_heads() -> Any:
        """All in one program, of which nothing but the heads is compiled."""
        return [
            create_state(bound.model, bound.optimizer, (1, 8, 8, 1), 0, False).params[
                "fc"
            ]
            for bound in bounds.values()
        ]

    heads = dict(zip(bounds, jax.device_get(initial_heads()), strict=True))
    default = heads["default"]
    assert np.abs(default["kernel"]).max() > 0
    for head_init, bound in bounds.items():
        initial = begun(bound)
        initial = initial.replace(params={**initial.params, "fc": heads[head_init]})
        state, said = warm_start(initial, bound, str(file))
        assert "the head fc is new: 10 classes, not 1000" in said
        for leaf in ("kernel", "bias"):
            # Half of it is rounded otherwise, where the program is not optimised.
            np.testing.assert_allclose(
                state.params["fc"][leaf],
                factors[head_init] * default[leaf],
                rtol=1e-5,
                err_msg=f"head_init {head_init}: {leaf}",
            )
        # Nothing else is new.
        source = pretrained()["params"]["layer2_0"]
        jax.tree.map(np.testing.assert_array_equal, state.params["layer2_0"], source)


def test_a_head_that_fits_is_not_new(tmp_path: Path) -> None:
    path = tmp_path / "ten.safetensors"
    save_file(to_torch(NARROW, pretrained(10), stem="small", width=WIDTH), path)
    told = config(str(path))
    told.model.head_init = "zero"
    bound = program(told)
    state, _ = warm_start(begun(bound), bound, str(path))
    jax.tree.map(
        np.testing.assert_array_equal,
        state.params["fc"],
        pretrained(10)["params"]["fc"],
    )


@pytest.mark.parametrize(
    ("name", "options", "sides"),
    [
        # Their dense layers take maps that are averaged to one size.
        ("alexnet", {}, (63, 127)),
        ("vgg11", {"width": 2}, (32, 64)),
        ("vgg11", {"width": 2, "stem": "small"}, (32, 64)),
        ("resnet18", {"width": 2}, (32, 64)),
        ("inception_v3", {}, (75, 107)),
    ],
)
def test_weights_of_one_size_of_images_serve_another(
    name: str, options: dict[str, Any], sides: tuple[int, int]
) -> None:
    module = create_model(name, num_classes=3, **options)

    def of_size(side: int, value: float) -> dict[str, Any]:
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        made = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), images)
        # One number, seen as an array of this shape: no memory.
        number = np.float32(value)
        return jax.tree.map(
            lambda leaf: np.broadcast_to(number, leaf.shape), dict(made)
        )

    small, large = of_size(sides[0], 1), of_size(sides[1], 2)
    fitted, said = fit(module, small, large)
    assert said == []
    assert all(leaf.flat[0] == 1 for leaf in jax.tree.leaves(fitted))


def test_a_file_teaches_if_its_network_is_named(file: Path) -> None:
    trained = load_trained(str(file), NARROW, platform="tpu", stem="small", width=WIDTH)
    module: Any = trained.model
    assert (module.num_classes, module.width, module.stem) == (1000, WIDTH, "small")
    assert module.dtype == jnp.bfloat16 and trained.class_names is None
    jax.tree.map(np.testing.assert_array_equal, trained.variables, pretrained())
    with pytest.raises(UserError, match="does not say what network its weights are of"):
        load_trained(str(file), None)
    with pytest.raises(UserError, match="there is no file or folder"):
        load_trained(f"{file}.not", NARROW)


def test_published_weights_teach_with_their_constants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "timm/tf_efficientnet_b0.in1k"
    small = functools.partial(EfficientNet, width_factor=0.1, depth_factor=0.1)
    monkeypatch.setitem(MODELS, "efficientnet_b0", small)
    module = small(num_classes=1000)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(shapes))
    path = tmp_path / "published.safetensors"
    save_file(to_torch("efficientnet_b0", zeros, dialect="timm"), path)
    monkeypatch.setattr("jaxcls.models.weights.pretrained.fetch", lambda weights: path)
    thousand = tuple(map(str, range(1000)))
    for given in (None, "efficientnet_b0"):
        taught: Any = teacher(name, thousand, given, 3)
        assert (taught.model.padding, taught.model.bn_epsilon) == ("same", 1e-3)
        assert set(taught.variables["params"]) == set(zeros["params"])
    with pytest.raises(UserError, match="tells 1000 classes apart, the data has 10:"):
        teacher(name, thousand[:10])
    with pytest.raises(UserError, match="are of efficientnet_b0, not of resnet18"):
        teacher(name, thousand, "resnet18")


def test_weights_that_cannot_be_had_are_an_error(tmp_path: Path) -> None:
    bound = program(config())
    state = begun(bound)
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        warm_start(state, bound, str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(UserError, match=r"Did you mean 'timm/resnet18\.a1_in1k'"):
        warm_start(state, bound, "resnet18.a1_in1k")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(UserError, match=r"torn\.safetensors"):
        warm_start(state, bound, str(torn))
    with pytest.raises(UserError, match="has no checkpoint"):
        warm_start(state, bound, str(tmp_path))
    for name, said in (
        ("timm/resnet18.a1_in2k", "Did you mean 'timm/resnet18.a1_in1k'"),
        ("torchvision/resnet50:v2", "are weights of resnet50, not of resnet18"),
    ):
        with pytest.raises(UserError, match=said):
            config_lib.validate(config(name, "resnet18"))


def test_a_recipe_that_feeds_weights_otherwise_is_told(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Published weights, of which only the download is replaced.
    monkeypatch.setattr("jaxcls.models.weights.pretrained.fetch", lambda weights: file)
    monkeypatch.setattr(
        "jaxcls.models.weights.pretrained.check_torch", lambda *args: None
    )
    name = "timm/resnet18.a1_in1k"
    # The note alone is of interest: the tensors are another network's.
    monkeypatch.setitem(MODELS, "resnet18", MODELS[NARROW])
    bound = program(config(name, "resnet18"))
    _, said = warm_start(begun(bound), bound, name)
    assert said[-1].startswith(
        "note: these weights were trained with Normalize(mean=(0.485"
    )
    normalize = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    same = config(name, "resnet18", eval_transform=(normalize,), augment=(normalize,))
    config_lib.validate(same)
    bound.config = same
    _, said = warm_start(begun(bound), bound, name)
    notes = [line for line in said if line.startswith("note")]
    assert len(notes) == 1 and "trained with model.stem='imagenet'" in notes[0]
