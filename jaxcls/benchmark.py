"""Measures the augmentation, `python -m jaxcls.benchmark augment`, and the input pipeline,
`python -m jaxcls.benchmark input`, on this machine."""

import argparse
import sys
from collections.abc import Sequence

from jaxcls.benchmarks import augmentation, input_pipeline
from jaxcls.commands import exit_code


@exit_code
def main(argv: Sequence[str]) -> int | None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxcls.benchmark",
        description="Measures jaxcls on this machine.",
    )
    parser.add_argument("what", choices=["augment", "input"], help="what to measure")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.what == "input":
        return input_pipeline.main(rest)
    parser.parse_args(argv)
    augmentation.measure()
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
