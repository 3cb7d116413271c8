"""Every marker of a test is left out by default, and README has the command that runs it."""

import re
import tomllib

from tests import commands

PYTEST = tomllib.loads((commands.ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
OPTIONS = PYTEST["ini_options"]
MARKERS = {line.split(":")[0] for line in OPTIONS["markers"]}


def test_each_marker_is_left_out_by_default_and_has_its_command_in_the_readme() -> None:
    assert set(re.findall(r"not (\w+)", OPTIONS["addopts"])) == MARKERS
    table = (commands.ROOT / "README.md").read_text().split("\n## Tests\n")[1]
    rows = table.split("\n## ")[0].splitlines()
    named = [re.match(r"\| `(\w+)`: .* -m pytest -m (\w+)` \|", row) for row in rows]
    found = [match.groups() for match in named if match]
    assert sorted(found) == sorted((name, name) for name in MARKERS)
