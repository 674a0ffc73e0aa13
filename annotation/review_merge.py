"""What people decided, put together: the records after the review, and how far people and checks agree."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.files import atomic_path
from ..data.records import DataError, validate_record
from .errors import AnnotationError, RefusedEditError
from .json_lines import read_objects
from .review import VERDICTS, Decision, ReviewItem, ReviewQueue, is_double


RECORDS, PROVENANCE = "reviewed_records.jsonl", "reviewed_provenance.jsonl"
SHOWN = 5  # items that the summary names


@dataclass
class ReviewSummary:
    """
    What a review came to.

    Attributes:
        records (`int`): Records after the review.
        decisions (`Counter`): Latest decisions by kind; `"undecided"` for items that nobody decided.
        stale, gone (`int`): Decisions about items that have changed since, which do not count, and those of them whose
            item is no longer in the queue.
        audited, audited_wrong (`int`): Items that the checks accepted and people decided, and those of them that
            people rejected or edited.
        pairs, agreeing (`int`): Items that two people decided without looking at the checks, and those of them on
            whose decision they agree: accept, edit or reject, whatever the texts of two edits are.
        disagreeing (`list[str]`): Items about which two or more people disagree, in the decision or in the texts of
            their edits; the latest decision counts.
        refused (`list[str]`): Items whose edit no longer passes the checks, which have become stricter since. They are
            among the undecided ones.
        kappa (`float`, *optional*): Cohen's kappa over these pairs, of the decisions as in `agreeing`; `None` without
            pairs, or if chance alone agrees always.
    """

    records: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    gone: int = 0
    audited: int = 0
    audited_wrong: int = 0
    pairs: int = 0
    agreeing: int = 0
    disagreeing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    kappa: float | None = None

    def line(self) -> str:
        """The summary in one line."""
        parts = [f"{self.records:,} records"]
        parts += [f"{number:,} {name}" for name, number in self.decisions.items()]
        if self.audited:
            parts.append(f"{self.audited_wrong:,} of {self.audited:,} accepted items were not right")
        if self.pairs:
            kappa = "" if self.kappa is None else f" (kappa {self.kappa:.2f})"
            parts.append(f"two people agree on {self.agreeing:,} of {self.pairs:,}{kappa}")
        if self.disagreeing:
            parts.append(f"people disagree, and the latest decision counts, about {_shown(self.disagreeing)}")
        if self.refused:
            parts.append(
                f"{len(self.refused):,} edits no longer pass the checks and count as undecided: {_shown(self.refused)}"
            )
        parts += [f"{self.stale:,} decisions are stale"] if self.stale else []
        if self.gone:
            parts.append(f"{self.gone:,} of them about items that another run left out of the queue")
        return ", ".join(parts)


def _shown(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def merge_decisions(folder: str | Path) -> ReviewSummary:
    """
    Writes `reviewed_records.jsonl` and `reviewed_provenance.jsonl` into an output folder: the kept records without
    what people rejected and with what they edited, and the doubtful items that they accepted or edited. Without
    decisions these are the kept records. Running it again gives the same bytes.

    Raises:
        [`AnnotationError`]: A file is missing or damaged, or a decision does not fit its item.
    """
    folder = Path(folder)
    queue = ReviewQueue(folder, read_only=True)
    refused: list[str] = []
    changes: dict[str, list[tuple[ReviewItem, Decision]]] = {}
    additions: dict[str, list[tuple[ReviewItem, Decision]]] = {}
    for name in queue.names():
        decision = queue.log.verdict(name)
        if decision is None:
            continue
        item = queue.item(name)
        if not _passes(item, decision):
            refused.append(name)
        elif item.audit:
            changes.setdefault(item.origin, []).append((item, decision))
        elif decision.decision != "reject":
            additions.setdefault(_video(item.origin), []).append((item, decision))
    summary = summarize(queue, refused)
    origins = {row["id"]: row for _, row in read_objects(folder / "provenance.jsonl", {"id": str}, missing=True)}
    with ExitStack() as stack:
        paths = [stack.enter_context(atomic_path(folder / name)) for name in (RECORDS, PROVENANCE)]
        records, provenance = [stack.enter_context(path.open("w", encoding="utf-8")) for path in paths]
        for record, origin, audited in _merged(folder, changes, additions):
            summary.records += 1
            records.write(json.dumps(record, ensure_ascii=False) + "\n")
            if origin in origins:
                row = {**origins[origin], "id": record["id"]}
                row |= {"audited": True} if audited else {}
                provenance.write(json.dumps(row, ensure_ascii=False) + "\n")
    return summary


def _merged(
    folder: Path,
    changes: Mapping[str, list[tuple[ReviewItem, Decision]]],
    additions: Mapping[str, list[tuple[ReviewItem, Decision]]],
) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Each record, the id of the record whose provenance it has, and whether a person looked at it. Those of a video
    follow each other."""
    waiting = dict(additions)
    video = ""

    def added(video: str) -> Iterator[tuple[dict[str, Any], str, bool]]:
        for item, decision in waiting.pop(video, []):
            yield _decided_record(item, decision), item.origin, True

    for place, row in read_objects(folder / "records.jsonl", {"id": str, "messages": list}, missing=True):
        if _video(row["id"]) != video:
            yield from added(video)
            video = _video(row["id"])
        decided = changes.get(row["id"], [])
        record = row
        for item, decision in decided:
            record = _changed(record, item, decision, place)
        if record["messages"]:
            yield record, row["id"], bool(decided)
    for rest in [video, *waiting]:
        yield from added(rest)


