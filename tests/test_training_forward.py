"""The training forward: masks of [SEG] states, losses by name, and that nothing but the batch decides them."""

from dataclasses import fields

import pytest
import torch
from tiny_model import SAM_SIZE, tiny_model

from sama.configuration_sama import SamaConfig
from sama.losses_sama import mask_iou, resize_targets
from sama.modeling_sama import SamaMaskTargets


SEG, ANSWER = 262, 40
PARTS = ("lm_loss", "mask_loss", "dice_loss", "iou_loss", "presence_loss")


def batch_of(*samples: tuple[int, int], seed: int = 0, prompted: list[bool] | None = None) -> dict:
    """A batch in text alone: for each sample its [SEG]s and frames; texts differ, frames and masks are drawn."""
    rows, labels, frames, targets = [], [], [], []
    for index, (num_segs, num_frames) in enumerate(samples):
        generator = torch.Generator().manual_seed(seed + 10 * index)
        answer = [*([ANSWER, SEG] * num_segs), ANSWER + 1]
        question = torch.randint(1, 200, (12 - len(answer),), generator=generator).tolist()
        rows.append(question + answer)
        labels.append([-100] * len(question) + answer)
        frames.append(torch.randn(num_frames, 3, SAM_SIZE, SAM_SIZE, generator=generator))
        shape = (num_segs, num_frames, 24, 32) if num_segs else (0, 0, 0, 0)
        targets.append(torch.rand(shape, generator=generator) > 0.5)
    ids = torch.tensor(rows)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor(labels),
        "sam_pixel_values": torch.cat(frames),
        "sam_frame_counts": torch.tensor([frames for _, frames in samples]),
        "target_masks": targets,
        "point_seeds": torch.tensor([seed + 10 * index for index in range(len(samples))]),
    } | ({} if prompted is None else {"sam_prompted": torch.tensor(prompted)})


def row_of(batch: dict, index: int) -> dict:
    """One sample of a batch."""
    counts = batch["sam_frame_counts"].tolist()
    part = {name: value[index : index + 1] for name, value in batch.items()}
    for name in set(batch) & {"sam_pixel_values", "sam_prompted"}:
        part[name] = batch[name].split(counts)[index]
    return part


@pytest.fixture
def model():
    return tiny_model(num_mask_points=60)


def test_losses_by_name_and_their_sum(model):
    output = model(**batch_of((2, 3), (1, 2)))
    assert output.mask_iou.shape == (2 * 3 + 1 * 2,)
    config = model.config
    expected = output.lm_loss + config.mask_loss_coefficient * output.mask_loss
    torch.testing.assert_close(output.loss, expected + config.dice_loss_coefficient * output.dice_loss)
    assert all(getattr(output, name) > 0 for name in PARTS)


def test_published_loss_weights(model):
    config = SamaConfig()
    assert (config.mask_loss_coefficient, config.dice_loss_coefficient) == (2.0, 0.5)
    assert (config.iou_loss_coefficient, config.presence_loss_coefficient) == (0.0, 0.0)
    terms = dict(zip(PARTS, torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]), strict=True))
    assert model.total_loss(terms).item() == 1 + 2 * 10 + 0.5 * 100


def test_batched_losses_are_those_of_the_samples(model):
    batch = batch_of((2, 3), (0, 0), (1, 2))
    totals = {"num_items_in_batch": 9, "num_masks_in_batch": 8}
    together = model(**batch, **totals)
    alone = [model(**row_of(batch, index), **totals) for index in range(3)]
    for name in ("loss", *PARTS):
        torch.testing.assert_close(getattr(together, name), sum(getattr(one, name) for one in alone))
    torch.testing.assert_close(together.mask_iou, torch.cat([one.mask_iou for one in alone]))


