"""Killed or stopped at any moment, a run ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import commands

RECIPE = commands.RECIPES / "narrow.py"
LAST = Path("checkpoints", "40")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A whole run's folder, and the seconds it took with a warm cache."""
    for name in ("cold", "warm"):
        workdir = tmp_path_factory.mktemp("whole") / name
        started = time.monotonic()
        done = commands.run("jaxcls.train", "--config", RECIPE, "--workdir", workdir)
        assert done.returncode == 0, done.stderr
    return workdir, time.monotonic() - started


def kill_and_finish(
    workdir: Path, whole: tuple[Path, float], kills: int, seed: int
) -> None:
    """Kills a run at random moments, lets it finish, and compares."""
    reference, seconds = whole
    moments = random.Random(seed)
    arguments = ("jaxcls.train", "--config", RECIPE, "--workdir", workdir)
    for _ in range(kills):
        process = subprocess.Popen(**commands.command(*arguments))
        try:
            process.communicate(timeout=moments.uniform(0.1, 1.0) * seconds)
            assert process.returncode == 0  # it was done before its time
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stderr
    commands.assert_same_arrays(workdir / LAST, reference / LAST)
    assert commands.metrics(workdir) == commands.metrics(reference)


def test_sigkill_costs_nothing(
    tmp_path: Path, uninterrupted: tuple[Path, float]
) -> None:
    kill_and_finish(tmp_path / "run", uninterrupted, kills=3, seed=0)


@pytest.mark.slow
def test_twenty_sigkills_cost_nothing(
    tmp_path: Path, uninterrupted: tuple[Path, float]
) -> None:
    kill_and_finish(tmp_path / "run", uninterrupted, kills=20, seed=1)


def group_is_gone(group: int, within_seconds: float) -> bool:
    """Whether no process of a group is left, or will be soon."""
    until = time.monotonic() + within_seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_to_all_processes_saves_and_asks_to_be_run_again(
    tmp_path: Path, uninterrupted: tuple[Path, float], name: str
) -> None:
    """Ctrl-C and schedulers signal the whole group: the workers must survive it."""
    workdir = tmp_path / "run"
    arguments = (
        "jaxcls.train",
        *("--config", RECIPE, "--workdir", workdir, "--config.data.workers=2"),
    )
    process = subprocess.Popen(**commands.command(*arguments), start_new_session=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):  # in mid-epoch, a few steps after a line of metrics
            os.killpg(process.pid, signal.Signals[name])
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert f"stopped by {name}" in rest
    assert "Traceback" not in errors and "leaked" not in errors
    assert group_is_gone(process.pid, within_seconds=5)
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "continuing at step" in done.stdout
    commands.assert_same_arrays(workdir / LAST, uninterrupted[0] / LAST)
    assert commands.metrics(workdir) == commands.metrics(uninterrupted[0])


def test_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        **commands.command(
            "jaxcls.train",
            *("--config", RECIPE, "--workdir", tmp_path / "run"),
            "--config.duration=100000 steps",  # compiles anew: the first waits for that
        )
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("devices"):
            break
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130, errors


def test_complete_run_says_so(uninterrupted: tuple[Path, float]) -> None:
    workdir, _ = uninterrupted
    before = commands.metrics(workdir)
    done = commands.run("jaxcls.train", "--config", RECIPE, "--workdir", workdir)
    assert done.returncode == 0
    assert "is complete at step 40" in done.stdout
    assert "--fresh" in done.stdout
    assert commands.metrics(workdir) == before
