"""
The review of annotations by people: what waits for a decision, who is given what, and the decisions.

`review.jsonl` and `review_records.jsonl` of an output folder are only read. Decisions are appended to
`decisions.jsonl`, so that nothing is ever lost: the latest one about an item counts. Accepted items are among those
that the checks found doubtful, and nobody who reviews is told which are which; some items are given to two people, to
measure how well they agree.
"""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..data.records import validate_record
from .checks import CheckLimits, check_descriptions
from .errors import AnnotationError, RefusedEditError, StaleItemError, UnknownItemError
from .export import description_messages, record_facts, take_expressions, turn_record
from .json_lines import AppendOnlyFile, complete_lines, read_objects
from .schema import MAX_CHARACTERS, Descriptions, ObjectDescription, Statement
from .tags import object_number


VERDICTS = ("accept", "edit", "reject")
DECISIONS = (*VERDICTS, "skip", "undo")  # undo takes the reviewer's latest decision about the item back
REASONS = {
    "object": "the text is about another object",
    "fact": "it says something wrong",
    "unseen": "the video does not show it",
    "mask": "a mask is wrong",
    "marks": "it mentions drawn marks",
    "language": "the language is poor",
    "other": "another reason",
}
DOUBLE_SHARE = 0.1  # of the items, which two people decide
LEASE_SECONDS = 900.0  # for which an item that was handed out is not given to anybody else
KEPT_ITEMS = 4  # in memory, with their masks
MAX_NAME = 64  # characters of the name of a reviewer


