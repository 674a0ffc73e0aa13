"""A conversation with state against the same conversation without, on a real video."""

import math
import threading

import numpy as np
import pytest
import torch
from checkpoint import count_calls, dictate, load_checkpoint
from transformers import TextIteratorStreamer

from sama.objects_sama import Region
from sama.overlay_sama import write_video
from sama.video_sama import SamaVideo


BOX = Region(frame=10, box=(40, 60, 210, 200))
CLICK = Region(frame=17, points=[(300, 150), (20, 20)], labels=[1, 0])


@pytest.fixture(scope="module")
def loaded():
    return load_checkpoint()


@pytest.fixture(scope="module")
def clip(real_clip):
    """The first 20 frames of the real clip; frame 17 is not a context frame."""
    video = SamaVideo.open(real_clip)
    return np.stack([video[index] for index in range(20)])


def one_shot(model, processor, clip, turns, **generate):
    """The last of `turns` answered by plain `apply_chat_template` and `generate`; earlier ones bring their answers."""
    messages = []
    for index, (question, regions, answer) in enumerate(turns):
        content = processor.question_parts(question, regions)
        shown = [] if index else [{"type": "video", "video": clip}]
        messages.append({"role": "user", "content": shown + content})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    output = model.generate(**inputs, return_dict_in_generate=True, **generate)
    tracks, scores = model.start_chat(processor, video=clip).track_objects(output.seg_states[0])
    return processor.post_process_answer(output.sequences[0, inputs["input_ids"].shape[1] :], tracks, scores), output


def assert_same(reply, answer, tolerance: float = 1e-5):
    """The same text and spans; masks that differ in at most this share of the pixels."""
    assert reply.tagged_text == answer.tagged_text
    assert [phrase.span for phrase in reply.objects] == [phrase.span for phrase in answer.objects]
    for ours, theirs in zip(reply.objects, answer.objects, strict=True):
        assert (ours.masks != theirs.masks).mean() <= tolerance
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


TURNS = [
    ("What is <region>?", [BOX], "<p> The man </p> [SEG] rides <p> a bike </p> [SEG]."),
    ("And then?", [], "It stops."),
    ("Is <region> near <region>?", [CLICK, BOX], "<p> The bike </p> [SEG]"),
]


@pytest.fixture(scope="module")
def mp4(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, clip, 25)
    return str(path)


@pytest.mark.parametrize(
    ("dtype", "dictated"),
    [
        pytest.param(torch.float64, True, id="float64, given answers"),
        pytest.param(torch.float32, False, id="float32, own answers"),
        pytest.param(torch.float64, False, id="float64, own answers", marks=pytest.mark.slow),
        pytest.param(torch.float32, True, id="float32, given answers", marks=pytest.mark.slow),
    ],
)
def test_three_turns_with_regions_equal_the_same_without_state(mp4, dictated, dtype):
    """Regions in turns 1 and 3 of a conversation about a file: identical tokens, and in double precision identical
    masks. In single precision a few pixels of masks made of noise lie within rounding: reading a conversation turn by
    turn or at once sums in another order."""
    model, processor = load_checkpoint(dtype)
    chat, turns = model.start_chat(processor, video=mp4), []
    for question, regions, given in TURNS:
        say = (lambda given=given: dictate(processor, given)) if dictated else (lambda: {"max_new_tokens": 4})
        reply = chat.ask(question, regions, **say())
        answer, output = one_shot(model, processor, mp4, [*turns, (question, regions, None)], **say())
        assert_same(reply, answer, tolerance=0 if dtype == torch.float64 else 1e-5)
        assert not dictated or reply.tagged_text == given
        turns.append((question, regions, reply.tagged_text))


