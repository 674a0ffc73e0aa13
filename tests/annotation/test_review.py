"""The review queue: who is given what, which decision counts, and what becomes of the records."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from annotated_folder import write_folder, write_rows

from sama.annotation import command as annotate
from sama.annotation.errors import AnnotationError, RefusedEditError, StaleItemError, UnknownItemError
from sama.annotation.export import description_messages, item_hash
from sama.annotation.review import LEASE_SECONDS, Decision, DecisionLog, ReviewQueue, is_double, read_decisions
from sama.annotation.review_merge import cohens_kappa, merge_decisions
from sama.annotation.schema import Statement
from sama.data.records import validate_record


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("run"), 4)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A copy of the files of the review: four videos with two items each, of which the second is an audited one."""
    for name in ("records", "provenance", "review", "review_records"):
        (tmp_path / f"{name}.jsonl").write_bytes((written / f"{name}.jsonl").read_bytes())
    return tmp_path


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def decision(item, verdict="accept", reviewer="ann", **fields) -> Decision:
    return Decision(item.id, verdict, reviewer, item.item_hash, **fields)


def next_item(queue: ReviewQueue, reviewer: str, skipped: bool = False):
    name = queue.next(reviewer, skipped)
    return None if name is None else queue.item(name)


def item_of(queue: ReviewQueue, turn: int):
    return queue.item(queue.names()[turn])


def test_all_items_are_given_once_and_by_video(folder):
    queue, seen = ReviewQueue(folder), []
    while (item := next_item(queue, "ann")) is not None:
        assert next_item(queue, "ann").id == item.id  # until it is decided
        seen.append(item)
        queue.decide(decision(item))
    assert sorted(one.id for one in seen) == sorted(queue.names()) and len(seen) == 8
    videos = [one.origin for one in seen]
    assert all(first == second for first, second in zip(videos[::2], videos[1::2], strict=True))
    assert queue.progress("ann") == {"items": 8, "decided": 8, "own": 8, "skipped": 0, "waiting": 0}


def test_two_people_get_different_items_until_a_lease_ends(folder):
    queue = ReviewQueue(folder, clock=(clock := Clock()))
    first = next_item(queue, "ann")
    assert not is_double(first.id) and next_item(queue, "bob").id != first.id
    clock.now = LEASE_SECONDS + 1
    assert next_item(queue, "bob").id == first.id


def test_some_items_are_given_to_two_people_and_no_third(folder):
    lines = rows(folder / "review.jsonl")
    names = [name for name in (f"clip/{n}" for n in range(200)) if is_double(name)][:2]
    assert 5 <= sum(is_double(f"x{n}") for n in range(100)) <= 16  # a tenth
    records = rows(folder / "review_records.jsonl")
    write_rows(folder / "review.jsonl", [{**lines[0], "id": name} for name in names])
    write_rows(folder / "review_records.jsonl", [{**records[0], "id": name} for name in names])
    queue = ReviewQueue(folder)
    for reviewer in ("ann", "bob"):
        for _ in names:
            queue.decide(decision(next_item(queue, reviewer), reviewer=reviewer))
        assert next_item(queue, reviewer) is None
    assert next_item(queue, "cid") is None


def test_the_latest_decision_counts_and_undo_takes_it_back(folder):
    queue = ReviewQueue(folder)
    item = next_item(queue, "ann")
    queue.decide(decision(item, "reject", reasons=["fact"]))
    queue.decide(decision(item, "accept", "bob"))
    assert queue.log.verdict(item.id).reviewer == "bob"
    assert queue.undo("bob") == item.id and queue.log.verdict(item.id).decision == "reject"
    assert next_item(queue, "bob") is not None and queue.undo("bob") is None
    assert queue.undo("ann") == item.id and queue.log.verdict(item.id) is None
    assert next_item(queue, "ann").id == item.id
    queue.close()
    assert [one.decision for one in read_decisions(folder / "decisions.jsonl")] == ["reject", "accept", "undo", "undo"]
    again = ReviewQueue(folder)
    assert again.log.verdict(item.id) is None and again.progress("ann")["decided"] == 0


