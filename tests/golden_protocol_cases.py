"""The recorded cases of what stands around the metrics: frames, questions, text before the model, [SEG]s, masks."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from golden_cases import checks
from processor_fixtures import noise_video, text_of, tiny_processor, user

from sama.benchmarks.from_records import record_turns
from sama.data.masks import decode_rle, encode_rle, tight_box
from sama.data.readers import READERS
from sama.data.wording import MASK_REQUEST, MASK_REQUEST_MARK, RELEASE_CAPTION_QUESTION, TEMPLATES
from sama.modeling_sama import SegRecorder
from sama.prompts_sama import POOLED_SLOT, QFORMER_REGION
from sama.video_sama import SamaVideo, choose_frames


PUBLISHED = {"preset": "published", "turn_format": "published", "chat_template": "qwen_chat"}
FRAMES, HEIGHT, WIDTH = 20, 28, 56


def processor(**settings):
    """Tiny but for the numbers of tokens, with the presets of the release."""
    return tiny_processor(**{"image_seq_length": 256, "region_mask_size": 112, **PUBLISHED, **settings})


def written_out(text: str) -> str:
    """The cases write `<IMG_CONTEXT>*n` for n of them."""
    return re.sub(r"<IMG_CONTEXT>\*(\d+)", lambda match: "<IMG_CONTEXT>" * int(match[1]), text)


def clip(num_frames: int) -> dict:
    return {"type": "video", "video": noise_video(num_frames, 4, 6)}


# Frames


@checks("sampling.sparse_32", "sampling.sparse_128")
def context_frames(case):
    limit = case["input"]["max_frames"]
    for length, expected in case["output"].items():
        if length == "0":  # no video of ours has no frames
            with pytest.raises(ValueError, match="at least 1 frame"):
                choose_frames(0, "published", limit)
        else:
            assert choose_frames(int(length), "published", limit).context == expected


# Questions


@checks("refcoco.question")
def image_question(case):
    found = [TEMPLATES["segment_image_bench"][0].format(text) for text in case["input"]]
    assert found == [case["output"]["after_cleaning"]]


@checks("vos.prompt")
def video_question(case):
    """An expression with a question mark is asked as it is: the reader gives it no template."""
    for text, expected in zip(case["input"], case["output"], strict=True):
        found = text if "?" in text else TEMPLATES["segment_video_bench"][0].format(text)
        assert found == expected["after_cleaning"]


@checks("prompts.exact")
def exact_questions(case):
    assert RELEASE_CAPTION_QUESTION == case["output"]["image_gcg"]
    region = TEMPLATES["caption_region_bench"][0].format("region1")
    assert "<image>\n" + region == case["output"]["region_caption"]


# The text before the model


@checks("predict.video", "predict.video_short", "predict.default_prediction_only")
def video_text(case):
    num_frames, expected = case["input"]["n_frames"], case["output"]
    ours = processor()
    message = user(clip(num_frames), "Please segment the dog.")
    assert text_of(ours, [message]) == written_out(expected["input_text"])
    choice = ours.choose_frames(SamaVideo.open(message["content"][0]["video"]))
    assert choice.context == expected["sparse_indices"]
    assert [choice.context.index(frame) for frame in choice.dense] == expected["dense_indices"]
    assert len(ours([message])["pixel_values"]) == expected["pixel_values_shape"][0]
    for call in expected["sam_calls"]:
        assert call["n_video_frames"] == num_frames
        assert choice.prompted == list(range(call["n_prompt_frames"]))
    generated = [int(token) for token in expected["prediction"].split()]
    assert seg_states(generated, read=generated[:-1]) == [
        call["embedding"][0][0] for call in expected["sam_calls"]
    ] or (
        case["id"] == "predict.default_prediction_only"  # tracking is asked for apart from answering
    )


def seg_states(generated: list[int], read: list[int], seg: int = 99) -> list[float]:
    """The states kept while `read`, those of the `generated` tokens that the model was fed, went through it; the state
    of token i is i."""
    recorder = SegRecorder(seg, prompt_length=0)
    for position in range(len(read)):
        recorder.record(torch.full((1, 1, 1), float(position)), position)
    return [
        recorder.states[column].item()
        for _, column in recorder.positions(torch.tensor([generated]))
        if column in recorder.states
    ]


@checks("predict.seg_last_token")
def final_seg(case):
    """The release loses a [SEG] that nothing follows. Ours sees that its state is missing and reads it, too."""
    generated = case["input"]["generated"]
    assert seg_states(generated, read=generated[:-1]) == case["output"]["sam_calls"] == []
    assert SegRecorder(99, 0).missing(torch.tensor([generated]))
    assert text_of(processor(), [user(clip(3), "x")]) == written_out(case["output"]["input_text"])


@checks("predict.image", "predict.region_prompt_dropped")
def image_text(case):
    """In the second case the release loses the region on its way, so that the text is that of a question without."""
    expected, ours = case["output"], processor(max_tiles=12, image_size=448)
    picture = {"type": "image", "image": np.zeros((480, 640, 3), dtype=np.uint8)}
    assert text_of(ours, [user(picture, expected["prompts"])]) == written_out(expected["input_text"])
    tiles = ours.tile_pixel_values(SamaVideo.open(picture["image"]))
    assert len(tiles) == expected["pixel_values_shape"][0] == 13


@checks("predict.text_only")
def plain_text(case):
    assert text_of(processor(), [user(case["input"]["text"])]) == case["output"]["input_text"]


@checks("predict.bench_text_passthrough")
def text_of_a_region(case):
    """The frame blocks of this case are made up; what follows them is what SAMA-Bench-G's layout writes."""
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 1:3] = True
    before, after = case["output"]["prompts"].split("<mask>")
    message = user(clip(20), before, {"type": "region", "frame": 0, "mask": mask}, after)
    text = text_of(processor(turn_format="sama_conversation"), [message])
    assert text.rpartition("</img>")[2] == written_out(case["output"]["input_text"]).rpartition("</img>")[2]


