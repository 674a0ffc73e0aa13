"""Runs over a few clips of toy world whose models answer without a server."""

from toy_truth import ToyModels
from worked_example import IMAGE_SIZE, SHOWN, read_rows

from sama.annotation.calls import ModelChoice
from sama.annotation.completions import Completion, CompletionRequest
from sama.annotation.errors import StopError
from sama.annotation.objects import read_scenes
from sama.annotation.pipeline import Run, RunCounts
from sama.annotation.provenance import Origin
from sama.annotation.render import RenderSettings
from sama.annotation.scenes import Scene
from sama.annotation.score import ScoreSettings
from sama.annotation.video import AnnotationSettings
from sama.toy_world.export import RECORDS


SETTINGS = AnnotationSettings(
    RenderSettings(SHOWN, IMAGE_SIZE), scores=ScoreSettings(palette_share=0), origin=Origin(allow_unknown=True)
)


class Models:
    """The models of toy world, as an endpoint. `may_stop`: the test is about a run that ends early."""

    def __init__(self, example, may_stop: bool = False):
        self.models, self.asked = ToyModels(example.truths, example.planted), 0
        self.may_stop = may_stop
        self.stopped: StopError | None = None

    def complete(self, request: CompletionRequest, stage: str = "", record: str = "", cut=None) -> Completion:
        self.asked += 1
        text = self.models.answer({"model": request.model, "messages": request.messages})
        return Completion(text, "stop", None, None, 0.0, 1, request.model)

    def stop(self, error: StopError | None = None) -> None:
        assert self.may_stop, f"The run was stopped: {error}"
        self.stopped = self.stopped or error


def read_clips(example) -> list[Scene]:
    """The clips with their masks."""
    clips = example.folder / "clips"
    return list(read_scenes(clips, clips / RECORDS, "toy"))


def make_run(example, endpoint, revision="", host="a", held_out=None) -> Run:
    """A run whose files are in the example's output folder."""
    example.output.mkdir(exist_ok=True)
    models = {role: ModelChoice(endpoint, role, revision, "yes", host) for role in ("writer", "verifier")}
    return Run(example.output, SETTINGS, models, held_out=held_out)


def annotate(example, endpoint, scenes=None, **about) -> RunCounts:
    """Runs over the clips, or over other scenes. `about`: see [`make_run`]."""
    return make_run(example, endpoint, **about).run(read_clips(example) if scenes is None else scenes, 2)


def rows(example, name: str) -> list[dict]:
    return read_rows(example.output / f"{name}.jsonl")
