"""What actors of a pool do, and how their questions reach the process of the run. Without Ray."""

import asyncio
import json
from base64 import b64decode
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from toy_truth import ToyModels
from worked_example import IMAGE_SIZE, SHOWN, make_example

from sama.annotation import pool
from sama.annotation.annotator import Annotator, Checkpoints
from sama.annotation.calls import ModelChoice, Question, StoredReplies
from sama.annotation.completions import Completion, CompletionRequest
from sama.annotation.errors import AnnotationError, BudgetError, PermanentError, TransientError
from sama.annotation.objects import read_scenes
from sama.annotation.pipeline import Run
from sama.annotation.pool import AnnotationWorker, Mailbox, _annotate_window, answering
from sama.annotation.provenance import Origin
from sama.annotation.render import RenderSettings
from sama.annotation.scenes import Scene
from sama.annotation.score import ScoreSettings
from sama.annotation.store import ReplyStore, StoredReply
from sama.annotation.video import AnnotationSettings, VideoResult
from sama.bulk.pool import BulkError, Result
from sama.toy_world.export import RECORDS


SETTINGS = AnnotationSettings(
    RenderSettings(SHOWN, IMAGE_SIZE), scores=ScoreSettings(palette_share=0), origin=Origin(allow_unknown=True)
)


def question(text: str) -> Question:
    return Question(text, "describe", "writer", "v", CompletionRequest("m", [{"role": "user", "content": text}]))


def reply(text: str) -> StoredReply:
    return StoredReply(text, "describe", "", Completion(text, "stop", None, None, 0.0, 1, "m"))


def test_every_actor_gets_the_answer_to_its_own_question():
    async def run():
        mailbox = Mailbox()
        asking = [asyncio.create_task(mailbox.ask(question(text))) for text in "abc"]
        taken = [await mailbox.take() for _ in asking]
        asking[1].cancel()  # its actor was killed
        await asyncio.sleep(0)
        for number, asked in reversed(taken):
            mailbox.answer(number, reply(asked.key.upper()) if asked.key != "c" else TransientError("busy"))
        found = await asyncio.gather(*asking, return_exceptions=True)
        await mailbox.close()
        assert mailbox.stopped() is None
        mailbox.stop(error := PermanentError("no key"))
        assert mailbox.stopped() is error
        return found, await mailbox.take()

    (first, lost, last), end = asyncio.run(run())
    assert first.completion.text == "A" and isinstance(lost, asyncio.CancelledError)
    assert isinstance(last, TransientError) and str(last) == "busy" and end is None


class RayError(Exception):
    """The base of Ray's errors."""


FAKE_RAY = SimpleNamespace(get=lambda result: result, exceptions=SimpleNamespace(RayError=RayError))


class Remote:
    """A method of an actor whose results are there at once."""

    def __init__(self, method):
        self.remote = method


