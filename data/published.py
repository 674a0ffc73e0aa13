"""What the published training does its own way, for the preset `published`: templates, text of a question, frames."""

import numpy as np

from sama.video_sama import FrameChoice


# Template sets that are replaced: the published questions about videos say "image" as well
TEMPLATE_SETS = {"segment_video": "segment_image"}
# Literal text in front of Osprey's list of regions: an image tag that was never replaced
REGION_LIST_PREFIX = "<image> "
# Record layouts whose first question loses its newlines
SINGLE_LINE_LAYOUTS = ("llava", "osprey")
# Frames of the policy "segments" (ChatUniVi)
NUM_SEGMENTS, NUM_DENSE_SEGMENTS = 32, 5


def join_lines(content: list[dict]) -> list[dict]:
    """The parts of a question with every newline deleted; no blank takes its place."""
    return [{**part, "text": part["text"].replace("\n", "")} if part["type"] == "text" else part for part in content]


def segment_frames(num_frames: int, rng: np.random.Generator) -> FrameChoice:
    """
    The frames of the policy "segments": one random frame of each of 32 equal segments, of which 5 are dense. A video
    with fewer than 32 frames is repeated; the rest is filled with evenly spaced frames.
    """
    if num_frames >= NUM_SEGMENTS:
        bounds = np.linspace(0, num_frames, NUM_SEGMENTS + 1).astype(int)
        context = [int(rng.integers(low, high)) for low, high in zip(bounds, bounds[1:], strict=False)]
    else:
        missing = NUM_SEGMENTS % num_frames
        spread = [index * num_frames // missing for index in range(missing)]
        context = [*range(num_frames)] * (NUM_SEGMENTS // num_frames) + spread
    bounds = np.linspace(0, NUM_SEGMENTS, NUM_DENSE_SEGMENTS + 1).astype(int)
    dense = [context[rng.integers(low, high)] for low, high in zip(bounds, bounds[1:], strict=False)]
    return FrameChoice(context=context, dense=dense, prompted=dense)
