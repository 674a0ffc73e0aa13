"""The wheel: what it holds, and that it works in a fresh environment outside the repository.

Building and installing it takes a minute, so these tests are slow; CI runs them for every change, in a job of their
own. What pyproject.toml puts into the wheel is compared with the repository without building it.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import pytest
from test_layout import ROOT, listed_files


pytest.importorskip("build", reason="the package `build` is not installed: pip install -e '.[dev]'")
# Everything else in the repository is part of the wheel. `*` matches slashes too.
NOT_SHIPPED = (
    ".*",
    "tests/*",
    "deploy/*",
    "docs/*",
    "scripts/*",
    "assets/*.svg",
    "assets/*.webp",
    "assets/toy_world.jsonl",  # the exact masks of the clip, which its documentation shows
    "data_configs/README.md",
    "recipes/sama_tiny/README.md",
    "recipes/*.yaml",
    "recipes/*.sh",
)
LICENSES = ("LICENSE", "NOTICE", "assets/NOTICE")
SDIST_ONLY = {"MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", *LICENSES}
CLIP_FRAMES = 24  # of the generated example clip

# What runs in the fresh environment; its arguments are the packages to be found below `sama`. One process for all,
# since most of its time goes into the import of torch
CHECKS = """
import importlib, pkgutil, sys
from importlib.metadata import entry_points
from pathlib import Path

import sama
from sama import cli
from sama.benchmarks.from_catalogue import CATALOGUE
from sama.resources import EXAMPLE_CLIPS, SMALL_MODEL

ADAPTER = "sama.evaluation.lmms_eval_adapter"
assert Path(sama.__file__).is_relative_to(sys.prefix), sama.__file__
assert CATALOGUE.is_relative_to(sys.prefix) and CATALOGUE.is_file()
assert SMALL_MODEL.is_relative_to(sys.prefix)

names = {module.name for module in pkgutil.walk_packages(sama.__path__, "sama.")}
assert {f"sama.{name}" for name in sys.argv[1:]} <= names
for name in sorted(names):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        # lmms-eval is in no extra, and Ray in none of those that are installed here
        assert (name, error.name) in {(ADAPTER, "lmms_eval"), ("sama.serving.ray_app", "ray")}, error
assert [point.module for point in entry_points(group="lmms_eval.models", name="sama")][:1] == [ADAPTER]

try:
    cli.main(["convert", "--help"])
except SystemExit as stop:
    assert not stop.code
evaluate = ["evaluate", "--model", str(SMALL_MODEL), "--benchmark"]
assert cli.main([*evaluate, "mevis"]) == 1
toy_world = ["toy_world", "--option", "clips=2", "--limit", "2", "--no_gallery", "--max_new_tokens", "8"]
assert cli.main([*evaluate, *toy_world]) == 0
question = ["--ask", "What is <region>?", "--region", "frame=12,box=48,70,137,159", "--max-new-tokens", "8"]
assert cli.main(["chat", "--video", str(EXAMPLE_CLIPS / "toy_world.mp4"), *question, "--device", "cpu"]) == 0
"""


def shipped_files(listed: list[str]) -> set[str]:
    """Of the files of the repository, those that belong into the package."""
    at_root = {path for path in listed if "/" not in path and not path.endswith(".py")}
    return {path for path in listed if not any(fnmatch(path, pattern) for pattern in NOT_SHIPPED)} - at_root


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder with the source distribution and the wheel that `python -m build` made from it."""
    # A copy, since a build writes into the source tree, and would find leftovers of older builds there
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in listed_files():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, source / path)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, "."], cwd=source)
    return dist


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The programs of a fresh virtual environment that holds the wheel, and sees what is installed beside these tests.

    Folders named by a .pth file come after the environment's own, and .pth files inside them have no effect: the
    installed wheel is found before, and instead of, an editable install of this repository.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    (site_packages,) = [folder / "Lib" / "site-packages"] if os.name == "nt" else folder.glob("lib/*/site-packages")
    installed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "dependencies.pth").write_text("\n".join(installed) + "\n", encoding="utf-8")
    python = programs / Path(sys.executable).name
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel], cwd=folder)
    return programs


