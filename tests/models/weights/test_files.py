"""State dicts from files: every tensor of a file or a sentence, and no code that a file names."""

import argparse
import collections
import importlib.metadata
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxcls.errors import UserError
from jaxcls.models.weights.files import check_torch, read_state_dict

VALUES = np.array([[0.5, -2.0, 3.25], [1e-3, 65000.0, -0.0]])


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file(arrays, path)
    return path


def failure(path: Path) -> str:
    """The sentence that says why a file cannot be read; it always names the file."""
    with pytest.raises(UserError) as error:
        read_state_dict(path)
    message = str(error.value)
    assert message.count(str(path)) == 1 and "\n" not in message
    return message


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
)
def test_floats_become_float32(tmp_path: Path, dtype: Any) -> None:
    values = VALUES.astype(dtype)
    arrays = read_state_dict(write(tmp_path / "a.safetensors", {"w": values}))
    assert list(arrays) == ["w"] and arrays["w"].dtype == np.float32
    np.testing.assert_array_equal(arrays["w"], values.astype(np.float32))


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    """Written here byte by byte, as the format says."""
    words = np.array([0x3F80, 0xC040, 0x4049], "<u2")  # 1, -3 and nearly pi
    header = {"w": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + words.tobytes())
    np.testing.assert_array_equal(
        read_state_dict(path)["w"], np.float32([1, -3, 3.140625])
    )


def test_whole_numbers_and_shapes_stay(tmp_path: Path) -> None:
    arrays = {
        "steps": np.array(2**40),
        "flags": np.array([True, False]),
        "bytes": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        "nothing": np.zeros((0, 4), np.float32),
    }
    found = read_state_dict(str(write(tmp_path / "a.safetensors", arrays)))
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_a_prefix_that_all_share_is_taken_off(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    all_of_them = write(tmp_path / "a.safetensors", {"module.a": one, "module.b": one})
    assert set(read_state_dict(all_of_them)) == {"a", "b"}
    some = write(tmp_path / "b.safetensors", {"module.a": one, "b": one})
    assert set(read_state_dict(some)) == {"module.a", "b"}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    """1e300 is finite as float64, but not as the float32 that it becomes."""
    arrays = {"good": VALUES, "layer4.0.conv1.weight": np.array([1.0, bad])}
    message = failure(write(tmp_path / "a.safetensors", arrays))
    assert "'layer4.0.conv1.weight'" in message and "not finite" in message


def test_damaged_safetensors(tmp_path: Path) -> None:
    """Cut anywhere, or with more after the end."""
    whole = write(tmp_path / "a.safetensors", {"w": VALUES, "b": VALUES}).read_bytes()
    path = tmp_path / "b.safetensors"
    for length in (0, 1, 7, 8, 9, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut short: get it again" in failure(path)
    path.write_bytes(whole + b"more")
    failure(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    failure(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_no_file(tmp_path: Path, suffix: str) -> None:
    assert "there is no file" in failure(tmp_path / f"missing{suffix}")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert "is not a file" in failure(folder)


def test_another_kind_of_file(tmp_path: Path) -> None:
    for name in ("a.npz", "a.ckpt", "weights", "safetensors", "a.pth.zip"):
        (tmp_path / name).write_bytes(b"")
        message = failure(tmp_path / name)
        assert ".safetensors" in message and ".pth.tar" in message


def test_no_tensors(tmp_path: Path) -> None:
    assert "no tensors" in failure(write(tmp_path / "a.safetensors", {}))


@pytest.mark.parametrize(
    ("version", "good"),
    [
        (None, False),
        ("2.5.1", False),
        ("2.9.1+cu128", False),
        ("1.13", False),
        ("2.10.0", True),
        ("2.13.0+cpu", True),
        ("2.10.0a0+git1234", True),
        ("3.0", True),
    ],
)
def test_pytorch_files_need_a_safe_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None, good: bool
) -> None:
    def installed(name: str) -> str:
        assert name == "torch"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    if good:
        check_torch("weights.pth")
        return
    path = tmp_path / "a.pth"
    path.write_bytes(b"never read")
    for message in (failure(path), refusal(path)):
        assert 'pip install "jaxcls[torch]"' in message
        assert "PyTorch is missing" in message or str(version) in message
    assert "take timm/resnet50.tv_in1k" in refusal(path)
    assert "take a .safetensors file" in failure(path)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        check_torch(str(path), "timm/resnet50.tv_in1k")
    return str(error.value)


class Evil:
    """Pickled, it is a call that makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content: Any, path: Path, zipped: bool) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_pytorch_tensors(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        "half": torch.tensor(VALUES).to(torch.bfloat16),
        "double": torch.tensor(VALUES),
        "turned": torch.tensor(VALUES).T,
        "learned": torch.nn.Parameter(torch.ones(2)),
        "steps": torch.tensor(7),
    }
    for content in (tensors, collections.OrderedDict(tensors)):
        arrays = read_state_dict(save(content, tmp_path / "a.pth", zipped))
        assert list(arrays) == list(tensors)
        steps = arrays.pop("steps")
        assert steps == 7 and steps.dtype == np.int64
        for name, array in arrays.items():
            assert array.dtype == np.float32
            expected = np.array(tensors[name].tolist(), np.float32)
            np.testing.assert_array_equal(array, expected)


@FORMATS
@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_training_checkpoints(tmp_path: Path, zipped: bool, key: str) -> None:
    """As the reference scripts write them, with their options in a Namespace."""
    torch = pytest.importorskip("torch")
    content = {
        key: {"module.w": torch.ones(2), "module.b": torch.zeros(2)},
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(model="resnet50", sizes=[1, 2], device=None),
        "epoch": 3,
    }
    for name in ("a.pth", "a.pt", "a.bin", "a.pth.tar"):
        assert set(read_state_dict(save(content, tmp_path / name, zipped))) == {
            "w",
            "b",
        }


@FORMATS
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    proof = tmp_path / "proof"
    evil = Evil(proof)
    contents = [evil, {"w": torch.ones(2), "b": evil}, {"model": {"w": evil}}, [evil]]
    for content in contents:
        path = save(content, tmp_path / "a.pth", zipped)
        assert "it names io.open" in failure(path) and not proof.exists()
    path.write_bytes(pickle.dumps(evil))
    failure(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes()).close()
    assert proof.exists(), "the proof proves nothing"


@FORMATS
def test_what_is_not_a_state_dict(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    one = torch.ones(1)
    for content, reason in (
        (torch.nn.Linear(1, 1), "it names torch.nn.modules.linear.Linear"),
        ([one], "a list in it"),
        (one, "a Tensor in it"),
        ({"w": one, "epoch": 3}, "'epoch' with a value of type int"),
        ({1: one}, "it has 1 with"),
        ({"state_dict": {"w": [one]}}, "'w' with a value of type list"),
        ({}, "no tensors"),
        ({"model": {}}, "no tensors"),
        ({"w": one / 0}, "'w' that are not finite"),
        ({"w": torch.eye(2).to_sparse()}, "cannot be read"),
        ({"w": torch.ones(1, device="meta")}, "cannot be read"),
    ):
        assert reason in failure(save(content, tmp_path / "a.pth", zipped))


@FORMATS
def test_damaged_pytorch_files(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    path = save({"w": torch.ones(100)}, tmp_path / "a.pth", zipped)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        message = failure(path)
        assert "get it again" in message and "weights_only` set to" not in message
    path.write_bytes(b"<html>sign in</html>")
    assert "get it again" in failure(path)
