"""The README's Python lines run, in a process and a folder of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent


def test_python_block_runs(tmp_path):
    if not (ROOT / "checkpoints" / "sama-tiny" / "config.json").is_file():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    for folder in ("checkpoints", "assets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    result = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "outputs" / "answer.mp4").stat().st_size > 0
