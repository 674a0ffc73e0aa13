"""Rewards of reinforcement: pure functions of an answer and its reference."""

import numpy as np
import pytest

from sama.benchmarks.toy_world import is_right
from sama.prompts_sama import ground_phrase
from sama.toy_world.tasks import TASKS
from sama.toy_world.world import ToyWorld
from sama.training.prompts import Reference
from sama.training.rewards import (
    REWARDS,
    SampledAnswer,
    advantages,
    read_rewards,
    reward_masks,
    score,
    spreads,
    totals_of,
)


YES = {"choices": ["yes", "no"], "answer": "yes"}
COUNT = {"choices": ["one", "two", "three"], "answer": "two"}
TWO = "There are <p> two rings </p> [SEG] [SEG] ."
LIST = "<p> The ring </p> [SEG] and <p> the star </p> [SEG] move, so two."
GROUP = "<p> Two dogs </p> [SEG] run, so two."
SAYS = "A man says yes, and a woman says no."
LETTERS = {"answer": "A", "choices": ["A", "B", "C"]}


def box(left: int, right: int, num_frames: int = 2) -> np.ndarray:
    """A mask of full height between two columns of ten, in every frame."""
    masks = np.zeros((num_frames, 4, 10), dtype=bool)
    masks[:, :, left:right] = True
    return masks


def some(number: int, num_frames: int = 2) -> np.ndarray:
    """Masks of that many objects, beside each other."""
    found = [box(2 * place, 2 * place + 2, num_frames) for place in range(number)]
    return np.stack(found) if found else np.zeros((0, 0, 0, 0), dtype=bool)


@pytest.mark.parametrize(
    ("name", "text", "truth", "info", "expected"),
    [
        ("answer", "Yes, it stops.", "Yes, it stops.", YES, 1),
        ("answer", "No, it stops.", "Yes, it stops.", YES, 0),
        ("answer", "Yes and no.", "Yes.", YES, 0),
        ("answer", "Eyes of nobody.", "Yes.", YES, 0),
        ("answer", "Anything.", "Yes.", {}, None),
        ("words", "The red ring stops.", "The red ring stops.", {}, 1),
        ("words", "The ring.", "A <p> ring </p> [SEG].", {}, 0.5),
        ("words", "", "", {}, 1),
        ("words", "It moves left.", "It moves right.", YES, None),
        ("count", TWO, TWO, COUNT, 1),
        ("count", "It is <p> a ring </p> [SEG].", TWO, COUNT, 0),
        ("format", TWO, TWO, COUNT, 1),
        ("format", "Plain words.", "Plain words.", {}, 1),
        ("format", "<p> a ring </p> stops.", "", {}, 0),
        ("format", "[SEG] stops.", "", {}, 0),
        ("format", "It is <p> a ring [SEG].", "", {}, 0),
        ("format", "", "", {}, 0),
        ("consistency", TWO, TWO, COUNT, 1),
        ("consistency", "There are <p> three rings </p> [SEG] [SEG].", TWO, COUNT, 0),
        ("consistency", "<p> None </p> [SEG] moves.", "None moves.", {}, 0),
        ("consistency", "Two, no, one.", "Two.", COUNT, 0),
        ("consistency", "Yes, or no.", "Yes.", {}, 0),
        ("consistency", "There are <p> 2 rings </p> [SEG] [SEG].", TWO, COUNT, 1),
        ("consistency", "There are <p> 2 rings </p> [SEG].", TWO, COUNT, 0),
        ("consistency", "It is <p> a 2 </p> [SEG].", TWO, COUNT, 1),
        ("consistency", "It is <p> 3-wheeled </p> [SEG] or <p> 2.5 m long </p> [SEG].", "", {}, 1),
        ("consistency", "It is <p> 2020 model </p> [SEG].", "", {}, 1),
        ("format", "It is [SEG].", "Sure, it is [SEG].", {}, 1),
        ("format", "It is [SEG].", "It is <p> a ring </p> [SEG] [SEG].", {}, 0),
        ("format", "[SEG] [SEG]", "Sure, it is [SEG].", {}, 0),
        ("consistency", LIST, LIST, COUNT, 1),
        ("consistency", LIST.replace("two", "three"), LIST, COUNT, 0),
        ("consistency", "<p> The ring </p> [SEG] moves, so none.", "Nothing moves, so none.", {}, 0),
        ("consistency", "The ring and the star move, so two.", "The ring and the star move, so two.", COUNT, 1),
        ("consistency", "<p> The ring </p> [SEG] stops, so no.", "<p> The ring </p> [SEG] stops, so no.", YES, 1),
        ("consistency", "It is <p> two dogs </p> [SEG].", "It is <p> two dogs </p> [SEG].", {}, 1),
        ("consistency", "Yes, there is no dog.", "Yes, there is no dog.", {}, 1),
        ("answer", "Yes, there is no dog.", "Yes, there is no dog.", YES, 1),
        ("answer", "Yes it does, no doubt.", "Yes.", YES, 1),
        ("answer", "Yes, it is a no-entry sign.", "Yes.", YES, 1),
        ("answer", "Yes it moves left. No it does not.", "Yes.", YES, 0),
        ("answer", "Yes and no it depends.", "Yes.", YES, 0),
        ("answer", "No it does not. Yes.", "Yes.", YES, 0),
        ("consistency", SAYS, SAYS, {}, 1),
        ("format", "[SEG]", "[SEG]", {}, 1),
        ("format", ".", "It is.", {}, 0),
        ("answer", "Yes no.", "No.", YES | {"answer": "no"}, 0),
        ("answer", "no yes", "No.", YES | {"answer": "no"}, 0),
        ("answer", "yes/no", "No.", YES | {"answer": "no"}, 0),
        ("answer", "Yes it moves left, so no.", "No.", YES | {"answer": "no"}, 0),
        ("consistency", '"Yes" or no.', "No.", YES | {"answer": "no"}, 0),
        ("consistency", GROUP, GROUP, {}, 1),
        ("consistency", GROUP.replace("Two", "two"), GROUP, {}, 1),
        ("consistency", GROUP.replace("Two", "Three"), GROUP, {}, 0),
        ("consistency", "<p> No entry sign </p> [SEG]", "<p> No entry sign </p> [SEG]", {}, 1),
        ("answer", "No dog is there.", "No dog is there.", YES | {"answer": "no"}, 1),
        ("answer", "A", "A", LETTERS, 1),
        ("answer", "(A) A dog runs.", "A", LETTERS, 1),
        ("answer", "The answer is A because it runs.", "A", LETTERS, 1),
        ("answer", "A. It is not a ring.", "A", LETTERS, 1),
        ("answer", "A dog runs, so B.", "A", LETTERS, 0),
        ("answer", "a", "A", LETTERS, 0),
        ("answer", "A or B.", "A", LETTERS, 0),
        ("answer", "Option A or B.", "A", LETTERS, 0),
        ("answer", "A or B.", "B", LETTERS | {"answer": "B"}, 0),
        ("answer", "A and B.", "B", LETTERS | {"answer": "B"}, 0),
        ("answer", "A is correct.", "A", LETTERS, 1),
        ("answer", "A island is B.", "A", LETTERS, 0),
        ("consistency", "A dog runs: B is right.", "B", LETTERS, 1),
        ("consistency", "A, or B is right.", "B", LETTERS, 0),
    ],
)
def test_rewards_of_words(name, text, truth, info, expected):
    number = Reference(truth, some(truth.count("[SEG]")), info)
    assert REWARDS[name](SampledAnswer(text, some(text.count("[SEG]"))), number) == expected