@dataclass(frozen=True)
class ReviewItem:
    """
    What one decision is about.

    Args:
        id (`str`): Its name.
        record (`dict`): Its own record, with all objects of the video and the messages of this item.
        text (`dict`): `question` and `answer` with tags, or `statements` about one object.
        frames (`tuple[int, ...]`): Frames that the models were shown.
        labels (`dict[str, str]`): From `obj1` to the name of the object in the record.
        item_hash (`str`): Of all that a reviewer sees.
        origin (`str`): Id of the record that it comes from.
        object (`str`, *optional*): Name of the object that statements are about.
        audit (`bool`): It was accepted by all checks.
        suggested (`str`): What the checks suggest.
        reasons, scores: What the checks found.
        colors (`tuple[str, ...]`): Names of the colours that were drawn, which an edit must not speak of.
        expressions (`dict[str, list[str]]`): By name of an object, what the source says about it, which it may.
    """

    id: str
    record: dict[str, Any]
    text: dict[str, Any]
    frames: tuple[int, ...]
    labels: dict[str, str]
    item_hash: str
    origin: str
    object: str | None
    audit: bool
    suggested: str
    reasons: list[dict[str, Any]]
    scores: dict[str, Any]
    colors: tuple[str, ...] = ()
    expressions: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the objects in the order of their numbers."""
        return list(self.labels.values())

    def edited(self, edit: Mapping[str, Any]) -> dict[str, Any]:
        """
        The record with other texts.

        Args:
            edit (`dict`): `question` and `answer` with tags, or `statements`, each with `text`, `first` and `last`.

        Raises:
            [`RefusedEditError`]: The texts surely break an exact check. What a check leaves to a person is decided.
            [`AnnotationError`]: The edit has another form than the item.
        """
        if set(edit) != set(self.text):
            raise AnnotationError(f"The edit has {', '.join(edit) or 'nothing'}, expected {', '.join(self.text)}.")
        if "statements" in self.text:
            return self._with_statements(edit["statements"])
        for name, text in edit.items():
            if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
                raise AnnotationError(f"The {name} must be a text of at most {MAX_CHARACTERS:,} characters.")
        check_arguments = {"colors": self.colors, "expressions": self.expressions}
        made, problems = turn_record(self.record, self.names, edit["question"], edit["answer"], **check_arguments)
        if made is None:
            raise RefusedEditError([problem.sentence() for problem in problems])
        return made

    def _with_statements(self, statements: Any) -> dict[str, Any]:
        try:
            parsed = [Statement.model_validate(one) for one in statements]
        except (ValueError, TypeError):
            raise AnnotationError("Each statement needs a text and its first and last frame.") from None
        label = next((label for label, name in self.labels.items() if name == self.object), "")
        number = object_number(label, len(self.labels))
        if number is None or self.object is None:
            raise AnnotationError(f"The item {self.id!r} names no object of its video.")
        facts = record_facts(self.record, self.names, self.frames, self.colors, self.expressions)
        found = check_descriptions(
            Descriptions(objects=[ObjectDescription(object=label, statements=parsed)]), facts, CheckLimits(), [number]
        )
        broken = [one for problems in found.values() for one in problems if not one.review]
        if broken:
            raise RefusedEditError([one.sentence() for one in broken])
        return {**self.record, "messages": description_messages(number, parsed, self.names)}


@dataclass(frozen=True)
class Decision:
    """
    A line of `decisions.jsonl`.

    Args:
        id (`str`): Of the item.
        decision (`str`): One of `DECISIONS`.
        reviewer (`str`): Name of the person.
        item_hash (`str`): Of the item as it was shown.
        edit (`dict`, *optional*): Texts, with `"edit"`.
        reasons (`list[str]`): Keys of `REASONS`, with `"reject"`.
        seconds (`float`): From showing the item to the decision.
        informed (`bool`): The person had looked at what the checks found, and was not blind any more.
        time (`str`): In UTC.
    """

    id: str
    decision: str
    reviewer: str
    item_hash: str
    edit: dict[str, Any] | None = None
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0
    informed: bool = False
    time: str = ""


class ReviewQueue:
    """
    The queue of an output folder and the decisions about it. One object serves all threads.

    Args:
        folder (`str` or `Path`): What `annotate.py --output` was given.
        clock (`Callable`): Seconds that never go back.
        read_only (`bool`): Whether decisions are only read, which is possible while a server takes new ones.

    Raises:
        [`AnnotationError`]: A file is missing or damaged, or another server has the queue open.
    """

    def __init__(self, folder: str | Path, clock: Callable[[], float] = time.monotonic, read_only: bool = False):
        self.folder, self.clock = Path(folder), clock
        self._lock = threading.Lock()
        self._rows = {row["id"]: row for row in read_queue(self.folder / "review.jsonl")}
        self._places = _places(self.folder / "review_records.jsonl")
        self._read_states = self._states()
        self._colors = dict(_drawn_colors(self.folder / "provenance.jsonl"))
        missing = next((name for name in self._rows if name not in self._places), None)
        if missing is not None:
            raise AnnotationError(f"{self.folder}: review_records.jsonl has no record of the item {missing!r}.")
        # By video, so that a reviewer need not think anew for each item; otherwise in no order that tells anything
        self._order = sorted(
            self._rows, key=lambda name: (_hash(self._rows[name]["record"].rpartition("/")[0]), _hash(name))
        )
        path = self.folder / "decisions.jsonl"
        self._file = None if read_only else AppendOnlyFile(path)
        self.log = DecisionLog(self._rows)
        try:
            for decision in read_decisions(path):
                self.log.add(decision)
        except (ValueError, OSError):  # among them AnnotationError
            self.close()
            raise
        self._items: OrderedDict[str, ReviewItem] = OrderedDict()  # the last ones: each is read for all its frames
        self._leases: dict[str, dict[str, float]] = {}  # item -> people who have it, and until when

    def close(self) -> None:
        """Closes the file of the decisions."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return len(self._order)

    def names(self) -> list[str]:
        """The ids of all items in the order of `review.jsonl`."""
        return list(self._rows)

    def is_audit(self, name: str) -> bool:
        """Whether an item was accepted by all checks."""
        return bool(self._rows[name].get("audit", False))

    def item(self, name: str) -> ReviewItem:
        """An item with its masks; [`UnknownItemError`] if there is none."""
        row = self._rows.get(name)
        if row is None:
            raise UnknownItemError(f"The queue has no item {name[:80]!r}.")
        self._check_files()
        with self._lock:
            kept = self._items.get(name)
            if kept is not None and kept.item_hash == row.get("item_hash"):
                self._items.move_to_end(name)
                return kept
        item = self._read(name, row)
        with self._lock:
            self._items[name] = item
            while len(self._items) > KEPT_ITEMS:
                self._items.popitem(last=False)
        return item

    def _read(self, name: str, row: dict[str, Any]) -> ReviewItem:
        start, size = self._places[name]
        with (self.folder / "review_records.jsonl").open("rb") as file:
            file.seek(start)
            line = file.read(size)
        try:
            content = json.loads(line)
            expressions = take_expressions(content)
            record = validate_record(content)
        except (ValueError, RecursionError) as error:  # DataError is one
            raise AnnotationError(f"The record of the item {name!r} cannot be used: {error}") from None
        labels = row["masks_ref"]["objects"]
        absent = sorted(set(labels.values()) - set(record.get("objects", {})))
        if absent:
            raise AnnotationError(f"The record of the item {name!r} lacks the object {absent[0]!r}.")
        return ReviewItem(
            name, record, row["text"], tuple(row["frames"]), labels, row["item_hash"], row["record"], row["object"],
            row.get("audit", False), row["suggested"], row["reasons"], row["scores"],
            self._colors.get(row["record"], ()), expressions,
        )  # fmt: skip

    def _states(self) -> list[tuple[int, int]]:
        """Size and time of the files that another run may replace."""
        try:
            states = [(self.folder / name).stat() for name in ("review.jsonl", "review_records.jsonl")]
        except OSError as error:
            raise AnnotationError(f"{self.folder} cannot be read ({error.strerror or error}).") from None
        return [(one.st_size, one.st_mtime_ns) for one in states]

    def _check_files(self) -> None:
        """[`StaleItemError`] if the annotation was run again since the queue was read, with another result."""
        states = self._states()
        if states == self._read_states:
            return
        rows = {row["id"]: row for row in read_queue(self.folder / "review.jsonl")}
        if rows != self._rows or _places(self.folder / "review_records.jsonl") != self._places:
            raise StaleItemError(f"The annotation in {self.folder.name} was run again. Start this server again.")
        self._read_states = states

    def next(self, reviewer: str, skipped: bool = False, without: Container[str] = ()) -> str | None:
        """The id of an item for a person, who keeps it for `LEASE_SECONDS`: one given before and not decided, else the
        first that needs a decision of this person, `without` some; with `skipped`, one that was skipped. Or `None`."""
        reviewer = check_reviewer(reviewer)
        with self._lock:
            now = self.clock()
            for name, holders in self._leases.items():
                self._leases[name] = {one: until for one, until in holders.items() if until > now}
            waiting = [name for name in self._order if name not in without and self._wants(name, reviewer, skipped)]
            own = [name for name in waiting if reviewer in self._leases.get(name, {})]
            for name in own or waiting:
                self._leases.setdefault(name, {})[reviewer] = now + LEASE_SECONDS
                return name
        return None

    def release(self, name: str, reviewer: str) -> None:
        """Takes an item back that [`next`] gave to a person."""
        with self._lock:
            self._leases.get(name, {}).pop(check_reviewer(reviewer), None)

    def _wants(self, name: str, reviewer: str, skipped: bool = False) -> bool:
        """Whether an item needs a decision of this person, and is not in the hands of others who suffice."""
        by_reviewer = self.log.of_item(name)
        if (reviewer in by_reviewer) != skipped or (skipped and by_reviewer[reviewer].decision != "skip"):
            return False
        decided = {one for one, decision in by_reviewer.items() if decision.decision in VERDICTS}
        holders = set(self._leases.get(name, {}))
        # Whoever holds an item keeps it, also where another person has taken a decision back since
        taken = decided if reviewer in holders else decided | holders
        return len(taken) < (2 if is_double(name) else 1)

    def decide(self, decision: Decision) -> Decision:
        """
        Appends a decision and returns it with its time.

        Raises:
            [`UnknownItemError`]: There is no such item.
            [`StaleItemError`]: The item is not the one that was shown.
            [`RefusedEditError`]: The edit breaks an exact check.
            [`AnnotationError`]: A field is wrong.
        """
        check_decision(decision)
        decision = replace(decision, reviewer=check_reviewer(decision.reviewer))  # without blanks, as in `next`
        item = self.item(decision.id)
        if decision.item_hash != item.item_hash:
            raise StaleItemError(
                f"The item {decision.id!r} has changed since it was shown (hash {decision.item_hash[:16]!r}, now "
                f"{item.item_hash!r}): the annotation was run again. Look at it anew."
            )
        if decision.edit is not None:
            item.edited(decision.edit)
        with self._lock:
            return self._append(decision)

    def undo(self, reviewer: str) -> str | None:
        """Takes the latest decision of a person back and returns its item, or `None` if there is no decision."""
        reviewer = check_reviewer(reviewer)
        with self._lock:
            latest = self.log.latest_of(reviewer)
            if latest is None:
                return None
            self._append(Decision(latest.id, "undo", reviewer, latest.item_hash))
            self._leases.setdefault(latest.id, {})[reviewer] = self.clock() + LEASE_SECONDS
            return latest.id

    def _append(self, decision: Decision) -> Decision:
        if self._file is None:
            raise AnnotationError("The queue is opened for reading only.")
        decision = Decision(**{**vars(decision), "time": datetime.now(UTC).isoformat(timespec="seconds")})
        self._file.append(asdict(decision))
        self.log.add(decision)
        self._leases.get(decision.id, {}).pop(decision.reviewer, None)
        return decision

    def progress(self, reviewer: str) -> dict[str, int]:
        """Items in all, those that are decided, those that this person decided and skipped, and those that wait."""
        reviewer = check_reviewer(reviewer)
        with self._lock:
            own = [by_reviewer.get(reviewer) for by_reviewer in map(self.log.of_item, self._order)]
            return {
                "items": len(self._order),
                "decided": sum(self.log.verdict(name) is not None for name in self._order),
                "own": sum(one is not None and one.decision in VERDICTS for one in own),
                "skipped": sum(one is not None and one.decision == "skip" for one in own),
                "waiting": sum(self._wants(name, reviewer) for name in self._order),
            }


