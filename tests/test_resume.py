"""Killed or stopped at any moment, a run ends as if nothing had happened."""

import dataclasses
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import commands

RECIPE = commands.RECIPES / "narrow.py"


@dataclasses.dataclass
class Whole:
    """An uninterrupted run.

    Attributes:
      steps: its length.
      workdir: its folder.
      startup: seconds to its first step, with a warm cache.
      seconds: to its end.
    """

    steps: int
    workdir: Path
    startup: float
    seconds: float

    def assert_same(self, workdir: Path) -> None:
        """Another run ended with the same arrays and lines of metrics, to the last bit."""
        last = Path("checkpoints", str(self.steps))
        commands.assert_same_arrays(workdir / last, self.workdir / last)
        assert commands.metrics(workdir) == commands.metrics(self.workdir)


def arguments(workdir: Path, steps: int, *more: str) -> list[str | Path]:
    length = f"--config.duration={steps} steps"
    train = ["jaxcls.train", "--config", RECIPE, "--workdir", workdir, length]
    return [*train, *more]


def whole_run(folder: Path, steps: int) -> Whole:
    """Runs to the end twice, the second time with a warm cache."""
    for name in ("cold", "warm"):
        started = time.monotonic()
        process = subprocess.Popen(**commands.command(*arguments(folder / name, steps)))
        startup = started
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                startup = time.monotonic() - started
                break
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return Whole(steps, folder / name, startup, time.monotonic() - started)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole_run(tmp_path_factory.mktemp("whole"), steps=40)


def kill_and_finish(workdir: Path, whole: Whole, kills: int, seed: int) -> None:
    """Kills a run at random moments between its start and a little after its first step, so
    that all of them meet it alive; lets it finish, and compares."""
    moments = random.Random(seed)
    train = arguments(workdir, whole.steps)
    # Half of what would be too late, because a busy machine may have been slow before.
    latest = whole.startup + 0.4 * (whole.seconds - whole.startup) / kills
    reached = []
    for _ in range(kills):
        process = subprocess.Popen(**commands.command(*train))
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=moments.uniform(0.1, latest))
        process.kill()
        process.communicate()
        saved = [int(path.name) for path in workdir.glob("checkpoints/*[0-9]")]
        reached.append(max(saved, default=0))
    print(f"after each kill the newest checkpoint was of step {reached}")
    done = commands.run(*train)
    assert done.returncode == 0, done.stderr
    whole.assert_same(workdir)


def test_sigkill_costs_nothing(tmp_path: Path, whole: Whole) -> None:
    kill_and_finish(tmp_path / "run", whole, kills=3, seed=0)


@pytest.mark.slow
def test_twenty_sigkills_cost_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = whole_run(tmp_path / "whole", steps=600)
    with capsys.disabled():
        kill_and_finish(tmp_path / "run", longer, kills=20, seed=1)


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
    tmp_path: Path, whole: Whole, name: str
) -> None:
    """Ctrl-C and schedulers signal the whole group: the workers must survive it."""
    workdir = tmp_path / "run"
    train = arguments(workdir, whole.steps, "--config.data.workers=2")
    process = subprocess.Popen(**commands.command(*train), start_new_session=True)
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
    done = commands.run(*train)
    assert done.returncode == 0, done.stderr
    assert "continuing at step" in done.stdout
    whole.assert_same(workdir)


def test_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen(
        # A length that no other test compiles for: the first signal waits for that.
        **commands.command(*arguments(tmp_path / "run", 100_000))
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


def test_complete_run_says_so(whole: Whole) -> None:
    before = commands.metrics(whole.workdir)
    done = commands.run(*arguments(whole.workdir, whole.steps))
    assert done.returncode == 0
    assert "is complete at step 40" in done.stdout
    assert "--fresh" in done.stdout
    assert commands.metrics(whole.workdir) == before
