"""Markdown tables."""

from collections.abc import Sequence


def markdown_table(header: Sequence, rows: Sequence[Sequence]) -> str:
    """A Markdown table of `rows` below `header`; cells are written with `str`.

    Raises:
        ValueError: if a row has more or fewer cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"A row of the table has {len(row)} cells for {len(header)} columns: {list(row)!r}.")
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
