"""docs/annotation.md: names every code and file, and its commands have options that exist."""

import re
import shlex
from pathlib import Path

import pytest
import worked_example

from sama.annotation import command as annotate
from sama.annotation.pipeline import ERRORS, FILES
from sama.annotation.problems import CODES


PAGE = (Path(__file__).parent.parent.parent / "docs" / "annotation.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_every_code_and_file_is_explained():
    assert [code for code in CODES if f"`{code}`" not in PAGE] == []
    assert [name for name in (*FILES, ERRORS) if f"`{name}.jsonl`" not in PAGE] == []


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("sama annotate --videos")])
def test_commands_can_be_parsed(line):
    assert annotate.parse(shlex.split(line)[2:])


def test_the_table_is_of_the_example_that_the_tests_run():
    rows = re.findall(r"^exact checks +(\d+) +(\d+) +(\d+) +1\.000 +1\.000$", PAGE, re.MULTILINE)
    others = re.findall(r"^asked of a model +(\d+) ", PAGE, re.MULTILINE)
    assert len(rows) == 1 and int(rows[0][0]) + int(others[0]) == worked_example.NUM_MISTAKES
    assert "python tests/annotation/worked_example.py --output outputs/annotation_example" in COMMANDS
