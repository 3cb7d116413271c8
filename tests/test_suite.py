"""Every test is run by some command of the README: by default, or by its marker."""

import re
import tomllib

from tests import commands

PYTEST = tomllib.loads((commands.ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
OPTIONS = PYTEST["ini_options"]
MARKERS = {line.split(":")[0] for line in OPTIONS["markers"]}


def test_each_marker_is_left_out_by_default_and_has_its_command_in_the_readme() -> None:
    assert set(re.findall(r"not (\w+)", OPTIONS["addopts"])) == MARKERS
    table = (commands.ROOT / "README.md").read_text().split("\n## Tests\n")[1]
    rows = [row for row in table.split("\n## ")[0].splitlines() if "pytest -m" in row]
    named = {re.match(r"\| `(\w+)`: .* -m pytest -m (\w+)` \|", row) for row in rows}
    assert {match.groups() for match in named if match} == {(m, m) for m in MARKERS}
    assert len(rows) == len(MARKERS)
