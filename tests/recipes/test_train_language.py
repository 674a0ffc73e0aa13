"""Stages 2 and 3 of sama-tiny: labels agree with the tokens, and an interrupted run resumes with identical losses."""

from argparse import Namespace
from itertools import combinations

import numpy as np
import pytest
import torch
from checkpoint import CHECKPOINT

from sama.configuration_sama import (
    CONTEXT_TOKEN,
    DENSE_FRAME_TOKEN,
    REGION_POOLED_TOKEN,
    REGION_SHAPE_TOKEN,
)
from sama.data.collator import IGNORED
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny import train_language
from sama.recipes.sama_tiny.attention import matmul_attention, use_matmul_attention
from sama.recipes.sama_tiny.examples import OF_SEVERAL, DialogueExamples, FrameExamples, VideoExamples, trajectory_of
from sama.recipes.sama_tiny.heads import QUESTIONED, choice_loss, without_unseen_pairs
from sama.recipes.sama_tiny.labels import CLOSED_SETS
from sama.recipes.sama_tiny.phases import Phase, batches, optimizers_of, take_step, train, trained_parts
from sama.recipes.sama_tiny.train_language import DialogueLosses, plan, word_tokens
from sama.recipes.sama_tiny.train_videos import plan as plan_videos
from sama.toy_world.shapes import COLOURS, SHAPES, UNSEEN_PAIRS
from sama.toy_world.wording import NUMBERS, ORDER
from sama.training.checkpoints import TrainingError


@pytest.fixture(scope="module")
def model():
    return SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor():
    return SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)


@pytest.fixture(scope="module")
def arguments():
    """One step of each phase but two of dialogues."""
    steps = {"frame_steps": 1, "video_steps": 1, "dialogue_steps": 2, "mask_steps": 1}
    sizes = {"frames": 3, "videos": 2, "dialogues": 2}
    run = {"learning_rate": 1e-3, "bf16": True, "seed": 0, "device": "cpu", "num_workers": 0}
    return Namespace(**steps, **sizes, **run, log_steps=9, save_steps=1)


@pytest.fixture(scope="module")
def dialogues(model, processor, arguments):
    return DialogueExamples(processor, model.config, arguments, 2, with_masks=True)


def test_an_example_knows_the_objects_of_its_questions(dialogues):
    kinds = set()
    for index in range(30):
        example, record = dialogues.dialogue(index), dialogues.world.describe(index)
        asked = [message for message in record["messages"] if message["role"] == "user"][: len(example.subjects)]
        pointed = [
            [int(part["object"]) for part in message["content"] if part["type"] == "region"] for message in asked
        ]
        assert example.pointed == pointed and example.regions == sum(pointed, [])
        assert len(example.subjects) == sum(message["role"] == "user" for message in example.messages)
        for subject, things, info in zip(example.subjects, pointed, example.infos, strict=True):
            assert not things or subject == things[0]
            assert things or info["kind"] != "larger" or subject == -1
        answered = [message for message in record["messages"] if message["role"] == "assistant"][: len(asked)]
        marked = [
            [int(name) for part in message["content"] for name in part.get("objects", [])] for message in answered
        ]
        assert example.segs == sum(marked, [])
        compared = [info["kind"] == "larger" for info in example.infos]
        assert example.described == [
            one[0] if len(one) == 1 and not things and not larger else -1
            for one, things, larger in zip(marked, pointed, compared, strict=True)
        ]
        kinds.add((bool(example.regions), bool(example.segs)))
    assert len(kinds) >= 3


def test_labels_of_dialogues_match_their_tokens(dialogues):
    for batch in dialogues[0]:
        inputs, labels = batch["inputs"], batch["labels"]
        types = inputs["mm_token_type_ids"]
        assert len(labels["context known"]) == (types == CONTEXT_TOKEN).sum()
        assert len(labels["context"]) == labels["context known"].sum()
        assert labels["video_cells"].max() < (types == DENSE_FRAME_TOKEN).sum()
        regions = len(labels["region classes"]) if "region classes" in labels else 0
        assert regions == (types == REGION_POOLED_TOKEN).sum() == (types == REGION_SHAPE_TOKEN).sum()
        segs = len(labels["seg classes"]) if "seg classes" in labels else 0
        assert segs == (inputs["labels"] == dialogues.config.seg_token_id).sum()
        assert segs == len(labels.get("seg masks", ()))


