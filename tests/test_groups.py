"""The groups of test files that tests/conftest.py gives to one process each."""

import ast
import re
from pathlib import Path


TESTS = Path(__file__).parent


def test_files_that_fork_are_one_group():
    """What they fork from imports for seven seconds, in each test process that runs one of them."""
    tree = ast.parse((TESTS / "conftest.py").read_text(encoding="utf-8"))
    named = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    forking = {
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("test_*.py")
        if re.search(r"^(from|import) processes\b|\bDataLoader\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(forking) > 10 and forking <= set(ast.literal_eval(named["GROUPS"])["processes"])
