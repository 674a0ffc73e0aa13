"""Second stage of the small model: its eyes, its aggregator and its language model learn toy world.

    python scripts/train_tiny_language.py --model outputs/tiny/start --masks outputs/tiny/masks --to outputs/language

Three phases, each with a schedule of its own and heads that are dropped afterwards. Masks alone: the shape encoders
learn shape, size and place. Then frames: regions and names of things are shown to the aggregator, and heads read off
its context tokens where the thing in question is in each frame, off every cell of a frame what colours it holds, and
off the region tokens what they look like. Then dialogues: the language loss, the same heads, heads on the language
model's states of a region (look, motion, way), and a [SEG] prompt that is to equal the one by which SAM 2 found the
thing in the first stage, so that no frame passes SAM 2 here. Motion does not come from the language loss alone in the
time there is (docs/log.md). Killed, it goes on from its last state, `state.pt`, as if nothing had been.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sama.configuration_sama import CONTEXT_TOKEN, REGION_POOLED_TOKEN, REGION_SHAPE_TOKEN
from sama.data.collator import IGNORED
from sama.data.rendering import Renderer, RenderSettings
from sama.data.toy_clip import Clip
from sama.data.toy_shapes import COLOURS, SIZES
from sama.data.toy_world import ToyWorld
from sama.modeling_sama import VISUAL_INPUT_NAMES, SamaForConditionalGeneration, SamaVisualInputs
from sama.processing_sama import SamaProcessor
from sama.scripts.tiny_facts import (
    CELL,
    CLOSED_SETS,
    PLACE,
    SIDE,
    cells,
    colours_of_cells,
    draw_stamps,
    facts,
    name_of,
    named,
    places,
    readers,
)
from sama.scripts.train_tiny_masks import AttributePrompts, look_of, place_of, rate, start_anew
from sama.video_sama import Region, SamaVideo


WAY_TIMES = 8  # moments of a clip at which a region's state tells where the thing is
TALK = {
    "dialogue": 4, "refer_look": 2, "refer_motion": 1, "description": 0.5, "video_qa": 0.5, "caption": 0.5,
    "still": 0.5,
}  # fmt: skip
BLOCK = 4  # steps whose lessons are drawn together, so that those of a step are of like length
MASKS, REHEARSED = 512, 96  # masks in a step of the first phase, and in one of the others
WEIGHTS = {
    "language": 3.0, "prompt": 2.0, "context": 1.0, "cells": 20.0, "spot": 5.0, "found": 100.0, "pooled": 0.1,
    "shape": 0.2, "asked": 0.2, "named": 0.5, "attention": 2.0, "rehearsal": 1.0, "state": 0.15, "way": 2.0,
    "stamp": 2.0,
}  # fmt: skip


@dataclass
class Lesson:
    """A conversation, and what is true of the things in it.

    Args:
        messages (`list[dict]`): As the processor takes them.
        clip (`Clip`): What is shown.
        subjects (`list[int]`): The thing that each user turn asks about, -1 where that is not known.
        regions, segs (`list[int]`): The thing of each region and of each [SEG], in reading order.
        frames (`list[int]`): The context frames.
    """

    messages: list[dict]
    clip: Clip
    subjects: list[int]
    regions: list[int]
    segs: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)

    @property
    def whole_frames(self) -> bool:
        """Whether the context frames are frames, not tiles of a still."""
        return len(self.frames) <= self.clip.num_frames


def mlp(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, outputs))


class Heads(nn.Module):
    """What reads facts off tokens and states in training, and is not part of the model."""

    def __init__(self, width: int):
        super().__init__()
        self.context = mlp(width, PLACE)
        self.cells = mlp(width, CELL * len(COLOURS))
        self.found = nn.Linear(width, CELL)
        self.spot = nn.Linear(width, 2)
        self.named = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("colour", "shape")})
        self.stamps = nn.ModuleDict({name: mlp(width, PLACE) for name in ("shape", "asked")})
        self.pooled = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("colour", "size")})
        self.shape = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("shape", "size")})
        self.asked = nn.ModuleDict({kind: mlp(width, len(CLOSED_SETS[kind])) for kind in ("shape", "size")})
        self.state = nn.ModuleDict({kind: mlp(width, len(words)) for kind, words in CLOSED_SETS.items()})
        self.way = mlp(width, WAY_TIMES * PLACE)


def place_loss(found: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of places (..., 4): whether a thing is seen, and where it is where it is seen; and the mean distance."""
    seen = wanted[..., 0]
    presence = F.binary_cross_entropy_with_logits(found[..., 0], seen)
    gap = (found[..., 1:] - wanted[..., 1:]).abs() * seen[..., None]
    return 0.1 * presence + gap.sum() / seen.sum().clamp(min=1), gap[..., :2].sum() / seen.sum().clamp(min=1) / 2


