"""Markdown tables."""

import pytest

from sama.drawing.tables import markdown_table


def test_markdown_table():
    assert markdown_table(["a", "b"], [[1, "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        markdown_table(["a", "b"], [[1]])