class DecisionLog:
    """
    What decisions come to, in the order in which they were made.

    Args:
        rows (`dict`): Lines of the queue by id. Decisions about other items, or about an item that has changed, do not
            count; `stale` is their number, and `gone` that of them whose item is no longer in the queue.
    """

    def __init__(self, rows: Mapping[str, Mapping[str, Any]]):
        self._rows = rows
        self._by_item: dict[str, dict[str, Decision]] = {}  # latest last
        self._by_reviewer: dict[str, list[Decision]] = {}
        self.stale = self.gone = 0

    def add(self, decision: Decision) -> None:
        """Adds a decision."""
        row = self._rows.get(decision.id)
        if row is None or row["item_hash"] != decision.item_hash:
            self.stale += 1
            self.gone += row is None
            return
        of_item = self._by_item.setdefault(decision.id, {})
        own = self._by_reviewer.setdefault(decision.reviewer, [])
        of_item.pop(decision.reviewer, None)
        own[:] = [one for one in own if one.id != decision.id]
        if decision.decision != "undo":
            of_item[decision.reviewer] = decision
            own.append(decision)

    def of_item(self, name: str) -> dict[str, Decision]:
        """The decision of each person about an item, the latest last."""
        return self._by_item.get(name, {})

    def verdict(self, name: str) -> Decision | None:
        """The latest decision about an item that is not to skip it."""
        decided = [one for one in self.of_item(name).values() if one.decision in VERDICTS]
        return decided[-1] if decided else None

    def latest_of(self, reviewer: str) -> Decision | None:
        """The latest decision of a person."""
        own = self._by_reviewer.get(reviewer)
        return own[-1] if own else None


