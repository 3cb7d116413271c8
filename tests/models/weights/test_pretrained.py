"""State dicts to variables and back, and weights that meet another network."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import UserError
from jaxcls.models import create_model
from jaxcls.models.weights import pretrained
from jaxcls.models.weights.pretrained import (
    COUNTER,
    adapt_channels,
    fit,
    from_torch,
    tensors,
    to_torch,
)

StateDict = dict[str, np.ndarray]


# A network of each kind of layer, small enough to fill with numbers.
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 8},
    "resnet50": {"width": 4, "stage_sizes": (1, 1)},
    "vgg11_bn": {"width": 2},
    "googlenet": {},
    "efficientnet_b0": {"width_factor": 0.1, "depth_factor": 0.3},
    "efficientnet_v2_s": {"width_factor": 0.1, "depth_factor": 0.1},
    "convnext_tiny": {"width": 4, "depths": (1, 1, 1, 1)},
}


@functools.cache
def numbered(name: str, dialect: Any = "torchvision", channels: int = 3) -> StateDict:
    """A state dict whose values are all different: each tells where it came from."""
    module = create_model(name, num_classes=7, **SMALL[name])
    state_dict: StateDict = {}
    start = 0
    for tensor in tensors(module, dialect, channels):
        size = int(np.prod(tensor.torch_shape))
        values = np.arange(start, start + size, dtype=np.float32)
        state_dict[tensor.key] = values.reshape(tensor.torch_shape)
        start += size
    return state_dict


@pytest.mark.parametrize("dialect", ["torchvision", "timm"])
@pytest.mark.parametrize("name", SMALL)
def test_there_and_back_is_the_same(name: str, dialect: Any) -> None:
    if (name, dialect) == ("googlenet", "timm"):
        with pytest.raises(UserError, match="timm has no counterpart of GoogLeNet"):
            numbered(name, dialect)
        return
    state_dict = numbered(name, dialect)
    variables = from_torch(name, state_dict, **SMALL[name])
    # Every value arrives once: none twice, none lost.
    values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(variables)])
    np.testing.assert_array_equal(np.sort(values), np.arange(len(values)))
    back = to_torch(name, variables, dialect=dialect, **SMALL[name])
    counters = {key for key in back if key.endswith(COUNTER)}
    assert {back[key].dtype for key in counters} <= {np.dtype("int64")}
    assert set(back) - counters == set(state_dict)
    for key, value in state_dict.items():
        np.testing.assert_array_equal(back[key], value)
    # With torch's counters too, which a file of torch's has.
    again = from_torch(name, back, **SMALL[name])
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_layouts_are_those_of_torch() -> None:
    state_dict = numbered("vgg11_bn")
    params = from_torch("vgg11_bn", state_dict, **SMALL["vgg11_bn"])["params"]
    kernel = state_dict["features.0.weight"]  # [out, in, height, width]
    np.testing.assert_array_equal(
        params["stage1"]["conv1"]["kernel"][0, 2, 1, 1], kernel[1, 1, 0, 2]
    )
    # The first dense layer sees maps flattened channels first there, channels last here.
    maps = np.random.default_rng(0).normal(size=(2, 7, 7, 16))  # float64
    there = (
        maps.transpose(0, 3, 1, 2).reshape(2, -1) @ state_dict["classifier.0.weight"].T
    )
    here = maps.reshape(2, -1) @ params["fc6"]["kernel"]
    np.testing.assert_allclose(here, there, rtol=1e-9)
    np.testing.assert_array_equal(
        params["fc8"]["kernel"], state_dict["classifier.6.weight"].T
    )


def changed(state_dict: StateDict, **changes: Any) -> StateDict:
    result = {**state_dict, **changes}
    return {key: value for key, value in result.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer1.0.conv1.weight": None}, r"1 missing \(layer1.0.conv1.weight\)"),
        ({"extra.weight": np.zeros(3)}, r"1 left over \(extra.weight\)"),
        (
            {"bn1.bias": np.zeros(9, np.float32)},
            r"bn1.bias is \[9\], expected \[8\]",
        ),
        ({"fc.weight": None}, "missing .*fc.weight"),
        (
            {"conv1.weight": np.zeros((8, 27), np.float32)},
            "not the weights of resnet18",
        ),
        ({"fc.num_batches_tracked": np.zeros(())}, "left over"),
        (
            # Not only as counters left over, of which another network has many.
            {"fc.weight": None, "x.num_batches_tracked": np.zeros(())},
            r": 1 missing \(fc.weight\)\.",
        ),
        (
            {"conv1.weight": np.zeros((8, 0, 7, 7), np.float32)},
            r"conv1.weight is \[8, 0, 7, 7\], expected \[8, 3, 7, 7\]",
        ),
        ({"conv1.weight": np.zeros(8, np.float32)}, r"conv1.weight is \[8\], expected"),
        ({"bn1.running_var": np.float32([-1] * 8)}, "variance below zero"),
        ({"bn1.weight": np.ones(8, np.int32)}, "bn1.weight .* holds int32, not floats"),
        ({"bn1.weight": np.ones(8, np.complex64)}, "holds complex64, not floats"),
    ],
)
def test_a_tensor_too_many_or_few_or_large_is_named(
    changes: dict[str, Any], said: str
) -> None:
    state_dict = changed(numbered("resnet18"), **changes)
    with pytest.raises(UserError, match=said):
        from_torch("resnet18", state_dict, **SMALL["resnet18"])


def test_weights_of_another_network_are_an_error() -> None:
    with pytest.raises(UserError, match="these are not the weights of vgg11"):
        from_torch("vgg11", numbered("resnet18"))
    with pytest.raises(UserError, match="these are not the weights of resnet18"):
        from_torch("resnet18", {})
    # ResNet-50's keys contain ResNet-18's: the shapes tell.
    with pytest.raises(UserError, match="these are not the weights of resnet18"):
        from_torch("resnet18", numbered("resnet50"), width=4)
    with pytest.raises(UserError, match="these are not the variables of resnet50"):
        variables = from_torch("resnet18", numbered("resnet18"), **SMALL["resnet18"])
        to_torch("resnet50", variables)
    with pytest.raises(UserError, match="torchvision has no counterpart of LeNet5"):
        from_torch("lenet5", numbered("resnet18"))


def test_classes_channels_and_heads_are_those_of_the_state_dict() -> None:
    variables = from_torch(
        "resnet18", numbered("resnet18", channels=5), **SMALL["resnet18"]
    )
    assert variables["params"]["fc"]["kernel"].shape == (64, 7)
    assert variables["params"]["conv1"]["kernel"].shape == (7, 7, 5, 8)
    without = {
        key: value
        for key, value in numbered("googlenet").items()
        if not key.startswith("aux")
    }
    assert "aux1" not in from_torch("googlenet", without)["params"]
    # What the caller says of their loss does not matter: the state dict decides.
    assert "aux1" not in from_torch("googlenet", without, aux_weight=0.5)["params"]
    with_heads = numbered("googlenet")
    for options in ({}, {"aux_weight": 0.0}, {"aux_weight": 0.5}):
        variables = from_torch("googlenet", with_heads, **options)
        assert "aux1" in variables["params"]
        assert with_heads.keys() <= to_torch("googlenet", variables, **options).keys()


# Another network


def initial(name: str, classes: int, channels: int = 3, **options: Any) -> Any:
    module = create_model(name, num_classes=classes, **SMALL[name], **options)
    images = jnp.zeros((1, 64, 64, channels))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images))
    # Values that no weight above has.
    return module, jax.tree.map(lambda leaf: np.full(leaf.shape, -1.0), dict(variables))


def test_other_classes_get_a_new_head_and_nothing_else() -> None:
    loaded = from_torch("resnet18", numbered("resnet18"), **SMALL["resnet18"])
    module, target = initial("resnet18", classes=3)
    fitted, said = fit(module, loaded, target)
    assert said == ["the head fc is new: 3 classes, not 7"]
    np.testing.assert_array_equal(fitted["params"]["fc"]["kernel"], -np.ones((64, 3)))
    np.testing.assert_array_equal(fitted["params"]["fc"]["bias"], -np.ones(3))
    for tree in (fitted, loaded):
        tree["params"] = {k: v for k, v in tree["params"].items() if k != "fc"}
    jax.tree.map(np.testing.assert_array_equal, fitted, loaded)


def test_the_same_classes_keep_the_head() -> None:
    loaded = from_torch("resnet18", numbered("resnet18"), **SMALL["resnet18"])
    module, target = initial("resnet18", classes=7)
    fitted, said = fit(module, loaded, target)
    assert said == []
    jax.tree.map(np.testing.assert_array_equal, fitted, loaded)


def test_other_channels_adapt_the_first_kernel() -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)
    # Grey images: what three equal channels would have given.
    grey = adapt_channels(kernel, 1)
    np.testing.assert_allclose(grey[:, :, 0], kernel.sum(2), rtol=1e-6)
    # Five channels of one value: the same sum as of three of it.
    five = adapt_channels(kernel, 5)
    assert five.shape == (3, 3, 5, 4)
    np.testing.assert_allclose(five[:, :, 3], kernel[:, :, 0] * 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(five[:, :, 2], kernel[:, :, 2] * 3 / 5, rtol=1e-6)
    six = adapt_channels(kernel, 6)
    np.testing.assert_allclose(six.sum(2), kernel.sum(2), rtol=1e-5, atol=1e-6)
    loaded = from_torch("resnet18", numbered("resnet18"), **SMALL["resnet18"])
    module, target = initial("resnet18", classes=7, channels=1)
    fitted, said = fit(module, loaded, target)
    assert said == ["conv1 is adapted from 3 channels to 1"]
    np.testing.assert_array_equal(
        fitted["params"]["conv1"]["kernel"],
        loaded["params"]["conv1"]["kernel"].sum(2, keepdims=True),
    )


def test_auxiliary_heads_come_and_go() -> None:
    with_heads = from_torch("googlenet", numbered("googlenet"))
    module, target = initial("googlenet", classes=3)
    fitted, said = fit(module, with_heads, target)
    assert said == [
        f"the head {head} is new: 3 classes, not 7"
        for head in ("fc", "aux1/fc2", "aux2/fc2")
    ]
    assert fitted["params"]["aux1"]["fc1"]["kernel"].max() > 0
    plain, target = initial("googlenet", classes=7, aux_weight=0.0)
    fitted, said = fit(plain, with_heads, target)
    assert said == [f"the auxiliary head aux{i} is left out" for i in (1, 2)]
    assert "aux1" not in fitted["params"] and "aux1" not in fitted["batch_stats"]
    module, target = initial("googlenet", classes=7)
    fitted, said = fit(module, fitted, target)
    assert said == [
        f"the auxiliary head aux{i} is new: the weights have none" for i in (1, 2)
    ]
    assert (fitted["batch_stats"]["aux2"]["conv"]["bn"]["mean"] == -1).all()


def test_anything_else_that_differs_is_an_error() -> None:
    loaded = from_torch("resnet18", numbered("resnet18"), **SMALL["resnet18"])
    module, target = initial("resnet18", classes=7, stem="small")
    with pytest.raises(UserError, match=r"of another shape .*conv1/kernel"):
        fit(module, loaded, target)
    module, target = initial("convnext_tiny", classes=7)
    with pytest.raises(UserError, match="the weights do not fit the network"):
        fit(module, loaded, target)


def test_loading_a_file(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "weights.safetensors"
    save_file(numbered("resnet18"), path)
    variables = pretrained.load_variables(str(path), "resnet18", **SMALL["resnet18"])
    expected = from_torch("resnet18", numbered("resnet18"), **SMALL["resnet18"])
    jax.tree.map(np.testing.assert_array_equal, variables, expected)
    with pytest.raises(UserError, match="are of resnet50, not of resnet18"):
        pretrained.load_variables("timm/resnet50.a1_in1k", "resnet18")
    with pytest.raises(UserError, match=r"Did you mean 'timm/resnet50\.a1"):
        pretrained.load_variables("timm/resnet50.a1_in1", "resnet50")


def test_a_file_of_other_classes_is_not_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "cached.safetensors"
    save_file(numbered("resnet18"), path)
    monkeypatch.setattr(pretrained, "fetch", lambda weights: path)
    with pytest.raises(UserError, match=r"cached.*have 7 classes, not 1000.*sha256"):
        pretrained.load_variables(
            "timm/resnet18.a1_in1k", "resnet18", **SMALL["resnet18"]
        )
    with pytest.raises(UserError, match=r"cached.* is not that of timm/resnet34"):
        pretrained.load_variables("timm/resnet34.a1_in1k", "resnet34")
