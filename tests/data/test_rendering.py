"""Records become messages and masks: drawing, templates, regions, tags, shortening; and the preset `published`."""

import re

import numpy as np
import pytest
from data_fixtures import SIZE, render, renderer, source, words
from fixture_sources import SOURCES
from processor_fixtures import language_tokenizer, noise_video, tiny_processor
from tiny_backbones import tiny_backbone

from sama.data.lengths import LengthBound
from sama.data.masks import decode_rle, encode_rle, filled_box
from sama.data.published import segment_frames
from sama.data.records import DataError, decode_object, validate_record
from sama.data.rendering import TOO_LONG, UNANSWERED, UNSEEN, RenderSettings
from sama.data.wording import TEMPLATES
from sama.video_sama import SamaVideo


HEIGHT, WIDTH = 20, 30


def square(x, y, side=6):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y : y + side, x : x + side] = True
    return mask


def record_of(messages, tracks=None, num_frames=10, **extra):
    """A record about a video of noise; `tracks`: name -> one mask or `None` a frame."""
    objects = {
        name: {"masks": [None if mask is None else encode_rle(mask) for mask in track]}
        for name, track in (tracks or {}).items()
    }
    visual = {"video": {"path": "x", "frames": [f"{i}.jpg" for i in range(num_frames)], "stride": 1}}
    return validate_record({"id": "r", "source": "s", **visual, "objects": objects, "messages": messages, **extra})


def user(*parts, **extra):
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts], **extra}


def assistant(*parts, **extra):
    return user(*parts, **extra) | {"role": "assistant"}


def text(content):
    return {"type": "text", "text": content}


def region(name):
    return {"type": "region", "object": name}


def grounded(phrase, *names):
    return {"type": "grounded", "text": phrase, "objects": list(names)}


def rendered(record, seed=0, processor=None, num_frames=10, **settings):
    video = SamaVideo.open(noise_video(num_frames))
    return renderer(processor, **settings)(record, video, None, np.random.default_rng(seed))


def written(sample, processor=None):
    return (processor or tiny_processor()).apply_chat_template(
        sample.messages,
        tokenize=False,
        add_generation_prompt=False,
        turn_format=sample.turn_format,
        frames=sample.frame_choice,
    )


# Masks of the answers


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("preset", ["consistent", "published"])
def test_every_source_has_a_mask_for_each_seg_in_the_order_of_the_text(name, preset, tmp_path):
    found, processor = source(name, tmp_path), tiny_processor()
    rendering = renderer(processor, preset=preset)
    for index in range(len(found)):
        record = found.record(index)
        sample = rendering(record, found.visual(record), found.lookup, np.random.default_rng(0))
        assert written(sample, processor).count("[SEG]") == len(sample.targets) == len(sample.objects)
        for mask, target in zip(sample.targets, sample.objects, strict=True):
            frames = sample.frames
            expected = decode_object(
                found.record(index), target, mask.shape[1:], len(sample.video), found.lookup, frames
            )
            np.testing.assert_array_equal(mask, expected)
        assert set(np.unique(sample.targets)) <= {False, True}


def test_phrases_of_several_objects_and_objects_named_twice():
    tracks = {"a": [square(0, 0)] * 10, "b": [square(10, 10)] * 10}
    answer = assistant(grounded("Both", "b", "a"), text(" run, "), grounded("it", "a"), text("."))
    sample = rendered(record_of([user("Who?"), answer, user("And?"), assistant(grounded("", "b"))], tracks))
    assert sample.objects == ["b", "a", "a", "b"]
    assert written(sample).split("assistant\n")[1].startswith("<p> Both </p> [SEG] [SEG] run, <p> it </p> [SEG].")
    assert written(sample).split("assistant\n")[2].startswith("[SEG]<|im_end|>")
    expected = [square(10, 10), square(0, 0), square(0, 0), square(10, 10)]
    np.testing.assert_array_equal(sample.targets[:, 0], expected)
    assert sample.frames == tiny_processor().choose_frames(sample.video).prompted


