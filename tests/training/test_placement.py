"""Training images in the devices' memory: the same rows as NumPy's, and the same runs."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcls import config as config_lib
from jaxcls import parallel
from jaxcls.config import Config
from jaxcls.data import ArraySource, Digits
from jaxcls.data.encoded_images import Encoded, Images
from jaxcls.data.host_crop import HostRandomResizedCrop
from jaxcls.data.loader import EvalBatches
from jaxcls.data.sources import Split
from jaxcls.duration import steps
from jaxcls.errors import UserError
from jaxcls.inference import forward
from jaxcls.train import train
from jaxcls.training import placement
from tests import commands
from tests.programs import to_the_last_bit


def tiny(**changes: Any) -> Config:
    """Returns the tiny recipe with other values at its root."""
    config = commands.load_config(commands.RECIPES / "tiny.py")
    config = dataclasses.replace(config, **changes)
    config.log.every = steps(1)
    return config


def random_source(num_records: int) -> ArraySource:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_records, 6, 5, 3), dtype=np.uint8)
    names = tuple(map(str, range(10)))
    return ArraySource("random", images, rng.integers(0, 10, num_records), names)


def without_a_third(source: ArraySource) -> ArraySource:
    """Masks every third record and blackens it, as a source does that cannot read it."""

    def gather(
        indices: np.ndarray, row_seeds: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        mask = indices % 3 != 0
        batch = ArraySource.gather(source, indices)
        image = np.where(mask[:, None, None, None], batch["image"], 0).astype(np.uint8)
        return {**batch, "image": image, "mask": mask}

    source.gather = gather  # type: ignore[method-assign]
    return source


def placed(source: ArraySource, devices: int, batch_size: int) -> dict[str, jax.Array]:
    batches = EvalBatches(source, batch_size=batch_size)
    every = (batches[index] for index in range(len(batches)))
    mesh, shape = parallel.make_mesh(devices), source.images.shape[1:]
    shapes = placement.record_shapes(mesh, len(source), shape)
    return placement.place(every, len(source), shapes)


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_rows_are_those_of_numpy(devices: int) -> None:
    mesh = parallel.make_mesh(devices)
    source = without_a_third(random_source(101))
    records = placed(source, devices, batch_size=16)
    held = -(-101 // devices)
    for values in records.values():
        assert [len(s.data) for s in values.addressable_shards] == [held] * devices
    shapes = placement.record_shapes(mesh, 101, (6, 5, 3))
    for name, shape in shapes.items():
        assert (records[name].shape, records[name].dtype) == (shape.shape, shape.dtype)
        assert records[name].sharding == shape.sharding
    assert not np.asarray(records["mask"])[101:].any()
    # Every record, twice over, in any order; and some of one device only.
    mixed = np.random.default_rng(1).permutation(np.arange(240) % 101)
    for ids in (mixed, np.zeros(24, int), np.full(24, 100)):
        ids = ids.astype(np.int32)
        gather = jax.jit(placement.gather, static_argnums=(0, 3))
        rows = gather(mesh, records, ids, (6, 5, 3))
        expected = source.gather(ids)
        assert rows.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(rows[name], values)
            assert len(rows[name].sharding.device_set) == devices


@pytest.mark.parametrize("devices", [1, 8])
def test_at_most_a_batch_is_exchanged(devices: int) -> None:
    mesh = parallel.make_mesh(devices)
    shapes = placement.record_shapes(mesh, 10_000, (6, 5, 3))
    ids = jax.ShapeDtypeStruct((64,), np.int32, sharding=parallel.replicated(mesh))
    gather = jax.jit(placement.gather, static_argnums=(0, 3))
    program = gather.lower(mesh, shapes, ids, (6, 5, 3)).compile().as_text()
    collectives = re.findall(
        r"= \w+\[([\d,]*)\]\S* "
        r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(",
        program,
    )
    if devices == 1:
        assert not collectives
        return
    # A device's part of the sum of batches: images, labels, masks.
    assert sorted(collectives) == sorted(
        [(f"{64 // devices},90", "reduce-scatter")]
        + [(f"{64 // devices}", "reduce-scatter")] * 2
    )


def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = parallel.make_mesh(8)
    placement.check_memory(mesh, 1000, (6, 5, 3))
    with pytest.raises(
        UserError, match=r"the 1,000,000,000 training images take .* MB"
    ):
        placement.check_memory(mesh, 10**9, (64, 64, 3))

    pages = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 10**18}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)

    class Device:
        device_kind = "small card"

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 30_000_000, "bytes_in_use": 20_000_000}

    class Small:
        size = 8
        local_devices = (Device(),)

    monkeypatch.setattr(
        forward, "batch_sharded", lambda _: parallel.batch_sharded(mesh)
    )
    small: Any = Small()
    placement.check_memory(small, 800_000, (6, 5, 3))  # 9.5 of 10 MB on each
    with pytest.raises(UserError, match=r"11 MB of each small card, which has 10 MB"):
        placement.check_memory(small, 900_000, (6, 5, 3))


class WithBadDigits(Digits):
    """Digits of which every third training image cannot be read, which is not too many."""

    def source(self, split: Split) -> ArraySource:
        source = super().source(split)
        source.max_bad_share = 0.5
        return without_a_third(source) if split == "train" else source


def run(config: Config, workdir: Path, where: str) -> list[dict[str, Any]]:
    """Trains with the images at a place; returns the lines of metrics."""
    config.data.placement = where  # type: ignore[assignment]
    assert train(config, workdir).complete
    lines = commands.metrics(workdir)
    for (
        line
    ) in lines:  # they are all known before the first step, or come up one by one
        line.pop("bad_images", None)
    return lines


@to_the_last_bit
@pytest.mark.parametrize("data", [Digits, WithBadDigits])
def test_a_run_is_the_same_wherever_its_images_are(
    tmp_path: Path,
    data: type[Digits],
    capsys: pytest.CaptureFixture[str],
    exact: bool,
) -> None:
    # Into the second epoch, which begins at step 29.
    lines = {
        where: run(tiny(duration=steps(32), data=data()), tmp_path / where, where)
        for where in ("host", "device")
    }
    assert len(lines["host"]) > 32
    one, other = (
        commands.arrays(tmp_path / where / "checkpoints" / "32") for where in lines
    )
    assert one.keys() == other.keys()
    atol = 0.0 if exact else 1e-5
    for line, placed in zip(lines["host"], lines["device"], strict=True):
        assert placed == pytest.approx(line, abs=atol, rel=0)
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=0, atol=atol, err_msg=name)
    said = capsys.readouterr().out
    assert said.count("placement: 1,437 training images (0.1 MB) in the memory") == 1


def test_eight_devices_train_as_one(tmp_path: Path) -> None:
    losses = [
        [
            line["train/loss"]
            for line in run(
                tiny(duration=steps(10), batch_size=64, devices=devices),
                tmp_path / str(devices),
                "device",
            )
            if "train/loss" in line
        ]
        for devices in (1, 8)
    ]
    assert len(losses[0]) == 10 and np.ptp(losses[0]) > 0.05
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)


def test_a_run_may_go_on_at_another_place() -> None:
    one, other = tiny(), tiny(steps_per_call=10)
    other.data.placement = "device"
    one_dict, other_dict = config_lib.to_dict(one), config_lib.to_dict(other)
    assert one_dict != other_dict
    assert not config_lib.differences(one_dict, other_dict)


@dataclasses.dataclass(kw_only=True)
class Cropped(Images):
    """Images that are never opened."""

    def encoded(self, split: Split) -> Encoded:
        raise AssertionError(split)


def test_a_crop_that_would_stand_still_is_refused() -> None:
    config = tiny(data=Cropped(canvas=HostRandomResizedCrop()))
    config_lib.validate(config)
    config.data.placement = "device"
    with pytest.raises(
        UserError, match=r"data\.canvas is HostRandomResizedCrop: the im"
    ):
        config_lib.validate(config)
