"""Draws rendered samples: their frames with target masks and regions, and their dialogues."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sama.data.records import DataError
from sama.data.rendering import Renderer, Sample
from sama.drawing.regions import draw_region
from sama.drawing.sheets import caption_band, contact_sheet, stack_images, title_band
from sama.objects_sama import GroundedPhrase
from sama.overlay_sama import object_color, overlay_masks
from sama.prompts_sama import REGION_WORD, SEG


logger = logging.getLogger(__name__)

TILE_WIDTH, COLUMNS, TEXT_WIDTH = 300, 5, 900


def write_previews(sources: Sequence, renderer: Renderer, number: int, folder: Path) -> list[Path]:
    """
    Draw randomly chosen records, the same ones every time. A record that cannot be rendered, or a source without
    records, is logged and left out.

    Args:
        sources (sequence): Opened sources, which take turns.
        renderer ([`Renderer`]): Makes the samples.
        number (`int`): How many records are drawn.
        folder (`Path`): Where the PNG files are written, as `preview_<number>_<source>.png`. Created if needed;
            earlier ones in it are deleted, other pictures are not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("preview_[0-9][0-9][0-9]_*.png"):  # of an earlier call
        old.unlink()
    for source in sources:
        if not len(source):
            logger.warning("no preview: %s has no records", source.name)
    sources = [source for source in sources if len(source)]
    rng, written = np.random.default_rng(0), []
    for position in range(number if sources else 0):
        source = sources[position % len(sources)]
        index = int(rng.integers(len(source)))
        try:
            record = source.record(index)
            video = source.visual(record)
            sample = renderer(record, video, source.lookup, rng)
            plain_frames = renderer.processor.choose_frames(video).dense if video is not None else []
            sheet = preview_sheet(sample, plain_frames)
        except (DataError, ValueError, OSError) as error:
            logger.warning("no preview: %s", error)
            continue
        name = re.sub("[^0-9A-Za-z._-]", "_", source.name)
        written.append(folder / f"preview_{position:03d}_{name}.png")
        sheet.save(written[-1])
    return written


def preview_sheet(sample: Sample, plain_frames: Sequence[int] = ()) -> Image.Image:
    """
    One image of a sample: a title, the frames that have targets or regions, then every question and answer. An object
    has the same colour in all frames and answers.

    Args:
        sample ([`Sample`]): The rendered record.
        plain_frames (sequence of `int`): Frames that are shown where a sample has neither masks nor regions.
    """
    names = list(dict.fromkeys(sample.objects))
    colors = {name: object_color(index) for index, name in enumerate(names)}
    regions = [part["region"] for message in sample.messages for part in message["content"] if "region" in part]
    pictures = []
    if sample.video is not None:
        shown = sorted({*sample.frames, *(region.frame for region in regions)}) or list(plain_frames)
        tiles = [_frame(sample, frame, colors, regions) for frame in shown]
        other = ", no target" if sample.frames else ""
        captions = [f"frame {frame}" + ("" if frame in sample.frames else other) for frame in shown]
        pictures.append(contact_sheet(tiles, captions, columns=min(COLUMNS, len(tiles)), tile_width=TILE_WIDTH))
    width = max(TEXT_WIDTH, *(picture.width for picture in pictures), 0)
    title = title_band(width, f"{sample.id}   {_summary(sample)}")
    return stack_images([title, *pictures, *_dialogue(sample, colors, width)])


def _summary(sample: Sample) -> str:
    targets = f"{len(sample.targets)} [SEG] on frames {sample.frames}" if sample.frames else "no [SEG]"
    left_out = "".join(f", {count} {reason}" for reason, count in sample.left_out.items())
    size = "" if sample.video is None else f", {len(sample.video)} frames {sample.video.width}x{sample.video.height}"
    return f"({targets}{size}{left_out})"


def _frame(sample: Sample, frame: int, colors: dict, regions: list) -> np.ndarray:
    picture = sample.video[frame]
    if picture.shape[1] < TILE_WIDTH:  # small clips are enlarged first, or outlines would cover the objects
        factor = -(-TILE_WIDTH // picture.shape[1])
        picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = picture.shape[0] // sample.video.height
    if frame in sample.frames:
        masks = sample.targets[:, sample.frames.index(frame)].repeat(factor, axis=1).repeat(factor, axis=2)
        shades = [colors[name] for name in sample.objects]
        picture = overlay_masks(picture, masks, shades)
    for number, region in enumerate(regions, start=1):
        if region.frame == frame:
            mask = region.mask.repeat(factor, axis=0).repeat(factor, axis=1)
            picture = draw_region(picture, type(region)(frame=frame, mask=mask), f"region {number}")
    return picture


def _dialogue(sample: Sample, colors: dict, width: int) -> list[Image.Image]:
    bands, question, regions = [], "", 0
    for message in sample.messages:
        if message["role"] == "user":
            words = []
            for part in message["content"]:
                regions += part["type"] == "region"
                words.append(f"{REGION_WORD} {regions}" if part["type"] == "region" else part.get("text", ""))
            question = "".join(words)
        elif message["role"] == "assistant":
            answer, phrases, shades = _answer(message["content"], colors)
            bands.append(caption_band(width, question, answer, phrases, shades))
            question = ""
    return bands


def _answer(content: list[dict], colors: dict) -> tuple[str, list[GroundedPhrase], list]:
    answer, phrases, shades = "", [], []
    for part in content:
        text = part["text"] or SEG
        for name in part.get("objects", []):
            phrases.append(GroundedPhrase(text, (len(answer), len(answer) + len(text))))
            shades.append(colors[name])
        answer += text
    return answer, phrases, shades