@pytest.mark.parametrize("text", ["Yes, there is no dog.", "<p> No dog </p> [SEG], yes.", "Yes and no.", "No."])
def test_the_benchmark_and_the_reward_judge_alike(text):
    reward = REWARDS["answer"](SampledAnswer(text, some(text.count("[SEG]"))), Reference("Yes.", info=YES))
    assert reward == is_right(text, "yes", YES["choices"]) == (not text.endswith("no.") and text != "No.")


def test_the_answers_of_toy_world_are_perfect():
    world = ToyWorld({"frames": [8, 10], "tasks": dict.fromkeys(TASKS, 1)}, seed=3)
    for index in range(200):
        for turn in world.generate(index, frames=False)[2]:
            parts = [
                ground_phrase(part["text"], len(part["objects"])) if part["type"] == "grounded" else part["text"]
                for part in turn.answer_parts
            ]
            text = "".join(parts)
            info = {"choices": turn.choices, "answer": turn.answer} if turn.answer else {}
            masks = some(text.count("[SEG]"))
            for name, reward in REWARDS.items():
                assert reward(SampledAnswer(text, masks), Reference(text, masks, info)) in (1, None), (name, text)


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        ([(0, 4)], [(0, 4)], 1.0),
        ([(0, 2)], [(0, 4)], 0.5),
        ([(4, 8), (0, 4)], [(0, 4), (4, 8)], 1.0),  # the order of the phrases does not matter
        ([(0, 4)], [(0, 4), (4, 8)], 0.5),  # one is missing
        ([(0, 4), (4, 8)], [(0, 4)], 0.5),  # one too many
        ([], [(0, 4)], 0.0),
        ([(0, 4)], [], 0.0),
        ([], [], 1.0),
    ],
)
def test_reward_of_masks(found, true, expected):
    masks = [np.stack([box(*one) for one in boxes]) if boxes else some(0) for boxes in (found, true)]
    assert reward_masks(SampledAnswer("", masks[0]), Reference("", masks[1])) == pytest.approx(expected)


