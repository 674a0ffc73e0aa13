"""Writes a conversation to files: the video or picture with all masks, a contact sheet (.png) and a record (.json)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sama.data.files import write_text_atomically
from sama.data.masks import frame_code
from sama.drawing.regions import draw_region, label_masks
from sama.drawing.sheets import caption_band, contact_sheet, stack_images
from sama.objects_sama import Region, as_region
from sama.overlay_sama import Color, object_color, overlay_masks, prepare_output, write_video
from sama.serving.object_notation import hex_color
from sama.serving.session import ChatSession, ChatTurn


# Formats that every Pillow writes without an option
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SHEET_COLUMNS = 4
EMPTY_ANSWER = "(the answer is empty)"


def output_files(out: Path) -> list[Path]:
    """The three files of a conversation: `out`, the contact sheet and the record."""
    return [out, out.with_name(f"{out.stem}_sheet.png"), out.with_name(f"{out.stem}.json")]


def check_output(out: Path, source: str, is_image: bool) -> None:
    """
    Checks that the files of a conversation can be written, before time is spent on it.

    Raises:
        ValueError: if the suffix does not fit, or the file that is asked about would be overwritten.
        OSError: if a file cannot be written.
    """
    suffixes = sorted(PICTURE_SUFFIXES) if is_image else [".mp4"]
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"The output {out} must end in {' or '.join(suffixes)}.")
    for path in output_files(out):
        if path.exists() and path.samefile(source):
            raise ValueError(f"The output {out} would overwrite {source}, the file that is asked about; name another.")
        prepare_output(path)


def write_answer_files(
    session: ChatSession,
    out: Path,
    record: dict,
    region_texts: Sequence[Sequence[str]],
    progress: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[Path]:
    """
    Writes a conversation and returns the paths.

    Args:
        session ([`ChatSession`])
        out (`Path`): the video or picture; the other files lie next to it.
        record (`dict`): what the JSON begins with, such as the names of the model and the video.
        region_texts (sequence of sequences of `str`): for each turn, its regions as they were typed.
        progress (`Callable`, *optional*): wraps the frame indices while the video is written, as `tqdm` does.
    """
    video = session.chat.video
    tracks = {number: phrase.track for number, phrase in enumerate(session.objects, start=1)}
    files = output_files(out)
    if video.is_image:
        Image.fromarray(draw_objects(video, 0, tracks)).save(out)
    else:
        frames = (draw_objects(video, index, tracks) for index in progress(range(len(video))))
        write_video(out, frames, video.fps, video)
    stack_images([draw_turn(session, turn) for turn in session.turns], gap=12).save(files[1])
    write_text_atomically(files[2], json.dumps(record | describe(session, region_texts)))
    return files


def draw_objects(
    video, index: int, tracks: Mapping[int, Any], colors: Mapping[int, Color] | None = None
) -> np.ndarray:
    """
    Frame `index` with the masks and numbers of the objects with these tracks, `(height, width, 3)` uint8. Colours are
    by number as well, by default those of a session.
    """
    visible = {number: track for number, track in tracks.items() if track.area(index)}
    masks = FrameMasks(list(visible.values()), index)
    chosen = [object_color(number - 1) if colors is None else colors[number] for number in visible]
    frame = video[index]
    for mask, color in zip(masks, chosen, strict=True):
        frame = overlay_masks(frame, mask[None], [color])
    return label_masks(frame, masks, [str(number) for number in visible], chosen)


class FrameMasks(Sequence):
    """The masks of several objects on one frame. Each is decoded when it is asked for: 256 masks of 33 million pixels
    would take 8.6 GB together."""

    def __init__(self, tracks: Sequence, index: int):
        self.tracks, self.index = tracks, index

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, row):
        return self.tracks[row][self.index]


def draw_turn(session: ChatSession, turn: ChatTurn) -> Image.Image:
    """One block of the contact sheet: the regions, frames with masks, the question and the answer."""
    video, prompts = session.chat.video, {}
    for number, given in enumerate(turn.regions, start=1):
        region = region_on_its_frame(session, given)
        frame = prompts.get(region.frame, video[region.frame])
        prompts[region.frame] = draw_region(frame, region, str(number) if len(turn.regions) > 1 else None)
    frames, captions = list(prompts.values()), [f"region on frame {frame}" for frame in prompts]
    tracks = dict(zip(turn.numbers, [phrase.track for phrase in turn.reply.objects], strict=True))
    for index in key_frames(len(video), list(tracks.values()), SHEET_COLUMNS - len(frames) % SHEET_COLUMNS):
        frames.append(draw_objects(video, index, tracks))
        captions.append(f"frame {index}")
    sheet = contact_sheet(frames, captions, columns=SHEET_COLUMNS)
    colors = [item.color for item in turn.objects]
    answer = turn.reply.text or EMPTY_ANSWER
    band = caption_band(sheet.width, turn.question, answer, turn.reply.objects, colors, turn.numbers)
    return stack_images([sheet, band])


def region_on_its_frame(session: ChatSession, region: dict) -> Region:
    """A region of a question on one frame; an object of an answer on the frame that the model looks at it on."""
    if "object" not in region:
        return as_region(region).at_frames(session.chat.video)
    phrase = session.object(region["object"])
    frame = session.chat.processor.region_frame(phrase, session.chat.video)
    return Region(frame=frame, mask=phrase.track[frame])


def key_frames(num_frames: int, tracks: Sequence, count: int) -> list[int]:
    """Up to `count` frames, evenly spread over those on which an object is visible, or over all if none is."""
    visible = sorted({frame for track in tracks for frame in track.visible_frames()}) or list(range(num_frames))
    count = min(count, len(visible))
    return [visible[(2 * step + 1) * len(visible) // (2 * count)] for step in range(count)]


def describe(session: ChatSession, region_texts: Sequence[Sequence[str]]) -> dict:
    """The conversation, ready for JSON; a mask is null on frames where its object is not visible."""
    video, turns = session.chat.video, []
    for turn, regions in zip(session.turns, region_texts, strict=True):
        objects = [
            {
                "number": item.number,
                "phrase": item.phrase,
                "span": list(item.span),
                "score": None if phrase.score is None else float(phrase.score),
                "color": hex_color(item.color),
                "masks": [frame_code(phrase.track, frame) for frame in range(len(video))],
            }
            for item, phrase in zip(turn.objects, turn.reply.objects, strict=True)
        ]
        answer = {"answer": turn.reply.text, "tagged_answer": turn.reply.tagged_text, "objects": objects}
        turns.append({"question": turn.question, "regions": list(regions), **answer})
    size = {"num_frames": len(video), "height": video.height, "width": video.width}
    return {"fps": float(video.fps), **size, "turns": turns}
