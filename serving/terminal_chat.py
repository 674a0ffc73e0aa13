"""A conversation in the terminal: asks, prints answers as they are generated, and writes them to files."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

from sama.drawing.terminal import colored_text
from sama.drawing.text import printable
from sama.prompts_sama import REGION_WORD
from sama.serving.answer_files import EMPTY_ANSWER, write_answer_files
from sama.serving.region_arguments import REGION_FORMS, RegionArgument, check_region, parse_region
from sama.serving.session import AnswerText, ChatSession, ChatTurn, Done, Failed, MaskFrame, TextDelta, one_sentence


with contextlib.suppress(ImportError):
    import readline  # noqa: F401  (line editing and history at the prompt; not available on Windows)


class TerminalChat:
    """
    Holds a conversation in the terminal.

    Args:
        session ([`ChatSession`])
        repeat_unknown_objects (`bool`, *optional*, defaults to `False`): whether a question about an object that no
            answer has is asked about the first region of the conversation instead. For scripts that were written
            without knowing what a model will find.
    """

    def __init__(self, session: ChatSession, repeat_unknown_objects: bool = False):
        self.session, self.repeat_unknown_objects = session, repeat_unknown_objects
        self.asked: list[list[RegionArgument]] = []  # the regions of each answered question

    def run(self, questions: Sequence[tuple[str, list[RegionArgument]]]) -> None:
        """Asks these questions, or without any reads them from the terminal."""
        for number, (question, regions) in enumerate(questions, start=1):
            print(f"\nTurn {number}: {question}")
            if self.repeat_unknown_objects:
                regions = [self.known_region(region) for region in regions]
            self.ask(question, regions)
        if not questions:
            self.ask_from_terminal()

    def write_files(self, out: Path, record: dict) -> None:
        """Writes the conversation, unless nothing was answered; see [`write_answer_files`]."""
        if self.session.turns:
            texts = [[region.text for region in regions] for regions in self.asked]
            files = write_answer_files(self.session, out, record, texts, lambda frames: bar(frames, "writing"))
            print("\nwritten: " + "  ".join(map(str, files)))

    def ask(self, question: str, regions: list[RegionArgument]) -> None:
        """Asks one question and prints its answer; raises the error of a question that fails."""
        streams, num_frames = sys.stdout.isatty(), len(self.session.chat.video)
        with contextlib.ExitStack() as stack:
            for event in stack.enter_context(self.session.ask(question, [region.region() for region in regions])):
                match event:
                    case TextDelta() if streams:
                        print(printable(event.text), end="", flush=True)
                    case AnswerText():
                        print("\n" * streams, end="")
                        progress = stack.enter_context(bar(range(num_frames), "tracking"))
                    case MaskFrame():
                        progress.update()
                    case Done():
                        progress.close()
                        self.asked.append(regions)
                        print_turn(event.turn, num_frames)
                    case Failed():
                        raise event.cause

    def known_region(self, region: RegionArgument) -> RegionArgument:
        """The region, or the first one of the conversation for an object that no answer has."""
        number, known = region.values.get("object"), len(self.session.objects)
        if number is None or number <= known:
            return region
        print(f"  (no answer has an object {number}: about the first region again)")
        return self.asked[0][0]

    def ask_from_terminal(self) -> None:
        """Reads questions until `quit` or the end of the input."""
        print(
            f"Ask about the video; write {REGION_WORD} where you point at something. "
            "quit or Ctrl-D ends and writes the files.\n"
            f"A {REGION_WORD} is one of these, in pixels and frames counted from 0:\n{REGION_FORMS}"
        )
        with contextlib.suppress(EOFError):
            while (question := input("\nquestion> ").strip()) not in ("quit", "exit"):
                if not question:
                    continue
                try:
                    self.ask(question, [self.read_region(number + 1) for number in range(question.count(REGION_WORD))])
                except (ValueError, FileNotFoundError) as error:
                    print(one_sentence(error))

    def read_region(self, number: int) -> RegionArgument:
        """Reads a region from the terminal, again and again until it can be parsed and lies in the video."""
        while True:
            try:
                region = parse_region(input(f"region {number}> "))
                check_region(region, self.session.chat.video, len(self.session.objects))
                return region
            except (ValueError, FileNotFoundError) as error:
                print(one_sentence(error))


def print_turn(turn: ChatTurn, num_frames: int) -> None:
    """Prints the answer with its phrases in the colours of their masks, and a line for each object."""
    objects, phrases = turn.objects, turn.reply.objects
    print(colored_text(turn.reply.text, phrases, [item.color for item in objects]) or EMPTY_ANSWER)
    for item, phrase in zip(objects, phrases, strict=True):
        label = f" {item.number} "
        badge = colored_text(label, [SimpleNamespace(span=(0, len(label)))], [item.color])
        score = "" if phrase.score is None else f", score {float(phrase.score):.2f}"
        visible = len(phrase.track.visible_frames())
        name = printable(phrase.text) or "(no phrase)"
        print(f"  {badge} {name}: visible on {visible} of {num_frames} frames{score}")
    if not objects:
        print("  no mask in this answer")


def bar(frames: range, description: str) -> tqdm:
    """A progress bar that disappears when it is complete; invisible where the output is not a terminal."""
    return tqdm(frames, desc=description, leave=False, disable=None)
