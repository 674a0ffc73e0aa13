"""A Transformers model in a folder as the judge."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .judges import JudgeError, JudgeSettings, Messages


class LocalJudge:
    """
    A Transformers chat model from a folder; nothing is downloaded, and the likeliest answer is taken.

    Args:
        folder (`str` or `Path`): A causal language model whose tokenizer has a chat template.
        settings ([`JudgeSettings`], *optional*): Of them only `max_tokens` counts.
        device (`str`, *optional*): Default: a GPU if there is one.

    Raises:
        [`JudgeError`]: The folder holds no such model.
    """

    def __init__(self, folder: str | Path, settings: JudgeSettings | None = None, device: str | None = None):
        self.folder, self.settings = Path(folder), settings or JudgeSettings()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
        except (OSError, ValueError) as error:
            raise JudgeError(f"No language model in {folder} to judge with: {error}") from error
        if self.tokenizer.chat_template is None:
            raise JudgeError(
                f"The tokenizer in {folder} has no chat template, so it is not known how to ask the model."
            )
        self.model = model.to(device).eval()

    @property
    def identity(self) -> dict:
        """What the answers depend on."""
        return {"folder": str(self.folder), "temperature": 0.0, "max_tokens": self.settings.max_tokens}

    @torch.no_grad()
    def __call__(self, messages: Messages) -> str:
        """The answer."""
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=self.settings.max_tokens, do_sample=False)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
