"""How alike phrases are, by BERT: the text side of recall in SAMA-Bench-G and image GCG (evaluation spec 1.6)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer


MAX_TOKENS = 512


class BertSimilarity:
    """
    Cosine of mean last hidden states, over all tokens with [CLS] and [SEP], as the published evaluation computes it
    with `bert-base-uncased`. Of another model the threshold of 0.5 means something else: name it in the results.

    Args:
        folder (`str` or `Path`): The model and its tokenizer; nothing is downloaded.
        device (`str`): The release computes on the CPU, in float32.
        batch_size (`int`): Texts of one forward pass.

    Raises:
        `OSError`: The folder holds no such model.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", batch_size: int = 32):
        self.folder, self.batch_size = Path(folder), batch_size
        if not self.folder.is_dir():
            raise OSError(f"No folder {folder} with a BERT for the similarity of phrases.")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        except ValueError as error:
            raise OSError(f"No text encoder in {folder}: {error}") from error
        self.model = model.to(device).eval()
        self._known: dict[str, np.ndarray] = {}

    @property
    def identity(self) -> dict:
        """What the numbers depend on."""
        config = self.model.config
        return {"folder": str(self.folder), "model_type": config.model_type, "hidden_size": config.hidden_size}

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Similarity of each pair, float array of shape `(len(first), len(second))`, from -1 to 1."""
        if not first or not second:
            return np.zeros((len(first), len(second)))
        left, right = self.embed(first), self.embed(second)
        return left @ right.T

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1, shape `(len(texts), width)`; each text is encoded once in the life of this object."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        # Of about equal length together, which saves padding
        new.sort(key=len)
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            self._known.update(zip(batch, self._encode(batch), strict=True))
        return np.stack([self._known[text] for text in texts])

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> np.ndarray:
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        states = self.model(**inputs).last_hidden_state  # (texts, tokens, width)
        weights = inputs["attention_mask"][..., None].to(states.dtype)
        means = (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(means.double(), dim=-1).cpu().numpy()
