"""Stage 3 of sama-tiny: train the aggregator and the language model on dialogues about toy world.

    python recipes/sama_tiny/train_language.py --videos outputs/tiny/videos --masks outputs/tiny/masks \\
        --to outputs/tiny/language

Two phases, each with its own learning rate schedule. Both use auxiliary heads (heads.py), which are dropped later.

1. Dialogues (`--dialogue-steps`): the language loss, in which words that decide an answer weigh more, and heads on
   the states of cells, regions, [SEG] and the tokens from which answers start. The [SEG] prompt is trained to match
   the attribute prompt by which SAM 2 found the object in stage 1. The vision tower and the shape encoders are frozen.
2. Masks (`--mask-steps`): the same, with the masks of SAM 2 in one frame of each dialogue. Its decoder of [SEG] is
   trained, too, and adapts to the errors of predicted prompts.

The language loss alone does not teach motion within hours (docs/log.md). Muon updates the linear layers and AdamW the
rest. The batch sizes are those of each of two processes (`torchrun --nproc_per_node 2`). An interrupted run resumes
from `state.pt` with identical losses.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from sama.configuration_sama import CONTEXT_TOKEN, DENSE_FRAME_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN
from sama.data.collator import IGNORED
from sama.modeling_sama import VISUAL_INPUT_NAMES, SamaForConditionalGeneration, SamaVisualInputs
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import DialogueExamples
from sama.recipes.sama_tiny.heads import (
    PARTNER,
    Losses,
    QuestionHeads,
    Tensors,
    class_loss,
    merged,
    named,
    place_loss,
    without_unseen_pairs,
)
from sama.recipes.sama_tiny.labels import CLOSED_SETS
from sama.recipes.sama_tiny.phases import Batch, Phase, add_run_arguments, folder_with, start, train_and_save
from sama.recipes.sama_tiny.train_masks import AttributePrompts, compare_masks
from sama.recipes.sama_tiny.train_videos import VideoLosses
from sama.toy_world.clip import ToySettings
from sama.toy_world.motion import MOTIONS
from sama.toy_world.shapes import COLOURS, SHAPES, SIZES
from sama.toy_world.wording import NUMBERS, ORDER, YES_NO


# Layers after which heads read the objects in question off the states of regions, which find them in the cells (their
# layers: train_videos.py), and off those from which an answer starts. The layers after that can compare the objects
REGION_LAYER, QUESTION_LAYER = 7, 8
NAMED_WEIGHT, COMPARED_WEIGHT = 3.0, 6.0  # of words that name what is seen, and of those that a comparison decides
# "moves left" is decided by "left"
NAMED_WORDS = [
    word
    for name in (*COLOURS, *SHAPES, *SIZES, *(form for motion in MOTIONS.values() for form in motion))
    for word in (name.split()[0], name.split()[-1])
]
COMPARED_WORDS = {
    "yes or no": YES_NO, "number": NUMBERS[: ToySettings().things[1] + 1], "order": ORDER, "rank": ("first", "second"),
    "side": ("above", "below", "left", "right"),
}  # fmt: skip
LISTED_WEIGHT = 6.0  # of the token behind each object of a list, which decides whether the list goes on
MASK_PHASE_RATE = 0.25  # learning rate of the second phase, as a fraction


def word_tokens(processor: SamaProcessor, words: Iterable[str]) -> torch.Tensor:
    """
    The token of each of these words inside a sentence.

    Raises:
        ValueError: for a word of several tokens, of which none tells what the word is.
    """
    words = list(words)
    found = [processor.tokenizer(f" {word}")["input_ids"] for word in words]
    for word, tokens in zip(words, found, strict=True):
        if len(tokens) != 1:
            raise ValueError(
                f"{word!r} has {len(tokens)} tokens, expected 1: the tokenizer was not made by this version of "
                "initialize.py"
            )
    return torch.tensor(found)[:, 0]


class DialogueLosses(VideoLosses):
    """The auxiliary heads, the attribute prompts of stage 1, and the losses of a step."""

    def __init__(self, model: SamaForConditionalGeneration, processor: SamaProcessor, seed: int):
        super().__init__(model, seed)
        self.processor = processor
        self.compared = {name: word_tokens(processor, words) for name, words in COMPARED_WORDS.items()}
        ends = {kind: [word.split()[-1] for word in CLOSED_SETS[kind]] for kind in PARTNER}
        self.words = {kind: word_tokens(processor, words) for kind, words in ends.items()}
        self.weights = torch.ones(len(processor.tokenizer))
        self.weights[word_tokens(processor, NAMED_WORDS)] = NAMED_WEIGHT
        self.weights[torch.cat([*self.compared.values()])] = COMPARED_WEIGHT
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.questions = QuestionHeads(model.config.text_config.hidden_size)
            self.prompts = AttributePrompts.of_tracker(model.model.mask_tracker)
        self.prompts.requires_grad_(False)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by its name in `state.pt`."""
        return super().modules | {
            "questions": self.questions,
            "decoder": self.model.model.mask_tracker.sam.mask_decoder,
        }

    @property
    def frozen(self) -> list[nn.Module]:
        """What stays as stage 2 leaves it."""
        return [self.model.model.backbone.vision_tower, *self.shape_encoders]

    def start_from(self, folder: Path | None, masks: Path) -> None:
        """
        Load what earlier stages made.

        Args:
            folder (`Path`, *optional*): Output folder of stage 2, or of this stage: its weights and heads. Without
                one the model stays as it is.
            masks (`Path`): Output folder of stage 1: the prompts, and with `folder` SAM 2.
        """
        state = torch.load(masks / "state.pt", weights_only=True, map_location="cpu")
        self.prompts.load_state_dict(state["prompts"])
        if folder is None:
            return
        self.model.model.mask_tracker.load_state_dict(state["tracker"])
        state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        for name, module in self.modules.items():
            if name in state:  # stage 2 has neither questions nor a decoder
                module.load_state_dict(state[name])

    def to(self, device: str) -> None:
        """Move the model, all heads and the tokens of words to a device."""
        for part in (self.model, self.heads, self.questions, self.prompts):
            part.to(device)
        self.weights = self.weights.to(device)
        self.compared, self.words = (
            {name: tokens.to(device) for name, tokens in one.items()} for one in (self.compared, self.words)
        )

    def dialogues(self, batch: Batch) -> Losses:
        """Dialogues: the language loss, context tokens, and states of cells, regions and [SEG]."""
        inputs, labels, model = batch["inputs"], batch["labels"], self.model.model
        types = inputs["mm_token_type_ids"]
        visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
        embeds, _ = model.embed_inputs(inputs["input_ids"], types, visual)
        states = self.hidden_states(embeds, inputs["attention_mask"])
        parts = [self.language_losses(states[-1], inputs["labels"], labels)]
        if "context" in labels:
            parts.append(self.context_losses(embeds[types == CONTEXT_TOKEN], labels))
        if "cells" in labels:
            parts.append(self.track_losses(states, types == DENSE_FRAME_TOKEN, labels))
        if "region classes" in labels:
            tokens = embeds[types == REGION_POOLED_TOKEN], embeds[types == REGION_SHAPE_TOKEN]
            parts.append(self.region_token_losses(*tokens, labels))
            regions = states[REGION_LAYER][types == REGION_SHAPE_TOKEN]
            parts.append(self.heads.regions.losses("region", regions, labels))
        answered = inputs["labels"] != IGNORED
        starts = answered[:, 1:] & ~answered[:, :-1]
        parts.append(self.questions.losses(states[QUESTION_LAYER][:, :-1][starts], labels))
        if "seg classes" in labels:
            is_seg = inputs["labels"] == self.model.config.seg_token_id
            parts.append(self.seg_losses(states[-1][is_seg], labels))
        return merged(parts)

    def context_losses(self, tokens: torch.Tensor, labels: Tensors) -> Losses:
        """Loss of the place of the object in question in the frame of each context token."""
        loss, gap = place_loss(self.heads.context(tokens[labels["context known"]]), labels["context"])
        return {"context": loss}, {"context px": gap}

    def region_token_losses(self, pooled: torch.Tensor, shapes: torch.Tensor, labels: Tensors) -> Losses:
        """Losses of the look of each region, read off its two tokens."""
        pooled_loss, pooled_metrics = class_loss(self.heads.pooled, pooled, labels["region classes"])
        shape_loss, shape_metrics = class_loss(self.heads.shape, shapes, labels["region classes"])
        metrics = named("pooled", pooled_metrics) | named("shape", shape_metrics)
        return {"region tokens": pooled_loss + 2 * shape_loss}, metrics

    def language_losses(self, states: torch.Tensor, expected: torch.Tensor, labels: Tensors) -> Losses:
        """Weighted cross-entropy of answers. First words weigh more, too: they decide whether anything is marked. So
        do words behind each object of a list: they decide whether it ends."""
        expected = expected[:, 1:]
        answered = expected != IGNORED
        starts = answered & ~F.pad(answered[:, :-1], (1, 0))
        after_seg = F.pad(expected[:, :-1] == self.model.config.seg_token_id, (1, 0))[answered]
        logits, expected = self.model.lm_head(states[:, :-1][answered]).float(), expected[answered]
        turns = starts[answered].cumsum(0) - 1
        for kind, tokens in self.words.items():
            chosen = without_unseen_pairs(kind, logits[:, tokens], labels[f"{kind} partners"][turns])
            logits = logits.index_copy(1, tokens, chosen)
        losses = F.cross_entropy(logits, expected, reduction="none")
        continues = after_seg & (labels["number"][turns] != IGNORED)
        weights = self.weights[expected].maximum(1 + (NAMED_WEIGHT - 1) * starts[answered])
        weights = weights.maximum(1 + (LISTED_WEIGHT - 1) * continues)
        right = (logits.argmax(-1) == expected).float()
        metrics = {"token": right.mean(), "entropy": losses.detach().mean()}
        asked = {name: torch.isin(expected, tokens) for name, tokens in self.compared.items()} | {"list": continues}
        metrics |= {name: right[chosen].mean() for name, chosen in asked.items() if chosen.any()}
        return {"language": (weights * losses).sum() / weights.sum()}, metrics

    def seg_losses(self, states: torch.Tensor, labels: Tensors) -> Losses:
        """Losses of the class, trajectory, prompt and, where the labels have masks, mask of each [SEG]."""
        losses, metrics = self.heads.segs.losses("seg", states, labels)
        prompts = self.model.project_seg_states(states).float()
        losses["prompt"] = prompt_loss(prompts, self.prompts(labels["prompt looks"], labels["prompt places"]))
        metrics["prompt"] = losses["prompt"].detach()
        if "seg masks" in labels:
            tracker = self.model.model.mask_tracker
            features = tracker.encode_frames(labels["sam_pixel_values"]).take(labels["seg rows"])
            masks = tracker.segment_objects(features, prompts)
            losses["mask"], overlap, present = compare_masks([masks], labels["seg masks"], self.processor)
            metrics["mask IoU"] = overlap[present].detach().mean()
        return losses, metrics