def test_undo_goes_back_step_by_step(folder):
    queue, seen = ReviewQueue(folder), []
    for _ in range(3):
        seen.append(next_item(queue, "ann").id)
        queue.decide(decision(queue.item(seen[-1]), "skip" if len(seen) == 2 else "accept"))
    assert [queue.undo("ann") for _ in range(4)] == [*reversed(seen), None]


def test_a_skipped_item_waits_for_others_and_can_be_looked_at_again(folder):
    queue = ReviewQueue(folder)
    item = next_item(queue, "ann")
    queue.decide(decision(item, "skip"))
    assert next_item(queue, "ann").id != item.id and queue.log.verdict(item.id) is None
    assert queue.progress("ann")["skipped"] == 1
    assert next_item(queue, "ann", skipped=True).id == item.id
    queue.decide(decision(item))
    assert next_item(queue, "ann", skipped=True) is None and queue.progress("ann")["skipped"] == 0


def test_a_stale_decision_is_refused_and_one_of_an_earlier_run_does_not_count(folder):
    queue = ReviewQueue(folder)
    item = next_item(queue, "ann")
    with pytest.raises(StaleItemError, match="has changed since it was shown"):
        queue.decide(replace(decision(item), item_hash="0" * 16))
    queue.decide(decision(item))
    queue.close()
    lines = rows(folder / "review.jsonl")
    for line in lines:
        line["item_hash"] = "f" * 16 if line["id"] == item.id else line["item_hash"]
    write_rows(folder / "review.jsonl", lines)
    again = ReviewQueue(folder)
    assert again.log.stale == 1 and again.log.verdict(item.id) is None


def test_half_a_decision_of_a_killed_server_is_removed(folder):
    queue = ReviewQueue(folder)
    for _ in range(2):
        queue.decide(decision(next_item(queue, "ann")))
    queue.close()
    path = folder / "decisions.jsonl"
    os.truncate(path, path.stat().st_size - 9)
    assert ReviewQueue(folder).progress("ann")["own"] == 1 and path.read_bytes().endswith(b"\n")


def test_a_second_server_is_refused_but_merging_is_not(folder):
    queue = ReviewQueue(folder)
    with pytest.raises(AnnotationError, match="decisions.jsonl is in use: another run, or another review server"):
        ReviewQueue(folder)
    queue.decide(decision(next_item(queue, "ann")))
    assert merge_decisions(folder).decisions["accept"] == 1
    with pytest.raises(AnnotationError, match="for reading only"):
        ReviewQueue(folder, read_only=True).undo("ann")
    queue.close()
    ReviewQueue(folder).close()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"decision": "maybe"}, "The decision is 'maybe', expected one of accept, edit, reject, skip, undo"),
        ({"decision": "edit"}, "An edit belongs to the decision 'edit'"),
        ({"edit": {}}, "An edit belongs to the decision 'edit'"),
        ({"decision": "reject", "reasons": ["ugly"]}, "The reason 'ugly' is not one of object, fact"),
        ({"reasons": ["fact"]}, "Reasons belong to the decision 'reject'"),
        ({"seconds": float("nan")}, "took nan seconds"),
        ({"reviewer": " "}, "1 to 64 printable characters"),
        ({"reviewer": "a\nb"}, "printable"),
    ],
)
def test_decisions_that_contradict_themselves(folder, fields, problem):
    queue = ReviewQueue(folder)
    with pytest.raises(AnnotationError, match=problem):
        queue.decide(replace(decision(next_item(queue, "ann")), **fields))
    assert (folder / "decisions.jsonl").read_bytes() == b""


def test_an_unknown_item(folder):
    queue = ReviewQueue(folder)
    with pytest.raises(UnknownItemError, match="no item 'x'"):
        queue.decide(Decision("x", "accept", "ann", ""))


