"""Devices as a mesh, and how arrays lie on it. Also JAX's settings of a command."""

import ctypes
import importlib.util
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcls.errors import UserError


def make_mesh(num_devices: int | None) -> Mesh:
    """Returns a mesh with one axis, "data", over the first `num_devices` devices, 1 or more
    (all: None).

    Raises:
      UserError: if there are not that many.
    """
    found = jax.devices()
    if num_devices is not None and num_devices > len(found):
        raise UserError(
            f"devices is {num_devices}, but JAX sees {len(found)} "
            f"({found[0].device_kind}): use at most {len(found)}, or None for all."
        )
    used = found[:num_devices]
    # Auto: the compiler works out the shardings inside the step from those of its arguments.
    return jax.make_mesh((len(used),), ("data",), (AxisType.Auto,), devices=used)


def platform(mesh: Mesh) -> str:
    """Returns the kind of a mesh's devices: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Every device holds its rows of axis 0: images, labels, masks."""
    return NamedSharding(mesh, PartitionSpec("data"))


def with_sharding(sharding: NamedSharding, shapes: Any) -> Any:
    """Returns a tree of arrays, or of jax.ShapeDtypeStruct, as the latter with a sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
    )


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Starts moving this host's rows of a batch to its devices.

    Args:
      mesh: the devices.
      batch: arrays [rows, ...] of any dtype; the rows divide among the host's devices.

    Returns:
      The global batch: arrays [rows of all hosts, ...].
    """
    return put(with_sharding(batch_sharded(mesh), batch), batch)


def put(shapes: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Starts moving this host's part of some arrays to its devices.

    Args:
      shapes: name -> jax.ShapeDtypeStruct, whose sharding says where the array goes.
      arrays: the array of each name; others stay on the host.
    """
    return {
        name: jax.make_array_from_process_local_data(shape.sharding, arrays[name])
        for name, shape in shapes.items()
    }


def keep_freed_memory() -> None:
    """Has the C library keep the memory that XLA frees, if it computes on the CPU.

    XLA takes its temporary arrays anew for every step, and glibc would give each back to the
    system and page it in again: over 100,000 page faults in a step of EfficientNet-B0, a third of
    its time. Must be called before JAX makes its devices. Does nothing where there may be an
    accelerator (JAX_PLATFORMS unset and one of its plugins installed), or no glibc.
    """
    platforms = os.environ.get("JAX_PLATFORMS")
    plugins = ("jax_plugins", "libtpu")
    if platforms != "cpu" and (
        platforms or any(map(importlib.util.find_spec, plugins))
    ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # From malloc.h: one heap, nothing outside of it, nothing given back.
    m_arena_max, m_mmap_max, m_trim_threshold = -8, -4, -1
    mallopt(m_arena_max, 1)
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next start of a run need not compile.

    They lie in $JAX_COMPILATION_CACHE_DIR, or else in jaxcls/xla under $XDG_CACHE_HOME or
    ~/.cache. JAX by itself leaves out programs that compile in less than a second. Nothing
    changes if the caller has chosen a cache in Python.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen and chosen != os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    if not chosen:
        cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        jax.config.update(
            "jax_compilation_cache_dir", str(Path(cache, "jaxcls", "xla"))
        )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
