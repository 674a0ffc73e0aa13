"""Arithmetic of tracking, counted on the meta device at true sizes: what the release computes, what this tracker
computes, and the least that the same masks need.

    python profiling/operations.py [--encoder tiny large] [--image_size 256 512 1024] [--objects 1 4 8] [--frames 32]
        [--language 1b]

PyTorch's `FlopCounterMode` counts the operations of matrix products, convolutions and attention, a multiplication and
an addition as two; it leaves out norms, softmax and resizing. Nothing is timed, so the numbers are those of any
machine.

- *release*: each object is tracked by itself, with the image encoder on every frame for each, and the modules of
  transformers' `Sam2VideoModel` as they are: all memories are projected for every frame, to keys and values of 256.
- *ours*: this tracker runs under the counter. Nothing is a formula.
- *limit*: the image encoder once a frame for all objects; the first self-attention of the memory attention and the
  memory encoder's view of the frame once for all objects, who still see the same; a memory's keys projected once, when
  it is remembered; memories averaged as they are stored, 64 wide, and projected after that; every other module of each
  object once a frame. Attention itself is exact: each cell of a frame with all remembered tokens.

A first answer tracks through a video of which no frame is encoded; a later one has all frames' features kept, but not
in the release, which keeps none. Both begin with five prompted frames. The language model is counted apart, with
`--language`: the release reads frames and conversation again in every turn.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from sama.configuration_sama import SamaConfig
from sama.conversion.released_sizes import LANGUAGE_MODELS, released_config
from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration
from sama.modeling_sama_tracker import SamaMaskTracker, build_mask_tracker
from sama.profiling.cases import ENCODERS, tracker_config
from sama.versions_sama import CACHE


NUM_PROMPTED = 5
GIGA = 10**9
MULTIPLY_ADD = 2


def count(action: Callable[[], object]) -> int:
    """Operations of `action`."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


