"""Prompts of reinforcement: what a record says about a question reaches the rewards, wherever it says it."""

import json

import pytest
from data_fixtures import mixture
from processor_fixtures import tiny_processor

from sama.data.catalogue import Entry, open_source
from sama.data.records import DataError
from sama.training.prompts import TurnMixture, prompt_of


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