@checks("predict.mask_upsample")
def upsampled_masks(case):
    logits = torch.tensor([case["input"]["logits"]], dtype=torch.float32)
    found = processor(sam_image_size=64).post_process_masks(logits, case["input"]["H"], case["input"]["W"])
    assert found[0].astype(int).tolist() == case["output"]


# SAMA-Bench


class Bench:
    """
    One video of SAMA-Bench in the benchmark's files, as the cases describe it: object 11 is an L that is not seen on
    the first two frames; object 12 covers 160 pixels elsewhere and is gone on the last two.
    """

    def __init__(self, folder: Path, **item):
        first, second = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
        first[4:12, 8:10], first[10:12, 8:24], second[14:24, 30:46] = True, True, True
        self.masks = {"11": [None] * 2 + [encode_rle(first)] * 18, "12": [encode_rle(second)] * 18 + [None] * 2}
        (folder / "masks.json").write_text(json.dumps(self.masks))
        video = {"video": "mevis/x", "frames": [f"{index:05d}" for index in range(FRAMES)], "anno_map": [11, 12, -1]}
        (folder / "bench.json").write_text(json.dumps([{**video, **item}]))
        self.files = {"annotations": "bench.json", "media": ".", "mevis_masks": "masks.json"}
        self.root, self.dropped = folder, Counter()
        self.video = SamaVideo.open(noise_video(FRAMES, HEIGHT, WIDTH))

    def turns(self, reader: str, box: bool) -> list:
        """The questions of all records."""
        self.records = list(READERS[reader](self.files, self.root, {"dropped": self.dropped}))
        turns = [record_turns(one, self.video, lambda store, key: self.masks[key], box) for one in self.records]
        asked = [message for one in self.records for message in one["messages"] if message["role"] == "user"]
        return [
            replace(turn, text=turn.text + MASK_REQUEST * self.lacks_request(turn, message))
            for turn, message in zip([turn for one in turns for turn in one], asked, strict=True)
        ]

    @staticmethod
    def lacks_request(turn, message: dict) -> bool:
        return message.get("wants_masks", False) and MASK_REQUEST_MARK not in turn.text

    def inputs(self, turn, layout: str):
        """Text before the model without the chat template, the Q-Former's question with `<mask>`, and the masks that
        are read of each region, of 16 and 112 pixels a side."""
        ours = processor(turn_format=layout)
        message = user({"type": "video", "video": self.video}, *ours.question_parts(turn.text, turn.regions))
        text = text_of(ours, [message]).removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]
        batch = ours([message])
        question = turn.text.replace("<region>", QFORMER_REGION).replace(QFORMER_REGION, POOLED_SLOT)
        masks = [batch[name].numpy() > 0 for name in ("region_grid_masks", "region_masks") if name in batch]
        return text, question, masks


