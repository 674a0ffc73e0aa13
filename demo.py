"""Chat about a video: ask questions that point at regions, get answers with a mask for every grounded phrase.

A conversation about your own file, one --ask per turn; each <region> in a question takes the next --region:

    python demo.py --video park.mp4 \\
        --ask "What is <region> doing?" --region "frame=10,box=40,60,210,300" \\
        --ask "And <region>?" --region "object=1" --out answer.mp4

Without --ask, questions are read from the terminal; --example runs a conversation about a clip that ships:

    python demo.py --video park.mp4
    python demo.py --example

A region is one of these, in pixels of the video and frames counted from 0 (frame=0 may be omitted):

    frame=10,box=x1,y1,x2,y2
    frame=10,point=x,y[,point=x,y][,negative=x,y]       points on the object and outside it
    frame=10,scribble=x,y,x,y,...
    frame=10,mask=FILE.png                              all that is neither black nor transparent
    object=2                                            the 2nd object of the answers so far

The output is the video with each object in its colour, a contact sheet (.png) and all masks as COCO RLE (.json).
"""

import argparse
import io
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sama.data.files import user_path
from sama.pictures_sama import existing_path
from sama.resources import EXAMPLE_CLIPS
from sama.serving.loading import DEFAULT_MODEL, load_model
from sama.serving.settings import add_model_options, check_model_options, component_fraction


# What imports torch is imported by the functions that need it, so that --help and mistakes do not wait for it.
if TYPE_CHECKING:
    from sama.serving.region_arguments import RegionArgument


EXAMPLES = {  # clip -> what is asked about it
    EXAMPLE_CLIPS / "toy_world.mp4": (
        ("ask", "What is <region>?"),
        ("region", "frame=12,box=48,70,137,159"),
        ("ask", "What does <region> do?"),
        ("region", "object=1"),
        ("ask", "Please segment the red circle."),
    ),
}
SMALL_MODEL_NOTE = (
    "sama-tiny knows generated clips of coloured shapes only: it names them, says how they move, and tracks them.\n"
    "On a real video, its words and masks are meaningless; --model takes a converted checkpoint (docs/checkpoints.md)."
)


class Conversation(NamedTuple):
    """A conversation to run: its video or image, its output file, and its questions with their regions; without
    questions, they are read from the terminal."""

    source: str
    out: Path
    questions: "list[tuple[str, list[RegionArgument]]]"


def run(arguments: argparse.Namespace) -> None:
    """Checks everything that can be checked without the model, loads it and runs the conversations."""
    from sama.serving.session import ChatSession
    from sama.serving.terminal_chat import TerminalChat
    from sama.video_sama import SamaVideo

    conversations = planned_conversations(arguments)
    videos = [SamaVideo.open(conversation.source) for conversation in conversations]
    for video in videos:
        if video.is_image != bool(arguments.image):
            given, other = ("--video", "--image") if video.is_image else ("--image", "--video")
            kind = "an image" if video.is_image else "a video"
            raise ValueError(f"{given} {video.name} is {kind}; give it as {other}.")
    check_regions(conversations, videos)
    if user_path(arguments.model).resolve() == DEFAULT_MODEL.resolve():
        print(SMALL_MODEL_NOTE)
    settings = (arguments.device, arguments.dtype, arguments.preset, arguments.trust_remote_code)
    model, processor = load_model(arguments.model, *settings, arguments.memory_pool, arguments.compile)
    if not model.config.trained:
        print("This model is untrained: its answers and masks are noise and only show that everything runs.")
    # An untrained model does not know when to stop.
    max_new_tokens = arguments.max_new_tokens or (512 if model.config.trained else 24)
    for conversation, video in zip(conversations, videos, strict=True):
        if len(conversations) > 1:
            print(f"\n{Path(conversation.source).name}")
        chat = model.start_chat(processor, **{"image" if arguments.image else "video": video})
        chat.min_component_fraction = component_fraction(arguments.min_component_fraction, model.config.preset)
        terminal = TerminalChat(ChatSession(chat, max_new_tokens), repeat_unknown_objects=arguments.example)
        try:
            terminal.run(conversation.questions)
        finally:  # the turns before an error are written too
            terminal.write_files(conversation.out, {"model": arguments.model, "video": conversation.source})


def check_regions(conversations: list[Conversation], videos: list) -> None:
    """Raises an error for a region that does not lie in its video, before time is spent on the model."""
    from sama.serving.region_arguments import check_region

    for conversation, video in zip(conversations, videos, strict=True):
        for number, (_, regions) in enumerate(conversation.questions):
            for region in regions:
                # How many objects the answers will have is not known, but there is none before the first
                check_region(region, video, sys.maxsize if number else 0)


def planned_conversations(arguments: argparse.Namespace) -> list[Conversation]:
    """The conversations that the command line asks for; raises an error for files and questions that cannot work."""
    from sama.serving.answer_files import check_output
    from sama.serving.region_arguments import group_questions

    out = arguments.out or Path("outputs") / ("answer.png" if arguments.image else "answer.mp4")
    if arguments.example:
        planned = [
            Conversation(str(clip), out.with_stem(f"{out.stem}_{clip.stem}"), group_questions(script))
            for clip, script in EXAMPLES.items()
        ]
    else:
        source = arguments.image if arguments.video is None else arguments.video
        planned = [Conversation(source, out, group_questions(arguments.script))]
    for source, path, questions in planned:
        existing_path(source)
        check_output(path, source, bool(arguments.image))
        for question, regions in questions:
            if not question.strip():
                raise ValueError("A question given with --ask is empty.")
            for region in regions:
                if region.mask_file and not Path(region.mask_file).is_file():
                    raise FileNotFoundError(f'There is no file {region.mask_file} for the region "{region.text}".')
    return planned


class InOrder(argparse.Action):
    """Keeps --ask and --region in the order in which they are given."""

    def __call__(self, parser, namespace, value, option_string=None):
        namespace.script = [*namespace.script, (self.dest, value)]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `script` is a list of ("ask", text) and ("region", text) in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--video", metavar="FILE", help="the video to talk about, or a folder of its frames")
    source.add_argument("--image", metavar="FILE", help="an image instead of a video")
    source.add_argument("--example", action="store_true", help="three turns about a clip that ships")
    parser.add_argument("--ask", action=InOrder, metavar="QUESTION", help="one turn; may be given several times")
    parser.add_argument("--region", action=InOrder, metavar="REGION", help="for the next <region>; see above")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: outputs/answer.mp4 (.png for an image)")
    add_model_options(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of an answer (default: 512; 24 for an untrained model)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(script=[])
    arguments = parser.parse_args(argv)
    if arguments.example and arguments.script:
        parser.error("--example has its own questions; leave --ask and --region out, or name a --video")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        parser.error(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    check_model_options(parser, arguments)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 2 after a mistake of the user, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may not be able to show every character
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    arguments = parse_arguments(argv)
    try:
        run(arguments)
    except (ValueError, OSError, ImportError) as error:
        if arguments.debug:
            raise
        print(f"chat: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
