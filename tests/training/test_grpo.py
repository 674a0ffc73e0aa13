"""Reinforcement: answers that share one encoding, trained parts, logs, resuming, and what is refused."""

import json
import os
import signal
from collections import defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from training_fixtures import flags, history, save_checkpoint, toy_mixture
from transformers import TrainingArguments
from trl import GRPOConfig

from sama import train_grpo
from sama.data.records import DataError
from sama.training.checkpoints import TrainingError
from sama.training.completions import JudgedAnswers
from sama.training.fingerprint import DECISIVE, HARMLESS
from sama.training.grpo import SamaGRPOTrainer, matched
from sama.training.grpo_arguments import UNSUPPORTED, SamaGRPOArguments
from sama.training.parts import is_adapter, part_of
from sama.training.prompts import Prompt, PromptCollator, Reference, TurnMixture
from sama.training.rewards import SampledAnswer


RUN = {
    "num_generations": 3, "per_device_train_batch_size": 6, "max_completion_length": 12, "completion_steps": 2,
    "learning_rate": 1e-3, "warmup_steps": 0, "turns": 2, "memory_frames": 1,
    # Of random weights no answer is right, so another reward tells them apart
    "rewards": "words=1,length=1,format=0.5,masks=1,test_grpo_rewards:even=1",
}  # fmt: skip

