"""GPU memory of a conversation, computed from the configuration of a model without a GPU and without its weights.

    python profiling/inference_memory.py                             # the models of docs/models.md, as Markdown
    python profiling/inference_memory.py --config MODEL --tokens 16384

Computed are, all in bfloat16: the parameters, counted on the meta device; the key/value cache of a conversation; what
a chat keeps of the frames that the language model and the context aggregator see; and what the mask tracker remembers
of the objects of an answer, with its features of one frame. Not computed are the CUDA context (about 0.5 GB) and the
temporary tensors of single steps: those of a prompt's attention, of a batch of frames in the vision tower, and of the
mask tracker's image encoder and decoder (docs/training.md has figures measured on a GPU for some of them).
"""

import argparse
from dataclasses import dataclass

import torch
from transformers.utils import is_timm_available

from sama.configuration_sama import SamaConfig
from sama.drawing.tables import markdown_table
from sama.modeling_sama import SamaForConditionalGeneration
from sama.profiling.model_sizes import TRACKERS, max_frame_tokens, model_configs


GIGABYTE, BFLOAT16 = 1e9, 2
MEMORY_WIDTH = 64  # of a mask tracker's memory, which transformers fixes


@dataclass(frozen=True)
class Conversation:
    """What is remembered: tokens of all turns together; context frames; dense frames, which the language model reads
    and to which `[SEG]` prompts are applied; and objects of one answer."""

    tokens: int = 4096
    frames: int = 32
    dense_frames: int = 5
    objects: int = 5


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of each part."""

    parameters: int
    cache: int
    frames: int
    tracker: int

    @property
    def total(self) -> int:
        return self.parameters + self.cache + self.frames + self.tracker


def parameter_count(config: SamaConfig) -> int:
    """Number of parameters; shared ones count once."""
    with torch.device("meta"):
        model = SamaForConditionalGeneration(config)
    return sum(parameter.numel() for parameter in model.parameters())


def cache_bytes(config: SamaConfig, tokens: int) -> int:
    """Keys and values of every layer."""
    text = config.text_config
    width = text.num_key_value_heads * (vars(text).get("head_dim") or text.hidden_size // text.num_attention_heads)
    return 2 * text.num_hidden_layers * width * tokens * BFLOAT16


def frame_bytes(config: SamaConfig, conversation: Conversation) -> int:
    """Tokens of the frames, as many as a converted processor makes of one at the most: of the context frames with
    their summaries, or of the dense frames of a model without context aggregator. Deep-stack features are those of the
    dense frames."""
    values = max_frame_tokens(config) * config.text_config.hidden_size
    levels = len(vars(config.vision_config).get("deepstack_visual_indexes") or ())
    total = conversation.dense_frames * levels * values
    if aggregator := config.aggregator_config:
        summaries = aggregator.num_spatial_queries * aggregator.spatial_qformer_config.hidden_size
        total += conversation.frames * (values + summaries)
    else:
        total += conversation.dense_frames * values
    return total * BFLOAT16


def tracker_bytes(config: SamaConfig, conversation: Conversation) -> int:
    """Features of one frame for both decoders, and the memories of all objects when the memory is full: the prompted
    frames, and those within reach of pointers of the current frame and of the first prompted one."""
    masks = config.mask_config
    width = masks.vision_config.fpn_hidden_size
    side = masks.image_size // masks.prompt_encoder_config.patch_size
    # The lowest level, and two finer ones with an eighth and a quarter of its width for each of the two decoders
    features = side**2 * (width + 2 * (16 * width // 8 + 4 * width // 4))
    resampled = [vars(masks).get(f"perceiver_resampler_num_latents{suffix}") for suffix in ("", "_2d")]
    tokens = side**2 if None in resampled else sum(resampled)
    reach = masks.max_object_pointers_in_encoder - 1
    frames = conversation.dense_frames + reach * (2 if config.preset == "consistent" else 1)
    return (features + conversation.objects * frames * (tokens * MEMORY_WIDTH + width)) * BFLOAT16


def inference_memory(config: SamaConfig, conversation: Conversation = Conversation()) -> InferenceMemory:  # noqa: B008
    """Memory of a conversation in bfloat16."""
    return InferenceMemory(
        parameters=parameter_count(config) * BFLOAT16,
        cache=cache_bytes(config, conversation.tokens),
        frames=frame_bytes(config, conversation),
        tracker=tracker_bytes(config, conversation),
    )


def table_row(name: str, memory: InferenceMemory) -> list[str]:
    """A row: the parameters in billions, the parts and the sum in GB."""
    parts = (memory.parameters, memory.cache, memory.frames, memory.tracker)
    return [
        name,
        f"{memory.parameters / BFLOAT16 / 1e9:.2f}",
        *(f"{part / GIGABYTE:.2f}" for part in parts),
        f"{memory.total / GIGABYTE:.1f}",
    ]


HEAD = ["model", "parameters, 10^9", "parameters", "key/value cache", "frames", "mask tracker", "together"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", help="config.json or folder of a checkpoint, instead of the models of docs/models.md"
    )
    for name, default in vars(Conversation()).items():
        parser.add_argument(f"--{name}", type=int, default=default, help="(default: %(default)s)")
    arguments = vars(parser.parse_args())
    if config := arguments.pop("config"):
        configs = {config: SamaConfig.from_pretrained(config)}
    else:
        configs = model_configs([name for name in TRACKERS if name != "EdgeTAM" or is_timm_available()])
    conversation = Conversation(**arguments)
    rows = [table_row(name, inference_memory(config, conversation)) for name, config in configs.items()]
    print(
        f"{conversation.tokens} tokens, {conversation.frames} context frames and {conversation.dense_frames} dense "
        f"ones, {conversation.objects} objects; GB in bfloat16\n"
    )
    print(markdown_table(HEAD, rows))


if __name__ == "__main__":
    main()
