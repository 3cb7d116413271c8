"""The commands: `python -m jaxcls` lists them, `jaxcls train ...` is `python -m jaxcls.train ...`."""

import runpy
import sys

from jaxcls.errors import did_you_mean

COMMANDS = {
    "train": "trains a recipe, or continues its run",
    "evaluate": "evaluates a checkpoint on its test split",
    "preview": "draws what a recipe does to images",
    "lr_find": "looks for a learning rate",
    "probe": "fits a linear layer to the features of a network",
    "average": "averages the weights of checkpoints",
    "models": "lists the networks and their published weights",
    "prepare": "checks images, and writes them as records",
    "benchmark": "measures augmentation and input on this machine",
}


def main() -> int:
    """Runs the command that the first argument names; lists all without one."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        # As Python's own -m does; the command leaves with its exit code.
        sys.argv = [f"jaxcls {name}", *arguments]
        runpy.run_module(f"jaxcls.{name}", run_name="__main__", alter_sys=True)
        return 0
    width = max(map(len, COMMANDS))
    lines = [f"  {command:{width}}  {what}" for command, what in COMMANDS.items()]
    listing = "\n".join(["usage: jaxcls COMMAND ...", "", *lines])
    if name in ("-h", "--help", "help"):
        print(f"{listing}\n\njaxcls COMMAND --help lists the options of a command.")
        return 0
    print(
        f"error: there is no command '{name}'.{did_you_mean(name, COMMANDS)}\n{listing}",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main())