def test_a_later_turn_reads_only_its_own_tokens(loaded, clip):
    model, processor = loaded
    lengths: list[int] = []
    handle = model.model.backbone.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    chat = model.start_chat(processor, video=clip)
    turns = [(question, regions, given + ".") for question, regions, given in TURNS]
    messages, read = [], 0
    for question, regions, given in turns:
        content = processor.question_parts(question, regions)
        shown = [] if messages else [{"type": "video", "video": clip}]
        messages.append({"role": "user", "content": shown + content})
        whole = processor.apply_chat_template(messages)["input_ids"].shape[1]
        lengths.clear()
        reply = chat.ask(question, regions, **dictate(processor, given))
        answer_length = len(processor.tokenizer(given)["input_ids"])
        # The last token of an answer was written but never read: a turn reads it, then what is new, then its answer.
        # The first turn reads the video before the question, so that the kept part does not depend on the question.
        prompt, steps = lengths[: 2 if read == 0 else 1], lengths[2 if read == 0 else 1 :]
        assert sum(prompt) == whole - read and steps == [1] * (answer_length - 1)
        assert reply.prefilled_tokens == whole - read
        read = whole + answer_length - 1
        messages.append({"role": "assistant", "content": given})
    handle.remove()


def test_each_frame_is_encoded_once_whatever_the_number_of_objects_and_turns(loaded, clip):
    model, processor = loaded
    sam_calls = count_calls(model.model.mask_tracker.sam.vision_encoder)
    vision_calls = count_calls(model.model.backbone.vision_tower)
    chat = model.start_chat(processor, video=clip)
    chat.ask("What is <region>?", [BOX], **dictate(processor, "<p> A </p> [SEG] and <p> b </p> [SEG]."))
    chat.ask("And <region>?", [CLICK], **dictate(processor, "[SEG] [SEG] [SEG]"))
    chat.ask("And then?", **dictate(processor, "[SEG]"))
    context = processor.choose_frames(chat.video).context
    assert sum(sam_calls) == len(clip)
    assert sum(vision_calls) == len(context) + len({10, 17} - set(context))


def test_a_later_turn_decodes_encodes_and_reads_no_file(loaded, mp4, monkeypatch):
    model, processor = loaded
    chat = model.start_chat(processor, video=mp4)
    readers, decoded, kept = type(chat.video._frames._reader), [], []
    decode = readers._next_frame
    monkeypatch.setattr(readers, "_next_frame", lambda self: decoded.append(1) and None or decode(self))
    calls = count_calls(model.model.mask_tracker.sam.vision_encoder)
    first = chat.ask("Who?", **dictate(processor, "<p> A man </p> [SEG]"))
    # Both towers and three directions in time: each frame once. The first was decoded when the video was opened, and
    # the end of the file counts as one
    assert len(decoded) <= len(chat.video) + 2 and sum(calls) == len(chat.video)
    assert not chat.video._frames._reader._kept  # nothing stays in memory between questions
    decoded.clear()
    calls.clear()
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: kept.append(arguments))
    later = chat.ask("And now?", **dictate(processor, "<p> A man </p> [SEG]"))
    assert decoded == calls == kept == []
    assert len(later.objects[0].track) == len(first.objects[0].track) == len(chat.video)


def count_returns(monkeypatch, owner, name: str) -> list:
    """What a method of one object returns from now on."""
    method, returned = getattr(owner, name), []

    def counted():
        returned.append(method())
        return returned[-1]

    monkeypatch.setattr(owner, name, counted)
    return returned


def test_a_callback_may_read_the_frames_of_a_long_video(loaded, mp4, monkeypatch):
    """It is a few frames behind the thread that decodes ahead, and neither sends the other back to a key frame."""
    model, processor = loaded
    monkeypatch.setitem(
        type(model.start_chat(processor)).ask.__globals__, "DECODED_BYTES", 0
    )  # none are held for good

    def decodes(is_read: bool) -> int:
        chat = model.start_chat(processor, video=mp4)
        decoded = count_returns(monkeypatch, chat.video._frames._reader, "_next_frame")
        on_frame = (lambda index, masks: chat.video[index]) if is_read else None
        chat.ask("Who?", on_frame=on_frame, **dictate(processor, "<p> A man </p> [SEG]"))
        assert not chat.video._recent  # nothing stays in memory between questions
        return len(decoded)

    assert decodes(is_read=True) <= decodes(is_read=False) + 5  # frames that the track itself no longer holds


