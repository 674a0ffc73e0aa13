"""Logs of sampled answers: a line of JSON for each prompt, and a picture with the masks of the first ones."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from sama.data.files import write_text_atomically
from sama.drawing.regions import draw_region
from sama.drawing.sheets import caption_band, contact_sheet, stack_images, title_band
from sama.objects_sama import Region
from sama.overlay_sama import object_color, overlay_masks
from sama.prompts_sama import parse_tagged_text

from .prompts import Prompt
from .rewards import SampledAnswer


MAX_PROMPTS, MAX_ANSWERS, MAX_FRAMES = 2, 4, 6  # of a picture
TILE_WIDTH = 150  # pixels
WIDTH = MAX_FRAMES * (TILE_WIDTH + 6) + 6  # of a contact sheet


@dataclass(frozen=True)
class JudgedAnswers:
    """Rewards of the answers to a batch of prompts: `scores` of shape `(num_prompts, num_answers, num_rewards)`,
    NaN where a reward does not apply, `totals` and `advantages` of shape `(num_prompts, num_answers)`, and the `names`
    of the rewards."""

    scores: np.ndarray
    totals: np.ndarray
    advantages: np.ndarray
    names: Sequence[str]

    def named(self, prompt: int, answer: int) -> dict[str, float]:
        """The rewards of an answer that apply, by name."""
        values = zip(self.names, self.scores[prompt, answer].tolist(), strict=True)
        return {name: round(value, 4) for name, value in values if value == value}


def write_completions(
    folder: Path,
    step: int,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[SampledAnswer]],
    judged: JudgedAnswers,
) -> None:
    """Writes `step_000001.jsonl` and `step_000001.png` to a folder, which is created if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(described(number, prompts, answers, judged)) for number in range(len(prompts))]
    write_text_atomically(folder / f"step_{step:06d}.jsonl", "".join(line + "\n" for line in lines))
    shown = [number for number, prompt in enumerate(prompts) if prompt.reference is not None][:MAX_PROMPTS]
    if shown:
        sheets = [draw_prompt(prompts[number], answers[number], judged, number) for number in shown]
        stack_images(sheets, gap=16).save(folder / f"step_{step:06d}.png")


def described(
    number: int, prompts: Sequence[Prompt], answers: Sequence[Sequence[SampledAnswer]], judged: JudgedAnswers
) -> dict:
    """A prompt with its answers, ready for JSON."""
    prompt = prompts[number]
    return {
        "source": prompt.source,
        "id": prompt.id,
        "question": prompt.question,
        "reference": None if prompt.reference is None else prompt.reference.tagged_text,
        "info": {} if prompt.reference is None else dict(prompt.reference.info),
        "answers": [
            {
                "text": answer.tagged_text,
                "rewards": judged.named(number, place),
                "advantage": round(float(judged.advantages[number, place]), 4),
            }
            for place, answer in enumerate(answers[number])
        ],
    }


def draw_prompt(prompt: Prompt, answers: Sequence[SampledAnswer], judged: JudgedAnswers, number: int) -> Image.Image:
    """A prompt with its true masks and reference, and below it different answers, the best one first."""
    reference = prompt.reference
    kind = reference.info.get("kind")
    blocks = [title_band(WIDTH, f"{prompt.id}{f': {kind}' if kind else ''}")]
    blocks += draw_answer(prompt, reference.tagged_text, reference.masks, "true", prompt.question)
    shown: dict[str, int] = {}
    for place in np.argsort(-np.nan_to_num(judged.totals[number]), kind="stable").tolist():
        shown.setdefault(answers[place].tagged_text, place)
    for place in list(shown.values())[:MAX_ANSWERS]:
        rewards = ", ".join(f"{name} {value:.2f}" for name, value in judged.named(number, place).items())
        gain = judged.advantages[number, place]
        blocks.append(title_band(WIDTH, f"advantage {gain:+.2f}: {rewards}"))
        blocks += draw_answer(prompt, answers[place].tagged_text, answers[place].masks, "answer")
    return stack_images(blocks)


def draw_answer(
    prompt: Prompt, tagged_text: str, masks: np.ndarray, name: str, question: str = ""
) -> list[Image.Image]:
    """Frames with masks and regions, and the words below them."""
    text, phrases = parse_tagged_text(tagged_text)
    objects = [SimpleNamespace(span=span) for _, span in phrases]
    blocks = []
    if prompt.frames:
        chosen = sorted({*np.linspace(0, len(prompt.frames) - 1, MAX_FRAMES).round().astype(int).tolist()})
        frames = [draw_frame(prompt, place, masks) for place in chosen]
        captions = [f"{name} {prompt.frames[place]}" for place in chosen]
        blocks.append(contact_sheet(frames, captions, columns=MAX_FRAMES, tile_width=TILE_WIDTH))
    return [*blocks, caption_band(WIDTH, question, text or "(the answer is empty)", objects, max_lines=3)]


def draw_frame(prompt: Prompt, place: int, masks: np.ndarray) -> np.ndarray:
    """A frame of a prompt with masks and the regions that lie on it, at the size of a tile."""
    picture = prompt.pictures[place]
    scale = max(1, round(TILE_WIDTH / picture.shape[1]))
    frame = np.asarray(picture).repeat(scale, 0).repeat(scale, 1)
    own = np.zeros((len(masks), *frame.shape[:2]), dtype=bool)
    if masks.shape[1]:
        own[:] = masks[:, place].repeat(scale, 1).repeat(scale, 2)
    frame = overlay_masks(frame, own, [object_color(number) for number in range(len(own))])
    for number, region in enumerate(prompt.regions, start=1):
        if isinstance(region, Region) and region.frame == prompt.frames[place] and region.mask is not None:
            mask = np.asarray(region.mask).repeat(scale, 0).repeat(scale, 1)
            frame = draw_region(frame, Region(0, mask=mask), str(number) if len(prompt.regions) > 1 else None)
    return frame
