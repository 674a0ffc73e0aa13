"""Our tracker against the real `sam2` package in one process, on the same random weights: SAM 2.0 and 2.1.

The package's own configurations are built, with a small image encoder where something is computed. Every parameter is
drawn, and the last bias of the score head is raised: a score that is not positive empties a mask, and comparing empty
masks shows nothing. One test moves that bias so that objects leave and come back.
"""

from copy import deepcopy
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch

from sama.configuration_sama import SamaConfig
from sama.conversion.configs import HIERA_SIZES, sam2_config
from sama.conversion.pieces import ORIGINAL_DECODER, SAM
from sama.conversion.trackers import map_tracker
from sama.modeling_sama_tracker import FrameFeatures, ObjectMasks, SamaMaskTracker


if find_spec("sam2") is None:  # imported where it is used: every test process imports this file
    pytest.skip(
        "the sam2 package is the oracle: pip install --no-deps sam2, and hydra-core iopath", allow_module_level=True
    )

CONFIGS = Path(find_spec("sam2").origin).parent / "configs"
VERSIONS = {"2.0": "sam2/sam2_hiera_{}.yaml", "2.1": "sam2.1/sam2.1_hiera_{}.yaml"}
IMAGE_SIZE, NUM_FRAMES, NUM_OBJECTS = 128, 9, 2  # the ninth frame is the first for which a memory is left out
SMALL = {"num_heads": 1, "global_attention_blocks": [4, 5], "window_spec": [8, 4, 16, 8]}
TOLERANCE = 1e-3  # of the largest value
SCORE_WEIGHT, SCORE_BIAS = (f"sam_mask_decoder.pred_obj_score_head.layers.2.{name}" for name in ("weight", "bias"))
POINTS = torch.tensor([[[30.0, 40.0]], [[90.0, 70.0]]])  # one click an object, in input pixels
ON = torch.ones(NUM_OBJECTS, 1, dtype=torch.int32)


def package_model(version: str, size: str, small: bool) -> torch.nn.Module:
    """A model of the package from its own configuration."""
    from hydra.utils import instantiate  # here, because every test process imports this file
    from omegaconf import OmegaConf

    config = OmegaConf.load(CONFIGS / VERSIONS[version].format(size)).model
    if small:
        trunk = {"embed_dim": 16, "stages": [1, 2, 3, 1], "num_heads": 1, "window_spec": SMALL["window_spec"]}
        trunk["global_att_blocks"] = SMALL["global_attention_blocks"]
        config.image_encoder.trunk.update(trunk)
        config.image_encoder.neck.backbone_channel_list = [128, 64, 32, 16]
        config.image_size = IMAGE_SIZE
    return instantiate(config, _recursive_=True).eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter, those too that start at zero and would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and not name.endswith(("embed", "enc", "ptr", "spatial")):
            values *= parameter[0].numel() ** -0.5
        else:
            values *= 0.1
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data.copy_(values + 1 if is_norm else values)
    # The positions of clicks: a buffer, which the package draws from the global generator
    frequencies = model.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    frequencies.copy_(torch.randn(frequencies.shape, generator=generator))


def our_tracker(model: torch.nn.Module, round_memory: bool = False) -> SamaMaskTracker:
    """Our tracker with the package's weights, through the converter's key map."""
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = SamaConfig(
        sam_config=sam2_config(shapes, "", {"hiera": SMALL, "sam_image_size": IMAGE_SIZE}),
        round_memory_to_bfloat16=round_memory,
    )
    tracker = SamaMaskTracker(config).eval()
    ours = {}
    for name, piece in map_tracker(state).pieces.items():
        own = name.replace(SAM, "sam.").replace(ORIGINAL_DECODER, "original_mask_decoder.")
        ours[own] = piece.make(*(state[key] for key in piece.keys))
    tracker.load_state_dict(ours, strict=True)
    return tracker


@pytest.fixture(scope="module", params=VERSIONS)
def package(request) -> torch.nn.Module:
    model = package_model(request.param, "l", small=True)
    randomise(model, seed=0)
    with torch.no_grad():
        model.get_parameter(SCORE_BIAS).fill_(5.0)
    return model


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """A smooth picture that drifts, so that frames resemble each other as in a video."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, 12, 24, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bicubic")
    return torch.stack([wide[0, :, :IMAGE_SIZE, 16 * index : 16 * index + IMAGE_SIZE] for index in range(NUM_FRAMES)])


@pytest.fixture(scope="module")
@torch.no_grad()
def images(package, frames) -> list[dict]:
    """What the package's image encoder makes of each frame, for all objects and tests."""
    return [package.forward_image(frames[index : index + 1]) for index in range(NUM_FRAMES)]


