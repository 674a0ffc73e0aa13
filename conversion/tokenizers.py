"""The two tokenizers of a checkpoint, loaded without running its code and checked against the embeddings."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sama.conversion.backbones import BackboneTable
from sama.conversion.configs import TokenIds
from sama.conversion.files import CheckpointError, explain_damage, read_json
from sama.templates_sama import CHAT_TEMPLATES


SAMA_TAGS = ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"]  # in the release's order
QFORMER_BEGINNING = "[DEC]"
QFORMER_TAGS = ["<mask>", "<pos>", "[SEG]", "<p>", "</p>", "<vp>", "</vp>"]
END_OF_TURN, END_OF_TEXT = "<|im_end|>", "<|endoftext|>"
ONE_END = ("internlm2_chat", "phi3_chat")  # chat templates whose answers `<|endoftext|>` does not end
# The release resizes the embeddings to the tokenizer; other trainers pad them to a multiple of 64 or more
ROW_MULTIPLE, MAX_PADDING = 64, 512
MAX_BEYOND = 64  # tokens without a row: InternVL3-8B-hf has one, 151,675 tokens and 151,674 rows


def load_tokenizer(folders: Sequence[Path]) -> PreTrainedTokenizerBase:
    """The language model's tokenizer, from the first folder that has one."""
    for folder in folders:
        if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            with explain_damage(folder, "has a tokenizer that cannot be read"):
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            old = folder / "chat_template.json"  # where processors stored it before transformers 4.52
            if tokenizer.chat_template is None and old.is_file():
                tokenizer.chat_template = read_json(old, needed=("chat_template",))["chat_template"]
            return tokenizer
        if (folder / "tokenizer.model").is_file():
            with explain_damage(folder, "has a tokenizer that cannot be read"):
                return load_sentencepiece(folder)
    places = " or ".join(str(folder) for folder in folders)
    raise CheckpointError(
        f"No tokenizer (tokenizer.json, vocab.json or tokenizer.model) in {places}; give --tokenizer."
    )


def load_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
    """InternLM2's tokenizer, from its SentencePiece file. The Python code next to it is not run."""
    for package, module in (("sentencepiece", "sentencepiece"), ("protobuf", "google.protobuf")):
        if importlib.util.find_spec(module.split(".")[0]) is None:
            raise CheckpointError(
                f"Reading {folder / 'tokenizer.model'} requires the package {package}: pip install {package}."
            )
    from transformers.convert_slow_tokenizer import SentencePieceExtractor  # slow import, only needed here

    settings = read_json(folder / "tokenizer_config.json")
    added = {int(number): token for number, token in settings.get("added_tokens_decoder", {}).items()}
    extractor = SentencePieceExtractor(str(folder / "tokenizer.model"))
    found = extractor.extract(models.BPE)
    # Chat tokens replace pieces that are reserved for them
    vocab = {
        added[number]["content"] if number in added else piece: number for piece, number in found["vocab"].items()
    }
    merges = [merge for merge in found["merges"] if merge[0] in vocab and merge[1] in vocab]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    prefixed = extractor.proto.normalizer_spec.add_dummy_prefix
    blank = "\u2581"  # SentencePiece's space character
    backend.normalizer = normalizers.Sequence(
        ([normalizers.Prepend(blank)] if prefixed else []) + [normalizers.Replace(" ", blank)]
    )
    steps = [decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    for number, token in sorted(added.items()):
        backend.add_tokens([AddedToken(token["content"], normalized=False, special=token.get("special", True))])
        if backend.token_to_id(token["content"]) != number:
            raise CheckpointError(f"{folder}: {token['content']} should be token {number}; is a token file missing?")
    names = {name: settings.get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    named = {name: token["content"] if isinstance(token, dict) else token for name, token in names.items() if token}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)


def load_qformer_tokenizer(folders: Sequence[Path]) -> BertTokenizer:
    """The question tokenizer: BERT's, with the eight tokens that SAMA adds, in its order."""
    for folder in folders:
        if (folder / "vocab.txt").is_file() or (folder / "tokenizer.json").is_file():
            with explain_damage(folder, "has a question tokenizer that cannot be read"):
                tokenizer = BertTokenizer.from_pretrained(folder)
            break
    else:
        places = " or ".join(str(folder) for folder in folders)
        raise CheckpointError(
            f"No question tokenizer (vocab.txt of bert-base-uncased) in {places}; give --qformer_tokenizer."
        )
    tokenizer.truncation_side = "left"
    if QFORMER_BEGINNING not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"bos_token": QFORMER_BEGINNING})
    if missing := [tag for tag in QFORMER_TAGS if tag not in tokenizer.get_vocab()]:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    return tokenizer