def _video(record: str) -> str:
    """The id of the video of a record, from the id of the record."""
    return record.rpartition("/")[0]


def _passes(item: ReviewItem, decision: Decision) -> bool:
    """Whether the checks, which may have become stricter since, let the edit of a decision pass, if it has one."""
    try:
        return decision.edit is None or bool(item.edited(decision.edit))
    except RefusedEditError:
        return False


def _decided_record(item: ReviewItem, decision: Decision) -> dict[str, Any]:
    """The record of an item that was accepted or edited, with the objects that it names."""
    record = item.record if decision.edit is None else item.edited(decision.edit)
    used = _objects_of(record["messages"])
    return {**record, "objects": {name: one for name, one in record["objects"].items() if name in used}}


def _changed(record: dict[str, Any], item: ReviewItem, decision: Decision, place: str) -> dict[str, Any]:
    """A kept record after a decision about one of its items, which was chosen to be looked at."""
    if decision.decision == "accept":
        return record
    messages, wanted = record["messages"], item.record["messages"]
    starts = range(len(messages) - len(wanted) + 1)
    at = next((start for start in starts if messages[start : start + len(wanted)] == wanted), None)
    if at is None:
        raise AnnotationError(f"{place}: the record {record['id']!r} does not contain the item {item.id!r}.")
    made = [] if decision.decision == "reject" else _decided_record(item, decision)["messages"]
    messages = [*messages[:at], *made, *messages[at + len(wanted) :]]
    known, used = {**item.record["objects"], **record["objects"]}, _objects_of(messages)
    changed = {**record, "messages": messages, "objects": {name: known[name] for name in known if name in used}}
    try:
        return validate_record(changed) if messages else changed
    except DataError as error:
        raise AnnotationError(f"{place}: {error}") from None


def _objects_of(messages: list[dict[str, Any]]) -> set[str]:
    parts = [part for message in messages for part in message["content"]]
    return {
        name for part in parts for name in (*part.get("objects", ()), *([part["object"]] if "object" in part else ()))
    }


# ---- agreement


def summarize(queue: ReviewQueue, refused: Sequence[str] = ()) -> ReviewSummary:
    """The decisions in numbers. `refused`: items whose edit no longer passes the checks; they are undecided."""
    summary = ReviewSummary(stale=queue.log.stale, gone=queue.log.gone, refused=list(refused))
    undecided = set(refused)
    pairs: list[tuple[str, str]] = []
    for name in queue.names():
        verdict = None if name in undecided else queue.log.verdict(name)
        summary.decisions["undecided" if verdict is None else verdict.decision] += 1
        if verdict is not None and queue.is_audit(name):
            summary.audited += 1
            summary.audited_wrong += verdict.decision != "accept"
        verdicts = [one for one in queue.log.of_item(name).values() if one.decision in VERDICTS]
        decided = {(one.decision, json.dumps(one.edit, sort_keys=True)) for one in verdicts}
        summary.disagreeing += [name] if len(decided) > 1 else []
        blind = [one for one in verdicts if not one.informed]
        if is_double(name) and len(blind) > 1:
            pairs.append((blind[0].decision, blind[1].decision))
    summary.pairs, summary.agreeing = len(pairs), sum(first == second for first, second in pairs)
    summary.kappa = cohens_kappa(pairs)
    return summary


def cohens_kappa(pairs: list[tuple[str, str]]) -> float | None:
    """Agreement of pairs of decisions beyond chance: 1 if all agree, 0 if no more than chance does."""
    if not pairs:
        return None
    agreeing = sum(first == second for first, second in pairs) / len(pairs)
    firsts, seconds = Counter(first for first, _ in pairs), Counter(second for _, second in pairs)
    chance = sum(firsts[name] * seconds[name] for name in firsts) / len(pairs) ** 2
    return None if chance == 1 else (agreeing - chance) / (1 - chance)