@pytest.fixture(scope="module")
def tracker(package) -> SamaMaskTracker:
    return our_tracker(package)


@pytest.fixture(scope="module")
@torch.no_grad()
def features(tracker, frames) -> list[FrameFeatures]:
    """The same by our image encoder."""
    return [tracker.encode_frames(frames[index : index + 1]) for index in range(NUM_FRAMES)]


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    assert difference <= tolerance, f"{difference:.2e} of the largest value"


# Each size once and each version twice; the other combinations are slow tests
@pytest.mark.parametrize(
    ("version", "size"),
    [("2.0", "t"), ("2.1", "s"), ("2.0", "b+"), ("2.1", "l")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("2.1", "t"), ("2.0", "s"), ("2.1", "b+"), ("2.0", "l"))
    ],
)
def test_published_sizes_are_those_of_the_package(version: str, size: str, monkeypatch):
    linspace = torch.linspace  # the package reads numbers from one while it is built
    monkeypatch.setattr(torch, "linspace", lambda *args, **kwargs: linspace(*args, **{**kwargs, "device": "cpu"}))
    with torch.device("meta"):
        model = package_model(version, size, small=False)
    state = model.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    ours = sam2_config(shapes, "", {})
    trunk, own = model.image_encoder.trunk, ours["vision_config"]["backbone_config"]
    heads, global_blocks, windows = HIERA_SIZES[own["hidden_size"], tuple(own["blocks_per_stage"])]
    assert (trunk.blocks[0].attn.num_heads, list(trunk.global_att_blocks)) == (heads, global_blocks)
    assert list(trunk.window_spec) == windows
    assert trunk.blocks[-1].attn.num_heads == own["num_attention_heads_per_stage"][-1]
    assert (model.image_size, model.sigmoid_scale_for_mem_enc, model.sigmoid_bias_for_mem_enc) == (1024, 20.0, -10.0)
    with torch.device("meta"):
        tracker = SamaMaskTracker(SamaConfig(sam_config=ours))
    wanted = {name: tuple(tensor.shape) for name, tensor in tracker.state_dict().items()}
    made = {
        name.replace(SAM, "sam.").replace(ORIGINAL_DECODER, "original_mask_decoder."): tuple(
            piece.make(*(state[key] for key in piece.keys)).shape
        )
        for name, piece in map_tracker(state).pieces.items()
    }
    assert made == wanted


