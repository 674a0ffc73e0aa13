"""A local Transformers model as the judge."""

from pathlib import Path

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from .judges import JudgeError, JudgeSettings, Messages
from .provenance import checkpoint_hash


class LocalJudge:
    """
    A Transformers chat model from a local folder, with greedy decoding. Nothing is downloaded.

    Args:
        folder (`str` or `Path`): A causal language model whose tokenizer has a chat template.
        settings ([`JudgeSettings`], *optional*): Only `max_tokens` is used.
        device (`str`, *optional*): Default: the GPU, if available.

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
            raise JudgeError(f"Cannot load a language model from {folder} as the judge: {error}") from error
        if self.tokenizer.chat_template is None:
            raise JudgeError(f"The tokenizer in {folder} has no chat template, which a judge needs.")
        self.weights = checkpoint_hash(str(folder))
        self.has_system_role = self._takes([{"role": "system", "content": "."}, {"role": "user", "content": "."}])
        self.model = model.to(device).eval()

    @property
    def identity(self) -> dict:
        """Everything the answers depend on."""
        return {"weights": self.weights, "temperature": 0.0, "max_tokens": self.settings.max_tokens}

    def _takes(self, messages: Messages) -> bool:
        """Whether the chat template renders these messages; some refuse a system message."""
        try:
            self.tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError:
            return False
        return True

    @torch.no_grad()
    def __call__(self, messages: Messages) -> str:
        """The answer. What the system says stands before the question where the template has no system role."""
        if not self.has_system_role and messages[0]["role"] == "system":
            system, question, *rest = messages
            messages = [question | {"content": f"{system['content']}\n\n{question['content']}"}, *rest]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        output = self.model.generate(**inputs, max_new_tokens=self.settings.max_tokens, do_sample=False)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
