"""
The report about a run: one HTML page that needs nothing else, with counts, reasons, costs, and conversations with
their frames. It is made from the files of the output folder alone.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.files import write_text_atomically
from ..data.frames import safe_path
from ..data.records import DataError, validate_record
from .costs import Sum, read_ledger, sum_up
from .errors import AnnotationError
from .html import Html, page, table, tag
from .json_lines import check_fields, read_objects
from .problems import CODES
from .render import COLORS


SAMPLE_FRAMES, EXAMPLES, SHOWN_ERRORS = 4, 2, 20
FRAME_WIDTH, QUALITY = 360, 80  # of the frames in the page: pixels, JPEG
LONGEST_TEXT = 400  # characters of an example
STATES = ("kept", "review", "rejected", "error")

STYLE = """
:root { color-scheme: light dark; --page: light-dark(#f4f5f7, #101216); --surface: light-dark(#fff, #181b20);
  --line: light-dark(#dfe2e8, #2b3038); --text: light-dark(#1a1d23, #e7e9ee); --muted: light-dark(#5a6170, #9aa2b1);
  --mark: light-dark(#eceef2, #262a31);
  --kept: #2f9e62; --review: #d9a514; --rejected: #cf4a3f; --error: #7d8593;
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; background: var(--page); color: var(--text); }
* { box-sizing: border-box; }
body { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 40px 0 12px; }
h3 { font-size: 14px; margin: 0; overflow-wrap: anywhere; }
p { margin: 0 0 8px; overflow-wrap: anywhere; } .muted { color: var(--muted); font-size: 13px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 16px 0; }
.tile, article, .scroll { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; }
.tile { padding: 12px 16px; } .tile b { display: block; font-size: 22px; line-height: 1.3; }
.bar { display: flex; gap: 2px; height: 12px; border-radius: 6px; overflow: hidden; background: var(--line); }
.bar i { flex: var(--share) 0 0; } .kept { background: var(--kept); } .review { background: var(--review); }
.rejected { background: var(--rejected); } .error { background: var(--error); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0 0; padding: 0; list-style: none; }
.legend i { display: inline-block; width: 10px; height: 10px; margin-right: 6px; border-radius: 3px; }
.scroll { overflow-x: auto; } table { width: 100%; border-collapse: collapse; }
th, td { padding: 7px 12px; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; } td p { margin: 0 0 4px; min-width: 260px; }
td:first-child { white-space: nowrap; }
@media (max-width: 700px) { .reasons th:last-child { display: none; } .reasons td p { min-width: 0; }
  .reasons tr { display: grid; grid-template-columns: 1fr 68px 60px 112px; border-bottom: 1px solid var(--line); }
  .reasons td, .reasons th { border: 0; } .reasons td:last-child { grid-column: 1 / -1; padding-top: 0; } }
code { font: 12.5px/1.5 ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; overflow-wrap: anywhere; }
article { padding: 16px; margin: 0 0 16px; } article > p { max-width: 78ch; }
.frames { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(150px, 45%), 1fr)); gap: 8px;
  margin: 12px 0; max-width: 1080px; }
figure { margin: 0; max-width: 360px; } figcaption { color: var(--muted); font-size: 12px; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.asked { margin-top: 12px; font-weight: 600; } .phrase { padding: 1px 4px; border-radius: 4px;
  background: color-mix(in srgb, var(--object) 24%, var(--mark)); box-shadow: inset 0 -2px var(--object); }
.object { display: inline-block; min-width: 18px; margin-right: 2px; padding: 0 5px; border-radius: 5px;
  background: var(--object); box-shadow: 0 0 0 1px var(--line); color: #14161a; font-size: 12px; font-weight: 700;
  text-align: center; }
details { margin-top: 40px; } summary { cursor: pointer; font-weight: 600; } pre { overflow-x: auto; }
"""


def write_report(folder: str | Path, spent: Mapping[tuple[str, str], Sum] | None = None) -> Path:
    """
    Writes `report.html` into an output folder and returns its path.

    Args:
        folder (`str` or `Path`)
        spent (`dict[tuple[str, str], Sum]`, *optional*): [`Costs.table`], in which earlier calls have prices that were
            given later; by default what the ledger holds.

    Raises:
        [`AnnotationError`]: A file of the folder is missing or damaged.
    """
    folder = Path(folder)
    run = _read_run(folder / "run.json")
    ledger = folder / "costs.jsonl"
    if spent is None:
        spent = sum_up(read_ledger(ledger)) if ledger.is_file() else {}
    parts = [
        tag("h1", "Annotation report"),
        tag("p", _models(run), class_="muted"),
        _overview(run, spent),
        _stages(run),
        _reasons(run, folder / "rejected.jsonl"),
        _costs(run, spent),
        _errors(folder / "errors.jsonl"),
        _samples(folder),
        tag("details", tag("summary", "Settings"), tag("pre", tag("code", json.dumps(run["settings"], indent=1)))),
    ]
    path = folder / "report.html"
    write_text_atomically(path, page("Annotation report", STYLE, parts))
    return path


# ---- reading


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AnnotationError(f"{path} does not exist: a report needs the output folder of a run.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} cannot be read: {error}") from None
    names = ("settings", "models", "videos", "items", "findings", "reasons")
    if not isinstance(run, dict) or any(not isinstance(run.get(name, {}), dict) for name in names):
        raise AnnotationError(f"{path} has another form than annotate.py writes.")
    return {name: run.get(name, {}) for name in names}


def _rows(path: Path, fields: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of a file of the output folder, none if it does not exist."""
    return (row for _, row in read_objects(path, fields, missing=True))


# ---- sections


def _models(run: Mapping[str, Any]) -> str:
    """Role, name, version and host of each model."""
    names = []
    for role, model in run["models"].items():
        check_fields(model, {"model": str, "revision": str, "host": str}, f"run.json, model of the {role}")
        host = f" at {model['host']}" if model["host"] else ""
        names.append(f"{role}: {' '.join(filter(None, (model['model'], model['revision'])))}{host}")
    return ", ".join(names)


def _stage_counts(run: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """By stage: how many items were made, kept, rejected and so on."""
    stages = {name: counts for name, counts in run["items"].items() if isinstance(counts, dict)}
    return {name: {key: _count(value) for key, value in counts.items()} for name, counts in stages.items()}


def _overview(run: Mapping[str, Any], spent: Mapping[tuple[str, str], Sum]) -> list[Html]:
    videos = {state: _count(run["videos"].get(state)) for state in STATES}
    kept = sum(counts.get("kept", 0) for counts in _stage_counts(run).values())
    made = sum(counts.get("items", 0) for counts in _stage_counts(run).values())
    tiles = [("videos", f"{sum(videos.values()):,}"), ("items kept", f"{kept:,} of {made:,}")]
    money, tokens = sum(one.money for one in spent.values()), sum(one.tokens for one in spent.values())
    tiles.append(("tokens", f"{tokens:,}"))
    if any(one.calls > one.unpriced for one in spent.values()):
        # The ledger is that of the folder: it has the calls of earlier runs, too
        tiles.append(("price, all runs", f"{money:,.2f}"))
        if kept:
            tiles.append(("price per kept item, all runs", f"{money / kept:,.4f}"))
    bars = [tag("i", class_=state, style=f"--share: {number}") for state, number in videos.items() if number]
    legend = [tag("li", tag("i", class_=state), f"{state} {number:,}") for state, number in videos.items()]
    sentence = ", ".join(f"{number} {state}" for state, number in videos.items())
    return [
        tag("div", [tag("div", tag("b", value), name, class_="tile") for name, value in tiles], class_="tiles"),
        tag("div", bars, class_="bar", role="img", aria_label=f"Videos: {sentence}"),
        tag("ul", legend, class_="legend"),
    ]


def _stages(run: Mapping[str, Any]) -> list[Html]:
    stages = _stage_counts(run)
    columns = list(dict.fromkeys(column for counts in stages.values() for column in counts))
    # Objects are counted in other columns than items
    rows = [
        [name, *(f"{counts[one]:,}" if one in counts else "" for one in columns)] for name, counts in stages.items()
    ]
    return [tag("h2", "Stages"), table(["stage", *columns], rows, range(1, len(columns) + 1))] if rows else []


def _reasons(run: Mapping[str, Any], rejected: Path) -> list[Html]:
    examples: dict[str, list[Html]] = {}
    for row in _rows(rejected, {"record": str, "reasons": list, "text": dict}):
        for reason in row["reasons"]:
            check_fields(reason, {"code": str, "detail": str}, f"{rejected}, {row['record']}")
            found = examples.setdefault(reason["code"], [])
            if len(found) < EXAMPLES:
                found.append(_example(row, reason))
    found = {code: _count(number) for code, number in run["findings"].items()}
    final = {code: _count(number) for code, number in run["reasons"].items()}
    rows = []
    for code in sorted({*found, *final}, key=lambda code: (-final.get(code, 0), -found.get(code, 0), code)):
        known = CODES.get(code)
        kind = "" if known is None else "exact" if known.exact else "scored"
        meaning = "" if known is None else known.meaning
        numbers = [f"{counts.get(code, 0):,}" for counts in (found, final)]
        rows.append([tag("code", code), kind, *numbers, [tag("p", meaning, class_="muted"), examples.get(code)]])
    if not rows:
        return [tag("h2", "Reasons"), tag("p", "No check found anything.", class_="muted")]
    header = ["code", "check", "found", "rejected for", "meaning and examples"]
    return [tag("h2", "Reasons"), tag("div", table(header, rows, [2, 3]), class_="reasons")]


def _example(row: Mapping[str, Any], reason: Mapping[str, Any]) -> Html:
    texts = row["text"].values()
    shown = " → ".join(texts) if all(isinstance(text, str) for text in texts) else json.dumps(row["text"])
    shown = shown if len(shown) <= LONGEST_TEXT else f"{shown[:LONGEST_TEXT]}…"
    return tag("p", tag("code", row["record"]), f": {reason['detail']}", tag("br"), tag("code", shown))


def _costs(run: Mapping[str, Any], spent: Mapping[tuple[str, str], Sum]) -> list[Html]:
    if not spent:
        return []
    rows = [_cost_row(stage or "–", model, one) for (stage, model), one in spent.items()]
    total = Sum()
    for one in spent.values():
        total.merge(one)
    rows.append([tag("b", cell) for cell in _cost_row("all", "", total)])
    header = ["stage", "model", "calls", "answers", "prompt", "cached", "completion", "s per call", "price"]
    notes = []
    if total.estimated:
        notes.append(f"The endpoint did not count the tokens of {total.estimated:,} calls; they are estimated.")
    if total.unpriced:
        notes.append(f"{total.unpriced:,} calls have no price.")
    note = tag("p", " ".join(notes), class_="muted") if notes else None
    return [tag("h2", "Cost"), table(header, rows, range(2, len(header))), *([note] if note else [])]


def _cost_row(stage: str, model: str, one: Sum) -> list[str]:
    usage = one.usage
    counts = [one.calls, one.answers, usage.prompt, usage.cached, usage.completion]
    money = "–" if one.calls == one.unpriced else f"{one.money:,.4f}"
    return [stage, model, *(f"{count:,}" for count in counts), f"{one.seconds / max(1, one.calls):,.2f}", money]


def _errors(path: Path) -> list[Html]:
    rows, number = [], 0
    for row in _rows(path, {"video": str, "class": str, "message": str}):
        number += 1
        if len(rows) < SHOWN_ERRORS:
            rows.append([tag("code", row["video"]), row["class"], row["message"]])
    if not rows:
        return []
    more = tag("p", f"The first {len(rows):,} of {number:,}.", class_="muted") if number > len(rows) else None
    return [tag("h2", "Errors"), table(["video", "class", "message"], rows), *([more] if more else [])]


# ---- conversations


def _samples(folder: Path) -> list[Html]:
    """The videos whose drawn frames were kept, with all that was written about them."""
    index = folder / "rendered" / "index.json"
    try:
        folders = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{index} cannot be read: {error}") from None
    if not isinstance(folders, dict):
        raise AnnotationError(f"{index} is not an object of names of folders.")
    records: dict[str, list[dict]] = {}
    for row in _rows(folder / "records.jsonl", {"id": str}):
        video = row["id"].rpartition("/")[0]
        if video in folders:
            try:
                records.setdefault(video, []).append(validate_record(row))
            except DataError as error:
                raise AnnotationError(str(error.with_context(file=folder / "records.jsonl"))) from None
    names = {row["id"] for rows in records.values() for row in rows}
    rows = _rows(folder / "provenance.jsonl", {"id": str})
    origins = {row["id"]: _drawn_objects(row) for row in rows if row["id"] in names}
    articles = [
        _article(video, _frames(folder / "rendered", str(folders[video])), rows, origins)
        for video, rows in records.items()
    ]
    return [tag("h2", f"{len(articles)} videos with their conversations"), *articles] if articles else []


def _article(video: str, frames: Sequence[tuple[str, str]], rows: Sequence[dict], origins: Mapping) -> Html:
    figures = [
        tag("figure", tag("img", src=source, alt=f"frame {frame} of {video}"), tag("figcaption", f"frame {frame}"))
        for frame, source in frames
    ]
    parts: list[Html] = []
    for record in rows:
        objects = _objects(record, origins.get(record["id"], {}))
        for message in record["messages"]:
            asked = message["role"] == "user"
            said = [_part(part, objects) for part in message["content"]]
            parts.append(tag("p", said, class_="asked" if asked else None))
    return tag("article", tag("h3", video), tag("div", figures, class_="frames") if figures else None, parts)


def _drawn_objects(origin: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """From the name of an object to its number and colour in the drawn frames."""
    drawn = origin.get("objects", {})
    for entry in drawn.values() if isinstance(drawn, dict) else [drawn]:
        check_fields(entry, {"name": str, "color": str}, f"provenance of {origin['id']}")
    return {entry["name"]: (label.removeprefix("obj"), _css(entry["color"])) for label, entry in drawn.items()}


def _objects(record: Mapping[str, Any], drawn: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Number and colour of each object of a record; numbers in order where those of the frames are not known."""
    colors = list(COLORS)
    found = {
        name: (str(i), _css(colors[(i - 1) % len(colors)])) for i, name in enumerate(record.get("objects", {}), 1)
    }
    return {**found, **drawn}


def _css(color: str) -> str:
    red, green, blue = COLORS.get(color, (154, 162, 177))
    return f"--object: rgb({red} {green} {blue})"


def _part(part: Mapping[str, Any], objects: Mapping[str, tuple[str, str]]) -> Html | str:
    names = [part["object"]] if "object" in part else part.get("objects", [])
    badges = [tag("span", objects[name][0], class_="object", style=objects[name][1]) for name in names]
    if not names:
        return part["text"]
    if part["type"] == "region":
        return tag("span", badges)
    phrase = tag("span", part["text"], class_="phrase", style=objects[names[0]][1])
    return tag("span", phrase, " ", badges)


def _frames(rendered: Path, name: str) -> list[tuple[str, str]]:
    """Number and data URL of a few drawn frames of a video, the first and the last one included."""
    try:
        place = safe_path(rendered, name)
    except DataError as error:
        raise AnnotationError(f"{rendered / 'index.json'} names a folder outside of it: {error}") from None
    files = sorted(place.glob("*.jpg")) if place.is_dir() else []
    count = min(SAMPLE_FRAMES, len(files))
    picked = np.linspace(0, len(files) - 1, count).round().astype(int).tolist() if files else []
    return [(files[i].stem.lstrip("0") or "0", _picture(files[i])) for i in picked]


def _picture(path: Path) -> str:
    file = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((FRAME_WIDTH, 10 * FRAME_WIDTH))
            image.convert("RGB").save(file, "JPEG", quality=QUALITY)
    except (OSError, ValueError) as error:
        raise AnnotationError(f"{path} cannot be read: {error}") from None
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


# ---- values


def _count(value: Any) -> int:
    return value if type(value) is int else 0
