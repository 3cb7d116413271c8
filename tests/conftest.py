"""What all tests share: fake devices, quick compilation, one cache of compiled programs."""

import gc
import os
import shutil
import signal
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

DEVICES = "--xla_force_host_platform_device_count=8"
# Most of the suite's time goes into compiling, and its programs run once.
UNOPTIMIZED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if metadata.version("jaxlib").startswith("0.10."):
    # The older emitters compile in two thirds of the time. Later versions lack them, and end a
    # process that is given a flag they do not know.
    UNOPTIMIZED += " --xla_cpu_use_fusion_emitters=false"
LARGEST_CACHE = 2**31
"""Bytes of compiled programs that are kept from run to run."""


def pytest_configure(config: pytest.Config) -> None:
    """Sets the process up before anything imports jax, which reads these variables once."""
    # A shell that starts the suite in the background has it ignore Ctrl-C, which some tests
    # send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    flags = [os.environ.get("XLA_FLAGS", ""), DEVICES]
    # Other tests than those of the default measure speed, and bits as users get them.
    if config.option.markexpr in config.getini("addopts"):
        flags.append(UNOPTIMIZED)
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation_cache(config))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Tracing makes many short-lived objects; collecting less often saves a sixth of its time.
    gc.set_threshold(100_000, 50, 100)


def compilation_cache(config: pytest.Config) -> Path:
    """Returns the folder of compiled programs that all processes of all runs share.

    Every version of every program stays in it, so it is emptied when it has grown too large.
    A checkout that cannot be written to has none from run to run. `--cache-clear` empties it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    try:
        folder = config.cache.mkdir("xla")  # type: ignore[union-attr]
        (folder / "writable").touch()
        files = list(folder.iterdir())
        if sum(file.stat().st_size for file in files) > LARGEST_CACHE:
            for file in files:
                file.unlink(missing_ok=True)
    except (AttributeError, OSError):
        folder = Path(tempfile.mkdtemp(prefix="jaxcls-xla-"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
    return folder