def test_frames_are_handed_on_in_order_by_the_thread_that_asks(loaded, clip):
    model, processor = loaded
    order, found = [], {}

    def progress(frames):
        for frame in frames:
            order.append(frame.frame_index)
            yield frame

    def on_frame(index, masks):
        assert threading.current_thread() is threading.main_thread()
        assert len(order) - 3 <= len(found) < len(order)  # masks are encoded while the next two frames are tracked
        found[index] = masks

    chat = model.start_chat(processor, video=clip[:9])
    reply = chat.ask("Who?", **dictate(processor, "[SEG] [SEG]"), progress=progress, on_frame=on_frame)
    assert list(found) == order and sorted(order) == list(range(9))
    for index, masks in found.items():
        assert masks.dtype == bool and masks.shape == (2, *clip.shape[1:3])
        assert all((one.track[index] == mask).all() for one, mask in zip(reply.objects, masks, strict=True))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sama_")]


def test_an_error_of_on_frame_stops_the_track(loaded, clip):
    model, processor = loaded
    chat, tracked = model.start_chat(processor, video=clip), []

    def on_frame(index, masks):
        raise KeyError("enough")

    def progress(frames):
        return (tracked.append(frame.frame_index) or frame for frame in frames)

    with pytest.raises(KeyError, match="enough"):
        chat.ask("Who?", **dictate(processor, "[SEG]"), progress=progress, on_frame=on_frame)
    assert len(tracked) <= 3 and chat.messages == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sama_")]