@pytest.mark.parametrize("preset", ["consistent", "published"])
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7, 9, 13, 14])
def test_short_videos_have_one_mask_a_frame(num_frames, preset):
    """data.md 6.3: up to 5 context frames, also of 13, gave the dense index -1, and fewer frames than masks."""
    track = [square(frame, 0) for frame in range(num_frames)]
    messages = [user("Where is ", region("a"), "?"), assistant(grounded("it", "a"))]
    record = record_of(messages, {"a": track}, num_frames)
    sample = rendered(record, num_frames=num_frames, preset=preset, regions="mask")
    assert sample.frames == sorted(set(sample.frames)) and set(sample.frames) <= set(range(num_frames))
    assert len(sample.frames) == min(num_frames, 5)
    np.testing.assert_array_equal(sample.targets[0], [track[frame] for frame in sample.frames])
    (found,) = shown(sample)
    np.testing.assert_array_equal(found.mask, track[found.frame])


# Drawing


def test_drawing_is_with_replacement_in_the_published_preset_alone():
    messages = [m for i in range(5) for m in (user(f"thing {i}", templates="segment_video"), assistant("x"))]
    record = record_of(messages, sampling={"turns": 5, "replace": True, "unit": "turn"})
    for seed in range(20):
        sample = rendered(record, seed)
        asked = [words(message) for message in sample.messages[::2]]
        assert len(asked) == 5 and all(sum(f"thing {i}" in question for question in asked) == 1 for i in range(5))
    repeated = [
        len({words(m)[-20:] for m in rendered(record, s, preset="published").messages[::2]}) for s in range(20)
    ]
    assert min(repeated) < 5
    few = record_of(messages[:4], sampling={"turns": 5, "replace": True, "unit": "turn"})
    assert len(rendered(few).messages) == 4 and len(rendered(few, preset="published").messages) == 10
    assert len(rendered(record, turns=2).messages) == 4


def test_objects_are_drawn_before_their_sentences():
    tracks = {"a": [square(0, 0)] * 10, "b": [square(10, 10)] * 10}
    many = [m for i in range(9) for m in (user(f"a{i}"), assistant(grounded("", "a")))]
    record = record_of([*many, user("b0"), assistant(grounded("", "b"))], tracks,
                       sampling={"turns": 2, "replace": True, "unit": "object"})  # fmt: skip
    assert all(sorted(rendered(record, seed).objects) == ["a", "b"] for seed in range(10))
    share = np.mean([name == "b" for s in range(100) for name in rendered(record, s, preset="published").objects])
    assert 0.35 < share < 0.65


def test_templates_take_the_content_and_release_says_image():
    record = record_of([user("the red dog", templates="segment_video"), assistant("y", templates="segment_answer")])
    found = {words(rendered(record, seed).messages[0]) for seed in range(60)}
    sentences = {f"(video){sentence.replace('{}', 'the red dog')}" for sentence in TEMPLATES["segment_video"]}
    assert found <= sentences and len(found) > 8
    released = {words(rendered(record, seed, preset="published").messages[0]) for seed in range(20)}
    assert released <= {f"(video){sentence.replace('{}', 'the red dog')}" for sentence in TEMPLATES["segment_image"]}
    answers = {words(rendered(record, seed).messages[1]) for seed in range(60)}
    assert answers == {"Sure, y.", "It is y.", "Here it is: y.", "y.", "This is the mask: y."}


def test_mask_request_is_added_once():
    asked = user("What runs?", wants_masks=True)
    first, second = [
        words(rendered(record_of([question, assistant("x")])).messages[0])
        for question in (asked, user("Say it with interleaved segmentation masks.", wants_masks=True))
    ]
    assert first == "(video)What runs? Response with interleaved segmentation masks."
    assert second == "(video)Say it with interleaved segmentation masks."


def test_caption_template_has_no_slot(tmp_path):
    question = words(render("gcg_openpsg", tmp_path).messages[0])
    assert question.removeprefix("(image)") in TEMPLATES["caption_image"]


# Regions


def shown(sample):
    return [part["region"] for message in sample.messages for part in message["content"] if "region" in part]


def ring():
    mask = square(4, 4, 12)
    mask[6:14, 6:14] = False
    return mask


