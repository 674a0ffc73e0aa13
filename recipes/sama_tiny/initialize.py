"""Create an untrained sama-tiny from scratch: configuration, tokenizers and initial weights, reproducible to the byte.

    python recipes/sama_tiny/initialize.py --to outputs/tiny/start

Two tokenizers are trained on English sentences about short videos and on dialogues of toy world, so that each word of
toy world becomes one token: a byte-level BPE for the language model, and a lower-case WordPiece, like BERT's, for the
temporal Q-Former.
"""

import argparse
import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from string import Formatter

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sama.configuration_sama import SamaConfig
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.prompts_sama import REGION_WORD
from sama.toy_world.wording import plain
from sama.toy_world.world import ToyWorld


CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
GROUNDING_TOKENS = ["[SEG]", "<p>", "</p>"]
VISUAL_TOKENS = ["<img>", "</img>", "<IMG_CONTEXT>", *GROUNDING_TOKENS, "<vp>", "</vp>"]
BPE_SIZE = 1024 - len(CHAT_TOKENS) - len(VISUAL_TOKENS)

BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
QFORMER_TOKENS = ["[DEC]", "<mask>", "<pos>", "[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
WORD_PIECE_SIZE = 600
QFORMER_MAX_LENGTH = 256
EMBEDDING_SCALE = 0.5
WIDTH = 192  # of the vision tower, the Q-Formers and the language model
IMAGE_SIZE, TOKENS_PER_FRAME, SAM_IMAGE_SIZE, REGION_MASK_SIZE = 64, 16, 192, 64
NUM_DENSE_FRAMES = 8  # all context frames of a toy clip: five are not enough to recognise a zigzag or a stop

# Only the assistant's text and its end-of-turn token are marked as generated: the model is trained on these
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

WORDS = {
    "colour": "red green blue yellow orange purple pink brown black white grey cyan golden silver dark bright".split(),
    "shape": "circle square triangle star ring cross diamond oval rectangle hexagon heart arrow moon ball box".split(),
    "shapes": "circles squares triangles stars rings crosses diamonds hearts arrows balls boxes".split(),
    "size": "small large tiny big tall short long round thin wide huge little".split(),
    "pattern": "striped dotted plain spotted checked shiny blurry furry wooden metal".split(),
    "person": "man woman boy girl child baby person player rider driver dancer cook runner skater worker".split(),
    "animal": "dog cat horse bird cow sheep elephant bear rabbit fish duck monkey tiger lion giraffe panda".split(),
    "animals": "dogs cats horses birds cows elephants bears rabbits ducks monkeys lions".split(),
    "thing": (
        "car bus truck bicycle motorcycle boat train plane ball frisbee kite cup bottle chair table book phone bag "
        "hat umbrella door window tree flower guitar camera skateboard surfboard basket rope stick"
    ).split(),
    "clothes": "shirt jacket dress hat shoes trousers coat scarf helmet gloves".split(),
    "place": "park street beach kitchen field forest river road room garden yard snow water sky grass stage".split(),
    "side": "left right top bottom middle upper lower front back background foreground corner".split(),
    "direction": "left right up down forward backward away upwards downwards around".split(),
    "move": (
        "moves slides rolls bounces spins turns drifts falls rises flies jumps runs walks swims stops waits shrinks "
        "grows appears disappears stands sits climbs crawls"
    ).split(),
    "moving": (
        "moving sliding rolling bouncing spinning turning drifting falling rising flying jumping running walking "
        "swimming standing sitting waiting eating drinking playing looking talking riding climbing"
    ).split(),
    "act": "holds throws catches pushes pulls chases follows touches passes crosses hides kicks feeds pets".split(),
    "manner": "slowly quickly together again twice once first then finally suddenly quietly steadily".split(),
    "number": "one two three four five six seven eight nine ten 0 1 2 3 4 5 6 7 8 9 12 16 24 32".split(),
    "order": "first second third fourth last next".split(),
    "near": "behind near beside above below under over inside between across past towards".split(),
}

SENTENCES = [
    "What is {near} the {colour} {shape}?",
    "Where does the {size} {shape} go after it {move} {direction}?",
    "Which {shape} {move} {manner} to the {direction}?",
    "How many {colour} {shapes} are there in the video?",
    "How many {animals} can you see {near} the {thing}?",
    "What colour is the {shape} that {move} {direction}?",
    "What is this {person} doing in the {place}?",
    "Please find the {animal} that is {moving} {near} the {thing}.",
    "Can you show me the {person} in the {colour} {clothes}?",
    "Please segment the {colour} {shape} in this video.",
    "Describe the marked object in one sentence.",
    "Describe what happens in the {place}, and mark each object that you name.",
    "What happens next to the {animal} at frame {number}?",
    "Who {act} the {thing}, and what do they do next?",
    "Is the {pattern} {shape} larger than the {colour} one?",
    "Does the {person} still hold the {thing} at the end?",
    "And what about the {order} one, the {size} {animal}?",
    "Sure, it is the {colour} {shape}.",
    "It is the {animal} on the {side}.",
    "Yes, the {colour} {shape} {move} {direction} {manner}.",
    "No, the {person} is not {moving} in the {place}.",
    "There are {number} {shapes} and {number} {animals} in the {place}.",
    "The {size} {colour} {shape} {move} {direction} and then {move} {near} the {pattern} {shape}.",
    "The {person} in the {colour} {clothes} {act} the {thing} while one {animal} is {moving}.",
    "The {person} {act} the {animal}, which is {moving} {near} the {thing}.",
    "The {animal} {move} {manner} across the {place} and {act} the {size} {thing}.",
    "This is a {pattern} {thing}; it stays in the {side} of the picture.",
    "The {order} {shape} starts at the {side}, {move} {direction}, and leaves the scene.",
    "The {colour} {shape} passes {near} the {colour} {shape}, so it cannot be seen for a while.",
    "At first the {person} is {moving}; after that, they are {moving} {near} the {thing}.",
    "Yes, I can see both of them: the {person} has the {thing}, but the {animal} was here before.",
    "The {person} with the {colour} {clothes} comes into view from the {side} and gives the {thing} to the {person}.",
    "It would not be the same {thing}, as there were only {number} of these at any time.",
    "They're {moving} because it's the {person}'s {thing}.",
    "The object is hidden behind the {thing} between frames {number} and {number}.",
]
ROUNDS = 120  # passes over the list; every word occurs and none dominates
TOY_RECORDS = 1500
TOY_WORD_ROUNDS = 80  # so often that each word becomes one token


@cache  # three passes over it are made, and it takes seconds
def make_sentences() -> tuple[str, ...]:
    """The training text of both tokenizers: sentences whose slots are filled with the words of each list in turn, then
    messages of toy world with their roles, as the chat template writes them, and the words of these messages."""
    lines = []
    words = {slot: cycle(choices) for slot, choices in WORDS.items()}
    slots = [[name for _, name, _, _ in Formatter().parse(sentence) if name] for sentence in SENTENCES]
    for _ in range(ROUNDS):
        for sentence, names in zip(SENTENCES, slots, strict=True):
            for name in names:
                sentence = sentence.replace("{" + name + "}", next(words[name]), 1)
            lines.append(sentence)
    world = ToyWorld({"split": "unseen"})  # all splits have the same vocabulary; no training uses this one
    messages = [message for index in range(TOY_RECORDS) for message in world.describe(index)["messages"]]
    texts = [plain(message["content"]) for message in messages]
    lines += [f"{message['role']}\n{text}" for message, text in zip(messages, texts, strict=True)]
    toy_words = {word for text in texts for word in re.findall("[A-Za-z]+", text.replace(REGION_WORD, ""))}
    lines += TOY_WORD_ROUNDS * [line for word in sorted(toy_words) for line in (word, f"a {word}")]
    return tuple(lines)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """
    Train the tokenizer of the language model: byte-level BPE, which decodes any text exactly, with `CHAT_TOKENS` and
    `VISUAL_TOKENS` after the base vocabulary, in this order.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(make_sentences(), trainer)
    backend.add_special_tokens(CHAT_TOKENS + VISUAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", *VISUAL_TOKENS],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=8192,
        padding_side="left",
    )


def build_qformer_tokenizer() -> BertTokenizer:
    """Train the tokenizer of the temporal Q-Former: WordPiece, with `BERT_TOKENS` first and `QFORMER_TOKENS` last."""
    letters = sorted(set("".join(make_sentences()).lower()) - {" "} | set("0123456789.,;:!?'\"()-"))
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers single letters in the order of a hash table, which decides ties between merges. With their
    # numbers fixed, the result is reproducible.
    trainer = trainers.WordPieceTrainer(
        vocab_size=WORD_PIECE_SIZE,
        special_tokens=BERT_TOKENS + letters + [f"##{letter}" for letter in letters],
        show_progress=False,
    )
    backend.train_from_iterator(make_sentences(), trainer)
    return BertTokenizer(
        vocab=backend.get_vocab(),
        do_lower_case=True,
        bos_token="[DEC]",
        extra_special_tokens=QFORMER_TOKENS[1:],
        model_max_length=QFORMER_MAX_LENGTH,
        truncation_side="left",
    )


def build_config(tokenizer: PreTrainedTokenizerBase, qformer_tokenizer: PreTrainedTokenizerBase) -> SamaConfig:
    """The architecture of the released model at small sizes: 64 px frames of 16 tokens, SAM 2 at 192 px."""
    text = {
        "model_type": "qwen2",
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 10,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    qformer = build_qformer_config(len(qformer_tokenizer))
    return SamaConfig(
        text_config=text,
        vision_config=build_vision_config(),
        spatial_qformer_config=qformer,
        temporal_qformer_config=qformer | {"cross_attention_frequency": 1, "use_qformer_text_input": True},
        sam_config=build_sam_config(),
        tie_word_embeddings=False,
        image_seq_length=TOKENS_PER_FRAME,
        num_spatial_queries=8,
        num_temporal_queries=8,
        temporal_window=TOKENS_PER_FRAME * NUM_DENSE_FRAMES,
        region_mask_size=REGION_MASK_SIZE,
        region_mlp_size=512,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        seg_token_id=tokenizer.convert_tokens_to_ids("[SEG]"),
        qformer_mask_token_id=qformer_tokenizer.convert_tokens_to_ids("<mask>"),
        qformer_position_token_id=qformer_tokenizer.convert_tokens_to_ids("<pos>"),
        occlusion_gate=False,  # the object scores are untrained
        trained=False,
    )


def build_vision_config() -> dict:
    """The vision tower: five layers, 64 patches of 8 px."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": [IMAGE_SIZE, IMAGE_SIZE],
        "patch_size": [8, 8],
        "attention_bias": True,
        "layer_scale_init_value": 1.0,  # InternVL's 0.1 slows the training of a tower with few layers
    }


