"""Chat about a video: questions with regions in, answers with a mask for every grounded phrase out.

A conversation about your own file, one --ask a turn; every <region> in a question takes the next --region:

    python demo.py --video park.mp4 \\
        --ask "What is <region> doing?" --region "frame=10,box=40,60,210,300" \\
        --ask "And <region>?" --region "object=1" --out answer.mp4

Without --ask the questions are read from the terminal, and --example is two conversations about clips that ship:

    python demo.py --video park.mp4
    python demo.py --example

A region is one of these, in pixels of the video and frames counted from 0 (frame=0 may be left out):

    frame=10,box=x1,y1,x2,y2
    frame=10,point=x,y[,point=x,y][,negative=x,y]       points on the thing and beside it
    frame=10,scribble=x,y,x,y,...
    frame=10,mask=FILE.png                              what is not black belongs to the region
    object=2                                            the 2nd object of the answers so far

Written are the video with a colour for every object, a contact sheet (.png) and all masks as COCO RLE (.json).
"""

import argparse
import contextlib
import importlib
import io
import json
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from sama.demo_cli import REGION_MARK, RegionRequest, group_turns, parse_region, read_mask
from sama.drawing.regions import draw_region, label_masks
from sama.drawing.sheets import caption_band, contact_sheet, stack_images
from sama.drawing.terminal import colored_text
from sama.drawing.text import printable
from sama.overlay_sama import object_color, overlay_masks, prepare_output, write_video
from sama.video_sama import SamaVideo


with contextlib.suppress(ImportError):
    import readline  # noqa: F401  (line editing and history at the prompt; Windows has none)

ROOT = Path(__file__).resolve().parent
DEFAULT_MODEL = ROOT / "checkpoints" / "sama-tiny"
EXAMPLES = {  # of a clip that ships, what is asked about it
    ROOT / "assets" / "toy_world.mp4": (
        ("ask", "What is <region>?"),
        ("region", "frame=12,box=48,70,137,159"),
        ("ask", "What does <region> do?"),
        ("region", "object=1"),
        ("ask", "Please segment the red circle."),
    ),
    ROOT / "assets" / "bigbuckbunny.mp4": (
        ("ask", "What is <region> doing?"),
        ("region", "frame=16,box=78,80,332,300"),
        ("ask", "What is <region>, and does it move?"),
        ("region", "frame=30,point=500,200"),
        ("ask", "Please segment everything that moves."),
    ),
}
SHEET_COLUMNS = 4
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


# The conversation


@dataclass
class Turn:
    """One question with its answer; `regions` are the single-frame regions to draw."""

    question: str
    requests: list[RegionRequest]
    regions: list
    reply: object
    first_object: int

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        return [object_color(self.first_object + index) for index in range(len(self.reply.objects))]


@dataclass
class Conversation:
    """
    A chat and all that was said in it. Objects are numbered from 1 over all answers, and keep number and colour.

    Args:
        chat: what `model.start_chat` returned.
        region_type: the `Region` class of the checkpoint's own code.
        max_new_tokens: of one answer.
    """

    chat: object
    region_type: type
    max_new_tokens: int = 512
    turns: list[Turn] = field(default_factory=list)

    @property
    def objects(self) -> list:
        return [item for turn in self.turns for item in turn.reply.objects]

    def ask(self, question: str, requests: list[RegionRequest], streamer=None) -> Turn:
        """Asks one question and remembers the answer."""
        regions = [self._region(request) for request in requests]
        reply = self.chat.ask(
            question,
            regions=regions,
            max_new_tokens=self.max_new_tokens,
            streamer=streamer,
            progress=lambda frames: bar(frames, len(self.chat.video), "tracking"),
        )
        shown = [
            region if request.object_number is None else self._as_read(region)
            for request, region in zip(requests, regions, strict=True)
        ]
        turn = Turn(question, requests, shown, reply, len(self.objects))
        self.turns.append(turn)
        return turn

    def known_region(self, request: RegionRequest) -> RegionRequest:
        """The same, or the first region of the conversation for an object that no answer has: what a model will find
        is not known when an example is written."""
        if request.object_number is None or request.object_number <= len(self.objects):
            return request
        print(f"  (no answer has an object {request.object_number}: about the first region again)")
        return self.turns[0].requests[0]

    def _region(self, request: RegionRequest):
        number, known = request.object_number, len(self.objects)
        if number is not None:
            if number > known:
                raise ValueError(f'There is no object {number} for the region "{request.text}": {known} so far.')
            return self.objects[number - 1]
        values = {
            "box": request.box,
            "points": request.points and list(request.points),
            "labels": request.labels and list(request.labels),
            "scribble": request.scribble and list(request.scribble),
            "mask": request.mask_file and read_mask(request.mask_file),
        }
        return self.region_type(
            frame=request.frame, **{name: value for name, value in values.items() if value is not None}
        )

    def _as_read(self, item):
        """An answer's object on the frame that the model reads it on."""
        frame = self.chat.processor.region_frame(item, self.chat.video)
        return self.region_type(frame=frame, mask=item.track[frame])