# ---- reading and checking


def is_double(name: str) -> bool:
    """Whether two people decide about an item."""
    return int(_hash(f"double/{name}")[:8], 16) < DOUBLE_SHARE * 16**8


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def check_reviewer(name: str) -> str:
    """The name of a person; [`AnnotationError`] if it is none."""
    if not 1 <= len(name.strip()) <= MAX_NAME or not name.isprintable():
        raise AnnotationError(
            f"The name of the reviewer must be 1 to {MAX_NAME} printable characters, got {name[:80]!r}."
        )
    return name.strip()


def check_decision(decision: Decision) -> None:
    """[`AnnotationError`] for a decision that contradicts itself."""
    check_reviewer(decision.reviewer)
    if decision.decision not in DECISIONS:
        raise AnnotationError(f"The decision is {decision.decision[:40]!r}, expected one of {', '.join(DECISIONS)}.")
    if (decision.edit is not None) != (decision.decision == "edit"):
        raise AnnotationError("An edit belongs to the decision 'edit', and to no other.")
    unknown = [reason for reason in decision.reasons if reason not in REASONS]
    if unknown:
        raise AnnotationError(f"The reason {unknown[0][:40]!r} is not one of {', '.join(REASONS)}.")
    if decision.reasons and decision.decision != "reject":
        raise AnnotationError("Reasons belong to the decision 'reject'.")
    if not 0 <= decision.seconds < float("inf"):
        raise AnnotationError(f"The decision took {decision.seconds} seconds, expected a number from 0 on.")


