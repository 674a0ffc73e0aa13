"""The processor: text layout, tensors, regions and batches."""

import numpy as np
import pytest
import torch
from PIL import Image
from processor_fixtures import (
    TINY_IMAGE,
    TINY_SAM,
    assistant,
    box_part,
    clip,
    language_tokenizer,
    mask_part,
    noise_video,
    text_of,
    tiny_processor,
    user,
    video_part,
)

from sama import modeling_sama_backbones
from sama.configuration_sama import IMAGENET_MEAN, IMAGENET_STD
from sama.modeling_sama_backbones import normalized_pixels
from sama.objects_sama import GroundedPhrase, MaskTrack, Region
from sama.video_sama import FrameChoice, SamaVideo


torch.set_num_threads(1)

TOKEN_KEYS = {"input_ids", "attention_mask", "mm_token_type_ids"}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


# Text layout


def test_video_turns(processor):
    messages = [
        user(video_part(30), "What is ", box_part(), " doing?"),
        assistant("It runs."),
        user("And ", box_part(6), "?"),
    ]
    frame, context = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>", "<IMG_CONTEXT>" * 10
    region = "<vp><IMG_CONTEXT><IMG_CONTEXT></vp>"
    assert text_of(processor, messages) == (
        "<|im_start|>user\n" + "\n".join([frame] * 5) + f"\n{context}\nWhat is {region} doing?<|im_end|>\n"
        "<|im_start|>assistant\nIt runs.<|im_end|>\n"
        f"<|im_start|>user\n{context}\nAnd {region}?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_image_and_text_turns(processor):
    image = {"type": "image", "image": Image.fromarray(noise_video(1, 28, 56)[0])}
    tiles = "<IMG_CONTEXT>" * 4 * 3
    assert text_of(processor, [user(image, "Describe.")]) == (
        f"<|im_start|>user\n<img>{tiles}</img>\n<IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT>\nDescribe.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert text_of(processor, [[user("Hi.")], [user("Ho."), assistant("Hm.")]]) == [
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHo.<|im_end|>\n<|im_start|>assistant\nHm.<|im_end|>\n",
    ]


def test_visual_in_a_later_turn(processor):
    batch = processor.apply_chat_template([user("Hello."), assistant("Hi."), user(video_part(), "What?")])
    assert batch["question_samples"].tolist() == [0]
    assert (batch["mm_token_type_ids"] == 1).sum() == 5 * 4


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("default", "\n", "\n"),
        ("published", "", "\n"),
        ("refcoco", "", ""),
        ("llava", "\n", "\n"),
        ("referring_video", "", "\n"),
        ("chat_univi", "", "\n"),
        ("gcg", "\n", "\n"),
        ("osprey", "\n", "\n"),
        ("sama_conversation", "", ""),
        ("sama_description", "", "\n"),
    ],
)
def test_turn_formats(name, before, after):
    """The newlines around the context tokens, as the release writes them for each of its sources."""
    processor = tiny_processor(turn_format=name)
    text = text_of(processor, [user(video_part(2), "What?"), assistant("A."), user("Why?")])
    context = "<IMG_CONTEXT>" * 2
    assert f"</img>{before}{context}{after}What?" in text
    assert f"user\n{context}{after}Why?" in text


def test_chat_templates():
    messages = [user("Q"), assistant("A"), user("R")]
    expected = {
        "qwen_chat": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
        "phi3_chat": "<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n<|user|>\nR<|end|>\n<|assistant|>\n",
        "leaked_chat": "<|user|>\nQ<|end|><|assistant|>\nA<|im_end|>\n<|user|>\nR<|end|><|assistant|>\n",
    }
    for name, text in expected.items():
        processor = tiny_processor(chat_template=name)
        assert text_of(processor, messages) == text
        assert processor.answer_suffix == ("<|end|>" if name == "phi3_chat" else "<|im_end|>")
    tokenizer = language_tokenizer(bos_token="<s>")
    internlm = tiny_processor(tokenizer=tokenizer, chat_template="internlm2_chat")
    assert text_of(internlm, messages) == "<s>" + expected["qwen_chat"]


