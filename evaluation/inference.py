"""Asks a model the questions of a benchmark: a video is opened, encoded and read once for all questions about it."""

import copy
from collections.abc import Callable, Iterator, Sequence

from sama.benchmarks.benchmark import Benchmark, PredictedObject, PredictedTurn, Prediction, Question, Track
from sama.data.masks import to_rle
from sama.objects_sama import MaskTrack
from sama.prompts_sama import check_turn_format
from sama.video_sama import SamaVideo


# Of a video that cannot be read, or a question that cannot be asked; anything else is a bug and stops the run
READING_ERRORS = (OSError, ValueError)


class Interviewer:
    """
    Asks questions and turns the answers into predictions.

    Args:
        model, processor: Of one checkpoint; any model with SAMA's `start_chat`.
        benchmark ([`Benchmark`]): What is asked.
        max_new_tokens (`int`): Of an answer.
    """

    def __init__(self, model, processor, benchmark: Benchmark, max_new_tokens: int):
        self.model, self.processor, self.benchmark = model, processor, benchmark
        self.max_new_tokens = max_new_tokens

    def ask_group(self, group: str, names: Sequence[str]) -> Iterator[tuple[Question | None, Prediction]]:
        """
        The predictions for these questions of a group, in their order, each with its question. If the video or the
        questions cannot be read, all of them fail and there is no question.
        """
        try:
            questions = {question.id: question for question in self.benchmark.questions(group)}
            video = self.benchmark.open(group)
        except READING_ERRORS as error:
            yield from ((None, Prediction(name, error=_one_line(error))) for name in names)
            return
        start = _chats(self.model, self.processor, video)
        for name in names:
            yield questions[name], self.ask(start, video, questions[name])

    def ask(self, start: Callable, video: SamaVideo | None, question: Question) -> Prediction:
        """The answers to one question; `start(layout)` gives a chat about the video with nothing said in it."""
        size = {} if video is None else {"num_frames": len(video), "height": video.height, "width": video.width}
        try:
            chat, turns = start(question.layout), []
            for number, turn in enumerate(question.turns, start=1):
                reply = chat.ask(
                    turn.text,
                    turn.regions,
                    max_new_tokens=self.max_new_tokens,
                    masks=question.masks,
                    do_sample=False,  # some checkpoints say otherwise
                )
                turns.append(PredictedTurn(reply.tagged_text, [_written(phrase) for phrase in reply.objects]))
                if question.history == "reference" and number < len(question.turns):
                    chat.replace_answer(turn.reference)
        except READING_ERRORS as error:
            return Prediction(question.id, error=_one_line(error), **size)
        return Prediction(question.id, turns, **size)


def _chats(model, processor, video: SamaVideo | None) -> Callable:
    """A function from a layout to a chat about the video. Questions of one layout share the chat with its features."""
    chats = {}

    def start(layout: str | None):
        if layout not in chats:
            own = copy.copy(processor)
            own.turn_format = check_turn_format(layout or processor.turn_format)
            kind = "image" if video is not None and video.is_image else "video"
            chats.clear()  # features of a video take memory and disk
            chats[layout] = model.start_chat(own, **{kind: video})
        chats[layout].reset()
        return chats[layout]

    return start


def _written(phrase) -> PredictedObject:
    score = None if phrase.score is None else round(float(phrase.score), 4)
    return PredictedObject(phrase.text, [] if phrase.track is None else encode_track(phrase.track), score)


def encode_track(track: MaskTrack) -> Track:
    """A compressed run-length code for each frame, `None` where the object is not seen."""
    return [to_rle(track.to_rle(frame)) if track.area(frame) else None for frame in range(len(track))]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