# Edits


@pytest.mark.parametrize(
    ("question", "answer", "code"),
    [
        ("What is <obj9> doing there?", "It is <p> the thing </p> <obj1>.", "tag_unknown"),
        ("What is this doing there?", "It is <p> the thing </p> <obj1>.", "question_untagged"),
        ("What is <obj1> doing there?", "It is <p> the thing <obj1>.", "tag_unbalanced"),
        ("What is <obj1> doing there?", "It is the thing in the red bounding box <p> there </p> <obj1>.", "leak"),
        ("What is <obj1> doing there?", "", "length"),
    ],
)
def test_an_edit_passes_the_exact_checks_or_is_refused(folder, question, answer, code):
    queue = ReviewQueue(folder)
    item = item_of(queue, 2)
    with pytest.raises(RefusedEditError, match=code):
        queue.decide(decision(item, "edit", edit={"question": question, "answer": answer}))
    assert queue.log.verdict(item.id) is None


@pytest.mark.parametrize(
    "edit",
    [
        {},
        {"question": "a"},
        {"question": 5, "answer": "b"},
        {"statements": []},
        {"question": "a" * 5000, "answer": ""},
    ],
)
def test_an_edit_of_another_form(folder, edit):
    queue = ReviewQueue(folder)
    with pytest.raises(AnnotationError, match="The edit has|must be a text"):
        queue.decide(decision(item_of(queue, 2), "edit", edit=edit))


def with_statements(folder: Path):
    """The queue of one item that describes the first object."""
    line, record = rows(folder / "review.jsonl")[0], rows(folder / "review_records.jsonl")[0]
    name = line["masks_ref"]["objects"]["obj1"]
    statements = [{"text": "It moves slowly to the right.", "first": 0, "last": 3}]
    text, messages = {"statements": statements}, description_messages(1, [Statement(**statements[0])], [name])
    record = {**record, "messages": messages}
    line |= {"text": text, "object": name, "item_hash": item_hash(text, record)}
    write_rows(folder / "review.jsonl", [line])
    write_rows(folder / "review_records.jsonl", [record])
    return ReviewQueue(folder)


def test_statements_are_edited_and_checked(folder):
    queue = with_statements(folder)
    item = item_of(queue, 0)
    shown = min(i for i, code in enumerate(item.record["objects"][item.object]["masks"]) if code is not None)
    good = [{"text": "It stands still in the middle.", "first": shown, "last": shown}]
    queue.decide(decision(item, "edit", edit={"statements": good}))
    merge_decisions(folder)
    made = [row for row in rows(folder / "reviewed_records.jsonl") if row["id"] == item.id]
    assert made[0]["messages"][1]["content"] == [{"type": "text", "text": "It stands still in the middle."}]
    with pytest.raises(RefusedEditError, match="leak"):
        item.edited({"statements": [{"text": "It is in the red bounding box.", "first": shown, "last": shown}]})
    for bad in (5, [5], [{"text": "a"}], [{"text": "It stands still.", "first": "0", "last": 1}]):
        with pytest.raises(AnnotationError, match="Each statement needs a text"):
            item.edited({"statements": bad})


# Merging


def test_without_decisions_the_kept_records_stay(folder):
    summary = merge_decisions(folder)
    assert (folder / "reviewed_records.jsonl").read_text() == (folder / "records.jsonl").read_text()
    assert summary.line() == "4 records, 8 undecided"
    assert all("audited" not in row for row in rows(folder / "reviewed_provenance.jsonl"))


