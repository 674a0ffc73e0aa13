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

import numpy as np
import torch
from PIL import Image
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from .versions_sama import CACHE


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class FrameTokens:
    """Frames as the language model reads them: `features` (F, P, C), and `deepstack` (F, P, D, C), what families with
    deep-stack features add to the states of their first D layers."""

    features: torch.Tensor
    deepstack: torch.Tensor | None = None


class BackboneFamily:
    """
    What SAMA asks of a vision-language model. Objects hold settings and no weights.

    Args:
        config (`PreTrainedConfig`): the model's configuration.

    Attributes:
        frame_start, frame_context, frame_end (`str`): What stands around a frame in the text, and its placeholder.
        chat_template (`str`): The name of the template of `CHAT_TEMPLATES` for a tokenizer without one.
        vision_tower, projector (`tuple[str, ...]`): Prefixes of the names of these two parts.
    """

    frame_start: ClassVar[str]
    frame_context: ClassVar[str]
    frame_end: ClassVar[str]
    chat_template: ClassVar[str] = "qwen_chat"
    vision_tower: ClassVar[tuple[str, ...]]
    projector: ClassVar[tuple[str, ...]]

    def __init__(self, config: Any):
        self.config = config

    # ---- pixels -----------------------------------------------------------------------------------------------------

    def make_image_processor(self) -> Any:
        """The image processor of a model of this family, with the settings of its first release."""
        raise NotImplementedError

    def frame_grid(self, image_processor: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame of `height` x `width` pixels."""
        raise NotImplementedError

    def max_frame_tokens(self, image_processor: Any) -> int:
        """The most tokens of a frame of any size."""
        raise NotImplementedError

    def frame_pixel_values(self, image_processor: Any, frames: Sequence[Image.Image]) -> torch.Tensor:
        """What [`encode_frames`] takes, of frames of one size."""
        raise NotImplementedError

    def num_tiles(self, image_processor: Any, height: int, width: int) -> int:
        """How many frames a still of `height` x `width` pixels is shown as."""
        return 1

    def tile_pixel_values(self, image_processor: Any, image: Image.Image) -> torch.Tensor:
        """What [`encode_frames`] takes, of a still."""
        return self.frame_pixel_values(image_processor, [image])

    def blank_pixel_values(self, model: Any) -> torch.Tensor:
        """What [`encode_frames`] takes, of one small black frame."""
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
        return model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
            **kwargs,
        )


class InternVLFamily(BackboneFamily):
    """InternVL 2.5, 3 and 3.5: every frame is a square of one size, a still is cut into such squares."""

    frame_start, frame_context, frame_end = "<img>", "<IMG_CONTEXT>", "</img>"
    vision_tower, projector = ("vision_tower.",), ("multi_modal_projector.",)

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

    def blank_pixel_values(self, model: Any) -> torch.Tensor:
        return torch.zeros(1, 3, *self.config.vision_config.image_size, dtype=model.dtype, device=model.device)

    def encode_frames(self, model: Any, pixel_values: torch.Tensor, grids: torch.Tensor | None = None) -> FrameTokens:
        return FrameTokens(model.get_image_features(pixel_values, return_dict=True).pooler_output)


FAMILIES: dict[str, type[BackboneFamily]] = {"internvl": InternVLFamily}


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


def normalized_pixels(image: Image.Image, size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A picture resized to a square and normalized: float tensor of shape `(3, size, size)`. PIL resizes on every
    machine, so the pixels do not depend on what is installed."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    pixels = (pixels - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(pixels).movedim(-1, 0).contiguous()


def tile_grid(image_processor: Any, height: int, width: int) -> tuple[int, int]:
    """Columns and rows of the tiles that InternVL cuts a still into."""
    size = image_processor.size["height"]
    return get_optimal_tiled_canvas((height, width), (size, size), 1, image_processor.max_patches)
