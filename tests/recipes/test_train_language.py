"""Stage 2 of sama-tiny: targets agree with the clips, and an interrupted run resumes with identical losses."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from checkpoint import CHECKPOINT

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import TrainingExamples
from sama.recipes.sama_tiny.labels import cells, draw_stamps, facts, places, unique_name
from sama.recipes.sama_tiny.train_language import AuxiliaryLosses, train, trained_parts
from sama.toy_world.shapes import COLOURS, SHAPES


@pytest.fixture(scope="module")
def model():
    return SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)


@pytest.fixture(scope="module")
def examples(model, processor, arguments):
    return TrainingExamples(processor, model.config, arguments)


def test_cells_by_hand():
    mask = np.zeros((8, 8), dtype=bool)
    mask[0:2, 4:6] = True  # the upper left quarter of the upper right cell of 2 x 2
    held = cells(mask, 2)
    assert held[1].tolist() == pytest.approx([0.25, 0.25 * (-1 - 1 / 3) / 2, 0.25 * (-1 - 1 / 3) / 2])
    assert not held[[0, 2, 3]].any()


def test_stamps_are_visible_and_match_their_places():
    masks, classes, spots = draw_stamps(40, np.random.default_rng(0))
    assert masks.any((1, 2)).all() and len(set(classes["shape"].tolist())) > 8
    rows, columns = np.nonzero(masks[7])
    side = masks.shape[-1]
    assert spots[7].tolist() == pytest.approx(
        [1, (columns.mean() + 0.5) / side, (rows.mean() + 0.5) / side, masks[7].sum() ** 0.5 / side]
    )


def test_an_example_knows_the_subjects_of_its_questions(examples):
    kinds = set()
    for index in range(30):
        example, record = examples.dialogue(index), examples.world.describe(index)
        asked = [message for message in record["messages"] if message["role"] == "user"][: len(example.subjects)]
        regions = [int(part["object"]) for message in asked for part in message["content"] if part["type"] == "region"]
        assert example.regions == regions
        assert len(example.subjects) == sum(message["role"] == "user" for message in example.messages)
        for subject, message in zip(example.subjects, asked, strict=True):
            pointed = [int(part["object"]) for part in message["content"] if part["type"] == "region"]
            assert not pointed or subject == pointed[0]
        segs = sum("objects" in part for message in example.messages for part in message["content"])
        assert bool(example.segs) == bool(segs)
        kinds.add((bool(regions), bool(segs)))
    assert len(kinds) >= 3


def test_facts_and_places_are_those_of_the_clip(examples):
    for index in range(5):
        clip = examples.probe(index).clip
        for thing, one in enumerate(clip.objects):
            colour, shape, size, _, _ = facts(clip, thing)
            assert (list(COLOURS)[colour], SHAPES[shape]) == (one.colour, one.shape)
            assert (size == -100) == (one.motion in ("grow", "shrink"))
        found = places(clip, [0], [0])[0, 0]
        if clip.seen[0, 0]:
            rows, columns = np.nonzero(clip.masks[0, 0])
            assert found[1] == pytest.approx((columns.mean() + 0.5) / clip.masks.shape[-1])
            assert found[2] == pytest.approx((rows.mean() + 0.5) / clip.masks.shape[-2])


def test_a_unique_name_matches_one_object(examples):
    rng, named = np.random.default_rng(0), 0
    for index in range(20):
        clip = examples.probe(index).clip
        for thing in range(len(clip.objects)):
            name = unique_name(clip, thing, rng)
            if name is None:
                continue
            named += 1
            words = [word for word in (*COLOURS, *SHAPES) if f" {word} " in f"{name} "]
            suited = [one for one in clip.objects if {one.colour, one.shape} >= set(words)]
            assert suited == [clip.objects[thing]]
    assert named > 20


class Recorded(AuxiliaryLosses):
    """Keeps the losses of its steps and fails in the step with index `dies`."""

    def __init__(self, dies: int | None = None):
        model = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).train()
        model.model.mask_tracker.requires_grad_(False)
        super().__init__(model, SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True), seed=0)
        self.dies, self.history = dies, []

    def losses(self, inputs, targets, with_language):
        if len(self.history) == self.dies:
            pytest.fail("killed")
        losses, report = super().losses(inputs, targets, with_language)
        self.history.append({name: loss.item() for name, loss in losses.items()})
        return losses, report


@pytest.fixture(scope="module")
def arguments():
    """One step on masks, two on probes and two on dialogues, the first of which lies inside a block."""
    steps = {"mask_steps": 1, "probe_steps": 2, "dialogue_steps": 2, "batch_size": 2}
    steps |= {"learning_rate": 1e-3, "decoder_rate": 0.0, "seed": 0, "device": "cpu", "num_workers": 0}
    return Namespace(**steps, log_steps=9, save_steps=1)


@pytest.fixture(scope="module")
def whole(examples, tmp_path_factory):
    auxiliary = Recorded()
    parts = trained_parts(auxiliary.model), auxiliary.model.model.mask_tracker
    start = [[parameter.clone() for parameter in part.parameters()] for part in parts]
    train(auxiliary, examples, tmp_path_factory.mktemp("whole") / "state.pt")
    return auxiliary, parts, start


def test_everything_but_sam_is_trained(whole):
    _, parts, start = whole
    moved, kept = (
        [not torch.equal(one, old) for one, old in zip(part.parameters(), before, strict=True)]
        for part, before in zip(parts, start, strict=True)
    )
    assert sum(moved) > 0.9 * len(moved) and not any(kept)


@pytest.mark.parametrize("dies", [2, *(pytest.param(dies, marks=pytest.mark.slow) for dies in (1, 3))])
def test_an_interrupted_run_resumes_with_identical_losses(whole, examples, tmp_path, dies):
    with pytest.raises(pytest.fail.Exception, match="killed"):
        train(Recorded(dies), examples, tmp_path / "state.pt")
    resumed = Recorded()
    train(resumed, examples, tmp_path / "state.pt")
    assert len(resumed.history) == 4 - dies
    for ours, theirs in zip(resumed.history, whole[0].history[dies:], strict=True):
        # The order of summation may differ, which changes the last digits
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_targets_match_the_tokens(examples):
    """The parts of a example belong to the tokens that the model makes of it, whatever the lengths of its videos."""
    for example in [example for block in range(2) for example in examples[block] if "inputs" in example]:
        inputs, targets = example["inputs"], example["targets"]
        lengths = inputs["num_context_frames"][inputs["question_samples"]]
        assert len(targets["context known"]) == lengths.sum()
        assert targets["context known"].sum() == len(targets["context"]) == len(targets["pairs"])
        ordered = lengths.sort().values
        starts = ordered.cumsum(0) - ordered
        for question in targets["pair questions"].unique().tolist():
            own = targets["pairs"][targets["pair questions"] == question]
            assert own.tolist() == list(range(starts[question], starts[question] + ordered[question]))
        assert targets["seen"].shape[:2] == targets["colours"].shape[:2]
        assert targets["weights"].sum() == pytest.approx(int(targets["counted"]), rel=1e-4)