def load(arguments: argparse.Namespace) -> tuple:
    """The model and its processor, from a folder or from the Hub."""
    # Imported here: --help and a mistyped region should not wait for torch.
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    if arguments.model == str(DEFAULT_MODEL) and not DEFAULT_MODEL.is_dir():
        raise FileNotFoundError(
            f"The small model is missing: there is no folder {DEFAULT_MODEL}; name another: --model."
        )
    if arguments.model.startswith((".", "/", "~")) and not Path(arguments.model).is_dir():
        raise FileNotFoundError(f"There is no folder {arguments.model} with a model.")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = arguments.device
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise ValueError(f"--device {device} is not available to this torch; use --device auto.")
    dtype = arguments.dtype
    if dtype == "auto" and device == "cpu":
        dtype = "float32"  # half precision saves memory on a CPU, but most CPUs are slower with it
    settings = {}
    if arguments.preset is not None:
        config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=True)
        if "preset" not in config.to_dict():
            raise ValueError(f"The model {arguments.model} has no presets, so --preset cannot be given.")
        settings = {"preset": arguments.preset}
    model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True, dtype=dtype, **settings)
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True, **settings)
    return model.to(device).eval(), processor


def terminal_streamer(processor):
    """Shows an answer while it is written; None where the output is not a terminal, which gets the whole answer."""
    if not sys.stdout.isatty():
        return None
    from transformers import TextStreamer

    class TerminalStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            print(printable(text), end="\n" if stream_end else "", flush=True)

    return TerminalStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


def bar(steps: Iterable, total: int, description: str) -> tqdm:
    """A progress bar that disappears when it is done; none where the output is not a terminal."""
    return tqdm(steps, total=total, desc=description, leave=False, disable=None)


def print_turn(turn: Turn, num_frames: int) -> None:
    """The answer, its phrases in the colours of their masks, and a line for each object."""
    print(colored_text(turn.reply.text, turn.reply.objects, turn.colors) or "(the answer is empty)")
    for index, (item, color) in enumerate(zip(turn.reply.objects, turn.colors, strict=True)):
        label = f" {turn.first_object + index + 1} "
        mark = colored_text(label, [SimpleNamespace(span=(0, len(label)))], [color])
        score = "" if item.score is None else f", score {float(item.score):.2f}"
        visible = len(item.track.visible_frames())
        print(f"  {mark} {printable(item.text) or '(no phrase)'}: visible on {visible} of {num_frames} frames{score}")
    if not turn.reply.objects:
        print("  no mask in this answer")


# The files


def draw_objects(conversation: Conversation, index: int, numbers: Iterable[int]) -> np.ndarray:
    """Frame `index` with the masks of the objects `numbers` (counted from 0)."""
    video, numbers = conversation.chat.video, list(numbers)
    masks = np.zeros((len(numbers), video.height, video.width), dtype=bool)
    for row, number in enumerate(numbers):
        masks[row] = conversation.objects[number].track[index]
    colors = [object_color(number) for number in numbers]
    frame = overlay_masks(video[index], masks, colors)
    return label_masks(frame, masks, [str(number + 1) for number in numbers], colors)


