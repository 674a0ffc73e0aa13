"""Sessions on the small checkpoint: what is streamed, what cancelling leaves, and what keeps its number."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoint import dictate, load_checkpoint

from sama.overlay_sama import object_color
from sama.serving import session as module
from sama.serving.object_notation import object_numbers
from sama.serving.session import (
    AnswerText,
    Cancelled,
    ChatSession,
    Done,
    Failed,
    MaskFrame,
    TextDelta,
    _AnswerEvents,
)
from sama.streaming_sama import AnswerStreamer, stable_prefix
from sama.toy_world.world import ToyWorld


BOX = {"frame": 2, "box": [10, 10, 60, 60]}
ANSWER = "<p> The red circle </p> [SEG] passes <p> two rings </p> [SEG] [SEG] slowly."
TEXT = "The red circle passes two rings slowly."
NUM_FRAMES = 10


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint()


@pytest.fixture(scope="module")
def clip():
    return ToyWorld({"tasks": {"dialogue": 1}, "frames": [NUM_FRAMES, NUM_FRAMES]}, seed=5)[0].frames


@pytest.fixture
def make_session(loaded, clip):
    model, processor = loaded
    return lambda: ChatSession(model.start_chat(processor, video=clip))


@pytest.fixture
def say(loaded):
    """Arguments of `ask` that make the model give an answer."""
    return lambda answer: dictate(loaded[1], answer)


@pytest.fixture(scope="module")
def undisturbed(loaded, clip):
    """The second turn of a session in which nothing was cancelled between the two."""
    model, processor = loaded
    session = ChatSession(model.start_chat(processor, video=clip))
    list(session.ask("Who?", **dictate(processor, "<p> A ring </p> [SEG].")))
    *_, done = session.ask("And <region>?", [{"object": 1}], **dictate(processor, ANSWER))
    return done.turn


def read(events, kind):
    return [event for event in events if isinstance(event, kind)]


def assert_same_reply(reply, other):
    assert (reply.tagged_text, reply.text) == (other.tagged_text, other.text)
    for mine, theirs in zip(reply.objects, other.objects, strict=True):
        assert mine.span == theirs.span
        assert (mine.masks != theirs.masks).mean() < 1e-5


# Events


def test_events_come_in_order_and_agree_with_the_reply(make_session, say):
    session = make_session()
    events = list(session.ask("What is <region> doing?", [BOX], **say(ANSWER)))
    kinds = [type(event) for event in events]
    num_deltas = kinds.count(TextDelta)
    assert num_deltas > 5
    assert kinds == [TextDelta] * num_deltas + [AnswerText] + [MaskFrame] * NUM_FRAMES + [Done]
    (text,), (done,) = read(events, AnswerText), read(events, Done)
    assert "".join(event.text for event in read(events, TextDelta)) == text.text == done.turn.reply.text == TEXT
    assert done.turn is session.turns[0] and text.objects == done.turn.objects
    assert [(item.number, item.phrase, TEXT[slice(*item.span)]) for item in text.objects] == [
        (1, "The red circle", "The red circle"), (2, "two rings", "two rings"), (3, "two rings", "two rings"),
    ]  # fmt: skip
    frames = read(events, MaskFrame)
    assert sorted(event.frame for event in frames) == list(range(NUM_FRAMES))
    for event in frames:
        assert list(event.masks) == [1, 2, 3]
        for number, mask in event.masks.items():
            assert mask.dtype == bool and (mask == session.object(number).track[event.frame]).all()


def test_the_same_answer_as_without_a_session(make_session, loaded, clip):
    model, processor = loaded
    session = make_session()
    *_, done = session.ask("What is <region>?", [BOX], max_new_tokens=20)
    assert_same_reply(done.turn.reply, model.start_chat(processor, video=clip).ask("What is <region>?", [BOX], 20))


def test_cancelling_at_the_last_event_leaves_no_turn_that_the_session_lacks(make_session, say, monkeypatch):
    """The text of an answer without masks is sent before the chat keeps the turn."""
    session = make_session()
    list(session.ask("Who?", **say("<p> A ring </p> [SEG].")))
    asked = session.chat.ask

    def ask(*arguments, **named):
        reply = asked(*arguments, **named)
        session.cancel()
        return reply

    monkeypatch.setattr(session.chat, "ask", ask)
    list(session.ask("And <region>?", [{"object": 1}], masks=False, **say(ANSWER)))
    assert len(session.chat.messages) == 2 * len(session.turns)


@pytest.mark.parametrize("region", [BOX, "phrase"])
def test_one_region_that_is_in_no_list_is_one_sentence(make_session, say, region):
    session = make_session()
    *_, done = session.ask("Who?", **say("<p> A ring </p> [SEG]."))
    *_, failed = session.ask("And <region>?", done.turn.reply.objects[0] if region == "phrase" else region)
    assert isinstance(failed, Failed) and "write regions=[...]" in str(failed.message)


def test_an_answer_without_objects_or_masks(make_session, say):
    session = make_session()
    assert [type(event) for event in session.ask("Who?", **say("Nobody."))][-2:] == [AnswerText, Done]
    events = list(session.ask("Who?", masks=False, **say("[SEG]")))
    assert [type(event) for event in events] == [AnswerText, Done]  # no word, hence no delta
    assert events[0].objects[0].phrase == "" and session.object(1).track is None


def test_text_without_a_video(loaded, say):
    model, processor = loaded
    events = list(ChatSession(model.start_chat(processor)).ask("Hello?", **say("Hello [SEG]!")))
    assert not read(events, MaskFrame) and "".join(event.text for event in read(events, TextDelta)) == "Hello!"


# Text deltas


def streamed(processor, tokens):
    pieces = []
    streamer = AnswerStreamer(processor, lambda text: pieces.append(text) if text else None)
    streamer.put(np.zeros((1, 3), dtype=int))  # the prompt
    for token in tokens:
        streamer.put(np.array([token]))
    streamer.end()
    streamer.finish(processor.post_process_answer(tokens).text)
    return pieces


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        "  <p>A</p>[SEG]<p>b </p> [SEG] \n c  d <|im_end|>",
        "2 < 3 [in words: <p> two </p>] and <em> [SEG [SEG",
        "naïve 漢字 🙂 <p> 犬 </p> [SEG]。 🙂",
        "<p> unfinished",
        "[SEG] first, and last [SEG]",
        "",
    ],
)
def test_deltas_join_to_the_text_and_show_no_tags(loaded, answer):
    processor = loaded[1]
    tokens = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    pieces = streamed(processor, tokens)
    assert "".join(pieces) == processor.post_process_answer(tokens).text
    assert all(pieces) and "[SEG]" not in "".join(pieces)


def test_tags_spelled_with_ordinary_tokens(loaded):
    processor = loaded[1]
    tokens = [
        token
        for letter in "a <p> b </p> [SEG] <<p>> c <|im_<|im_end|>end|> d <|im_end|>"
        for token in processor.tokenizer(letter, add_special_tokens=False)["input_ids"]
    ]
    assert "".join(streamed(processor, tokens)) == processor.post_process_answer(tokens).text


def test_deltas_of_random_tokens_join_to_the_text(loaded):
    processor, rng = loaded[1], np.random.default_rng(0)
    tags = processor.tokenizer.convert_tokens_to_ids(["[SEG]", "<p>", "</p>", "<|im_end|>"])
    blanks = [token for word in (" ", "\n", "  ", "<", "[", "|", "🙂")
              for token in processor.tokenizer(word, add_special_tokens=False)["input_ids"]]  # fmt: skip
    for _ in range(100):
        kinds = rng.integers(0, 3, 25)
        tokens = [int(rng.choice((tags, blanks, range(len(processor.tokenizer)))[kind])) for kind in kinds]
        assert "".join(streamed(processor, tokens)) == processor.post_process_answer(tokens).text


@pytest.mark.parametrize(
    ("text", "stable"),
    [("a dog ", "a dog"), ("a <", "a"), ("a <b", "a <b"), ("a [SE", "a"), ("<<p", ""), ("caf\ufffd", "caf"), ("", "")],
)
def test_stable_prefix(text, stable):
    beginnings = {marker[:end] for marker in ("<p>", "[SEG]") for end in range(1, len(marker))}
    assert stable_prefix(text, beginnings) == stable


# Cancelling


def first(events, kind):
    """Reads up to the first event of a kind."""
    return next(event for event in events if isinstance(event, kind))


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        pytest.param("cancel", TextDelta, id="cancel in the text"),
        pytest.param("cancel", MaskFrame, id="cancel while tracking"),
        pytest.param("close", MaskFrame, id="close while tracking"),
        pytest.param("drop", TextDelta, id="drop in the text"),
        pytest.param("close", TextDelta, id="close in the text", marks=pytest.mark.slow),
        pytest.param("drop", MaskFrame, id="drop while tracking", marks=pytest.mark.slow),
    ],
)
def test_a_cancelled_question_leaves_nothing(make_session, undisturbed, say, monkeypatch, kind, way):
    monkeypatch.setattr(module, "MAX_WAITING_EVENTS", 1)  # the worker cannot run ahead of what is read here
    session = make_session()
    list(session.ask("Who?", **say("<p> A ring </p> [SEG].")))
    turns, messages = list(session.turns), session.chat.messages
    text = ANSWER + " And" * 40 * (kind is TextDelta)
    events = session.ask("What is <region> doing?", [BOX], **say(text))
    first(events, kind)
    if way == "cancel":
        canceller = threading.Thread(target=session.cancel)
        canceller.start()
        rest = list(events)
        canceller.join()
        assert isinstance(rest[-1], Cancelled) and not read(rest, Done)
    elif way == "close":
        events.close()
        assert list(events) == []
    else:
        del events
    assert session.turns == turns and session.chat.messages == messages
    *_, done = session.ask("And <region>?", [{"object": 1}], **say(ANSWER))
    assert_same_reply(done.turn.reply, undisturbed.reply)
    # Three objects more, or two if the first one is what the question points at
    assert [item.number for item in undisturbed.objects] in ([1, 2, 3], [2, 3, 4])
    assert [item.number for item in done.turn.objects] == [item.number for item in undisturbed.objects]


def test_cancel_without_a_question_does_nothing(make_session, say):
    session = make_session()
    session.cancel()
    *_, done = session.ask("Who?", **say("Nobody."))
    session.cancel()
    assert isinstance(done, Done) and isinstance(list(session.ask("Who?", **say("Nobody.")))[-1], Done)


def test_a_second_question_waits_for_the_first(make_session, say):
    session = make_session()
    events = session.ask("Who?", **say(ANSWER))
    with pytest.raises(RuntimeError, match="still being answered"):
        session.ask("And who?")
    assert isinstance(list(events)[-1], Done)
    assert isinstance(list(session.ask("And who?", **say("Nobody.")))[-1], Done)
    assert [turn.question for turn in session.turns] == ["Who?", "And who?"]


def test_two_sessions_share_a_model(make_session, say):
    answers = ["<p> A ring </p> [SEG] turns.", ANSWER]
    alone = [list(make_session().ask("What is <region>?", [BOX], **say(answer)))[-1] for answer in answers]
    streams = [make_session().ask("What is <region>?", [BOX], **say(answer)) for answer in answers]
    last, waiting = [None, None], [0, 1]
    while waiting:
        index = waiting.pop(0)
        event = next(streams[index], None)
        if event is not None:
            last[index] = event
            waiting.append(index)
    for together, one in zip(last, alone, strict=True):
        assert_same_reply(together.turn.reply, one.turn.reply)


# Numbers and colours


def test_objects_keep_number_and_colour(make_session, say):
    session = make_session()
    *_, one = session.ask("Who?", **say("<p> A ring </p> [SEG] and <p> a star </p> [SEG]."))
    star = session.objects[1]
    *_, two = session.ask("What does <region> do?", [BOX], **say("<p> It </p> [SEG]."))
    *_, three = session.ask("And <region>, or <region>?", [star, session.object(3)], **say("Nothing."))
    assert [item.number for turn in session.turns for item in turn.objects] == [1, 2, 3]
    colors = [item.color for turn in session.turns for item in turn.objects]
    assert colors == [object_color(index) for index in range(3)]
    assert two.turn.regions == (BOX,) and three.turn.regions == ({"object": 2}, {"object": 3})
    assert one.turn.objects == session.turns[0].objects and session.object(2) is star


def test_an_object_that_is_asked_about_keeps_its_number_if_it_is_found_again(make_session, say):
    session = make_session()
    *_, one = session.ask("Who?", **say("<p> A ring </p> [SEG]."))
    events = list(session.ask("And <region>?", [{"object": 1}], **say("<p> It </p> [SEG] [SEG]")))
    (text,), turn = read(events, AnswerText), events[-1].turn
    overlap = {
        place: object_numbers([phrase.masks[frame]], {1: session.object(1).masks[frame]}, 2) == (1,)
        for frame in [read(events, MaskFrame)[0].frame]
        for place, phrase in enumerate(turn.reply.objects)
    }
    expected = (1, 2) if overlap[0] else (2, 1) if overlap[1] else (2, 3)
    assert turn.numbers == expected == tuple(item.number for item in text.objects)
    assert all(tuple(event.masks) == expected for event in read(events, MaskFrame))
    assert len(session.objects) == max(expected) and session.object(1) is one.turn.reply.objects[0]
    kinds = [type(event) for event in events]
    assert kinds.index(AnswerText) < kinds.index(MaskFrame) and kinds.count(AnswerText) == 1


def test_numbers_of_objects_follow_their_masks():
    left, right = np.zeros((2, 8, 8), bool)
    left[:, :3] = right[:, 5:] = True
    assert object_numbers([left, right], {}, 4) == (4, 5)
    assert object_numbers([right, left], {2: left}, 4) == (4, 2)
    assert object_numbers([left, left], {2: left, 3: right}, 4) == (2, 4)  # found again once
    assert object_numbers([left & right], {2: left & right}, 4) == (4,)  # two empty masks are not the same object
    coat = left.copy()
    coat[:3] = False  # a part of the person, named before the person
    assert object_numbers([coat, left], {2: left}, 4) == (4, 2)


def test_objects_are_recognised_on_the_first_frame_that_shows_them():
    """The object that is pointed at comes into view on the second prompted frame."""
    sent, streamer = [], SimpleNamespace(finish=lambda text: None)
    masks = np.zeros((3, 2, 8, 8), bool)
    masks[1:, 1, :3] = masks[:, 0, 5:] = True
    reply = SimpleNamespace(text="A b.", objects=[SimpleNamespace(text=text, span=(0, 1)) for text in "ab"])
    for num_prompted, expected in ((3, (2, 1)), (1, (2, 3))):
        known = {1: SimpleNamespace(track=masks[:, 1])}
        events = _AnswerEvents(SimpleNamespace(send=sent.append), streamer, known, 2, num_prompted)
        events.on_answer(reply)
        for frame in range(3):
            events.on_frame(frame, masks[frame])
        assert events.finish() == expected
        assert [type(event) for event in sent] == [AnswerText, MaskFrame, MaskFrame, MaskFrame]
        assert [event.frame for event in sent[1:]] == [0, 1, 2]
        sent.clear()


# Errors


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([{"object": 1}], "There is no object 1: the answers so far have 0"),
        ([{"object": "x"}], "There is no object x"),
        ([{"object": 1, "frame": 2}], "takes no other field, got object, frame"),
        ([], "1 <region> but 0 regions"),
        ([{"frame": 99, "box": [1, 1, 2, 2]}], "Frame 99 does not exist"),
    ],
)
def test_an_error_is_an_event_and_leaves_nothing(make_session, say, regions, message):
    session = make_session()
    (failed,) = session.ask("What is <region>?", regions)
    assert isinstance(failed, Failed) and isinstance(failed.cause, ValueError)
    assert message in failed.message and "\n" not in failed.message
    assert session.turns == [] and isinstance(list(session.ask("Who?", **say("Nobody.")))[-1], Done)


def test_reading_a_question_can_be_cancelled(make_session):
    session = make_session()
    encode = session.chat.encode_new_frames

    def encode_and_cancel(turn):
        encode(turn)
        session.cancel()

    session.chat.encode_new_frames = encode_and_cancel
    assert [type(event) for event in session.ask("What is <region>?", [BOX])] == [Cancelled]
    assert session.chat.state.video_length == 0 and session.turns == []
    session.chat.encode_new_frames = encode
    assert isinstance([*session.ask("What is <region>?", [BOX], masks=False, max_new_tokens=3)][-1], Done)
