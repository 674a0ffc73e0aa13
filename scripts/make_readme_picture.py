"""Draws the two pictures of the documentation: assets/demo.webp and assets/architecture.svg.

    python scripts/make_readme_picture.py                  two questions about assets/toy_world.mp4, answered
    python scripts/make_readme_picture.py --architecture   rooms and import arrows, read from the source files

The architecture is derived from the imports of the repository, and every function that it names is looked up: a name
that no longer exists is an error. tests/test_readme.py compares the committed SVG with what this script writes.
"""

import argparse
import ast
import math
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from sama.drawing.sheets import caption_band, stack_images
from sama.drawing.text import BACKGROUND, BLACK, MUTED, WHITE, font_for
from sama.overlay_sama import Color, overlay_masks
from sama.video_sama import SamaVideo


ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "assets" / "toy_world.mp4"
DEMO, ARCHITECTURE = ROOT / "assets" / "demo.webp", ROOT / "assets" / "architecture.svg"

# The conversation: question, frame and click, in pixels of the clip
QUESTIONS = (
    ("What is <region>?", 8, (107, 114)),
    ("What does <region> do?", 12, (183, 55)),
)


# ---- the animation --------------------------------------------------------------------------------------------------

VIDEO_SIZE, PANEL_WIDTH, TITLE_HEIGHT = 320, 330, 44  # pixels
FRAME_MS, CLICK_MS, READ_MS, LETTER_MS = 125, 900, 1100, 60


class Exchange(NamedTuple):
    """A question with its click, and the recorded answer."""

    question: str
    frame: int
    click: tuple[int, int]
    deltas: list[str]
    answer: str
    objects: tuple


class Shot(NamedTuple):
    """One picture of the animation and how long it stays, in milliseconds."""

    image: Image.Image
    duration: int


def record_conversation(video: SamaVideo) -> tuple[list[Exchange], list[np.ndarray]]:
    """Asks the small model, and returns the exchanges and the masks `(frames, height, width)` of each object."""
    from sama.serving.loading import DEFAULT_MODEL, load_model
    from sama.serving.session import AnswerText, ChatSession, Failed, TextDelta

    model, processor = load_model(str(DEFAULT_MODEL), "cpu", "float32")
    session = ChatSession(model.start_chat(processor, video=video))
    session.chat.min_component_fraction = 0.05  # as the demo
    exchanges = []
    for question, frame, click in QUESTIONS:
        deltas, complete = [], None
        for event in session.ask(question, [{"frame": frame, "points": [click]}]):
            match event:
                case TextDelta(text):
                    deltas.append(text)
                case AnswerText():
                    complete = event
                case Failed(message, cause):
                    raise RuntimeError(message) from cause
        exchanges.append(Exchange(question, frame, click, deltas, complete.text, complete.objects))
    return exchanges, [phrase.masks for phrase in session.objects]


class Stage:
    """Composes one picture: the clip on the left, the conversation on the right."""

    def __init__(self, video: SamaVideo, masks: Sequence[np.ndarray]):
        self.video, self.masks = video, masks

    def frame(self, index: int, num_objects: int) -> Image.Image:
        """A frame of the clip, enlarged, with the masks of the first `num_objects` objects."""
        image = Image.fromarray(self.video[index]).resize((VIDEO_SIZE, VIDEO_SIZE), Image.Resampling.LANCZOS)
        masks = [enlarged(track[index]) for track in self.masks[:num_objects]]
        if masks:
            image = Image.fromarray(overlay_masks(np.array(image), np.stack(masks)))
        return image

    def compose(self, image: Image.Image, bands: Sequence[Image.Image]) -> Image.Image:
        """The picture of a frame that is drawn already, with the conversation's bands beside it."""
        output = Image.new("RGB", (VIDEO_SIZE + PANEL_WIDTH, VIDEO_SIZE), BACKGROUND)
        output.paste(image, (0, 0))
        draw = ImageDraw.Draw(output)
        draw.text((VIDEO_SIZE + 12, 24), "sama-tiny, on a CPU", font=font_for(VIDEO_SIZE, 2), fill=MUTED, anchor="lm")
        if bands:
            output.paste(stack_images(bands, gap=18), (VIDEO_SIZE, TITLE_HEIGHT))
        return output


