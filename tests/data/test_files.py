"""Files and folders that appear when they are complete."""

import pytest

from sama.data.files import atomic_path, remove_temporaries, write_text_atomically


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text_atomically(path, "old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_an_error_leaves_nothing(tmp_path, folder):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.mkdir() if folder else temporary.write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.mkdir()
        (temporary / "b").write_text("c")
    assert (tmp_path / "a" / "b").read_text() == "c"


def test_what_a_killed_process_left_is_removed(tmp_path):
    blocks = [atomic_path(tmp_path / name) for name in ("a.jsonl", "b.json", "folder")]
    for block in blocks:  # never left, as if the process was killed in it
        block.__enter__().touch()
    (tmp_path / ".hidden.part.json").touch()
    (tmp_path / "b.json").touch()
    assert len(list(tmp_path.iterdir())) == 5
    remove_temporaries(tmp_path, {"a.jsonl"})
    assert len(list(tmp_path.iterdir())) == 4
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.part.json", "b.json"]
