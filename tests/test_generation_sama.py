"""Answers of several conversations in one batch: the tokens, states and caches are those of each alone."""

import threading
import time

import pytest
import torch
from checkpoint import Dictated, load_checkpoint
from device_reads import DeviceReads
from processor_fixtures import noise_video
from tiny_backbones import FAMILY, tiny_backbone
from torch._dynamo.testing import CompileCounter

from sama import generation_sama
from sama.generation_sama import DecodingBatch
from sama.serving.sampling import sampling_arguments
from sama.serving.scheduling import FIRST_TOKEN, LATER_STEP, DeviceSchedule
from sama.streaming_sama import AnswerStreamer


WAIT = 60  # seconds until a test gives up
TEXTS = ("Describe the video.", "What is it?", "Please segment the red circle and the blue square.", "Why?")


class Cancelled(Exception):
    """Raised between two steps."""


class Together:
    """
    Asks several chats of a model, each in a thread of its own and in turns.

    Attributes:
        outputs (`dict`): what `generate` returned last, by thread.
    """

    def __init__(self, model, processor):
        self.model, self.processor, self.outputs = model, processor, {}

    def chats(self, number: int, frames: int = 3) -> list:
        """About videos of different lengths, so that their prompts differ in length too; the last is in text alone."""
        videos = [noise_video(frames + index, 24, 40, seed=index) for index in range(number - 1)]
        return [self.model.start_chat(self.processor, video=video) for video in videos] + [
            self.model.start_chat(self.processor)
        ]

    def ask(self, chats, batch, questions) -> list:
        """Asks each chat its question, a text with arguments. All begin at the same time. Returns for each what
        `generate` returned, or what was raised."""
        schedule, found = DeviceSchedule(), [None] * len(chats)

        def work(number, chat, text, arguments):
            steps = arguments.pop("cancel_after", None)
            with schedule.turn(LATER_STEP) as turn:

                def between_steps():
                    nonlocal steps
                    turn.pass_on()
                    steps = None if steps is None else steps - 1
                    if steps == 0:
                        raise Cancelled

                chat.between_steps, chat.decoding_batch = between_steps, batch
                try:
                    chat.ask(text, masks=False, **arguments)
                    found[number] = self.outputs[threading.get_ident()]
                except Exception as error:
                    found[number] = error

        schedule.acquire(FIRST_TOKEN)
        threads = []
        for number, (chat, (text, arguments)) in enumerate(zip(chats, questions, strict=True)):
            threads.append(threading.Thread(target=work, args=(number, chat, text, dict(arguments)), daemon=True))
            threads[-1].start()
            while schedule.num_waiting() <= number:
                time.sleep(0.001)
        self.model.generate = self.generate
        schedule.release()
        for thread in threads:
            thread.join(WAIT)
            assert not thread.is_alive()
        del self.model.generate
        return found

    def generate(self, **arguments):
        self.outputs[threading.get_ident()] = output = type(self.model).generate(self.model, **arguments)
        return output


@pytest.fixture(scope="module")
def tiny():
    return Together(*tiny_backbone("internvl"))


def greedy(num_tokens: int, **arguments) -> dict:
    return {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, **arguments}


def dictated(together, text: str) -> dict:
    tokens = together.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return {"logits_processor": [Dictated(tokens)], "max_new_tokens": len(tokens)}


