"""Facts that differ between checkpoints of one family and stand in their files alone: checked and reported."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sama.conversion.files import CheckpointError, WeightFiles, read_json
from sama.conversion.pieces import EMBEDDINGS, HEAD, KeyMap
from sama.conversion.tokenizers import SAMA_TAGS
from sama.data.model_cards import license_of
from sama.templates_sama import CHAT_TEMPLATES


PHI3_END = "<|end|>"
COMPARED_ROWS = 4096  # at once, of two matrices with a row for each token


def file_facts(
    folder: Path,
    foreign: Mapping[str, Any],
    files: WeightFiles,
    keys: KeyMap,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
) -> list[str]:
    """One sentence for each fact about a checkpoint's files.

    Args:
        folder (`Path`): Of the checkpoint.
        foreign (`Mapping`): Its `config.json`.
        files ([`WeightFiles`]): Its tensors.
        keys ([`KeyMap`]): How they are used.
        tokenizer (`PreTrainedTokenizerBase`): Of its language model.
        template (`str`, *optional*): The chat template that it gets, or its name.

    Raises:
        CheckpointError: If two files contradict each other.
    """
    rows = files.tensors[keys.pieces[EMBEDDINGS].keys[0]].shape[0]
    return [
        stored_dtypes(foreign, files),
        f"licence: {license_of(folder) or 'not named in its folder'}",
        f"{rows} embedding rows for {len(tokenizer)} tokens; {special_tokens(folder, tokenizer)}",
        head_fact(files, keys),
        template_fact(foreign, tokenizer, template),
        rotary_fact(foreign),
    ]


def stored_dtypes(foreign: Mapping[str, Any], files: WeightFiles) -> str:
    """The dtypes of the tensors, and the one that `config.json` names."""
    counts = Counter(str(stored.dtype).removeprefix("torch.") for stored in files.tensors.values())
    parts = [foreign, foreign.get("text_config") or {}, foreign.get("llm_config") or {}]
    named = next((part[name] for part in parts for name in ("dtype", "torch_dtype") if part.get(name)), "no dtype")
    stored = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in counts.most_common())
    return f"stored as {stored}; config.json names {named}"


def special_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The ids of the grounding tokens, which `added_tokens.json` must confirm where there is one."""
    file, vocab = folder / "added_tokens.json", tokenizer.get_vocab()
    listed = read_json(file) if file.is_file() else {}
    for token, number in listed.items():
        if vocab.get(token) != number:
            raise CheckpointError(
                f"{file} gives {token} the id {number}, but the tokenizer gives it {vocab.get(token)}; they belong to "
                "different checkpoints."
            )
    ids = ", ".join(f"{tag} {vocab[tag]}" for tag in SAMA_TAGS if tag in vocab)
    return f"{ids} ({'as in' if listed else 'there is no'} added_tokens.json)"


def head_fact(files: WeightFiles, keys: KeyMap) -> str:
    """Whether the language model's head is stored, and differs from the embeddings."""
    if HEAD not in keys.pieces:
        return "no lm_head is stored: it is tied to the embeddings"
    head, embeddings = (files.read(keys.pieces[name].keys[0]) for name in (HEAD, EMBEDDINGS))
    if head.shape == embeddings.shape and all(
        torch.equal(*pair) for pair in zip(head.split(COMPARED_ROWS), embeddings.split(COMPARED_ROWS), strict=True)
    ):
        return "lm_head is stored and equals the embeddings; it is kept apart from them"
    return "lm_head is stored and differs from the embeddings"


def template_fact(foreign: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """The prompt style that `config.json` names and the one that is used. For other families than InternVL the chat
    template decides: whether it begins with a system turn of its own."""
    style, used = f"prompt style {foreign.get('template')!r}", template if template in CHAT_TEMPLATES else "kept"
    if "llm_config" in foreign:
        by_text = template == "phi3_chat" and PHI3_END not in tokenizer.get_vocab()
        end = f"; answers end at the text {PHI3_END}, which is no token" if by_text else ""
        return f"{style}, used as {used}{end}"
    if tokenizer.chat_template is None:
        return f"{style}; there is no chat template: {template or 'that of the family'} is used"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    turn = "with" if "system" in text else "without"
    return f"{style}; the chat template begins {turn} a system turn, used as {used}"


def rotary_fact(foreign: Mapping[str, Any]) -> str:
    """The scaling of the rotary embedding, which the converted model keeps."""
    text = foreign.get("llm_config") or foreign.get("text_config") or foreign
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    return f"rotary scaling kept: {scaling}" if scaling else "no rotary scaling"
