"""Training on every family of backbones: its parts, and short runs with each mask model."""

import pytest
from tiny_backbones import BACKBONES, tiny_backbone
from tiny_trackers import randomize, tiny_mask_config
from training_fixtures import toy_mixture, trainer_of
from transformers import TrainerCallback

from sama.modeling_sama import SamaForConditionalGeneration
from sama.training.parts import part_of


STEPS = 30
PARTS = "aggregator,seg_head,mask_decoder,projector,language_model"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.backbone.visual.merger.mlp.0.weight", "projector"),
        ("model.backbone.visual.deepstack_merger_list.2.norm.weight", "projector"),
        ("model.backbone.visual.blocks.0.attn.qkv.weight", "vision_tower"),
        ("model.backbone.visual.pos_embed.weight", "vision_tower"),
        ("model.backbone.vision_tower.embeddings.cls_token", "vision_tower"),
        ("model.backbone.multi_modal_projector.linear_1.weight", "projector"),
        ("model.backbone.language_model.layers.0.mlp.up_proj.base_layer.weight", "language_model"),
        ("base_model.model.model.backbone.visual.merger.modules_to_save.default.mlp.0.weight", "projector"),
        ("model.mask_tracker.sam.mask_decoder.iou_prediction_head.proj_in.weight", "sam_heads"),
        ("model.mask_tracker.sam.memory_encoder.projection.weight", "memory"),
    ],
)
def test_a_parameter_belongs_to_the_part_with_the_longest_prefix(name, expected):
    assert part_of(name) == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_parts_of_the_backbone_are_those_of_its_family(name):
    """Vision tower, projector and language model are the whole backbone, and none of them is empty."""
    model = tiny_backbone(name)[0]
    family, prefix = model.model.family, "model.backbone."
    found: dict[str, set[str]] = {}
    for parameter, _ in model.named_parameters():
        if parameter.startswith(prefix):
            found.setdefault(part_of(parameter), set()).add(parameter.removeprefix(prefix))
    assert set(found) == {"vision_tower", "projector", "language_model"}
    assert all(one.startswith("language_model.") for one in found["language_model"])
    assert all(one.startswith(family.projector) for one in found["projector"])
    assert all(one.startswith(family.vision_tower) for one in found["vision_tower"])


class MovedParts(TrainerCallback):
    """Which parts got a gradient that is not zero."""

    def __init__(self):
        self.parts: set[str] = set()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        found = [name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()]
        self.parts |= {part_of(name) for name in found}


def save_checkpoint(folder, tracker: str):
    """A SAMA on Qwen3-VL with one of the mask models; no weight is zero."""
    mask_config = tiny_mask_config(tracker)
    _, processor = tiny_backbone("qwen3_vl", mask_config=mask_config, num_mask_points=64)
    model = randomize(SamaForConditionalGeneration(processor.config))
    model.save_pretrained(folder)
    processor.num_dense_frames = 2
    processor.save_pretrained(folder)
    return folder


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sam2.1", "edgetam")]


@pytest.mark.parametrize("tracker", ["sam3", *SLOW])
def test_a_sama_on_qwen3_vl_trains_on_toy_world(tracker, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "checkpoint", tracker)
    trainer = trainer_of(
        checkpoint,
        toy_mixture(tmp_path, samples=1, tasks={"dialogue": 1}),
        tmp_path / "out",
        train_parts=PARTS,
        turns=1,
        max_steps=STEPS,
        per_device_train_batch_size=1,
        warmup_steps=0,
        learning_rate=3e-3,
        save_strategy="no",
    )
    recorder = MovedParts()
    trainer.add_callback(recorder)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "lm_loss" in entry]
    assert len(logged) == STEPS
    for name in ("loss", "lm_loss", "mask_loss", "dice_loss"):  # each epoch draws other frames: compared on average
        last = sum(entry[name] for entry in logged[-10:]) / 10
        assert last < 0.9 * logged[0][name], (name, logged[0][name], last)
    assert recorder.parts == set(PARTS.split(","))
