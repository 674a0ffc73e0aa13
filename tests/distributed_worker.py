"""One process of a distributed test, forked, or started by torchrun or `accelerate launch`; rank 0 writes a report.

    distributed_worker.py FOLDER [WAY...] [train ARGUMENTS...]

makes three updates of the tiny model in each WAY of zero2, zero3 and fsdp2, on batches that use different parts, and
saves the weights as FOLDER/WAY.pt; then runs train.py.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from tiny_model import IMAGE_SIZE, SAM_SIZE, tiny_model
from torch import nn

from sama.checkpointing_sama import FRAMES_AT_ONCE


MASK, POSITION, SEG = 113, 114, 262
TRAINED = ("context_aggregator", "region_encoder", "seg_projection", "mask_decoder", "multi_modal_projector")
UNTRAINED = ("iou_prediction_head", "pred_obj_score_head", "original_mask_decoder")
RATE = 0.05
FRAMES = FRAMES_AT_ONCE + 1  # a frozen encoder that is not in pieces works on them in two chunks


def sample(seed: int, visual: bool, masks: bool) -> dict:
    """A batch of one conversation: with frames and a region if `visual`, with objects to segment if `masks`."""
    generator = torch.Generator().manual_seed(seed)
    # The dense tokens of the first frame, context of all frames, region and its shape, then words
    kinds = [1] * 4 + [2] * FRAMES + [3, 4] if visual else []
    words = torch.randint(1, 110, (10,), generator=generator).tolist()
    answer = [40, SEG, 41, SEG] if masks else [40, 41]
    ids = torch.tensor([[261] * len(kinds) + words + answer])
    labels = ids.clone()
    labels[:, : -len(answer)] = -100
    num_objects, num_frames = (2, FRAMES) if masks else (0, 0)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.tensor([kinds + [0] * len(words + answer)]),
        "labels": labels,
        "sam_pixel_values": torch.randn(num_frames, 3, SAM_SIZE, SAM_SIZE, generator=generator),
        "sam_frame_counts": torch.tensor([num_frames]),
        "target_masks": [torch.rand(num_objects, num_frames, 24, 24, generator=generator) > 0.5],
    }
    one = torch.ones(1, dtype=torch.long)
    frames = {
        "pixel_values": torch.randn(FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator),
        "num_context_frames": FRAMES * one,
        "num_extra_frames": 0 * one,
        "dense_frames": 0 * one,
        "qformer_input_ids": torch.tensor([[7, MASK, POSITION, 9]]),
        "qformer_attention_mask": torch.ones(1, 4, dtype=torch.long),
        "question_samples": 0 * one,
        "region_masks": (torch.rand(1, 16, 16, generator=generator) > 0.5).float(),
        "region_grid_masks": torch.ones(1, 2, 2),
        "region_frames": 0 * one,
    }
    return batch | (frames if visual else {})


# Batches of the two processes in each update; each kind of batch uses different parts
UPDATES = [
    (sample(1, visual=False, masks=False), sample(2, visual=True, masks=True)),
    (sample(3, visual=True, masks=False), sample(4, visual=False, masks=True)),
    (sample(5, visual=False, masks=False), sample(6, visual=False, masks=False)),
]


def mixed_model() -> nn.Module:
    """The tiny model with the published parts and the language model trained, without dropout."""
    model = tiny_model(num_mask_points=60).train()
    for name, parameter in model.named_parameters():
        trained = any(part in name for part in (*TRAINED, "language_model.layers"))
        parameter.requires_grad_(trained and not any(part in name for part in UNTRAINED))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def sharded_layers(model: nn.Module) -> list[str]:
    """Layer classes that are FSDP2 units: the model's `_no_split_modules` that are shardable."""
    from sama.training.sharding import is_shardable

    replicated = {type(part).__name__ for name, part in model.named_modules() if not is_shardable(name)}
    shardable = {type(part).__name__ for name, part in model.named_modules() if is_shardable(name)}
    return sorted((shardable - replicated) & set(model._no_split_modules))


def totals(pair: tuple[dict, dict]) -> dict:
    """Numbers of labels and masks in an update."""
    labels = sum(int((batch["labels"] != -100).sum()) for batch in pair)
    masks = sum(len(batch["target_masks"][0].flatten(0, 1)) for batch in pair)
    return {"num_items_in_batch": labels, "num_masks_in_batch": max(masks, 1)}