@cache
def meta_tracker(encoder: str, image_size: int) -> SamaMaskTracker:
    """A tracker of SAM 2.0 on the meta device, with the preset `published`, which computes the release's masks."""
    config = SamaConfig(sam_config=tracker_config(encoder, image_size), preset="published")
    with torch.device("meta"):
        return build_mask_tracker(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Counts:
    """Operations of tracking: of one frame in the middle of a video, of a first answer about the whole video, and of a
    later one."""

    frame: int
    first: int
    later: int


def memory_sizes(index: int, tracker: SamaMaskTracker) -> tuple[int, int]:
    """How many memories and pointers frame `index` reads, when the first frames are prompted."""
    config, tracked = tracker.mask_config, index - NUM_PROMPTED
    return (
        NUM_PROMPTED + min(tracked, config.num_maskmem - 1),
        NUM_PROMPTED + min(tracked, config.max_object_pointers_in_encoder - 1),
    )


def settled_frame(tracker: SamaMaskTracker) -> int:
    """The first frame that reads as many memories and pointers as all later ones."""
    return NUM_PROMPTED + tracker.mask_config.max_object_pointers_in_encoder - 1


# What this tracker computes


def ours(tracker: SamaMaskTracker, objects: int, num_frames: int) -> Counts:
    """Operations of this tracker, which runs on the meta device.

    Raises:
        ValueError: if the video ends before a frame reads as many memories as all later ones.
    """
    settled = settled_frame(tracker)
    if num_frames <= settled:
        raise ValueError(
            f"A video of {num_frames} frames is too short: frame {settled} is the first whose cost stays."
        )
    size, width = tracker.mask_config.image_size, tracker.mask_config.prompt_encoder_config.hidden_size
    with torch.device("meta"):
        pixels, prompts = torch.zeros(1, 3, size, size), torch.zeros(objects, width)
    with FlopCounterMode(display=False) as counter:
        features = tracker.encode_frames(pixels)
    encoder, after = counter.get_total_flops(), []
    with FlopCounterMode(display=False) as counter:
        for _ in tracker.track(prompts, num_frames, range(NUM_PROMPTED), lambda index: features):
            after.append(counter.get_total_flops())
    return Counts(
        frame=encoder + after[settled] - after[settled - 1],
        first=num_frames * encoder + after[-1],
        later=after[-1],
    )


# What the release computes


class Modules:
    """Operations of the modules of transformers' `Sam2VideoModel` for one object in one frame.

    Args:
        tracker ([`SamaMaskTracker`]): on the meta device.
    """

    def __init__(self, tracker: SamaMaskTracker):
        self.tracker, self.sam, self.config = tracker, tracker.sam, tracker.mask_config
        self.side = self.sam.backbone_feature_sizes[-1][0]
        self.cells, self.width = self.side**2, self.sam.hidden_dim
        self.memory_width, self.pointer_tokens = self.sam.mem_dim, self.sam.hidden_dim // self.sam.mem_dim

    def empty(self, *shape: int) -> torch.Tensor:
        """A tensor without values."""
        return torch.empty(*shape, device="meta")

    @cached_property
    def encoder(self) -> int:
        """Image encoder, with the finer levels for one mask decoder."""
        size, decoder = self.config.image_size, self.sam.mask_decoder

        def encode() -> None:
            fine, middle, _ = self.sam.vision_encoder(self.empty(1, 3, size, size)).fpn_hidden_states[:3]
            decoder.conv_s0(fine), decoder.conv_s1(middle)

        return count(encode)

    @lru_cache  # noqa: B019 - lives as long as the program
    def attention(self, memories: int, pointers: int) -> int:
        """Memory attention."""
        pointers *= self.pointer_tokens
        tokens = memories * self.cells + pointers
        return count(
            lambda: self.sam.memory_attention(
                current_vision_features=self.empty(self.cells, 1, self.width),
                current_vision_position_embeddings=self.empty(self.cells, 1, self.width),
                memory=self.empty(tokens, 1, self.memory_width),
                memory_posision_embeddings=self.empty(tokens, 1, self.memory_width),
                num_object_pointer_tokens=pointers,
            )
        )

    @lru_cache  # noqa: B019
    def decoder(self, sparse: int) -> int:
        """Mask decoder with so many sparse prompts, and the pointer of the mask."""
        image, side = self.empty(1, self.width, self.side, self.side), self.side

        def decode() -> None:
            _, _, tokens, _ = self.sam.mask_decoder(
                image_embeddings=image,
                image_positional_embeddings=image,
                sparse_prompt_embeddings=self.empty(1, 1, sparse, self.width),
                dense_prompt_embeddings=image,
                multimask_output=True,
                high_resolution_features=[
                    self.empty(1, self.width // 8, 4 * side, 4 * side),
                    self.empty(1, self.width // 4, 2 * side, 2 * side),
                ],
            )
            self.sam.object_pointer_proj(tokens[:, :, 0])

        return count(decode)

    @cached_property
    def memory_encoder(self) -> int:
        """Memory encoder."""
        image, masks = self.empty(1, self.width, self.side, self.side), 16 * self.side
        return count(lambda: self.sam.memory_encoder(image, self.empty(1, 1, masks, masks)))


NO_POINT, LANGUAGE = 2, 3  # sparse prompts of a tracked and of a prompted frame


def release(modules: Modules, objects: int, num_frames: int) -> Counts:
    """Operations of the release: each object by itself, and every answer from the start."""

    def tracked(index: int) -> int:
        parts = modules.encoder + modules.decoder(NO_POINT) + modules.memory_encoder
        return parts + modules.attention(*memory_sizes(index, modules.tracker))

    prompted = modules.encoder + modules.decoder(LANGUAGE) + modules.memory_encoder
    video = NUM_PROMPTED * prompted + sum(tracked(index) for index in range(NUM_PROMPTED, num_frames))
    return Counts(objects * tracked(settled_frame(modules.tracker)), objects * video, objects * video)


# The least that the same masks need


def least_attention(modules: Modules, memories: int, pointers: int) -> tuple[int, int]:
    """Operations of the memory attention that all objects share, and of each object."""
    layers = modules.sam.memory_attention.layers
    cells, width, narrow = modules.cells, modules.width, modules.memory_width
    hidden = layers[0].linear1.out_features
    tokens = memories * cells + pointers * modules.pointer_tokens
    project = cells * width * width  # queries, keys, values or outputs of the frame's cells
    own_attention = 4 * project + 2 * cells * cells * width
    # Queries; weights; averages of what is stored; these to `width` (once: through values' and outputs' matrices)
    reading = project + cells * tokens * width + cells * tokens * narrow + cells * narrow * width
    # Keys, once in the life of a memory: of one memory and one pointer a frame
    new_keys = (cells + modules.pointer_tokens) * narrow * width
    others = 2 * cells * width * hidden
    shared, each = own_attention, (len(layers) - 1) * own_attention
    each += len(layers) * (reading + new_keys + others)
    return MULTIPLY_ADD * shared, MULTIPLY_ADD * each


def limit(modules: Modules, objects: int, num_frames: int) -> Counts:
    """Operations that the same masks need at least, as this file's first lines define it."""
    seen = MULTIPLY_ADD * modules.cells * modules.width**2  # the memory encoder's view of the frame
    remembered = objects * (modules.memory_encoder - seen) + seen

    def tracked(index: int) -> int:
        shared, each = least_attention(modules, *memory_sizes(index, modules.tracker))
        return shared + objects * (each + modules.decoder(NO_POINT)) + remembered

    prompted = objects * modules.decoder(LANGUAGE) + remembered
    later = NUM_PROMPTED * prompted + sum(tracked(index) for index in range(NUM_PROMPTED, num_frames))
    frame = modules.encoder + tracked(settled_frame(modules.tracker))
    return Counts(frame, num_frames * modules.encoder + later, later)


# Language


@dataclass(frozen=True)
class Conversation:
    """A conversation of two turns: context frames, tokens up to the first answer, tokens that the second question
    adds, and tokens of an answer."""

    frames: int = 32
    first_tokens: int = 1400
    later_tokens: int = 60
    answer_tokens: int = 32


def language(size: str, conversation: Conversation) -> tuple[int, int, int]:
    """Operations of vision tower, projector and language model: of a first turn, of a later turn from the start, which
    is the release's, and of a later turn with frames and earlier tokens kept. Without aggregator and regions."""
    config = released_config(size)
    config.text_config.rope_parameters = config.text_config.rope_parameters | {"rope_type": "default"}
    with torch.device("meta"):
        model = SamaForConditionalGeneration._from_config(config).eval()
        pixels = torch.zeros(1, 3, *config.vision_config.image_size)
    decoder, width = model.model.backbone.language_model, config.text_config.hidden_size

    def read(tokens: int, known: int = 0) -> int:
        cache = DynamicCache(config=config.text_config)

        def forward(length: int) -> None:
            embeds = torch.zeros(1, length, width, device="meta")
            model.lm_head(decoder(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})[0][:, -1])

        if known:
            forward(known)
        return count(lambda: forward(tokens))

    frames = conversation.frames * count(lambda: model.model.encode_frames(pixels))
    first, later, answer = conversation.first_tokens, conversation.later_tokens, conversation.answer_tokens
    whole = first + answer + later
    answers = [answer * read(1, known) for known in (first, whole)]
    return (
        frames + read(first) + answers[0],
        frames + read(whole) + answers[1],
        read(later, first + answer) + answers[1],
    )


def turns_table(size: str, objects: list[int], num_frames: int) -> str:
    """Whole turns of a released model, tracking included."""
    tracker, conversation = meta_tracker("large", released_config(size).mask_config.image_size), Conversation()
    modules, (first, again, later), rows = Modules(tracker), language(size, conversation), []
    for number in objects:
        theirs, own = release(modules, number, num_frames), ours(tracker, number, num_frames)
        turns = [(theirs.first + first, own.first + first), (theirs.later + again, own.later + later)]
        rows.append([number, *(cell for pair in turns for cell in (*map(written, pair), f"{pair[0] / pair[1]:.1f}x"))])
    header = ["objects", "first turn, release", "ours", "ratio", "later turn, release", "ours", "ratio"]
    return (
        markdown_table(header, rows)
        + f"\n\nOf these, frames and text: {written(first)} in a first turn, {written(again)} in a later turn of the "
        f"release, {written(later)} in ours. {conversation}."
    )


# Tables


def written(number: int) -> str:
    """Operations in units of 10^9, with three digits."""
    giga = number / GIGA
    return f"{giga:,.0f}" if giga >= 100 else f"{giga:.3g}"


def table(encoder: str, sizes: list[int], objects: list[int], num_frames: int) -> str:
    """The table of an image encoder."""
    rows = []
    for size in sizes:
        tracker = meta_tracker(encoder, size)
        modules = Modules(tracker)
        for number in objects:
            theirs, own, least = (
                release(modules, number, num_frames),
                ours(tracker, number, num_frames),
                limit(modules, number, num_frames),
            )
            row = [size, number]
            for name in ("frame", "first", "later"):
                counts = [vars(each)[name] for each in (theirs, own, least)]
                row += [
                    " / ".join(map(written, counts)),
                    f"{counts[0] / counts[1]:.1f}x",
                    f"{counts[1] / counts[2]:.2f}",
                ]
            rows.append(row)
    parts = [[what, "release / ours", "ours / limit"] for what in ("frame", "first answer", "later answer")]
    header = ["pixels", "objects", *(cell for part in parts for cell in part)]
    return markdown_table(header, rows)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--image_size", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--frames", type=int, default=32, help="frames of the video")
    parser.add_argument("--language", choices=LANGUAGE_MODELS, help="whole turns of a released model instead")
    arguments = parser.parse_args()
    try:
        if arguments.language:
            print(turns_table(arguments.language, arguments.objects, arguments.frames))
            return
        for encoder in arguments.encoder:
            found = table(encoder, arguments.image_size, arguments.objects, arguments.frames)
            print(f"### Hiera-{encoder}\n\nUnits of 10^9 operations: release / ours / limit.\n\n{found}\n", flush=True)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
