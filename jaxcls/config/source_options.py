"""The options of a dataset without a recipe: --source NAME --source.OPTION=VALUE."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from jaxcls import options
from jaxcls.config.help import meaning
from jaxcls.config.overrides import override
from jaxcls.data import create_dataset
from jaxcls.data.dataset import Dataset
from jaxcls.errors import UserError


def parse(name: str, arguments: Sequence[str]) -> Dataset:
    """Returns the dataset `name` with its options set from "--source.OPTION=VALUE".

    Raises:
      UserError: for an unknown dataset, option or value.
    """
    dataset: Any = create_dataset(name)
    for argument in arguments:
        match = re.fullmatch(r"--source\.([^=]+)=(.*)", argument, re.DOTALL)
        if match is None:
            raise UserError(
                f"unknown argument '{argument}': options of the dataset are written "
                "--source.OPTION=VALUE. See --help."
            )
        override(dataset, match[1], match[2])
        if _is_of_training(match[1]):
            raise UserError(
                f"--source.{match[1]} is of training and changes nothing here: leave it out."
            )
    options.check(dataset, "--source")
    return dataset


def describe(name: str) -> str:
    """Returns a table of the options of a dataset that make a difference without training.

    Raises:
      UserError: if there is no such dataset.
    """
    lines = [f"options of --source {name}, with their values:"]
    for option, (owner, value) in options.options(create_dataset(name)).items():
        if not _is_of_training(option):
            lines.append(f"  --source.{option}={value!r}")
            lines.append(f"      {meaning(type(owner), option.rpartition('.')[2])}")
    return "\n".join(lines if len(lines) > 1 else [f"--source {name} has no options"])


def reworded(message: str) -> str:
    """Turns a message about the data of a recipe into one about --source."""
    message = re.sub(r"--config\.(data\.)?", "--source.", message)
    message = message.replace("the recipe has no option", "the dataset has no option")
    return message.replace("--help with --config", "--help with --source")


def _is_of_training(option: str) -> bool:
    """Whether an option of a dataset is about how training loads it."""
    of_all = {field.name for field in dataclasses.fields(Dataset)}
    return option.partition(".")[0] in of_all | {"canvas", "cache_mb"}
