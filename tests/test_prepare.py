"""`python -m jaxcls.prepare`: records that are the same bytes however they came about."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcls import prepare
from jaxcls.data.formats import shards
from jaxcls.data.formats.folder import ImageFolder
from jaxcls.data.formats.records import Records
from jaxcls.data.host_crop import CenterSquare
from jaxcls.data.preparation import writer
from jaxcls.data.preparation.checker import verify
from jaxcls.data.preparation.images import Conversion
from jaxcls.data.preparation.writer import write_records
from jaxcls.errors import UserError

COMMAND = [sys.executable, "-m", "jaxcls.prepare"]


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_photos(root: Path, **counts: int) -> Path:
    """Writes images of two classes, wide, tall and small: so many a class of each split."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                width, height = [(320, 240), (150, 290), (40, 30)][number % 3]
                path = root / split / name / f"{number:03}.jpg"
                picture(rng, width, height).save(path, quality=90)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 training and 24 test images, which take long enough to be interrupted."""
    return write_photos(tmp_path_factory.mktemp("photos"), train=120, test=12)


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The records of the photos, made by one process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert prepare.main(arguments(photos, out, "--workers=1")) == 0
    return content(out)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """6 training and 2 test images."""
    root = tmp_path / "few"
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("test", 1)):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = root / split / name / f"{number}.jpg"
                picture(rng, 60, 40).save(path)
    return root


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def arguments(photos: Path, out: Path, *more: str) -> list[str]:
    return [
        "records",
        "--source=folder",
        f"--source.path={photos}",
        f"--out={out}",
        "--size=64",
        "--shard_mb=0.03",
        *more,
    ]


def start(*args: str, **more: Any) -> "subprocess.Popen[str]":
    """Starts the command in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def wait_for_work(process: "subprocess.Popen[str]", out: Path) -> None:
    """Waits until a file is in the making, or the process has ended."""
    while process.poll() is None and not list(out.glob("*.array_record*")):
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The processes that a process has started to work on images."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    working = []
    for child in map(int, found):
        try:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                working.append(child)
        except OSError:
            continue
    return working


@pytest.mark.parametrize("format", ["jpeg", "raw"])
def test_the_bytes_do_not_depend_on_the_workers(tmp_path: Path, format: Any) -> None:
    photos = write_photos(tmp_path / "photos", train=30, test=3)
    made = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        write_records(
            ImageFolder(path=str(photos)),
            out,
            size=32,
            format=format,
            shard_mb=0.01,
            workers=workers,
        )
        made.append(content(out))
    assert made[0] == made[1]
    assert len(made[0]) > 4 and "plan.json" not in made[0]
    assert not any(".part" in name for name in made[0])


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_after_kills_the_bytes_are_the_same(
    photos: Path, whole: dict[str, bytes], tmp_path: Path, kills: int
) -> None:
    """Kills the command at random moments and compares what becomes of it."""
    rng = random.Random(0)
    out = tmp_path / "out"
    killed = 0
    for attempt in range(6 * kills):
        workers = f"--workers={1 + attempt % 3}"
        process = start(*arguments(photos, out, workers))
        wait_for_work(process, out)
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        killed += process.returncode != 0
        if not (out / "index.json").exists():
            with pytest.raises(UserError, match=r"not complete|no folder|holds no"):
                Records(path=str(out)).source("train")
        else:
            assert content(out) == whole
            shutil.rmtree(out)
        if killed == kills:
            break
    assert killed == kills
    assert prepare.main(arguments(photos, out, "--workers=2")) == 0
    assert content(out) == whole


def test_the_processes_end_with_the_one_that_started_them(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = start(*arguments(photos, out, "--workers=2"))
    wait_for_work(process, out)
    pids = children(process.pid)
    assert len(pids) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in pids):
        assert time.monotonic() < deadline, "they work on"
        time.sleep(0.05)


def test_a_killed_worker_ends_it_with_a_sentence(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(*arguments(photos, out, "--workers=2"))
    wait_for_work(process, out)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "was killed, perhaps for want of memory" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list(out.glob("*.part")) and not (out / "index.json").exists()


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Processes that are started are interrupted by Ctrl-C, as they are not where the tests
    were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_says_that_it_goes_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(*arguments(photos, out, "--workers=2"))
    while process.poll() is None and not children(process.pid):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.3))  # also while they are being started
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped; the same command goes on" in errors and "Traceback" not in errors
    assert not list(out.glob("*.part"))