def test_each_question_has_a_start_of_an_answer_in_their_order(dialogues):
    drawn = [dialogues.dialogue(index) for index in range(6)]
    answered = dialogues.encode(drawn)["labels"] != IGNORED
    starts = (answered[:, 1:] & ~answered[:, :-1]).sum(1)
    assert starts.tolist() == [len(one.pointed) for one in drawn]
    labels = dialogues.labels(drawn)
    turns = [turn for one in drawn for turn in zip(one.pointed, one.described, strict=True)]
    for place, name in enumerate(QUESTIONED[:2]):
        expected = [turn for turn, (things, _) in enumerate(turns) if len(things) > place]
        assert labels[f"{name} turns"].tolist() == expected and len(labels[f"{name} classes"]) == len(expected) > 0
    expected = [turn for turn, (_, thing) in enumerate(turns) if thing >= 0]
    assert labels["described turns"].tolist() == expected and not any(turns[turn][0] for turn in expected)


def test_the_tokens_of_a_video_are_the_beginning_of_every_dialogue_about_it(model, processor, arguments):
    videos = VideoExamples(processor, model.config, arguments, 1)
    for number, (ids, types) in videos.prefixes.items():
        assert (types == DENSE_FRAME_TOKEN).sum() == number * videos.grid**2
        assert len(ids) == len(types)
    dialogues = DialogueExamples(processor, model.config, arguments, 1)
    for index in range(4):
        example = dialogues.dialogue(index)
        if example.dense:
            found = dialogues.encode([example])["input_ids"][0]
            ids, _ = videos.prefixes[len(example.dense)]
            assert found[: len(ids)].tolist() == ids.tolist()


def test_no_frame_and_no_mask_is_shown_twice(model, processor, arguments):
    """Neither in another step, nor by another process, nor in the next phase."""
    fixed, steps = (processor, model.config, arguments), []
    for process in range(2):
        frames, videos = FrameExamples(*fixed, arguments.frame_steps), VideoExamples(*fixed, 2)
        for one in (frames, videos, videos.frames):
            one.process, one.processes = process, 2
        steps += frames[0] + [batch["frames"] for batch in videos[0]]
    pixels = torch.cat([batch["inputs"]["pixel_values"] for batch in steps]).flatten(1)
    assert len(pixels.unique(dim=0)) == len(pixels) == 3 * len(steps)
    masks = [batch["single masks"]["masks"] for batch in steps]
    assert not any(torch.equal(*pair) for pair in combinations(masks, 2))


def test_a_run_goes_on_inside_a_block(model, processor, arguments):
    examples = FrameExamples(processor, model.config, arguments, 6)
    whole, rest = (list(batches(examples, first, arguments)) for first in (0, 3))
    assert [step for step, _ in rest] == [3, 4, 5]
    for (_, ours), (_, theirs) in zip(rest, whole[3:], strict=True):
        assert torch.equal(ours["inputs"]["pixel_values"], theirs["inputs"]["pixel_values"])


def test_a_loss_that_is_not_finite_is_an_error(arguments):
    layer = torch.nn.Linear(1, 1)
    phase = Phase(None, lambda batch: ({"mask": layer.weight.sum() / 0, "prompt": layer.bias.sum()}, {}), 1e-3, [])
    with pytest.raises(TrainingError, match="not finite: mask"):
        take_step(phase, {}, optimizers_of({"layer": layer}), arguments)


