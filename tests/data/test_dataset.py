"""What all datasets have in common, and their names."""

import re

import pytest

from jaxcls.data import (
    DATASETS,
    Dataset,
    Digits,
    create_dataset,
)
from jaxcls.errors import UserError
from jaxcls.options import check


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [("workers", 0, 256), ("threads", 1, 256), ("prefetch", 1, 1024)],
)
def test_loading_options_out_of_range(option: str, low: int, high: int) -> None:
    for value in (low - 1, high + 1):
        said = rf"^data\.{option} must lie in {low}\.\.{high}, not {value}\.$"
        with pytest.raises(UserError, match=said):
            check(Digits(**{option: value}), "data")
    for value in (low, high):
        check(Digits(**{option: value}))


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_dataset_is_made_by_name(name: str) -> None:
    made = create_dataset(name)
    assert type(made) is DATASETS[name]
    assert made == DATASETS[name]() and made is not create_dataset(name)
    try:
        check(made)
    except UserError as error:  # which option says where the images are
        assert re.search(r"is not set: .*--config\.data\.(path|name)=", str(error))


def test_digits_have_a_name() -> None:
    assert create_dataset("digits") == Digits()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "unknown dataset 'digit'. Did you mean 'digits'? Known datasets: "),
        ("xyz", "unknown dataset 'xyz'. Known datasets: "),
        ("", "unknown dataset ''. Known datasets: "),
    ],
)
def test_an_unknown_dataset_suggests(name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        create_dataset(name)
    assert str(error.value) == said + ", ".join(DATASETS) + "."


def test_a_dataset_must_say_where_its_records_are() -> None:
    class Forgetful(Dataset):
        pass

    with pytest.raises(TypeError, match=r"abstract class Forgetful .*source"):
        Forgetful()  # type: ignore[abstract]
