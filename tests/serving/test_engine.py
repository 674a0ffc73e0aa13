"""Engines on the small checkpoint: what is reused, whose turn it is, what a failure or a cancelled answer leaves."""

import threading
import time

import numpy as np
import pytest
from checkpoint import dictate, load_checkpoint

from sama.overlay_sama import write_video
from sama.serving.conversations import measured_bytes
from sama.serving.engine import EarlierObject, EarlierTurn, Engine, EngineBusy, EngineClosed, Question
from sama.serving.limits import Limits
from sama.serving.scheduling import FIRST_TOKEN
from sama.serving.session import AnswerText, Cancelled, Done, Failed, MaskFrame, TextDelta
from sama.toy_world.world import ToyWorld


NUM_FRAMES = 6
WAIT = 60  # seconds until a test gives up
RING = ("What is ", {"frame": 2, "box": [10, 10, 60, 60]}, "?")
AGAIN = ("What does ", {"object": 1}, " do?")
RED = ("Please segment the red thing.",)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two short clips with one red object each, as files."""
    folder = tmp_path_factory.mktemp("clips")
    world = ToyWorld({"tasks": {"dialogue": 1}, "frames": [8, 8]}, seed=5)
    return [str(write_video(folder / f"{index}.mp4", world[index].frames[:NUM_FRAMES], 8)) for index in (4, 12)]


@pytest.fixture
def make_engine():
    engines = []

    def make(**limits):
        engines.append(Engine(*load_checkpoint(), Limits(**limits)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def ask(clips):
    """Asks about the first clip, or another, with the turns before."""

    def ask(engine, parts, earlier=(), clip=0, **settings):
        source = {"source": clips[clip], "source_id": str(clip)} | settings
        return engine.ask(Question(parts, earlier=tuple(earlier), **source))

    return ask


@pytest.fixture
def answer(ask):
    """The turn of an answer, and the same as a client repeats it; without masks unless they are asked for."""

    def answer(engine, parts, earlier=(), masks=False, **settings):
        *_, last = ask(engine, parts, earlier, masks=masks, **settings)
        assert isinstance(last, Done), last
        return last.turn, EarlierTurn.of(parts, last.turn)

    return answer


def without_masks(turn):
    objects = tuple(EarlierObject(one.number, one.phrase, one.span, one.score) for one in turn.objects)
    return EarlierTurn(turn.parts, turn.text, objects)


def assert_same_answer(turn, other):
    assert turn.reply.tagged_text == other.reply.tagged_text and turn.numbers == other.numbers
    for mine, theirs in zip(turn.reply.objects, other.reply.objects, strict=True):
        assert (mine.track is None) == (theirs.track is None)
        assert mine.track is None or (mine.masks != theirs.masks).mean() < 1e-5


def num_read(turn):
    return turn.reply.prefilled_tokens, turn.reply.prompt_tokens


# What is reused


def test_a_conversation_is_the_same_whether_it_is_remembered_or_not(make_engine, answer):
    engine, known = make_engine(), []
    for parts in (RING, AGAIN, RED):
        turn, repeated = answer(engine, parts, known, masks=True)
        other, _ = answer(make_engine(), parts, known, masks=True)
        assert_same_answer(turn, other)
        read, whole = num_read(turn)
        assert num_read(other) == (whole, whole) and (read < whole or not known)
        known.append(repeated)
    assert [one.number for one in known[0].objects] == [1] == [one.number for one in known[1].objects]
    assert engine.status().conversations == 1


def test_the_longest_known_beginning_is_reused(make_engine, answer):
    engine = make_engine()
    first, known = answer(engine, RING, masks=True)
    second, repeated = answer(engine, AGAIN, [known])
    third, _ = answer(engine, RED, [known, repeated])
    # another second turn: the first is known, and the other conversation keeps its own
    other, other_repeated = answer(engine, RED, [known])
    assert num_read(other)[0] < num_read(second)[1] - num_read(first)[1] + 10
    assert engine.status().conversations == 2
    same, _ = answer(engine, RED, [known, repeated])
    assert_same_answer(same, third)
    assert num_read(same)[0] == num_read(third)[0]
    # another client's first question about the same file reads the question alone, about another file everything
    file_known, _ = answer(engine, RED)
    assert num_read(file_known)[0] < 30
    new, _ = answer(engine, RED, clip=1)
    assert num_read(new)[0] == num_read(new)[1]
    assert engine.status().files == 2


def test_two_first_questions_of_equal_length_do_not_mix(make_engine, answer):
    """Their placeholders are the same tokens, but not their context."""
    engine = make_engine()
    for word in ("color", "shape"):
        parts = (f"What {word} is ", RING[1], "?")
        _, known = answer(engine, parts)
        turn, _ = answer(engine, RED, [known])
        alone, _ = answer(make_engine(), RED, [known])
        assert_same_answer(turn, alone)
        assert num_read(turn)[0] < 60


def test_an_answer_that_was_changed_is_another_answer(make_engine, answer):
    engine = make_engine()
    _, known = answer(engine, RING)
    changed = EarlierTurn(known.parts, "It is a cat.")
    turn, _ = answer(engine, RED, [changed])
    fresh, _ = answer(make_engine(), RED, [changed])
    assert_same_answer(turn, fresh)


def test_masks_may_be_left_out_while_they_are_remembered(make_engine, ask, answer):
    engine = make_engine()
    _, known = answer(engine, RING, masks=True)
    with_masks, _ = answer(engine, AGAIN, [known])
    remembered, _ = answer(engine, AGAIN, [without_masks(known)])
    assert_same_answer(with_masks, remembered)
    *_, last = ask(make_engine(), AGAIN, [without_masks(known)])
    assert isinstance(last, Failed) and isinstance(last.cause, ValueError)
    assert "masks of object 1 are not known" in last.message


def test_other_masks_are_another_object(make_engine, answer):
    engine = make_engine()
    _, known = answer(engine, RING, masks=True)
    answer(engine, AGAIN, [known])
    first = known.objects[0]
    moved = type(first.track).from_masks(np.roll(first.track.masks(), 40, axis=2))
    other = EarlierTurn(known.parts, known.text, (EarlierObject(1, first.phrase, first.span, None, moved),))
    assert not known.matches(other) and known.matches(known)
    turn, _ = answer(engine, AGAIN, [other])
    assert_same_answer(turn, answer(make_engine(), AGAIN, [other])[0])


def test_a_system_message_belongs_to_the_conversation(make_engine, answer):
    engine = make_engine()
    answer(engine, RING)
    turn, known = answer(engine, RING, system="Answer in one word.")
    assert num_read(turn)[0] > 100  # the frames come behind it
    assert_same_answer(turn, answer(make_engine(), RING, system="Answer in one word.")[0])
    second, _ = answer(engine, RED, [known], system="Answer in one word.")
    assert num_read(second)[0] < 40
    assert_same_answer(second, answer(make_engine(), RED, [known], system="Answer in one word.")[0])
    plain, _ = answer(engine, RED)
    assert_same_answer(plain, answer(make_engine(), RED)[0])


def test_what_was_not_used_for_the_longest_time_is_dropped(make_engine, answer):
    engine = make_engine(conversations=2)
    _, first = answer(engine, RING)
    answer(engine, RED)
    answer(engine, RED, [first])  # now the question about the red thing is the oldest
    answer(engine, RED, clip=1)
    assert [len(one.asked) for one in engine.conversations.conversations] == [2, 1]
    known = engine.conversations.conversations
    bytes_of_one = measured_bytes(known[1:])
    assert engine.status().conversation_bytes == measured_bytes(known) > bytes_of_one > 0
    small = make_engine(cache_bytes=1)
    turn, _ = answer(small, RING)
    assert small.status().conversations == 0 and turn.reply.text
    for limit, kept in ((1, 0), (2**20, 1)):
        small = make_engine(feature_bytes=limit)
        answer(small, RING)
        (conversation,) = small.conversations.conversations
        assert len(conversation.chat.sam_features.stored) == kept  # of the frame that the box lies on


def test_forgotten_files_are_read_again(make_engine, answer):
    engine = make_engine()
    answer(engine, RING)
    engine.forget("0")
    assert engine.status().conversations == 0
    turn, _ = answer(engine, RING)
    assert num_read(turn)[0] == num_read(turn)[1]


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("It is <p> a ring </p> there", "It is a ring there"),
        ("It is <p> a ring [SEG] there </p> [SEG]", "It is a ring [SEG] there [SEG]"),
    ],
)
def test_tags_that_stand_for_nothing_are_read_as_they_are_repeated(make_engine, answer, monkeypatch, said, text):
    engine, dictated = make_engine(), dictate(load_checkpoint()[1], said)
    sampled = {"logits_processor": dictated["logits_processor"]}
    monkeypatch.setattr("sama.serving.engine.sampling_arguments", lambda *_: sampled)
    turn, known = answer(engine, RING, max_new_tokens=dictated["max_new_tokens"], masks=True)
    monkeypatch.undo()
    assert turn.reply.tagged_text == said and known.text == "It is a ring there"
    assert [one.phrase for one in known.objects] == [""] * said.count("[SEG]")
    (conversation,) = engine.conversations.conversations
    assert conversation.chat.messages[-1]["content"] == text
    assert_same_answer(*(answer(one, RED, [known])[0] for one in (engine, make_engine())))


def test_a_question_that_fails_after_its_answer_leaves_nothing(make_engine, ask, answer, monkeypatch):
    engine = make_engine()

    def fail(*arguments):
        raise ValueError("cannot be written")

    monkeypatch.setattr("sama.serving.engine.to_tagged_text", fail)
    *_, failed = ask(engine, RING)
    assert isinstance(failed, Failed) and engine.status().conversations == 0
    monkeypatch.undo()
    assert_same_answer(answer(engine, RED)[0], answer(make_engine(), RED)[0])


def test_a_system_message_of_a_cancelled_question_is_not_kept(make_engine, ask, answer):
    engine = make_engine()
    stream = ask(engine, RED, system="")
    next(stream)
    stream.close()
    turns = [answer(one, RED, system="Answer in one word.")[0] for one in (engine, make_engine())]
    assert_same_answer(*turns)
    assert num_read(turns[0])[1] == num_read(turns[1])[1]


def test_a_file_that_is_forgotten_during_an_answer_goes_with_it(make_engine, ask, answer):
    engine = make_engine()
    stream = ask(engine, RED)
    next(stream)
    engine.forget("0")
    assert engine.conversations.known("0") is None
    assert isinstance([*stream][-1], Done) and engine.status().conversations == 0


def test_what_several_conversations_share_is_counted_once(make_engine, answer):
    engine = make_engine()
    _, known = answer(engine, RING, masks=True)
    answer(engine, RED, [known])
    answer(engine, ("What moves?",), [known])
    first, second = engine.conversations.conversations
    alone = [measured_bytes([one]) for one in (first, second)]
    masks = next(first.tracks()).nbytes
    features = first.chat.state.frame_features.nbytes + first.chat.state.spatial_tokens.nbytes
    assert measured_bytes([first, second]) == sum(alone) - masks - features


# Whose turn it is


def test_a_new_question_gets_its_first_word_before_the_others_track_on(make_engine, ask):
    engine = make_engine()
    order, lock = [], threading.Lock()

    def read(name, stream):
        for event in stream:
            with lock:
                order.append((name, type(event)))

    streams = {name: ask(engine, RED, clip=name % 2) for name in range(3)}
    for stream in streams.values():  # all of them track
        while not isinstance(next(stream), MaskFrame):
            pass
    threads = [threading.Thread(target=read, args=item) for item in streams.items()]
    streams["new"] = ask(engine, RING)
    threads.append(threading.Thread(target=read, args=("new", streams["new"])))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert {kind for _, kind in order} == {TextDelta, AnswerText, MaskFrame, Done}
    answered = [number for number, item in enumerate(order) if item[1] is Done]
    assert order.index(("new", TextDelta)) < answered[0]


def test_answers_of_many_clients_are_those_of_one(make_engine, ask, answer):
    engine, turns = make_engine(running=3), {}
    questions = {(parts, clip): None for parts in (RED, ("What moves?",)) for clip in (0, 1)}
    jobs = [*questions] * 2

    def read(number, parts, clip):
        *_, last = ask(engine, parts, clip=clip)
        turns[number] = last.turn

    threads = [threading.Thread(target=read, args=(number, *job)) for number, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    for number, (parts, clip) in enumerate(jobs):
        alone, _ = answer(make_engine(), parts, clip=clip, masks=True)
        assert_same_answer(turns[number], alone)
    assert engine.status().answered == len(jobs) and engine.status().running == 0


def test_answers_of_several_clients_are_decoded_together(make_engine, ask, answer):
    engine, texts, tokens, forwards = make_engine(), {}, [], []
    drawn = {"temperature": 4.0, "max_new_tokens": 24, "masks": False}
    alone = {seed: answer(engine, ("What moves?",), seed=seed, **drawn)[0].reply.text for seed in range(4)}

    def read(seed):
        *_, last = ask(engine, ("What moves?",), seed=seed, **drawn)
        texts[seed] = last.turn.reply.text
        tokens.append(last.turn.reply.completion_tokens)

    language_model = engine.model.model.backbone.language_model
    hook = language_model.register_forward_pre_hook(lambda *_: forwards.append(None))
    engine.schedule.acquire(FIRST_TOKEN)
    threads = [threading.Thread(target=read, args=(seed,)) for seed in alone]
    for number, thread in enumerate(threads):
        thread.start()
        while engine.schedule.num_waiting() <= number:
            time.sleep(0.001)
    engine.schedule.release()
    for thread in threads:
        thread.join(WAIT)
    hook.remove()
    assert texts == alone
    assert sum(tokens) > 40 and len(forwards) <= len(tokens) + max(tokens)  # each question is read by itself
    known = engine.conversations.conversations[-1]
    assert measured_bytes([known]) == sum(one.nbytes for one in known.tensors())  # no room of the batch is kept


def test_a_thread_that_cannot_be_started_takes_no_place(make_engine, ask, monkeypatch):
    engine = make_engine(running=1)

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="new thread"):
        ask(engine, RED)
    monkeypatch.undo()
    assert engine.status().running == 0
    assert isinstance([*ask(engine, RED, masks=False)][-1], Done)


def test_the_waiting_line_is_bounded(make_engine, ask):
    engine = make_engine(running=1, waiting=1)
    running = ask(engine, RED)
    next(running)
    waiting = ask(engine, RING)
    with pytest.raises(EngineBusy, match="The waiting line is full: 1 questions") as caught:
        ask(engine, RING)
    assert caught.value.retry_after >= 1
    assert (engine.status().running, engine.status().waiting) == (1, 1)
    assert isinstance([*running][-1], Done) and isinstance([*waiting][-1], Done)
    assert (engine.status().running, engine.status().waiting) == (0, 0)
    assert isinstance([*ask(engine, RING)][-1], Done)


def test_a_question_that_waits_can_be_cancelled(make_engine, ask):
    engine = make_engine(running=1, waiting=4)
    running = ask(engine, RED)
    next(running)
    waiting = [ask(engine, RING) for _ in range(3)]
    waiting[1].cancel()
    assert [type(event) for event in waiting[1]] == [Cancelled]
    for stream in (running, waiting[0], waiting[2]):
        assert isinstance([*stream][-1], Done)
    assert engine.status().cancelled == 1


# Cancelled, failed, closed


@pytest.mark.parametrize("kind", [TextDelta, MaskFrame])
def test_a_cancelled_answer_leaves_the_conversation_as_it_was(make_engine, ask, answer, kind):
    engine = make_engine()
    _, known = answer(engine, RING)
    stream = ask(engine, RED, [known])
    while not isinstance(next(stream), kind):
        pass
    stream.close()
    status = engine.status()
    assert (status.running, status.cancelled) == (0, 1)
    turn, _ = answer(engine, RED, [known])
    assert_same_answer(turn, answer(make_engine(), RED, [known])[0])


def test_an_answer_that_nobody_reads_does_not_hold_the_device(make_engine, ask, answer, monkeypatch):
    monkeypatch.setattr("sama.serving.session.MAX_WAITING_EVENTS", 2)
    engine = make_engine()
    idle = ask(engine, RED)
    next(idle)
    turn, _ = answer(engine, RING)  # would wait for ever
    assert turn.reply.text and isinstance([*idle][-1], Done)


def test_a_crash_of_one_question_leaves_the_others_alive(make_engine, ask, answer, monkeypatch):
    engine = make_engine()
    other = ask(engine, RING)
    next(other)
    answering = engine.conversations.conversations[0].chat
    track = type(answering).track_objects

    def out_of_memory(self, *arguments, **keywords):
        if self is answering:
            return track(self, *arguments, **keywords)
        raise MemoryError("out of memory")

    monkeypatch.setattr(type(answering), "track_objects", out_of_memory)
    *_, last = ask(engine, RED, clip=1)
    monkeypatch.undo()
    assert isinstance(last, Failed) and isinstance(last.cause, MemoryError)
    assert isinstance([*other][-1], Done)
    turn, _ = answer(engine, RED, clip=1)
    assert num_read(turn)[0] == num_read(turn)[1]  # nothing of what crashed was kept
    assert (engine.status().failed, engine.status().answered) == (1, 2)


@pytest.mark.parametrize(
    "parts, message",
    [
        (("What is ", {"frame": 99, "box": [1, 1, 9, 9]}, "?"), "Frame 99 does not exist"),
        (AGAIN, "There is no object 1: the answers so far have 0"),
        (("What is ", {"object": 1, "frame": 2}, "?"), "takes no other field"),
        (("What is ", {"frame": 2}, "?"), "exactly one of"),
    ],
)
def test_a_wrong_region_is_one_sentence_and_leaves_the_conversation(make_engine, ask, answer, parts, message):
    engine = make_engine()
    *_, last = ask(engine, parts)
    assert isinstance(last, Failed) and isinstance(last.cause, ValueError) and message in last.message
    assert answer(engine, RED)[0].reply.text


def test_a_question_that_is_none_is_refused_at_once(make_engine, ask):
    with pytest.raises(ValueError, match="contains <region>"):
        ask(make_engine(), ("What is <region>?",))
    with pytest.raises(ValueError, match="a text or a region, got int"):
        ask(make_engine(), (5,))


def test_a_closed_engine_ends_everything(make_engine, ask):
    engine = make_engine(running=1)
    streams = [ask(engine, RED), ask(engine, RING)]
    next(streams[0])
    engine.close()
    assert [type([*stream][-1]) for stream in streams] == [Cancelled, Cancelled]
    with pytest.raises(EngineClosed, match="closed"):
        ask(engine, RED)


# Preview and sampling


def test_a_preview_is_the_mask_that_a_region_selects(make_engine, clips, answer):
    engine = make_engine()
    frame, mask = engine.preview(clips[0], "0", {"frame": 3, "box": [10, 20, 50, 60]})
    assert frame == 3 and mask.dtype == bool and mask.any()
    assert engine.preview(clips[0], "0", {"frame": 3, "mask": mask})[1].sum() == mask.sum()
    turn, _ = answer(engine, RING)
    assert engine.status().conversations == 1  # the file is known
    assert turn.reply.text
    with pytest.raises(ValueError, match="does not exist"):
        engine.preview(clips[0], "0", {"frame": 99, "box": [10, 20, 50, 60]})


def test_what_is_drawn_depends_on_the_seed_alone(make_engine, answer):
    engine = make_engine()
    texts = {}
    for seed in (1, 1, 2, 3, 4):
        turn, _ = answer(engine, ("What happens?",), temperature=3.0, seed=seed, masks=False, max_new_tokens=12)
        assert texts.setdefault(seed, turn.reply.tagged_text) == turn.reply.tagged_text
    assert len(set(texts.values())) > 1
    greedy, _ = answer(engine, RING, masks=False)
    nucleus, _ = answer(engine, RING, masks=False, temperature=5.0, top_p=1e-6, seed=9)
    assert nucleus.reply.tagged_text == greedy.reply.tagged_text


def test_a_low_temperature_takes_the_likeliest_token(make_engine, answer):
    greedy, _ = answer(make_engine(), RING, max_new_tokens=6)
    for temperature in (1e-3, 1e-40, 5e-324):
        turn, _ = answer(make_engine(), RING, max_new_tokens=6, temperature=temperature, seed=3)
        assert turn.reply.tagged_text == greedy.reply.tagged_text