class Teacher:
    """Lessons by their number, and the losses of a batch of them."""

    def __init__(self, model: SamaForConditionalGeneration, processor: SamaProcessor, seed: int, split: str = "train"):
        self.model, self.processor, self.seed = model, processor, seed
        self.grid = int(model.config.image_seq_length**0.5)
        width = model.config.text_config.hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = Heads(width)
            self.prompts = AttributePrompts(model.config.sam_config.prompt_encoder_config.hidden_size)
        self.prompts.requires_grad_(False)
        self.world = ToyWorld({"split": split, "tasks": TALK}, seed)
        self.sights = ToyWorld({"split": split, "tasks": {"dialogue": 3, "caption": 1, "refer_look": 1}}, seed + 1)

    # ---- lessons ----------------------------------------------------------------------------------------------------

    def dialogue(self, index: int) -> Lesson:
        """A record of toy world as the Trainer would see it."""
        rng = np.random.default_rng([self.seed, index])
        task, clip, _ = self.world.play(index)
        record = self.world.describe(index)
        if task == "still":
            video = SamaVideo.open(clip.frames[0])
        else:
            video = SamaVideo.open(list(clip.frames))
        shape = "mask" if rng.random() < 0.7 else "mixed"
        sample = Renderer(self.processor, RenderSettings(regions=shape))(record, video, None, rng)
        asked = [message for message in record["messages"] if message["role"] == "user"]
        answers = [message for message in record["messages"] if message["role"] == "assistant"]
        pointed = [named(message, "region", "object") for message in asked[: len(sample.messages) // 2]]
        subjects = [
            (regions or named(answer, "grounded", "objects") or [-1])[0]
            for regions, answer in zip(pointed, answers, strict=False)
        ]
        regions = [thing for one in pointed for thing in one]
        return self.finish(
            Lesson(sample.messages, clip, subjects, regions, [int(name) for name in sample.objects]), video
        )

    def sight(self, index: int) -> Lesson:
        """A clip and one short question for each of its things, by a region or by a name that suits it alone."""
        rng = np.random.default_rng([self.seed, 1, index])
        clip = self.sights.play(index)[1]
        video = SamaVideo.open(list(clip.frames))
        dense = self.processor.choose_frames(video).dense
        messages, subjects, regions = [], [], []
        for thing in range(len(clip.things)):
            name, seen = name_of(clip, thing, rng), [frame for frame in dense if clip.seen[thing, frame]]
            for by_name in (False, True):
                if not seen or (by_name and name is None):
                    continue
                frame = seen[rng.integers(len(seen))]
                part = {"type": "region", "region": Region(frame=frame, mask=clip.masks[thing, frame])}
                content = [{"type": "text", "text": f"Find {name}."}] if by_name else [part]
                messages += [{"role": "user", "content": content}]
                messages += [{"role": "assistant", "content": [{"type": "text", "text": "."}]}]
                subjects.append(thing)
                regions += [] if by_name else [thing]
        messages[0]["content"].insert(0, {"type": "video", "video": video})
        return self.finish(Lesson(messages, clip, subjects, regions), video)

    def block(self, step: int, size: int, with_language: bool) -> list[list[Lesson]]:
        """The lessons of the `BLOCK` steps around this one, `size` for each step."""
        first = step // BLOCK * BLOCK * size
        lesson = self.dialogue if with_language else self.sight
        drawn = sorted((lesson(first + number) for number in range(BLOCK * size)), key=lambda one: len(one.messages))
        order = np.random.default_rng([self.seed, 2, step // BLOCK]).permutation(BLOCK)
        return [drawn[place * size : (place + 1) * size] for place in order]

    def finish(self, lesson: Lesson, video: SamaVideo) -> Lesson:
        tiles = len(self.processor.tile_pixel_values(video)) if video.is_image else 0
        lesson.frames = [0] * tiles if tiles else list(self.processor.choose_frames(video).context)
        return lesson

    def encode(self, lessons: list[Lesson]) -> dict[str, torch.Tensor]:
        """Model inputs with labels."""
        batch = self.processor.apply_chat_template(
            [lesson.messages for lesson in lessons], add_generation_prompt=False, return_assistant_tokens_mask=True
        )
        batch["labels"] = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, IGNORED)
        return batch

    # ---- losses -----------------------------------------------------------------------------------------------------

    def stamp_losses(self, number: int, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Shape, size and place of masks, read off both shape encoders."""
        masks, classes, spots = draw_stamps(number, rng)
        side = self.model.config.region_mask_size
        masks = F.interpolate(torch.from_numpy(masks)[:, None].float(), (side, side), mode="nearest").flatten(1)
        inner, losses, report = self.model.model, {"stamp": 0.0}, {}
        for name, encoder in (("shape", inner.region_encoder), ("asked", inner.context_aggregator.region_encoder)):
            tokens = encoder.shape_projection(masks)
            losses[name] = self.class_loss(self.heads.get_submodule(name), tokens, classes, name, report)
            loss, _ = place_loss(self.heads.stamps[name](tokens), spots)
            losses["stamp"] = losses["stamp"] + loss
        return losses, report

    def losses(self, lessons: list[Lesson], with_language: bool) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """Every loss by name, and figures for the log."""
        batch, model = self.encode(lessons), self.model
        visual = SamaVisualInputs(**{name: batch.get(name) for name in VISUAL_INPUT_NAMES})
        types = batch["mm_token_type_ids"]
        aggregator, losses, report = model.model.context_aggregator, {}, {}
        with (
            inputs_and_outputs(model.model.multi_modal_projector) as frames,
            inputs_and_outputs(aggregator.injection) as injected,
            inputs_and_outputs(aggregator.injection.attention_projection) as attended,
            inputs_and_outputs(aggregator.injection.query_projection) as queries,
            inputs_and_outputs(aggregator.injection.key_projection) as keys,
            inputs_and_outputs(aggregator.region_encoder.shape_projection) as asked,
        ):
            embeds = model.model.embed_inputs(batch["input_ids"], types, visual)
        losses["cells"] = self.cell_loss(lessons, frames[0][1], visual)
        losses["spot"], report["spot px"] = self.spot_loss(frames[0][1])
        losses["found"] = self.found_loss(lessons, [output for _, output in attended])
        pairs = zip((output for _, output in queries), (output for _, output in keys), strict=True)
        losses["attention"] = self.attention_loss(lessons, pairs)
        temporal = torch.cat([inputs[1].mean(1) for inputs, _ in injected])  # (num_questions, width)
        subjects = [(lesson.clip, subject) for lesson in lessons for subject in lesson.subjects]
        known = [facts(*one)[:2] if one[1] >= 0 else [IGNORED] * 2 for one in subjects]
        known = dict(zip(("colour", "shape"), torch.tensor(known).T, strict=True))
        losses["named"] = self.class_loss(self.heads.named, temporal, known, "named", report)
        losses["context"], report["context px"] = self.context_loss(lessons, embeds[types == CONTEXT_TOKEN])
        regions = [(lesson.clip, thing) for lesson in lessons for thing in lesson.regions]
        if regions:
            classes = dict(zip(CLOSED_SETS, torch.tensor([facts(*one) for one in regions]).T, strict=True))
            for name, kind in (("pooled", REGION_POOLED_TOKEN), ("shape", REGION_SHAPE_TOKEN)):
                heads = self.heads.get_submodule(name)
                losses[name] = self.class_loss(heads, embeds[types == kind], classes, name, report)
            losses["asked"] = self.class_loss(self.heads.asked, asked[0][1], classes, "asked", report)
        if with_language:
            hidden = model.model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).last_hidden_state
            logits, losses["language"] = model.score_labels(hidden, batch["labels"], None)
            targets = batch["labels"][:, 1:]
            report["token"] = (logits.argmax(-1) == targets[targets != IGNORED]).float().mean().item()
            if regions:
                states = hidden[types == REGION_SHAPE_TOKEN]
                losses["state"] = self.class_loss(self.heads.state, states, classes, "state", report)
                losses["way"], report["way px"] = self.way_loss(states, regions)
            losses["prompt"], report["prompt"] = self.prompt_loss(lessons, hidden, batch["labels"])
        return losses, report

    def cell_loss(self, lessons: list[Lesson], frames: torch.Tensor, visual: SamaVisualInputs) -> torch.Tensor:
        """How much of each colour each cell of the context frames holds; `frames` (num_frames, tokens, width)."""
        counts = zip(visual.num_context_frames.tolist(), visual.num_extra_frames.tolist(), strict=True)
        rows, first, wanted = [], 0, []
        for lesson, (context, extra) in zip(lessons, counts, strict=True):
            if lesson.whole_frames:
                rows += range(first, first + context)
                held = colours_of_cells(lesson.clip, lesson.frames, self.grid)
                wanted.append(held.reshape(*held.shape[:2], -1))
            first += context + extra
        found = self.heads.cells(frames[rows])
        return F.mse_loss(found, torch.from_numpy(np.concatenate(wanted)))

    def spot_loss(self, frames: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Where in its frame each cell lies, read off it; `frames` (num_frames, tokens, width). Without it cells keep
        their colours alone, and no attention to them can tell where a thing is (docs/log.md)."""
        centres = (torch.arange(self.grid) + 0.5) / self.grid
        wanted = torch.cartesian_prod(centres, centres).expand(len(frames), -1, -1)
        found = self.heads.spot(frames)
        return F.mse_loss(found, wanted), SIDE * (found - wanted).abs().mean().item()

    def attention_loss(
        self, lessons: list[Lesson], pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """Which temporal tokens the cells of a frame read: those that hold the thing in question the first four, by
        where in the frame they hold it, all others the rest. `pairs` has for each lesson queries (num_frames, tokens,
        width) and keys (num_questions, num_temporal_queries, width). The few cells that hold the thing, those that
        hold another one and the bare ground weigh the same."""
        losses = []
        for lesson, (queries, keys) in zip(lessons, pairs, strict=True):
            for subject, own in zip(lesson.subjects, keys, strict=True):
                if subject >= 0 and lesson.whole_frames:
                    masks = lesson.clip.masks[:, lesson.frames]
                    wanted = torch.from_numpy(readers(masks[subject], self.grid, len(own)))
                    found = (queries @ own.T / own.shape[-1] ** 0.5).log_softmax(-1)
                    apart = -(wanted * found).sum(-1)
                    thing, things = (cells(mask, self.grid)[..., 0] > 0 for mask in (masks[subject], masks.any(0)))
                    kinds = [apart[torch.from_numpy(kind)] for kind in (thing, things & ~thing, ~things)]
                    losses.append(torch.stack([kind.mean() for kind in kinds if len(kind)]).mean())
        return torch.stack(losses).mean()

    def found_loss(self, lessons: list[Lesson], attended: list[torch.Tensor]) -> torch.Tensor:
        """Where the thing in question is, read off what each cell has taken from the temporal tokens: one tensor
        (num_questions, num_frames * tokens, width) for each lesson."""
        found, wanted = [], []
        for lesson, cells_of_lesson in zip(lessons, attended, strict=True):
            for subject, own in zip(lesson.subjects, cells_of_lesson, strict=True):
                if subject >= 0 and lesson.whole_frames:
                    found.append(own)
                    held = cells(lesson.clip.masks[subject][lesson.frames], self.grid, of_frame=True)
                    wanted.append(held.reshape(-1, CELL))
        return F.mse_loss(self.heads.found(torch.cat(found)), torch.from_numpy(np.concatenate(wanted)))

    def context_loss(self, lessons: list[Lesson], tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Where the thing in question is in the frame of each context token (num_tokens, width)."""
        wanted, known = [], []
        for lesson in lessons:
            for subject in lesson.subjects:
                known += [subject >= 0 and lesson.whole_frames] * len(lesson.frames)
                wanted.append(places(lesson.clip, [max(subject, 0)], lesson.frames)[0])
        known = torch.tensor(known)
        found = self.heads.context(tokens[known])
        loss, gap = place_loss(found, torch.from_numpy(np.concatenate(wanted))[known])
        return loss, SIDE * gap.item()

    def way_loss(self, states: torch.Tensor, regions: list[tuple[Clip, int]]) -> tuple[torch.Tensor, float]:
        """Where the thing of a region is at `WAY_TIMES` moments, read off the region's state (num_regions, width)."""
        moments = [np.linspace(0, clip.num_frames - 1, WAY_TIMES).round().astype(int) for clip, _ in regions]
        wanted = [places(clip, [thing], times)[0] for (clip, thing), times in zip(regions, moments, strict=True)]
        found = self.heads.way(states).unflatten(-1, (WAY_TIMES, PLACE))
        loss, gap = place_loss(found, torch.from_numpy(np.stack(wanted)))
        return loss, SIDE * gap.item()

    def class_loss(
        self, heads: nn.ModuleDict, tokens: torch.Tensor, classes: dict, name: str, report: dict
    ) -> torch.Tensor:
        losses = []
        for kind, head in heads.items():
            logits, wanted = head(tokens), classes[kind]
            if (wanted != IGNORED).any():
                losses.append(F.cross_entropy(logits, wanted, ignore_index=IGNORED))
                report[f"{name} {kind}"] = (logits.argmax(-1) == wanted)[wanted != IGNORED].float().mean().item()
        return sum(losses)

    def prompt_loss(
        self, lessons: list[Lesson], hidden: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """How far each [SEG] prompt is from the one that the first stage learned, in shares of their variance."""
        things = [(lesson.clip, thing) for lesson in lessons for thing in lesson.segs]
        if not things:
            return hidden.new_zeros(()), 0.0
        wanted = self.prompts(*map(torch.from_numpy, told_of(things)))
        found = self.model.project_seg_states(hidden[labels == self.model.config.seg_token_id])
        spread = wanted.var(0, unbiased=False).mean().clamp(min=0.1)  # a single [SEG] has none
        loss = (found - wanted).square().mean() / spread
        return loss, loss.item()


def told_of(things: list[tuple[Clip, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Looks (num_things, 3) and places (num_things, 7) of things, as [`AttributePrompts`] takes them. A size is told
    only where colour and shape do not decide, and a place where a size does not either: an answer tells them seldom,
    and then the language model has to see them."""
    looks, places = [], []
    for clip, thing in things:
        own = look_of(clip)
        look, others = own[thing].copy(), np.delete(own, thing, axis=0)
        place = place_of(clip.masks[[thing]])[0] * (others == look).all(1).any()
        if not (others[:, :2] == look[:2]).all(1).any():
            look[2] = len(SIZES)
        looks.append(look)
        places.append(place)
    return np.stack(looks), np.stack(places)


@contextmanager
def inputs_and_outputs(module: nn.Module) -> Iterator[list[tuple]]:
    """What a module takes and gives, call by call, while the block runs."""
    found = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append((inputs, output)))
    try:
        yield found
    finally:
        handle.remove()


def trained_parts(model: SamaForConditionalGeneration) -> nn.ModuleList:
    """Everything but SAM 2."""
    inner = model.model
    parts = [inner.vision_tower, inner.multi_modal_projector, inner.language_model, inner.context_aggregator]
    return nn.ModuleList([*parts, inner.region_encoder, inner.seg_projection, model.lm_head])


def learn(teacher: Teacher, arguments: argparse.Namespace, state_path: Path) -> None:
    """The steps of both phases."""
    parts = trained_parts(teacher.model)
    parameters = [*parts.parameters(), *teacher.heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.learning_rate, weight_decay=0.01, betas=(0.9, 0.98))
    sights, block = arguments.mask_steps + arguments.sight_steps, []
    first, steps, sums = 0, sights + arguments.dialogue_steps, defaultdict(list)
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        parts.load_state_dict(state["parts"])
        teacher.heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"going on from step {first}")
    for step in range(first, steps):
        if step == max(first, sights):  # the eyes are good by now, and cost a sixth of a step
            nn.ModuleList(parts[:2]).requires_grad_(False)
        start, end = next(bounds for bounds in pairwise((0, arguments.mask_steps, sights, steps)) if step < bounds[1])
        torch.manual_seed(arguments.seed + step)  # dropout in the Q-Formers
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * rate(step - start, end - start)
        if step < arguments.mask_steps:
            losses, report = teacher.stamp_losses(MASKS, np.random.default_rng([arguments.seed, step]))
        else:
            if step % BLOCK == 0 or step == sights or not block:
                block = teacher.block(step, arguments.batch_size, step >= sights)
            losses, report = teacher.losses(block[step % BLOCK], step >= sights)
            stamps, _ = teacher.stamp_losses(REHEARSED, np.random.default_rng([arguments.seed, step]))
            losses["rehearsal"] = sum(WEIGHTS[name] * loss for name, loss in stamps.items())
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        nn.utils.clip_grad_norm_([each for each in parameters if each.grad is not None], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in [*report.items(), *((f"loss {name}", loss.item()) for name, loss in losses.items())]:
            sums[name].append(value)
        if (step + 1) % arguments.log_steps == 0 or step + 1 == steps:
            print(f"step {step + 1}:", ", ".join(f"{k} {np.mean(v):.3g}" for k, v in sums.items()), flush=True)
            sums.clear()
        if (step + 1) % arguments.save_steps == 0 or step + 1 == steps:
            state = {"parts": parts.state_dict(), "heads": teacher.heads.state_dict()}
            unfinished = state_path.with_suffix(".unfinished")
            torch.save(state | {"optimizer": optimizer.state_dict(), "step": step + 1}, unfinished)
            unfinished.replace(state_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a small SAMA, as scripts/make_tiny.py makes it")
    parser.add_argument("--masks", type=Path, help="what scripts/train_tiny_masks.py wrote")
    parser.add_argument("--to", type=Path, required=True, help="folder of the result")
    parser.add_argument("--mask-steps", type=int, default=1500, help="steps on masks alone")
    parser.add_argument("--sight-steps", type=int, default=600, help="steps on frames after them")
    parser.add_argument("--dialogue-steps", type=int, default=3000, help="steps on dialogues after them")
    parser.add_argument("--batch-size", type=int, default=16, help="clips in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--keep", action="store_true", help="start from the model's weights, not from new ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-steps", type=int, default=50)
    parser.add_argument("--save-steps", type=int, default=100)
    arguments = parser.parse_args()
    model = SamaForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = SamaProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    if not arguments.keep:
        start_anew(trained_parts(model), arguments.seed)
    teacher = Teacher(model.train(), processor, arguments.seed)
    if arguments.masks:
        state = torch.load(arguments.masks / "state.pt", weights_only=True)
        model.model.mask_tracker.load_state_dict(state["tracker"])
        teacher.prompts.load_state_dict(state["prompts"])
    model.model.mask_tracker.requires_grad_(False)
    arguments.to.mkdir(parents=True, exist_ok=True)
    learn(teacher, arguments, arguments.to / "state.pt")
    model.save_pretrained(arguments.to)
    processor.save_pretrained(arguments.to)


if __name__ == "__main__":
    main()