@pytest.mark.parametrize("shape", ["box", "mask", "jitter", "mixed", "source"])
def test_regions_are_shown_as_boxes_masks_or_jittered(shape):
    record = record_of([user("What is ", region("a"), "?"), assistant("x")], {"a": [ring()] * 10}, region_shape="box")
    masks = [shown(rendered(record, seed, regions=shape))[0].mask for seed in range(20)]
    as_mask = [bool((mask == ring()).all()) for mask in masks]
    as_box = [bool((mask == filled_box(ring())).all()) for mask in masks]
    assert all((filled_box(mask) == mask).all() for mask, true in zip(masks, as_mask, strict=True) if not true)
    expected = {"box": (0, 20), "source": (0, 20), "mask": (20, 0)}
    if shape in expected:
        assert (sum(as_mask), sum(as_box)) == expected[shape]
    elif shape == "jitter":
        assert sum(as_mask) == 0 and sum(as_box) < 20 and len({mask.tobytes() for mask in masks}) > 5
    else:
        assert 0 < sum(as_mask) < 20


def test_regions_lie_on_a_dense_frame_where_they_are_visible():
    tracks = {"early": [square(0, 0)] * 4 + [None] * 6, "always": [square(9, 9)] * 10}
    tracks["between"] = [None] * 5 + [square(3, 3)] + [None] * 4
    record = record_of([user(region("early"), region("always"), region("between"), "?"), assistant("x")], tracks)
    dense = tiny_processor().choose_frames(SamaVideo.open(noise_video(10))).dense
    frames = [[found.frame for found in shown(rendered(record, seed))] for seed in range(30)]
    assert {early for early, _, _ in frames} == {frame for frame in dense if frame < 4}
    assert {always for _, always, _ in frames} == set(dense)
    assert 5 not in dense and {between for _, _, between in frames} == {5}
    assert any(early == always for early, always, _ in frames)


def test_round_about_what_is_never_visible_is_left_out_and_counted():
    tracks = {"a": [square(0, 0)] * 10, "gone": [None] * 9 + [np.zeros((HEIGHT, WIDTH), dtype=bool)]}
    rounds = [user(region("gone"), "?"), assistant("no"), user(region("a"), "?"), assistant("yes")]
    sample = rendered(record_of(rounds, tracks))
    assert [words(message) for message in sample.messages] == ["(video)<region>?", "yes"]
    assert sample.left_out == {UNSEEN: 1}
    with pytest.raises(DataError, match="s, item r, field 'objects': has only questions about regions that are never"):
        rendered(record_of(rounds[:2], tracks))


def test_osprey_lists_its_regions_first(tmp_path):
    sample = render("osprey_conversation", tmp_path)
    assert words(sample.messages[0]).startswith(
        "(image)There are 2 part regions in the picture: region1<region>, region2<region>.\n"
    )
    assert words(render("osprey_conversation", tmp_path, preset="published").messages[0]).startswith(
        "(image)<image> There are 2 part regions"
    )


def test_empty_region_of_a_list_keeps_its_words(tmp_path):
    found = source("osprey_conversation", tmp_path)
    record = found.record(0)
    size = record["objects"]["1"]["masks"][0]["size"]
    record["objects"]["1"]["masks"] = [encode_rle(np.zeros(size, dtype=bool))]
    sample = renderer()(record, found.visual(record), found.lookup, np.random.default_rng(0))
    assert "picture: region1, region2<region>.\n" in words(sample.messages[0])


def test_list_too_long_for_the_qformer_is_cut_to_what_is_asked(tmp_path):
    found = source("osprey_conversation", tmp_path)
    record = found.record(0)
    processor = tiny_processor(qformer_max_length=28)
    record["messages"] = [{**record["messages"][0], "content": [text("Is region2 big?")]}, record["messages"][1]]
    record["messages"][1]["content"] = [text("yes")]
    sample = renderer(processor)(record, found.visual(record), found.lookup, np.random.default_rng(0))
    assert words(sample.messages[0]).startswith("(image)There are 2 part regions in the picture: region1, region2<reg")
    assert not any(processor.count_tokens(sample.messages).cut_regions)
    with pytest.raises(DataError, match="too long for the Q-Former: 1 of its regions are cut off"):
        renderer(tiny_processor(qformer_max_length=5))(
            record, found.visual(record), found.lookup, np.random.default_rng(0)
        )


