"""Every mask model that SAMA tracks with: the same masks as transformers' own class, and what holds for SAM 2."""

from dataclasses import replace

import pytest
import torch
import transformers
from checkpoint import count_calls
from tiny_model import Templates, tiny_config
from tiny_trackers import randomize, tiny_mask_config
from transformers import AutoModel
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession
from transformers.utils import is_timm_available

from sama.configuration_sama import IMAGENET_MEAN, IMAGENET_STD, SamaConfig
from sama.feature_store_sama import SamFeatureStore
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_tracker import SamaMaskTracker, build_mask_tracker, pixel_statistics
from sama.tracking_sama import NO_OBJECT_LOGIT, PointPrompts, SamaMemoryBank
from sama.versions_sama import TRANSFORMERS


torch.set_num_threads(1)  # the models are tiny

SESSIONS = {
    "sam2_video": Sam2VideoInferenceSession,
    "sam3_tracker_video": Sam3TrackerVideoInferenceSession,
    "edgetam_video": EdgeTamVideoInferenceSession,
}
KINDS = ["sam2.1", "sam3", "edgetam"]
NUM_OBJECTS = 2
TOLERANCE = 1e-4  # of the largest value; memories are rounded to bfloat16, some of them the other way


def build_tracker(kind: str, seed: int, mask_settings: dict, **settings) -> SamaMaskTracker:
    mask_config = tiny_mask_config(kind, **mask_settings)
    return randomize(build_mask_tracker(SamaConfig(mask_config=mask_config, **settings)), seed)


TRACKERS = Templates(build_tracker)


def make_tracker(kind: str, seed: int = 0, mask_settings: dict | None = None, **settings) -> SamaMaskTracker:
    return TRACKERS.get(kind, seed, mask_settings or {}, **settings)


def make_pair(kind: str, **settings) -> tuple[SamaMaskTracker, torch.nn.Module]:
    """Our tracker and the library's model with the same weights, and a tuned decoder that clicks must not use."""
    tracker = make_tracker(kind, round_memory_to_bfloat16=kind != "edgetam", memory_rules="transformers", **settings)
    theirs = randomize(AutoModel.from_config(tiny_mask_config(kind)), seed=1)
    tracker.sam.load_state_dict(theirs.state_dict())
    tracker.original_mask_decoder.load_state_dict(theirs.mask_decoder.state_dict())
    randomize(tracker.sam.mask_decoder, seed=2)
    return tracker, theirs


