"""InternLM2's tokenizer, loaded without its code, gives the same tokens as SentencePiece."""

import json

import pytest
from foreign_checkpoints import CHAT_TOKENS, SAMA_TOKENS

from sama.conversion.files import CheckpointError
from sama.conversion.tokenizers import load_tokenizer
from sama.prompts_sama import decode_answer


sentencepiece = pytest.importorskip("sentencepiece", reason="needed for the 8B's tokenizer: pip install sentencepiece")
pytest.importorskip("google.protobuf", reason="needed for the 8B's tokenizer: pip install protobuf")

TEXTS = ["The man pets a dog.", "What is  the dog doing?", " leading", "two  blanks, 你好 and 🙂\n a newline", ""]
FREE = ["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"]  # pieces that InternLM2 replaces with its chat tokens


@pytest.fixture(params=[True, False], ids=["with prefix", "without prefix"])
def folder(request, tmp_path):
    """A small tokenizer in InternLM2's format: chat tokens inside the vocabulary, visual tokens after it."""
    (tmp_path / "text.txt").write_text("The man pets a dog in the park.\nWhat is the dog doing now?\n" * 100)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=340, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=request.param, user_defined_symbols=FREE, hard_vocab_limit=False,
        remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2} | dict(zip(CHAT_TOKENS, map(pieces.piece_to_id, FREE), strict=False))
    behind = CHAT_TOKENS[3:] + SAMA_TOKENS
    ids |= {token: pieces.get_piece_size() + number for number, token in enumerate(behind)}
    config = {
        "tokenizer_class": "InternLM2Tokenizer", "auto_map": {"AutoTokenizer": ["x.InternLM2Tokenizer", None]},
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
        "added_tokens_decoder": {number: {"content": token, "special": True} for token, number in ids.items()},
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_same_tokens_as_sentencepiece(folder):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer([folder])
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == pieces.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == pieces.piece_to_id(FREE[1])
    assert len(tokenizer) == pieces.get_piece_size() + 8
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_blanks_stay_behind_the_tags_of_answers(folder):
    """A tokenizer that drops the first blank of what it decodes gets the tag in front of the words."""
    tokenizer = load_tokenizer([folder])
    ids = tokenizer("<p> The man </p> [SEG] pets a dog.", add_special_tokens=False)["input_ids"]
    assert decode_answer(ids, tokenizer) == "<p> The man </p> [SEG] pets a dog."


def test_missing_token_is_an_error(folder):
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["added_tokens_decoder"].pop(max(config["added_tokens_decoder"], key=int))
    last = max(config["added_tokens_decoder"], key=int)
    config["added_tokens_decoder"][str(int(last) + 7)] = config["added_tokens_decoder"].pop(last)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="<vp> should be token .*; is a token file missing"):
        load_tokenizer([folder])
