"""Asks a model the questions of a benchmark. A video is opened and encoded once for all questions about it."""

import copy
from collections.abc import Callable, Iterator, Sequence

from sama.benchmarks.benchmark import Benchmark, PredictedObject, PredictedTurn, Prediction, Question, RLETrack
from sama.data.masks import frame_code
from sama.data.records import describe_error
from sama.objects_sama import MaskTrack
from sama.templates_sama import check_turn_format
from sama.video_sama import SamaVideo


# A video that cannot be read or a question that cannot be asked. Any other exception is a bug and ends the run
READING_ERRORS = (OSError, ValueError)


class PredictionRunner:
    """
    Asks the questions of a benchmark and returns predictions.

    Args:
        model, processor: A checkpoint; any model with SAMA's `start_chat` works.
        benchmark ([`Benchmark`]): The source of the questions.
        max_new_tokens (`int`): Maximum length of an answer.
    """

    def __init__(self, model, processor, benchmark: Benchmark, max_new_tokens: int):
        self.model, self.processor, self.benchmark = model, processor, benchmark
        self.max_new_tokens = max_new_tokens

    def ask_group(self, group: str, names: Sequence[str]) -> Iterator[tuple[Question | None, Prediction]]:
        """
        Yields the named questions of a group with their predictions. If the video or the questions cannot be read, all
        predictions fail and the questions are `None`.
        """
        try:
            questions = {question.id: question for question in self.benchmark.questions(group)}
            video = self.benchmark.open(group)
        except READING_ERRORS as error:
            yield from ((None, Prediction(name, error=describe_error(error))) for name in names)
            return
        start = _chats(self.model, self.processor, video)
        for name in names:
            yield questions[name], self.ask(start, video, questions[name])

    def ask(self, start: Callable, video: SamaVideo | None, question: Question) -> Prediction:
        """The answers to one question; `start(layout)` returns an empty chat about the video."""
        if question.error is not None:
            return Prediction(question.id, error=question.error)
        size = {} if video is None else {"num_frames": len(video), "height": video.height, "width": video.width}
        try:
            chat, turns = start(question.layout), []
            if question.system:
                chat.add_messages([{"role": "system", "content": text} for text in question.system])
            for number, turn in enumerate(question.turns, start=1):
                reply = chat.ask(
                    turn.text,
                    turn.regions,
                    max_new_tokens=self.max_new_tokens,
                    masks=question.masks,
                    do_sample=False,  # the generation config of a checkpoint may enable sampling
                )
                turns.append(PredictedTurn(reply.tagged_text, [_written(phrase) for phrase in reply.objects]))
                if question.history == "reference" and number < len(question.turns):
                    chat.replace_answer(turn.reference)
        except READING_ERRORS as error:
            return Prediction(question.id, error=describe_error(error), **size)
        return Prediction(question.id, turns, **size)


def _chats(model, processor, video: SamaVideo | None) -> Callable:
    """A function that maps a turn format to an empty chat about the video. Consecutive questions with the same format
    share a chat and its features."""
    chats = {}

    def start(layout: str | None):
        turn_format = check_turn_format(layout or processor.turn_format)
        if turn_format not in chats:
            own = copy.copy(processor)
            own.turn_format = turn_format
            kind = "image" if video is not None and video.is_image else "video"
            chats.clear()  # one chat at a time: the features of a video are large
            chats[turn_format] = model.start_chat(own, **{kind: video})
        chats[turn_format].reset()
        return chats[turn_format]

    return start


def _written(phrase) -> PredictedObject:
    score = None if phrase.score is None else round(float(phrase.score), 4)
    return PredictedObject(phrase.text, [] if phrase.track is None else encode_track(phrase.track), score)


def encode_track(track: MaskTrack) -> RLETrack:
    """One compressed COCO RLE per frame, `None` if the object is not visible."""
    return [frame_code(track, frame) for frame in range(len(track))]
