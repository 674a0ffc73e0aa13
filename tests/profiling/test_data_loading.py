"""profiling/data_loading.py: the store and the baseline read the same masks, and the tables are filled."""

import pytest

from sama.profiling.data_loading import FRAMES, measure_masks, measure_samples, read_store, read_whole, write_masks


@pytest.mark.slow
def test_store_and_baseline_read_the_same_masks(tmp_path):
    count = write_masks(tmp_path / "masks.json", 1)
    assert (tmp_path / "masks.json").stat().st_size >= 1 << 20
    ways = [read(tmp_path / "masks.json", tmp_path / "cache") for read in (read_store, read_whole)]
    for key in ("0", str(count - 1)):
        assert ways[0](key) == ways[1](key) and len(ways[0](key)) == FRAMES


def test_samples_table(tmp_path):
    row = measure_samples(8, tmp_path, workers=1).splitlines()[-1]
    assert row.startswith("| toy.yaml | 1 | 4 |")


def test_disk_space_is_checked_first(tmp_path):
    with pytest.raises(SystemExit, match="and its store need .* MB of disk space"):
        measure_masks(10**9, tmp_path)