def test_masks_are_those_of_the_shared_verb(model):
    """Training decodes each object in each frame as inference does with all objects of a frame at once."""
    batch = batch_of((2, 3), (3, 2))
    with torch.no_grad():
        hidden_states = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        prompts = model.project_seg_states(hidden_states[batch["input_ids"] == SEG])
        targets = {field.name: batch.get(field.name) for field in fields(SamaMaskTargets)}
        found, _, _ = model.model.decode_targets(prompts, [2, 3], SamaMaskTargets(**targets))
        tracker = model.model.mask_tracker
        features = tracker.encode_frames(batch["sam_pixel_values"])
        first = tracker.segment_prompted(features.take(torch.arange(3)), prompts[:2])
        second = tracker.segment_prompted(features.take(torch.arange(3, 5)), prompts[2:])
    expected = torch.cat([first.mask_logits.flatten(0, 1), second.mask_logits.flatten(0, 1)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_tracked_frames_are_those_of_inference(model):
    batch = batch_of((2, 4), prompted=[False, True, False, False])
    with torch.no_grad():
        states = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).last_hidden_state
        states = states[batch["input_ids"] == SEG]
        tracked = {t.frame_index: t for t in model.segment_video(states, list(batch["sam_pixel_values"]), [1])}
        logits = torch.cat([tracked[index].ungated_logits for index in range(4)])
        wanted = resize_targets(batch["target_masks"], logits.shape[-2:], logits.device)
        torch.testing.assert_close(model(**batch).mask_iou, mask_iou(logits, wanted))


def test_memory_gets_gradients_only_from_tracked_frames(model):
    memory = model.model.mask_tracker.sam.memory_attention
    model(**batch_of((1, 3))).loss.backward()
    assert all(parameter.grad is None for parameter in memory.parameters())
    model(**batch_of((1, 3), prompted=[True, False, False])).loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in memory.parameters())


def test_without_masks_the_mask_losses_are_exactly_zero(model):
    batch = batch_of((0, 0), (0, 0))
    output = model(**batch)
    assert output.mask_loss == output.dice_loss == 0 and torch.equal(output.loss, output.lm_loss)
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.model.mask_tracker.parameters())


def test_no_masks_in_frames_with_a_count(model):
    batch = batch_of((0, 3))
    batch["target_masks"] = [torch.zeros(0, 3, 24, 32, dtype=torch.bool)]
    assert model(**batch).mask_loss == 0


def test_masks_need_labels(model):
    batch = batch_of((1, 2))
    batch.pop("labels")
    with pytest.raises(ValueError, match="`target_masks` need `labels`"):
        model(**batch)


def test_the_heads_of_sam_learn_only_by_losses_of_their_own(model):
    decoder = model.model.mask_tracker.sam.mask_decoder
    heads = [*decoder.iou_prediction_head.parameters(), *decoder.pred_obj_score_head.parameters()]
    model(**batch_of((1, 2))).loss.backward()
    assert all(parameter.grad is None for parameter in heads)
    model.config.iou_loss_coefficient = model.config.presence_loss_coefficient = 1.0
    model(**batch_of((1, 2))).loss.backward()
    assert all(parameter.grad is not None for parameter in heads)


def test_a_frozen_encoder_keeps_no_graph(model):
    tracker = model.model.mask_tracker
    tracker.sam.vision_encoder.requires_grad_(False)
    features = tracker.encode_frames(batch_of((1, 2))["sam_pixel_values"])
    assert not features.image.requires_grad and features.tuned[0].requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch["target_masks"].__setitem__(0, torch.zeros(1, 3, 4, 4).bool()), r"\(1, 3\).*\(2, 3\)"),
        (lambda batch: batch["sam_frame_counts"].fill_(2), r"\(2, 3\).*\(2, 2\)"),
        (lambda batch: batch.update(sam_pixel_values=batch["sam_pixel_values"][:2]), r"2 frames for 3 counted"),
    ],
    ids=["objects", "counts", "frames"],
)
def test_masks_that_do_not_fit_the_text_are_refused(model, change, message):
    batch = batch_of((2, 3))
    change(batch)
    with pytest.raises(ValueError, match=message):
        model(**batch)
