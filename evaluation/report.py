"""Results as tables for the terminal and for Markdown, and as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sama.benchmarks.benchmark import Score, Scores
from sama.data.files import write_text_atomically
from sama.drawing.tables import markdown_table


RESULTS, TABLE = "results.json", "results.md"
HEADER = ("part", "score", "value", "95 %", "published", "chance", "count")


def rows_of(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """
    The rows of the table as text, the header first. Columns without any entry are left out. The reasons for missing
    values are listed separately, see [`reasons_of`].
    """
    rows = [
        (
            score.part,
            score.name,
            _number(score.value) if score.value is not None else "none",
            "" if score.interval is None else f"{_number(score.interval[0])} to {_number(score.interval[1])}",
            _number(score.published),
            _number(score.chance),
            str(score.count),
        )
        for score in scores
    ]
    kept = [column for column in range(len(HEADER)) if column < 3 or any(row[column] for row in rows)]
    return [tuple(row[column] for column in kept) for row in [HEADER, *rows]]


def reasons_of(scores: Sequence[Score]) -> list[str]:
    """One line per reason for missing values, with the names of the scores it applies to. A name may hold commas."""
    names_by_reason: dict[str, dict[str, None]] = {}  # a dictionary as an ordered set
    for score in scores:
        if score.value is None:
            names_by_reason.setdefault(score.reason, {})[score.name] = None
    return [f"no {'; '.join(names)}: {reason}" for reason, names in names_by_reason.items()]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def terminal_table(scores: Sequence[Score]) -> str:
    """The table with aligned columns, each part named once, and the reasons for missing values below it."""
    rows = rows_of(scores)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines, last = [], None
    for row in rows:
        shown = ("" if row[0] == last else row[0], *row[1:])
        last = row[0]
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(shown, widths, strict=True)).rstrip())
    reasons = reasons_of(scores)
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def markdown(about: Mapping, scores: Scores) -> str:
    """The content of `results.md`: settings of the run, table, and failures."""
    samples = about["samples"]
    rows = rows_of(scores.rows)
    lines = [
        f"# {about['benchmark']} {about['split']}",
        "",
        f"{_described_run(about)}.",
        *(f"Some answers may be of an earlier run: {_described_run(earlier)}." for earlier in about.get("before", ())),
        "",
        f"{samples['scored']} questions scored, {samples['failed']} failed, {samples['skipped']} not asked.",
        "",
        markdown_table(rows[0], rows[1:]),
        "",
        *(f"- {reason}" for reason in reasons_of(scores.rows)),
        *(f"- left out of the annotation files: {count} {reason}" for reason, count in about["left_out"].items()),
        *(f"- failed: `{failure['question']}`: {failure['error']}" for failure in about["failures"][:20]),
        *([f"- and {len(about['failures']) - 20} more"] if len(about["failures"]) > 20 else []),
        "",
        f"    {about['command']}",
        "",
    ]
    return "\n".join(lines)


def _described_run(about: Mapping) -> str:
    """What predicted, and with which settings, as a phrase."""
    return (
        f"Checkpoint `{about.get('model', 'unknown')}` ({about.get('checkpoint', 'unknown')}), commit "
        f"{about['commit']}, benchmark version {about['version']}, preset {about['preset']}"
        + "".join(f", {name} {value}" for name, value in about["options"].items())
    )


def write_report(folder: Path, about: Mapping, scores: Scores) -> None:
    """Writes `results.json` and `results.md`."""
    content = {**about, "scores": [asdict(row) for row in scores.rows]}
    write_text_atomically(folder / RESULTS, json.dumps(content, indent=2) + "\n")
    write_text_atomically(folder / TABLE, markdown(about, scores))