def key_frames(num_frames: int, tracks: list, count: int) -> list[int]:
    """Up to `count` frames, evenly spread over those on which an object is seen (over all frames if none is)."""
    seen = sorted({frame for track in tracks for frame in track.visible_frames()}) or list(range(num_frames))
    count = min(count, len(seen))
    return [seen[(2 * step + 1) * len(seen) // (2 * count)] for step in range(count)]


def draw_turn(conversation: Conversation, turn: Turn) -> Image.Image:
    """One block of the contact sheet: the regions, key frames with masks, question and answer."""
    video, objects = conversation.chat.video, turn.reply.objects
    prompts = {}
    for number, region in enumerate(turn.regions, start=1):
        frame = prompts.get(region.frame, video[region.frame])
        prompts[region.frame] = draw_region(frame, region, str(number) if len(turn.regions) > 1 else None)
    frames, captions = list(prompts.values()), [f"region on frame {frame}" for frame in prompts]
    numbers = range(turn.first_object, turn.first_object + len(objects))
    for index in key_frames(len(video), [item.track for item in objects], SHEET_COLUMNS - len(frames) % SHEET_COLUMNS):
        frames.append(draw_objects(conversation, index, numbers))
        captions.append(f"frame {index}")
    sheet = contact_sheet(frames, captions, columns=SHEET_COLUMNS)
    answer = turn.reply.text or "(the answer is empty)"
    return stack_images([sheet, caption_band(sheet.width, turn.question, answer, objects, turn.colors)])


def describe(conversation: Conversation, model: str, source: str) -> dict:
    """Everything that was said and found, ready for JSON; a mask is null on frames where the object is not seen."""
    video, turns = conversation.chat.video, []
    for turn in conversation.turns:
        objects = [
            {
                "number": turn.first_object + index + 1,
                "phrase": item.text,
                "span": list(item.span),
                "score": None if item.score is None else float(item.score),
                "color": "#{:02x}{:02x}{:02x}".format(*color),
                "masks": [compressed_mask(item.track, frame) for frame in range(len(video))],
            }
            for index, (item, color) in enumerate(zip(turn.reply.objects, turn.colors, strict=True))
        ]
        regions = [request.text for request in turn.requests]
        answer = {"answer": turn.reply.text, "tagged_answer": turn.reply.tagged_text, "objects": objects}
        turns.append({"question": turn.question, "regions": regions, **answer})
    size = {"num_frames": len(video), "height": video.height, "width": video.width}
    return {"model": model, "video": source, "fps": float(video.fps), **size, "turns": turns}


def compressed_mask(track, frame: int) -> dict | None:
    """COCO's compressed RLE of one frame's mask; None when it is empty."""
    if track.area(frame) == 0:
        return None
    rle = coco_mask.frPyObjects(track.to_rle(frame), track.height, track.width)
    return {"size": [track.height, track.width], "counts": rle["counts"].decode("ascii")}


def write_files(conversation: Conversation, out: Path, model: str, source: str) -> list[Path]:
    """The video or picture with all masks, the contact sheet beside it, and the JSON."""
    video, numbers = conversation.chat.video, range(len(conversation.objects))
    files = output_files(out)
    if video.is_image:
        Image.fromarray(draw_objects(conversation, 0, numbers)).save(out)
    else:
        indices = bar(range(len(video)), len(video), "writing")
        write_video(out, (draw_objects(conversation, index, numbers) for index in indices), video.fps)
    stack_images([draw_turn(conversation, turn) for turn in conversation.turns], gap=12).save(files[1])
    files[2].write_text(json.dumps(describe(conversation, model, source)), encoding="utf-8")
    return files


def output_files(out: Path) -> list[Path]:
    return [out, out.with_name(f"{out.stem}_sheet.png"), out.with_name(f"{out.stem}.json")]


# The command line


def converse(conversation: Conversation, streamer) -> None:
    """Reads questions from the terminal until `quit` or the end of the input."""
    print(
        f"Ask about the video; write {REGION_MARK} where you point at something. "
        "quit or Ctrl-D ends and writes the files."
    )
    with contextlib.suppress(EOFError):
        while (question := input("\nquestion> ").strip()) not in ("quit", "exit"):
            if not question:
                continue
            try:
                requests = [read_region(number + 1) for number in range(question.count(REGION_MARK))]
                turn = conversation.ask(question, requests, streamer)
            except (ValueError, FileNotFoundError) as error:
                print(one_line(error))
                continue
            print_turn(turn, len(conversation.chat.video))


def read_region(number: int) -> RegionRequest:
    while True:
        try:
            return parse_region(input(f"region {number} (frame=10,box=x1,y1,x2,y2 or object=1)> "))
        except ValueError as error:
            print(one_line(error))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class InOrder(argparse.Action):
    """Keeps --ask and --region in the order in which they were given."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.script = [*namespace.script, (self.dest, value)]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; `script` holds ("ask" or "region", text) in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", metavar="FILE", help="what to talk about")
    source.add_argument("--image", metavar="FILE", help="a still picture instead")
    source.add_argument("--example", action="store_true", help="three turns about each of the clips that ship")
    parser.add_argument("--ask", action=InOrder, metavar="QUESTION", help="one turn; may be given several times")
    parser.add_argument("--region", action=InOrder, metavar="REGION", help="for the next <region>; see above")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: outputs/answer.mp4 (.png for an image)")
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="folder or Hub name (default: the small model)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of an answer (default: 512; 24 for an untrained model)"
    )
    parser.add_argument("--preset", choices=("published", "consistent"), help="default: the model's own")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(script=[])
    arguments = parser.parse_args(argv)
    if arguments.example and arguments.script:
        parser.error("--example brings its own questions; leave --ask and --region out or name a --video")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        parser.error(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    return arguments


class Task(NamedTuple):
    """A conversation to be held: about which file, written where, and its questions with their regions; none for
    questions from the terminal."""

    source: str
    out: Path
    script: list[tuple[str, list[RegionRequest]]]


def plan(arguments: argparse.Namespace) -> list[Task]:
    """The conversations of the command line, their paths checked before minutes are spent on a model."""
    out = arguments.out or Path("outputs") / ("answer.png" if arguments.image else "answer.mp4")
    suffixes = IMAGE_SUFFIXES if arguments.image else (".mp4",)
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"--out {out} must end in {' or '.join(suffixes)}.")
    if arguments.example:
        tasks = [
            Task(str(clip), out.with_stem(f"{out.stem}_{clip.stem}"), group_turns(script))
            for clip, script in EXAMPLES.items()
        ]
    else:
        tasks = [Task(arguments.video or arguments.image, out, group_turns(arguments.script))]
    for task in tasks:
        check_paths(task)
    return tasks


def check_paths(task: Task) -> None:
    """Raises an error in one sentence for a file that is missing or cannot be written, and for an empty question."""
    if not Path(task.source).is_file():
        raise FileNotFoundError(f"There is no file {task.source}.")
    for path in output_files(task.out):
        if path.exists() and path.samefile(task.source):
            problem = f"would overwrite {task.source}, the file that is asked about"
            raise ValueError(f"--out {task.out} {problem}; name another.")
        prepare_output(path)
    for question, requests in task.script:
        if not question.strip():
            raise ValueError("A question given with --ask is empty.")
        for request in requests:
            if request.mask_file and not Path(request.mask_file).is_file():
                raise FileNotFoundError(f'There is no file {request.mask_file} for the region "{request.text}".')


def check_source(video, arguments: argparse.Namespace) -> None:
    """A video given as an image, or the other way round, before anything is asked about it."""
    if video.is_image != bool(arguments.image):
        given, other = ("--video", "--image") if video.is_image else ("--image", "--video")
        kind = "an image" if video.is_image else "a video"
        raise ValueError(f"{given} {video.name} is {kind}; give it as {other}.")


def run(arguments: argparse.Namespace) -> None:
    """Loads, and holds the conversations."""
    tasks = plan(arguments)
    videos = [SamaVideo.open(task.source) for task in tasks]
    for video in videos:
        check_source(video, arguments)
    model, processor = load(arguments)
    if not model.config.trained:
        print("This model is untrained: its answers and masks are noise, and only show that everything runs.")
    for task, video in zip(tasks, videos, strict=True):
        if len(tasks) > 1:
            print(f"\n{Path(task.source).name}")
        chat = model.start_chat(processor, **{"image" if arguments.image else "video": video})
        hold(task, chat, arguments)


def hold(task: Task, chat, arguments: argparse.Namespace) -> None:
    """One conversation: asks, writes; what was answered before an error is written too."""
    # The chat knows the types of its own copy of the code, which is not the one beside this file.
    types = importlib.import_module(".video_sama", type(chat).__module__.rpartition(".")[0])
    # An untrained model does not know when to stop.
    max_new_tokens = arguments.max_new_tokens or (512 if chat.model.config.trained else 24)
    conversation = Conversation(chat, types.Region, max_new_tokens)
    streamer = terminal_streamer(chat.processor)
    try:
        for number, (question, requests) in enumerate(task.script, start=1):
            print(f"\nTurn {number}: {question}")
            if arguments.example:
                requests = [conversation.known_region(request) for request in requests]
            print_turn(conversation.ask(question, requests, streamer), len(chat.video))
        if not task.script:
            converse(conversation, streamer)
    finally:
        if conversation.turns:
            written = write_files(conversation, task.out, arguments.model, task.source)
            print("\nwritten: " + "  ".join(map(str, written)))


def main(argv: list[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold letters that the terminal cannot show
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"demo.py: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