def test_finished_files_are_kept_and_damaged_ones_made_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    dataset = ImageFolder(path=str(photos))
    write_records(dataset, out, size=32, shard_mb=0.02)
    expected = content(out)
    # As it is when it was killed just before the index.
    plan = json.loads((out / "index.json").read_text())["made_from"]
    (out / "index.json").unlink()
    (out / "plan.json").write_text(json.dumps(plan))
    one, two, three, *_ = sorted(out.glob("train-*"))
    one.unlink()
    damaged = bytearray(two.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    two.write_bytes(damaged)
    three.write_bytes(three.read_bytes()[:-1])
    (out / "train-00000-of-00009.array_record.1-abc.part").write_bytes(b"half")
    written = []
    write = shards.write

    def noted(path: Path, items: Any) -> None:
        written.append(path)
        write(path, items)

    monkeypatch.setattr(shards, "write", noted)
    write_records(dataset, out, size=32, shard_mb=0.02)
    assert content(out) == expected
    assert written == [one, two, three]
    write_records(dataset, out, size=32, shard_mb=0.02)  # all is there
    assert len(written) == 3


def test_a_folder_with_something_else_is_not_touched(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dataset = ImageFolder(path=str(few))
    write_records(dataset, out, size=32)
    before = content(out)
    with pytest.raises(
        UserError, match=r"something else \(quality was 90 and is now 80\)"
    ):
        write_records(dataset, out, size=32, quality=80)
    assert content(out) == before
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json.7-abc.part").write_text("{")  # killed very early
    write_records(dataset, tmp_path / "begun", size=32)
    assert content(tmp_path / "begun") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("...")
    with pytest.raises(UserError, match="is not empty"):
        write_records(dataset, tmp_path / "mine")
    assert list(content(tmp_path / "mine")) == ["thesis.txt"]
    with pytest.raises(UserError, match=r"cannot write \S+thesis.txt"):
        write_records(dataset, tmp_path / "mine" / "thesis.txt")


def test_two_at_once_do_not_get_in_each_others_way(few: Path, tmp_path: Path) -> None:
    with writer.alone_in(tmp_path / "out"):
        with pytest.raises(UserError, match="another process writes"):
            write_records(ImageFolder(path=str(few)), tmp_path / "out")


def stored(few: Path, tmp_path: Path, **options: Any) -> list[bytes]:
    """The training images of records made of a folder."""
    out = tmp_path / "out"
    channels = options.pop("channels", 3)
    write_records(ImageFolder(path=str(few), channels=channels), out, **options)
    encoded = Records(path=str(out)).encoded("train")
    return [encoded.read(index) for index in range(len(encoded))]


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("sides", "options", "expected"),
    [
        ((300, 200), {"size": 100}, (150, 100)),
        ((200, 300), {"size": 100}, (100, 150)),
        ((201, 300), {"size": 100}, (100, 149)),
        ((1000, 100), {"size": 50, "max_size": 200}, (200, 20)),
        ((1000, 100), {"size": 200, "max_size": 500}, (500, 50)),
        ((70_000, 2), {"size": 64}, (65_500, 2)),
        ((90, 80), {"size": 100}, (90, 80)),
    ],
)
def test_images_are_made_smaller_and_never_larger(
    few: Path,
    tmp_path: Path,
    sides: tuple[int, int],
    options: dict[str, int],
    expected: tuple[int, int],
) -> None:
    image = picture(np.random.default_rng(1), *sides)
    image.save(few / "train" / "a" / "0.bmp")
    (few / "train" / "a" / "0.jpg").unlink()
    made = opened(stored(few, tmp_path, **options)[0])
    assert made.format == "JPEG" and made.size == expected
    if max(sides) < 500:
        reference = image.resize(expected, Image.Resampling.BICUBIC)
        difference = np.asarray(made, int) - np.asarray(reference, int)
        assert np.abs(difference).mean() < 3


def test_small_jpegs_and_pngs_are_kept_byte_for_byte(few: Path, tmp_path: Path) -> None:
    image = picture(np.random.default_rng(1), 20, 30)
    image.quantize(16).save(few / "train" / "a" / "0.png")
    (few / "train" / "a" / "0.jpg").unlink()
    made = stored(few, tmp_path, size=40)
    paths = sorted((few / "train").glob("*/*"))
    assert made == [path.read_bytes() for path in paths]


def test_quality_orientation_and_channels(few: Path, tmp_path: Path) -> None:
    image = picture(np.random.default_rng(1), 200, 100)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(few / "train" / "a" / "0.jpg", quality=95, exif=exif)
    made = {
        quality: stored(few, tmp_path / str(quality), size=50, quality=quality)[0]
        for quality in (20, 95)
    }
    assert len(made[20]) < 0.7 * len(made[95])
    turned = opened(made[95])
    assert turned.size == (50, 100) and not turned.getexif()
    reference = image.rotate(-90, expand=True).resize((50, 100))
    assert np.abs(np.asarray(turned, int) - np.asarray(reference, int)).mean() < 4
    grey = opened(stored(few, tmp_path / "grey", size=50, channels=1)[0])
    assert grey.mode == "L" and grey.size == (50, 100)


def test_a_bad_image_stops_it_or_is_left_out(few: Path, tmp_path: Path) -> None:
    bad = few / "train" / "a" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    out = tmp_path / "out"
    node = ImageFolder(path=str(few))
    for format in ("jpeg", "raw"):
        with pytest.raises(
            UserError, match=r"a/1.jpg: it is a damaged .*on_bad_image=skip"
        ):
            write_records(node, out, size=16, format=format)
        assert not (out / "index.json").exists()
        shutil.rmtree(out, ignore_errors=True)
    node = ImageFolder(path=str(few), on_bad_image="skip")
    with pytest.raises(
        UserError, match=r"1 of 6 images of train .* share 0.001"
    ) as caught:
        write_records(node, out, size=16)
    assert f": {few}/train/a/1.jpg: it is a damaged" in str(caught.value)
    node.max_bad_share = 0.2
    index = write_records(node, out, size=16)
    ((name, reason),) = index["splits"]["train"]["left_out"]
    assert name == "train/a/1.jpg" and "damaged" in reason
    assert index["splits"]["train"]["labels"] == [0, 0, 1, 1, 1]
    encoded = Records(path=str(out)).encoded("train")
    assert [encoded.item(i).name for i in range(5)] == [
        "train/a/0.jpg",
        "train/a/2.jpg",
        "train/b/0.jpg",
        "train/b/1.jpg",
        "train/b/2.jpg",
    ]
    assert [encoded.item(i).position for i in range(5)] == [0, 2, 3, 4, 5]
    assert verify(out) == 7


def test_an_unreadable_file_is_named(few: Path, tmp_path: Path) -> None:
    path = few / "train" / "a" / "1.jpg"
    node = ImageFolder(path=str(few))
    encoded = node.encoded("train")
    path.unlink()
    with pytest.raises(UserError, match=r"a/1.jpg: cannot be read \(No such file"):
        job = writer.Job(
            tmp_path,
            base="",
            splits={"train": encoded},
            convert=Conversion("raw", 8, None, 90, 3),
            skip=False,
            max_bad_share=0,
        )
        file = writer.RecordFile("train", "x", range(6))
        writer.write_file(job, file, lambda _: None)
    assert not list(tmp_path.glob("x*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A folder on a disk of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_sentence(
    photos: Path,
    whole: dict[str, bytes],
    small_disk: Path,
    capfd: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    out = small_disk / "out"
    code = prepare.main(arguments(photos, out, f"--workers={workers}"))
    errors = capfd.readouterr().err  # that of worker processes too
    assert code == 2, errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: cannot write ") and "the disk is full" in last
    assert "Traceback" not in errors
    left = content(out)
    assert "index.json" not in left and not any(".part" in name for name in left)
    with pytest.raises(UserError, match="not complete"):
        Records(path=str(out)).source("train")
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    assert prepare.main(arguments(photos, out, "--workers=1")) == 0
    assert content(out) == whole


def test_a_disk_that_is_full_from_the_start(few: Path, small_disk: Path) -> None:
    with (small_disk / "filling").open("wb") as file:
        try:
            file.write(bytes(1_000_000))
        except OSError:
            pass
    with pytest.raises(UserError, match="the disk is full"):
        write_records(ImageFolder(path=str(few)), small_disk / "out")


def test_shared_memory_is_not_needed(few: Path, tmp_path: Path) -> None:
    command = [*COMMAND, *arguments(few, tmp_path / "out", "--workers=2")]
    unshared = ["unshare", "--mount", "sh", "-c"]
    readonly = "mount -t tmpfs -o ro,size=4k tmpfs /dev/shm"
    if (
        os.geteuid()
        or shutil.which("unshare") is None
        or subprocess.run([*unshared, readonly], capture_output=True).returncode
    ):
        pytest.skip("mounting a small /dev/shm is not allowed here")
    done = subprocess.run(
        [*unshared, f'{readonly} && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert verify(tmp_path / "out") == 8


def test_check_reports_what_is_wrong(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.jsonl"
    command = ["check", "--source=folder", f"--source.path={few}", f"--report={report}"]
    assert prepare.main([*command, "--workers=1"]) == 0
    assert capsys.readouterr().out.startswith("8 good images, 0 bad\n")
    bad = few / "test" / "b" / "0.jpg"
    bad.write_bytes(b"no image at all")
    picture(np.random.default_rng(0), 7, 5).convert("L").save(few / "train/a/0.png")
    assert prepare.main([*command, "--workers=2"]) == 2
    *lines, last = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(line["split"], line["path"]) for line in lines] == [("test", str(bad))]
    assert lines[0]["reason"]
    assert last == {
        "images": 9,
        "bad": 1,
        "formats": {"JPEG": 7, "PNG": 1},
        "modes": {"RGB": 7, "L": 1},
        "sizes": {"60x40": 7, "7x5": 1},
    }
    assert f"8 good images, 1 bad ({report} names each)" in capsys.readouterr().out


def test_verify_says_what_is_damaged(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    write_records(ImageFolder(path=str(few)), out)
    assert prepare.main(["verify", f"--path={out}", "--workers=2"]) == 0
    assert "8 records, all as its index.json says" in capsys.readouterr().out
    index = json.loads((out / "index.json").read_text())
    index["splits"]["test"]["labels"] = [1, 0]
    (out / "index.json").write_text(json.dumps(index))
    assert prepare.main(["verify", f"--path={out}", "--workers=1"]) == 2
    assert "has other labels" in capsys.readouterr().err
    next(out.glob("test-*")).unlink()
    assert prepare.main(["verify", f"--path={out}", "--workers=1"]) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("records --out=x", "--source is missing"),
        ("records --source=digits", "--out is missing"),
        ("verify", "--path is missing"),
        ("verify --path=x y", "unknown argument 'y'"),
        ("check --source=digit", "Did you mean 'digits'?"),
        ("check --source=digits --sauce=3", "unknown argument '--sauce=3'"),
        ("check --source=folder", "--source.path=..."),
        ("check --source=folder --source.test_shape=1", "Did you mean 'test_share'?"),
        ("check --source=folder --source.test_share=x", "--source.test_share is 'x'"),
        ("check --source=folder --source.canvas.size=9", "changes nothing here"),
        ("check --source=folder --source.cache_mb=9", "changes nothing here"),
        ("check --source=digits --workers=0", "--workers must lie in 1..1024"),
        ("records --source=digits --out=x --size=0", "--size must lie in 1..8192"),
        ("records --source=digits --out=x --quality=101", "--quality must lie in"),
        (
            "records --source=digits --out=x --max_size=9",
            "--max_size must lie in 256..",
        ),
        ("records --source=digits --out=x --shard_mb=0", "--shard_mb must lie above"),
    ],
)
def test_mistakes_are_one_sentence(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_lists_the_options_that_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["records", "--source=folder", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--shard_mb" in shown and "--source.test_share=0.2" in shown
    assert "canvas" not in shown and "prefetch" not in shown


def test_a_folder_and_its_records_give_the_same_batches(
    few: Path, tmp_path: Path
) -> None:
    canvas = CenterSquare(size=24)
    write_records(ImageFolder(path=str(few)), tmp_path / "jpeg", size=64)
    write_records(ImageFolder(path=str(few)), tmp_path / "raw", size=24, format="raw")
    ids = np.arange(6)
    batches = [
        node.source("train").gather(ids)  # type: ignore[attr-defined]
        for node in (
            ImageFolder(path=str(few), canvas=canvas),
            Records(path=str(tmp_path / "jpeg"), canvas=canvas),
            Records(path=str(tmp_path / "raw")),
        )
    ]
    for batch in batches[1:]:
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], batches[0][name])


def test_a_source_without_files_needs_no_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["records", "--source=digits", f"--out={out}", "--workers=1"]
    assert prepare.main(command) == 0
    shown = capsys.readouterr().out
    assert "train: 1,437 images in 1 file, " in shown
    assert "test: 360 images in 1 file, " in shown
    assert len(Records(path=str(out)).source("test")) == 360


def test_runs_as_a_module_and_its_processes_do_without_jax(
    few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [*COMMAND, *arguments(few, out, "--workers=2")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "train: 6 images in " in done.stdout
    assert len(Records(path=str(out)).encoded("test")) == 2
    script = "import sys, jaxcls.prepare; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