def frames(tracker: SamaMaskTracker, count: int) -> torch.Tensor:
    """A smooth picture that drifts."""
    size = tracker.mask_config.image_size
    coarse = torch.randn(1, 3, 4, 4 + count, generator=torch.Generator().manual_seed(1))
    wide = torch.nn.functional.interpolate(coarse, scale_factor=size // 4, mode="bicubic")
    return torch.stack([wide[0, :, :, 8 * index : 8 * index + size] for index in range(count)])


def clicks(tracker: SamaMaskTracker, num_prompted: int, num_points: int) -> PointPrompts:
    generator = torch.Generator().manual_seed(2)
    shape = (num_prompted, NUM_OBJECTS, num_points)
    points = torch.rand(*shape, 2, generator=generator) * tracker.mask_config.image_size
    return PointPrompts(points, torch.ones(shape, dtype=torch.int32))


@torch.no_grad()
def move_scores(tracker: SamaMaskTracker, theirs: torch.nn.Module, offset: float) -> None:
    """Adds to the object score of clicked objects, in both."""
    for decoder in (tracker.original_mask_decoder, theirs.mask_decoder):
        decoder.pred_obj_score_head.proj_out.bias += offset


def track_with_library(
    theirs: torch.nn.Module, pixels: torch.Tensor, prompts: PointPrompts, prompted: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask logits (frames, objects, side, side) and object scores (frames, objects), forwards and backwards."""
    size = pixels.shape[-1]
    session = SESSIONS[theirs.config.model_type](pixels, size, size, dtype=torch.float32)
    names = list(range(NUM_OBJECTS))
    for position, index in enumerate(prompted):
        for name in names:
            inputs = {
                "point_coords": prompts.points[position, name][None, None],
                "point_labels": prompts.labels[position, name][None, None],
            }
            session.add_point_inputs(session.obj_id_to_idx(name), index, inputs)
        session.obj_with_new_inputs = list(names)
        theirs(session, frame_idx=index)
    found = {}
    for reverse in (False, True):
        for output in theirs.propagate_in_video_iterator(session, reverse=reverse):
            found[output.frame_idx] = (output.pred_masks.squeeze(1), output.object_score_logits.squeeze(1))
    masks, scores = zip(*(found[index] for index in range(len(pixels))), strict=True)
    return torch.stack(masks), torch.stack(scores)


@torch.no_grad()
def track(
    tracker: SamaMaskTracker, pixels: torch.Tensor, prompts: torch.Tensor | PointPrompts, prompted: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """As [`track_with_library`]."""
    track = tracker.track(prompts, len(pixels), prompted, lambda index: tracker.encode_frames(pixels[index, None]))
    found = {frame.frame_index: (frame.mask_logits, frame.object_score) for frame in track}
    masks, scores = zip(*(found[index] for index in range(len(pixels))), strict=True)
    return torch.stack(masks), torch.stack(scores)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(
    ("kind", "num_frames", "prompted", "num_points"),
    [
        ("sam2.0", 12, [3], 1),
        ("sam2.1", 12, [3], 1),
        ("sam2.1", 12, [2, 5], 2),  # two clicks: one mask, which must be stable
        ("sam3", 12, [3], 1),
        ("sam3", 24, [0, 1, 2, 3, 4, 5], 1),  # more prompted frames than a frame attends to
        ("edgetam", 12, [3], 1),
        ("edgetam", 12, [2, 5], 2),
    ],
)
def test_clicks_are_tracked_as_in_transformers(kind, num_frames, prompted, num_points):
    tracker, theirs = make_pair(kind)
    pixels, prompts = frames(tracker, num_frames), clicks(tracker, len(prompted), num_points)
    move_scores(tracker, theirs, 100.0)
    move_scores(tracker, theirs, -track(tracker, pixels, prompts, prompted)[1].quantile(0.25))
    masks, scores = track(tracker, pixels, prompts, prompted)
    wanted_masks, wanted_scores = track_with_library(theirs, pixels, prompts, prompted)
    present = wanted_scores > 0
    tracked = present[[index for index in range(len(pixels)) if index not in prompted]]
    assert tracked.sum(0).min() >= 3 and not tracked.all()
    assert ((scores > 0) == present).all()
    assert (masks[~present] == NO_OBJECT_LOGIT).all() and (wanted_masks[~present] == NO_OBJECT_LOGIT).all()
    assert difference(scores, wanted_scores) <= 10 * TOLERANCE  # they are the difference of larger values
    assert difference(masks[present], wanted_masks[present]) <= TOLERANCE


# ---- what a SAM 3 remembers -----------------------------------------------------------------------------------------


def bank_of_frames(num_prompted: int, num_frames: int, **settings) -> SamaMemoryBank:
    """Every memory and pointer is the number of its frame."""
    bank = SamaMemoryBank(num_memories=7, num_pointers=16, max_prompted=4, **settings)
    for index in range(num_frames):
        number = torch.tensor(index)
        bank.remember(index, number, number, prompted=index < num_prompted)
    return bank


@pytest.mark.parametrize(
    ("frame", "selected", "recent"),
    [
        (5, [4, 3, 2, 1], [0]),
        (6, [4, 3, 2, 1], [0, 5]),
        (7, [4, 3, 2, 1], [5, 6]),
        (12, [4, 3, 2, 1], [6, 7, 8, 9, 10, 11]),
    ],
)
def test_a_frame_attends_to_the_four_nearest_prompted_frames(frame, selected, recent):
    """And to the fifth as to any other frame, as long as it is near."""
    memories = bank_of_frames(5, frame).memories(frame, 1)
    assert [(distance, int(memory)) for distance, memory in memories] == [
        *((0, index) for index in selected),
        *((frame - index, index) for index in recent),
    ]


def test_prompted_frames_on_both_sides_are_selected():
    bank = SamaMemoryBank(num_memories=7, num_pointers=16, max_prompted=4)
    for index in (0, 8, 20, 30, 31, 32):
        bank.remember(index, torch.tensor(index), torch.tensor(index), prompted=True)
    assert bank.selected(9) == [8, 20, 0, 30]
    assert bank.selected(33) == [32, 31, 30, 20]


def test_pointers_beyond_the_four_prompted_frames_are_forgotten_as_by_meta():
    near, far = bank_of_frames(5, 15).pointers(15, 1), bank_of_frames(5, 16).pointers(16, 1)
    assert 0 in [int(pointer) for _, pointer in near] and 0 not in [int(pointer) for _, pointer in far]
    kept = bank_of_frames(5, 16, keep_pointers=True).pointers(16, 1)
    assert sorted(int(pointer) for _, pointer in kept) == list(range(16))


@pytest.mark.parametrize("rules", ["original", "transformers"])
def test_masks_are_resized_for_the_memory_of_sam3(rules):
    """56 pixels are remembered as 64: a binary mask stays one if its logits were resized."""
    tracker = make_tracker("sam3", memory_rules=rules)
    masks = tracker.memory_masks(torch.randn(1, 1, 16, 16), binarize=True)
    assert masks.shape == (1, 1, 64, 64) and masks.min() == -10 and masks.max() == 10
    assert (masks.abs() == 10).all() == (rules == "transformers")


def test_sam3_gates_and_binarizes_with_both_presets():
    for preset in ("published", "consistent"):
        tracker = make_tracker("sam3", preset=preset)
        for decoder in (tracker.sam.mask_decoder, tracker.original_mask_decoder):
            torch.nn.init.constant_(decoder.pred_obj_score_head.proj_out.bias, -1e3)
        masks, _ = track(tracker, frames(tracker, 3), seg_prompts(), [0])
        assert (masks == NO_OBJECT_LOGIT).all() and tracker.tracking_rules(clicked=False).binarize_prompted


# ---- what holds for every mask model --------------------------------------------------------------------------------


def seg_prompts() -> torch.Tensor:
    return torch.randn(NUM_OBJECTS, 128, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("preset", ["published", "consistent"])
@pytest.mark.parametrize("kind", KINDS)
def test_objects_together_equal_single_objects(kind, preset):
    tracker = make_tracker(kind, preset=preset)
    pixels, prompts = frames(tracker, 8), seg_prompts()
    calls = count_calls(tracker.sam.vision_encoder)
    prompted = [0, 1] if preset == "published" else [2, 4]
    masks, scores = track(tracker, pixels, prompts, prompted)
    assert len(calls) == len(pixels)
    alone = [track(tracker, pixels, prompt[None], prompted) for prompt in prompts]
    assert difference(masks, torch.cat([each for each, _ in alone], 1)) <= TOLERANCE
    assert difference(scores, torch.cat([each for _, each in alone], 1)) <= TOLERANCE


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_late_mask_has_gradients_to_prompts_and_memory(kind, training):
    tracker = make_tracker(kind).train(training)
    for decoder in (tracker.sam.mask_decoder, tracker.original_mask_decoder):
        torch.nn.init.constant_(decoder.pred_obj_score_head.proj_out.bias, 10.0)  # an absent object has no pointer
    pixels, prompts = frames(tracker, 5), seg_prompts().requires_grad_()
    track = tracker.track(prompts, 5, [1], lambda index: tracker.encode_frames(pixels[index, None]))
    last = {frame.frame_index: frame for frame in track}[4]
    last.ungated_logits.square().mean().backward()
    assert (prompts.grad.abs().sum(1) > 0).all()
    parts = ["memory_attention", "memory_encoder", "object_pointer_proj", "vision_encoder"]
    for part in [*parts, "spatial_perceiver"] if kind == "edgetam" else parts:
        gradients = [parameter.grad for parameter in tracker.sam.get_submodule(part).parameters()]
        without = sum(gradient is None or not gradient.any() for gradient in gradients)
        assert without < len(gradients) / 4, part


@pytest.mark.parametrize("kind", KINDS)
def test_stored_features_give_the_same_masks(kind, tmp_path):
    tracker = make_tracker(kind)
    pixels, prompts = frames(tracker, 4), seg_prompts()
    with torch.no_grad():
        store = SamFeatureStore(lambda index: tracker.encode_frames(pixels[index, None]), str(tmp_path))
        calls = count_calls(tracker.sam.vision_encoder)
        first, again = (
            torch.stack([frame.mask_logits for frame in tracker.track(prompts, 4, [1], store)]) for _ in range(2)
        )
    assert len(calls) == 4 and torch.equal(first, again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_gives_the_same_masks(kind, tmp_path):
    config = SamaConfig(**tiny_config().to_dict() | {"mask_config": tiny_mask_config(kind)})
    model = randomize(SamaForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    loaded, problems = SamaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(problems.values()), problems
    tracker = model.model.mask_tracker
    assert type(loaded.model.mask_tracker) is type(tracker)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    pixels, prompts = frames(tracker, 4), seg_prompts()
    for ours, theirs in zip(
        track(tracker, pixels, prompts, [1]), track(loaded.model.mask_tracker, pixels, prompts, [1]), strict=True
    ):
        assert difference(theirs, ours) <= TOLERANCE  # rounding may depend on memory alignment


def test_batch_norms_keep_their_statistics_in_training():
    """RepViT has some; here, one takes their place."""
    tracker = make_tracker("edgetam")
    tracker.sam.vision_encoder.add_module("norm", torch.nn.BatchNorm2d(1))
    tracker.train()
    assert tracker.sam.vision_encoder.training and not tracker.sam.vision_encoder.norm.training


@pytest.mark.parametrize("kind", KINDS)
def test_masks_in_bfloat16(kind):
    tracker = make_tracker(kind)
    pixels, prompts = frames(tracker, 6), seg_prompts()
    exact, _ = track(tracker, pixels, prompts, [1])
    rounded, _ = track(tracker.to(torch.bfloat16), pixels, prompts.bfloat16(), [1])
    assert rounded.dtype == torch.bfloat16 and ((exact > 0) == (rounded > 0)).float().mean() > 0.9


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "sam3",
            {"image_size": 60},
            "image_size` is 60, but the positions of this sam3_tracker_video need a multiple of 14",
        ),
        (
            "sam2.1",
            {"image_size": 80},
            "image_size` is 80, but the positions of this sam2_video need a multiple of 32",
        ),
        (
            "sam2.1",
            {"image_size": 96},
            "prompt_encoder_config.image_size` is 64, .* 96 pixels in patches of 16 needs 96",
        ),
        ("sam2.1", {"memory_attention_rope_feat_sizes": [8, 8]}, r"rope_feat_sizes` is \[8, 8\], .* needs \[4, 4\]"),
        ("edgetam", {"memory_encoder_output_channels": 32}, "memory_encoder_output_channels` is 32, .* needs 64"),
        (
            "edgetam",
            {"memory_attention_rope_k_sizes": [3, 3]},
            r"has 3 and 4 queries .* \[3, 3\]; .* divides 4x4 cells",
        ),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(kind, settings, message):
    config = SamaConfig(mask_config=tiny_mask_config(kind, **settings))
    with pytest.raises(ValueError, match=message):
        build_mask_tracker(config)


def test_a_track_needs_a_prompted_frame_to_remember():
    with pytest.raises(ValueError, match="max_cond_frame_num` is 0, but a track starts from prompted frames"):
        SamaMemoryBank(num_memories=7, num_pointers=16, max_prompted=0)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_another_size_are_refused(kind):
    tracker = make_tracker(kind)
    size = tracker.mask_config.image_size
    with pytest.raises(ValueError, match=f"Frames of 80x70 pixels .* made for {size}x{size}"):
        tracker.encode_frames(torch.zeros(1, 3, 70, 80))


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
def test_the_published_encoder_of_edgetam_needs_timm():
    vision = {"model_type": "edgetam_vision_model", "backbone_config": {"model_type": "timm_wrapper"}}
    message = "needs transformers >= 5.20" if TRANSFORMERS < (5, 20) else "pip install timm"
    with pytest.raises((ValueError, ImportError), match=f"EdgeTAM's image encoder.* {message}"):
        SamaConfig(mask_config={"model_type": "edgetam_video", "vision_config": vision})


def test_unknown_mask_models_are_refused():
    with pytest.raises(ValueError, match="SAMA does not track with a 'sam2'; .* sam3_tracker_video, edgetam_video"):
        build_mask_tracker(SamaConfig(mask_config={"model_type": "sam2"}))
    with pytest.raises(ValueError, match=f"transformers {transformers.__version__} has no .* 'sam9_video'"):
        SamaConfig(mask_config={"model_type": "sam9_video"})


# ---- prompted frames that are remembered by their masks


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sam2.0", "sam2.1"])
def test_prompted_masks_are_remembered_as_the_library_remembers_mask_prompts(kind, monkeypatch):
    tracker, theirs = make_pair(kind, prompted_memory="masks")
    move_scores(tracker, theirs, 20.0)  # all objects are found, else their masks would be empty in both
    pixels, prompted = frames(tracker, 10), [0, 4]
    size = pixels.shape[-1]
    given = torch.zeros(2, NUM_OBJECTS, size, size)
    # Half planes: the library binarises masks at the size of the input, ours are resized in between and lose corners
    given[0, 0, :, :32], given[1, 0, :40] = 1, 1
    given[0, 1, 24:] = 1  # the second object is not in the second prompted frame
    session = SESSIONS[theirs.config.model_type](pixels, size, size, dtype=torch.float32)
    for position, index in enumerate(prompted):
        for name in range(NUM_OBJECTS):
            session.add_mask_inputs(session.obj_id_to_idx(name), index, given[position, name][None, None])
        session.obj_with_new_inputs = list(range(NUM_OBJECTS))
        theirs(session, frame_idx=index)
    expected = {one.frame_idx: one.pred_masks.squeeze(1) for one in theirs.propagate_in_video_iterator(session)}

    segment, remember, pointers = tracker.segment_prompts, SamaMemoryBank.remember, {}

    def segment_given(features, prompts, position):
        logits = torch.nn.functional.interpolate(20 * given[position, None] - 10, scale_factor=0.25, mode="nearest")
        return replace(segment(features, prompts, position), mask_logits=logits)

    def recorded(bank, index, memory, pointer, prompted):
        pointers[index] = pointer
        remember(bank, index, memory, pointer, prompted)

    monkeypatch.setattr(tracker, "segment_prompts", segment_given)
    monkeypatch.setattr(SamaMemoryBank, "remember", recorded)
    masks, _ = track(tracker, pixels, torch.randn(NUM_OBJECTS, tracker.sam.hidden_dim), prompted)
    for index in set(range(10)) - set(prompted):
        assert (expected[index] > NO_OBJECT_LOGIT).all()
        assert difference(masks[index], expected[index]) < TOLERANCE, index
    for index in prompted:
        stored = [session.output_dict_per_obj[one]["cond_frame_outputs"][index] for one in range(NUM_OBJECTS)]
        theirs_pointers = torch.stack([one["object_pointer"].flatten() for one in stored])
        assert difference(pointers[index], theirs_pointers) < TOLERANCE, index


def test_levels_that_were_not_encoded():
    tracker = make_tracker("sam2.1")
    features = tracker.encode_frames(frames(tracker, 1), original=False)
    with pytest.raises(ValueError, match="encoded without the levels that the original mask decoder reads"):
        tracker.segment_points(features, torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.int32))


def test_sam3_remembers_masks_by_itself():
    with pytest.raises(ValueError, match="`prompted_memory` is 'masks', but SAM 3's tracker remembers binary masks"):
        make_tracker("sam3", prompted_memory="masks")


def test_prompted_masks_keep_their_gradient_in_training():
    tracker = make_tracker("sam2.1", prompted_memory="masks").train()
    assert not tracker.tracking_rules(clicked=False).prompt_with_masks
    assert tracker.eval().tracking_rules(clicked=False).prompt_with_masks
    assert not make_tracker("sam2.1").eval().tracking_rules(clicked=False).prompt_with_masks


def test_pixels_are_those_that_the_weights_were_trained_with():
    assert pixel_statistics(tiny_mask_config("sam3")) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixel_statistics(tiny_mask_config("sam2.1")) == (IMAGENET_MEAN, IMAGENET_STD)
