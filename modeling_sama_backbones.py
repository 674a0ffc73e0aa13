"""The vision-language models that SAMA is built on: how each family writes, encodes and reads a video.

`SamaModel.backbone` is the library's own model; everything that SAMA asks of it goes through one of these classes. A
new family needs one class here and one table of tensor names in conversion/.

Letters in shape comments: B conversations, L tokens of a conversation, F frames, P tokens a frame (the most, where
frames differ in size: the rows of smaller ones are padded with zeros), C language-model width, D levels of deep-stack
features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from .configuration_sama import DENSE_FRAME_TOKEN, IMAGENET_MEAN, IMAGENET_STD, FrameTags
from .pixels_sama import normalized_pixels
from .versions_sama import CACHE


MAX_ASPECT_RATIO = 200  # of a frame that `smart_resize` takes


@dataclass
class FrameTokens:
    """Frames as the language model reads them: `features` (F, P, C), and `deepstack` (F, P, D, C), what families with
    deep-stack features add to the states of their first D layers."""

    features: torch.Tensor
    deepstack: torch.Tensor | None = None

    @classmethod
    def concatenate(cls, parts: Sequence["FrameTokens"]) -> "FrameTokens":
        """The frames of all parts, padded to the longest."""
        if len(parts) == 1:
            return parts[0]
        features = pad_sequence([frame for part in parts for frame in part.features], batch_first=True)
        if parts[0].deepstack is None:
            return cls(features)
        return cls(features, pad_sequence([frame for part in parts for frame in part.deepstack], batch_first=True))


class BackboneFamily:
    """
    What SAMA asks of a vision-language model. Objects hold settings and no weights.

    Args:
        config (`PreTrainedConfig`): the model's configuration.

    Attributes:
        tags ([`FrameTags`]): What stands around a frame in the text, and its placeholder.
        chat_template (`str`): The name of the template of `CHAT_TEMPLATES` for a tokenizer without one.
        vision_tower, projector (`tuple[str, ...]`): Prefixes of the names of these two parts; the longest one decides.
        pixel_settings (`tuple[str, ...]`): What an image processor of this family has and others have not.
    """

    tags: ClassVar[FrameTags]
    chat_template: ClassVar[str] = "qwen_chat"
    vision_tower: ClassVar[tuple[str, ...]]
    projector: ClassVar[tuple[str, ...]]
    pixel_settings: ClassVar[tuple[str, ...]]

    def __init__(self, config: Any):
        self.config = config

    # ---- pixels -----------------------------------------------------------------------------------------------------

    def make_image_processor(self) -> Any:
        """The image processor of a model of this family, with the settings of its first release."""
        raise NotImplementedError

    def portable(self, image_processor: Any) -> Any:
        """An image processor of the same settings that gives the same pixels on every machine."""
        return image_processor

    def check_image_processor(self, image_processor: Any) -> None:
        """Raises `ValueError` for an image processor that was made for another vision tower."""
        missing = [name for name in self.pixel_settings if name not in vars(image_processor)]
        if missing:
            raise ValueError(
                f"The image processor, a {type(image_processor).__name__}, has no {', '.join(missing)}: it was made "
                "for another backbone; load both from one checkpoint."
            )

    def frame_grid(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame of `height` x `width` pixels."""
        raise NotImplementedError

    def max_frame_tokens(self, image_processor: Any) -> int:
        """The most tokens of a frame of any size."""
        raise NotImplementedError

    def frame_pixel_values(self, image_processor: Any, frames: Sequence[Image.Image]) -> torch.Tensor:
        """What [`encode_frames`] takes, of frames of one size."""
        raise NotImplementedError

    def set_sizes(self, image_processor: Any, image_size: int | None, max_tiles: int | None) -> None:
        """Sets the side of square frames and the most tiles of a still, where they are given.

        Raises:
            ValueError: for a family whose frames are no such squares.
        """
        if image_size is not None or max_tiles is not None:
            raise ValueError(
                "Frames of this backbone keep their proportions: instead of image_size and max_tiles, set the image "
                "processor's `size`, the fewest and the most pixels of a frame."
            )

    def max_tiles(self, image_processor: Any) -> int:
        """Most tiles of a still, an additional one of the whole image not counted."""
        return 1

    def num_tiles(self, image_processor: Any, height: int, width: int) -> int:
        """How many frames a still of `height` x `width` pixels is shown as."""
        return 1

    def tile_pixel_values(self, image_processor: Any, image: Image.Image) -> torch.Tensor:
        """What [`encode_frames`] takes, of a still."""
        return self.frame_pixel_values(image_processor, [image])

    def blank_frame(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What [`encode_frames`] takes, of one small black frame: pixel values, and rows and columns of its tokens."""
        raise NotImplementedError

    # ---- text -------------------------------------------------------------------------------------------------------

    def position_ids(self, token_types: Sequence[int], grid: tuple[int, int]) -> torch.Tensor | None:
        """
        Positions of the tokens of a conversation, where they are not 0, 1, 2, ...

        Args:
            token_types (`Sequence[int]`): The `mm_token_type_ids` of the conversation.
            grid (`tuple[int, int]`): Rows and columns of each of its dense frames.

        Returns:
            `torch.LongTensor` of shape `(3, length)`, or None.
        """
        return None

    def check_position_ids(self, position_ids: torch.Tensor | None, token_types: torch.Tensor | None) -> None:
        """Raises `ValueError` if tokens of frames are among `token_types` and [`position_ids`] were not given."""

    # ---- model ------------------------------------------------------------------------------------------------------

    @property
    def num_deepstack_levels(self) -> int:
        """How many layers of the language model add deep-stack features to their states."""
        return 0

    def split_frames(
        self, pixel_values: torch.Tensor, grids: torch.Tensor | None, size: int
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """What [`encode_frames`] takes, at most `size` frames at a time."""
        raise NotImplementedError

    def encode_frames(self, model: Any, pixel_values: torch.Tensor, grids: torch.Tensor | None = None) -> FrameTokens:
        """
        Vision tower and projector.

        Args:
            model (`PreTrainedModel`): The backbone.
            pixel_values (`torch.Tensor`): From [`frame_pixel_values`], of several videos one after another.
            grids (`torch.LongTensor` of shape `(num_frames, 2)`, *optional*): Rows and columns of each frame's tokens.
        """
        raise NotImplementedError

    def run(
        self,
        model: Any,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        deepstack: tuple[torch.Tensor, list[torch.Tensor]] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """
        The language model on embeddings in which everything visual is in place.

        Args:
            model (`PreTrainedModel`): The backbone.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, length, width)`)
            position_ids (`torch.LongTensor`, *optional*): From [`position_ids`], of shape `(3, batch_size, length)`.
            deepstack (`tuple`, *optional*): A bool mask of shape `(batch_size, length)` that says where frames are,
                and for each level their deep-stack features, of shape `(num_frame_tokens, width)`.
        """
        if deepstack is not None:
            kwargs |= {"visual_pos_masks": deepstack[0], "deepstack_visual_embeds": deepstack[1]}
        return model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
            **kwargs,
        )


class InternVLFamily(BackboneFamily):
    """InternVL 2.5, 3 and 3.5: every frame is a square of one size, a still is cut into such squares."""

    tags = FrameTags("<img>", "<IMG_CONTEXT>", "</img>")
    vision_tower, projector = ("vision_tower.",), ("multi_modal_projector.",)
    pixel_settings = ("max_patches",)

    def __init__(self, config: Any):
        super().__init__(config)
        self.side = math.isqrt(config.image_seq_length)  # of the square of a frame's tokens
        if self.side**2 != config.image_seq_length:
            raise ValueError(f"image_seq_length={config.image_seq_length} is not a square number.")

    def make_image_processor(self) -> Any:
        return GotOcr2ImageProcessorPil(
            size={"height": 448, "width": 448}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
        )

    def frame_grid(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def max_frame_tokens(self, image_processor: Any) -> int:
        return self.side**2

    def frame_pixel_values(self, image_processor: Any, frames: Sequence[Image.Image]) -> torch.Tensor:
        """Float tensor of shape `(num_frames, 3, size, size)`."""
        size, mean, std = image_processor.size["height"], image_processor.image_mean, image_processor.image_std
        pixels = [normalized_pixels(frame, size, mean, std) for frame in frames]
        return torch.stack(pixels) if pixels else torch.zeros(0, 3, size, size)

    def set_sizes(self, image_processor: Any, image_size: int | None, max_tiles: int | None) -> None:
        if image_size is not None:
            image_processor.size = type(image_processor.size)(height=image_size, width=image_size)
        if max_tiles is not None:
            image_processor.max_patches = max_tiles

    def max_tiles(self, image_processor: Any) -> int:
        return image_processor.max_patches

    def num_tiles(self, image_processor: Any, height: int, width: int) -> int:
        columns, rows = tile_grid(image_processor, height, width)
        return columns * rows + (columns * rows > 1)

    def tile_pixel_values(self, image_processor: Any, image: Image.Image) -> torch.Tensor:
        """The tiles row by row; the whole image last if there are several."""
        size, (columns, rows) = image_processor.size["height"], tile_grid(image_processor, image.height, image.width)
        canvas = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
        corners = [(column * size, row * size) for row in range(rows) for column in range(columns)]
        tiles = [canvas.crop((left, top, left + size, top + size)) for left, top in corners]
        return self.frame_pixel_values(image_processor, tiles + [image] if len(tiles) > 1 else tiles)

    def blank_frame(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.config.vision_config.image_size
        pixel_values = torch.zeros(1, 3, *size, dtype=model.dtype, device=model.device)
        return pixel_values, torch.tensor([[self.side, self.side]])

    def split_frames(
        self, pixel_values: torch.Tensor, grids: torch.Tensor | None, size: int
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        return [(frames, None) for frames in pixel_values.split(size)]

    def encode_frames(self, model: Any, pixel_values: torch.Tensor, grids: torch.Tensor | None = None) -> FrameTokens:
        return FrameTokens(model.get_image_features(pixel_values, return_dict=True).pooler_output)


class Qwen25VLFamily(BackboneFamily):
    """Qwen2.5-VL: a frame keeps its proportions and is an image of its own in the text, with positions in three
    dimensions (M-RoPE). Its pixel values are rows of patches."""

    tags = FrameTags("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
    chat_template = "qwen2_5_vl_chat"
    vision_tower, projector = ("visual.",), ("visual.merger.",)
    pixel_settings = ("patch_size", "temporal_patch_size", "merge_size")

    def make_image_processor(self) -> Any:
        return Qwen2VLImageProcessorPil(**self.patch_sizes())

    def portable(self, image_processor: Any) -> Any:
        """The same settings in the class that resizes with PIL. A saved processor is loaded as the one that needs
        torchvision where that is installed, and the two do not give the same pixels."""
        if isinstance(image_processor, Qwen2VLImageProcessorPil):
            return image_processor
        return Qwen2VLImageProcessorPil.from_dict(image_processor.to_dict())

    def patch_sizes(self) -> dict[str, int]:
        """What the image processor must know of the vision tower."""
        vision = self.config.vision_config
        return {
            "patch_size": vision.patch_size,
            "temporal_patch_size": vision.temporal_patch_size,
            "merge_size": vision.spatial_merge_size,
        }

    def check_image_processor(self, image_processor: Any) -> None:
        super().check_image_processor(image_processor)
        for name, wanted in self.patch_sizes().items():
            found = vars(image_processor)[name]
            if found != wanted:
                raise ValueError(
                    f"`{name}` is {found} in the image processor but {wanted} in the vision tower; load both from one "
                    "checkpoint."
                )

    def frame_grid(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        side = image_processor.patch_size * image_processor.merge_size  # pixels of a token
        size = image_processor.size
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            raise ValueError(
                f"A frame of {width}x{height} pixels has sides of a ratio of more than {MAX_ASPECT_RATIO}, which this "
                "backbone does not read; crop it."
            )
        resized = smart_resize(height, width, side, size["shortest_edge"], size["longest_edge"])
        return resized[0] // side, resized[1] // side

    def max_frame_tokens(self, image_processor: Any) -> int:
        side, most = image_processor.patch_size * image_processor.merge_size, image_processor.size["longest_edge"]
        # A frame that is much longer than high has one row of tokens, also where that is more than `most` pixels
        return max(most // side**2, math.isqrt(MAX_ASPECT_RATIO * most) // side)

    def frame_pixel_values(self, image_processor: Any, frames: Sequence[Image.Image]) -> torch.Tensor:
        """Float tensor of shape `(num_patches, values_per_patch)`."""
        if not frames:
            patch = image_processor.patch_size**2 * image_processor.temporal_patch_size
            return torch.zeros(0, 3 * patch)
        return image_processor(images=list(frames), return_tensors="pt")["pixel_values"]

    def blank_frame(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = self.patch_sizes()
        values = 3 * sizes["patch_size"] ** 2 * sizes["temporal_patch_size"]
        pixel_values = torch.zeros(sizes["merge_size"] ** 2, values, dtype=model.dtype, device=model.device)
        return pixel_values, torch.tensor([[1, 1]])

    def position_ids(self, token_types: Sequence[int], grid: tuple[int, int]) -> torch.Tensor | None:
        types, (rows, columns) = torch.tensor(token_types), grid
        frame = torch.stack(
            [
                torch.zeros(rows * columns, dtype=torch.long),
                torch.arange(rows).repeat_interleave(columns),
                torch.arange(columns).repeat(rows),
            ]
        )  # time, row and column of the tokens of a frame
        found, start = [], 0
        for is_frame, length in zip(
            *(part.tolist() for part in (types == DENSE_FRAME_TOKEN).unique_consecutive(return_counts=True)),
            strict=True,
        ):
            if not is_frame:
                found.append(torch.arange(start, start + length).expand(3, -1))
                start += length
                continue
            if length != rows * columns:
                raise ValueError(f"A frame has {length} placeholders in a row, but {rows} x {columns} tokens.")
            found.append(frame + start)
            start += max(rows, columns)
        return torch.cat(found, 1)

    def check_position_ids(self, position_ids: torch.Tensor | None, token_types: torch.Tensor | None) -> None:
        if position_ids is not None and position_ids.ndim == 3:  # first: a look at the types waits for the GPU
            return
        if token_types is not None and (token_types == DENSE_FRAME_TOKEN).any():
            found = "none" if position_ids is None else f"those of shape {tuple(position_ids.shape)}"
            raise ValueError(
                f"Frames need `position_ids` of shape (3, batch_size, length), got {found}; the processor makes them."
            )

    def patch_grids(self, pixel_values: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
        """Rows and columns of the patches of each frame, (num_frames, 2).

        Raises:
            ValueError: if the grids are missing or of other frames.
        """
        if grids is None:
            raise ValueError("Frames of this backbone differ in size: `frame_grids` is needed with `pixel_values`.")
        patches = grids * self.config.vision_config.spatial_merge_size
        num_patches = int(patches.prod(1).sum())
        if num_patches != len(pixel_values):
            raise ValueError(
                f"`pixel_values` has {len(pixel_values)} rows, but the frames have {num_patches} patches by "
                "`frame_grids`; were both made by one processor?"
            )
        return patches

    def split_frames(
        self, pixel_values: torch.Tensor, grids: torch.Tensor | None, size: int
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        counts = self.patch_grids(pixel_values, grids).prod(1).split(size)
        rows = pixel_values.split([int(count.sum()) for count in counts])
        return list(zip(rows, grids.split(size), strict=True))

    def encode_frames(self, model: Any, pixel_values: torch.Tensor, grids: torch.Tensor | None = None) -> FrameTokens:
        patches = self.patch_grids(pixel_values, grids)
        grid_thw = torch.cat([torch.ones_like(patches[:, :1]), patches], 1).to(pixel_values.device)
        output = model.get_image_features(pixel_values, grid_thw, return_dict=True)
        return FrameTokens(pad_sequence(output.pooler_output, batch_first=True), self.deepstack(output))

    def deepstack(self, output: Any) -> torch.Tensor | None:
        """The deep-stack features among what the vision tower returns, (F, P, D, C)."""
        return None


class Qwen3VLFamily(Qwen25VLFamily):
    """Qwen3-VL: as Qwen2.5-VL, with deep-stack features and without a system message."""

    chat_template = "qwen_chat"
    projector = ("visual.merger.", "visual.deepstack_merger_list.")

    def make_image_processor(self) -> Any:
        half = [0.5, 0.5, 0.5]
        return Qwen2VLImageProcessorPil(image_mean=half, image_std=half, **self.patch_sizes())

    @property
    def num_deepstack_levels(self) -> int:
        return len(self.config.vision_config.deepstack_visual_indexes)

    def deepstack(self, output: Any) -> torch.Tensor | None:
        # Some versions of transformers give the frames of a level one after another, others apart
        lengths = [len(frame) for frame in output.pooler_output]
        levels = [level.split(lengths) if torch.is_tensor(level) else level for level in output.deepstack_features]
        return torch.stack([pad_sequence(level, batch_first=True) for level in levels], 2)


FAMILIES: dict[str, type[BackboneFamily]] = {
    "internvl": InternVLFamily,
    "qwen2_5_vl": Qwen25VLFamily,
    "qwen3_vl": Qwen3VLFamily,
}


def backbone_family(config: Any) -> BackboneFamily:
    """
    The family of a backbone.

    Args:
        config (`PreTrainedConfig`): The backbone's configuration.

    Raises:
        ValueError: for a model that SAMA does not know how to use.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"The backbone is a {config.model_type!r}, expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[config.model_type](config)


def tile_grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """Columns and rows of the tiles that InternVL cuts a still into."""
    size = image_processor.size["height"]
    return get_optimal_tiled_canvas((height, width), (size, size), 1, image_processor.max_patches)