# Settings of trl that nothing reads here, or that follow from others
NO_EFFECT = {
    "cache_implementation", "ds3_gather_for_generation", "generation_batch_size", "log_completions_hub_repo",
    "log_multimodal", "log_unique_prompts", "max_tool_calling_iterations", "model_init_kwargs",
    "num_completions_to_print", "num_generations_eval", "ref_model_mixup_alpha", "ref_model_sync_steps",
    "reward_weights", "router_aux_loss_coef", "shuffle_dataset", "steps_per_generation",
    "transformers_continuous_batching_config", "trust_remote_code", "use_transformers_continuous_batching",
    "use_transformers_paged",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module", autouse=True)
def own_reward(tmp_path_factory):
    """A module with a reward, as users write them."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "test_grpo_rewards.py").write_text(
        "def even(answer, reference):\n    return float(sum(map(ord, answer.text)) % 2)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def mixture_of(folder):
    return toy_mixture(folder, samples=6, tasks={"dialogue": 1})


def trainer_of(checkpoint, folder, **options) -> SamaGRPOTrainer:
    words = flags(checkpoint, mixture_of(folder), folder / "out", **{**RUN, **options})
    return train_grpo.build(*train_grpo.parse(words))


@pytest.fixture(scope="module")
def idle(checkpoint, tmp_path_factory):
    """A trainer that does not train, and a batch of two prompts."""
    trainer = trainer_of(checkpoint, tmp_path_factory.mktemp("idle"), completion_steps=0)
    trainer.current_gradient_accumulation_steps = 1
    return trainer, trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])


@pytest.fixture
def restored(idle):
    """Undoes what a test does to the weights of `idle`, to what is trained and to gradients."""
    model = idle[0].model
    before = {name: (each.detach().clone(), each.requires_grad) for name, each in model.named_parameters()}
    yield
    for name, each in model.named_parameters():
        each.data.copy_(before[name][0])
        each.requires_grad_(before[name][1])
    model.zero_grad()


def test_answers_share_one_encoding(idle, monkeypatch):
    """Two prompts with three answers each: the logits of six whole conversations, from the frames of two."""
    trainer, batch = idle
    inputs, model = batch["inputs"], trainer.model
    encoded, encode = [], model.model.encode_frames
    monkeypatch.setattr(model.model, "encode_frames", lambda *one: (encoded.append(len(one[0])), encode(*one))[1])
    with torch.no_grad():
        shared = model(**inputs).logits
        rows = trainer.repeated(inputs)
        visual = {name: value for name, value in inputs.items() if name not in rows}
        repeated = model(**rows, **visual, num_answers=3).logits
    torch.testing.assert_close(repeated, shared.repeat_interleave(3, 0))
    assert encoded == [len(inputs["pixel_values"])] * 2
    with pytest.raises(ValueError, match="`num_answers` is 4, but there are 6 rows"):
        model(**rows, **visual, num_answers=4)
    rows["mm_token_type_ids"] = rows["mm_token_type_ids"].flip(0)
    with pytest.raises(ValueError, match="other `mm_token_type_ids` than the first"):
        model(**rows, **visual, num_answers=2)


def test_log_probabilities_are_those_of_sampling(idle):
    """What the training forward gives for sampled tokens is what they were sampled by, also behind padded prompts."""
    trainer, batch = idle
    inputs, model = batch["inputs"], trainer.model
    rows = trainer.repeated(inputs)
    shared = {name: value for name, value in inputs.items() if name not in rows}
    assert (inputs["attention_mask"] == 0).any()
    output = model.generate(
        **rows, **shared, num_answers=3, do_sample=True, max_new_tokens=6, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    tokens = output.sequences[:, rows["input_ids"].shape[1] :]
    trainer.shared_inputs = trainer.continued(rows, torch.ones_like(tokens)) | shared
    mask = torch.cat([rows["attention_mask"], torch.ones_like(tokens)], 1)
    with torch.no_grad():
        found, entropies, *_ = trainer._get_per_token_logps_and_entropies(model, output.sequences, mask, 6)
    sampled = torch.stack(output.logits, 1).log_softmax(-1)
    torch.testing.assert_close(found, sampled.gather(-1, tokens[..., None])[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies, -(sampled.exp() * sampled).sum(-1), atol=1e-5, rtol=1e-5)


def test_an_update_trains_what_tokens_depend_on(checkpoint, tmp_path):
    """Also without rewards for masks the log has each reward that applies, and answers are written with masks."""
    trainer = trainer_of(checkpoint, tmp_path, max_steps=1, save_strategy="no", best_answer_mask_loss=0)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    encoded, encode = [], trainer.model.model.encode_frames
    trainer.model.model.encode_frames = lambda *pixels: (encoded.append(len(pixels[0])), encode(*pixels))[1]
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    assert {part_of(name) for name in moved} == {"aggregator", "projector", "language_model"}
    assert len(encoded) == 2 and encoded[0] == encoded[1]  # for sampling, and for the gradient
    entry = trainer.state.log_history[0]
    assert {f"rewards/{name}/mean" for name in ("length", "format", "masks", "even")} <= set(entry)
    assert "rewards/words/mean" not in entry  # both questions have choices
    assert entry["grad_norm"] > 0 and entry["reward_std"] > 0 and entry["clip_ratio/region_mean"] == 0
    lines = (tmp_path / "out" / "completions" / "step_000001.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert [len(one["answers"]) for one in written] == [3, 3] and all(one["reference"] for one in written)
    for one in written:
        assert sum(answer["advantage"] for answer in one["answers"]) == pytest.approx(0, abs=1e-3)
    picture = np.asarray(Image.open(tmp_path / "out" / "completions" / "step_000001.png"))
    assert picture.shape[1] >= 700 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_lora_trains_adapters_against_the_model_without_them(checkpoint, tmp_path):
    options = {"use_peft": True, "lora_r": 2, "train_parts": "aggregator", "beta": 0.1, "completion_steps": 0}
    trainer = trainer_of(checkpoint, tmp_path, max_steps=2, save_strategy="no", num_generations=2,
                         per_device_train_batch_size=2, max_completion_length=4, **options)  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    adapters = {name for name in moved if is_adapter(name)}
    assert adapters and {part_of(name) for name in moved - adapters} == {"aggregator"}
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-6


def test_gradient_raises_the_probability_of_better_answers(idle, restored):
    """A step along the gradient on fixed answers: the log-probability of those above the mean rises."""
    trainer, batch = idle
    inputs = trainer._prepare_inputs(batch)
    arguments = [torch.cat([inputs[f"prompt_{name}"], inputs[f"completion_{name}"]], 1) for name in ("ids", "mask")]

    def mean_log_probs() -> torch.Tensor:
        trainer.shared_inputs = inputs["shared"]
        length = inputs["completion_ids"].shape[1]
        scores, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, *arguments, length)
        return (scores * inputs["completion_mask"]).sum(1)

    with torch.no_grad():
        before = mean_log_probs()
    trainer.compute_loss(trainer.model, inputs).backward()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        gain = mean_log_probs() - before
    assert (gain * inputs["advantages"]).sum() > 0


def test_stopped_run_resumes_with_identical_answers(checkpoint, tmp_path):
    """Three updates, more than an epoch; the second run is stopped by SIGTERM and resumed. A reference model and the
    mask loss of the best answer are on."""
    options = {**RUN, "max_steps": 3, "beta": 0.1, "best_answer_mask_loss": 0.5, "max_completion_length": 6,
               "num_generations": 2, "per_device_train_batch_size": 4,
               "train_parts": "language_model,seg_head,mask_decoder"}  # fmt: skip
    mixture = toy_mixture(tmp_path, samples=4, tasks={"dialogue": 1})
    assert train_grpo.main(flags(checkpoint, mixture, tmp_path / "whole", **options)) == 0
    words = flags(checkpoint, mixture, tmp_path / "out", **options)
    original = SamaGRPOTrainer.training_step

    def terminated(self, *args, **kwargs):
        if self.state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SamaGRPOTrainer, "training_step", terminated)
        assert train_grpo.main(words) == 128 + signal.SIGTERM
    assert train_grpo.main([*words, "--resume_from_checkpoint", "last"]) == 0
    mine, theirs = history(tmp_path / "out"), history(tmp_path / "whole")
    assert [entry["step"] for entry in mine] == [1, 2, 3]
    for one, other in zip(mine, theirs, strict=True):
        for name in ("loss", "reward", "kl", "grad_norm", "completions/mean_length", "best_answer_mask_loss"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
    assert [entry["kl"] > 0 for entry in mine] == [False, True, True]
    for step in (1, 3):
        name = f"completions/step_{step:06d}.jsonl"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert train_grpo.main(words) == 0  # finished


def test_best_answer_is_matched_object_by_object():
    masks = np.zeros((2, 1, 4, 4), dtype=bool)
    masks[0, :, :2], masks[1, :, 2:] = True, True
    prompt = Prompt("", "", "", frames=[0], prompted=[0], reference=Reference("", masks))
    assert matched(SampledAnswer("", masks[::-1]), prompt) == [1, 0]
    assert matched(SampledAnswer("", masks[:1]), prompt) is None  # one is missing
    assert matched(SampledAnswer("", np.stack([masks[0], masks[0]])), prompt) is None  # two for one


def test_kinds_that_no_record_has_are_refused(idle):
    with pytest.raises(DataError, match="question of the kinds no_such_kind; found are .*motion"):
        TurnMixture(idle[0].train_dataset, ["no_such_kind"])


def test_a_batch_of_skipped_samples_has_no_loss(idle, restored, monkeypatch):
    trainer, _ = idle
    collate = PromptCollator(trainer.processing_class)
    inputs = trainer._prepare_inputs(collate([None, None]))
    assert inputs["completion_ids"].shape[0] == 6 and not inputs["advantages"].any()
    # Without LoRA, a question without a video may have no trained part in its graph
    trainer.model.requires_grad_(False)
    trainer.model.model.context_aggregator.requires_grad_(True)
    for loss_type in ("dapo", "grpo", "bnpo", "dr_grpo"):
        monkeypatch.setattr(trainer, "loss_type", loss_type)
        loss = trainer.compute_loss(trainer.model, inputs)
        assert loss.item() == 0
        loss.backward()
    assert not any(each.grad.any() for each in trainer.model.parameters() if each.grad is not None)


@pytest.mark.parametrize(
    ("loss_type", "share"), [("dapo", 1), ("bnpo", 1), ("cispo", 1), ("grpo", 0.5), ("dr_grpo", 0.5)]
)
def test_a_blank_question_does_not_change_the_loss(idle, monkeypatch, loss_type, share):
    """The loss of a batch of one prompt and a blank question is that of the prompt alone, also with a KL term."""
    trainer, _ = idle
    monkeypatch.setattr(trainer, "beta", 0.1)
    monkeypatch.setattr(trainer, "loss_type", loss_type)
    monkeypatch.setattr(trainer, "reference_log_probs", lambda found: torch.full(found["completion_ids"].shape, -2.0))
    both = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0], None]))
    both["advantages"][:3] = torch.tensor([1.0, -0.5, 0.25])
    assert both["completion_mask"][:3].any(1).all() and not both["completion_mask"][3:].any()
    assert both["num_items_in_batch"] == both["completion_mask"][:3].sum()
    text = {"mm_token_type_ids": both["shared"]["mm_token_type_ids"][:3]}
    text["position_ids"] = both["shared"]["position_ids"][..., :3, :]
    alone = {name: value[:3] for name, value in both.items() if name not in ("shared", "num_items_in_batch")}
    alone |= {"shared": both["shared"] | text, "num_items_in_batch": alone["completion_mask"].sum()}
    with torch.no_grad():
        found, expected = (trainer.compute_loss(trainer.model, inputs).item() for inputs in (both, alone))
    assert abs(expected) > 1e-3
    assert found == pytest.approx(share * expected, rel=1e-4)


def test_metrics_are_of_judged_prompts(idle, monkeypatch):
    """Four prompts: three different answers, one of them unjudged; equal ones; one judged answer; a blank question."""
    trainer, batch = idle
    monkeypatch.setitem(trainer._metrics, "train", defaultdict(list))
    totals = np.array([[1, np.nan, 3], [2, 2, 2], [5, np.nan, np.nan], [np.nan] * 3])
    prompts = [batch["prompts"][0]] * 3 + [Prompt("", "", ".")]
    answers = [[SampledAnswer("", num_tokens=length)] * 3 for length in (4, 6, 8, 100)]
    judged = JudgedAnswers(totals[..., None], totals, np.zeros((4, 3)), ["own"])
    trainer.log_answers(prompts, answers, judged)
    found = trainer._metrics["train"]
    assert found["reward"] == [pytest.approx(15 / 6)] and found["completions/mean_length"] == [6]
    assert found["reward_std"] == [pytest.approx(2**0.5 / 2)] and found["frac_reward_zero_std"] == [0.5]
    found.clear()
    trainer.log_answers(prompts[3:], answers[3:], replace(judged, scores=judged.scores[3:], totals=totals[3:]))
    assert not found


def test_every_process_has_as_many_prompts(idle):
    """Skipped samples are filled up: trl gathers a value of each answer from all processes without padding."""
    trainer, batch = idle
    sample = trainer.train_dataset[0]
    found = PromptCollator(trainer.processing_class)([None, sample])
    assert [prompt.reference is None for prompt in found["prompts"]] == [False, True]
    assert len(found["inputs"]["input_ids"]) == len(batch["inputs"]["input_ids"]) == 2


def test_an_answer_that_nobody_judged_is_no_best_one(idle):
    trainer, batch = idle
    inputs = trainer._prepare_inputs(batch)
    prompts = batch["prompts"]
    answers = [[SampledAnswer("", one.reference.masks)] * 3 for one in prompts]
    arguments = (inputs, prompts, answers)
    for totals, expected in ((0.0, [len(one.reference.masks) for one in prompts]), (np.nan, [0, 0])):
        best = trainer.best_answers(*arguments, np.full((2, 3), totals), batch["sam_frames"])
        assert [len(masks) for masks in best["target_masks"]] == expected
    assert any(len(one.reference.masks) for one in prompts)


def test_a_reward_that_fails_names_itself_and_the_step(idle, monkeypatch):
    trainer, batch = idle
    monkeypatch.setattr(trainer, "chosen_rewards", {"words": (lambda answer, reference: "good", 1.0)})
    with pytest.raises(TrainingError, match="step 1: The reward 'words' is 'good'.*no checkpoint yet"):
        trainer.scores_of([SampledAnswer("", np.zeros((0, 0, 0, 0), dtype=bool))], batch["prompts"][0])


def test_every_setting_of_grpo_is_decisive_or_known_to_change_nothing():
    """A new version of trl may bring more."""
    own = {one.name for one in fields(GRPOConfig)} - {one.name for one in fields(TrainingArguments)}
    own = {name for name in own if not name.startswith("vllm_")}  # use_vllm is refused
    assert sorted(own - {*DECISIVE, *HARMLESS, *UNSUPPORTED, *NO_EFFECT}) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"per_device_train_batch_size": 4, "num_generations": 3, "gradient_accumulation_steps": 3},
            "^per_device_train_batch_size is 4, which is not a multiple of num_generations, 3: all answers",
        ),
        ({"rewards": "maks"}, "'maks' is unknown"),
        ({"train_parts": "seg_head"}, "reach the tokens of answers alone"),
        ({"scale_rewards": "batch"}, "expected group or none"),
        ({"num_iterations": 2}, "num_iterations=2 is not supported"),
        ({"memory_training": True}, "memory_training=True is not supported"),
        ({"gradient_accumulation_steps": 2, "generation_batch_size": 8}, "steps_per_generation is 1 with 2"),
    ],
)
def test_wrong_settings_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        SamaGRPOArguments(use_cpu=True, report_to="none", **options)
