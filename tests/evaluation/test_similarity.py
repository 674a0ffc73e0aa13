"""Similarity of phrases, on a BERT of two small layers."""

import numpy as np
import pytest
import torch
from processor_fixtures import qformer_tokenizer
from transformers import BertConfig, BertModel

from sama.evaluation.similarity import BertSimilarity


PHRASES = ["a red car", "", "the very long name of a dog that runs", "a red car", "Cat!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with random weights and a tokenizer of letters."""
    path = tmp_path_factory.mktemp("bert")
    tokenizer = qformer_tokenizer()
    tokenizer.save_pretrained(path)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(path)
    return path


def expected(similarity: BertSimilarity, text: str) -> np.ndarray:
    """One text alone, without padding: the mean of its states, as long as 1."""
    inputs = similarity.tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
    with torch.no_grad():
        mean = similarity.model(**inputs).last_hidden_state[0].mean(0).double().numpy()
    return mean / np.linalg.norm(mean)


def test_cosine_of_means(folder):
    similarity = BertSimilarity(folder)
    found = similarity(PHRASES, PHRASES[:2])
    vectors = np.stack([expected(similarity, text) for text in PHRASES])
    np.testing.assert_allclose(found, vectors @ vectors[:2].T, atol=1e-6)
    assert found.shape == (5, 2) and found[0, 0] == pytest.approx(1) and found[0, 1] == found[3, 1]


def test_padding_and_batches_change_nothing(folder):
    one, many = BertSimilarity(folder, batch_size=1), BertSimilarity(folder, batch_size=4)
    np.testing.assert_allclose(one(PHRASES, PHRASES), many(PHRASES, PHRASES), atol=1e-6)


def test_a_text_is_encoded_once(folder, monkeypatch):
    similarity, seen = BertSimilarity(folder), []
    encode = similarity._encode
    monkeypatch.setattr(similarity, "_encode", lambda texts: seen.extend(texts) or encode(texts))
    similarity(PHRASES, PHRASES)
    similarity(["a red car"], ["a red car"])
    assert sorted(seen) == sorted(set(PHRASES))


def test_long_texts_are_cut(folder):
    similarity = BertSimilarity(folder)
    assert similarity(["a " * 2000], ["a " * 1000])[0, 0] == pytest.approx(1)


def test_nothing_to_compare(folder):
    assert BertSimilarity(folder)([], ["a"]).shape == (0, 1)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(OSError, match="does not exist"):
        BertSimilarity(tmp_path / "absent")
    with pytest.raises(OSError, match="Cannot load a text|not a valid|does not appear|Unrecognized|Can't load"):
        BertSimilarity(tmp_path)


def test_identity(folder):
    assert BertSimilarity(folder).identity["model_type"] == "bert"
