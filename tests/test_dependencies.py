"""One lower bound for each dependency, and the constraints by which CI tests exactly these versions. After a bound was
changed, running this file as a program writes the constraints anew:

    python tests/test_dependencies.py > .github/lowest.txt
"""

import re
import sys
import tomllib
from pathlib import Path


ROOT = Path(__file__).parent.parent
HEADER = """\
# The oldest declared version of every dependency but torch, whose build depends on the machine.
# Written by: python tests/test_dependencies.py > .github/lowest.txt
"""


def lower_bounds() -> dict[str, set[str]]:
    """The lower bounds that pyproject.toml declares for each package, in all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {}
    for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
        if found := re.match(r"([\w.-]+)>=([\d.]+)", requirement):
            bounds.setdefault(found[1], set()).add(found[2])
    return bounds


def constraints() -> str:
    pins = sorted(f"{name}=={min(bounds)}\n" for name, bounds in lower_bounds().items() if name != "torch")
    return HEADER + "".join(pins)


def test_each_dependency_has_one_lower_bound():
    assert {name: bounds for name, bounds in lower_bounds().items() if len(bounds) > 1} == {}


def test_lowest_versions_are_those_declared():
    assert (ROOT / ".github" / "lowest.txt").read_text() == constraints()


if __name__ == "__main__":
    sys.stdout.write(constraints())
