"""Breaks the code in 30 places, one at a time, and asks whether the default tests notice.

    pip install coverage && python -m tests.references.mutations

The whole suite runs once under coverage, on code that is whole, and must pass. Then each mutation
runs those tests that reach the lines it changes, until the first one fails. (Lines that run at
import alone, such as tables, take all tests that reach anything of their file.) One that they do
not notice runs the whole suite: coverage sees neither processes that tests start, nor lines that
a fixture or a cached function ran for an earlier test. As a control, one mutation runs the whole
suite anyway, and the tests that notice it are compared with those that were chosen. What is broken
are copies of the checkout. Ends with code 1 if fewer than 28 are noticed.
"""

import argparse
import ast
import concurrent.futures
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import coverage
import pytest

ROOT = Path(__file__).parents[2]
LEAST = 28
CONTROL = "optim/ema.py"
LONGEST = 3600
"""Seconds until a run counts as hanging, which is noticed too."""


class Mutation(NamedTuple):
    """A text of a file below jaxcls/, which occurs once, and what takes its place."""

    path: str
    text: str
    broken: str


MUTATIONS = [
    # Two processes hold one folder.
    Mutation("files.py", "raise UserError(taken) from None", "pass"),
    # The logit that is NaN wins.
    Mutation("metrics.py", "~(logits <= own) |", "(logits > own) |"),
    # Code 2 for a run that diverged.
    Mutation("commands.py", "return DIVERGED", "return MISTAKE"),
    # 5 examples are 5 batches.
    Mutation("duration.py", "Fraction(1, run.batch_size)", "Fraction(run.batch_size)"),
    # A share "below 1" may be 1.
    Mutation("options/ranges.py", "Lt: (operator.lt", "Lt: (operator.le"),
    # A file that is not the published one is taken if its own hash lies beside it.
    Mutation(
        "download/cache.py",
        "not found.startswith(wanted.sha256) or expected",
        "expected",
    ),
    # An inner part of the config is chosen before the outer one.
    Mutation(
        "config/overrides.py",
        'key=lambda path: path.count(".")',
        'key=lambda path: -path.count(".")',
    ),
    # Nothing is evaluated or saved at the end of a run.
    Mutation("config/plan.py", "step == self.total_steps or (step > 0", "(step > 0"),
    # The order of the records and the seeds of the rows share random numbers.
    Mutation("data/order.py", "[0, 0, stratum, use]", "[0, 0, stratum, 0]"),
    # The middle of a photograph is half a pixel further up where torchvision rounds.
    Mutation(
        "data/host_crop.py",
        "round((width - self.size) / 2), round((height - self.size) / 2)",
        "(width - self.size) // 2, (height - self.size) // 2",
    ),
    # A label one above the last class reaches the device.
    Mutation("data/loader.py", "(labels >= num_classes)", "(labels > num_classes)"),
    # The test split is the training split.
    Mutation(
        "data/formats/splits.py",
        'is_test == (split == "test")',
        'is_test == (split != "x")',
    ),
    # Record files of a split with other classes than training's.
    Mutation(
        "data/preparation/writer.py",
        'if splits["test"].class_names != splits["train"].class_names:',
        'if len(splits["test"].class_names) != len(splits["train"].class_names):',
    ),
    # CutMix weighs labels by boxes that reach out of the image.
    Mutation("augment/mix.py", "box_width).clipped(height, width)", "box_width)"),
    # The mean grey level is cut off, not rounded.
    Mutation(
        "augment/kernels/pillow_color.py",
        "(total + pixels // 2) // pixels",
        "total // pixels",
    ),
    # Tall images are resized in the other order of passes.
    Mutation(
        "augment/kernels/resample.py",
        "shrink[1] > 2 * shrink[2]",
        "shrink[1] > 4 * shrink[2]",
    ),
    # A pixel of the neighbouring row, where rows meet in a column, on TPUs.
    Mutation(
        "augment/kernels/tpu/rotation.py",
        "even = first + (first & 1)",
        "even = first - (first & 1)",
    ),
    # The running variance is the biased one.
    Mutation("models/layers.py", "var * (count / max(count - 1, 1))", "var"),
    # A block fewer in one stage of EfficientNetV2-M.
    Mutation(
        "models/efficientnet.py", "Stage(6, 3, 1, 176, 14)", "Stage(6, 3, 1, 176, 13)"
    ),
    # The state dict is read in the dialect that fits worse.
    Mutation(
        "models/weights/pretrained.py",
        "max(dialects(module), key=shared)",
        "min(dialects(module), key=shared)",
    ),
    # A convolution with several outputs a channel passes for a depthwise one.
    Mutation(
        "models/cpu/convolution.py",
        "== x.shape[-1] == kernel.shape[-1]",
        "== x.shape[-1]",
    ),
    # A label that all images have weighs nothing.
    Mutation(
        "losses/multi_label.py", "(counts > 0) & (counts < num_images)", "counts > 0"
    ),
    # The average is updated at the first of `every` steps.
    Mutation(
        "optim/ema.py",
        "good_steps % ema.every == ema.every - 1",
        "good_steps % ema.every == 0",
    ),
    # The rate by the root of the batch size grows like the batch size.
    Mutation("optim/optimizers.py", "else math.sqrt(ratio)", "else ratio"),
    # Step 90 is newer than step 100.
    Mutation(
        "checkpoint/checkpoints.py",
        "key=lambda child: int(child.name)",
        "key=lambda child: child.name",
    ),
    # Rows without an image take part in the average precision.
    Mutation(
        "inference/evaluation.py", "(logits[mask], labels[mask])", "(logits, labels)"
    ),
    # The metrics count the images of bad steps.
    Mutation("training/step.py", "good & mask, multi_label", "mask, multi_label"),
    # An average passes for a checkpoint of its earliest member.
    Mutation("training/weight_average.py", '"step": max(', '"step": min('),
    # A run that goes on loses the line of its last step.
    Mutation(
        "report/writers.py", 'line["step"] <= last_step', 'line["step"] < last_step'
    ),
    # A folder with too few photographs for a batch is measured.
    Mutation("benchmarks/input_pipeline.py", "if len(found) < BATCH:", "if not found:"),
]


