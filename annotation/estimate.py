"""What a run would cost, before anything is asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..data.frames import MEDIA_ERRORS
from ..data.json_text import without_surrogates
from . import prompts
from .calls import ModelChoice
from .completions import CompletionRequest, Usage
from .costs import Price
from .endpoint import estimate_tokens
from .held_out import HeldOut
from .render import render, shown_frames
from .scenes import BrokenScene, Scene, writable
from .schema import Descriptions, Dialogue, Verdicts, json_schema
from .video import AnnotationSettings, objects_to_annotate


ANSWER_TOKENS = 1500  # of a description, a dialogue or a list of verdicts: an assumption
REFINED_SHARE = 0.3  # of the replies that are sent back: an assumption
TEXT_TOKENS = 1000  # of a question without the video, with its answer: an assumption


@dataclass
class Estimate:
    """
    Sums over all videos.

    Attributes:
        videos (`int`): Videos that can be annotated.
        problems (`list[tuple[str, str]]`): Id of each other video, and why it cannot.
        usage (`dict[str, Usage]`): Tokens by role.
    """

    videos: int
    problems: list[tuple[str, str]]
    usage: dict[str, Usage]

    def money(self, models: Mapping[str, ModelChoice], prices: Mapping[str, Price]) -> float | None:
        """The price of the tokens; `None` if a model has none."""
        if not all(model.name in prices for model in models.values()):
            return None
        return sum(prices[models[role].name].of(usage) for role, usage in self.usage.items())


def estimate_run(
    scenes: Iterable[Scene | BrokenScene],
    settings: AnnotationSettings,
    models: Mapping[str, ModelChoice],
    held_out: HeldOut | None = None,
) -> Estimate:
    """
    The tokens of a run. The pictures are drawn and the prompts written; how long answers are, and how often they are
    sent back, is assumed. Videos are refused as in the run: for their files, licences, terms of the models, and where
    they are held out.
    """
    found = Estimate(0, [], {role: Usage() for role in models})
    for scene in map(writable, scenes):
        try:
            if isinstance(scene, BrokenScene):
                raise scene.error
            settings.origin.check(scene, models)
            if held_out is not None:
                held_out.check(scene)
            writer, verifier = _image_calls(scene, settings)
        except MEDIA_ERRORS as error:
            found.problems.append((scene.id, without_surrogates(" ".join(str(error).split()))))
            continue
        found.videos += 1
        for role, prompt in (("writer", writer), ("verifier", verifier)):
            refined = 2 * REFINED_SHARE * settings.rounds
            again = round(refined * (prompt / 2 + ANSWER_TOKENS))
            completion = round((2 + refined) * ANSWER_TOKENS)
            found.usage[role] += Usage(prompt=prompt + again, completion=completion)
        if "blind" in models:
            tokens = settings.scores.blind_tries * TEXT_TOKENS
            found.usage["blind"] += Usage(prompt=tokens // 2, completion=tokens // 2)
            found.usage["verifier"] += Usage(prompt=tokens, completion=tokens // 10)
    return found


def _image_calls(scene: Scene, settings: AnnotationSettings) -> tuple[int, int]:
    """Prompt tokens of the description and the dialogue, and of the two verifications of a video."""
    video = scene.open()
    objects = objects_to_annotate(scene, shown_frames(len(video), settings.rendering.frames))[0]
    rendering = render(scene.id, video, objects, settings.rendering)
    expressions = [one.expressions for one in objects]
    turns = settings.limits.turns_for(len(objects))
    requests = [
        (prompts.describe(rendering, expressions), Descriptions),
        (prompts.converse(rendering, expressions, {}, turns), Dialogue),
        (prompts.verify(rendering, []), Verdicts),
    ]
    tokens = [
        estimate_tokens(CompletionRequest("", messages, json_schema(form))).prompt for messages, form in requests
    ]
    # The dialogue is written about what the descriptions say
    return tokens[0] + tokens[1] + ANSWER_TOKENS, 2 * (tokens[2] + ANSWER_TOKENS)
