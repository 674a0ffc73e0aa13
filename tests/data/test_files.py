"""Files and folders that appear when they are complete."""

import pytest

from sama.data.files import atomic_path, write_text_atomically


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