def enlarged(mask: np.ndarray) -> np.ndarray:
    """A bool mask of shape `(height, width)` at the size of the picture, with smooth edges."""
    image = Image.fromarray(mask.astype(np.uint8) * 255).resize((VIDEO_SIZE, VIDEO_SIZE), Image.Resampling.BICUBIC)
    return np.array(image) >= 128


def band(exchange: Exchange, answer: str = "", complete: bool = False) -> Image.Image:
    """The question, and the answer as far as it is known; phrases have their colours when it is complete."""
    objects = exchange.objects if complete else ()
    colors: list[Color] = [item.color for item in objects]
    return caption_band(PANEL_WIDTH, exchange.question, answer, objects, colors)


def clicked(image: Image.Image, click: tuple[int, int], radius: int) -> Image.Image:
    """The picture with a white disc and ring where the user clicks."""
    image = image.copy()
    draw, scale = ImageDraw.Draw(image), VIDEO_SIZE / 256
    x, y = (value * scale for value in click)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=WHITE, width=3)
    draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=WHITE, outline=BLACK, width=2)
    return image


def shots(video: SamaVideo, exchanges: Sequence[Exchange], masks: Sequence[np.ndarray]) -> Iterator[Shot]:
    """The pictures of the animation in order: play, click, question, answer, and again with masks."""
    stage = Stage(video, masks)
    bands: list[Image.Image] = []
    known = 0
    for exchange in exchanges:
        for index in range(0, exchange.frame):
            yield Shot(stage.compose(stage.frame(index, known), bands), FRAME_MS)
        still = stage.frame(exchange.frame, known)
        for radius in (30, 20, 12):
            yield Shot(stage.compose(clicked(still, exchange.click, radius), bands), FRAME_MS)
        pointed = clicked(still, exchange.click, 12)
        yield Shot(stage.compose(pointed, [*bands, band(exchange)]), CLICK_MS)
        text = ""
        for delta in exchange.deltas:
            text += delta
            yield Shot(stage.compose(pointed, [*bands, band(exchange, text)]), LETTER_MS)
        bands.append(band(exchange, exchange.answer, complete=True))
        known += len(exchange.objects)
        shown = stage.frame(exchange.frame, known)
        yield Shot(stage.compose(shown, bands), READ_MS)
        if exchange is exchanges[-1]:
            for index in range(len(video)):
                yield Shot(stage.compose(stage.frame(index, known), bands), FRAME_MS)
    yield Shot(stage.compose(stage.frame(len(video) - 1, known), bands), READ_MS)


def draw_demo(path: Path) -> None:
    """Writes the animated picture."""
    video = SamaVideo.open(str(CLIP))
    exchanges, masks = record_conversation(video)
    images, durations = zip(*shots(video, exchanges, masks), strict=True)
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=list(durations), loop=0, quality=72, method=4
    )


# ---- the architecture -----------------------------------------------------------------------------------------------


class Box(NamedTuple):
    """A step of a walk: what it does, the code that does it as `file:name`, and its place in columns and rows."""

    title: str
    code: str
    column: float
    row: float


MODEL = {  # click to mask: the boxes, and below the arrows between them
    "turn": Box("question, regions, frames to tensors", "processing_sama.py:SamaProcessor.encode_turn", 0, 1),
    "vision": Box("vision tower: frames to patches", "modeling_sama.py:SamaModel.encode_frames", 1, 0),
    "click": Box("click, box, scribble to mask", "modeling_sama.py:SamaModel.fill_region_prompts", 1, 2),
    "context": Box("spatial and temporal Q-Former", "modeling_sama_aggregator.py:SamaContextAggregator", 2, 0),
    "regions": Box("region features and shape", "modeling_sama_aggregator.py:SamaRegionEncoder", 2, 2),
    "language": Box("language model: text and [SEG]", "modeling_sama.py:SamaForConditionalGeneration.generate", 3, 1),
    "track": Box(
        "tracker: [SEG] states to masks", "modeling_sama.py:SamaForConditionalGeneration.segment_video", 4, 2
    ),
    "answer": Box("phrases with mask tracks", "processing_sama.py:SamaProcessor.post_process_answer", 4, 0),
}
MODEL_ARROWS = (
    ("turn", "vision"), ("turn", "click"), ("vision", "context"), ("vision", "language"), ("vision", "regions"),
    ("click", "regions"), ("regions", "context"), ("regions", "language"), ("context", "language"),
    ("language", "track"), ("language", "answer"), ("track", "answer"),
)  # fmt: skip

