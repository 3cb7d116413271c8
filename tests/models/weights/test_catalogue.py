"""The table of published weights: what its rows promise, and what find_weights says."""

import dataclasses
import inspect
import re

import numpy as np
import pytest

from jaxcls.errors import UserError
from jaxcls.models import MODELS, create_model
from jaxcls.models.weights.catalogue import WEIGHTS, find_weights

SETS = list(WEIGHTS.values())
TIMM = [weights for weights in SETS if weights.name.startswith("timm/")]
TORCHVISION = [weights for weights in SETS if weights.name.startswith("torchvision/")]


def test_options_are_those_of_the_network_and_not_its_defaults() -> None:
    for weights in SETS:
        known = inspect.signature(MODELS[weights.model]).parameters
        for option, value in weights.options.items():
            assert known[option].default != value, f"{weights.name}: {option}"


def test_the_networks_have_the_epsilon_that_their_weights_need() -> None:
    """What the options say is right only together with the networks' defaults: the sums are
    those that torchvision and timm add to the variance."""
    for weights in SETS:
        if not weights.model.startswith("efficientnet"):
            assert not weights.options
            continue
        module = create_model(weights.model, num_classes=1, **weights.options)
        _, _, name = weights.name.partition("/")
        if name.startswith("tf_") or "_v2_" in name:
            expected = 1e-3
        elif weights in TIMM:
            expected = 1e-5
        else:
            expected = 1e-5 if weights.model[-1] in "01234" else 1e-3
        assert module.bn_epsilon == expected, weights.name
        same = "same" if name.startswith("tf_") else "symmetric"
        assert module.padding == same, weights.name


def test_sources_are_complete() -> None:
    networks = {weights.model for weights in TORCHVISION}
    assert len(networks) == 33 and len(TORCHVISION) == 39
    assert len(TIMM) == 151
    assert {weights.model for weights in TIMM} == networks - {
        "alexnet",
        "googlenet",
    } | {"convnext_xlarge"}


def test_preparation_is_possible() -> None:
    for weights in SETS:
        assert 160 <= weights.size <= weights.resize < 1.2 * weights.size, weights.name
        assert weights.interpolation in ("bilinear", "bicubic")
        assert weights.num_classes in (1000, 11821, 21841, 21843)
        if weights.num_classes != 1000:
            assert weights.top1 is None
        if weights.top1 is not None:
            assert 56 < weights.top1 < 88
        assert weights.preprocessing == {
            "resize": weights.resize,
            "size": weights.size,
            "interpolation": weights.interpolation,
            "mean": weights.mean,
            "std": weights.std,
        }


def test_known_rows() -> None:
    """Read by hand from torchvision's documentation and timm's model cards."""
    weights = find_weights("torchvision/resnet50:v2")
    assert weights.model == "resnet50" and weights.top1 == 80.858
    assert (weights.resize, weights.size) == (232, 224)
    assert weights.url == "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"
    assert weights.sha256 == "11ad3fa6"
    assert weights.twin == "timm/resnet50.tv2_in1k"
    weights = find_weights("timm/resnet50.a1_in1k")
    assert (weights.resize, weights.size, weights.top1) == (288, 288, 81.24)
    assert weights.interpolation == "bicubic"
    weights = find_weights("timm/tf_efficientnet_b1.ap_in1k")  # floor(240 / 0.882)
    assert (weights.model, weights.resize, weights.size) == (
        "efficientnet_b1",
        272,
        240,
    )
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)
    assert weights.options == {"bn_epsilon": 1e-3, "padding": "same"}


