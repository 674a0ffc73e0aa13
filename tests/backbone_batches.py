"""Conversations about videos of different sizes as training batches, for tests of every family of backbones."""

from pathlib import Path

import torch
from processor_fixtures import assistant, box_part, mask_part, noise_video, user
from tiny_backbones import FAMILY, tiny_backbone

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.training.parts import freeze_all_but, parse_parts


HEIGHT, WIDTH, NUM_FRAMES = 24, 40, 6


def few_frames(processor: SamaProcessor) -> SamaProcessor:
    """Three context frames and two dense ones, so that a region may lie on a frame that is neither."""
    processor.max_context_frames, processor.num_dense_frames = 3, 2
    return processor


def save_backbones(folder: Path) -> dict[str, Path]:
    """For one backbone of each family a folder with model and processor, as a user would be given it."""
    found = {}
    for name in FAMILY:
        model, processor = tiny_backbone(name)
        found[name] = folder / name
        model.save_pretrained(found[name])
        few_frames(processor).save_pretrained(found[name])
    return found


def video(height: int = HEIGHT, width: int = WIDTH, frames: int = NUM_FRAMES) -> dict:
    return {"type": "video", "video": noise_video(frames, height, width)}


def click_part(frame: int) -> dict:
    return {"type": "region", "frame": frame, "points": [(30, 12), (4, 4)], "labels": [1, 0]}


def conversations() -> list[list[dict]]:
    """Videos of different sizes and lengths with masks, clicks and boxes, one of them over two turns, an image, and
    text alone."""
    return [
        [
            user(video(), "What is ", mask_part(2, (HEIGHT, WIDTH)), "?"),
            assistant("A ball [SEG]."),
            user("And ", click_part(4), " near ", box_part(1, (2, 3, 20, 18)), "?"),
        ],
        [user(video(40, 16, 3), "Who is ", box_part(1, (2, 3, 12, 30)), "?")],
        [user({"type": "image", "image": noise_video(1, 32, 24)[0]}, "What is ", box_part(0, (2, 3, 20, 18)), "?")],
        [user("Hello, how are you?")],
    ]


def training_batch(processor: SamaProcessor) -> dict:
    """The answers of [`conversations`] with targets for each of their [SEG]s in two frames."""
    chosen = [[*messages, assistant("A <p>ball</p>[SEG].")] for messages in conversations()]
    chosen[2][-1] = chosen[3][-1] = assistant("Fine.")
    batch = processor.apply_chat_template(chosen, add_generation_prompt=False, return_assistant_tokens_mask=True)
    batch = dict(batch)
    labels = torch.where(batch.pop("assistant_masks") == 1, batch["input_ids"], -100)
    counts = (labels == processor.seg_token_id).sum(1).tolist()
    frames = [2 if count else 0 for count in counts]
    generator, size = torch.Generator().manual_seed(0), processor.sam_image_size
    return batch | {
        "labels": labels,
        "sam_pixel_values": torch.randn(sum(frames), 3, size, size, generator=generator),
        "sam_frame_counts": torch.tensor(frames),
        "sam_prompted": torch.tensor([True, False] * (sum(frames) // 2)),
        "target_masks": [
            torch.rand(count, num, 24, 32, generator=generator) > 0.5
            for count, num in zip(counts, frames, strict=True)
        ],
    }


def gradients(model, batch: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(**batch, use_cache=False).loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.requires_grad}


def fresh_model(sama) -> SamaForConditionalGeneration:
    """Another model with the same weights, ready to be trained, without dropout."""
    model = SamaForConditionalGeneration(sama[0].config)
    model.load_state_dict(sama[0].state_dict())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    freeze_all_but(model, parse_parts("all", memory_training=True))
    return model.train()