def test_decisions_are_merged(folder):
    """Doubtful items come in when accepted or edited; audited ones go when rejected, and change when edited."""
    queue = ReviewQueue(folder)
    doubtful, audited = [item_of(queue, n) for n in (0, 2, 4, 6)], [item_of(queue, n) for n in (1, 3, 5, 7)]
    question, answer = "What about <obj1> and the rest?", "I see <p> this one </p> <obj1> only."
    edit = {"question": question, "answer": answer}
    queue.decide(decision(doubtful[0]))
    queue.decide(decision(doubtful[1], "edit", edit=edit))
    queue.decide(decision(doubtful[2], "reject", reasons=["fact", "mask"]))
    queue.decide(decision(audited[0]))
    queue.decide(decision(audited[1], "edit", edit=edit))
    queue.decide(decision(audited[2], "reject"))
    summary = merge_decisions(folder)
    kept = {row["id"]: row for row in rows(folder / "records.jsonl")}
    found = {row["id"]: validate_record(row) for row in rows(folder / "reviewed_records.jsonl")}
    assert set(found) == {*kept, doubtful[0].id, doubtful[1].id} and summary.records == len(found)
    videos = [json.dumps(row["video"]) for row in found.values()]
    assert videos == sorted(videos)  # those of a video follow each other
    assert found[doubtful[0].id]["messages"] == doubtful[0].record["messages"]
    first = doubtful[1].names[0]
    edited = found[doubtful[1].id]["messages"]
    assert [part.get("text") for part in edited[1]["content"]] == ["I see ", "this one", " only."]
    assert list(found[doubtful[1].id]["objects"]) == [first]
    origins = [one.origin for one in audited]
    assert found[origins[0]] == kept[origins[0]] and found[origins[3]] == kept[origins[3]]
    changed = found[origins[1]]["messages"]
    assert [one["content"] for one in changed[2:4]] == [one["content"] for one in edited]
    assert changed[3]["info"]["kind"] == kept[origins[1]]["messages"][3]["info"]["kind"]  # the kind of the turn stays
    assert changed[:2] == kept[origins[1]]["messages"][:2]
    messages = kept[origins[2]]["messages"]
    assert found[origins[2]]["messages"] == messages[:2] + messages[4:]
    looked_at = {row["id"] for row in rows(folder / "reviewed_provenance.jsonl") if row.get("audited")}
    assert looked_at == {*origins[:3], doubtful[0].id, doubtful[1].id}
    assert summary.audited == 3 and summary.audited_wrong == 2
    assert "2 of 3 accepted items were not right" in summary.line()
    before = (folder / "reviewed_records.jsonl").read_bytes()
    queue.close()
    merge_decisions(folder)
    assert (folder / "reviewed_records.jsonl").read_bytes() == before


def test_a_record_without_messages_goes(folder):
    records = rows(folder / "records.jsonl")
    records[0]["messages"] = records[0]["messages"][2:4]
    write_rows(folder / "records.jsonl", records)
    queue = ReviewQueue(folder)
    queue.decide(decision(item_of(queue, 1), "reject"))
    assert merge_decisions(folder).records == 3
    assert records[0]["id"] not in {row["id"] for row in rows(folder / "reviewed_records.jsonl")}


def test_an_audited_item_that_its_record_does_not_contain(folder):
    records = rows(folder / "records.jsonl")
    records[0]["messages"] = records[0]["messages"][:2]
    write_rows(folder / "records.jsonl", records)
    queue = ReviewQueue(folder)
    queue.decide(decision(item_of(queue, 1), "reject"))
    with pytest.raises(AnnotationError, match="does not contain the item"):
        merge_decisions(folder)
    assert not (folder / "reviewed_records.jsonl").exists()


def test_agreement_of_two_people_beyond_chance():
    pairs = [("accept", "accept")] * 4 + [("reject", "reject")] * 4 + [("accept", "reject"), ("reject", "accept")]
    assert cohens_kappa(pairs) == pytest.approx((0.8 - 0.5) / 0.5)
    assert cohens_kappa([]) is None and cohens_kappa([("accept", "accept")]) is None