def assert_same(output, alone):
    assert torch.equal(output.sequences, alone.sequences)
    (states,), (wanted,) = output.seg_states, alone.seg_states
    assert states.shape == wanted.shape
    if len(wanted):
        assert (states - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def assert_same_cache(chat, other):
    """The same keys and values are kept, each in memory of its own."""
    for layer, wanted in zip(chat.cache.layers, other.cache.layers, strict=True):
        for mine, theirs in ((layer.keys, wanted.keys), (layer.values, wanted.values)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
            assert mine.untyped_storage().nbytes() == mine.nbytes


@pytest.mark.parametrize(
    "name", [*FAMILY, "internvl, vision tower of 26B", pytest.param("internvl, qwen3", marks=pytest.mark.slow)]
)
def test_tokens_and_states_are_those_of_each_alone(name):
    together = Together(*tiny_backbone(name))
    spoken = [dictated(together, text) for text in ("<p> x </p> [SEG] b[SEG]", "[SEG][SEG]")]
    questions = list(zip(TEXTS, (greedy(9), *spoken), strict=False))
    batch, chats, others = DecodingBatch(), together.chats(3), together.chats(3)
    found = together.ask(chats, batch, questions)
    for mine, other, question, output in zip(chats, others, questions, found, strict=True):
        for one in question[1].get("logits_processor", ()):
            one.step = 0
        (alone,) = together.ask([other], None, [question])
        assert_same(output, alone)
        assert_same_cache(mine, other)
    assert [len(output.seg_states[0]) for output in found[1:]] == [2, 2]
    # The first token comes with the prompt, and a [SEG] at the end is read for itself
    assert batch.num_tokens == sum(question[1]["max_new_tokens"] - 1 for question in questions)
    assert batch.num_steps <= max(question[1]["max_new_tokens"] for question in questions) + 1
    assert not batch.slots and not batch.layers and not batch.waiting
    assert batch.cache is None, "it would keep the buffers"


def test_eager_attention_gets_a_mask_of_its_own_kind():
    model, processor = tiny_backbone("internvl, qwen3")
    model.set_attn_implementation("eager")
    together, questions = Together(model, processor), [(text, greedy(5)) for text in TEXTS[:2]]
    found = together.ask(together.chats(2), DecodingBatch(), questions)
    for chat, question, output in zip(together.chats(2), questions, found, strict=True):
        assert_same(output, together.ask([chat], None, [question])[0])


def test_a_compiled_step_is_one_graph(tiny):
    counter = CompileCounter()
    batch = DecodingBatch({"backend": counter})
    for _ in range(2):  # buffers of the same size
        questions = [(TEXTS[0], greedy(6)), (TEXTS[1], dictated(tiny, "[SEG] ab[SEG]"))]
        found = tiny.ask([tiny.model.start_chat(tiny.processor) for _ in questions], batch, questions)
        assert counter.frame_count == 1
    questions[1] = (TEXTS[1], dictated(tiny, "[SEG] ab[SEG]"))
    for question, output in zip(questions, found, strict=True):
        assert_same(output, tiny.ask([tiny.model.start_chat(tiny.processor)], None, [question])[0])


def test_later_turns_draws_stop_strings_and_limits_are_each_conversations_own():
    tiny = Together(*load_checkpoint())
    said = tiny.chats(1)[0].ask("Hello", masks=False, max_new_tokens=5).text
    stop = {"stop_strings": [said[:2]], "tokenizer": tiny.processor.tokenizer}
    rounds = [
        [("Describe the video.", greedy(8)), ("Hello", {"max_new_tokens": 5, "min_new_tokens": 0, **stop})],
        [("A ring?", {"seed": 1}), ("A ring?", {"seed": 2})],
    ]

    def drawn(arguments):
        if "seed" not in arguments:
            return arguments
        return greedy(10, **sampling_arguments(3.0, 0.9, arguments["seed"]))

    batch, chats, others = DecodingBatch(), tiny.chats(2), tiny.chats(2)
    for questions in rounds:
        found = tiny.ask(chats, batch, [(text, drawn(arguments)) for text, arguments in questions])
        for mine, other, (text, arguments), output in zip(chats, others, questions, found, strict=True):
            assert_same(output, tiny.ask([other], None, [(text, drawn(arguments))])[0])
            assert mine.messages[-1] == other.messages[-1]
            assert_same_cache(mine, other)
    assert len(chats[1].messages[1]["content"]) < 10 and batch.num_steps < 0.7 * batch.num_tokens


def test_who_is_cancelled_or_fails_leaves_the_others_alone(tiny):
    def broken(input_ids, scores):
        raise MemoryError("a row of its own")

    questions = [(TEXTS[0], greedy(8)), (TEXTS[1], greedy(9, cancel_after=5))]
    questions.append(("Hello", {"logits_processor": [broken]}))
    batch, chats = DecodingBatch(), tiny.chats(3)
    found = tiny.ask(chats, batch, questions)
    assert isinstance(found[1], Cancelled) and isinstance(found[2], MemoryError)
    assert not batch.slots and not batch.waiting
    fresh = tiny.chats(3)
    assert_same(found[0], tiny.ask(fresh[:1], None, questions[:1])[0])
    # The others are as they were before the question
    again = [(text, greedy(4)) for text in TEXTS[1:3]]
    found = tiny.ask(chats[1:], batch, again)
    for chat, question, output in zip(fresh[1:], again, found, strict=True):
        assert_same(output, tiny.ask([chat], None, [question])[0])


def test_a_batch_that_fails_is_run_one_by_one(tiny, monkeypatch):
    batch, questions = DecodingBatch(), [(text, greedy(6)) for text in TEXTS[:2]]
    step, warnings = DecodingBatch._step, []

    def out_of_memory(self, model):
        if self.num_steps == 3:
            raise torch.OutOfMemoryError("no room")
        step(self, model)

    monkeypatch.setattr(DecodingBatch, "_step", out_of_memory)
    monkeypatch.setattr(generation_sama.logger, "warning", warnings.append)
    found = tiny.ask(tiny.chats(2), batch, questions)
    assert batch.num_steps == 3 and not batch.slots
    assert "no room" in warnings[0] and len(warnings) <= 2
    for chat, question, output in zip(tiny.chats(2), questions, found, strict=True):
        assert_same(output, tiny.ask([chat], None, [question])[0])


def test_one_long_conversation_does_not_pad_the_others(tiny, monkeypatch):
    monkeypatch.setattr(generation_sama, "MIN_COLUMNS", 0)
    monkeypatch.setattr(generation_sama, "WIDTH_STEP", 8)
    sizes, resize = [], generation_sama.SlotLayer.resize

    def recorded(self, like, num_rows, width, lengths):
        sizes.append((num_rows, width, lengths))
        resize(self, like, num_rows, width, lengths)

    monkeypatch.setattr(generation_sama.SlotLayer, "resize", recorded)
    chats = [tiny.model.start_chat(tiny.processor) for _ in range(5)]
    texts = ["Hello"] * 4 + ["Why? " * 100]
    questions = [(text, greedy(6)) for text in texts]
    found = tiny.ask(chats, batch := DecodingBatch(), questions)
    assert chats[-1].cache.get_seq_length() > 400
    assert max(rows for rows, _, _ in sizes) == 4 and all(width < 100 for rows, width, _ in sizes if rows > 2)
    assert batch.num_tokens > batch.num_steps
    for question, output in zip(questions, found, strict=True):
        assert_same(output, tiny.ask([tiny.model.start_chat(tiny.processor)], None, [question])[0])


def test_buffers_grow_and_shrink(tiny, monkeypatch):
    monkeypatch.setattr(generation_sama, "WIDTH_STEP", 8)
    sizes, reserve = [], DecodingBatch._reserve

    def recorded(self, lengths, cache):
        reserve(self, lengths, cache)
        sizes.append((self.num_rows, self.num_columns))
        assert self.num_columns > max(lengths) and len(lengths) <= self.num_rows

    monkeypatch.setattr(DecodingBatch, "_reserve", recorded)
    questions = [("Hello", greedy(number)) for number in (4, 4, 5, 5, 24)]
    found = tiny.ask([tiny.model.start_chat(tiny.processor) for _ in questions], DecodingBatch(), questions)
    rows, columns = zip(*sizes, strict=True)
    assert max(rows) == 8 and rows[-1] <= 2 and columns[-1] > columns[0]  # no more than twice of what is needed
    for question, output in zip(questions, found, strict=True):
        assert_same(output, tiny.ask([tiny.model.start_chat(tiny.processor)], None, [question])[0])


def test_a_chat_that_generates_can_be_branched_and_is_not_kept_twice(tiny):
    first, second = tiny.chats(2)
    for chat in (first, second):
        chat.ask("Hello", masks=False, max_new_tokens=2)
    seen = []

    class Look:
        """Branches the first chat while both generate."""

        def __call__(self, input_ids, scores):
            if batch.slots and len(seen) < 2:
                storages = {layer.keys.untyped_storage().data_ptr() for layer in first.cache.layers}
                own = {layer.keys.untyped_storage().data_ptr() for layer in batch.layers}
                seen.append((storages == own, first.branch(1)))
            return scores

    batch, questions = DecodingBatch(), [("Why?", greedy(6)), ("Who?", greedy(6, logits_processor=[Look()]))]
    tiny.ask([first, second], batch, questions)
    assert [shared for shared, _ in seen] == [True] * 2
    fresh = tiny.chats(2)[0]
    fresh.ask("Hello", masks=False, max_new_tokens=2)
    (wanted,) = tiny.ask([fresh], None, [("What?", greedy(5))])
    for _, branch in seen:
        assert_same(tiny.ask([branch], None, [("What?", greedy(5))])[0], wanted)


def test_a_slot_is_for_one_token_of_one_conversation(tiny):
    slot, ids = DecodingBatch().slot(lambda: None), torch.ones(2, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"one token of one conversation, got `input_ids` of \(2, 1\)"):
        tiny.model(input_ids=ids, position_ids=ids, decoding_slot=slot)


@pytest.mark.parametrize("make_batch", [lambda: None, DecodingBatch])
def test_a_token_is_read_twice_from_the_device(tiny, make_batch):
    """Once for the streamer and once to know whether to go on, both by the library. Everything else of an answer is
    read once, however long it is."""
    chat, places = tiny.model.start_chat(tiny.processor), []
    chat.decoding_batch = make_batch()
    for num_tokens in (4, 4, 14):  # the first one reads the question, which the others find in the cache
        streamer = AnswerStreamer(tiny.processor, lambda text: None)
        with DeviceReads() as reads:
            chat.ask("Hello", streamer=streamer, **greedy(num_tokens))
        places.append(reads.places)
        chat.reset()
    _, short, long = places
    long.subtract(short)
    found = {place: number for place, number in long.items() if number}
    if chat.decoding_batch is None:  # some versions of the library ask of each token whether its mask hides anything
        found.pop("masking_utils.py _local_scalar_dense", None)
    assert found == {"utils.py cpu": 10, "utils.py _local_scalar_dense": 10}


def test_a_tracked_frame_is_not_read(tiny):
    """Masks come to the host where they are made bool; the tracker itself reads nothing."""
    frames = torch.rand(4, 1, 3, *[tiny.processor.sam_image_size] * 2)
    states = torch.ones(1, tiny.model.config.text_config.hidden_size)
    encode, seen = tiny.model.model.mask_tracker.encode_frames, []
    track = tiny.model.segment_video(states, lambda index: encode(frames[index]), [0], num_frames=len(frames))
    with DeviceReads() as reads:
        for _ in track:
            seen.append(reads.places.total())
    assert len(seen) == 4 and seen[-1] == seen[0]
