"""The untrained checkpoint: reproducible bytes, tokenizers that decode any text exactly, tags as single tokens."""

import json
import re
import sys
from pathlib import Path

import pytest
from processes import finish, run_script, start
from safetensors import safe_open
from transformers import AutoTokenizer

from sama.prompts_sama import REGION_WORD
from sama.recipes.sama_tiny import initialize
from sama.recipes.sama_tiny.initialize import (
    BERT_TOKENS,
    CHAT_TOKENS,
    QFORMER_TOKENS,
    VISUAL_TOKENS,
    build_qformer_tokenizer,
    build_tokenizer,
)
from sama.recipes.sama_tiny.practice import practice_dialogues
from sama.toy_world.world import ToyWorld


SCRIPT = Path(__file__).parents[2] / "recipes" / "sama_tiny" / "initialize.py"
TEXTS = [
    "The man throws a frisbee to the dog.",
    "<p> The man </p> [SEG] pets <p> a dog </p> [SEG].",
    "<p>The man</p>[SEG]  two blanks , and a dot .\n\n\tand 'it's' n't 12345",
    "<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhat is <vp><IMG_CONTEXT><IMG_CONTEXT></vp> doing?",
    "Grüße, 你好, \u00a0\u200b🙂 \x00",
    " leading and trailing ",
    "",
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def qformer_tokenizer():
    return build_qformer_tokenizer()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens_follow_the_base_vocabulary_in_order(tokenizer):
    tokens = CHAT_TOKENS + VISUAL_TOKENS
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(len(tokenizer) - len(tokens), len(tokenizer)))
    assert len(tokenizer) == 1024
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_qformer_tokens_frame_the_word_pieces(qformer_tokenizer):
    assert qformer_tokenizer.convert_tokens_to_ids(BERT_TOKENS) == list(range(5))
    assert qformer_tokenizer.convert_tokens_to_ids(QFORMER_TOKENS) == list(range(600, 608))
    assert len(qformer_tokenizer) == 608


def test_qformer_tokenizer_reads_a_question_with_a_region(qformer_tokenizer):
    tokens = qformer_tokenizer.tokenize("What is <vp><mask><pos></vp> doing?")
    assert tokens == ["what", "is", "<vp>", "<mask>", "<pos>", "</vp>", "doing", "?"]
    ids = qformer_tokenizer("The CAT")["input_ids"]
    assert qformer_tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "the", "cat", "[SEP]"]


def test_qformer_tokenizer_cuts_a_long_question_on_the_left(qformer_tokenizer):
    ids = qformer_tokenizer("dog " * 300 + "cat", truncation=True)["input_ids"]
    assert len(ids) == 256
    assert qformer_tokenizer.convert_ids_to_tokens(ids[-2:]) == ["cat", "[SEP]"]


def test_chat_template_marks_what_the_assistant_writes(tokenizer):
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "It is <p> a dog </p> [SEG]."},
        {"role": "user", "content": "Sure?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nIt is <p> a dog </p> [SEG].<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    batch = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, mark in zip(batch["input_ids"], batch["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "It is <p> a dog </p> [SEG].<|im_end|>"


def test_saved_tokenizers_load_and_give_equal_ids(tokenizer, qformer_tokenizer, tmp_path):
    for built, folder in ((tokenizer, tmp_path / "tokenizer"), (qformer_tokenizer, tmp_path / "qformer")):
        built.save_pretrained(folder)
        loaded = AutoTokenizer.from_pretrained(folder)
        assert [loaded(text)["input_ids"] for text in TEXTS] == [built(text)["input_ids"] for text in TEXTS]
        assert loaded.chat_template == built.chat_template
        assert (loaded.padding_side, loaded.truncation_side) == (built.padding_side, built.truncation_side)
        assert loaded.model_max_length == built.model_max_length


def contents(path: Path):
    """The content of a file, independent of the version of transformers that wrote it: those below 5.20 leave the
    `model_type` of some parts of SAM 2 empty."""
    if path.suffix != ".json":
        return path.read_bytes()
    depends = {"transformers_version", "model_type"}
    return json.loads(
        path.read_text(), object_hook=lambda entry: {key: entry[key] for key in entry if key not in depends}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the script writes in a process that nothing else ran in: transformers notes in a configuration which
    classes a process has registered."""
    folder = tmp_path_factory.mktemp("made")
    log = folder.with_suffix(".txt")
    finish(start(log, run_script, SCRIPT, "--to", folder), log)
    return folder


def test_the_shipped_checkpoint_is_a_trained_one_of_what_the_script_makes(made):
    """The same files except for the card, the same tensors by name and shape, at most 40 MB."""
    shipped = SCRIPT.parents[2] / "checkpoints" / "sama-tiny"
    files = {path.relative_to(shipped) for path in shipped.rglob("*.*") if "__pycache__" not in path.parts}
    assert files == {path.relative_to(made) for path in made.rglob("*.*")} | {Path("README.md")}
    common = files - {Path("README.md")}
    changed = {path.name for path in common if contents(shipped / path) != contents(made / path)}
    # Merges are learned from clips, a few of which are others since the run (version 5 of the benchmark)
    assert changed == {"config.json", "model.safetensors", "tokenizer.json"}
    vocabularies = [contents(folder / "tokenizer.json")["model"]["vocab"] for folder in (shipped, made)]
    assert vocabularies[0].keys() == vocabularies[1].keys()
    configs = [contents(folder / "config.json") for folder in (shipped, made)]
    changed = {key for key in configs[0] if configs[0][key] != configs[1].get(key)}
    assert changed == {"trained", "occlusion_gate"}
    weights = [safe_open(folder / "model.safetensors", "pt") for folder in (shipped, made)]
    shapes = [{name: tuple(one.get_slice(name).get_shape()) for name in one.keys()} for one in weights]
    assert shapes[0] == shapes[1]
    assert {weights[0].get_slice(name).get_dtype() for name in shapes[0]} == {"BF16"}
    assert sum((shipped / path).stat().st_size for path in files) <= 40e6


def test_the_script_writes_the_same_bytes_in_every_process(made, tokenizer, qformer_tokenizer, tmp_path, monkeypatch):
    """Here strings have other hashes than in the process that made the first files."""
    monkeypatch.setattr(initialize, "build_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(initialize, "build_qformer_tokenizer", lambda: qformer_tokenizer)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--to", str(tmp_path)])
    initialize.main()
    files = sorted(path.relative_to(made) for path in made.rglob("*.*"))
    assert Path("model.safetensors") in files and Path("tokenizer.json") in files
    for path in files:
        read = contents if path.name == "config.json" else Path.read_bytes
        assert read(made / path) == read(tmp_path / path), path


def test_each_word_of_toy_world_is_one_token(tokenizer, qformer_tokenizer):
    """In records that the tokenizers were not trained on, at the beginning of a text and in it."""
    worlds = practice_dialogues(1), ToyWorld({"split": "unseen"}, seed=2)
    turns = [turn for world in worlds for index in range(400) for turn in world.generate(index, frames=False)[2]]
    texts = [text.replace(REGION_WORD, "") for turn in turns for text in (turn.question_text, turn.answer_text)]
    words = {word for text in texts for word in re.findall("[A-Za-z]+", text)}
    assert len(words) > 150
    assert not [word for word in words if len(tokenizer(f" {word}")["input_ids"]) > 1]
    assert not [word for word in words if word.istitle() and len(tokenizer(word)["input_ids"]) > 1]
    assert not [word for word in words if len(qformer_tokenizer.tokenize(word)) > 1]
