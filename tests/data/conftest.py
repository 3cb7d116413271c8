"""What the tests of data share."""

import pytest

from jaxcls.data.notes import note


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """Each test hears what is said once a process."""
    note.cache_clear()
