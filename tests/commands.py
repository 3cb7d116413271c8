"""Running the commands as a user does, and comparing what they leave."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxcls.checkpoint import fingerprints
from jaxcls.config import Config

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "tests" / "recipes"

TIMED = {"img_per_s", "seconds_per_step", "data_wait", "eval/seconds"}
"""What no two runs have in common."""


def load_config(path: Path, *arguments: str) -> Config:
    """Returns the config of a recipe."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


def command(*arguments: str | Path, devices: int = 1) -> dict[str, Any]:
    """Returns what subprocess.Popen and run need for `python -m ARGUMENTS`."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        # The last of several counts is taken.
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    return {
        "args": [sys.executable, "-m", *map(str, arguments)],
        "env": environment,
        "cwd": ROOT,
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }


def run(*arguments: str | Path, devices: int = 1) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m ARGUMENTS` to its end."""
    return subprocess.run(**command(*arguments, devices=devices), timeout=300)


def arrays(step_folder: Path) -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint, by its path."""
    folder = step_folder / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        restore_args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
        )
        state = checkpointer.restore(
            folder, ocp.args.PyTreeRestore(restore_args=restore_args)
        )
    return {name: np.asarray(leaf) for name, leaf in fingerprints.named_leaves(state)}


def nested(named: dict[str, np.ndarray]) -> dict[str, Any]:
    """Turns {"params/conv/kernel": ...} into {"params": {"conv": {"kernel": ...}}}."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *above, last = name.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


def assert_same_arrays(one: Path, other: Path) -> None:
    """Two checkpoints hold the same arrays to the last bit."""
    left, right = arrays(one), arrays(other)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl without what a clock measured."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMED}
        for line in lines
    ]
