"""Prompts of reinforcement: what a record says about a question reaches the rewards, wherever it says it."""

import json

import pytest
from data_fixtures import mixture, toy
from processor_fixtures import tiny_processor

from sama.data.catalogue import Entry, open_source
from sama.data.records import DataError
from sama.training import prompts
from sama.training.prompts import TurnMixture, kinds_of, prompt_of


CHOICE = {"kind": "choice", "choices": ["red", "blue"], "answer": "red"}


def text_mixture(folder, infos):
    """One record of two rounds; the info of each of its four messages."""
    texts = ["Which colour?", "It is red.", "Why?", "It was painted."]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": text}], "info": info}
        for i, (text, info) in enumerate(zip(texts, infos, strict=True))
    ]
    (folder / "records.jsonl").write_text(json.dumps({"id": "a", "messages": messages}) + "\n")
    entry = Entry("mine", "json_lines", {"records": "records.jsonl", "media": "."})
    return mixture({open_source(entry, folder, folder / "cache", "raise"): 1})


@pytest.mark.parametrize("infos", [[CHOICE, {}, {}, {}], [{}, CHOICE, {}, {}]], ids=["question", "answer"])
def test_what_is_known_of_a_question_may_stand_at_either_message(tmp_path, infos):
    found = TurnMixture(text_mixture(tmp_path, infos), ["choice"])
    prompts = [prompt_of(found[index], tiny_processor().tokenizer) for index in range(4)]
    assert {one.question for one in prompts} == {"Which colour?"}
    assert all(one.reference.info == CHOICE for one in prompts)


def test_an_answer_may_say_more_than_its_question(tmp_path):
    found = TurnMixture(text_mixture(tmp_path, [{"kind": "other", "image": "a"}, CHOICE, {}, {}]), ["choice"])
    prompt = prompt_of(found[0], tiny_processor().tokenizer)
    assert prompt.reference.info == {"image": "a", **CHOICE}


def test_a_kind_that_no_question_has_is_refused(tmp_path):
    with pytest.raises(DataError, match="kinds count; found are choice"):
        TurnMixture(text_mixture(tmp_path, [CHOICE, {}, {}, {}]), ["count"])


def toy_dialogues(samples: int = 12):
    return mixture({open_source(toy(samples, frames=[8, 9], tasks={"dialogue": 1}), None, None, "raise"): 1})


def test_prompts_are_drawn_among_records_with_the_kind():
    """Each sample has a question of the kind; records that have one are kept, and every epoch draws others anew."""
    plain = toy_dialogues()
    kinds = [sorted(kinds_of(plain.sources[0].record(index))) for index in range(12)]
    lacking = [index for index, own in enumerate(kinds) if "order" not in own]
    assert 0 < len(lacking) < 12
    found = TurnMixture(plain, ["order"])
    samples = [found[index] for index in range(24)]
    assert {sample.info[-1]["kind"] for sample in samples} == {"order"}
    assert found.report()["toy"]["skipped"] == 0 and len(found) == 12
    places = [found.locate(index)[1] for index in range(24)]
    assert not {*places} & {*lacking}
    assert all(places[index] == places[index + 12] == index for index in range(12) if index not in lacking)
    assert any(places[index] != places[index + 12] for index in lacking)
    again = TurnMixture(toy_dialogues(), ["order"])  # in any order, as after resuming
    assert [again.locate(index)[1] for index in reversed(range(24))] == places[::-1]


def test_a_sample_without_the_kind_after_all_draws_is_skipped(monkeypatch):
    monkeypatch.setattr(prompts, "MAX_DRAWS", 1)
    found = TurnMixture(toy_dialogues(), ["order"])
    samples = [found[index] for index in range(12)]
    counts = found.report()["toy"]
    assert None in samples
    assert (counts["skipped"], counts["read"]) == (samples.count(None), 12 - samples.count(None))


def test_what_is_drawn_is_part_of_the_run():
    assert TurnMixture(toy_dialogues(), ["order"]).resolved()["rendering"]["max_draws"] == 100
    assert "max_draws" not in TurnMixture(toy_dialogues()).resolved()["rendering"]