def test_muon_updates_linear_layers_and_adamw_the_rest(model, processor):
    losses = DialogueLosses(model, processor, seed=0)
    adamw, muon = (
        [id(parameter) for parameter in optimizer.param_groups[0]["params"]]
        for optimizer in optimizers_of(losses.modules, losses.matrices)
    )
    everything = [parameter for module in losses.modules.values() for parameter in module.parameters()]
    assert sorted(adamw + muon) == sorted(map(id, everything))
    layer = model.model.backbone.language_model.layers[0]
    embeddings = model.get_input_embeddings().weight
    assert {id(layer.mlp.up_proj.weight), id(model.model.seg_projection[0].weight)} <= set(muon)
    assert {id(model.lm_head.weight), id(embeddings), id(layer.input_layernorm.weight)} <= set(adamw)
    assert id(losses.heads.tracks.past[1].weight) in adamw


def test_the_decoder_of_a_later_stage_wins_over_that_of_the_first(processor, tmp_path):
    losses = DialogueLosses(
        SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32), processor, seed=0
    )
    tracker = losses.model.model.mask_tracker
    first = {"tracker": {name: one.clone() for name, one in tracker.state_dict().items()}}
    torch.save(first | {"prompts": losses.prompts.state_dict()}, tmp_path / "state.pt")
    later = tmp_path / "later"
    later.mkdir()
    decoder = {name: one + 1 for name, one in tracker.sam.mask_decoder.state_dict().items()}
    torch.save(
        {name: one.state_dict() for name, one in losses.modules.items()} | {"decoder": decoder}, later / "state.pt"
    )
    losses.start_from(later, tmp_path)
    assert all(torch.equal(one, decoder[name]) for name, one in tracker.sam.mask_decoder.state_dict().items())
    losses.start_from(None, tmp_path)  # of which a model that is trained already takes the prompts alone
    assert all(torch.equal(one, decoder[name]) for name, one in tracker.sam.mask_decoder.state_dict().items())


def test_words_that_decide_an_answer_weigh_more(model, processor):
    losses = DialogueLosses(model, processor, seed=0)
    words = {" red": 3, " zigzags": 3, " appear": 3, " second": 6, " yes": 6, " before": 6, " the": 1, ".": 1, " a": 1}
    for word, weight in words.items():
        assert losses.weights[processor.tokenizer(word)["input_ids"][0]] == weight, word


def test_a_word_of_several_tokens_is_refused(processor):
    with pytest.raises(ValueError, match=r"'rhinoceros' has \d tokens, expected 1"):
        word_tokens(processor, ["red", "rhinoceros"])


def test_answers_start_in_the_order_of_their_labels(dialogues):
    drawn = [dialogues.dialogue(index) for index in range(20)]
    encoded = dialogues.encode(drawn)
    answered, decode = encoded["labels"] != IGNORED, dialogues.processor.tokenizer.decode
    rows, columns = (answered[:, 1:] & ~answered[:, :-1]).nonzero(as_tuple=True)
    infos = [info for one in drawn for info in one.infos]
    judged = 0
    for row, column, info in zip(rows.tolist(), columns.tolist(), infos, strict=True):
        if info["answer"] is not None:
            answer = decode(encoded["input_ids"][row, column + 1 :]).split("<|im_end|>")[0]
            assert info["answer"].lower() in answer.lower()
            judged += 1
    assert judged > 10


def test_states_of_other_turns_give_another_loss(model, processor, dialogues):
    losses = DialogueLosses(model, processor, seed=0)
    labels = next(batch["labels"] for batch in dialogues[0] if len(batch["labels"]["pointed turns"]) > 1)
    states = torch.randn(
        len(labels["fits"]), model.config.text_config.hidden_size, generator=torch.Generator().manual_seed(0)
    )
    found, turned = (losses.questions.losses(one, labels)[0] for one in (states, states.flip(0)))
    assert all(found[name] != turned[name] for name in ("pointed classes", "pointed trajectory"))


