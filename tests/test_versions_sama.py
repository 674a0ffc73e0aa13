"""The supported versions of transformers: one clear sentence outside the range. test_remote_code.py checks it with
the checkpoint's copy."""

import re
import tomllib

import pytest
from checkpoint import CHECKPOINT

from sama import versions_sama


ROOT = CHECKPOINT.parent.parent


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


def test_processor_names_all_files_it_needs():
    """The loader of transformers 5.9 and older copies no others, and fails before the version check if one lacks."""

    def named(name: str) -> set[str]:
        return set(re.findall(r"^from \.(\w+) import", (ROOT / f"{name}.py").read_text(), re.MULTILINE))

    direct = named("processing_sama")
    indirect = set().union(*map(named, direct))
    assert indirect <= direct
