"""Images of the best, median and worst cases of a benchmark, with question, answer and reference."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from sama.benchmarks.benchmark import Benchmark, BenchmarkTurn, Measures, PredictedTurn, Prediction, Question, RLETrack
from sama.data.masks import decode_rle
from sama.drawing.regions import draw_region
from sama.drawing.sheets import caption_band, contact_sheet, stack_images, title_band
from sama.objects_sama import MaskTrack, Region
from sama.overlay_sama import object_color, overlay_masks
from sama.prompts_sama import parse_tagged_text
from sama.video_sama import SamaVideo


CASES, COLUMNS, TILE_WIDTH = 3, 4, 260
MAX_TILE_HEIGHT, MAX_LINES = 200, 3  # of a frame, and of a question or an answer
MIN_WIDTH = 640  # pixels
MAX_CASE_HEIGHT = 900  # pixels; of a long conversation, only some turns are drawn
REFERENCE = "Reference: "


def write_gallery(
    folder: Path, benchmark: Benchmark, samples: Sequence[Measures], read: Callable[[list[str]], Sequence[Prediction]]
) -> list[Path]:
    """
    Writes `best.png`, `median.png` and `worst.png`, ranked by `Measures.value`. Samples without a value are left out.

    Args:
        folder (`Path`): Created if necessary.
        benchmark ([`Benchmark`]): Provides videos and questions. The questions of a group are built once.
        samples (sequence of [`Measures`]): The scored predictions.
        read (`Callable`): Maps ids of questions to their predictions, in the same order.
    """
    ranked = sorted((sample for sample in samples if sample.value is not None), key=lambda one: -one.value)
    middle = max(0, (len(ranked) - CASES) // 2)
    selected = {"best": ranked[:CASES], "median": ranked[middle : middle + CASES], "worst": ranked[-CASES:][::-1]}
    cases = {sample.question: sample for chosen in selected.values() for sample in chosen}
    sheets = draw_cases(benchmark, list(cases.values()), read(list(cases)))
    paths = []
    for name, chosen in selected.items():
        if chosen:
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(folder / f"{name}.png")
            stack_images([sheets[sample.question] for sample in chosen], gap=28).save(paths[-1])
    return paths


def draw_cases(
    benchmark: Benchmark, samples: Sequence[Measures], predictions: Sequence[Prediction]
) -> dict[str, Image.Image]:
    """Question id -> image of the sample; `samples` and `predictions` are parallel."""
    by_group: dict[str, list[tuple[Measures, Prediction]]] = {}
    for sample, prediction in zip(samples, predictions, strict=True):
        by_group.setdefault(sample.group, []).append((sample, prediction))
    sheets = {}
    for group, members in by_group.items():
        questions = {question.id: question for question in benchmark.questions(group)}
        for sample, prediction in members:
            sheets[sample.question] = draw_case(benchmark, questions[sample.question], sample, prediction)
    return sheets


def draw_case(benchmark: Benchmark, question: Question, sample: Measures, prediction: Prediction) -> Image.Image:
    """One sample: its title, and its turns below each other. Of a long conversation, the turns with the lowest values
    are drawn, as many as fit, and at least one."""
    video = benchmark.open(sample.group)
    pairs = list(zip(question.turns, prediction.turns, strict=True))
    blocks: dict[int, Image.Image] = {}
    for number in by_value(sample.turn_values, len(pairs)):
        block = draw_turn(video, *pairs[number])
        if blocks and sum(one.height for one in [*blocks.values(), block]) > MAX_CASE_HEIGHT:
            break
        blocks[number] = block
    numbers, shown = sorted(blocks), ""
    if len(numbers) < len(pairs):
        names = ", ".join(str(number + 1) for number in numbers)
        shown = f", turn{'s' * (len(numbers) > 1)} {names} of {len(pairs)}"
    title = f"{benchmark.name} {sample.question}: {benchmark.headline} {sample.value:.2f}{shown}"
    drawn = [blocks[number] for number in numbers]
    return stack_images([title_band(max(block.width for block in drawn), title), *drawn], gap=4)


def by_value(turn_values: Sequence[float | None], num_turns: int) -> list[int]:
    """Indices of the turns, those with the lowest values first and those without a value last; in reading order if
    values are equal, or if `turn_values` is empty."""
    values = [math.inf if value is None else value for value in turn_values or [None] * num_turns]
    return sorted(range(num_turns), key=values.__getitem__)


def draw_turn(video: SamaVideo | None, turn: BenchmarkTurn, answer: PredictedTurn) -> Image.Image:
    """One turn: frames with the predicted masks, question and answer, then the same frames with the true masks, and
    the reference. The regions of the question are outlined on every frame on which they are visible."""
    text, spans = parse_tagged_text(answer.text)
    objects = [SimpleNamespace(span=span) for _, span in spans]
    found = [item.masks for item in answer.objects]
    frames = [] if video is None else [_frames(video, turn, found, "answer")]
    width = frames[0].width if frames else COLUMNS * (TILE_WIDTH + 6) + 6
    answer_text = text or "(the answer is empty)"
    blocks = [*frames, caption_band(width, turn.text, answer_text, objects, max_lines=MAX_LINES)]
    if turn.reference is not None:
        truth, spans = parse_tagged_text(turn.reference)
        shift = len(REFERENCE)
        marked = [SimpleNamespace(span=(start + shift, end + shift)) for _, (start, end) in spans]
        blocks += [_frames(video, turn, turn.targets, "true")] if turn.targets else []
        blocks.append(caption_band(width, "", REFERENCE + truth, marked, max_lines=MAX_LINES))
    return stack_images(blocks)


def _frames(video: SamaVideo, turn: BenchmarkTurn, tracks: Sequence[RLETrack], name: str) -> Image.Image:
    numbers = key_frames(video, turn)
    frames = [_draw(video, number, turn.regions, tracks) for number in numbers]
    captions = [name if video.is_image else f"{name}, frame {number}" for number in numbers]
    tile_width = max(1, min(TILE_WIDTH, round(MAX_TILE_HEIGHT * video.width / video.height)))
    sheet = contact_sheet(frames, captions, columns=COLUMNS, tile_width=tile_width)
    # Text keeps its room below narrow frames
    return stack_images([sheet, Image.new("RGB", (max(sheet.width, MIN_WIDTH), 0))])


def key_frames(video: SamaVideo, turn: BenchmarkTurn) -> list[int]:
    """Up to `COLUMNS` frame indices: the frames of the regions, and frames spread evenly over those on which a true
    object is visible, or over all frames if there is none."""
    seen = {frame for track in turn.targets for frame, code in enumerate(track) if code is not None}
    frames = sorted(seen) or list(range(len(video)))
    pointed = {
        number for region in turn.regions if isinstance(region, Region) for number in np.atleast_1d(region.frame)
    }
    count = min(max(1, COLUMNS - len(pointed)), len(frames))
    spread = {frames[(2 * step + 1) * len(frames) // (2 * count)] for step in range(count)}
    return sorted({int(number) for number in spread | pointed})[:COLUMNS]


def _draw(video: SamaVideo, number: int, regions: Sequence, tracks: Sequence[RLETrack]) -> np.ndarray:
    """A frame with masks and regions. Small frames are enlarged first, so that lines stay thin."""
    scale = max(1, round(TILE_WIDTH / video.width))
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
    """The part of a region on a frame, enlarged; `None` if there is none."""
    if isinstance(region, MaskTrack):
        return Region(number, mask=_enlarged(region[number], scale)) if region.area(number) else None
    single = next((one for one in region.per_frame() if one.frame == number), None)
    if single is None or single.kind == "mask":
        return single and Region(number, mask=_enlarged(np.asarray(single.mask), scale))
    prompt = (np.asarray(vars(single)[single.kind], dtype=float) * scale).tolist()
    return Region(number, labels=single.labels, **{single.kind: prompt})


def _enlarged(mask: np.ndarray, scale: int) -> np.ndarray:
    return mask.repeat(scale, axis=0).repeat(scale, axis=1)