# ---------------------------------------------------------------- as a plugin of pytest: coverage


class Recorder:
    """Records which lines of jaxcls each test reaches."""

    def __init__(self, data_file: str):
        self._coverage = coverage.Coverage(
            data_file=data_file,
            data_suffix=True,
            source_pkgs=["jaxcls"],
            config_file=False,
        )
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item
    ) -> Generator[None, object, object]:
        self._coverage.switch_context(item.nodeid)
        try:
            return (yield)
        finally:
            self._coverage.switch_context("")

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        self._coverage.save()


def pytest_configure(config: pytest.Config) -> None:
    """Records in the processes that run tests, where a file to record to is named."""
    data_file = os.environ.get("JAXCLS_REACHED")
    if data_file and (config.option.numprocesses or 0) == 0:
        config.pluginmanager.register(Recorder(data_file))


# ------------------------------------------------------------------------------ which tests reach


class Reached:
    """The tests that reach lines of the code."""

    def __init__(self, data: coverage.CoverageData, root: Path):
        self._data, self._root = data, root
        self._lines: dict[str, int] = {}
        for file in data.measured_files():
            for tests in data.contexts_by_lineno(file).values():
                for test in filter(None, tests):
                    self._lines[test] = self._lines.get(test, 0) + 1

    def tests(self, mutation: Mutation) -> list[str]:
        """Returns the tests that reach what a mutation changes, those first that reach little
        else."""
        file = self._root / "jaxcls" / mutation.path
        by_line = self._data.contexts_by_lineno(str(file))
        changed = {
            test for line in changed_lines(mutation) for test in by_line.get(line, ())
        }
        changed -= {""}
        if not changed:  # they run at import
            changed = {test for tests in by_line.values() for test in tests} - {""}
        return sorted(
            changed or self._lines, key=lambda test: (self._lines[test], test)
        )


def changed_lines(mutation: Mutation) -> range:
    """Returns the lines of the innermost statement that a mutation changes, without its body."""
    source = (ROOT / "jaxcls" / mutation.path).read_text()
    line = source[: source.index(mutation.text)].count("\n") + 1
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    innermost = max(around, key=lambda node: node.lineno)
    body = getattr(innermost, "body", None)
    end = body[0].lineno if body else (innermost.end_lineno or line) + 1
    return range(innermost.lineno, max(end, innermost.lineno + 1))


# --------------------------------------------------------------------------------------- running