def test_an_answers_object_is_a_region_of_the_next_question(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    first = chat.ask("Who?", **dictate(processor, "<p> The man </p> [SEG]"))
    reply = chat.ask("What does <region> do?", [first.objects[0]], **dictate(processor, "<p> He </p> [SEG] rides."))
    assert reply.objects[0].masks.shape == clip.shape[:3]
    turns = [("Who?", [], first.tagged_text), ("What does <region> do?", [first.objects[0]], None)]
    assert_same(reply, one_shot(model, processor, clip, turns, **dictate(processor, "<p> He </p> [SEG] rides."))[0])


@pytest.mark.parametrize(
    ("answer", "phrases"),
    [
        ("Nothing.", []),
        ("<p> The man </p> [SEG]", ["The man"]),
        ("Sure, [SEG].", [""]),
        ("<p> Two men </p> [SEG] [SEG] and <p> a dog </p> [SEG]!", ["Two men", "Two men", "a dog"]),
    ],
)
def test_none_one_final_and_several_seg(loaded, clip, answer, phrases):
    model, processor = loaded
    reply = model.start_chat(processor, video=clip[:9]).ask("What is there?", **dictate(processor, answer))
    assert [phrase.text for phrase in reply.objects] == phrases
    assert all(reply.text[slice(*phrase.span)] == phrase.text for phrase in reply.objects)
    assert all(phrase.masks.shape == (9, *clip.shape[1:3]) and 0 <= phrase.score <= 1 for phrase in reply.objects)


class Broken:
    """A logits processor or a progress bar that fails when it is used."""

    def __call__(self, *arguments):
        raise KeyboardInterrupt


FAILURES = {
    "before the model": {"regions": []},
    "while writing": {"logits_processor": [Broken()]},
    "while tracking": {"progress": Broken()},
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_question_leaves_the_conversation_as_it_was(loaded, clip, failure):
    """The next question, with the same words but another region on another frame, is answered as in a fresh chat."""
    model, processor = loaded
    question = "What is <region>?"
    chat, fresh = (model.start_chat(processor, video=clip) for _ in range(2))
    for conversation in (chat, fresh):
        conversation.ask("Who?", **dictate(processor, "A man."))
    before = chat.messages
    asked = {"regions": [CLICK], **dictate(processor, "<p> A </p> [SEG]."), **FAILURES[failure]}
    with pytest.raises((ValueError, KeyboardInterrupt)):
        chat.ask(question, **asked)
    assert chat.messages == before
    other = Region(frame=19, box=(40, 60, 210, 200))
    states = []
    for conversation in (chat, fresh):
        handle = model.model.seg_projection.register_forward_pre_hook(lambda _, args: states.append(args[0]))
        conversation.ask(question, [other], **dictate(processor, "<p> A </p> [SEG]."))
        handle.remove()
    torch.testing.assert_close(states[0], states[1], atol=1e-5, rtol=1e-4)


def test_an_interrupt_between_two_layers_is_survived(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip)
    chat.ask("Who?", **dictate(processor, "A man."))
    handle = model.model.backbone.language_model.layers[2].register_forward_pre_hook(Broken())
    with pytest.raises(KeyboardInterrupt):
        chat.ask("And then?", max_new_tokens=2)
    handle.remove()
    fresh = model.start_chat(processor, video=clip)
    fresh.ask("Who?", **dictate(processor, "A man."))
    assert chat.ask("And?", max_new_tokens=6).tagged_text == fresh.ask("And?", max_new_tokens=6).tagged_text


def test_a_video_of_one_frame(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip[:1])
    reply = chat.ask("What is <region>?", [Region(frame=0, box=(40, 60, 210, 200))], **dictate(processor, "[SEG]"))
    assert reply.objects[0].masks.shape == (1, *clip.shape[1:3])


def test_frames_beyond_the_stores_size_are_encoded_again(loaded, clip):
    model, processor = loaded
    chat = model.start_chat(processor, video=clip[:9])
    chat.sam_features.free_bytes = 0
    calls = count_calls(model.model.mask_tracker.sam.vision_encoder)
    for _ in range(2):
        chat.ask("Who?", **dictate(processor, "[SEG]"))
    assert sum(calls) == 18 and not chat.sam_features.stored


def test_a_chat_without_its_processor(loaded):
    with pytest.raises(ValueError, match=r"start_chat\(processor, video=...\), got str in its place"):
        loaded[0].start_chat("clip.mp4")


@pytest.mark.parametrize("name", ["preset", "region_shape", "seg_token_id"])
def test_a_processor_of_other_settings_is_refused(loaded, clip, monkeypatch, name):
    model, processor = loaded
    monkeypatch.setitem(vars(processor.config), name, "other")
    with pytest.raises(ValueError, match=f"`{name}` is .* in the model and 'other' in the processor"):
        model.start_chat(processor, video=clip)


def test_tokens_stream_through_the_librarys_streamer(loaded, clip):
    model, processor = loaded
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    chat = model.start_chat(processor, video=clip[:5])
    reply = chat.ask("Who?", streamer=streamer, **dictate(processor, "<p> A man </p> [SEG] rides."))
    assert "".join(streamer) == reply.text == "A man rides."


def test_an_image_and_text_alone(loaded, clip):
    model, processor = loaded
    picture = model.start_chat(processor, image=clip[0])
    reply = picture.ask("What is <region>?", [Region(box=(10, 10, 90, 90))], **dictate(processor, "<p> It </p> [SEG]"))
    assert reply.objects[0].masks.shape == (1, *clip.shape[1:3])
    text = model.start_chat(processor)
    assert [phrase.track for phrase in text.ask("Hello?", **dictate(processor, "A [SEG]")).objects] == [None]
    assert len(text.ask("Again?", max_new_tokens=4).text) > 0
    with pytest.raises(ValueError, match="before the video"):
        text.ask("And <region>?", [BOX])


def test_a_video_and_an_image_at_once_are_refused(loaded, clip):
    model, processor = loaded
    with pytest.raises(ValueError, match="one video or one image"):
        model.start_chat(processor, video=clip, image=clip[0])


def test_an_image_is_one_picture(loaded, clip):
    model, processor = loaded
    for image, message in ((list(clip[:2]), "got a list of 2"), (clip[:3], "is a video of 3 frames")):
        with pytest.raises(ValueError, match=f"An image is one picture.*{message}"):
            model.start_chat(processor, image=image)


def test_a_reply_saves_its_video(loaded, clip, tmp_path):
    model, processor = loaded
    reply = model.start_chat(processor, video=clip[:5]).ask("Who?", **dictate(processor, "[SEG] [SEG]"))
    reply.save_video(tmp_path / "answer.mp4")
    written = SamaVideo.open(tmp_path / "answer.mp4")
    assert (len(written), written.height, written.width) == (5, *clip.shape[1:3])
    again = model.start_chat(processor, video=tmp_path / "answer.mp4").ask("Who?", max_new_tokens=2)
    content = (tmp_path / "answer.mp4").read_bytes()
    with pytest.raises(ValueError, match="Cannot write .*answer.mp4: the video is read from this file"):
        again.save_video(tmp_path / "answer.mp4")
    assert (tmp_path / "answer.mp4").read_bytes() == content
    with pytest.raises(ValueError, match="no video"):
        model.start_chat(processor).ask("Hello?", max_new_tokens=2).save_video(tmp_path / "none.mp4")


def test_a_batch_of_different_conversations_answers_as_each_alone(loaded, clip):
    model, processor = loaded
    conversations = [
        [{"role": "user", "content": [{"type": "video", "video": clip[:12]}, *processor.question_parts(q, regions)]}]
        for q, regions in [("What is <region> doing?", [Region(frame=3, box=(40, 60, 210, 200))]), ("Segment.", [])]
    ] + [
        [{"role": "user", "content": [{"type": "image", "image": clip[5]}, {"type": "text", "text": "What is it?"}]}],
        [{"role": "user", "content": "Hello, how are you?"}],
    ]
    together = processor.apply_chat_template(conversations, tokenize=True, return_dict=True, return_tensors="pt")
    answer = "<p> A </p> [SEG]."
    with torch.no_grad():
        batched = model(**together, logits_to_keep=1).logits[:, -1]
    states = model.generate(**together, return_dict_in_generate=True, **dictate(processor, answer)).seg_states
    for row, state, conversation in zip(batched, states, conversations, strict=True):
        alone = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(row, model(**alone, logits_to_keep=1).logits[0, -1], atol=2e-4, rtol=1e-3)
        expected = model.generate(**alone, return_dict_in_generate=True, **dictate(processor, answer)).seg_states[0]
        torch.testing.assert_close(state, expected, atol=2e-4, rtol=1e-3)


def test_placeholders_that_do_not_fit_are_counted(loaded, clip):
    model, processor = loaded
    messages = [{"role": "user", "content": [{"type": "video", "video": clip[:9]}, {"type": "text", "text": "Who?"}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    cut = dict(inputs)
    position = int((inputs["mm_token_type_ids"][0] == 2).nonzero()[0])
    cut["mm_token_type_ids"] = inputs["mm_token_type_ids"].clone()
    cut["mm_token_type_ids"][0, position] = 0
    context = len(processor.choose_frames(SamaVideo.open(clip[:9])).context)
    with pytest.raises(ValueError, match=f"{context - 1} context placeholders.*{context} context tokens"):
        model(**cut)
    del cut["mm_token_type_ids"]
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        model(**cut)


NEAR, FAR = Region(frame=1, box=(40, 60, 210, 200)), Region(frame=3, points=[(300, 150), (20, 20)], labels=[1, 0])
QUESTIONS = [
    ("What is <region>?", [NEAR], "<p> The man </p> [SEG] rides."),
    ("And what happens?", [], "Nothing [SEG]."),
    ("Is <region> near <region>?", [FAR, NEAR], "<p> The bike </p> [SEG] [SEG]"),
]


def test_questions_after_start_over_are_answered_as_each_alone(clip):
    """Regions on different frames, and one question asked twice: nothing of the question before is left."""
    (model, processor), short = load_checkpoint(torch.float64), clip[:5]
    chat = model.start_chat(processor, video=short)
    for question, regions, given in [*QUESTIONS, QUESTIONS[0]]:
        chat.reset()
        assert chat.messages == []
        reply = chat.ask(question, regions, **dictate(processor, given))
        answer, _ = one_shot(model, processor, short, [(question, regions, None)], **dictate(processor, given))
        assert_same(reply, answer, tolerance=0)
    chat.reset()
    question, regions, _ = QUESTIONS[2]
    written = chat.ask(question, regions, max_new_tokens=6, masks=False)
    alone, _ = one_shot(model, processor, short, [(question, regions, None)], max_new_tokens=6)
    assert written.tagged_text == alone.tagged_text
    assert all(phrase.track is None for phrase in written.objects)


def test_many_questions_read_the_video_once(loaded, clip):
    """Frames through both encoders, and tokens that the language model reads: the frames' own once, then only those of
    each question. What a question reads does not depend on which came before, so a run that goes on in the middle
    computes the same numbers."""
    (model, processor), short = loaded, clip[:9]
    lengths: list[int] = []
    handle = model.model.backbone.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    sam_calls = count_calls(model.model.mask_tracker.sam.vision_encoder)
    vision_calls = count_calls(model.model.backbone.vision_tower)
    chat, whole = model.start_chat(processor, video=short), []
    for question, regions, given in QUESTIONS:
        chat.reset()
        content = [{"type": "video", "video": short}, *processor.question_parts(question, regions)]
        whole.append(processor.apply_chat_template([{"role": "user", "content": content}])["input_ids"].shape[1])
        reply = chat.ask(question, regions, **dictate(processor, given))
        assert reply.prefilled_tokens == whole[-1] - (lengths[0] if len(whole) > 1 else 0)
    handle.remove()
    choice = processor.choose_frames(chat.video)
    assert lengths[0] > len(choice.dense) * math.prod(processor.frame_grid(chat.video))
    assert sum(length for length in lengths if length > 1) == sum(whole) - 2 * lengths[0]
    assert sum(sam_calls) == len(short)
    extra = [{region.frame for region in regions} - set(choice.context) for _, regions, _ in QUESTIONS]
    assert sum(vision_calls) == len(choice.context) + sum(map(len, extra))


def test_start_over_in_the_middle_of_a_conversation_and_without_a_video(loaded, clip):
    (model, processor), short = loaded, clip[:9]
    chat = model.start_chat(processor, video=short)
    chat.ask("Is <region> near?", [FAR], masks=False, **dictate(processor, "<p> The bike </p> [SEG] is."))
    vision_calls = count_calls(model.model.backbone.vision_tower)
    chat.reset()
    after = chat.ask("Who?", max_new_tokens=6, masks=False).tagged_text
    assert not vision_calls  # the frames were kept
    fresh = model.start_chat(processor, video=short)
    assert after == fresh.ask("Who?", max_new_tokens=6, masks=False).tagged_text
    text = model.start_chat(processor)
    first = text.ask("Hello?", max_new_tokens=4).text
    text.reset()
    assert text.ask("Hello?", max_new_tokens=4).text == first and len(text.messages) == 2


def test_another_answer_takes_the_place_of_the_last(loaded, clip):
    (model, processor), short = loaded, clip[:9]
    chat = model.start_chat(processor, video=short)
    chat.ask("Who?", **dictate(processor, "A dog."))
    chat.replace_answer("<p> A man </p> [SEG].")
    reply = chat.ask("And then?", max_new_tokens=6, masks=False)
    fresh = model.start_chat(processor, video=short)
    fresh.ask("Who?", masks=False, **dictate(processor, "<p> A man </p> [SEG]."))
    assert reply.tagged_text == fresh.ask("And then?", max_new_tokens=6, masks=False).tagged_text
    assert [message["content"] for message in chat.messages[1::2]][0] == "<p> A man </p> [SEG]."