# Text


TAGS = ["<p>", "</p>", "[SEG]", "<img>", "<IMG_CONTEXT>", "<vp>", "<|im_end|>", "<region>", "<mask>"]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_tags_of_the_data_are_ordinary_text(tag, role):
    say = {"user": "Why?", "assistant": "So."} | {role: f"a{tag}b"}
    processor = tiny_processor()
    sample = rendered(record_of([user(say["user"]), assistant(say["assistant"])]), processor=processor)
    plain = rendered(record_of([user("Why?"), assistant("So.")]), processor=processor)
    assert (f"a{tag[0]} {tag[1:]}b" if tag == "<region>" else f"a{tag}b") in written(sample)
    special = set(processor.tokenizer.all_special_ids)
    count = [
        sum(token in special for token in processor.apply_chat_template(s.messages)["input_ids"][0].tolist())
        for s in (sample, plain)
    ]
    assert count[0] == count[1]


def test_newlines_of_the_first_question_go_in_the_release_alone(tmp_path):
    record = record_of([user("One\ntwo"), assistant("x"), user("three\nfour"), assistant("y")], layout="llava")
    assert [words(m) for m in rendered(record).messages[::2]] == ["(video)One\ntwo", "three\nfour"]
    assert [words(m) for m in rendered(record, preset="published").messages[::2]] == ["(video)Onetwo", "three\nfour"]
    assert record["messages"][0]["content"][0]["text"] == "One\ntwo"  # data.md 6.3: conversations were changed


def test_rendering_twice_does_not_change_the_record(tmp_path):
    for name in SOURCES:
        found = source(name, tmp_path)
        record, twin = found.record(0), found.record(0)
        for _ in range(2):
            renderer()(record, found.visual(record), found.lookup, np.random.default_rng(0))
        assert record == twin


PICTURE = "<img>#</img>"
MASKS_PLEASE = " Response with interleaved segmentation masks."
OSPREY_LIST = "<image> There are 2 part regions in the picture: region1<vp>#</vp>, region2<vp>#</vp>.\n"
# source, record -> the first question and the beginning of the second as the release writes them (data.md 1), where #
# is any number of context tokens and * a sentence that is drawn; videos have five pictures of five dense frames
RELEASE_TEXTS = {
    ("refcoco", 0): (f"{PICTURE}#*", "#*"),
    ("llava", 0): (f"{PICTURE}\n#\nWhat is it?Answer the question using a single word.", "#\nWhat\ncolour?"),
    ("mevis", 1): ("\n".join([PICTURE] * 5) + "#\n*", "#\n*"),
    ("revos", 0): ("\n".join([PICTURE] * 2) + "#\n*", "#\n*"),
    ("ref_youtube_vos", 0): ("\n".join([PICTURE] * 2) + "#\n*", "#\n*"),
    ("ref_sav", 0): (
        "\n".join([PICTURE] * 4) + "#\nPlease segment the object according to the description: *",
        "#\nPlease segment the object according to the description: *",
    ),
    ("chat_univi", 1): ("\n".join([PICTURE] * 5) + "#\n\nIs it dark?", "#\nAnd then?"),
    ("gcg_openpsg", 0): (f"{PICTURE}\n#\n*", None),
    ("gcg_grandf", 0): (f"{PICTURE}\n#\n*", None),
    ("gcg_flickr", 0): (f"{PICTURE}\n#\n*", None),
    ("gcg_refcocog", 0): (f"{PICTURE}\n#\n*", None),
    ("osprey_conversation", 0): (
        f"{PICTURE}\n#\n{OSPREY_LIST}What is region1 to region2?Say it shortly.", "#\nIs region2 big?",
    ),
    ("osprey_description", 0): (f"{PICTURE}\n#\n{OSPREY_LIST}*", "#\n*"),
    ("osprey_short", 0): (
        f"{PICTURE}\n#\n{OSPREY_LIST}What colour is region1? Answer the question using a single word or phrase.", None,
    ),
    ("sama239k_conversation", 0): (
        "\n".join([PICTURE] * 5) + f"#What is the man <vp>#</vp> doing?{MASKS_PLEASE}",
        f"#How do <vp>#</vp> and <vp>#</vp> differ?{MASKS_PLEASE}",
    ),
    ("sama239k_description", 0): ("\n".join([PICTURE] * 5) + "#\n*", "#\n*"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "index"), RELEASE_TEXTS)
