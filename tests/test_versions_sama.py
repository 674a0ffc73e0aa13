"""The supported versions of transformers: one clear sentence outside the range."""

import re
import subprocess
import sys
import tomllib

import pytest
from checkpoint import CHECKPOINT

from sama import versions_sama


ROOT = CHECKPOINT.parent.parent
PROGRAM = """
import sys
from transformers import AutoConfig, AutoModel, AutoProcessor

for version in sys.argv[2:]:
    sys.modules["transformers"].__version__ = version
    for auto in (AutoConfig, AutoModel, AutoProcessor):
        try:
            auto.from_pretrained(sys.argv[1], trust_remote_code=True)
        except ImportError as error:
            print(error)
"""


@pytest.mark.parametrize("version", ["5.17.0", "5.17.0.dev0", "5.24.1rc1", "5.30", "5.99.0"])
def test_supported_versions(version):
    assert versions_sama.check_transformers(version) == tuple(map(int, version.split(".")[:2]))


@pytest.mark.parametrize("version", ["4.57.6", "5.9.0", "5.16.1", "6.0.0", "6.0.0.dev0", "10.2.0"])
def test_other_versions_are_refused_in_one_sentence(version):
    with pytest.raises(ImportError) as caught:
        versions_sama.check_transformers(version)
    assert str(caught.value) == (
        f"SAMA needs transformers >= 5.17 and < 6, but version {version} is installed. "
        'Run: pip install "transformers>=5.17,<6"'
    )


def test_package_declares_the_same_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "transformers>=5.17,<6" in project["dependencies"]


def test_checkpoint_refuses_other_versions_outside_the_repository(tmp_path):
    versions = ["5.16.1", "6.0.0"]
    command = [sys.executable, "-c", PROGRAM, str(CHECKPOINT), *versions]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    found = re.findall(r"SAMA needs .* but version (\S+) is installed\. Run: pip install", result.stdout)
    assert found == [version for version in versions for _ in range(3)]


def test_processor_names_all_files_it_needs():
    """The loader of transformers 5.9 and older copies no others, and fails before the version check if one lacks."""

    def named(name: str) -> set[str]:
        return set(re.findall(r"^from \.(\w+) import", (ROOT / f"{name}.py").read_text(), re.MULTILINE))

    direct = named("processing_sama")
    indirect = set().union(*map(named, direct))
    assert indirect <= direct