def leave_out_what_compiles() -> None:
    """Keeps DeepSpeed from two things that take a minute on a CPU: building collectives in shared memory, which only
    inference calls, and loading PyTorch's compiler for an optimizer that is not used here."""
    import deepspeed
    from deepspeed.runtime import compiler

    deepspeed.ops.__compatible_ops__ = {}
    compiler.compile = lambda: lambda function: function


def zero(stage: int, file: Path) -> dict:
    """Runs three updates under ZeRO; saves the weights as `file`."""
    import deepspeed

    from sama.training.sharding import gather_replicated_parts

    settings = json.loads((Path(__file__).parent.parent / f"scripts/accelerate/zero{stage}.json").read_text())
    settings = {name: value for name, value in settings.items() if value != "auto" and name != "bf16"}
    # Many small buckets, so that the order of gradients matters
    settings["zero_optimization"] |= {"reduce_bucket_size": 20_000}
    if stage == 3:
        settings["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    # DeepSpeed clips gradients at norm 1 by default
    settings |= {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1e9}
    model = mixed_model()
    model.gradient_checkpointing_enable()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(trained, RATE), config=settings)
    if stage == 3:
        gather_replicated_parts(engine.module, engine.optimizer)
    rank = torch.distributed.get_rank()
    for pair in UPDATES:
        output = engine(**pair[rank], **totals(pair), use_cache=False)
        engine.backward(2 * output.loss)
        engine.step()
    sharded = [name for name, parameter in model.named_parameters() if not parameter.numel()]
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        if rank == 0:
            torch.save(model.state_dict(), file)
    return {"wrapper": type(engine).__name__, "stage": engine.zero_optimization_stage(), "sharded": sharded}


def fsdp(file: Path) -> dict:
    """Runs three updates with torch's `fully_shard` and Accelerate's units; saves the weights as `file`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not torch.distributed.is_initialized():  # as it is after an update under ZeRO
        torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    model = mixed_model()
    model.gradient_checkpointing_enable()
    layers = sharded_layers(model)
    units = [part for part in model.modules() if type(part).__name__ in layers]
    for unit in (
        *units,
        model.get_input_embeddings(),
        [model.model.backbone.language_model.norm, model.lm_head],
        model,
    ):
        fully_shard(unit, mesh=mesh)
    sharded = sorted({type(part).__name__ for part in model.modules() if isinstance(part, FSDPModule)})
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], RATE)
    rank = torch.distributed.get_rank()
    for pair in UPDATES:
        (2 * model(**pair[rank], **totals(pair), use_cache=False).loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    kinds = sorted({type(parameter).__name__ for parameter in model.parameters()})
    parameters = {name for name, _ in model.named_parameters()}
    weights = {
        name: value.full_tensor() if name in parameters else value for name, value in model.state_dict().items()
    }
    if rank == 0:
        torch.save(weights, file)
        model.save_pretrained(file.with_suffix(""), state_dict=weights)
    return {"wrapper": type(model).__name__, "units": sharded, "num_units": len(units), "kinds": kinds}


def train(arguments: list[str]) -> dict:
    """Runs train.py."""
    from sama.train import build, finish, parse

    trainer = build(*parse(arguments))
    trainer.train()
    finish(trainer)
    wrapped = trainer.model_wrapped
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    report = {"wrapper": type(wrapped).__name__, "losses": losses, "world": trainer.args.world_size}
    if trainer.is_deepspeed_enabled:
        report |= {
            "stage": wrapped.zero_optimization_stage(),
            "sharded": [name for name, parameter in trainer.model.named_parameters() if not parameter.numel()],
        }
    return report


def main() -> None:
    folder, *words = sys.argv[1:]
    place = words.index("train") if "train" in words else len(words)
    if find_spec("deepspeed"):
        leave_out_what_compiles()
    reports = {}
    for way in words[:place]:
        file = Path(folder) / f"{way}.pt"
        reports[way] = fsdp(file) if way == "fsdp2" else zero(int(way.removeprefix("zero")), file)
        reports[way]["world"] = torch.distributed.get_world_size()
    if words[place:]:
        reports["train"] = train(words[place + 1 :])
    if torch.distributed.get_rank() == 0:
        (Path(folder) / "report.json").write_text(json.dumps(reports), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
