"""Recover the attribute prompts of stage 1 from a trained sama-tiny.

    python recipes/sama_tiny/read_prompts.py --model checkpoints/sama-tiny --to outputs/tiny/masks

A checkpoint contains SAM 2 but not the attribute prompts that it was trained with. If the state of stage 1 is lost,
this script fits new ones to the [SEG] prompts that the model predicts in dialogues; random errors average out. The
result is a `state.pt` for `--masks` of recipes/sama_tiny/train_language.py and `--prompts` of
recipes/sama_tiny/train_masks.py.
"""

import argparse
from pathlib import Path

import torch

from sama.data.files import atomic_path
from sama.modeling_sama import VISUAL_INPUT_NAMES, SamaForConditionalGeneration, SamaVisualInputs
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import TrainingExamples
from sama.recipes.sama_tiny.train_language import prompt_loss
from sama.recipes.sama_tiny.train_masks import AttributePrompts, prefetch


FIT_STEPS, FIT_BATCH, FIT_RATE = 4000, 1024, 2e-3


@torch.no_grad()
def gather(model: SamaForConditionalGeneration, examples: TrainingExamples) -> dict[str, torch.Tensor]:
    """`looks` and `places` of the objects of all [SEG]s, and the prompts `found` that the model predicts for them when
    it is given the reference answers."""
    parts = {"looks": [], "places": [], "found": []}
    for block in prefetch(examples, 0, examples.arguments):
        for example in block:
            inputs, targets = example["inputs"], example["targets"]
            if "looks" not in targets:
                continue
            visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
            hidden = model.model(
                inputs["input_ids"],
                inputs["attention_mask"],
                mm_token_type_ids=inputs["mm_token_type_ids"],
                visual=visual,
            ).last_hidden_state
            states = hidden[inputs["labels"] == model.config.seg_token_id]
            values = targets["looks"], targets["places"], model.project_seg_states(states)
            for name, part in zip(parts, values, strict=True):
                parts[name].append(part)
    return {name: torch.cat(part) for name, part in parts.items()}


def fit(prompts: AttributePrompts, gathered: dict[str, torch.Tensor], seed: int, steps: int = FIT_STEPS) -> float:
    """Fit prompts to the first nine tenths; returns the error on the rest, relative to the variance."""
    number = len(gathered["found"])
    generator, held_out = torch.Generator().manual_seed(seed), slice(number * 9 // 10, None)
    optimizer = torch.optim.AdamW(prompts.parameters(), lr=FIT_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(held_out.start, (FIT_BATCH,), generator=generator)
        loss = prompt_loss(prompts(gathered["looks"][rows], gathered["places"][rows]), gathered["found"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    looks, places, found = (gathered[name][held_out] for name in ("looks", "places", "found"))
    with torch.no_grad():
        return prompt_loss(prompts(looks, places), found).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a trained sama-tiny")
    parser.add_argument("--to", type=Path, required=True, help="output folder, for state.pt")
    parser.add_argument("--dialogue-steps", type=int, default=600, help="number of batches of dialogues")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that generate dialogues")
    arguments = argparse.Namespace(**vars(parser.parse_args()), mask_steps=0, probe_steps=0)
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    examples = TrainingExamples(processor, model.config, arguments)
    gathered = gather(model.to(arguments.device), examples)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        prompts = AttributePrompts.of_tracker(model.model.mask_tracker).to(arguments.device)
    error = fit(prompts, gathered, arguments.seed)
    print(f"{len(gathered['found'])} [SEG] prompts, relative error {error:.3f}")
    state = {"tracker": model.model.mask_tracker.state_dict(), "prompts": prompts.state_dict()}
    with atomic_path(arguments.to / "state.pt") as temporary:
        torch.save(state, temporary)


if __name__ == "__main__":
    main()
