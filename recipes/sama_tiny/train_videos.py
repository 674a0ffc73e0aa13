"""Stage 2 of sama-tiny: the vision tower and the language model learn to see the objects of toy world, without words.

    python recipes/sama_tiny/train_videos.py --model outputs/tiny/start --to outputs/tiny/videos

Two phases, each with its own learning rate schedule. Both use auxiliary heads (heads.py), which are dropped later.

1. Frames (`--frame-steps`): the vision tower learns what and where the objects of single frames are.
2. Videos (`--video-steps`): the language model reads the frames of clips, without a question, and learns to keep track
   of all objects. Single frames and single masks continue.

Muon updates the linear layers and AdamW the rest. The batch sizes are those of each of two processes
(`torchrun --nproc_per_node 2`). An interrupted run resumes from `state.pt` with identical losses.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from sama.configuration_sama import DENSE_FRAME_TOKEN
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.examples import FrameExamples, VideoExamples
from sama.recipes.sama_tiny.heads import Heads, Losses, Tensors, merged
from sama.recipes.sama_tiny.phases import (
    Batch,
    Phase,
    add_run_arguments,
    folder_with,
    hidden_matrices,
    start,
    train_and_save,
    trained_parts,
)


# Layers of the language model after which heads read the frame of a cell, and the places, movements and classes of
# objects. The result of a layer is available to later layers only. No token says which frame a cell belongs to;
# without the first head, places in earlier frames stay inaccurate (docs/log.md)
TIME_LAYER, PLACE_LAYER, MOVEMENT_LAYER, CLASS_LAYER = 1, 4, 5, 6


class VideoLosses:
    """The auxiliary heads, and the losses of a step of each phase."""

    def __init__(self, model: SamaForConditionalGeneration, seed: int):
        self.model = model
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = Heads(model.config.text_config.hidden_size)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by its name in `state.pt`."""
        return {"parts": trained_parts(self.model), "heads": self.heads}

    @property
    def matrices(self) -> list[nn.Parameter]:
        """What Muon updates: the linear layers of the model, without `lm_head`."""
        return hidden_matrices(*self.modules["parts"][:-1])

    def frames(self, batch: Batch) -> Losses:
        """Single frames and single masks: patches of the vision tower, projected cells, and both shape encoders."""
        _, losses, metrics = self.read_frames(batch["inputs"]["pixel_values"], batch["labels"])
        return merged([(losses, metrics), self.single_mask_losses(batch["single masks"])])

    def read_frames(self, pixel_values: torch.Tensor, labels: Tensors) -> tuple[torch.Tensor, Tensors, Tensors]:
        """Visual tokens (num_frames, num_cells, width), and the losses and metrics of patches and cells."""
        outputs = self.model.model.backbone.get_image_features(pixel_values, return_dict=True)
        cells, patches = outputs.pooler_output, outputs.last_hidden_state[:, 1:]  # without the class token
        losses, metrics = self.heads.patches.losses(patches, labels)
        cell_losses, cell_metrics = self.heads.cells.losses(cells, labels)
        return cells, losses | cell_losses, metrics | cell_metrics

    def videos(self, batch: Batch) -> Losses:
        """Frames of clips without a question: patches, cells, and states of the language model. What is learned from
        single frames continues beside them."""
        inputs, labels = batch["inputs"], batch["labels"]
        cells, losses, metrics = self.read_frames(inputs["pixel_values"], labels)
        embeds = self.model.get_input_embeddings()(inputs["input_ids"])
        is_cell = inputs["mm_token_type_ids"] == DENSE_FRAME_TOKEN
        embeds = embeds.masked_scatter(is_cell[..., None], cells.flatten(0, 1).to(embeds.dtype))
        states = self.hidden_states(embeds, inputs["attention_mask"])
        frame_losses, frame_metrics = self.frames(batch["frames"])
        frame_losses = {f"frame {name}": loss for name, loss in frame_losses.items()}
        tracks = self.track_losses(states, is_cell, labels)
        return merged([(losses, metrics), tracks, (frame_losses, frame_metrics)])

    def hidden_states(self, embeds: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """States of the language model before each of its layers, and after the last one and its norm."""
        outputs = self.model.model.backbone.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, output_hidden_states=True, use_cache=False
        )
        return outputs.hidden_states

    def track_losses(self, states: tuple[torch.Tensor, ...], is_cell: torch.Tensor, labels: Tensors) -> Losses:
        """Losses of the table of objects that the states of the frames keep."""
        layers = TIME_LAYER, PLACE_LAYER, MOVEMENT_LAYER, CLASS_LAYER
        return self.heads.tracks.losses(*(states[layer][is_cell] for layer in layers), labels)

    @property
    def shape_encoders(self) -> list[nn.Module]:
        """The networks that encode the mask of a region, for the language model and for the aggregator."""
        inner = self.model.model
        encoders = inner.region_encoder, inner.context_aggregator.region_encoder
        return [encoder.shape_projection for encoder in encoders]

    def single_mask_losses(self, masks: Tensors) -> Losses:
        """Losses of both shape encoders on single masks."""
        return self.heads.masks.losses([encoder(masks["masks"]) for encoder in self.shape_encoders], masks)


def plan(losses: VideoLosses, processor: SamaProcessor, arguments: argparse.Namespace) -> list[Phase]:
    """The two phases."""
    fixed, rate = (processor, losses.model.config, arguments), arguments.learning_rate
    trained = [*losses.modules.values()]
    return [
        Phase(FrameExamples(*fixed, arguments.frame_steps), losses.frames, rate, trained),
        Phase(VideoExamples(*fixed, arguments.video_steps), losses.videos, rate, trained),
    ]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        type=folder_with("config.json"),
        required=True,
        help="a model made by recipes/sama_tiny/initialize.py",
    )
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--frame-steps", type=int, default=800, help="steps of the first phase")
    parser.add_argument("--video-steps", type=int, default=2400, help="steps of the second phase")
    parser.add_argument("--frames", type=int, default=24, help="single frames per step and process")
    parser.add_argument("--videos", type=int, default=16, help="videos per step and process")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    add_run_arguments(parser)
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse_arguments()
    model, processor = start(arguments.model, arguments)
    losses = VideoLosses(model, arguments.seed)
    for part in (model, losses.heads):
        part.to(arguments.device)
    phases = plan(losses, processor, arguments)
    train_and_save(model, processor, phases, losses.modules, arguments, losses.matrices)


if __name__ == "__main__":
    main()
