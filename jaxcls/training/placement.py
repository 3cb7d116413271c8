"""The training images in the devices' memory, for data.placement="device".

Each device holds an equal part of the records, in their own order. A step is sent the indices
of its rows; every device looks up those that it holds, and they are exchanged so that each
ends with its rows of the batch.

An image lies there as one row of bytes: from [n, height, width, channels] a TPU would make a
copy of all records, in a layout four times as large, to look up rows of it.
"""

import math
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from tqdm import tqdm

from jaxcls.data.loader import padded_rows
from jaxcls.errors import UserError
from jaxcls.inference.forward import row_shapes
from jaxcls.parallel import put
from jaxcls.report.progress import say

MEGABYTE = 1e6


def record_shapes(
    mesh: Mesh,
    num_records: int,
    image_shape: tuple[int, ...],
    num_labels: int | None = None,
) -> dict[str, Any]:
    """Returns the shapes of the records on the devices: row_shapes(), but each image is one row
    of bytes, "image" uint8 [n, height * width * channels], and n is `num_records` rounded up to
    a multiple of the devices."""
    rows = padded_rows(num_records, mesh.size)
    return row_shapes(mesh, rows, (math.prod(image_shape),), num_labels)


def check_memory(
    mesh: Mesh,
    num_records: int,
    image_shape: tuple[int, ...],
    num_labels: int | None = None,
) -> None:
    """Refuses records that cannot lie in the memory of the devices, or of this machine, which
    holds them on their way there. Arguments as those of record_shapes().

    Raises:
      UserError: if they do not fit.
    """
    shapes = record_shapes(mesh, num_records, image_shape, num_labels)
    size = sum(shape.size * shape.dtype.itemsize for shape in shapes.values())
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    places = [("this machine", size, machine)]
    device = mesh.local_devices[0]
    memory = device.memory_stats()
    if memory is not None and "bytes_limit" in memory:
        free = memory["bytes_limit"] - memory.get("bytes_in_use", 0)
        places.append((f"each {device.device_kind}", size // mesh.size, free))
    for place, needed, free in places:
        if needed > free:
            raise UserError(
                f"the {num_records:,} training images take {needed / MEGABYTE:,.0f} MB of "
                f"{place}, which has {free / MEGABYTE:,.0f} MB: set data.placement to "
                "'host', or make the images smaller."
            )


def place(
    batches: Iterator[dict[str, np.ndarray]], num_records: int, shapes: dict[str, Any]
) -> dict[str, jax.Array]:
    """Moves all records to the devices, and prints how long that took.

    Args:
      batches: the records in their own order, "image", "label" and "mask"; rows of the last
        batch beyond the last record are left out.
      num_records: the records.
      shapes: as record_shapes() gives them.

    Returns:
      Arrays of these shapes; records that are padding are zero and masked False.
    """
    started = time.perf_counter()
    records = {name: np.zeros(s.shape, s.dtype) for name, s in shapes.items()}
    done = 0
    with tqdm(
        total=num_records,
        desc="loading onto the devices",
        unit="image",
        leave=False,
        disable=None,  # where stderr is no terminal
    ) as bar:
        while done < num_records:
            batch = next(batches)
            rows = min(len(batch["label"]), num_records - done)
            for name, values in records.items():
                part = values[done : done + rows]
                part[:] = batch[name][:rows].reshape(part.shape)
            done += rows
            bar.update(rows)
    placed = jax.block_until_ready(put(shapes, records))
    size = sum(values.nbytes for values in records.values())
    devices = placed["mask"].devices()
    say(
        f"placement: {num_records:,} training images ({size / MEGABYTE:,.1f} MB) in the "
        f"memory of {len(devices)} x {next(iter(devices)).device_kind}, loaded in "
        f"{time.perf_counter() - started:.1f} s"
    )
    return placed


def gather(
    mesh: Mesh,
    records: dict[str, jax.Array],
    ids: jax.Array,
    image_shape: tuple[int, ...],
) -> dict[str, jax.Array]:
    """Returns the records `ids` as a batch; called within the compiled step.

    What crosses between devices is one batch: each adds its own records to rows of zeros, and
    the sum of all devices is scattered.

    Args:
      mesh: the devices.
      records: arrays of record_shapes(), sharded over the devices.
      ids: int32 [batch], 0 <= id < number of records, whole on every device.
      image_shape: of a record, (height, width, channels).

    Returns:
      "image" uint8 [batch, height, width, channels], "label" int32 [batch] (or uint8 [batch,
      classes]) and "mask" bool [batch], each device having its rows.
    """

    def rows_of_this_device(
        records: dict[str, jax.Array], ids: jax.Array
    ) -> dict[str, jax.Array]:
        held = len(records["label"])
        local = ids - jax.lax.axis_index("data") * held
        is_held = (local >= 0) & (local < held)

        def rows(part: jax.Array) -> jax.Array:
            taken = part[jnp.clip(local, 0, held - 1)]
            own = taken * is_held.reshape(-1, *[1] * (part.ndim - 1))
            # Truth values are not added up by every backend.
            numbers = own.astype(jnp.uint8) if own.dtype == jnp.bool_ else own
            summed = jax.lax.psum_scatter(numbers, "data", tiled=True)
            return summed.astype(part.dtype)

        return jax.tree.map(rows, records)

    if mesh.size == 1:
        rows = jax.tree.map(lambda part: part[ids], records)
    else:
        over_devices = PartitionSpec("data")
        rows = jax.shard_map(
            rows_of_this_device,
            mesh=mesh,
            in_specs=(over_devices, PartitionSpec()),
            out_specs=over_devices,
        )(records, ids)
    return {**rows, "image": rows["image"].reshape(len(ids), *image_shape)}
