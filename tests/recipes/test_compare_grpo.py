"""The table of the comparison of supervision and reinforcement."""

from argparse import Namespace

import pytest

from sama.recipes.sama_tiny.compare_grpo import KINDS, keep_settings, table
from sama.training.checkpoints import TrainingError


def rows(kind: str, hits: int, count: int) -> list[dict]:
    return [{"kind": kind, "answer": float(place < hits), "masks": 0.5} for place in range(count)]


def test_table_has_each_kind_with_its_interval():
    base, trained = rows("count_look", 1, 2) + rows("order", 0, 2), rows("count_look", 2, 2) + rows("order", 0, 2)
    lines = table({"base": base, "reinforced": trained}).splitlines()
    assert lines[0] == "| questions | n | base | reinforced |" and len(lines) == 4 + len(KINDS)
    assert lines[3] == "| count_look | 2 | 0.50 (0.09 to 0.91) | 1.00 (0.34 to 1.00) |"
    assert "| count_motion | 0 |  |  |" in lines
    assert lines[-2].startswith("| all | 4 | 0.25") and lines[-1] == "| mask mIoU, all | 4 | 0.500 | 0.500 |"


def test_results_of_other_settings_are_not_taken(tmp_path):
    for _ in range(2):
        keep_settings(Namespace(to=tmp_path, steps=120, learning_rate=3e-6))
    with pytest.raises(TrainingError, match="with learning_rate 3e-06, not 3e-05"):
        keep_settings(Namespace(to=tmp_path, steps=120, learning_rate=3e-5))
