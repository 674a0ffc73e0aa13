"""Contact sheets of the best, median and worst samples of a benchmark: question, answer and ground truth."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from sama.benchmarks.benchmark import Benchmark, Measures, PredictedTurn, Prediction, Question, Track, Turn
from sama.data.masks import decode_rle
from sama.drawing.regions import draw_region
from sama.drawing.sheets import caption_band, contact_sheet, stack_images
from sama.objects_sama import MaskTrack, Region
from sama.overlay_sama import object_color, overlay_masks
from sama.prompts_sama import parse_tagged_text
from sama.video_sama import SamaVideo


CASES, COLUMNS, TILE_WIDTH = 3, 4, 260
MAX_TURNS = 4  # of a conversation; later turns are not drawn
REFERENCE = "Reference: "


def write_gallery(
    folder: Path, benchmark: Benchmark, samples: Sequence[Measures], read: Callable[[list[str]], Sequence[Prediction]]
) -> list[Path]:
    """
    Writes `best.png`, `median.png` and `worst.png`, ranked by `Measures.value`, and returns their paths. Samples
    without a value are left out.

    Args:
        folder (`Path`): created if needed.
        benchmark ([`Benchmark`]): for its videos and questions.
        samples (sequence of [`Measures`])
        read (`Callable`): takes the ids of questions and returns their predictions in the same order.
    """
    ranked = sorted((sample for sample in samples if sample.value is not None), key=lambda one: -one.value)
    middle = max(0, (len(ranked) - CASES) // 2)
    chosen = {"best": ranked[:CASES], "median": ranked[middle : middle + CASES], "worst": ranked[-CASES:][::-1]}
    paths = []
    for name, cases in chosen.items():
        sheets = [
            draw_case(benchmark, sample, prediction)
            for sample, prediction in zip(cases, read([case.question for case in cases]), strict=True)
        ]
        if sheets:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{name}.png")
            stack_images(sheets, gap=28).save(paths[-1])
    return paths


def draw_case(benchmark: Benchmark, sample: Measures, prediction: Prediction) -> Image.Image:
    """Draws one sample: its turns, one below the other."""
    questions: list[Question] = benchmark.questions(sample.group)
    question = next(one for one in questions if one.id == sample.question)
    video = benchmark.open(sample.group)
    pairs = list(zip(question.turns, prediction.turns, strict=True))[:MAX_TURNS]
    title = f"{benchmark.name} {sample.question}: {benchmark.headline} {sample.value:.2f}"
    blocks = [
        draw_turn(video, turn, answer, title if number == 0 else "") for number, (turn, answer) in enumerate(pairs)
    ]
    return stack_images(blocks, gap=4)


def draw_turn(video: SamaVideo | None, turn: Turn, answer: PredictedTurn, title: str = "") -> Image.Image:
    """Draws frames with the predicted masks above the question and its answer, then the same frames with the true
    masks above the reference. Regions of the question are outlined where they are visible."""
    text, spans = parse_tagged_text(answer.text)
    objects = [SimpleNamespace(span=span) for _, span in spans]
    question = f"{title}\n{turn.text}" if title else turn.text
    found = [item.masks for item in answer.objects]
    width = COLUMNS * (TILE_WIDTH + 6) + 6  # of a contact sheet
    blocks = [] if video is None else [_frames(video, turn, found, "answer")]
    blocks.append(caption_band(width, question, text or "(the answer is empty)", objects))
    if turn.reference is not None:
        truth, spans = parse_tagged_text(turn.reference)
        shift = len(REFERENCE)
        marked = [SimpleNamespace(span=(start + shift, end + shift)) for _, (start, end) in spans]
        blocks += [_frames(video, turn, turn.targets, "true")] if turn.targets else []
        blocks.append(caption_band(width, "", REFERENCE + truth, marked))
    return stack_images(blocks)


def _frames(video: SamaVideo, turn: Turn, tracks: Sequence[Track], name: str) -> Image.Image:
    numbers = key_frames(video, turn)
    frames = [_draw(video, number, turn.regions, tracks) for number in numbers]
    captions = [name if video.is_image else f"{name}, frame {number}" for number in numbers]
    return contact_sheet(frames, captions, columns=COLUMNS, tile_width=TILE_WIDTH)


def key_frames(video: SamaVideo, turn: Turn) -> list[int]:
    """Up to `COLUMNS` frames, evenly spread over those on which a true object is visible, or over all if none is.
    Frames that a region was drawn on are included."""
    seen = {frame for track in turn.targets for frame, code in enumerate(track) if code is not None}
    frames = sorted(seen) or list(range(len(video)))
    with_region = {
        number for region in turn.regions if isinstance(region, Region) for number in np.atleast_1d(region.frame)
    }
    count = min(max(1, COLUMNS - len(with_region)), len(frames))
    spread = {frames[(2 * step + 1) * len(frames) // (2 * count)] for step in range(count)}
    return sorted({int(number) for number in spread | with_region})[:COLUMNS]


def _draw(video: SamaVideo, number: int, regions: Sequence, tracks: Sequence[Track]) -> np.ndarray:
    """Draws masks and regions on a frame; a small frame is enlarged first, so that lines are thin."""
    scale = max(1, math.ceil(TILE_WIDTH / video.width))
    size = (video.height, video.width)
    picture = Image.fromarray(video[number])
    frame = np.asarray(picture.resize((video.width * scale, video.height * scale), Image.Resampling.BICUBIC))
    codes = [track[number] if number < len(track) else None for track in tracks]
    masks = np.zeros((len(codes), *frame.shape[:2]), dtype=bool)
    for place, code in enumerate(codes):
        masks[place] = _enlarged(decode_rle(code, size), scale)
    frame = overlay_masks(frame, masks, [object_color(place) for place in range(len(codes))])
    for place, region in enumerate(regions, start=1):
        shown = _on_frame(region, number, scale)
        if shown is not None:
            frame = draw_region(frame, shown, str(place) if len(regions) > 1 else None)
    return frame


def _on_frame(region: Region | MaskTrack, number: int, scale: int) -> Region | None:
    """The part of a region that lies on a frame, enlarged; `None` if there is none."""
    if isinstance(region, MaskTrack):
        return Region(number, mask=_enlarged(region[number], scale)) if region.area(number) else None
    single = next((one for one in region.per_frame() if one.frame == number), None)
    if single is None or single.kind == "mask":
        return single and Region(number, mask=_enlarged(np.asarray(single.mask), scale))
    prompt = (np.asarray(vars(single)[single.kind], dtype=float) * scale).tolist()
    return Region(number, labels=single.labels, **{single.kind: prompt})


def _enlarged(mask: np.ndarray, scale: int) -> np.ndarray:
    return mask.repeat(scale, axis=0).repeat(scale, axis=1)