@pytest.mark.parametrize(
    "error, expected, stops",
    [
        (PermanentError("no key"), PermanentError("no key"), True),
        (TransientError("busy"), TransientError("busy"), False),
        (OSError("disk full"), OSError("disk full"), False),
        (KeyError("stage"), AnnotationError("KeyError: 'stage'"), False),  # a defect
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_actor_never_waits_for_an_answer_that_failed(monkeypatch, error, expected, stops):
    questions, answers = iter([(1, question("a")), (2, question("b")), None]), {}

    def replies(asked: Question) -> StoredReply:
        if asked.key == "a":
            raise error
        return reply(asked.key)

    told, stopped = [], []
    mailbox = SimpleNamespace(
        take=Remote(lambda: next(questions)), answer=Remote(answers.__setitem__), close=Remote(lambda: None),
        stop=Remote(told.append),
    )  # fmt: skip
    run = SimpleNamespace(replies=replies, stop_callbacks=[], stop=stopped.append)
    monkeypatch.setattr(pool, "import_ray", lambda: FAKE_RAY)
    with answering(run, mailbox, 2):
        pass
    assert answers[2].completion.text == "b"
    assert type(answers[1]) is type(expected) and str(answers[1]) == str(expected)
    assert stopped == [error] * stops
    run.stop_callbacks[0](error)
    assert told == [error]


def test_a_lost_mailbox_ends_the_run_with_a_sentence(monkeypatch):
    def lost():
        raise RayError("The actor died\nunexpectedly.")

    mailbox = SimpleNamespace(take=Remote(lost), close=Remote(lost), stop=Remote(None))
    monkeypatch.setattr(pool, "import_ray", lambda: FAKE_RAY)
    with pytest.raises(BulkError, match="^Ray lost the process .* is saved. The actor died unexpectedly.$"):
        with answering(SimpleNamespace(stop_callbacks=[]), mailbox, 2):
            pass


@pytest.fixture
def clip(tmp_path):
    """A clip, and its models."""
    example = make_example(tmp_path, 1, 0)
    toy = ToyModels(example.truths, example.planted)

    class Endpoint:
        def complete(self, request, stage="", record="", cut=None):
            text = toy.answer({"model": request.model, "messages": request.messages})
            return Completion(text, "stop", None, None, 0.0, 1, request.model)

        def stop(self, error=None):
            raise AssertionError("nothing is stopped here")

    models = {role: ModelChoice(Endpoint(), role, terms="yes") for role in ("writer", "verifier")}
    (scene,) = read_scenes(example.folder / "clips", example.folder / "clips" / RECORDS, "toy")
    return scene, models, tmp_path


def test_a_scene_is_the_same_after_it_was_sent(clip):
    scene, _, _ = clip
    sent = Scene.from_json(scene.to_json())
    assert sent == replace(scene, objects=sent.objects) and sent.digest() == scene.digest()
    assert [one.visible for one in sent.objects] == [one.visible for one in scene.objects]


def test_a_worker_returns_the_result_or_the_error_row_of_a_video(clip):
    scene, models, folder = clip
    answer = StoredReplies(ReplyStore(folder / "store"), models)
    without = {role: replace(model, endpoint=None) for role, model in models.items()}
    worker = AnnotationWorker(Annotator(SETTINGS, without, answer), Checkpoints(), {}, pytest.fail)
    value = json.loads(worker(scene.to_json()))
    result, rendering = Annotator(SETTINGS, models, answer)(scene)
    assert json.loads(value["result"])["records"] == result.records and result.state == "kept"
    assert [b64decode(one) for one in value["drawn"].values()] == list(rendering.drawn)
    assert list(value["drawn"]) == [str(number) for number in rendering.shown]
    refusing = AnnotationWorker(
        Annotator(replace(SETTINGS, origin=Origin()), without, answer), Checkpoints(), {}, None
    )
    (row,) = json.loads(refusing(scene.to_json())).values()
    assert (row["video"], row["class"]) == (scene.id, "data") and "licence" in row["message"]


def test_after_a_stop_a_worker_opens_no_video(clip):
    scene, models, folder = clip
    annotator = Annotator(SETTINGS, models, StoredReplies(ReplyStore(folder / "store"), models))
    stopped = [BudgetError("The budget is spent.")]
    worker = AnnotationWorker(annotator, Checkpoints(), {}, pytest.fail, stopped.pop)
    elsewhere = replace(scene, root=folder / "nowhere")
    assert json.loads(worker(elsewhere.to_json())) == {
        "error": {"video": scene.id, "class": "stopped", "message": "The budget is spent."}
    }
    stopped.append(None)
    assert json.loads(worker(elsewhere.to_json()))["error"]["class"] == "data"


def test_what_other_actors_had_finished_at_a_stop_is_kept(clip, monkeypatch):
    scene, models, folder = clip
    scenes = [replace(scene, id=name) for name in ("a", "b", "c", "d")]
    run = Run(folder, SETTINGS, {role: replace(model, endpoint=None) for role, model in models.items()})
    text = json.dumps({"result": json.dumps(asdict(VideoResult())), "drawn": None})

    def run_jobs(jobs, make_worker, settings):
        assert [job.index for job in jobs] == [0, 1, 2, 3]
        yield Result(0, text)
        run.stop(BudgetError("spent"))
        yield Result(1, text)
        yield Result(2, error="OutOfMemoryError: of this video")

    monkeypatch.setattr(pool, "run_jobs", run_jobs)
    found = list(_annotate_window(run, enumerate(scenes), None, None))
    assert [one.index for one in found] == [0, 1, 2, 3]
    assert found[0].result.exists() and found[1].result.exists() and found[0].result != found[1].result
    assert found[2].result == {"video": "c", "class": "lost", "message": "OutOfMemoryError: of this video"}
    assert found[3].result == {"video": "d", "class": "stopped", "message": "spent"}


def test_each_worker_loads_its_models_once(clip):
    scene, models, folder = clip
    loaded = []

    def load(checkpoint: str, device: str):
        loaded.append((checkpoint, device))
        return None, None

    annotator = Annotator(SETTINGS, models, StoredReplies(ReplyStore(folder), models))
    paths = {"a": "/there/a", "b": "/there/b"}
    worker = AnnotationWorker(annotator, Checkpoints("a", "a", None, "cpu"), paths, load)
    assert loaded == [("/there/a", "cpu")] and worker.annotator.propose and worker.annotator.locator
    worker = AnnotationWorker(annotator, Checkpoints("a", "b"), paths, load)
    assert loaded[1:] == [("/there/a", "auto"), ("/there/b", "auto")]