def test_release_writes_each_source_in_its_own_layout(name, index, tmp_path):
    """data.md 1 and 6.3: newlines around the context tokens, those that are deleted or doubled, and `<image> `."""
    sample = render(name, tmp_path, index, preset="published")
    spread = re.sub("(<IMG_CONTEXT>)+", "#", written(sample))
    found = [turn.split("<|im_end|>")[0] for turn in spread.split("<|im_start|>user\n")[1:]]
    for text, expected in zip(found, RELEASE_TEXTS[name, index], strict=False):
        if expected is not None and expected.endswith("*"):
            assert text.startswith(expected[:-1]) and text[len(expected) - 1] not in "#\n<"
        elif expected is not None:
            assert text == expected
    assert len(found) >= 1 + (RELEASE_TEXTS[name, index][1] is not None)
    assert render(name, tmp_path, index).turn_format is None


def test_every_source_of_the_release_has_its_layout_tested():
    # Those that are left out share the reader of one that is in; the benchmarks are not trained on
    tested = {SOURCES[name][0] for name, _ in RELEASE_TEXTS}
    assert tested == {reader for reader, _, _ in SOURCES.values()} - {"json_lines", "sama_bench_g", "sama_bench_c"}


def test_newline_beside_the_tag_of_chat_univi_stays_in_the_release_alone(tmp_path):
    """data.md 1.6: only `<image>` is removed, so the release shows two newlines behind the context tokens."""
    for index, first in ((0, "What happens?\n"), (1, "\nIs it dark?")):
        (question, *_), (released, *_) = (
            render("chat_univi", tmp_path, index, **settings).messages for settings in ({}, {"preset": "published"})
        )
        assert words(question) == f"(video){first.strip()}" and words(released) == f"(video){first}"


def test_release_draws_frames_of_a_conversation_in_segments(tmp_path):
    sample = render("chat_univi", tmp_path, preset="published")
    assert len(sample.frame_choice.context) == 32
    assert sample.frame_choice.context[:6] == [0, 1, 2, 3, 4, 5]
    video = render("chat_univi", tmp_path)
    assert video.frame_choice == tiny_processor().choose_frames(video.video)
    batch = tiny_processor().apply_chat_template(
        sample.messages, add_generation_prompt=False, frames=sample.frame_choice
    )
    assert len(batch["pixel_values"]) == 32
    assert batch["num_context_frames"].tolist() == [32] and len(batch["dense_frames"]) == 5


@pytest.mark.parametrize("number", [1, 5, 31, 32, 33, 200])
def test_segment_frames(number):
    choice = segment_frames(number, np.random.default_rng(0))
    assert len(choice.context) == 32 and len(choice.dense) == 5 and set(choice.dense) <= set(choice.context)
    assert 0 <= min(choice.context) and max(choice.context) < number
    if number >= 32:
        assert sorted(set(choice.context)) == choice.context


# Length


def test_too_long_sample_loses_whole_rounds_and_says_so():
    tracks = {str(i): [square(i, i)] * 10 for i in range(4)}
    messages = [m for i in range(4) for m in (user(f"Where is {i}?"), assistant(grounded("", str(i))))]
    record = record_of(messages, tracks)
    processor = tiny_processor()
    whole = rendered(record, processor=processor)
    tokens = [processor.count_tokens(whole.messages[:count]).total for count in (2, 4, 6, 8)]
    sample = rendered(record, processor=processor, max_length=tokens[2] - 1)
    assert len(sample.messages) == 4 and sample.objects == ["0", "1"] and len(sample.targets) == 2
    assert sample.left_out == {TOO_LONG: 2} and whole.left_out == {}
    with pytest.raises(DataError, match=rf"s, item r, field 'messages': takes {tokens[0]} tokens .* {tokens[0] - 1}"):
        rendered(record, processor=processor, max_length=tokens[0] - 1)