TRAINING = (  # YAML to loss
    Box("YAML to sources and weights", "data/mixture.py:load_mixture", 0, 0),
    Box("an index to a record", "data/mixture.py:Mixture", 1, 0),
    Box("a record to messages and masks", "data/rendering.py:Renderer", 2, 0),
    Box("samples to a batch", "data/collator.py:SamaCollator", 3, 0),
    Box("logits, masks, losses", "modeling_sama.py:SamaForConditionalGeneration.forward", 4, 0),
)
SERVING = (  # browser to answer
    Box("who asks, and how much", "serving/security.py:KeyGuard", 0, 0),
    Box("messages to a question", "serving/requests.py:ConversationReader", 1, 0),
    Box("the longest known beginning", "serving/conversations.py:ConversationCache", 2, 0),
    Box("one step, then the next in line", "serving/scheduling.py:DeviceSchedule", 3, 0),
    Box("events to JSON and streams", "serving/answers.py:Answer", 4, 0),
)
EVALUATION = (  # question to row
    Box("files to questions", "benchmarks/benchmark.py:Benchmark", 0, 0),
    Box("questions to answers", "evaluation/inference.py:PredictionRunner", 1, 0),
    Box("answers kept in a file", "evaluation/predictions.py:PredictionFiles", 2, 0),
    Box("an answer to its measures", "benchmarks/benchmark.py:Benchmark.measure", 3, 0),
    Box("measures to rows of a table", "evaluation/report.py:write_report", 4, 0),
)

# What each room is for. Programs (scripts, recipes, profiling, tests, cli) may import every room and are not drawn.
ROOMS = {
    "demo": "terminal chat", "serve": "page and HTTP server", "train": "training run",
    "train_grpo": "reinforcement", "evaluate": "benchmark run",
    "annotate": "annotation run", "annotation": "videos to checked records",
    "serving": "session, engine, server, page", "evaluation": "ask, keep, score, show",
    "bulk": "many videos, pools, exports",
    "training": "arguments, trainer", "benchmarks": "questions and protocols",
    "conversion": "foreign checkpoints to ours",
    "drawing": "overlays, sheets, galleries", "data": "annotation files to batches", "metrics": "pure functions",
    "resources": "files that ship", "toy_world": "the generated world", "model code": "*_sama.py",
}  # fmt: skip
MODEL_FILES = {
    "modeling_sama": "forward, generate, segment_video", "processing_sama": "messages to tensors and back",
    "chat_sama": "state between turns", "modeling_sama_aggregator": "frames to context tokens",
    "modeling_sama_backbones": "the vision-language model behind it",
    "modeling_sama_tracker": "[SEG] to masks through time", "losses_sama": "pure functions",
    "modeling_sama_memory": "a frame conditioned on memory",
    "inputs_sama": "what a batch shows and points at", "encoding_sama": "tensors of a conversation",
    "prompts_sama": "tags, turns, answers", "templates_sama": "turn formats, chat templates",
    "objects_sama": "regions, tracks, phrases", "overlay_sama": "masks on frames, video files",
    "video_sama": "videos, choice of frames", "video_readers_sama": "frames of video files",
    "mp4_sama": "headers of MP4 files", "pictures_sama": "stills and animations",
    "configuration_sama": "what the model is", "versions_sama": "supported transformers",
    "messages_sama": "messages read and checked", "regions_sama": "forms of regions and masks",
    "rendered_text_sama": "template text read back", "streaming_sama": "answers without tags, streamed",
    "checkpointing_sama": "what training keeps",
    "generation_sama": "answers decoded in one batch",
    "feature_store_sama": "kept features of frames", "tracking_sama": "masks, prompts, memory",
    "frame_encoder_sama": "frames encoded ahead", "prefetch_sama": "threads ahead and behind",
    "pixels_sama": "resized and normalised frames",
}  # fmt: skip
PROGRAMS = {"cli", "scripts", "recipes", "profiling", "tests", "docs", "__init__"}

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 216, 46, 30, 34, 24
COLORS = ("#eef4ff", "#3b6fd4", "#1a2233", "#5a6680")  # fill, border, text, small text