def copy_of_checkout(folder: Path) -> Path:
    """Copies what git tracks into a folder, which shares the cache of compiled programs."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    cache = ROOT / ".pytest_cache" / "d" / "xla"
    cache.mkdir(parents=True, exist_ok=True)
    (folder / ".pytest_cache" / "d").mkdir(parents=True)
    (folder / ".pytest_cache" / "d" / "xla").symlink_to(cache)
    return folder


class Outcome(NamedTuple):
    """Of running some tests: whether any failed, and the names of those that did."""

    is_noticed: bool
    failed: list[str]


def run_tests(folder: Path, *arguments: str, reached: str = "") -> Outcome:
    """Runs tests in a copy of the checkout."""
    environment = {**os.environ, "JAXCLS_REACHED": reached, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", *arguments]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return Outcome(True, ["(hangs)"])
    if process.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest ended with {process.returncode}:\n{printed}")
    failed = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", printed, re.MULTILINE)
    return Outcome(process.returncode != 0, failed)


def try_mutation(folder: Path, mutation: Mutation, *arguments: str) -> Outcome:
    """Runs tests in a copy of the checkout in which one text is replaced."""
    file = folder / "jaxcls" / mutation.path
    whole = file.read_text()
    if whole.count(mutation.text) != 1:
        raise ValueError(
            f"{mutation.text!r} occurs {whole.count(mutation.text)} times in {file}"
        )
    file.write_text(whole.replace(mutation.text, mutation.broken))
    try:
        return run_tests(folder, *arguments)
    finally:
        file.write_text(whole)


def main() -> int:
    """Tries all mutations, or those whose path contains a word; prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "word", nargs="?", default="", help="a part of the mutations' paths"
    )
    parser.add_argument(
        "--reached", type=Path, help="a coverage file to keep, or to take again"
    )
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if options.word in mutation.path]
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(2):
            copies.put(copy_of_checkout(Path(name, str(number))))
        folder = copies.queue[0]
        reached = options.reached or Path(name, "reached")
        reached = reached.absolute()
        if not reached.exists():
            record(folder, reached)
        data = coverage.CoverageData(str(reached))
        data.read()
        tests = Reached(data, recorded_root(data))

        def one(mutation: Mutation) -> bool:
            copy, began = copies.get(), time.monotonic()
            names = tests.tests(mutation)
            listed = copy.parent / f"{copy.name}.txt"
            listed.write_text("\n".join(names))
            try:
                outcome = try_mutation(copy, mutation, "-n", "0", "-x", f"@{listed}")
                if not outcome.is_noticed:
                    outcome = try_mutation(copy, mutation, "-x")
            finally:
                copies.put(copy)
            by = outcome.failed[0] if outcome.failed else "NOBODY"
            seconds = time.monotonic() - began
            print(
                f"{mutation.path:38} {len(names):5} tests {seconds:5.0f} s  {by}",
                flush=True,
            )
            return outcome.is_noticed

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            noticed = sum(pool.map(one, chosen))
        print(f"{noticed} of {len(chosen)} noticed")
        for mutation in chosen:
            if mutation.path == CONTROL:
                control(folder, mutation, set(tests.tests(mutation)))
    return int(noticed < min(LEAST, len(chosen)))


def record(folder: Path, reached: Path) -> None:
    """Runs the whole suite under coverage, into one file."""
    began = time.monotonic()
    plugin = ("-p", "tests.references.mutations")
    outcome = run_tests(folder, *plugin, reached=str(reached))
    if outcome.is_noticed:
        raise SystemExit(f"these tests fail without any mutation: {outcome.failed}")
    parts = coverage.Coverage(data_file=str(reached), config_file=False)
    parts.combine([str(reached.parent)])
    parts.save()
    print(
        f"the whole suite passes under coverage, in {time.monotonic() - began:.0f} s",
        flush=True,
    )


def recorded_root(data: coverage.CoverageData) -> Path:
    """Returns the folder of the checkout that was recorded."""
    return next(
        Path(file).parents[1]
        for file in data.measured_files()
        if file.endswith("jaxcls/__init__.py")
    )


def control(folder: Path, mutation: Mutation, chosen: set[str]) -> None:
    """Runs the whole suite on one mutation, and compares with the tests chosen for it."""
    outcome = try_mutation(folder, mutation)
    others = sorted(set(outcome.failed) - chosen)
    print(
        f"control, the whole suite on {mutation.path}: {len(outcome.failed)} tests fail, "
        f"{len(others)} of them not among the {len(chosen)} chosen {others[:5]}"
    )


if __name__ == "__main__":
    sys.exit(main())
