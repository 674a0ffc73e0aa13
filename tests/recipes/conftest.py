"""What tests of several stages share."""

import shutil

import pytest
from checkpoint import CHECKPOINT

from sama.processing_sama import SamaProcessor
from sama.recipes.sama_tiny.initialize import build_qformer_tokenizer, build_tokenizer


@pytest.fixture(scope="session")
def recipe_checkpoint(tmp_path_factory):
    """The weights that ship, with the tokenizers that the recipe makes: those of a checkpoint may be older."""
    folder = tmp_path_factory.mktemp("recipe") / "checkpoint"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("__pycache__"))
    processor = SamaProcessor.from_pretrained(CHECKPOINT, trust_remote_code=True)
    processor.tokenizer, processor.qformer_tokenizer = build_tokenizer(), build_qformer_tokenizer()
    processor.save_pretrained(folder)
    return folder