def imported_parts(path: Path, root: Path = ROOT) -> set[str]:
    """The modules and packages at the root that a source file imports."""
    found, folders = set(), path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        names = (node.module or "").split(".") if node.module else [alias.name for alias in node.names]
        if node.level:
            found.add([*folders[: len(folders) - node.level + 1], *names][0])
        elif names[0] == "sama":
            found |= {names[1]} if len(names) > 1 else {alias.name for alias in node.names}
    return found


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """Every file and folder of the root that holds Python code -> those that it imports; programs are left out."""
    graph = {}
    parts = [*root.glob("*.py"), *(path.parent for path in root.glob("*/__init__.py"))]
    for part in sorted(parts):
        if part.stem not in PROGRAMS:
            files = sorted(part.rglob("*.py")) if part.is_dir() else [part]
            graph[part.stem] = set().union(*(imported_parts(file, root) for file in files)) - {part.stem}
    return graph


def rooms_and_model_files(graph: dict[str, set[str]]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The graph between rooms, where the model code is one of them, and the graph between the model's files."""
    own = {name for name in graph if "_sama" in name}
    rooms = {
        name: {"model code" if target in own else target for target in targets}
        for name, targets in graph.items()
        if name not in own
    }
    rooms["model code"] = set()
    files = {name: graph[name] & own for name in own}
    for drawn, described in ((rooms, ROOMS), (files, MODEL_FILES)):
        if missing := sorted(drawn.keys() - described.keys()):
            raise ValueError(f"scripts/make_readme_picture.py does not describe {', '.join(missing)}.")
    return rooms, files


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """What `start` imports, directly or through others."""
    found, waiting = set(), [start]
    while waiting:
        for target in graph[waiting.pop()] - found:
            found.add(target)
            waiting.append(target)
    return found


def without_detours(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The graph without the arrows that follow from others, so that it can be read."""
    below = {name: reachable(graph, name) for name in graph}
    return {
        name: {target for target in targets if not any(target in below[other] for other in targets - {target})}
        for name, targets in graph.items()
    }


def layered(graph: dict[str, set[str]], texts: dict[str, str], columns: int) -> dict[str, Box]:
    """Places for the nodes of a graph: each above all that it imports, in the order of `texts` within a row. Nodes of
    one height that do not fit into `columns` take several rows."""
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max(map(height, sorted(graph[name])), default=-1)
        return heights[name]

    rows = []
    for level in range(max(map(height, graph)), -1, -1):
        names = [name for name in texts if heights.get(name) == level]
        num_rows = math.ceil(len(names) / columns)
        rows += [
            names[number * len(names) // num_rows : (number + 1) * len(names) // num_rows]
            for number in range(num_rows)
        ]
    return {
        name: Box(texts[name], name, place + (columns - len(row)) / 2, number)
        for number, row in enumerate(rows)
        for place, name in enumerate(row)
    }


def check_code(code: str, root: Path = ROOT) -> str:
    """`file:Class.method` as it is shown; raises `ValueError` if the file has no such class or function."""
    file, _, name = code.partition(":")
    body = ast.parse((root / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part]
        if not found:
            raise ValueError(f"The architecture names {name}, but {file} has no {part}. Was it renamed?")
        body = found[0].body
    return name


def corner(box: Box, top: float) -> tuple[float, float]:
    """The top left of a box in pixels, in a panel that starts at `top`."""
    return MARGIN + box.column * (BOX_WIDTH + GAP_X), top + box.row * (BOX_HEIGHT + GAP_Y)


def draw_box(box: Box, code: str, top: float) -> str:
    """A box with two lines of text: bold the code, below it what it does."""
    (x, y), (fill, border, text, small) = corner(box, top), COLORS
    size = 12 if len(code) <= 28 else 10 if len(code) <= 34 else 8.5
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7" fill="{fill}" stroke="{border}"/>'
        f'<text x="{x + BOX_WIDTH / 2:g}" y="{y + 19:g}" font-size="{size}" font-weight="bold" fill="{text}" '
        f'text-anchor="middle">{escape(code)}</text>'
        f'<text x="{x + BOX_WIDTH / 2:g}" y="{y + 36:g}" font-size="11" fill="{small}" '
        f'text-anchor="middle">{escape(box.title)}</text>'
    )


def draw_arrow(start: Box, end: Box, top: float) -> str:
    """An arrow between two boxes: from side to side in neighbouring columns, else from edge to edge of the rows."""
    (x1, y1), (x2, y2) = corner(start, top), corner(end, top)
    if start.row == end.row:
        points = (x1 + BOX_WIDTH, y1 + BOX_HEIGHT / 2, x2, y2 + BOX_HEIGHT / 2)
    elif start.row < end.row:
        points = (x1 + BOX_WIDTH / 2, y1 + BOX_HEIGHT, x2 + BOX_WIDTH / 2, y2)
    else:
        points = (x1 + BOX_WIDTH / 2, y1, x2 + BOX_WIDTH / 2, y2 + BOX_HEIGHT)
    x1, y1, x2, y2 = points
    return f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{COLORS[1]}" fill="none" marker-end="url(#tip)"/>'


def heading(text: str, y: float) -> str:
    return f'<text x="{MARGIN}" y="{y:g}" font-size="15" font-weight="bold" fill="{COLORS[2]}">{escape(text)}</text>'


def architecture() -> str:
    """The picture as the text of an SVG file."""
    graphs = rooms_and_model_files(import_graph())
    panels = [("Click to mask", MODEL, MODEL_ARROWS)]
    walks = (("Browser to answer", SERVING), ("YAML to loss", TRAINING), ("Question to row", EVALUATION))
    for title, steps in walks:
        boxes = {box.code: box for box in steps}
        panels.append((title, boxes, tuple(zip(list(boxes)[:-1], list(boxes)[1:], strict=True))))
    titles = ("Rooms: who imports whom", "The model code, which travels with every checkpoint: who imports whom")
    for title, graph, texts in zip(titles, graphs, (ROOMS, MODEL_FILES), strict=True):
        short = without_detours(graph)
        arrows = tuple((name, target) for name in sorted(graph) for target in sorted(short[name]))
        panels.append((title, layered(graph, texts, columns=5), arrows))
    parts, y = [], MARGIN + 12.0
    for title, boxes, arrows in panels:
        parts.append(heading(title, y))
        top = y + 16
        parts += [draw_arrow(boxes[start], boxes[end], top) for start, end in arrows]
        parts += [draw_box(box, check_code(box.code) if ":" in box.code else box.code, top) for box in boxes.values()]
        y = top + (max(box.row for box in boxes.values()) + 1) * (BOX_HEIGHT + GAP_Y) + 20
    width = 2 * MARGIN + 5 * BOX_WIDTH + 4 * GAP_X
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y:g}" '
        'font-family="Helvetica, Arial, sans-serif">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{COLORS[1]}"/></marker></defs>'
        '<rect width="100%" height="100%" fill="#ffffff"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", action="store_true", help="draw the architecture instead of the demo")
    parser.add_argument("--to", type=Path, help="output file (default: the file in assets/)")
    arguments = parser.parse_args(argv)
    path = arguments.to or (ARCHITECTURE if arguments.architecture else DEMO)
    if arguments.architecture:
        path.write_text(architecture(), encoding="utf-8")
    else:
        draw_demo(path)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
