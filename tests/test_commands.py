"""How commands end, and how they are listed."""

import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from jaxcls.__main__ import COMMANDS
from jaxcls.commands import exit_code
from jaxcls.errors import Diverged, UserError
from jaxcls.models import __main__ as models
from tests.commands import command


def fails_with(error: BaseException) -> Callable[[Sequence[str]], int]:
    @exit_code
    def main(argv: Sequence[str]) -> None:
        print(*argv)
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("a bad option"), 2, "error: a bad option\n"),
        (Diverged("from step 3 on"), 3, "diverged: from step 3 on\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_become_a_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(error)(["one", "two"]) == code
    assert capsys.readouterr() == ("one two\n", said)


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        fails_with(ZeroDivisionError())([])


def test_a_code_is_handed_on_and_none_is_complete() -> None:
    assert exit_code(lambda argv: 75)([]) == 75
    assert exit_code(lambda argv: None)([]) == 0


def test_nobody_reads_what_is_printed() -> None:
    """As in `python -m jaxcls.models | true`."""
    with subprocess.Popen(**command("jaxcls.models")) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_stdout_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert exit_code(lambda argv: print("nobody hears"))([]) == 0


def test_every_command_is_listed() -> None:
    for name in COMMANDS:
        assert importlib.util.find_spec(f"jaxcls.{name}") is not None, name
    listed = subprocess.run(**command("jaxcls"))
    assert listed.returncode == 0
    for name, what in COMMANDS.items():
        assert f"  {name} " in listed.stdout and what in listed.stdout
    wrong = subprocess.run(**command("jaxcls", "trian"))
    assert wrong.returncode == 2 and "Did you mean 'train'?" in wrong.stderr


def test_a_package_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `python -m jaxcls.models lenet5`."""
    monkeypatch.setattr(sys, "argv", ["models", "lenet5"])
    # As in a new process, which has not imported what it runs.
    monkeypatch.delitem(sys.modules, models.__name__)
    with pytest.raises(SystemExit) as left:
        runpy.run_module("jaxcls.models", run_name="__main__")
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert "61,706" in shown and "resnet18" not in shown


def test_a_command_runs_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(**command("jaxcls", "models", "lenet5"))
    assert models.main(["lenet5"]) == 0
    assert (done.returncode, done.stdout) == (0, capsys.readouterr().out)
    assert "61,706" in done.stdout
    # The command's own exit code is the program's.
    assert subprocess.run(**command("jaxcls", "models", "lenet6")).returncode == 2
