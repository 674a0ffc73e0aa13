"""docs/serving.md: its examples run as they stand, and its tables are those of the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sama.serving import security
from sama.serving.limits import described_limits, option
from sama.serving.routes import ERRORS


ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
INTERPRETERS = {
    "bash": ["bash", "-c"],
    "python": [sys.executable, "-c"],
    "javascript": ["node", "--input-type=module", "-e"],
}
TOOLS = {"bash": "curl", "python": sys.executable, "javascript": "node"}


def example(language: str) -> str:
    """The block of code that calls the server."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return next(block for block in found if "127.0.0.1:8000" in block and "sama serve" not in block)


@pytest.mark.parametrize("language", TOOLS)
def test_examples_run(server, language):
    if shutil.which(TOOLS[language]) is None:
        pytest.skip(f"{TOOLS[language]} is not installed")
    code = example(language).replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run([*INTERPRETERS[language], code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ring" in done.stdout


def test_limits_are_those_of_the_code():
    rows = [f"| `{option(one.name)}` | {default} | {text} |" for one, default, text in described_limits()]
    assert re.findall(r"^\| `--m[a-z-]+` .*$", PAGE, re.MULTILINE) == rows


def test_statuses_are_those_of_the_code():
    table = PAGE.partition("## Errors")[2].partition("## Limits")[0]
    named = {int(status) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for status in row.split(",")}
    assert named == set(ERRORS) - {416} | {405}


def test_guards_exist():
    table = PAGE.partition("## Who may do what")[2]
    names = set(re.findall(r"`(\w+Guard|access_for)`", table))
    assert names == {"BrowserGuard", "KeyGuard", "BodyGuard", "access_for"} and names <= set(vars(security))