def prompt_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error of [SEG] prompts relative to the variance of their targets."""
    spread = target.var(0, unbiased=False).mean().clamp(min=0.1)  # the variance of a single [SEG] is zero
    return (predicted - target).square().mean() / spread


def plan(losses: DialogueLosses, arguments: argparse.Namespace) -> list[Phase]:
    """The two phases."""
    frozen, decoder = losses.frozen, losses.model.model.mask_tracker.sam.mask_decoder
    trained = [*losses.modules.values()]
    fixed, rate = (losses.processor, losses.model.config, arguments), arguments.learning_rate
    dialogues = DialogueExamples(*fixed, arguments.dialogue_steps)
    masks = DialogueExamples(*fixed, arguments.mask_steps, first=arguments.dialogue_steps, with_masks=True)
    return [
        Phase(dialogues, losses.dialogues, rate, trained, [*frozen, decoder]),
        Phase(masks, losses.dialogues, MASK_PHASE_RATE * rate, trained, frozen),
    ]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--videos", type=folder_with("state.pt"), required=True, help="output folder of train_videos.py"
    )
    parser.add_argument("--masks", type=folder_with("state.pt"), required=True, help="made by train_masks.py")
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--dialogue-steps", type=int, default=3000, help="steps of the first phase")
    parser.add_argument("--mask-steps", type=int, default=400, help="steps of the second phase")
    parser.add_argument("--dialogues", type=int, default=16, help="dialogues per step and process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse_arguments()
    model, processor = start(arguments.videos, arguments)
    losses = DialogueLosses(model, processor, arguments.seed)
    losses.start_from(arguments.videos, arguments.masks)
    losses.to(arguments.device)
    train_and_save(model, processor, plan(losses, arguments), losses.modules, arguments, losses.matrices)


if __name__ == "__main__":
    main()
