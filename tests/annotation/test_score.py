"""The scored checks with models that answer as planned, and with the small model."""

import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoint import load_checkpoint

from sama.annotation.calls import ModelChoice, StoredReplies, VideoCalls
from sama.annotation.checks import CheckLimits, VideoFacts, check_turn, evidence_for
from sama.annotation.completions import Completion, CompletionRequest
from sama.annotation.locate import ModelLocator, proposer
from sama.annotation.prompts import BLIND, DESCRIBE
from sama.annotation.render import RenderSettings, render
from sama.annotation.scenes import Scene, SceneObject, select_objects
from sama.annotation.schema import Statement, Turn
from sama.annotation.score import (
    ScoreSettings,
    blind_answers,
    blind_problems,
    in_sample,
    mean_iou,
    palette_problems,
    relocate,
    relocation_problems,
)
from sama.annotation.store import ReplyStore
from sama.data.masks import encode_rle
from sama.objects_sama import MaskTrack
from sama.toy_world.export import write_records
from sama.toy_world.world import ToySettings, ToyWorld
from sama.video_sama import SamaVideo


FACTS = VideoFacts(4, (0, 3), (frozenset(range(4)),) * 2, ((), ()), ("red", "blue"))
SETTINGS = ScoreSettings()


class Model:
    """An endpoint whose answers are a function of the request."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []

    def complete(self, request: CompletionRequest, stage: str = "", record: str = "", cut=None) -> Completion:
        self.requests.append(request)
        return Completion(json.dumps(self.answer(request)), "stop", None, None, 0.0, 1, request.model)

    def stop(self) -> None:
        raise AssertionError("nothing is stopped here")


def calls(tmp_path: Path, answer) -> tuple[VideoCalls, Model]:
    model = Model(answer)
    roles = {role: ModelChoice(model, role) for role in ("writer", "verifier", "blind")}
    return VideoCalls(StoredReplies(ReplyStore(tmp_path), roles), roles, "v"), model


def checked(place: int, question: str, answer: str):
    turn = Turn(turn=place, question=question, answer=answer, kind="k", evidence=evidence_for([1, 2], FACTS))
    return check_turn(turn, FACTS, CheckLimits(), f"turns[{place - 1}]")


TURNS = {
    1: checked(1, "What colour has the sky <obj1>?", "<p> The sky </p> <obj1> is blue."),
    3: checked(3, "What holds the man <obj2> up?", "<p> The man </p> <obj2> holds <p> a cup </p> <obj1>."),
}


def test_blind_answers_are_counted_by_turn(tmp_path):
    seeds = []

    def answer(request: CompletionRequest) -> dict:
        text = request.messages[1]["content"]
        if request.messages[0]["content"].startswith(BLIND):
            assert "<obj" not in text and "1. What colour has the sky [1]?" in text
            seeds.append(request.seed)
            if len(seeds) == 3:
                return {"answers": [{"question": 2, "answer": "a cup"}]}  # the first is left out
            return {"answers": [{"question": n, "answer": f"try {len(seeds)}, {n}"} for n in (1, 2)]}
        assert "Reference: The sky is blue." in text or "Reference: The man holds a cup." in text
        rows = text.count("Question:")
        return {"judgements": [{"question": n, "same": n == 1} for n in range(1, rows + 1)]}

    asked, model = calls(tmp_path, answer)
    right = blind_answers(asked, TURNS, 3)
    assert right == {1: (2, 2), 3: (1, 3)} and len(set(seeds)) == 3
    assert {place: one[0].code for place, one in blind_problems(right, SETTINGS).items()} == {1: "blind"}
    before = len(model.requests)
    assert blind_answers(asked, TURNS, 3) == right and len(model.requests) == before  # from the store
    assert blind_answers(asked, {}, 3) == {}


def test_without_replies_that_can_be_read_a_person_decides(tmp_path):
    asked, _ = calls(tmp_path, lambda request: {"something": "else"})
    found = blind_answers(asked, TURNS, 2)
    assert found == {1: (0, 0), 3: (0, 0)}
    problems = blind_problems(found, SETTINGS)
    assert {place: [(one.code, one.review) for one in listed] for place, listed in problems.items()} == {
        1: [("blind", True)], 3: [("blind", True)]
    }  # fmt: skip


@pytest.mark.parametrize(("tries", "right"), [(1, 2), (2, 3)])
def test_a_blind_check_that_can_decide_nothing_is_refused(tries, right):
    with pytest.raises(ValueError, match=f"blind_tries is {tries} and blind_right {right}: so many right answers"):
        ScoreSettings(blind_tries=tries, blind_right=right)
    for tries in (0, right, right + 1):
        assert ScoreSettings(blind_tries=tries, blind_right=right).blind_tries == tries


def test_phrases_that_say_nothing_of_their_object_are_not_rejected():
    other = [0.0, 0.9]
    found = relocation_problems(
        {1: [("It", 1, other)], 2: [("the dog", 1, other)], 3: [("The dog", 2, other)], 4: [("the cat", 1, other)]},
        SETTINGS,
    )
    reviewed = {place: [one.review for one in listed] for place, listed in found.items()}
    assert reviewed == {1: [True], 2: [True], 4: [False]}


class PlannedLocator:
    """Finds what it is told to."""

    def __init__(self, found: dict[str, np.ndarray]):
        self.found, self.phrases = found, []

    def locate(self, video, phrases):
        self.phrases += phrases
        for phrase in phrases:
            yield self.found[phrase]


def squares(*lefts: int) -> np.ndarray:
    masks = np.zeros((4, 10, 40), dtype=bool)
    for frame, left in enumerate(lefts):
        masks[frame, :, left : left + 10] = left >= 0
    return masks


def as_object(name: str, masks: np.ndarray) -> SceneObject:
    return SceneObject(name, tuple(encode_rle(mask) if mask.any() else None for mask in masks))


OBJECTS = [as_object("a", squares(0, 0, 0, -1)), as_object("b", squares(20, 20, 20, 20))]


def test_iou_is_the_mean_over_the_frames_where_the_object_is():
    assert mean_iou(squares(0, 0, 5, 30), OBJECTS[0].masks) == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert mean_iou(squares(-1, -1, -1, -1), OBJECTS[0].masks) == 0.0


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (squares(0, 0, 0, 0), []),
        (squares(3, 3, 3, 3), []),  # 7 / 13
        (squares(4, 4, 4, 4), [("relocate", True)]),  # 6 / 14
        (squares(6, 6, 6, 6), [("relocate", False)]),  # 4 / 16
        (squares(20, 20, 20, 20), [("relocate", False)]),  # the other object
        (squares(-1, -1, -1, -1), [("relocate", False)]),
    ],
)
def test_phrases_must_lead_to_their_object(found, codes):
    locator = PlannedLocator({"The sky": found, "The man": squares(20, 20, 20, 20), "a cup": found})
    scores = relocate(locator, None, TURNS, OBJECTS)
    assert locator.phrases == ["The sky", "The man", "a cup"]
    problems = relocation_problems(scores, SETTINGS)
    assert [(one.code, one.review) for one in problems.get(1, [])] == codes
    assert [(one.code, one.review) for one in problems.get(3, [])] == codes  # of the cup


class SamplingModel:
    """A model whose generation config samples, and its chat: `sampled` has what each question said of it. Each answer
    has one object, whose masks are those of the frames of `video`."""

    def __init__(self, video):
        self.video, self.sampled, self.on_ask = video, [], lambda: None

    def start_chat(self, processor, video):
        return self

    def ask(self, text: str, max_new_tokens: int, do_sample: bool = True) -> SimpleNamespace:
        self.on_ask()
        self.sampled.append(do_sample)
        found = SimpleNamespace(masks=squares(0, 0, 0, 0), text="a square", track=MaskTrack(4, 10, 40))
        return SimpleNamespace(objects=[found])

    def reset(self) -> None:
        pass


VIDEO = SamaVideo.open(np.zeros((4, 10, 40, 3), dtype=np.uint8))


def test_a_checkpoint_that_samples_gives_the_same_scores_and_proposals():
    model = SamplingModel(VIDEO)
    locator = ModelLocator(model, None)
    assert [masks.sum() for masks in locator.locate(VIDEO, ["a", "b"])] == [400, 400]
    locator.propose(VIDEO)
    assert model.sampled == [False] * 3


def test_the_masks_of_one_phrase_are_held_at_a_time():
    model, held, made = SamplingModel(VIDEO), [], []
    locator = ModelLocator(model, None)
    model.on_ask = lambda: held.append(sum(one() is not None for one in made))
    find = locator._find

    def watched(*arguments) -> np.ndarray:
        masks = find(*arguments)
        made.append(weakref.ref(masks))
        return masks

    locator._find = watched
    found = relocate(locator, VIDEO, TURNS, OBJECTS)
    assert len(made) == 3 and held == [0, 0, 0]  # when the next phrase is looked for, the masks before it are gone
    assert [phrase for phrase, *_ in found[3]] == ["The man", "a cup"]


def test_an_error_while_phrases_are_compared_gives_the_model_back():
    locator = ModelLocator(SamplingModel(VIDEO), None)
    with pytest.raises(ValueError):
        relocate(locator, VIDEO, TURNS, [as_object("a", squares(0, 0, 0, -1)[:2])])  # of another video
    assert locator._lock.acquire(blocking=False)


def test_descriptions_that_follow_the_drawn_colours_are_found(tmp_path):
    rng = np.random.default_rng(0)
    video = SamaVideo.open(rng.integers(0, 255, (4, 10, 40, 3), dtype=np.uint8))
    first, second = (render("v", video, OBJECTS, RenderSettings(4, 64, seed=seed)) for seed in (0, 3))
    assert first.colors != second.colors and first.colors[0] != second.colors[0]
    facts = VideoFacts(4, (0, 3), FACTS.visible, FACTS.expressions, first.colors)

    def says(number: int, color: str) -> Statement:
        return Statement(text=f"It is a {color} car.", first=0, last=3)

    def answer(request: CompletionRequest) -> dict:
        assert request.messages[0]["content"].startswith(DESCRIBE)
        one = {"text": f"A {second.colors[0]} car drives.", "first": 0, "last": 3}
        return {"objects": [{"object": "obj1", "statements": [one]}, {"object": "obj2", "statements": [one]}]}

    asked, _ = calls(tmp_path, answer)
    statements = {1: [says(1, first.colors[0])], 2: [says(2, second.colors[0])]}
    found = palette_problems(asked, second, facts, statements)
    assert list(found) == [1] and found[1][0].code == "palette"
    chosen = sum(in_sample(f"v{i}", 0.02) for i in range(5000))
    assert 60 < chosen < 140 and not in_sample("v", 0.0) and in_sample("v", 1.0)


# ---- the small model


@pytest.fixture(scope="module")
def toy_scene(tmp_path_factory) -> Scene:
    folder = tmp_path_factory.mktemp("clips")
    world = ToyWorld(ToySettings(frames=(8, 8), things=(2, 2), tasks={"refer_look": 1.0}), seed=4)
    (line,) = write_records(world, folder, [1]).read_text().splitlines()
    record = json.loads(line)
    objects = [SceneObject(name, tuple(item["masks"])) for name, item in record["objects"].items()]
    names = [f"The {one.colour} {one.shape}" for one in world.generate(1)[1].objects]
    told = [SceneObject(one.name, one.masks, (name,)) for one, name in zip(objects, names, strict=True)]
    return Scene("toy", "toy", record["video"], tuple(told), folder)


@pytest.fixture(scope="module")
def locator() -> ModelLocator:
    return ModelLocator(*load_checkpoint())


def test_the_small_model_finds_objects_again(locator, toy_scene):
    """Measured, not exact: an IoU with its own object that is higher than with the other one."""
    video, phrases = toy_scene.open(), [one.expressions[0] for one in toy_scene.objects]
    own, other = np.zeros(2), np.zeros(2)
    for index, masks in enumerate(locator.locate(video, phrases)):
        assert masks.shape == (len(video), video.height, video.width) and masks.dtype == bool
        own[index] = mean_iou(masks, toy_scene.objects[index].masks)
        other[index] = mean_iou(masks, toy_scene.objects[1 - index].masks)
    assert (own > other).all() and own.mean() > 0.5


def test_the_small_model_proposes_objects(locator, toy_scene):
    bare = Scene("toy", "toy", toy_scene.visual, (), toy_scene.root)
    found = proposer(locator, "sama-tiny", "Describe what happens, with masks.")(bare)
    assert found.info == {"mask_origin": "sama-tiny"} and found.objects
    assert all(len(one.masks) == 8 and one.expressions for one in found.objects)
    assert select_objects(found.objects)[0]