@pytest.fixture
def outside(environment, tmp_path):
    """Runs a program of the fresh environment in the empty folder `tmp_path / "outside"`, without PYTHONPATH."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SAMA_"))}
    variables |= {"HF_HOME": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    (tmp_path / "outside").mkdir()

    def start(program: str, *arguments, code: int = 0) -> subprocess.CompletedProcess:
        return run([environment / program, *arguments], cwd=tmp_path / "outside", env=variables, code=code)

    return start


def run(command: list, code: int = 0, **options) -> subprocess.CompletedProcess:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def test_pyproject_names_what_ships(monkeypatch):
    """The Python files and data files that setuptools would copy into the wheel."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools, which builds the wheel, is not installed")
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    folder = Path(command.build_lib, "sama")
    packed = {Path(path).relative_to(folder).as_posix() for path in command.get_output_mapping()}
    expected = shipped_files(listed_files())
    assert sorted(expected - packed) == [], "not in the wheel: add a package or package data in pyproject.toml"
    assert sorted(packed - expected) == [], "in the wheel by mistake"


@pytest.mark.package
@pytest.mark.slow
def test_wheel_holds_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    packed = {name.removeprefix("sama/") for name in names if name.startswith("sama/")}
    expected = shipped_files(listed_files())
    assert sorted(expected - packed) == [], "not in the wheel: add a package or package data in pyproject.toml"
    assert sorted(packed - expected) == [], "in the wheel by mistake"
    (metadata,) = {name.split("/")[0] for name in names if not name.startswith("sama/")}
    assert {f"{metadata}/licenses/{name}" for name in LICENSES} <= names


@pytest.mark.package
@pytest.mark.slow
def test_source_distribution_holds_what_the_build_needs(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    names = {name for name in names if not name.startswith("sama.egg-info/")}
    assert sorted(names ^ (shipped_files(listed_files()) | SDIST_ONLY)) == []


def test_shipped_files_finds_new_folders():
    listed = ["serve.py", "serving/web/page.js", "new/part.py", "tests/new/test_part.py", "Makefile", ".ci/run.py"]
    assert shipped_files(listed) == {"serve.py", "serving/web/page.js", "new/part.py"}


@pytest.mark.package
@pytest.mark.slow
def test_modules_and_commands(outside, tmp_path):
    """Evaluation and chat find the small model and the clip in the package, and write into the working directory."""
    packages = {path.split("/")[0] for path in shipped_files(listed_files()) if path.endswith(".py") and "/" in path}
    result = outside("python", "-c", CHECKS, *sorted(packages - {"checkpoints"}))
    assert result.stdout.startswith("usage: sama convert ")
    missing = "evaluate: mevis needs the folder of its data: pass --data_root or set SAMA_DATA_ROOT.\n"
    assert result.stderr.startswith(missing)
    outputs = tmp_path / "outside" / "outputs"
    folder = outputs / "evaluation" / "sama-tiny" / "toy_world-val-consistent"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["samples"]["scored"] == 2 and results["samples"]["failed"] == 0
    assert results["command"].startswith("sama evaluate --model ") and results["commit"] == "unknown"
    assert "Turn 1: What is <region>?" in result.stdout
    record = json.loads((outputs / "answer.json").read_text(encoding="utf-8"))
    assert record["num_frames"] == CLIP_FRAMES and record["turns"][0]["answer"]
    assert Path(record["model"]).is_dir() and not Path(record["model"]).is_relative_to(ROOT)


@pytest.mark.package
@pytest.mark.slow
def test_the_command_is_installed(outside):
    assert outside("sama", "--version").stdout == f"sama {version('sama')}\n"
