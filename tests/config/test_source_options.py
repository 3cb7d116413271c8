"""The options of --source, without a recipe."""

import pytest

from jaxcls.config import source_options
from jaxcls.data.formats.digits import Digits
from jaxcls.data.formats.folder import ImageFolder
from jaxcls.errors import UserError


def test_options_are_set() -> None:
    dataset = source_options.parse(
        "folder", ["--source.path=a=b", "--source.test_share=0.5"]
    )
    assert dataset == ImageFolder(path="a=b", test_share=0.5)
    assert source_options.parse("digits", []) == Digits()


@pytest.mark.parametrize(
    "option", ["workers", "sampling.repeats", "canvas", "cache_mb"]
)
def test_options_of_training_are_refused_and_not_listed(option: str) -> None:
    with pytest.raises(UserError, match=r"changes nothing here|part of the recipe"):
        source_options.parse("folder", ["--source.path=x", f"--source.{option}=2"])
    assert f"--source.{option}" not in source_options.describe("folder")


def test_messages_name_the_flag() -> None:
    with pytest.raises(UserError) as error:
        source_options.parse("folder", ["--source.path=x", "--source.test_share=x"])
    assert source_options.reworded(str(error.value)).startswith("--source.test_share")
    assert source_options.describe("digits") == "--source digits has no options"
