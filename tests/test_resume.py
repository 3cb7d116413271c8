"""Killed or stopped at any moment, a run ends as if nothing had happened."""

import contextlib
import dataclasses
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from jaxcls.train import main, train
from jaxcls.training.run import Run
from tests import commands
from tests.held import HOLD

TINY, NARROW, HELD = (
    commands.RECIPES / f"{name}.py" for name in ("tiny", "narrow", "held")
)
STEPS = 32
"""The length of HELD."""


@pytest.fixture(autouse=True)
def signals_arrive() -> Iterator[None]:
    """A process inherits which signals are ignored, and a shell ignores Ctrl-C for what it
    starts in the background."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, to) for number, to in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def assert_same_run(workdir: Path, whole: Path, steps: int) -> None:
    """Two runs ended with the same arrays and lines of metrics, to the last bit."""
    last = Path("checkpoints", str(steps))
    commands.assert_same_arrays(workdir / last, whole / last)
    assert commands.metrics(workdir) == commands.metrics(whole)


# Runs that wait for the test.


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of compiled programs for the runs of this file, because one that is
    killed may leave half a program behind; returns the file that holds them back."""
    folder = tmp_path_factory.mktemp("environment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        patch.setenv(HOLD, str(folder / "hold"))
        yield folder / "hold"


@dataclasses.dataclass
class Done:
    """A run that ended by itself.

    Attributes:
      workdir: its folder.
      output: what it printed.
      errors: what it printed to stderr.
    """

    workdir: Path
    output: str
    errors: str


def finish(workdir: Path) -> Done:
    """Runs to the end, held back by nothing, and says what it compiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_LOG_COMPILES", "1")
        done = commands.run("jaxcls.train", "--config", HELD, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return Done(workdir, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Done:
    """A run that nothing stopped, the first to compile its programs."""
    return finish(tmp_path_factory.mktemp("whole") / "run")


def read_until(stream: IO[str] | None, text: str) -> list[str]:
    """Reads lines up to one that begins with `text`, which has to come before the end."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line)
        if line.startswith(text):
            return lines
    raise AssertionError(f"{text!r} is not in {''.join(lines)}")


def wait_for(folder: Path, pattern: str) -> None:
    """Waits until something lies in a folder, which has to come."""
    until = time.monotonic() + 60
    while not list(folder.glob(pattern)):
        assert time.monotonic() < until, f"there is no {folder / pattern}"
        time.sleep(0.001)


@contextlib.contextmanager
def held_run(
    workdir: Path, hold: Path, batches: int, *more: str
) -> Iterator["subprocess.Popen[str]"]:
    """A run in a process group of its own that makes `batches` steps and then waits for its
    data, while `hold` exists. It is killed if the test waits too long for what it says."""
    hold.write_text(str(batches))
    arguments = ["jaxcls.train", "--config", HELD, "--workdir", workdir, *more]
    options = commands.command(*arguments)
    with subprocess.Popen(**options, start_new_session=True) as process:
        too_long = threading.Timer(120, process.kill)
        too_long.start()
        try:
            yield process
        finally:
            too_long.cancel()
            hold.unlink(missing_ok=True)
            process.kill()


def stop_by_signal(workdir: Path, hold: Path, name: str) -> str:
    """Ctrl-C and schedulers signal the whole group: the worker must survive it. Returns what
    the run printed."""
    with held_run(workdir, hold, 8, "--config.data.workers=1") as process:
        printed = read_until(process.stdout, "step ")
        os.killpg(process.pid, signal.Signals[name])
        read_until(process.stderr, f"{name}: saving after this step")
        hold.unlink()
        rest, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert f"stopped by {name}" in rest
    assert "Traceback" not in errors and "leaked" not in errors
    assert group_is_gone(process.pid, within_seconds=60)
    return "".join(printed) + rest


def group_is_gone(group: int, within_seconds: float) -> bool:
    """Whether no process of a group is left, or will be soon."""
    until = time.monotonic() + within_seconds
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def assert_compiled_once(errors: str, *, from_cache: bool) -> None:
    """Each step was compiled once, or taken from the cache."""
    for name in ("train_step", "eval_step"):
        assert len(re.findall(rf"Compiling jit\({name}\)", errors)) == 1, name
        hits = re.findall(rf"compilation cache hit for 'jit_{name}'", errors)
        assert len(hits) == from_cache, name


def test_each_step_compiles_once_in_a_first_run(whole: Done) -> None:
    assert_compiled_once(whole.errors, from_cache=False)


def test_kills_and_signals_cost_nothing(
    tmp_path: Path, whole: Done, environment: Path
) -> None:
    """A run that is killed, and continued and stopped by either signal, ends as the one that
    nothing stopped; what it compiles comes from the cache."""
    workdir = tmp_path / "run"
    with held_run(workdir, environment, 11) as process:
        # The checkpoint of step 5 is whole, and that of step 10 being saved.
        read_until(process.stdout, "evaluation at step 10")
        wait_for(workdir / "checkpoints", "10*")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    for name in ("SIGTERM", "SIGINT"):
        assert "continuing at step" in stop_by_signal(workdir, environment, name)
    last = finish(workdir)
    assert "continuing at step" in last.output
    assert_compiled_once(last.errors, from_cache=True)
    assert_same_run(workdir, whole.workdir, STEPS)


def test_second_ctrl_c_leaves_at_once(
    tmp_path: Path, whole: Done, environment: Path
) -> None:
    with held_run(tmp_path / "run", environment, 0) as process:
        read_until(process.stdout, "compiled:")
        process.send_signal(signal.SIGINT)
        read_until(process.stderr, "SIGINT: saving after this step; Ctrl-C again")
        until = time.monotonic() + 60
        # The message of the first may be read a moment before the handler is through.
        while process.poll() is None and time.monotonic() < until:
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "leaving at once" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_that_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    compiled = Run._compiled

    def signalled(*args: Any) -> Any:
        signal.raise_signal(number)
        return compiled(*args)

    monkeypatch.setattr(Run, "_compiled", signalled)
    # Where the run does not look at it, it must not end the tests.
    signal.signal(number, lambda *_: None)
    stopped = train(commands.load_config(TINY), tmp_path / "run")
    assert (stopped.complete, stopped.step) == (False, 0)


def test_complete_run_says_so(whole: Done, capsys: pytest.CaptureFixture[str]) -> None:
    before = commands.metrics(whole.workdir)
    arguments = ["--config", str(HELD), "--workdir", str(whole.workdir)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"is complete at step {STEPS}" in said
    assert "--fresh" in said
    assert commands.metrics(whole.workdir) == before


# Runs that are killed and stopped at random.


@dataclasses.dataclass
class Timed:
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


def arguments(workdir: Path, steps: int, *more: str) -> list[str | Path]:
    length = f"--config.duration={steps} steps"
    train = ["jaxcls.train", "--config", NARROW, "--workdir", workdir, length]
    return [*train, *more]


def whole_run(folder: Path, steps: int) -> Timed:
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
    return Timed(steps, folder / name, startup, time.monotonic() - started)


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Timed:
    return whole_run(tmp_path_factory.mktemp("whole"), steps=40)


def kill_and_finish(workdir: Path, whole: Timed, kills: int, seed: int) -> None:
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
    assert_same_run(workdir, whole.workdir, whole.steps)


@pytest.mark.slow
def test_sigkill_costs_nothing(tmp_path: Path, timed: Timed) -> None:
    kill_and_finish(tmp_path / "run", timed, kills=3, seed=0)


@pytest.mark.slow
def test_twenty_sigkills_cost_nothing(
    tmp_path: Path, environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = whole_run(tmp_path / "whole", steps=600)
    with capsys.disabled():
        kill_and_finish(tmp_path / "run", longer, kills=20, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_to_all_processes_saves_and_asks_to_be_run_again(
    tmp_path: Path, timed: Timed, name: str
) -> None:
    """Ctrl-C and schedulers signal the whole group: the workers must survive it."""
    workdir = tmp_path / "run"
    train = arguments(workdir, timed.steps, "--config.data.workers=2")
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
    assert_same_run(workdir, timed.workdir, timed.steps)