def build_qformer_config(vocab_size: int) -> dict:
    """What both Q-Formers share."""
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "encoder_hidden_size": WIDTH,
        "vocab_size": vocab_size,
        "max_position_embeddings": QFORMER_MAX_LENGTH,
        # Toy world never shows a clip twice, so there is no overfitting for dropout to prevent
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def build_sam_config() -> dict:
    """SAM 2 with a Hiera of seven blocks. 128 is the smallest feature width that its memory accepts. Frames are three
    times as large as toy world's: at twice the size, masks of thin shapes are worse (docs/log.md)."""
    width, backbone_width = 128, 32
    stages = [backbone_width * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": backbone_width,
        "num_attention_heads": 1,
        "embed_dim_per_stage": stages,
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "blocks_per_stage": [1, 2, 3, 1],
        "global_attention_blocks": [4, 5],
        "window_size_per_stage": [8, 4, 8, 4],
        "image_size": [SAM_IMAGE_SIZE, SAM_IMAGE_SIZE],
    }
    return {
        "image_size": SAM_IMAGE_SIZE,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": stages[::-1],
            "backbone_feature_sizes": [[SAM_IMAGE_SIZE // stride] * 2 for stride in (4, 8, 16)],
            "fpn_hidden_size": width,
        },
        "prompt_encoder_config": {"image_size": SAM_IMAGE_SIZE, "hidden_size": width},
        "mask_decoder_config": {"hidden_size": width, "mlp_dim": 512, "iou_head_hidden_dim": width},
        "memory_attention_hidden_size": width,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 512,
        "memory_attention_rope_feat_sizes": [SAM_IMAGE_SIZE // 16] * 2,
        "memory_encoder_hidden_size": width,
        "mask_downsampler_embed_dim": width,
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 256,
    }


def build_model(config: SamaConfig, seed: int) -> SamaForConditionalGeneration:
    """
    Initial weights in bfloat16. They differ from those of transformers in four ways, all found by trial (docs/log.md):

    - Linear layers and convolutions are initialised as torch does it. With small normal weights the decoders of SAM 2
      segment everything, whatever their prompt is.
    - Embeddings have a standard deviation of 0.5, that of what the layers make.
    - Positions of patches are Fourier features. From zeros, the vision tower learns for long where its patches are.
    - Parameters that SAM 2 initialises with zero are random, so that its memory has an effect.
    """
    torch.manual_seed(seed)
    model = SamaForConditionalGeneration(config)
    embeddings = model.model.backbone.vision_tower.embeddings
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.reset_parameters()
            if isinstance(module, nn.Embedding):
                module.weight.normal_(std=EMBEDDING_SCALE)
        for name, parameter in model.named_parameters():
            if not name.endswith("bias") and not parameter.any():
                parameter.normal_(std=0.02)
        embeddings.position_embeddings[0, 1:] = EMBEDDING_SCALE * patch_positions(config)
    end, pad = config.text_config.eos_token_id, config.text_config.pad_token_id
    model.generation_config.update(eos_token_id=end, pad_token_id=pad, bos_token_id=None)
    return model.to(torch.bfloat16)


def patch_positions(config: SamaConfig) -> torch.Tensor:
    """Sines and cosines of the centre of each patch, of 0.5 to 4 periods in a frame: (num_patches, width)."""
    vision = config.backbone_config.vision_config
    grid = vision.image_size[0] // vision.patch_size[0]
    centres = (torch.arange(grid) + 0.5) / grid
    frequencies = 2 * math.pi * torch.logspace(-1, 2, vision.hidden_size // 4, base=2)
    angles = [axis.reshape(-1, 1) * frequencies for axis in torch.meshgrid(centres, centres, indexing="xy")]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of this stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="output folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse_arguments()
    tokenizer, qformer_tokenizer = build_tokenizer(), build_qformer_tokenizer()
    config = build_config(tokenizer, qformer_tokenizer)
    config.text_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config.text_config.pad_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    processor = SamaProcessor(
        config=config,
        tokenizer=tokenizer,
        qformer_tokenizer=qformer_tokenizer,
        image_size=IMAGE_SIZE,
        max_tiles=1,  # frames and stills in training have a single tile; others it mistakes more often
        num_dense_frames=NUM_DENSE_FRAMES,
    )
    model = build_model(config, arguments.seed)
    model.save_pretrained(arguments.to)
    processor.save_pretrained(arguments.to)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{arguments.to}: {parameters / 1e6:.1f} M parameters, {len(tokenizer)} and {len(qformer_tokenizer)} tokens")


if __name__ == "__main__":
    main()