def test_agreement_counts_only_those_who_were_blind(folder):
    lines, records = rows(folder / "review.jsonl"), rows(folder / "review_records.jsonl")
    names = [name for name in (f"clip/{n}" for n in range(400)) if is_double(name)][:3]
    write_rows(folder / "review.jsonl", [{**lines[0], "id": name} for name in names])
    write_rows(folder / "review_records.jsonl", [{**records[0], "id": name} for name in names])
    queue = ReviewQueue(folder)
    for name, second, informed in zip(names, ("accept", "reject", "reject"), (False, False, True), strict=True):
        queue.decide(decision(queue.item(name)))
        queue.decide(decision(queue.item(name), second, "bob", informed=informed))
    queue.close()
    summary = merge_decisions(folder)
    assert (summary.pairs, summary.agreeing) == (2, 1) and "two people agree on 1 of 2" in summary.line()
    assert summary.disagreeing == names[1:]
    assert f"people disagree, and the latest decision counts, about {names[1]}; {names[2]}" in summary.line()


def test_the_masks_of_an_item_are_read_once_for_all_its_frames(folder, monkeypatch):
    checked = []
    monkeypatch.setattr("sama.annotation.review.validate_record", lambda record: checked.append(record) or record)
    queue = ReviewQueue(folder)
    names = queue.names()
    for name in (*names[:2], *names[:2]):
        assert queue.item(name).id == name
    assert len(checked) == 2
    for name in names:  # only the last ones are kept
        queue.item(name)
    queue.item(names[0])
    assert len(checked) == 1 + len(names)


def test_items_of_a_video_without_kept_records_come_in(folder):
    write_rows(folder / "records.jsonl", rows(folder / "records.jsonl")[1:])
    queue = ReviewQueue(folder)
    queue.decide(decision(item_of(queue, 0)))
    merge_decisions(folder)
    assert [row["id"] for row in rows(folder / "reviewed_records.jsonl")][-1] == queue.names()[0]


def test_merging_from_the_command_line(folder, capsys):
    assert annotate.main(["--merge-review", str(folder)]) == 0
    assert "reviewed_records.jsonl: 4 records, 8 undecided" in capsys.readouterr().out
    (folder / "review.jsonl").unlink()
    assert annotate.main(["--merge-review", str(folder)]) == 1
    assert "review.jsonl cannot be read" in capsys.readouterr().err


# Damaged folders


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("review", None, "review.jsonl cannot be read"),
        ("review_records", None, "review_records.jsonl cannot be read"),
        ("review", [5], "line 1: this is not a JSON object"),
        ("review", [{"id": "a"}], "line 1: the field 'record'"),
        ("review_records", [{}], "line 1: this is not a record"),
        ("review_records", [{"id": "a"}], "has no record of the item"),
        ("decisions", [{"id": "a"}], "decisions.jsonl, line 1: the field 'decision'"),
        ("decisions", [{**asdict(Decision("a", "x", "b", "c"))}], "line 1: The decision is 'x'"),
        ("decisions", [{**asdict(Decision("a", "reject", "b", "c", reasons=[["x"]]))}], "line 1: "),
    ],
)
def test_damaged_files(folder, name, change, problem):
    path = folder / f"{name}.jsonl"
    path.unlink(missing_ok=True)
    if change is not None:
        write_rows(path, change)
    with pytest.raises(AnnotationError, match=problem):
        ReviewQueue(folder)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("masks_ref", {}, "masks_ref has no objects"),
        ("masks_ref", {"objects": {"obj1": 5}}, "masks_ref has no objects"),
        ("frames", [], "frames must be numbers of frames"),
        ("frames", ["0"], "frames must be numbers of frames"),
    ],
)
def test_rows_of_another_form(folder, field, value, problem):
    write_rows(folder / "review.jsonl", [{**row, field: value} for row in rows(folder / "review.jsonl")])
    with pytest.raises(AnnotationError, match=problem):
        ReviewQueue(folder)