@pytest.mark.parametrize("model", ["googlenet", "inception_v3"])
def test_input_transform_is_part_of_the_preparation(model: str) -> None:
    """torchvision normalises images with ImageNet's statistics and then, inside these two
    networks, multiplies by std / 0.5 and adds (mean - 0.5) / 0.5: ours have no such layer."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    pixels = np.random.default_rng(0).random((10, 3))
    theirs = (pixels - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
    weights = find_weights(f"torchvision/{model}:v1")
    ours = (pixels - np.array(weights.mean)) / np.array(weights.std)
    np.testing.assert_allclose(ours, theirs, atol=1e-15)


def test_squeezed_images_have_no_accuracy() -> None:
    """Their accuracy was measured on images squeezed to a square, which we do not do."""
    for name in ("convnext_base.fb_in22k_ft_in1k_384", "tf_efficientnetv2_m.in1k"):
        assert find_weights(f"timm/{name}").top1 is None
    assert find_weights("timm/tf_efficientnetv2_s.in1k").top1 == 83.9  # not squeezed


def test_hashes_and_twins() -> None:
    for weights in TORCHVISION:
        assert re.fullmatch("[0-9a-f]{8}", weights.sha256), weights.name
        if weights.twin:
            twin = find_weights(weights.twin)
            assert twin.url.endswith(".safetensors")
            assert (twin.model, twin.num_classes) == (weights.model, 1000)
            assert abs(twin.top1 - weights.top1) < 0.2  # another preparation at most
    for weights in TIMM:
        assert (weights.sha256, weights.twin, weights.file) == ("", "", "")
    assert len({weights.url for weights in SETS}) == len(SETS)
    assert len({weights.twin for weights in TORCHVISION if weights.twin}) == 21


def test_class_names() -> None:
    names = find_weights("torchvision/alexnet:v1").class_names
    assert names is not None and len(set(names)) == 1000
    # Places in ImageNet's order of WordNet identifiers, n01440764 first.
    assert (names[0], names[1], names[999]) == ("tench", "goldfish", "toilet tissue")
    assert names[281] == "tabby" and names[207] == "golden retriever"
    assert find_weights("timm/resnet50.a1_in1k").class_names == names
    assert find_weights("timm/convnext_tiny.fb_in22k").class_names is None


def test_another_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = find_weights("timm/resnet18.a1_in1k")
    path = "timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert weights.url == f"https://huggingface.co/{path}"
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example/mirror/")
    assert weights.url == f"https://hub.example/mirror/{path}"
    assert "example" not in find_weights("torchvision/resnet18:v1").url


@pytest.mark.parametrize(
    ("name", "listed", "not_listed"),
    [
        ("resnet50", ["torchvision/resnet50:v1", "timm/resnet50.a1_in1k"], "resnet101"),
        ("torchvision/resnet50", ["torchvision/resnet50:v2"], "timm/"),
        ("torchvision/resnet50:v3", ["torchvision/resnet50:v2"], "timm/"),
        ("timm/resnet50", ["timm/resnet50.tv_in1k"], "torchvision/"),
        ("timm/tf_efficientnet_b0", ["timm/tf_efficientnet_b0.in1k"], ".ra_in1k"),
        ("efficientnet_v2_s", ["timm/tf_efficientnetv2_s.in1k", ":v1"], "_m"),
        ("timm/resnet50.a1_in1", ["Did you mean 'timm/resnet50.a1_in1k'?"], "vision/"),
        ("torchvison/vgg16:v1", ["Did you mean 'torchvision/vgg16:v1'?"], ".."),
        ("", ["torchvision/resnet50:v2", "convnext_xlarge"], "Did you mean"),
    ],
)
def test_unknown_names(name: str, listed: list[str], not_listed: str) -> None:
    with pytest.raises(UserError) as error:
        find_weights(name)
    message = str(error.value)
    assert f"there are no weights '{name}'" in message
    assert all(text in message for text in listed), message
    assert not_listed not in message


def test_a_set_cannot_be_changed() -> None:
    weights = find_weights("torchvision/resnet50:v2")
    with pytest.raises(dataclasses.FrozenInstanceError):
        weights.model = "vgg16"  # type: ignore[misc]
    assert len({weights, find_weights("torchvision/resnet50:v1")}) == 2