def test_masks_of_other_frames_are_an_error():
    with pytest.raises(ValueError, match=r"\(3, 4, 10\).*\(2, 4, 10\)"):
        reward_masks(SampledAnswer("", some(1, num_frames=3)), Reference("", some(1)))


def test_long_and_cut_answers_lose():
    lengths = [
        REWARDS["length"](SampledAnswer("", num_tokens=n), Reference("", num_tokens=8)) for n in (8, 20, 30, 99)
    ]
    assert lengths == [1, 1, 0.5, 0]
    assert REWARDS["format"](SampledAnswer("Words.", ended=False), Reference("")) == 0


def test_weights_and_functions_of_ones_own():
    found = read_rewards("masks=2, answer,sama.training.rewards:reward_words=-0.5")
    assert {name: weight for name, (_, weight) in found.items()} == {"masks": 2, "answer": 1, "reward_words": -0.5}
    assert found["reward_words"][0] is REWARDS["words"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No reward"),
        ("maks=1", "'maks' is unknown, expected masks, answer"),
        ("masks=much", "weight 'much'"),
        ("masks=0", "other than 0"),
        ("masks=nan", "weight 'nan'"),
        ("masks,masks", "twice"),
        ("no_such_module:f", "cannot be imported"),
        ("sama.training.rewards:f", "cannot be imported"),
        ("sama.training.rewards:np", "is a module, not a function"),
    ],
)
def test_wrong_rewards_are_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        read_rewards(text)


def test_scores_and_advantages():
    rewards = read_rewards("answer=1,count=0.5")
    answers = [SampledAnswer("Yes."), SampledAnswer("No."), SampledAnswer("<p> no </p> [SEG]", some(1))]
    scores = score(rewards, answers, Reference("Yes.", info=YES))
    np.testing.assert_array_equal(scores, [[1, 1], [0, 1], [0, 0]])
    totals = totals_of(scores, [1, 0.5])
    np.testing.assert_array_equal(totals, [1.5, 0.5, 0])
    gains = advantages(totals[None], "group")[0]
    assert gains.sum() == pytest.approx(0) and gains.std(ddof=1) == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(advantages(totals[None], "none")[0], totals - totals.mean())


def test_what_cannot_be_judged_has_no_advantage():
    unjudged = score(read_rewards("answer"), [SampledAnswer("Yes.")] * 2, Reference("Yes."))
    assert np.isnan(unjudged).all() and np.isnan(score(read_rewards("count"), [SampledAnswer("")], None)).all()
    np.testing.assert_array_equal(advantages(totals_of(unjudged, [1])[None], "group"), [[0, 0]])
    np.testing.assert_allclose(advantages(np.array([[1.0, np.nan, 3.0]]), "none"), [[-1, 0, 1]])
    np.testing.assert_array_equal(advantages(np.array([[2.0, 2.0]]), "group"), [[0, 0]])  # nothing to prefer
    assert np.isnan(spreads(np.array([[np.nan, np.nan], [1.0, np.nan]]))).all()
    np.testing.assert_allclose(spreads(np.array([[1.0, np.nan, 3.0], [2.0, 2.0, 2.0]])), [2**0.5, 0])
    np.testing.assert_allclose(advantages(np.array([[1.0, np.nan, 3.0]]), "group"), [[-(0.5**0.5), 0, 0.5**0.5]], 1e-3)
    with pytest.raises(ValueError, match="'batch', expected group or none"):
        advantages(np.array([[1.0, 2.0]]), "batch")
    # An answer without a reward that others to the same prompt have is not compared with them
    scores = np.array([[1.0, 1.0], [0.0, np.nan], [1.0, 0.0]])
    np.testing.assert_array_equal(totals_of(scores, [1, 1]), [2, np.nan, 1])
    np.testing.assert_array_equal(totals_of(scores[:, :1], [2]), [2, 0, 2])
    prompts = np.stack([scores, np.where([True, False], scores, np.nan)])  # the second prompt has no second reward
    np.testing.assert_array_equal(totals_of(prompts, [1, 1]), [[2, np.nan, 1], [1, 0, 1]])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "high", np.zeros(2), None])
def test_a_reward_of_ones_own_that_fails_is_named(value):
    def polite(answer, reference):
        return {"ok": 0.5}[answer.text] if value is None else value

    expected = "failed for the answer 'bad': KeyError: 'bad'" if value is None else "expected a finite number or None"
    with pytest.raises(ValueError, match=f"The reward 'polite' .*{expected}"):
        score({"polite": (polite, 1.0)}, [SampledAnswer("bad")], Reference(""))
    assert score({"polite": (lambda *both: True, 1.0)}, [SampledAnswer("ok")], Reference("")) == 1