def extent(mask: np.ndarray) -> list[int]:
    """[first row, last row, first column, last column, pixels]."""
    left, top, right, bottom = tight_box(mask)
    return [top, bottom - 1, left, right - 1, int(mask.sum())]


def areas(track: list) -> list[int]:
    return [0 if code is None else int(decode_rle(code).sum()) for code in track]


def said(*rounds: tuple[str, str]) -> list[dict]:
    return [{"from": who, "value": text} for pair in rounds for who, text in zip(("human", "gpt"), pair, strict=True)]


@checks("bench_g.preprocess")
def kept_rounds(case):
    given = case["input"]
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), **{name: given[name] for name in ("conversation", "obj_masks", "groundtruth")})
        turns = bench.turns("sama_bench_g", box=True)
    assert len(bench.records) == len(turns) == len(case["output"]["records"])
    for turn, expected in zip(turns, case["output"]["records"], strict=True):
        question = expected["question"].removeprefix("<video>\n").replace("<mask>", "<region>")
        assert (turn.text, turn.reference) == (question, expected["answer"])
        assert turn.info["question_id"] == expected["question_id"]
        assert len(turn.regions) == len(expected["obj_masks"][0])
        assert len(turn.targets) == len(expected["groundtruth"][0])
    assert sum(bench.dropped.values()) == 3  # two rounds, and the last message


@checks("bench_g.sample", "bench_g.sample_union_nomask")
def grounded_question(case):
    source, expected = case["all"]["bench_g.preprocess"]["input"], case["output"]
    names = ("conversation", "obj_masks", "groundtruth")
    with TemporaryDirectory() as folder:
        first, second = Bench(Path(folder), **{name: source[name] for name in names}).turns("sama_bench_g", box=True)
        bench = Bench(Path(folder))
    turn = first if case["id"] == "bench_g.sample" else second
    text, question, masks = bench.inputs(turn, "sama_conversation")
    assert text == written_out(expected["input_text"])
    assert [len(turn.regions)] == expected["mask_count"]
    if turn is second:
        area = areas(turn.targets[0])
        assert [area[frame] for frame in (0, 2, 19)] == expected["gt_area_frame0_2_19"] and masks == []
        return
    assert turn.reference == expected["reference_answer"] and [question] == expected["text_prompts"]
    assert extent(masks[0][0]) == expected["prompt_mask_frame2"]
    assert extent(masks[1][0]) == expected["prompt_mask_112_frame2"]
    assert turn.regions[0].visible_frames()[0] == 2 and expected["prompt_mask_frame0"] is None
    assert [areas(track) for track in turn.targets] == [mask["area_per_frame"] for mask in expected["gt_masks"]]


@checks("bench_g.gt_empty_entry")
def empty_entry(case):
    """The release takes the mask before an empty entry once more. Ours takes none, so that masks and phrases agree."""
    answer = "<p> The man </p> [SEG] throws <p> a ball </p> [SEG]."
    with TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            conversation=said(("What?", answer)),
            obj_masks=[[]],
            groundtruth=[case["input"]["groundtruth"]],
        )
        (turn,) = bench.turns("sama_bench_g", box=True)
    first, repeated, second = case["output"]["areas_frame5"]
    assert repeated == first and [areas(track)[5] for track in turn.targets] == [first, second]


@checks("bench_c.sample")
def described_region(case):
    expected = case["output"]
    described = {name: case["input"][name] for name in ("description", "description_id")}
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), **described)
        turns = bench.turns("sama_bench_c", box=False)
    text, question, masks = bench.inputs(turns[0], "sama_description")
    assert len(turns) == expected["n_samples"] and turns[0].reference == expected["reference"]
    assert turns[0].info["description_id"] == expected["description_id"]
    assert text == written_out(expected["input_text"]) and [question] == expected["text_prompts"]
    assert extent(masks[0][0]) == expected["prompt_mask_frame2"]
    assert extent(masks[1][0]) == expected["prompt_mask_112_frame2"]
