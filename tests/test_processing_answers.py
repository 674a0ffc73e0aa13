"""Answers: from tokens and tags to grounded phrases, and back."""

import numpy as np
import pytest
import torch
from processor_fixtures import tiny_processor

from sama.objects_sama import GroundedPhrase, MaskTrack
from sama.prompts_sama import answer_parts, ground_phrase
from sama.templates_sama import CHAT_TEMPLATES


torch.set_num_threads(1)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.mark.parametrize(
    ("tagged", "text", "spans"),
    [
        ("<p> The man </p> [SEG] pets <p> a dog </p> [SEG].", "The man pets a dog.", [(0, 7), (13, 18)]),
        ("<p> two dogs </p> [SEG] [SEG] run", "two dogs run", [(0, 8), (0, 8)]),
        ("Sure, [SEG].", "Sure,.", [(5, 5)]),
        ("<p> a </p> and <p> b </p> [SEG]", "a and b", [(6, 7)]),
        ("<p> a </p> [SEG] is near [SEG]", "a is near", [(0, 1), (9, 9)]),
        ("<p> a </p> stands [SEG]", "a stands", [(0, 1)]),
        ("<p> a [SEG]", "a", [(1, 1)]),
        ("No  objects\there.", "No objects here.", []),
        ("[SEG] first", "first", [(0, 0)]),
        ("x <p> </p> y", "x y", []),
        ("x <p> </p> [SEG] y", "x y", [(1, 1)]),
        ("One.\n\n<p> Two </p> [SEG]", "One.\n\nTwo", [(6, 9)]),
        ("", "", []),
    ],
)
def test_parsing(processor, tagged, text, spans):
    answer = processor.post_process_answer(tagged + "<|im_end|>")
    assert (answer.text, [item.span for item in answer.objects]) == (text, spans)
    assert [item.text for item in answer.objects] == [text[start:end] for start, end in spans]
    again = processor.post_process_answer(processor.to_tagged_text(answer.text, answer.objects))
    assert (again.text, [item.span for item in again.objects]) == (text, spans)


def test_tagged_text_of_an_answer_comes_back(processor):
    tagged = "<p> The man </p> [SEG] pets <p> two dogs </p> [SEG] [SEG], said [SEG]."
    answer = processor.post_process_answer(tagged)
    assert answer.tagged_text == tagged == processor.to_tagged_text(answer.text, answer.objects)


def test_blanks_at_the_ends_of_a_span_stay_outside_the_tags(processor):
    objects = [GroundedPhrase(" dog ", (3, 8)), GroundedPhrase("", (8, 8))]
    assert processor.to_tagged_text("the dog runs", objects[:1]) == "the <p> dog </p> [SEG] runs"
    assert processor.to_tagged_text("the dog runs", objects[1:]) == "the dog [SEG] runs"


@pytest.mark.parametrize("spans", [[], [(0, 5)], [(2, 5), (2, 5), (6, 10)], [(5, 5)], [(0, 0)], [(10, 10), (10, 10)]])
def test_parts_of_an_answer_are_its_tagged_text(processor, spans):
    text, asked = "a dog runs", [{"role": "user", "content": "What?"}]
    objects = [GroundedPhrase(text[start:end], (start, end)) for start, end in spans]
    ids = [
        processor.apply_chat_template([*asked, {"role": "assistant", "content": content}])["input_ids"].tolist()
        for content in (processor.to_tagged_text(text, objects), answer_parts(text, objects))
    ]
    assert ids[0] == ids[1]


def test_words_of_an_answer_that_spell_tags_stay_words(processor):
    asked, text = [{"role": "user", "content": "What?"}], "<p>Hello</p> [SEG]"
    tags = set(processor.tokenizer.convert_tokens_to_ids(["<p>", "</p>", "[SEG]"]))
    for content, found in ((text, tags), (answer_parts(text, []), set())):
        ids = processor.apply_chat_template([*asked, {"role": "assistant", "content": content}])["input_ids"]
        assert tags & set(ids[0].tolist()) == found


@pytest.mark.parametrize("seed", range(20))
def test_any_spans_survive_the_round_trip(processor, seed):
    generator = np.random.default_rng(seed)
    text = " ".join("".join(generator.choice(list("abc.,"), generator.integers(1, 6))) for _ in range(12))
    bounds = sorted(generator.choice(np.flatnonzero([letter != " " for letter in text]), 6, replace=False).tolist())
    spans = [(start, end) for start, end in zip(bounds[::2], bounds[1::2], strict=True) if text[end - 1] != " "]
    objects = [GroundedPhrase(text[start:end], (start, end)) for start, end in spans]
    answer = processor.post_process_answer(processor.to_tagged_text(text, objects))
    assert (answer.text, [item.span for item in answer.objects]) == (text, spans)


def test_answers_from_tokens_with_tracks(processor):
    ids = processor.tokenizer("<p> A dog </p> [SEG] runs.<|im_end|><|endoftext|><|endoftext|>")["input_ids"]
    track = MaskTrack(2, 4, 5)
    for tokens in (ids, torch.tensor(ids)):
        answer = processor.post_process_answer(tokens, tracks=[track], scores=torch.tensor([0.5]))
        assert answer.text == "A dog runs." and answer.tagged_text == "<p> A dog </p> [SEG] runs."
        assert answer.objects == [GroundedPhrase("A dog", (0, 5), track, 0.5)]
    assert answer.objects[0].masks.shape == (2, 4, 5)
    with pytest.raises(ValueError, match=r"The answer has 1 \[SEG\] but 2 mask tracks were given"):
        processor.post_process_answer(ids, tracks=[track, track])
    assert processor.post_process_answer("Nothing to show.", tracks=[]).objects == []


def test_end_mark_that_is_plain_text():
    assert tiny_processor(chat_template="phi3_chat").post_process_answer("A dog.<|end|>").text == "A dog."


@pytest.mark.parametrize(
    ("spans", "message"), [([(0, 9)], "lies outside an answer of 5"), ([(2, 4), (0, 1)], "overlaps")]
)
def test_spans_that_cannot_be_tagged(processor, spans, message):
    with pytest.raises(ValueError, match=message):
        processor.to_tagged_text("a dog", [GroundedPhrase("", span) for span in spans])


def test_an_end_mark_of_ordinary_words_is_a_stop_string():
    processor = tiny_processor()
    assert processor.stop_arguments == {}
    processor.chat_template = CHAT_TEMPLATES["phi3_chat"]
    assert processor.stop_arguments["stop_strings"] == ["<|end|>"]


@pytest.mark.parametrize(
    ("text", "count", "written"),
    [("", 1, "[SEG]"), ("", 2, "[SEG] [SEG]"), ("it", 1, "<p> it </p> [SEG]"), ("it", 0, "it")],
)
def test_phrase_without_words_is_a_bare_seg(text, count, written):
    assert ground_phrase(text, count) == written
