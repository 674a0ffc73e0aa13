"""Chats that branch off from another or take over its messages, and what a region selects before anything is asked."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoint import count_calls, dictate, load_checkpoint

from sama.toy_world.world import ToyWorld


BOX = {"frame": 2, "box": [10, 10, 50, 50]}
QUESTIONS = (("What is <region>?", [BOX]), ("What color is it?", []), ("Is <region> large?", [BOX]))


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint()


@pytest.fixture(scope="module")
def clip():
    return ToyWorld({"tasks": {"dialogue": 1}, "frames": [8, 8]}, seed=5)[0].frames[:5]


def ask_all(chat, questions=QUESTIONS):
    return [chat.ask(text, regions, masks=False, max_new_tokens=12) for text, regions in questions]


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3])
def test_a_branch_goes_on_as_the_conversation_did(loaded, clip, num_turns):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    replies = ask_all(chat)
    branch = chat.branch(num_turns)
    assert branch.messages == chat.messages[: 2 * num_turns]
    for reply, again in zip(replies[num_turns:], ask_all(branch, QUESTIONS[num_turns:]), strict=True):
        assert (again.tagged_text, again.prompt_tokens) == (reply.tagged_text, reply.prompt_tokens)
        assert again.prefilled_tokens == reply.prefilled_tokens or num_turns == 0
    other = branch.ask("Where is it?", masks=False, max_new_tokens=5)
    assert other.prefilled_tokens < 30
    assert chat.messages != branch.messages and len(chat.messages) == 6


def test_neither_side_of_a_branch_changes_the_other(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    ask_all(chat, QUESTIONS[:1])
    branch = chat.branch(1)
    ours, theirs = ask_all(chat, QUESTIONS[1:2]), ask_all(branch, QUESTIONS[2:])
    alone = model.start_chat(processor, video=clip)
    assert ask_all(alone, QUESTIONS[:2])[1].tagged_text == ours[0].tagged_text
    alone = model.start_chat(processor, video=clip)
    assert ask_all(alone, (QUESTIONS[0], QUESTIONS[2]))[1].tagged_text == theirs[0].tagged_text


def test_questions_whose_tokens_are_the_same_keep_their_own_context(loaded, clip):
    """The placeholders of two first questions are the same tokens; a branch at the beginning must not keep them."""
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    chat.ask("What is <region>?", [BOX], masks=False, max_new_tokens=3)
    other = {"frame": 1, "box": [30, 20, 60, 60]}
    branched = chat.branch().ask("What is <region>?", [other], masks=False, max_new_tokens=12)
    alone = model.start_chat(processor, video=clip).ask("What is <region>?", [other], masks=False, max_new_tokens=12)
    assert branched.tagged_text == alone.tagged_text


def test_an_answer_that_is_tokenized_otherwise_is_read_again(loaded, clip):
    """Its kept length is not that of its text, so a branch must not rely on it."""
    model, processor = loaded
    tokens = [processor.tokenizer.convert_tokens_to_ids(mark) for mark in "tree"]
    assert None not in tokens and tokens != processor.tokenizer("tree", add_special_tokens=False)["input_ids"]
    chat = model.start_chat(processor, video=clip)
    spelled = dictate(processor, "tree") | {"max_new_tokens": len(tokens)}
    spelled["logits_processor"][0].tokens = tokens
    assert chat.ask("What is it?", masks=False, **spelled).text == "tree"
    ask_all(chat, QUESTIONS[1:])
    branch = chat.branch(1)
    alone = model.start_chat(processor, video=clip)
    alone.ask("What is it?", masks=False, **dictate(processor, "tree"))
    for question in QUESTIONS[2:]:
        assert ask_all(branch, [question])[0].tagged_text == ask_all(alone, [question])[0].tagged_text


def test_branches_share_the_features_of_frames(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    encoded = count_calls(model.model.mask_tracker.sam.vision_encoder)
    chat.ask("What is it?", **dictate(processor, "<p> A ring </p> [SEG]"))
    assert sum(encoded) == len(clip)
    chat.branch().ask("Which one?", **dictate(processor, "[SEG]"))
    assert sum(encoded) == len(clip)


def test_a_conversation_cannot_branch_off_where_it_has_not_been(loaded, clip):
    model, processor = loaded
    with pytest.raises(ValueError, match="has 0 answers, it cannot branch off after 1"):
        model.start_chat(processor, video=clip).branch(1)


SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "A ring."}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("What is in the video?", r"do not show the video of this chat; put {'type': 'video', 'video': chat.video}"),
        ([{"type": "video", "video": np.zeros((3, 8, 8, 3), np.uint8)}, {"type": "text", "text": "Who?"}], "another"),
        (None, "content must be a string or a list of parts, got NoneType"),
    ],
)
def test_messages_that_a_chat_cannot_take_over(loaded, clip, content, message):
    """The video would never be read, or every later question would fail."""
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    chat.add_messages([SYSTEM])
    with pytest.raises(ValueError, match=message):
        chat.add_messages([{"role": "user", "content": content}, ANSWER])
    assert chat.messages == [SYSTEM]
    chat.add_messages([{"role": "user", "content": chat.question_content("Who?", [])}, ANSWER])
    taken = chat.ask("What color is it?", masks=False, max_new_tokens=12)
    asked = model.start_chat(processor, video=clip)
    asked.add_messages([SYSTEM])
    asked.ask("Who?", masks=False, **dictate(processor, ANSWER["content"]))
    assert taken.tagged_text == asked.ask("What color is it?", masks=False, max_new_tokens=12).tagged_text


def test_messages_with_a_video_for_a_chat_without_one(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor)
    with pytest.raises(ValueError, match="show a video or image, but this chat was started without one"):
        chat.add_messages(
            [{"role": "user", "content": [{"type": "video", "video": clip}, *chat.question_content("?", [])]}]
        )
    chat.add_messages([{"role": "user", "content": "Hello?"}, ANSWER])
    assert len(chat.messages) == 2


@pytest.mark.parametrize("messages", [[], [SYSTEM]])
def test_there_is_no_answer_to_replace(loaded, clip, messages):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    chat.state = replace(chat.state, messages=messages)
    with pytest.raises(ValueError, match="no answer to replace: the conversation does not end with one"):
        chat.replace_answer("A ring.")
    chat.state = replace(chat.state, messages=[*messages, ANSWER])
    with pytest.raises(ValueError, match="content must be a string or a list of parts, got NoneType"):
        chat.replace_answer(None)
    chat.replace_answer("A star.")
    assert chat.messages == [*messages, {"role": "assistant", "content": "A star."}]


def test_what_a_region_selects(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    clicks = {"frame": 3, "points": [[30, 30], [5, 5]], "labels": [1, 0]}
    masks = {name: chat.region_mask(region) for name, region in (("box", BOX), ("clicks", clicks))}
    for _, mask in masks.values():
        assert mask.shape == clip[0].shape[:2] and mask.dtype == bool and mask.any()
    assert (masks["box"][0], masks["clicks"][0]) == (2, 3)
    drawn = np.zeros(clip[0].shape[:2], bool)
    drawn[5:9, 5:9] = True
    assert (chat.region_mask({"frame": 4, "mask": drawn})[1] == drawn).all()
    with pytest.raises(ValueError, match="Frame 9 does not exist"):
        chat.region_mask({"frame": 9, "points": [[3, 3]]})
    with pytest.raises(ValueError, match="no video to point at"):
        model.start_chat(processor).region_mask(BOX)


def test_a_box_in_which_nothing_is_found_is_the_region_itself(loaded, clip, monkeypatch):
    model, processor = loaded
    tracker = model.model.mask_tracker
    segment = tracker.segment_points

    def nothing(*arguments):
        masks = segment(*arguments)
        masks.mask_logits.fill_(-1.0)
        return masks

    monkeypatch.setattr(tracker, "segment_points", nothing)
    _, mask = model.start_chat(processor, video=clip).region_mask(BOX)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask.sum() == len(rows) * len(columns) and abs(mask.sum() - 40 * 40) < 400