def test_a_question_has_a_label_for_each_choice(dialogues):
    drawn = [dialogues.dialogue(index) for index in range(40)]
    labels, infos = dialogues.labels(drawn), [info for one in drawn for info in one.infos]
    expected = {"refer": 1, "no_target": 0}
    assert labels["fits"].tolist() == [expected.get(info["kind"], IGNORED) for info in infos]
    numbers = [NUMBERS[number] if number >= 0 else None for number in labels["number"].tolist()]
    counts = [(found, info["answer"]) for found, info in zip(numbers, infos, strict=True) if "count" in info["kind"]]
    assert all(found == answer for found, answer in counts)
    assert [found is not None for found in numbers] == [info["kind"] in OF_SEVERAL for info in infos]
    ordered = [ORDER[number] if number >= 0 else None for number in labels["order"].tolist()]
    assert ordered == [info["answer"] if info["kind"] == "order" else None for info in infos]
    assert {0, 1} <= set(labels["fits"].tolist()) and len(set(counts)) > 2 and len(set(ordered)) == 3


def test_listed_objects_have_labels_in_the_order_of_the_answer(dialogues):
    drawn = [dialogues.dialogue(index) for index in range(40)]
    labels = dialogues.labels(drawn)
    lists = [(one.clip, things) for one in drawn for things in one.listed if things is not None]
    assert len(lists) == len(labels["members"]) > 5 and max(len(things) for _, things in lists) > 1
    assert labels["number"][labels["member turns"]].tolist() == [len(things) for _, things in lists]
    for found, (clip, things) in zip(labels["members"].numpy(), lists, strict=True):
        for place, thing in enumerate(things):
            np.testing.assert_array_equal(found[place], trajectory_of(clip, thing))
        assert not found[len(things) :].any()


def test_words_behind_listed_objects_weigh_more(model, processor, dialogues, monkeypatch):
    losses, width = DialogueLosses(model, processor, seed=0), model.config.text_config.hidden_size
    drawn = [dialogues.dialogue(index) for index in range(40)]

    def losses_of(one) -> tuple[float, float]:
        """The loss of one dialogue with the weight, and without it."""
        expected = dialogues.encode([one])["labels"]
        states = torch.randn(*expected.shape, width, generator=torch.Generator().manual_seed(0))
        found = []
        for weight in (train_language.LISTED_WEIGHT, 1.0):
            with monkeypatch.context() as patch:
                patch.setattr(train_language, "LISTED_WEIGHT", weight)
                loss, _ = losses.language_losses(states, expected, dialogues.labels([one]))
            found.append(loss["language"].item())
        return found[0], found[1]

    changed = [found != usual for found, usual in map(losses_of, drawn)]
    assert changed == [any(one.listed) for one in drawn] and 0 < sum(changed) < len(drawn)


def test_pairs_that_training_never_shows_are_no_wrong_answers(model, processor, dialogues):
    """The shape of a purple object: what training never shows in purple gets no gradient, everything else does."""
    losses = DialogueLosses(model, processor, seed=0)
    colour = list(COLOURS).index("purple")
    never = [SHAPES.index(shape) for tint, shape in UNSEEN_PAIRS if tint == "purple"]
    logits = torch.zeros(2, len(SHAPES), requires_grad=True)
    loss, _ = choice_loss(without_unseen_pairs("shape", logits, torch.tensor([colour, IGNORED])), torch.tensor([0, 0]))
    loss.backward()
    assert not logits.grad[0, never].any() and logits.grad[1].all() and logits.grad[0].count_nonzero() == 14
    for kind, words in (("shape", SHAPES), ("colour", tuple(COLOURS))):
        ends = [processor.tokenizer.decode([token]).strip() for token in losses.words[kind].tolist()]
        assert ends == [word.split()[-1] for word in words]
    drawn = [dialogues.dialogue(index) for index in range(60)]
    labels, place = dialogues.labels(drawn), 0
    asked = 0
    for one in drawn:
        for info, subject in zip(one.infos, one.subjects, strict=True):
            for kind, other in (("shape", "colour"), ("colour", "shape")):
                found = labels[f"{kind} partners"][place].item()
                if info["kind"] in (kind, f"mover_{kind}") and subject >= 0:
                    assert tuple(CLOSED_SETS[other])[found] == getattr(one.clip.objects[subject], other)
                    asked += 1
                else:
                    assert found == IGNORED
            place += 1
    assert asked > 3


