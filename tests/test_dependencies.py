"""One lower bound for each dependency, and the constraints by which CI tests exactly these versions. After a bound was
changed, running this file as a program writes the constraints anew:

    python tests/test_dependencies.py > .github/lowest.txt
"""

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


ROOT = Path(__file__).parent.parent
HEADER = """\
# The oldest declared version of every dependency but torch, whose build depends on the machine.
# Written by: python tests/test_dependencies.py > .github/lowest.txt
"""


def requirements() -> list[str]:
    """All that pyproject.toml declares, in all extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sum(project["optional-dependencies"].values(), project["dependencies"])


def lower_bounds() -> dict[str, set[str]]:
    """The lower bounds of each package."""
    bounds = {}
    for requirement in map(Requirement, requirements()):
        for one in requirement.specifier:
            if one.operator == ">=":
                bounds.setdefault(requirement.name, set()).add(one.version)
    return bounds


def constraints() -> str:
    pins = sorted(f"{name}=={min(bounds)}\n" for name, bounds in lower_bounds().items() if name != "torch")
    return HEADER + "".join(pins)


def test_each_dependency_has_one_lower_bound():
    assert {name: bounds for name, bounds in lower_bounds().items() if len(bounds) > 1} == {}


def test_no_lower_bound_is_left_out():
    """Also where extras stand between the name and the bound, as in `ray[data,serve]>=2.60`."""
    named = {re.match(r"[\w.-]+", one)[0] for one in requirements() if ">=" in one.partition(";")[0]}
    assert named == set(lower_bounds()) and "ray" in named


def test_lowest_versions_are_those_declared():
    assert (ROOT / ".github" / "lowest.txt").read_text() == constraints()


if __name__ == "__main__":
    sys.stdout.write(constraints())