def read_queue(path: Path) -> list[dict[str, Any]]:
    """The lines of `review.jsonl`, checked; [`AnnotationError`] if one is damaged or an id is there twice."""
    fields: dict[str, Any] = {"id": str, "record": str, "text": dict, "frames": list, "masks_ref": dict}
    fields |= {"item_hash": str, "suggested": str, "reasons": list, "scores": dict, "object": str | None}
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for place, row in read_objects(path, fields):
        labels = row["masks_ref"].get("objects")
        if not isinstance(labels, dict) or not all(isinstance(name, str) for name in labels.values()):
            raise AnnotationError(f"{place}: masks_ref has no objects.")
        if not row["frames"] or not all(type(frame) is int and frame >= 0 for frame in row["frames"]):
            raise AnnotationError(f"{place}: frames must be numbers of frames, got {str(row['frames'])[:60]}.")
        if row["id"] in seen:
            raise AnnotationError(f"{place}: the id {row['id']!r} is that of an earlier line, too.")
        seen.add(row["id"])
        rows.append(row)
    return rows


def read_decisions(path: Path) -> list[Decision]:
    """The lines of `decisions.jsonl`, checked; none if there is no such file."""
    fields: dict[str, Any] = {"id": str, "decision": str, "reviewer": str, "item_hash": str, "edit": dict | None}
    fields |= {"reasons": list, "seconds": int | float, "informed": bool, "time": str}
    found = []
    for place, row in read_objects(path, fields, missing=True):
        try:
            decision = Decision(**{name: row[name] for name in fields})
            check_decision(decision)
        except (AnnotationError, TypeError) as error:
            raise AnnotationError(f"{place}: {error}") from None
        found.append(decision)
    return found


def _drawn_colors(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Id and drawn colours of each record."""
    for place, row in read_objects(path, {"id": str}, missing=True):
        objects = row.get("objects", {})
        try:
            yield row["id"], tuple(str(one["color"]) for one in objects.values() if "color" in one)
        except (AttributeError, TypeError):
            raise AnnotationError(f"{place}: objects must name the drawn colours.") from None


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of the record of each item: records hold masks, so that the file may be large."""
    found: dict[str, tuple[int, int]] = {}
    start = 0
    try:
        for number, line in complete_lines(path):
            try:
                name = json.loads(line)["id"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise AnnotationError(f"{path}, line {number}: this is not a record.") from None
            found[str(name)] = (start, len(line))
            start += len(line)
    except OSError as error:
        raise AnnotationError(f"{path} cannot be read ({error.strerror or error}).") from None
    return found
