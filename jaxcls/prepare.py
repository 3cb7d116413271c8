"""Makes images ready for training, once, and looks for what is wrong with them.

    python -m jaxcls.prepare records --source folder --source.path=pets --out pets-256
    python -m jaxcls.prepare check --source folder --source.path=pets
    python -m jaxcls.prepare verify --path pets-256

`--source NAME` is a dataset as a recipe names it after the colon, and `--source.OPTION=VALUE`
sets one of its options; `--source NAME --help` lists them. From Python: `write_records(dataset,
"pets-256")` of jaxcls.data.preparation.writer.

records resizes the images of both splits and writes them into ArrayRecord files of about
--shard_mb; `data=Records(path="pets-256")` trains on them. The short side becomes --size, the
long side at most --max_size; no image is enlarged. --format jpeg stores files: a JPEG or PNG
that is small enough already is kept byte for byte, any other image becomes a JPEG of --quality.
--format raw stores the pixels of the square in the middle, exactly --size wide (a smaller
photograph is enlarged to that). Datasets that are arrays, as CIFAR, are never enlarged.

Each file is written under a temporary name and renamed when it is complete. index.json comes
last. After a kill the same command keeps the complete files, reads them through, and writes the
others. What each file holds depends on the data's order and the options alone, so that the
bytes are the same for any number of workers and kills. Images that cannot be read stop it, or
are left out and listed in the index with --source.on_bad_image=skip.

check decodes every image and writes a report: a line of JSON for each that cannot be read, with
its path and the reason, and a last line that counts formats, modes and sizes.

verify reads record files through and compares them with their index.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jaxcls.commands import RUN_AGAIN, exit_code
from jaxcls.data.dataset import Dataset
from jaxcls.data.formats.records import INDEX
from jaxcls.data.notes import counted
from jaxcls.data.preparation.checker import check, verify
from jaxcls.data.preparation.writer import write_records
from jaxcls.errors import UserError

SOURCE = "--source NAME [--source.OPTION=VALUE ...]"

COMMANDS = {
    "records": (
        "writes both splits of a dataset, resized, as record files",
        f"{SOURCE} --out DIR [--size N] [--format jpeg|raw] ...",
        ("source", "out", "size", "max_size", "format", "quality", "shard_mb"),
    ),
    "check": (
        "decodes all images of a dataset and reports those that cannot be read",
        f"{SOURCE} [--report FILE] [--workers N]",
        ("source", "report"),
    ),
    "verify": (
        "reads record files through and compares them with their index",
        "--path DIR [--workers N]",
        ("path",),
    ),
}
"""What each command does, its usage and its flags; each has --workers and --help too."""

FLAGS: dict[str, dict[str, Any]] = {
    "source": {"metavar": "NAME", "help": "the dataset; with --help also its options"},
    "out": {"metavar": "DIR", "help": "a new folder, or where the same was begun"},
    "size": {"type": int, "help": "short side, pixels; 256"},
    "max_size": {"type": int, "help": "bound of the long side, pixels; none"},
    "format": {"choices": ["jpeg", "raw"], "help": "jpeg"},
    "quality": {"type": int, "help": "of JPEGs, 1..100; 90"},
    "shard_mb": {"type": float, "help": "megabytes a file, about; 128"},
    "report": {"help": "the file to write; check.jsonl"},
    "path": {"metavar": "DIR", "help": "the folder of the records"},
    "workers": {"type": int, "help": "processes; one a core"},
}
REQUIRED = ("source", "out", "path")


@exit_code
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code: 0; 2 for images that cannot be read; 75 if
    Ctrl-C stopped it and the same command goes on."""
    known, others = _parser().parse_known_args(argv)
    given = vars(known)
    command, parser = given.pop("command"), given.pop("parser")
    try:
        # Not at the top: the processes that work on images import this file, and need no JAX.
        from jaxcls.config import source_options
        from jaxcls.data.loader import available_cores

        if given.pop("help", False):
            print(parser.format_help())
            if "source" in given:
                print(source_options.describe(given["source"]))
            return 0
        for name in REQUIRED:
            if name in COMMANDS[command][2] and name not in given:
                raise UserError(f"--{name} is missing. See --help.")
        given.setdefault("workers", available_cores())
        if command == "verify":
            return _verify(others, **given)
        dataset = source_options.parse(given.pop("source"), others)
        return (_records if command == "records" else _check)(dataset, **given)
    except UserError as error:
        raise UserError(source_options.reworded(str(error))) from None
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was.", file=sys.stderr)
        return RUN_AGAIN


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line. What it gives has the parser of the command too."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (about, usage, flags) in COMMANDS.items():
        command = subparsers.add_parser(
            name,
            help=about,
            description=about,
            usage=f"python -m jaxcls.prepare {name} {usage}",
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            add_help=False,  # with --source there is more to print
        )
        command.add_argument("--help", "-h", action="store_true", help="this text")
        for flag in (*flags, "workers"):
            command.add_argument(f"--{flag}", **FLAGS[flag])
        command.set_defaults(parser=command)
    return parser


def _records(dataset: Dataset, **flags: Any) -> int:
    index = write_records(dataset, **flags)
    for split, part in index["splits"].items():
        megabytes = sum(file["bytes"] for file in part["files"]) / 1e6
        left_out = len(part["left_out"])
        note = f", {left_out:,} left out (see {INDEX})" if left_out else ""
        print(
            f"{split}: {counted(len(part['labels']), 'image')} in "
            f"{counted(len(part['files']), 'file')}, {megabytes:,.1f} MB{note}"
        )
    return 0


def _check(dataset: Dataset, report: str = "check.jsonl", **flags: Any) -> int:
    *bad, summary = check(dataset, report, **flags)
    names = f" ({report} names each)" if bad else ""
    good = summary["images"] - len(bad)
    print(f"{counted(good, 'good image')}, {len(bad):,} bad{names}")
    for title in ("formats", "modes", "sizes"):
        counts = [f"{number:,} {name}" for name, number in summary[title].items()]
        more = f", ... ({len(counts):,} in all)" if len(counts) > 5 else ""
        print(f"  {title}: {', '.join(counts[:5])}{more}")
    return 2 if bad else 0


def _verify(others: Sequence[str], path: str, **flags: Any) -> int:
    if others:
        raise UserError(f"unknown argument '{others[0]}'. See --help.")
    records = counted(verify(path, **flags), "record")
    print(f"{path}: {records}, all as its {INDEX} says")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