def package_image_masks(
    model: torch.nn.Module, image: dict, points: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best of three masks and its predicted IoU, as the package's image predictor computes them."""
    _, features, _, sizes = model._prepare_backbone_features(image)
    features[-1] = features[-1] + model.no_mem_embed
    levels = [level.permute(1, 2, 0).reshape(1, -1, *size) for level, size in zip(features, sizes, strict=True)]
    sparse, dense = model.sam_prompt_encoder(points=(points, labels), boxes=None, masks=None)
    masks, iou, _, _ = model.sam_mask_decoder(
        image_embeddings=levels[-1],
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
        repeat_image=True,
        high_res_features=levels[:-1],
    )
    best = iou.argmax(1)
    rows = torch.arange(len(best))
    return masks[rows, best], iou[rows, best]


@pytest.mark.parametrize(
    ("points", "labels"),
    [
        ([[30.0, 40.0]], [1]),
        ([[30.0, 40.0], [90.0, 70.0], [64.0, 10.0]], [1, 1, 0]),
        ([[20.0, 30.0], [100.0, 90.0]], [2, 3]),
        ([[20.0, 30.0], [100.0, 90.0], [50.0, 50.0]], [2, 3, 1]),
    ],
    ids=["click", "clicks", "box", "box and click"],
)
@torch.no_grad()
def test_image_masks(package, tracker, images, features, points, labels):
    points, labels = torch.tensor([points]), torch.tensor([labels], dtype=torch.int32)
    theirs, their_iou = package_image_masks(package, images[0], points, labels)
    ours = tracker.segment_points(features[0], points, labels)
    assert 0.01 < (theirs > 0).float().mean() < 0.99
    close(ours.mask_logits[:, 0], theirs)
    close(ours.predicted_iou[:, 0], their_iou)


def package_tracks(
    model: torch.nn.Module, images: list[dict], prompted: list[int], round_memory: bool
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Mask logits and object scores of both objects in every frame, each object for itself, by the package."""
    masks, scores = {}, {}
    for number in range(NUM_OBJECTS):
        memory = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}

        def step(index: int, points: dict | None, reverse: bool, memory: dict = memory) -> dict:
            _, features, positions, sizes = model._prepare_backbone_features(images[index])
            given = (features, positions, sizes, points, None, memory, NUM_FRAMES)
            result = model.track_step(index, points is not None, *given, track_in_reverse=reverse)
            if round_memory:  # as the package's video predictor stores them
                result["maskmem_features"] = result["maskmem_features"].to(torch.bfloat16).float()
            masks.setdefault(index, []).append(result["pred_masks"])
            scores.setdefault(index, []).append(result["object_score_logits"])
            return result

        own_points = {"point_coords": POINTS[number][None], "point_labels": ON[number][None]}
        for index in prompted:
            memory["cond_frame_outputs"][index] = step(index, own_points, False)
        for index in range(prompted[0] + 1, NUM_FRAMES):
            if index not in prompted:
                memory["non_cond_frame_outputs"][index] = step(index, None, False)
        for index in range(prompted[0] - 1, -1, -1):
            memory["non_cond_frame_outputs"][index] = step(index, None, True)
    return (
        {index: torch.cat(each)[:, 0] for index, each in masks.items()},
        {index: torch.cat(each)[:, 0] for index, each in scores.items()},
    )


def our_tracks(tracker: SamaMaskTracker, encoded: list[FrameFeatures], prompted: list[int]) -> dict[int, torch.Tensor]:
    """The same by our tracker, both objects at once."""
    state, masks = tracker.start_track(NUM_FRAMES), {}

    def remember(index: int, features: FrameFeatures, found: ObjectMasks, is_prompted: bool) -> None:
        tracker.remember(state, index, features, found, prompted=is_prompted)
        masks[index] = found.mask_logits[0]

    for index in prompted:
        features = encoded[index]
        found = tracker.segment_points(features.take(torch.zeros(NUM_OBJECTS, dtype=torch.long)), POINTS, ON)
        parts = (
            found.mask_logits,
            found.predicted_iou,
            found.object_score,
            found.object_pointer,
            found.ungated_logits,
        )
        remember(index, features, ObjectMasks(*(part.transpose(0, 1) for part in parts)), True)
    for indices, step in ((range(prompted[0] + 1, NUM_FRAMES), 1), (range(prompted[0] - 1, -1, -1), -1)):
        for index in indices:
            if index not in prompted:
                features = encoded[index]
                remember(index, features, tracker.propagate(features, state, index, step), False)
    return masks


PROMPTED = {"forward": [0], "both ways": [5], "two prompted frames": [0, 4]}
# Each pair of version, memory and prompted frames; the other combinations are slow tests
PAIRS = [
    ("2.0", "float", "forward"),
    ("2.0", "float", "two prompted frames"),
    ("2.0", "bfloat16", "both ways"),
    ("2.1", "float", "both ways"),
    ("2.1", "bfloat16", "forward"),
    ("2.1", "bfloat16", "two prompted frames"),
]
REST = [case for case in product(VERSIONS, ("float", "bfloat16"), PROMPTED) if case not in PAIRS]


@pytest.mark.parametrize(
    ("package", "memory", "prompted"),
    [*PAIRS, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
    indirect=["package"],
)
@torch.no_grad()
def test_propagation(package, tracker, images, features, memory, prompted):
    prompted, round_memory = PROMPTED[prompted], memory == "bfloat16"
    theirs, scores = package_tracks(package, images, prompted, round_memory)
    ours = our_tracks(our_tracker(package, True) if round_memory else tracker, features, prompted)
    assert sorted(ours) == sorted(theirs) == list(range(NUM_FRAMES))
    assert all((score > 0).all() for score in scores.values())
    for index in range(NUM_FRAMES):
        assert 0.001 < (theirs[index] > 0).float().mean() < 0.999
        close(ours[index], theirs[index])


@torch.no_grad()
def test_propagation_with_objects_that_leave(package, images, features):
    """SAM 2 empties the mask of an object whose score is not positive, and remembers that it was not there."""
    # The score head is turned round, because clicked frames score lowest here, and its last bias is moved so that
    # about half of the tracked frames lose their objects
    package = deepcopy(package)
    package.get_parameter(SCORE_WEIGHT).neg_()
    _, scores = package_tracks(package, images, [0], False)
    tracked = torch.cat([scores[index] for index in range(1, NUM_FRAMES)]).flatten().sort().values
    middle = tracked[len(tracked) // 3 : 2 * len(tracked) // 3]
    # In the widest gap between two scores: on a score itself, rounding would decide whether the object is there
    widest = middle.diff().argmax()
    package.get_parameter(SCORE_BIAS).sub_((middle[widest] + middle[widest + 1]) / 2)
    theirs, scores = package_tracks(package, images, [0], False)
    absent = torch.stack([scores[index] <= 0 for index in range(1, NUM_FRAMES)])
    assert (scores[0] > 0).all()
    assert absent.any() and not absent.all()
    ours = our_tracks(our_tracker(package), features, [0])
    for index in range(NUM_FRAMES):
        close(ours[index], theirs[index])