def test_grounded_answers_and_assistant_masks(processor):
    answer = [
        {"type": "grounded", "text": "The man", "objects": ["1"]},
        {"type": "text", "text": " pets "},
        {"type": "grounded", "text": "two dogs", "objects": ["2", "3"]},
        {"type": "text", "text": "."},
    ]
    messages = [user("Who?"), {"role": "assistant", "content": answer}, user("Why?"), assistant("So.")]
    batch = processor.apply_chat_template(messages, return_assistant_tokens_mask=True)
    learned = batch["input_ids"][0][batch["assistant_masks"][0].bool()]
    assert processor.tokenizer.decode(learned) == (
        "<p> The man </p> [SEG] pets <p> two dogs </p> [SEG] [SEG].<|im_end|>So.<|im_end|>"
    )


def test_prompt_tokens_do_not_depend_on_what_follows(processor):
    messages = [user(video_part(9), "What?"), assistant("\n<p> A dog </p> [SEG]."), user("Why?")]
    whole = processor.apply_chat_template(messages)["input_ids"][0].tolist()
    first = processor.apply_chat_template(messages[:1])["input_ids"][0].tolist()
    assert whole[: len(first)] == first
    answer = processor.tokenizer("\n<p> A dog </p> [SEG].<|im_end|>")["input_ids"]
    assert whole[len(first) : len(first) + len(answer)] == answer


# Tensors


def test_real_video_with_a_region_between_the_context_frames(processor):
    part = {"type": "video", "path": clip("carphone_pristine")}
    batch = processor.apply_chat_template([user(part, "What is ", box_part(13, (40, 60, 100, 140)), "?")])
    assert batch["pixel_values"].shape == (33, 3, TINY_IMAGE, TINY_IMAGE)
    assert (batch["num_context_frames"].tolist(), batch["num_extra_frames"].tolist()) == ([32], [1])
    assert batch["dense_frames"].tolist() == [3, 9, 16, 22, 28]
    assert batch["region_frames"].tolist() == [32]
    assert batch["region_prompt_labels"].tolist() == [[2, 3]]
    expected = [[40 * TINY_SAM / 176, 60 * TINY_SAM / 144], [100 * TINY_SAM / 176, 140 * TINY_SAM / 144]]
    torch.testing.assert_close(batch["region_prompt_points"][0], torch.tensor(expected))
    video = SamaVideo.open(clip("carphone_pristine"))
    torch.testing.assert_close(batch["region_prompt_pixel_values"][0], processor.sam_pixel_values(video[13]))
    assert not batch["region_masks"].any() and not batch["region_grid_masks"].any()
    types = batch["mm_token_type_ids"][0]
    assert [int((types == kind).sum()) for kind in range(1, 5)] == [5 * 4, 32, 1, 1]
    assert ((types > 0) == (batch["input_ids"][0] == processor.image_token_id)).all()


