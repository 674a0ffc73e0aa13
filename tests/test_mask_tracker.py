"""The mask tracker: which frames are encoded, in which order, with which decoder, and what it remembers."""

import weakref

import pytest
import torch
from checkpoint import count_calls
from tiny_model import SAM_SIZE, tiny_model
from transformers import AutoModel

from sama.modeling_sama_tracker import SamaMemoryBank


WIDTH = 32


def frames(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SAM_SIZE, SAM_SIZE, generator=torch.Generator().manual_seed(1))


def seg_states(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("num_objects", [1, 3])
def test_the_image_encoder_runs_once_a_frame_whatever_the_number_of_objects(num_objects):
    model = tiny_model()
    calls = count_calls(model.model.mask_tracker.sam.vision_encoder)
    tracked = list(model.segment_video(seg_states(num_objects), frames(9), [2, 5]))
    assert len(calls) == 9
    assert {frame.mask_logits.shape[0] for frame in tracked} == {num_objects}


def test_order_is_prompted_then_forwards_then_backwards():
    model = tiny_model()
    order = [(frame.frame_index, frame.prompted) for frame in model.segment_video(seg_states(1), frames(7), [2, 4])]
    assert order == [(2, True), (4, True), (3, False), (5, False), (6, False), (1, False), (0, False)]


def test_release_tracks_forwards_only_with_the_tuned_decoder():
    model = tiny_model(preset="published")
    tracker = model.model.mask_tracker
    tuned, original = count_calls(tracker.sam.mask_decoder), count_calls(tracker.original_mask_decoder)
    order = [frame.frame_index for frame in model.segment_video(seg_states(1), frames(7), [0, 1])]
    assert order == list(range(7))
    assert (len(tuned), len(original)) == (7, 0)


def test_consistent_propagates_with_the_original_decoder():
    model = tiny_model()
    tracker = model.model.mask_tracker
    tuned, original = count_calls(tracker.sam.mask_decoder), count_calls(tracker.original_mask_decoder)
    list(model.segment_video(seg_states(2), frames(7), [2, 4]))
    assert (len(tuned), len(original)) == (2, 5)


def test_the_occlusion_gate_empties_masks_of_absent_objects():
    logits = {}
    for gate in (True, False):
        model = tiny_model(occlusion_gate=gate)
        torch.nn.init.constant_(model.model.mask_tracker.original_mask_decoder.pred_obj_score_head.proj_out.bias, -1e3)
        logits[gate] = [f.mask_logits for f in model.segment_video(seg_states(1), frames(3), [0])][-1]
    assert (logits[True] == -1024).all()
    assert (logits[False] > -1024).all()


def test_a_mask_far_from_the_prompt_has_a_gradient_to_it():
    model = tiny_model(occlusion_gate=False)
    tracker = model.model.mask_tracker
    clip = frames(6)
    prompts = torch.randn(2, 128, generator=torch.Generator().manual_seed(3)).requires_grad_()
    tracked = list(tracker.track(prompts, 6, [3], lambda index: tracker.encode_frames(clip[index][None])))
    last = next(frame for frame in tracked if frame.frame_index == 0)
    last.mask_logits.sum().backward()
    assert (prompts.grad.abs().sum(1) > 0).all()


def test_memory_does_not_grow_with_the_video():
    bank = SamaMemoryBank(num_memories=7, num_pointers=16)
    bank.remember(3, torch.zeros(1), torch.zeros(1), prompted=True)
    sizes = []
    for index in range(4, 400):
        bank.remember(index, torch.zeros(1), torch.zeros(1), prompted=False)
        sizes.append(len(bank.tracked))
    assert max(sizes) == sizes[-1] == 31  # 15 next to the prompted frame, for the way back, and the 16 last


def test_only_a_handful_of_frames_features_are_alive_at_once():
    model = tiny_model()
    tracker, clip, alive, most = model.model.mask_tracker, frames(40), set(), []

    def features(index: int):
        encoded = tracker.encode_frames(clip[index][None])
        alive.add(index)
        weakref.finalize(encoded, alive.remove, index)
        most.append(len(alive))
        return encoded

    for _ in model.segment_video(seg_states(2), features, [8, 16], num_frames=40):
        pass
    assert max(most) <= 3


def test_memory_reaches_back_six_frames_and_pointers_fifteen():
    bank = SamaMemoryBank(num_memories=7, num_pointers=16)
    bank.remember(0, torch.zeros(1), torch.zeros(1), prompted=True)
    for index in range(1, 30):
        bank.remember(index, torch.tensor(float(index)), torch.tensor(float(index)), prompted=False)
    assert [(d, float(m)) for d, m in bank.memories(30, 1)] == [(0, 0)] + [(d, 30 - d) for d in range(6, 0, -1)]
    assert [d for d, _ in bank.pointers(30, 1)] == [30, *range(1, 16)]


def test_tracking_backwards_does_not_see_prompts_still_to_come():
    bank = SamaMemoryBank(num_memories=7, num_pointers=16)
    for index in (4, 9):
        bank.remember(index, torch.zeros(1), torch.tensor(float(index)), prompted=True)
    assert [d for d, _ in bank.pointers(6, 1)] == [2]
    assert [d for d, _ in bank.pointers(6, -1)] == [3]
    assert len(bank.memories(6, 1)) == 2


def test_no_objects_give_no_frames():
    assert list(tiny_model().segment_video(seg_states(0), frames(3), [0])) == []


@pytest.mark.parametrize("prompted", [[], [3], [-1]])
def test_prompted_frames_must_exist(prompted):
    with pytest.raises(ValueError, match="must be frames of a video of 3 frames"):
        list(tiny_model().segment_video(seg_states(1), frames(3), prompted))


def test_the_image_encoder_is_the_librarys_without_what_nothing_reads(monkeypatch):
    """To the bit, with pooled queries; in the library a softmax over the heads of each cell is not read."""
    tracker = tiny_model().model.mask_tracker.eval()
    library = AutoModel.from_config(tracker.mask_config).eval()
    library.load_state_dict(tracker.sam.state_dict())
    expected, found = (
        sam.vision_encoder.backbone(frames(2)).intermediate_hidden_states for sam in (library, tracker.sam)
    )
    assert len(expected) == len(found) and all(map(torch.equal, expected, found))
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda *_, **__: pytest.fail("a softmax that nothing reads"))
    with pytest.raises(pytest.fail.Exception):
        library.vision_encoder.backbone(frames(1))
    tracker.sam.vision_encoder.backbone(frames(1))
