"""The README: its Python lines run, its commands and its tree exist, and its pictures are drawn here."""

import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from test_layout import ENTRY_POINTS

from sama.scripts import make_readme_picture


ROOT = Path(__file__).parent.parent
TINY = ROOT / "checkpoints" / "sama-tiny"
MAX_PICTURE_BYTES = 1_000_000


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_python_blocks_run_one_after_another(tmp_path, monkeypatch, capsys):
    if not (ROOT / "checkpoints" / "sama-tiny" / "config.json").is_file():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    for folder in ("checkpoints", "assets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(python_blocks()), "README.md", "exec"), {})  # noqa: S102, in this process, which has imported much
    assert "a large purple ring" in capsys.readouterr().out
    assert (tmp_path / "outputs" / "answer.mp4").stat().st_size > 0


def test_first_example_is_short_and_needs_no_import_of_ours():
    first = python_blocks()[0]
    assert len([line for line in first.splitlines() if line]) <= 10
    assert "sama." not in first.replace("sama-tiny", "")


def test_picture_is_animated_and_small():
    path = make_readme_picture.DEMO
    assert path.stat().st_size <= MAX_PICTURE_BYTES
    with Image.open(path) as picture:
        assert picture.n_frames > 1
    assert path.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text()


def test_architecture_is_that_of_the_code():
    drawn = make_readme_picture.ARCHITECTURE.read_text(encoding="utf-8")
    assert drawn == make_readme_picture.architecture(), "run: python scripts/make_readme_picture.py --architecture"


def test_renamed_function_is_an_error(tmp_path):
    (tmp_path / "code.py").write_text("class Model:\n    def run(self): ...\n")
    assert make_readme_picture.check_code("code.py:Model.run", tmp_path) == "Model.run"
    with pytest.raises(ValueError, match="no track. Was it renamed"):
        make_readme_picture.check_code("code.py:Model.track", tmp_path)


def test_arrows_that_follow_from_others_are_not_drawn():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert make_readme_picture.without_detours(graph) == {"a": {"b"}, "b": {"c"}, "c": set()}
    places = make_readme_picture.layered(graph, dict.fromkeys(graph, ""), columns=1)
    assert [places[name].row for name in "abc"] == [0, 1, 2]
    wide = {"a": set("bcdef"), **dict.fromkeys("bcdef", set())}
    places = make_readme_picture.layered(wide, dict.fromkeys(wide, ""), columns=3)
    assert [places[name].row for name in "abcdef"] == [0, 1, 1, 2, 2, 2]
    assert all(0 <= box.column <= 2 for box in places.values())


def test_part_without_a_description_is_an_error():
    graph = {name: set() for name in (*make_readme_picture.ROOMS, *make_readme_picture.MODEL_FILES, "attic")}
    with pytest.raises(ValueError, match="attic"):
        make_readme_picture.rooms_and_model_files(graph)


def readme_blocks(text: str, language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in blocks if name == language]


def missing_commands(readme: str, makefile: str) -> list[str]:
    """Commands of the README that name a make target or a file which does not exist."""
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    lines = [line for block in readme_blocks(readme, "bash") for line in block.splitlines()]
    lines += re.findall(r"`((?:make|python|bash) [^`]+)`", readme)
    missing = []
    for program, name in re.findall(r"^\s*(make|python|bash) ([\w./-]+)", "\n".join(lines), re.MULTILINE):
        if name not in targets if program == "make" else not (ROOT / name).is_file():
            missing.append(f"{program} {name}")
    return missing


def tree_paths(readme: str) -> list[str]:
    """The paths in the README's tree, in order: `├── name   comment`, four columns to a level."""
    paths, folders = [], {}
    for line in next(block for block in readme_blocks(readme, "") if "├──" in block).splitlines():
        branch = re.match(r"((?:│   |    )*)[├└]── (\S+)", line)
        if branch:
            depth = len(branch[1]) // 4
            folders[depth] = branch[2]
            paths.append("".join(folders[level] for level in range(depth)) + branch[2])
    return paths


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert missing_commands(readme, (ROOT / "Makefile").read_text(encoding="utf-8")) == []


def test_missing_commands_finds_them():
    readme = "`make tea`\n```bash\nmake test\npython absent.py --x\npython recipes/sama_tiny/initialize.py\n```\n"
    assert missing_commands(readme, "test:\n\ttrue\n") == ["python absent.py", "make tea"]


def test_readme_tree_is_the_tree():
    paths = tree_paths((ROOT / "README.md").read_text(encoding="utf-8"))
    if not TINY.is_dir():
        paths = [path for path in paths if not path.startswith("checkpoints/")]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert [path for path, count in Counter(paths).items() if count > 1] == []
    assert len(paths) <= 25


def test_readme_tree_names_the_entry_points():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in readme.splitlines() if "entry points, with" in line]
    assert set(re.findall(r"\b(\w+)\.py", line)) == ENTRY_POINTS


def test_tree_paths_reads_levels():
    tree = "```\nx/\n├── a/   first\n│   ├── b.py   second\n│   └── c/\n│       └── d.py\n└── e.md\n```\n"
    assert tree_paths(tree) == ["a/", "a/b.py", "a/c/", "a/c/d.py", "e.md"]
