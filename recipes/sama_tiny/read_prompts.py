"""Reads the prompts of the small model's first stage back from its language model, which has learned to give them.

    python recipes/sama_tiny/read_prompts.py --model checkpoints/sama-tiny --to outputs/tiny/masks

A checkpoint holds SAM 2 but not the attribute prompts that it was trained with. Where the state of the first stage is
gone, this fits prompts to the [SEG] prompts that the model gives in dialogues; what it gets wrong by chance averages
out. The result is a `state.pt` for `--masks` of recipes/sama_tiny/train_language.py and `--prompts` of
recipes/sama_tiny/train_masks.py.
"""

import argparse
from pathlib import Path

import torch

from sama.modeling_sama import VISUAL_INPUT_NAMES, SamaForConditionalGeneration, SamaVisualInputs
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import Lessons
from sama.recipes.sama_tiny.train_language import prompt_loss
from sama.recipes.sama_tiny.train_masks import AttributePrompts, in_advance


FIT_STEPS, FIT_BATCH, FIT_RATE = 4000, 1024, 2e-3


@torch.no_grad()
def gather(model: SamaForConditionalGeneration, lessons: Lessons) -> dict[str, torch.Tensor]:
    """What the [SEG]s of all lessons were told of, `looks` and `places`, and the prompts that the model gave them, its
    answers being the true ones."""
    parts = {"looks": [], "places": [], "found": []}
    for block in in_advance(lessons, 0, lessons.arguments):
        for example in block:
            inputs, truth = example["inputs"], example["truth"]
            if "looks" not in truth:
                continue
            visual = SamaVisualInputs(**{name: inputs.get(name) for name in VISUAL_INPUT_NAMES})
            hidden = model.model(
                inputs["input_ids"],
                inputs["attention_mask"],
                mm_token_type_ids=inputs["mm_token_type_ids"],
                visual=visual,
            ).last_hidden_state
            states = hidden[inputs["labels"] == model.config.seg_token_id]
            told = truth["looks"], truth["places"], model.project_seg_states(states)
            for name, part in zip(parts, told, strict=True):
                parts[name].append(part)
    return {name: torch.cat(part) for name, part in parts.items()}


def fit(prompts: AttributePrompts, gathered: dict[str, torch.Tensor], seed: int, steps: int = FIT_STEPS) -> float:
    """Trains prompts on the first nine tenths; the error on the last one, in shares of the variance."""
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
    parser.add_argument("--model", type=Path, required=True, help="a small SAMA that answers with masks")
    parser.add_argument("--to", type=Path, required=True, help="folder of the result, state.pt")
    parser.add_argument("--dialogue-steps", type=int, default=600, help="batches of dialogues to read")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that draw dialogues")
    arguments = argparse.Namespace(**vars(parser.parse_args()), mask_steps=0, sight_steps=0)
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    lessons = Lessons(processor, model.config, arguments)
    gathered = gather(model.to(arguments.device), lessons)
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        prompts = AttributePrompts.of_tracker(model.model.mask_tracker).to(arguments.device)
    error = fit(prompts, gathered, arguments.seed)
    print(f"{len(gathered['found'])} [SEG] prompts, error {error:.3f} of their variance")
    arguments.to.mkdir(parents=True, exist_ok=True)
    state = {"tracker": model.model.mask_tracker.state_dict(), "prompts": prompts.state_dict()}
    torch.save(state, arguments.to / "state.pt")


if __name__ == "__main__":
    main()