def test_pixels_are_a_bicubic_resize_and_imagenet_normalization(processor):
    frame = noise_video(1)[0]
    resized = Image.fromarray(frame).resize((TINY_IMAGE, TINY_IMAGE), Image.Resampling.BICUBIC)
    expected = (np.asarray(resized) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = processor.frame_pixel_values(SamaVideo.open([frame]), [0])[0]
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert processor.sam_pixel_values(frame).shape == (3, TINY_SAM, TINY_SAM)


@pytest.mark.parametrize(
    ("width", "height", "tiles"),
    [(448, 448, 1), (640, 480, 13), (640, 427, 7), (500, 375, 13), (500, 333, 7), (640, 640, 5), (1280, 720, 9)],
)
def test_tiles_follow_the_official_examples(width, height, tiles):
    processor = tiny_processor(image_size=448, max_tiles=12)
    image = SamaVideo.open(np.zeros((height, width, 3), np.uint8))
    assert len(processor.tile_pixel_values(image)) == tiles


def test_tiles_are_cut_row_by_row_with_the_whole_image_last(processor):
    image = SamaVideo.open(noise_video(1, 2 * TINY_IMAGE, 2 * TINY_IMAGE)[0])
    tiles = processor.tile_pixel_values(image)
    assert len(tiles) == 5
    whole = normalized_pixels(Image.fromarray(image[0]), 2 * TINY_IMAGE, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(tiles[1], whole[:, :TINY_IMAGE, TINY_IMAGE:])
    torch.testing.assert_close(tiles[4], processor.frame_pixel_values(image, [0])[0])


def test_image_regions_use_the_whole_image(processor):
    image = {"type": "image", "image": noise_video(1, 28, 56)[0]}
    batch = processor.apply_chat_template([user(image, "What is ", mask_part(0, (28, 56)), "?")])
    assert batch["num_context_frames"].tolist() == [3] and batch["dense_frames"].tolist() == [0, 1, 2]
    assert batch["region_frames"].tolist() == [2]


def test_a_turn_is_encoded_without_what_is_known(processor, monkeypatch):
    video = SamaVideo.open(noise_video(30))
    messages = [user({"type": "video", "video": video}, "What is ", box_part(1), "?")]
    first = processor.encode_turn(messages)
    whole = processor.apply_chat_template(messages)
    torch.testing.assert_close(first.pixel_values, whole["pixel_values"])
    assert first.frames == [*processor.choose_frames(video).context, 1] and first.num_known_tokens == 0
    for name in ("qformer_input_ids", "dense_frames", "region_masks", "region_prompt_points", "region_frames"):
        torch.testing.assert_close(first.visual[name], whole[name])
    later = [*messages, assistant("A."), user("And ", box_part(3), " or ", mask_part(1), "?")]
    whole = processor.apply_chat_template(messages + later[1:2], add_generation_prompt=False)["input_ids"][0]
    monkeypatch.setattr(
        modeling_sama_backbones, "normalized_pixels", lambda *_: pytest.fail("a frame was encoded again")
    )
    second = processor.encode_turn(later, first.input_ids[0], first.frames)
    assert second.num_known_tokens == first.input_ids.shape[1] and len(second.pixel_values) == 0
    assert second.input_ids[0, : len(whole)].tolist() == whole.tolist()
    assert second.frames == first.frames and second.visual["region_frames"].tolist() == [1, 10]
    assert len(second.visual["dense_frames"]) == 0 and len(second.visual["qformer_input_ids"]) == 1
    assert second.prompt_frames == [3] and len(second.visual["region_masks"]) == 2


def test_a_turn_reads_frames_that_only_carry_a_region(processor):
    messages = [user(video_part(30), "What?")]
    first = processor.encode_turn(messages)
    later = [*messages, assistant("A."), user("What is ", mask_part(7), "?")]
    second = processor.encode_turn(later, first.input_ids[0], first.frames)
    assert second.frames == [*first.frames, 7] and len(second.pixel_values) == 1
    assert second.visual["num_extra_frames"].tolist() == [1]
    assert second.visual["region_frames"].tolist() == [len(first.frames)]


def test_sam_frames_are_lazy(processor):
    video = SamaVideo.open(noise_video(4))
    frames = processor.sam_frames(video)
    assert len(frames) == 4
    torch.testing.assert_close(frames[3], processor.sam_pixel_values(video[3]))
    assert len(list(frames)) == 4


def test_questions_of_the_qformer(processor):
    batch = processor.apply_chat_template(
        [user(video_part(), " What is ", mask_part(), " doing? "), assistant("A."), user("And now?")]
    )
    decoded = [processor.qformer_tokenizer.convert_ids_to_tokens(row) for row in batch["qformer_input_ids"]]
    assert decoded[0][0] == "[CLS]" and decoded[0][-1] == "[SEP]"
    slot = decoded[0].index("<vp>")
    assert decoded[0][slot : slot + 4] == ["<vp>", "<mask>", "<pos>", "</vp>"]
    assert decoded[1][-1] == "[PAD]" and batch["qformer_attention_mask"][1, -1] == 0
    assert batch["question_samples"].tolist() == [0, 0]


def test_long_questions_are_cut_on_the_left():
    processor = tiny_processor(qformer_max_length=12)
    batch = processor.apply_chat_template([user(video_part(), "aaaa bbbb cccc dddd ", mask_part(), "?")])
    tokens = processor.qformer_tokenizer.convert_ids_to_tokens(batch["qformer_input_ids"][0])
    assert (
        len(tokens) == 12
        and tokens[0] == "[CLS]"
        and tokens[-6:] == ["<vp>", "<mask>", "<pos>", "</vp>", "?", "[SEP]"]
    )
    with pytest.raises(ValueError, match="with 1 regions keeps only 0 of them in the 12 tokens"):
        processor.apply_chat_template([user(video_part(), mask_part(), " aaaa bbbb cccc dddd")])


# Regions


def test_masks_are_resized_from_the_video_size(processor):
    part = mask_part(3)
    batch = processor.apply_chat_template([user(video_part(), "What is ", part, "?")])
    rows, columns = np.arange(16) * 20 // 16, np.arange(16) * 30 // 16
    np.testing.assert_array_equal(batch["region_masks"][0].numpy(), part["mask"][np.ix_(rows, columns)])
    np.testing.assert_array_equal(batch["region_grid_masks"][0].numpy(), part["mask"][np.ix_([0, 10], [0, 15])])
    assert "region_prompt_points" not in batch
    assert batch["region_frames"].tolist() == [1] and batch["num_extra_frames"].tolist() == [0]


def test_points_and_scribbles(processor):
    points = {"type": "region", "frame": 2, "points": [(3, 4), (10, 10)], "labels": [1, 0]}
    line = {"type": "region", "frame": 2, "scribble": [(0, 0), (14, 0), (14, 14)]}
    batch = processor.apply_chat_template([user(video_part(), "Compare ", points, mask_part(), line, ".")])
    assert batch["region_prompt_indices"].tolist() == [0, 2]
    assert batch["region_prompt_labels"].tolist() == [[1, 0] + [-10] * 6, [1] * 8]
    scale = torch.tensor([TINY_SAM / 30, TINY_SAM / 20])
    torch.testing.assert_close(batch["region_prompt_points"][0, :2], torch.tensor([[3.0, 4], [10, 10]]) * scale)
    torch.testing.assert_close(
        batch["region_prompt_points"][1, [0, 2, 7]], torch.tensor([[0.0, 0], [8, 0], [14, 14]]) * scale
    )
    assert batch["region_prompt_frames"].tolist() == [0, 0] and len(batch["region_prompt_pixel_values"]) == 1
    assert batch["region_frames"].tolist() == [10, 0, 10]


def test_box_shape_needs_no_prompt():
    processor = tiny_processor(region_shape="box", region_mask_size=30)
    mask = np.zeros((20, 30), dtype=bool)
    mask[4, 6] = mask[9, 20] = True
    filled = {"type": "region", "frame": 0, "mask": mask}
    batch = processor.apply_chat_template([user(video_part(), "A ", filled, box_part(0, (6, 4, 20.5, 9.5)), ".")])
    assert "region_prompt_points" not in batch
    assert batch["region_masks"][0, :, 6:21].any(dim=1).sum() == 9 and batch["region_masks"][0].sum() == 9 * 15
    torch.testing.assert_close(batch["region_masks"][0], batch["region_masks"][1])


def test_answer_objects_as_regions(processor):
    masks = np.zeros((30, 20, 30), dtype=bool)
    masks[4, :5, :5] = masks[5, :10, :10] = True
    track = MaskTrack.from_masks(masks)
    phrase = GroundedPhrase("a dog", (0, 5), track, 0.9)

    def frames_used(track_or_phrase):
        part = {"type": "region", "region": track_or_phrase}
        batch = processor.apply_chat_template([user(video_part(), "What is ", part, "?")])
        return batch["region_frames"].tolist(), batch["num_extra_frames"].tolist()

    assert frames_used(phrase) == ([10], [1])  # visible on no dense frame: frame 5, where it is largest
    masks[9, 3, 3] = True
    assert frames_used(MaskTrack.from_masks(masks)) == ([3], [0])  # frame 9 is dense
    with pytest.raises(ValueError, match="empty on all 30 frames"):
        frames_used(MaskTrack(30, 20, 30))
    with pytest.raises(ValueError, match=r"= \(29, 20, 30\), but 'array' is \(30, 20, 30\)"):
        frames_used(MaskTrack(29, 20, 30))
    with pytest.raises(ValueError, match="'a dog' has no masks"):
        frames_used(GroundedPhrase("a dog", (0, 5)))


def test_region_over_several_frames_uses_a_dense_one(processor):
    region = Region(frame=[1, 15, 9], box=[(0, 0, 9, 9), (0, 0, 5, 5), (1, 1, 4, 4)])
    batch = processor.apply_chat_template([user(video_part(), "What is ", {"type": "region", "region": region}, "?")])
    assert batch["region_frames"].tolist() == [3] and batch["num_extra_frames"].tolist() == [0]


# Batches


def conversations():
    image = {"type": "image", "image": noise_video(1, 28, 56, seed=7)[0]}
    shared = SamaVideo.open(noise_video(12, seed=3))
    points = {"type": "region", "frame": 2, "points": [(3, 4), (10, 10), (5, 5)], "labels": [1, 0, 1]}
    return [
        [user("Only words here.")],
        [user(video_part(30), "What is ", box_part(1), " doing near ", mask_part(6), "?")],
        [user(image, "What is ", mask_part(0, (28, 56)), "?"), assistant("<p> A cat </p> [SEG]."), user("Sure?")],
        [user("Hi."), assistant("Hi."), user({"type": "video", "video": shared}, "What?"), assistant("B."),
         user("And ", points, " here, or ", box_part(5), "?")],
        [user({"type": "video", "video": shared}, "What is ", box_part(5), "?")],
        [user({"type": "video", "video": noise_video(1, seed=5)}, "One frame?")],
        [user(image, "No region.")],
    ]  # fmt: skip


def one_of(batch, index, questions, regions, prompts):
    """The tensors of one sample of a batch, numbered from its own start; the last three: its rows among all."""
    used = batch["attention_mask"][index].bool()
    sample = {key: batch[key][index][used] for key in TOKEN_KEYS}
    counts = (batch["num_context_frames"] + batch["num_extra_frames"]).tolist()
    if counts[index] == 0:
        return sample
    start, end = sum(counts[:index]), sum(counts[: index + 1])
    sample["pixel_values"] = batch["pixel_values"][start:end]
    sample["num_context_frames"] = batch["num_context_frames"][index : index + 1]
    sample["num_extra_frames"] = batch["num_extra_frames"][index : index + 1]
    dense = batch["dense_frames"]
    sample["dense_frames"] = dense[(dense >= start) & (dense < end)] - start
    for row in questions:
        valid = batch["qformer_attention_mask"][row].bool()
        sample[f"question_{row - questions[0]}"] = batch["qformer_input_ids"][row][valid]
    for row in regions:
        at = row - regions[0]
        sample[f"masks_{at}"], sample[f"grid_{at}"] = batch["region_masks"][row], batch["region_grid_masks"][row]
        sample[f"frame_{at}"] = batch["region_frames"][row] - start
    for row in prompts:
        at = row - prompts[0]
        valid = batch["region_prompt_labels"][row] != -10
        sample[f"index_{at}"] = batch["region_prompt_indices"][row] - regions[0]
        sample[f"points_{at}"] = batch["region_prompt_points"][row][valid]
        sample[f"labels_{at}"] = batch["region_prompt_labels"][row][valid]
        sample[f"sam_{at}"] = batch["region_prompt_pixel_values"][batch["region_prompt_frames"][row]]
    return sample


def rows_of(batch, index):
    """Rows of questions, regions and prompts that belong to a sample, found from the tensors alone."""
    if "question_samples" not in batch:
        return [], [], []
    owners = batch["question_samples"].tolist()
    questions = [row for row, owner in enumerate(owners) if owner == index]
    per_sample = (batch["mm_token_type_ids"] == 3).sum(dim=1).tolist()
    first = sum(per_sample[:index])
    regions = list(range(first, first + per_sample[index]))
    indices = batch["region_prompt_indices"].tolist() if "region_prompt_indices" in batch else []
    return questions, regions, [row for row, region in enumerate(indices) if region in regions]


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_is_the_same_alone_and_in_any_batch(processor, seed):
    pool = conversations()
    order = np.random.default_rng(seed).permutation(len(pool))[: 3 + seed]
    batch = processor.apply_chat_template([pool[index] for index in order])
    mask = batch["attention_mask"]
    assert (mask[:, -1] == 1).all() and (mask.diff(dim=1) >= 0).all()  # padded on the left
    for position, index in enumerate(order):
        alone = processor.apply_chat_template(pool[index])
        if set(alone) == TOKEN_KEYS:
            found = {key: batch[key][position][mask[position].bool()] for key in TOKEN_KEYS}
            expected = {key: alone[key][0] for key in TOKEN_KEYS}
        else:
            found = one_of(batch, position, *rows_of(batch, position))
            expected = one_of(alone, 0, *rows_of(alone, 0))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def test_keys_without_content_are_absent(processor):
    assert set(processor.apply_chat_template([[user("Hi.")], [user("Hello there.")]])) == TOKEN_KEYS
    batch = processor.apply_chat_template([user(video_part(), "What?")])
    visual = {"pixel_values", "num_context_frames", "num_extra_frames", "dense_frames", "frame_grids"}
    questions = {"qformer_input_ids", "qformer_attention_mask", "question_samples"}
    assert set(batch) == TOKEN_KEYS | visual | questions
    assert not processor.apply_chat_template([user("Hi.")])["mm_token_type_ids"].any()


def test_a_shared_video_is_prompted_once(processor):
    video = SamaVideo.open(noise_video(12))
    messages = [user({"type": "video", "video": video}, "What is ", box_part(5), "?")]
    batch = processor.apply_chat_template([messages, messages])
    assert batch["region_prompt_frames"].tolist() == [0, 0] and len(batch["region_prompt_pixel_values"]) == 1


def test_conversations_of_one_batch_may_have_different_turn_formats(processor):
    conversations = [[user(video_part(seed=seed), "What?")] for seed in range(2)]
    texts = processor.apply_chat_template(conversations, tokenize=False, turn_format=["refcoco", "llava"])
    assert texts == [
        processor.apply_chat_template(messages, tokenize=False, turn_format=name)
        for messages, name in zip(conversations, ("refcoco", "llava"), strict=True)
    ]
    assert texts[0] != texts[1]


def test_count_tokens_counts_tokens_and_regions_out_of_reach():
    messages = [user(video_part(), box_part(), " and ", box_part(), " x" * 40)]
    short, long = tiny_processor(qformer_max_length=30), tiny_processor(qformer_max_length=200)
    tokens = long.apply_chat_template(messages, add_generation_prompt=False)["input_ids"].shape[1]
    assert (long.count_tokens(messages).total, long.count_tokens(messages).cut_regions) == (tokens, [0])
    assert (short.count_tokens(messages).total, short.count_tokens(messages).cut_regions) == (tokens, [2])


def test_frames_are_an_argument(processor):
    frames = FrameChoice(context=[4, 9, 2], dense=[9, 4], prompted=[9, 4])
    batch = processor.apply_chat_template([user(video_part(30), "What?")], frames=frames)
    assert batch["num_context_frames"].tolist() == [3] and batch["dense_frames"].tolist() == [1, 0]
