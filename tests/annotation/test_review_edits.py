"""Edits of a person in the review, which only what is surely wrong may stop."""

import json
from pathlib import Path

import pytest
from annotated_folder import copy_review, write_folder, write_rows

from sama.annotation.errors import AnnotationError, RefusedEditError
from sama.annotation.export import description_messages
from sama.annotation.problems import Problem
from sama.annotation.review import Decision, ReviewQueue
from sama.annotation.review_merge import merge_decisions, summarize
from sama.annotation.schema import Statement
from sama.data.records import validate_record


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("run"), 1, 1)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """The files of the review of one item: a turn of one video."""
    return copy_review(written, tmp_path)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def only_item(folder: Path):
    queue = ReviewQueue(folder, read_only=True)
    return queue.item(queue.names()[0])


def say(folder: Path, text: str, **changes) -> str:
    """Writes that the source says this about the first object of the item, whose name is returned."""
    (row,), (record,) = rows(folder / "review.jsonl"), rows(folder / "review_records.jsonl")
    name = row["masks_ref"]["objects"]["obj1"]
    write_rows(folder / "review_records.jsonl", [{**record, **changes, "expressions": {name: [text]}}])
    return name


def test_an_edit_may_have_what_a_check_leaves_to_a_person(folder):
    """Track 2 may be of the video, which the person saw. Words of the source are no sure leak, here as elsewhere."""
    color = only_item(folder).colors[0]
    answer = f"I see <p> this one </p> <obj1> on track 2, in the {color} outline of a map."
    edit = {"question": "What about <obj1> and the rest?", "answer": answer}
    with pytest.raises(RefusedEditError, match="outline"):
        only_item(folder).edited(edit)
    name = say(folder, f"the thing in the {color} outline of a map")
    queue = ReviewQueue(folder)
    item = queue.item(queue.names()[0])
    assert list(item.expressions) == [name] and "expressions" not in item.record
    queue.decide(Decision(item.id, "edit", "ann", item.item_hash, edit))
    merge_decisions(folder)
    (made,) = [row for row in rows(folder / "reviewed_records.jsonl") if row["id"] == item.id]
    assert made["messages"][1]["content"][-1]["text"] == f" on track 2, in the {color} outline of a map."
    assert validate_record(made)
    with pytest.raises(RefusedEditError, match="bounding box"):
        item.edited({**edit, "answer": f"{answer} It has a bounding box."})


def test_edited_statements_may_have_what_a_check_leaves_to_a_person(folder):
    (row,), (record,) = rows(folder / "review.jsonl"), rows(folder / "review_records.jsonl")
    name = row["masks_ref"]["objects"]["obj1"]
    shown = min(i for i, code in enumerate(record["objects"][name]["masks"]) if code is not None)
    statement = {"text": "It moves to the right.", "first": shown, "last": shown}
    write_rows(folder / "review.jsonl", [{**row, "object": name, "text": {"statements": [statement]}}])
    color = only_item(folder).colors[0]
    messages = description_messages(1, [Statement(**statement)], list(row["masks_ref"]["objects"].values()))
    say(folder, f"the {color} outline", messages=messages)
    text = f"The highlighted thing is the {color} outline of a map."
    made = only_item(folder).edited({"statements": [{**statement, "text": text}]})
    assert made["messages"][1]["content"][0]["text"] == text


def test_an_edit_that_stricter_checks_refuse_is_undecided_and_the_merge_goes_on(folder, monkeypatch):
    before = rows(folder / "records.jsonl")
    item = only_item(folder)
    edit = {"question": "What about <obj1> and the rest?", "answer": "I see <p> this one </p> <obj1> only."}
    queue = ReviewQueue(folder)
    queue.decide(Decision(item.id, "edit", "ann", item.item_hash, edit))
    queue.close()
    assert merge_decisions(folder).records == len(before) + (not item.audit)

    def stricter(*_, **__):
        return None, [Problem("leak", "", "a word about the drawing")]

    monkeypatch.setattr("sama.annotation.review.turn_record", stricter)
    summary = merge_decisions(folder)
    assert summary.refused == [item.id] and summary.decisions == {"undecided": 1} and not summary.audited
    assert f"1 edits no longer pass the checks and count as undecided: {item.id}" in summary.line()
    assert rows(folder / "reviewed_records.jsonl") == before


def test_two_people_who_edit_an_item_differently_disagree(folder):
    item, queue = only_item(folder), ReviewQueue(folder)
    edits = [{"question": "What about <obj1> and the rest?", "answer": f"I see <p> this one </p> <obj1> {word}."}
             for word in ("only", "alone")]  # fmt: skip
    queue.decide(Decision(item.id, "edit", "ann", item.item_hash, edits[0]))
    queue.decide(Decision(item.id, "edit", "bob", item.item_hash, dict(reversed(edits[0].items()))))
    assert summarize(queue).disagreeing == []
    queue.decide(Decision(item.id, "edit", "bob", item.item_hash, edits[1]))
    assert summarize(queue).disagreeing == [item.id]


@pytest.mark.parametrize("wrong", [5, {"a": "b"}, {"a": [5]}])
def test_expressions_of_another_form(folder, wrong):
    records = rows(folder / "review_records.jsonl")
    write_rows(folder / "review_records.jsonl", [{**row, "expressions": wrong} for row in records])
    with pytest.raises(AnnotationError, match="cannot be used: .*expressions"):
        only_item(folder)
