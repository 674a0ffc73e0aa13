"""Phrase similarity from BERT, for recall in SAMA-Bench-G and image GCG (evaluation spec 1.6)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from .provenance import checkpoint_hash


MAX_TOKENS = 512


class BertSimilarity:
    """
    Cosine similarity of mean-pooled last hidden states over all tokens, including [CLS] and [SEP]. The published
    evaluation uses `bert-base-uncased`; the threshold of 0.5 does not transfer to other models.

    Args:
        folder (`str` or `Path`): Folder of the model and its tokenizer; nothing is downloaded.
        device (`str`): The published evaluation uses the CPU and float32.
        batch_size (`int`): Number of texts per forward pass.

    Raises:
        `OSError`: The folder does not hold a text encoder.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", batch_size: int = 32):
        self.folder, self.batch_size = Path(folder), batch_size
        if not self.folder.is_dir():
            raise OSError(f"The folder {folder} for --similarity_model does not exist.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except ValueError as error:
            raise OSError(f"Cannot load a text encoder from {folder}: {error}") from error
        self.model, self.weights = model.to(device).eval(), checkpoint_hash(str(folder))
        self._known: dict[str, np.ndarray] = {}

    @property
    def identity(self) -> dict:
        """Everything the similarities depend on."""
        config = self.model.config
        return {"weights": self.weights, "model_type": config.model_type, "hidden_size": config.hidden_size}

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Similarity of each pair, float array of shape `(len(first), len(second))`, from -1 to 1."""
        if not first or not second:
            return np.zeros((len(first), len(second)))
        left, right = self.embed(first), self.embed(second)
        return left @ right.T

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors of shape `(len(texts), hidden_size)`. Vectors are cached: each text is encoded once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        # Texts of similar length share a batch, which saves padding
        new.sort(key=len)
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self._known.update(zip(batch, self._encode(batch), strict=True))
        return np.stack([self._known[text] for text in texts])

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> np.ndarray:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        states = self.model(**inputs).last_hidden_state  # (texts, tokens, hidden_size)
        weights = inputs["attention_mask"][..., None].to(states.dtype)
        means = (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(means.double(), dim=-1).cpu().numpy()