def test_tokenizer_limits_the_length_too():
    processor = tiny_processor(tokenizer=language_tokenizer(model_max_length=90))
    assert renderer(processor, max_length=500).max_length == 90
    with pytest.raises(DataError, match="the context has 90"):
        rendered(record_of([user("x" * 100), assistant("y")]), processor=processor)


def test_measure_counts_what_the_batch_has(tmp_path):
    processor = tiny_processor()
    for name in SOURCES:
        sample = render(name, tmp_path)
        batch = processor.apply_chat_template(sample.messages, add_generation_prompt=False)
        assert processor.count_tokens(sample.messages).total == batch["input_ids"].shape[1]
        assert not any(processor.count_tokens(sample.messages).cut_regions)


@pytest.mark.parametrize("preset", ["consistent", "published"])
def test_length_bound_is_one(preset, tmp_path):
    processor = tiny_processor()
    bound = LengthBound(processor)
    for name in SOURCES:
        sample = render(name, tmp_path, preset=preset)
        frames = None if sample.video is None else processor.choose_frames(sample.video)
        assert (
            bound.max_tokens(sample.messages, frames)
            >= processor.count_tokens(sample.messages, sample.turn_format, frames).total
        )


def test_length_bound_counts_the_frame_tokens_that_regions_copy():
    """As Sa2VA does. A region over the whole frame copies all of its tokens."""
    _, processor = tiny_backbone("internvl", with_aggregator=False, region_prompts="cells")
    size = (56, 56)
    regions = [{"type": "region", "frame": 0, "mask": np.ones(size, dtype=bool)}] * 8
    shown = {"type": "image", "image": noise_video(1, *size)[0]}
    messages = [{"role": "user", "content": [shown, *regions, text("What?")]}, assistant("Nothing.")]
    bound, frames = LengthBound(processor), processor.choose_frames(SamaVideo.open(noise_video(1, *size)))
    assert bound.max_tokens(messages, frames) >= processor.count_tokens(messages).total and bound.regions_fit(messages)


def test_samples_of_few_bytes_are_not_tokenized(monkeypatch):
    record = record_of([user("What is ", region("a"), "?"), assistant("x")], {"a": [square(0, 0)] * 10})
    processor = tiny_processor()
    monkeypatch.setattr(processor, "count_tokens", None)
    assert len(rendered(record, processor=processor).messages) == 2


def test_names_of_the_presets_before_version_02():
    assert RenderSettings(preset="default") == RenderSettings()
    assert RenderSettings(preset="release").preset == "published"


def test_questions_without_answers():
    sample = rendered(record_of([user("a"), assistant("b"), user("c")]))
    assert len(sample.messages) == 2 and sample.left_out == {UNANSWERED: 1}
    with pytest.raises(DataError, match="s, item r, field 'messages': has no question with an answer"):
        rendered(record_of([user("a")]))


def test_system_message_stays_in_front():
    system = {"role": "system", "content": [text("Be brief.")]}
    sample = rendered(record_of([system, user("a"), assistant("b")]))
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant"]
    assert words(sample.messages[1]) == "(video)a"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "x"}, "preset='x' is unknown"),
        ({"regions": "x"}, "regions='x' is unknown"),
        ({"turns": 0}, "turns must be .* got 0"),
        ({"max_length": "9"}, "max_length must be .* got '9'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RenderSettings(**settings)


def test_union_of_objects_is_one_mask(tmp_path):
    found = source("mevis", tmp_path)
    union = next(name for name in found.record(0)["objects"] if "+" in name)
    record = found.record(0)
    record["messages"] = [user("both"), assistant(grounded("", union))]
    record.pop("sampling")
    sample = renderer()(record, found.visual(record), found.lookup, np.random.default_rng(0))
    parts = [decode_object(record, name, SIZE, 3, found.lookup) for name in union.split("+")]
    np.testing.assert_array_equal(sample.targets[0], parts[0] | parts[1])
    assert decode_rle(encode_rle(sample.targets[0, 0])).dtype == bool