def test_matmul_attention_is_the_attention_of_the_library(model, processor, dialogues):
    other = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    use_matmul_attention(other.model.backbone.language_model, other.model.backbone.vision_tower)
    inputs = dialogues[0][0]["inputs"]
    with torch.no_grad():
        logits = [one.eval()(**inputs).logits for one in (model, other)]
    answered = inputs["labels"] != -100
    difference = (logits[0] - logits[1])[answered] if logits[0].dim() == 3 else logits[0] - logits[1]
    assert difference.abs().max() < 1e-4 * logits[0].abs().max()


def test_matmul_attention_drops_in_training_only():
    states, module = torch.ones(1, 2, 64, 16), torch.nn.Module()
    found = {
        mode: matmul_attention(module.train(mode), states, states, states, scaling=0.25, dropout=0.5)[0]
        for mode in (True, False)
    }
    assert (found[False] - 1).abs().max() < 1e-5 and (found[True] - 1).abs().max() > 0.1
    assert found[True].mean().item() == pytest.approx(1, abs=0.1)


class Recorded(DialogueLosses):
    """Keeps the losses of its steps and fails in the step with index `dies`."""

    def __init__(self, processor: SamaProcessor, dies: int | None = None):
        model = SamaForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).train()
        model.model.mask_tracker.requires_grad_(False)
        super().__init__(model, processor, seed=0)
        self.dies, self.history = dies, []

    def recorded(self, losses, batch):
        if len(self.history) == self.dies:
            pytest.fail("killed")
        losses, report = losses(batch)
        self.history.append({name: loss.item() for name, loss in losses.items()})
        return losses, report


def run(losses: Recorded, arguments: Namespace, path) -> Recorded:
    """The phases of both stages in one run."""
    phases = [
        phase._replace(losses=lambda batch, own=phase.losses: losses.recorded(own, batch))
        for phase in (*plan_videos(losses, losses.processor, arguments), *plan(losses, arguments))
    ]
    train(phases, losses.modules, arguments, path, losses.matrices)
    return losses


@pytest.fixture(scope="module")
def whole(processor, arguments, tmp_path_factory):
    losses = Recorded(processor)
    tracker = losses.model.model.mask_tracker
    parts = trained_parts(losses.model), tracker.sam.mask_decoder, tracker.sam.vision_encoder
    start = [[parameter.clone() for parameter in part.parameters()] for part in parts]
    run(losses, arguments, tmp_path_factory.mktemp("whole") / "state.pt")
    return losses, parts, start


def test_everything_but_the_rest_of_sam_is_trained(whole):
    _, parts, start = whole
    model, decoder, encoder = (
        {name for (name, one), old in zip(part.named_parameters(), before, strict=True) if torch.equal(one, old)}
        for part, before in zip(parts, start, strict=True)
    )
    # The last layer of the temporal Q-Former has an output for text that nothing reads: weight decay alone moves it,
    # but for its bias, which is zero
    assert model == {"2.temporal_qformer.encoder.layer.1.output.LayerNorm.bias"}
    assert decoder == set()
    assert encoder == {name for name, _ in parts[2].named_parameters()}


@pytest.mark.parametrize("dies", [3, *(pytest.param(dies, marks=pytest.mark.slow) for dies in (1, 2, 4))])
def test_an_interrupted_run_resumes_with_identical_losses(whole, processor, arguments, tmp_path, dies):
    with pytest.raises(pytest.fail.Exception, match="killed"):
        run(Recorded(processor, dies), arguments, tmp_path / "state.pt")
    resumed = run(Recorded(processor), arguments, tmp_path / "state.pt")
    assert len(resumed.history) == len(whole[0].history) - dies
    for ours, theirs in zip(resumed.history, whole[0].history[dies:], strict=True):
        # The order of summation may differ, which changes the last digits
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