def test_an_id_that_is_there_twice_and_a_record_that_is_none(folder):
    lines = rows(folder / "review.jsonl")
    write_rows(folder / "review.jsonl", [lines[0], lines[0]])
    with pytest.raises(AnnotationError, match="line 2: the id .* is that of an earlier line"):
        ReviewQueue(folder)
    write_rows(folder / "review.jsonl", lines)
    records = rows(folder / "review_records.jsonl")
    write_rows(folder / "review_records.jsonl", [{**row, "messages": 5} for row in records])
    with pytest.raises(AnnotationError, match="cannot be used"):
        next_item(ReviewQueue(folder, read_only=True), "ann")
    write_rows(
        folder / "review_records.jsonl", [{**row, "objects": {}, "messages": row["messages"]} for row in records]
    )
    with pytest.raises(AnnotationError, match="cannot be used"):
        next_item(ReviewQueue(folder, read_only=True), "ann")


def test_decisions_about_what_is_not_there_are_counted():
    log = DecisionLog({"a": {"item_hash": "1"}})
    for one in (
        Decision("a", "accept", "x", "1"),
        Decision("a", "accept", "x", "2"),
        Decision("b", "accept", "x", "1"),
    ):
        log.add(one)
    assert (log.stale, log.gone) == (2, 1) and log.verdict("a") is not None


def test_blanks_around_a_name_are_no_other_person(folder):
    queue = ReviewQueue(folder)
    item = next_item(queue, "ann ")
    assert queue.decide(decision(item, reviewer=" ann")).reviewer == "ann"
    assert next_item(queue, "ann").id != item.id


def test_a_run_while_the_queue_is_open_is_told(folder):
    queue = ReviewQueue(folder)
    item = item_of(queue, 0)
    for name in ("review.jsonl", "review_records.jsonl"):  # the same again
        (folder / "new").write_bytes((folder / name).read_bytes())
        os.replace(folder / "new", folder / name)
    assert queue.item(item.id).item_hash == item.item_hash
    lines = rows(folder / "review.jsonl")
    write_rows(folder / "review.jsonl", [{**line, "item_hash": "0" * 16} for line in lines])
    with pytest.raises(StaleItemError, match="was run again. Start this server again"):
        queue.decide(decision(item))


def test_a_double_item_is_in_the_hands_of_two_people_at_most(folder):
    lines, records = rows(folder / "review.jsonl"), rows(folder / "review_records.jsonl")
    name = next(name for name in (f"clip/{n}" for n in range(200)) if is_double(name))
    write_rows(folder / "review.jsonl", [{**lines[0], "id": name}])
    write_rows(folder / "review_records.jsonl", [{**records[0], "id": name}])
    queue = ReviewQueue(folder, clock=(clock := Clock()))
    assert next_item(queue, "ann").id == next_item(queue, "bob").id == name and next_item(queue, "cid") is None
    queue.decide(decision(queue.item(name)))
    assert queue.undo("ann") == name and next_item(queue, "cid") is None  # the second one has it open
    clock.now = LEASE_SECONDS + 1
    assert next_item(queue, "cid").id == name


def test_an_item_is_kept_by_whoever_holds_it_when_another_person_takes_it_back(folder):
    queue = ReviewQueue(folder)
    item = next_item(queue, "ann")
    queue.decide(decision(item, "skip"))
    assert next_item(queue, "bob").id == item.id and queue.undo("ann") == item.id
    assert next_item(queue, "ann").id == next_item(queue, "bob").id == item.id != next_item(queue, "cid").id
    queue.decide(decision(item))
    assert next_item(queue, "bob").id != item.id


def test_an_edit_must_not_speak_of_the_drawn_colours(folder):
    queue = ReviewQueue(folder)
    item = item_of(queue, 0)
    assert item.colors
    answer = f"I see <p> this one </p> <obj1> in a {item.colors[0]} outline."
    edit = {"question": "What about <obj1> and the rest?", "answer": answer}
    with pytest.raises(RefusedEditError, match="leak"):
        queue.decide(decision(item, "edit", edit=edit))
