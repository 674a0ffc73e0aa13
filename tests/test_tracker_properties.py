"""What the tracker must not depend on: company of other objects, batches of frames, and (almost) the precision."""

from copy import deepcopy

import pytest
import torch
from foreign_checkpoints import SIZES, sam2_shapes

from sama.configuration_sama import SamaConfig
from sama.conversion.configs import sam2_config
from sama.modeling_sama_tracker import FrameFeatures, SamaMaskTracker


IMAGE_SIZE, NUM_FRAMES, NUM_OBJECTS = SIZES["sam_image_size"], 8, 3
PRESETS = {"published": [0, 1, 2], "consistent": [2, 5]}  # with the frames that are prompted
TOLERANCE = 1e-4  # of the largest value
LEAST_IOU = 0.98


def make_tracker(policy: str, version: str = "2.0") -> SamaMaskTracker:
    """
    A small tracker with random weights. Matrices are drawn so that they keep the size of what they multiply, all else
    small, as in a trained model: with the library's initial values mask logits are all but constant, and rounding
    decides every mask.
    """
    torch.manual_seed(0)
    sam = sam2_config(sam2_shapes(version=version), "", SIZES)
    tracker = SamaMaskTracker(SamaConfig(sam_config=sam, preset=policy)).eval()
    for name, parameter in tracker.named_parameters():
        values = torch.randn(parameter.shape)
        values *= parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "emb" not in name else 0.1
        parameter.data.copy_(values + 1 if "norm" in name and name.endswith("weight") else values)
        if "pred_obj_score_head.proj_out.bias" in name:
            parameter.data.fill_(3.0)  # objects are there, so that no mask is empty
    return tracker


@pytest.fixture(scope="module", params=PRESETS)
def tracker(request) -> SamaMaskTracker:
    return make_tracker(request.param)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """A smooth picture that drifts."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, 6, 6 + NUM_FRAMES, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=32, mode="bicubic")
    return torch.stack([wide[0, :, :IMAGE_SIZE, 16 * index : 16 * index + IMAGE_SIZE] for index in range(NUM_FRAMES)])


@pytest.fixture(scope="module")
def prompts() -> torch.Tensor:
    return torch.randn(NUM_OBJECTS, 256, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def encode(tracker: SamaMaskTracker, frames: torch.Tensor) -> list[FrameFeatures]:
    """Features of each frame, encoded by itself."""
    return [tracker.encode_frames(frame[None]) for frame in frames]


@torch.no_grad()
def track(tracker: SamaMaskTracker, prompts: torch.Tensor, features: list[FrameFeatures]) -> torch.Tensor:
    """Mask logits, (objects, frames, size, size)."""
    found = tracker.track(prompts, len(features), PRESETS[tracker.config.preset], features.__getitem__)
    logits = {each.frame_index: each.mask_logits for each in found}
    return torch.stack([logits[index] for index in sorted(logits)], 1)


@pytest.fixture(scope="module")
def features(tracker, frames) -> list[FrameFeatures]:
    return encode(tracker, frames)


@pytest.fixture(scope="module")
def tracked(tracker, prompts, features) -> torch.Tensor:
    """All objects through the whole video."""
    return track(tracker, prompts, features)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize(
    ("policy", "version"),
    [
        ("published", "2.0"),
        ("consistent", "2.1"),
        pytest.param("published", "2.1", marks=pytest.mark.slow),
        pytest.param("consistent", "2.0", marks=pytest.mark.slow),
    ],
)
def test_batched_objects_equal_single_objects(policy, version, prompts, frames):
    tracker = make_tracker(policy, version)
    features = encode(tracker, frames)
    together = track(tracker, prompts, features)
    alone = torch.cat([track(tracker, prompt[None], features) for prompt in prompts])
    assert together.std() > 0.1
    assert difference(together, alone) <= TOLERANCE


def test_an_object_does_not_see_its_company(tracker, prompts, features, tracked):
    swapped = track(tracker, prompts.flip(0), features).flip(0)
    assert difference(swapped, tracked) <= TOLERANCE


@torch.no_grad()
def test_streaming_equals_whole_video(tracker, prompts, frames, tracked):
    """Frames encoded one by one against all of them in one batch."""
    whole = tracker.encode_frames(frames)
    stacked = track(tracker, prompts, [whole.take(torch.tensor([index])) for index in range(NUM_FRAMES)])
    assert difference(tracked, stacked) <= TOLERANCE


@pytest.mark.parametrize("tracker", ["published"], indirect=True)
def test_release_does_not_look_ahead(tracker, prompts, features, tracked):
    """The masks of a video's beginning do not change when the rest is cut away: nothing waits for the end."""
    # From 16 frames on the number of frames plays no part; below, it limits how many pointers are remembered
    cut = track(tracker, prompts, features[:6])
    assert difference(cut[:, :5], tracked[:, :5]) <= TOLERANCE


def test_bfloat16_masks_are_those_of_float32(tracker, prompts, frames, tracked):
    exact, rounding = tracked > 0, deepcopy(tracker).to(torch.bfloat16)
    rounded = track(rounding, prompts.bfloat16(), encode(rounding, frames.bfloat16())) > 0
    area = exact.float().mean((1, 2, 3))
    assert ((area > 0.02) & (area < 0.98)).all(), area
    union = (exact | rounded).flatten(1).sum(1)
    iou = (exact & rounded).flatten(1).sum(1) / union
    assert iou.min() >= LEAST_IOU, iou


@torch.no_grad()
def test_clicks_keep_their_place_in_half_precision():
    """bfloat16 holds whole numbers up to 256 only, so clicks must be scaled before they are rounded to it. Then those
    that lie two of 1024 pixels apart differ."""
    tracker = make_tracker("consistent").to(torch.bfloat16)
    tracker.sam.prompt_encoder.input_image_size = 1024
    points = torch.stack([torch.arange(1024.0), torch.full((1024,), 500.0)], 1)[None, :, None]
    embedded = tracker.embed_points(points, torch.ones(points.shape[:3], dtype=torch.int32))[0, :, 0]
    assert embedded.dtype == torch.bfloat16
    assert (embedded[2:] != embedded[:-2]).any(1).all()
