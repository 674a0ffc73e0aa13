"""Does our code give the numbers of the release? Converts a recorded checkpoint, runs it, and compares.

    python tests/parity/check_golden.py ../shared/golden/official_tiny

DIR holds the release's weights, `config.json`, both tokenizers, `golden.safetensors` with inputs and outputs of the
published inference code, and `golden.json` with the questions and sizes. Everything runs in float32 with the
`published` preset. A value recorded as NaN is not compared, and masks are compared where they are recorded (see
`reduced_golden.py`). The exit code is 1 if anything is over its tolerance.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from sama.conversion.convert import ConversionRequest, convert
from sama.modeling_sama import VISUAL_INPUT_NAMES, SamaForConditionalGeneration, SamaVisualInputs
from sama.objects_sama import Region
from sama.processing_sama import SamaProcessor
from sama.video_sama import SamaVideo


INPUTS = {"video_uint8", "image_uint8", "region_masks_16", "region_masks_112", "seg_hidden"}
TOLERANCE = 1e-4  # of a tensor's largest value
CONTEXT_TOLERANCE = 1e-5  # one token more or less in a temporal window changes context tokens by 2e-4 only
MASK_LOGITS_TOLERANCE = 1e-3
LEAST_IOU = 0.999
REGION_PLACEHOLDER = "<mask>"


@dataclass(frozen=True)
class Finding:
    """One line of the table: how far off, and how far off it may be."""

    quantity: str
    difference: float
    tolerance: float
    ok: bool
    note: str = ""


def compare(name: str, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> Finding:
    """Largest absolute difference; `tolerance` is a part of the largest value. NaN in `theirs` was not recorded."""
    if ours.shape != theirs.shape:
        return Finding(name, float("inf"), tolerance, False, f"shape {tuple(ours.shape)}, not {tuple(theirs.shape)}")
    recorded = ~theirs.isnan()
    if not recorded.any():
        return Finding(name, float("inf"), tolerance, False, "no value is recorded")
    ours, theirs = ours[recorded], theirs[recorded]
    difference = (ours - theirs).abs().max().item() if theirs.numel() else 0.0
    allowed = tolerance * theirs.abs().max().item() if theirs.numel() else 0.0
    return Finding(name, difference, allowed, difference <= allowed)


class Golden:
    """A recorded checkpoint and our model made from it."""

    def __init__(self, folder: Path, converted: Path):
        self.facts = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        self.tensors = load_file(folder / "golden.safetensors")
        convert(ConversionRequest([(folder, "sama")], converted))
        # Memories were recorded in float32, which the release itself rounds to bfloat16
        self.model = SamaForConditionalGeneration.from_pretrained(
            converted, dtype=torch.float32, round_memory_to_bfloat16=False
        ).eval()
        self.processor = SamaProcessor.from_pretrained(converted, trust_remote_code=True)
        self._inputs: dict[str, dict[str, torch.Tensor]] = {}
        self._encode_equal_frames_once()

    def _encode_equal_frames_once(self) -> None:
        """The conversations show few different frames, each of which several steps encode: the vision tower runs once
        for pixels that are equal in every bit."""
        model, known = self.model.model, []
        encode = model.encode_frames

        def remembered(pixel_values: torch.Tensor, grids: torch.Tensor | None = None):
            for pixels, tokens in known:
                if torch.equal(pixels, pixel_values):
                    return tokens
            known.append((pixel_values, encode(pixel_values, grids)))
            return known[-1][1]

        model.encode_frames = remembered

    @cached_property
    def video(self) -> SamaVideo:
        return SamaVideo.open(self.tensors["video_uint8"].numpy())

    @cached_property
    def image(self) -> SamaVideo:
        return SamaVideo.open(self.tensors["image_uint8"].numpy())

    @cached_property
    def frame_features(self) -> torch.Tensor:
        frames = self.processor.choose_frames(self.video).context
        return self.model.model.encode_frames(self.processor.frame_pixel_values(self.video, frames)).features

    @cached_property
    def region_positions(self) -> list[int]:
        """
        For each region the context frame it was taken from. The release draws among the first five frames in which the
        region is visible, without a seed; the draw is not recorded, but the region's tokens tell it.
        """
        masks, tokens = self.tensors["region_masks_16"], self.tensors["region_tokens"]
        chosen = []
        for region, mask in enumerate(masks):
            visible = [frame for frame in range(min(5, len(mask))) if mask[frame].any()] or [0]
            errors = {
                frame: (self.encode_region(region, frame) - tokens[2 * region : 2 * region + 2]).abs().max().item()
                for frame in visible
            }
            chosen.append(min(errors, key=errors.get))
        return chosen

    def encode_region(self, region: int, frame: int) -> torch.Tensor:
        """Pooled and shape token of one region on one context frame, (2, width)."""
        grid, masks = (self.tensors[f"region_masks_{size}"][region, frame][None] for size in (16, 112))
        return torch.cat(self.model.model.region_encoder(self.frame_features[frame][None], grid.flatten(1), masks))

    def inputs(self, name: str) -> dict[str, torch.Tensor]:
        """Model inputs of the conversation `name`: "no_region", "two_regions", "image"."""
        if name not in self._inputs:
            self._inputs[name] = self._make_inputs(name)
        return self._inputs[name]

    def _make_inputs(self, name: str) -> dict[str, torch.Tensor]:
        question, processor = self.facts[f"question_{name}"], self.processor
        is_image = name == "image"
        visual = {"type": "image", "image": self.image} if is_image else {"type": "video", "video": self.video}
        content, texts = [visual], question.split(REGION_PLACEHOLDER)
        frames = processor.choose_frames(self.video).context
        for number, text in enumerate(texts):
            if number:
                # Only the recorded, resized masks are known: they replace this one below
                mask = self.tensors["region_masks_112"][number - 1, self.region_positions[number - 1]]
                whole = F.interpolate(mask[None, None], (self.video.height, self.video.width)).bool()[0, 0].numpy()
                position = self.region_positions[number - 1]
                region = Region(frame=frames[position], mask=whole | (not whole.any()))
                content.append({"type": "region", "region": region})
            content.append({"type": "text", "text": text})
        inputs = dict(processor.apply_chat_template([{"role": "user", "content": content}]))
        if len(texts) > 1:
            rows = list(enumerate(self.region_positions))
            for size, key in ((16, "region_grid_masks"), (112, "region_masks")):
                inputs[key] = torch.stack([self.tensors[f"region_masks_{size}"][row] for row in rows])
        return inputs


def check_features(golden: Golden) -> Iterator[Finding]:
    """Vision tower, aggregator, region encoder and [SEG] projection, each from tensors alone."""
    model, tensors = golden.model.model, golden.tensors
    yield compare("vision_features", golden.frame_features, tensors["vision_features"])
    aggregator = model.context_aggregator
    summaries = aggregator.summarise_frames(golden.frame_features)
    for name in sorted(key.removeprefix("context_") for key in tensors if key.startswith("context_")):
        inputs, regions = golden.inputs(name), None
        if "region_masks" in inputs:
            frames = golden.frame_features[golden.region_positions]
            cells = inputs["region_grid_masks"].flatten(1)
            regions = aggregator.region_encoder(frames, cells, inputs["region_masks"])
        ids, mask = inputs["qformer_input_ids"], inputs["qformer_attention_mask"]
        videos = torch.zeros(len(ids), dtype=torch.long)
        context = aggregator(golden.frame_features[None], summaries[None], ids, mask, videos, regions)
        yield compare(f"context_{name}", context, tensors[f"context_{name}"], CONTEXT_TOLERANCE)
    regions = torch.cat([golden.encode_region(*row) for row in enumerate(golden.region_positions)])
    yield compare("region_tokens", regions, tensors["region_tokens"])
    yield compare("seg_embed", golden.model.project_seg_states(tensors["seg_hidden"]), tensors["seg_embed"])


def check_tracking(golden: Golden) -> Iterator[Finding]:
    """Masks of given [SEG] states through the video, where they are recorded."""
    if "mask_logits_video" not in golden.tensors:
        return
    logits = track(golden, golden.tensors["seg_hidden"], golden.video)
    size = golden.tensors["mask_logits_video"].shape[-2:]
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    yield compare("mask_logits_video", logits, golden.tensors["mask_logits_video"], MASK_LOGITS_TOLERANCE)


def track(golden: Golden, seg_states: torch.Tensor, video: SamaVideo) -> torch.Tensor:
    """Mask logits of all objects in all frames, (objects, frames, size, size)."""
    frames, prompted = golden.processor.sam_frames(video), golden.processor.choose_frames(video).prompted
    tracked = {each.frame_index: each.mask_logits for each in golden.model.segment_video(seg_states, frames, prompted)}
    return torch.stack([tracked[index] for index in sorted(tracked)], 1)


def check_conversation(golden: Golden, name: str) -> Iterator[Finding]:
    """From a question to embeddings, logits, an answer and its masks."""
    inputs, tensors = golden.inputs(name), golden.tensors
    visual = SamaVisualInputs(**{key: inputs[key] for key in VISUAL_INPUT_NAMES if key in inputs})
    embeds, _ = golden.model.model.embed_inputs(inputs["input_ids"], inputs["mm_token_type_ids"], visual)
    yield compare(f"inputs_embeds_{name}", embeds, tensors[f"inputs_embeds_{name}"])
    if f"logits_{name}" in tensors:
        recorded = tensors[f"logits_{name}"]
        logits = golden.model(**inputs, logits_to_keep=recorded.shape[1]).logits
        yield compare(f"logits_{name}", logits, recorded)
    output = golden.model.generate(
        **inputs, max_new_tokens=golden.facts["max_new_tokens"], do_sample=False, return_dict_in_generate=True
    )
    answer, recorded = output.sequences[:, inputs["input_ids"].shape[1] :], tensors[f"sequence_{name}"]
    same = answer.shape == recorded.shape and bool((answer == recorded).all())
    yield Finding(f"sequence_{name}", float(not same), 0.0, same, "" if same else f"ours {answer.tolist()}")
    if f"masks_{name}" not in tensors:
        return
    states, masks = output.seg_states[0], tensors[f"masks_{name}"]
    if recorded[0, -1] == golden.model.config.seg_token_id:
        states = states[:-1]  # the release loses a [SEG] that is the very last token
    video = golden.image if name == "image" else golden.video
    yield compare_masks(f"masks_{name}", golden, states, video, masks)


def compare_masks(
    name: str, golden: Golden, states: torch.Tensor, video: SamaVideo, recorded: torch.Tensor
) -> Finding:
    """The worst IoU of all masks; a mask that is empty in both counts as 1."""
    if len(states) != len(recorded):
        return Finding(name, 1.0, 1 - LEAST_IOU, False, f"{len(states)} objects, not {len(recorded)}")
    if not len(states):
        return Finding(name, 0.0, 1 - LEAST_IOU, True, "no [SEG] in the answer")
    size = golden.processor.sam_image_size
    logits = F.interpolate(track(golden, states, video), (size, size), mode="bilinear", align_corners=False)
    ours = F.interpolate(logits, recorded.shape[-2:], mode="bilinear", align_corners=False) > 0
    recorded = recorded.bool().reshape(ours.shape)
    intersection, union = ((ours & recorded).flatten(2).sum(2), (ours | recorded).flatten(2).sum(2))
    worst = torch.where(union > 0, intersection / union.clamp(min=1), 1.0).min().item()
    return Finding(name, 1 - worst, 1 - LEAST_IOU, worst >= LEAST_IOU, f"worst IoU {worst:.4f}")


@torch.no_grad()
def check(folder: Path) -> list[Finding]:
    """Everything that `folder` records; a tensor that nothing compares is a failure too."""
    with tempfile.TemporaryDirectory() as temporary:
        golden = Golden(folder, Path(temporary) / "converted")
        found = [*check_features(golden), *check_tracking(golden)]
        names = sorted(name.removeprefix("question_") for name in golden.facts if name.startswith("question_"))
        for name in names:
            found += check_conversation(golden, name)
        compared = {finding.quantity for finding in found} | INPUTS
        return found + [
            Finding(name, float("nan"), 0.0, False, "not compared")
            for name in sorted(golden.tensors.keys() - compared)
        ]


def table(found: list[Finding]) -> str:
    """The findings for people."""
    lines = [f"{'quantity':26} {'max abs diff':>12} {'tolerance':>12}  verdict"]
    for finding in found:
        numbers = f"{finding.difference:12.2e} {finding.tolerance:12.2e}"
        line = f"{finding.quantity:26} {numbers}  {'ok' if finding.ok else 'FAILED':7} {finding.note}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    found = check(parser.parse_args().folder)
    sys.stdout.write(table(found) + "\n")
    sys.exit(0 if all(finding.ok for finding in found) else 1)


if __name__ == "__main__":
    main()