def chat_template(
    tokenizer: PreTrainedTokenizerBase, foreign: Mapping[str, Any], folder: Path, alone: bool = False
) -> str | None:
    """
    The chat template of a checkpoint or its name in `CHAT_TEMPLATES`: for InternVL the style that `config.json` names.
    For other families the style that writes what the tokenizer's own template writes, since a style marks the answers;
    that template where no style does; None without any.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the language model.
        foreign (`Mapping`): The `config.json`.
        folder (`Path`): Where it lies.
        alone (`bool`): Whether the backbone is not part of another model: InternVL's own styles are replaced then.

    Raises:
        CheckpointError: If the style is unknown, or the template cannot be applied.
    """
    if "llm_config" in foreign:
        style = foreign.get("template")
        if style in CHAT_TEMPLATES:
            return style
        if style is not None and not alone:
            raise CheckpointError(
                f"{folder / 'config.json'}: the prompt style (`template`) {style!r} is unknown, expected one of "
                f"{', '.join(CHAT_TEMPLATES)}."
            )
        return "internlm2_chat" if foreign["llm_config"].get("model_type") == "internlm2" else "qwen_chat"
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": role, "content": role[::-1]} for role in ("user", "assistant", "user")]

    def render(template: str | None) -> str:
        return tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )

    with explain_damage(folder, "has a chat template that cannot be applied"):
        own = render(None)
        found = (name for name, style in CHAT_TEMPLATES.items() if render(style) == own)
        return next(found, tokenizer.get_chat_template())


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, table: BackboneTable, may_add: bool) -> None:
    """Adds SAMA's tags if `may_add`, and otherwise requires them.

    Raises:
        CheckpointError: If tags are missing, of SAMA or of the backbone.
    """
    vocab = tokenizer.get_vocab()
    missing = [tag for tag in (*table.tags, *table.token_names.values(), *SAMA_TAGS) if tag not in vocab]
    if missing and (not may_add or not set(missing) <= set(SAMA_TAGS)):
        raise CheckpointError(f"The tokenizer has no {', '.join(missing)}; it belongs to another checkpoint.")
    if missing:
        tokenizer.add_tokens([AddedToken(tag, normalized=False, special=True) for tag in missing], special_tokens=True)


def check_vocabulary(num_tokens: int, num_rows: int, what: str, added: int = 0, alone: bool = False) -> None:
    """
    Checks that the tokenizer belongs to the embeddings.

    Args:
        num_tokens (`int`): Tokens of the tokenizer as it was loaded.
        num_rows (`int`): Rows of the embeddings of the checkpoint.
        what (`str`): Which tokenizer, for the message.
        added (`int`): Tokens that the conversion adds, with rows of their own where the padding does not suffice.
        alone (`bool`): Whether it is that of a lone backbone, which may have a few tokens that no row was made for.

    Raises:
        CheckpointError: If the tokenizer has more tokens than the embeddings have rows, or many fewer.
    """
    padding = max(num_rows - num_tokens - added, 0)
    padded = padding < MAX_PADDING and num_rows % ROW_MULTIPLE == 0
    if num_tokens > num_rows + (MAX_BEYOND if alone else 0) or (padding and not padded):
        raise CheckpointError(
            f"The {what} tokenizer has {num_tokens} tokens but the checkpoint has embeddings for {num_rows}; they "
            "belong to different checkpoints."
        )


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, end_of_turn: int, template: str | None) -> int | list[int]:
    """The tokens that end an answer: for Qwen's templates `<|endoftext|>` as well.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the language model.
        end_of_turn (`int`): The id from [`token_ids`].
        template (`str`, *optional*): The chat template or its name; that of the backbone's family if None.
    """
    end_of_text = tokenizer.get_vocab().get(END_OF_TEXT)
    if template in ONE_END or end_of_text in (None, end_of_turn):
        return end_of_turn
    return [end_of_turn, end_of_text]


def token_ids(
    tokenizer: PreTrainedTokenizerBase, qformer_tokenizer: PreTrainedTokenizerBase | None, table: BackboneTable
) -> TokenIds:
    """Token ids in the configuration. An answer ends at `<|im_end|>`, not at the tokenizer's end-of-sequence token."""
    vocab = tokenizer.get_vocab()
    qformer_vocab = {} if qformer_tokenizer is None else qformer_tokenizer.get_vocab()
    return TokenIds(
        visual={name: vocab[token] for name, token in table.token_names.items()},
        seg=vocab["[SEG]"],
        end_of_turn=vocab.get(END_OF_TURN, tokenizer.eos_token_id),
        beginning=tokenizer.bos_token_id,
        padding=tokenizer.pad_token_id,
        qformer_mask=qformer_vocab.get("<mask>"),
        qformer_position=qformer_vocab.get("<pos>"),
    )
