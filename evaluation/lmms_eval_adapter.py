"""
SAMA as a model of `lmms-eval`, for MME, MMBench, SEED, AI2D, MMStar, ScienceQA, Video-MME and others.

    pip install lmms-eval 'filelock<3.21' # in a separate environment: it needs torchvision, and fails with filelock 4
    pip install -e .                      # this repository, in the same environment
    lmms-eval --model sama --model_args pretrained=checkpoints/sama-tiny --tasks mme --batch_size 1 \
        --output_path outputs/lmms_eval --log_samples

Several processes: `accelerate launch --num_processes 8 -m lmms_eval --model sama ...`. `lmms-eval` finds this file
through the entry point `lmms_eval.models` in pyproject.toml. Written for lmms-eval 0.7.3.

A request is one question with one answer, decoded greedily. One image is shown as an image, a path as a video, and
several images as the frames of a video, as in Sa2VA. The text of the answer is returned without tags; no masks are
computed.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image
from tqdm import tqdm

from sama.configuration_sama import check_preset
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor
from sama.prompts_sama import without_region_word


MAX_NEW_TOKENS = 1024
IMAGE_MARK = "<image>"  # placeholder of tasks; SAMA shows the image before the question


def manifest() -> ModelManifest:
    """The entry point of `lmms-eval`: name and class of the model."""
    return ModelManifest(model_id="sama", simple_class_path=f"{__name__}.SamaLmms")


class SamaLmms(lmms):
    """
    A SAMA checkpoint as an `lmms-eval` model.

    Args:
        pretrained (`str`): Folder or Hub name of the checkpoint.
        device (`str`, *optional*): Default: the GPU of this process, or the CPU.
        dtype (`str`): Of the weights; "auto" is the dtype of the checkpoint.
        preset (`str`, *optional*): "published" or "consistent"; default: the preset of the checkpoint.
        max_new_tokens (`int`): Maximum length of an answer, if the task does not set it.
        batch_size (`int` or `str`): Must be 1.
        options: `max_batch_size`, which `lmms-eval` passes to every model, is ignored. `policy` is the name of
            `preset` in earlier versions.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "auto",
        preset: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int | str = 1,
        **options,
    ):
        super().__init__()
        if int(batch_size) != 1:
            raise ValueError(f"SAMA answers one request at a time, got batch_size={batch_size}: use --batch_size 1.")
        preset = options.pop("policy", preset)
        unknown = sorted(set(options) - {"max_batch_size"})
        if unknown:
            raise ValueError(f"Unknown model_args {', '.join(unknown)}.")
        # The base class assumes rank 0 of 1; lmms-eval distributes requests by the same variables
        self._rank, self._world_size = (int(os.environ.get(*of)) for of in (("RANK", "0"), ("WORLD_SIZE", "1")))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(device or (f"cuda:{local}" if torch.cuda.is_available() else "cpu"))
        self.max_new_tokens, self.batch_size = int(max_new_tokens), 1
        chosen = {} if preset is None else {"preset": check_preset(preset)}
        self.model = SamaForConditionalGeneration.from_pretrained(pretrained, dtype=dtype, **chosen)
        self.model = self.model.to(self.device).eval()
        local = Path(pretrained).is_dir()  # code of the Hub is not run
        self.processor = SamaProcessor.from_pretrained(pretrained, trust_remote_code=local, **chosen)
        self._warned = False

    def generate_until(self, requests: list) -> list[str]:
        """
        One answer per request.

        Args:
            requests (`list[Instance]`): The `args` of a request are `(context, generation arguments, doc_to_visual,
                doc_id, task, split)`. Images and videos are loaded one request at a time.
        """
        answers = []
        for request in tqdm(requests, disable=self.rank != 0, desc="Answers"):
            context, arguments, doc_to_visual, doc_id, task, split = request.args
            visuals = doc_to_visual(self.task_dict[task][split][doc_id]) if doc_to_visual is not None else []
            answer = self._answer(context, visuals or [], dict(arguments))
            self.cache_hook.add_partial("generate_until", (context, arguments), answer)
            answers.append(answer)
        return answers

    def loglikelihood(self, requests: list) -> list:
        """Not supported: use the generative version of a task."""
        raise NotImplementedError("SAMA only generates text: choose a task with output_type generate_until.")

    def generate_until_multi_round(self, requests: list) -> list:
        """Not supported: conversations are covered by the benchmarks of this repository."""
        raise NotImplementedError("SAMA answers single questions: choose a task with output_type generate_until.")

    @torch.no_grad()
    def _answer(self, context: str, visuals: Sequence, arguments: dict) -> str:
        self._check_greedy(arguments)
        text = {"type": "text", "text": self._plain(context)}
        messages = [{"role": "user", "content": [*_visual_parts(visuals), text]}]
        inputs = self.processor(messages).to(self.device)
        length = inputs["input_ids"].shape[1]
        tokens = int(arguments.get("max_new_tokens", self.max_new_tokens))
        sequences = self.model.generate(
            **inputs, **self.processor.stop_arguments, max_new_tokens=tokens, do_sample=False, num_beams=1
        )
        answer = self.processor.post_process_answer(sequences[0, length:]).text
        until = arguments.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            answer = answer.split(stop)[0] if stop else answer
        return answer.strip()

    def _check_greedy(self, arguments: dict) -> None:
        sampled = bool(arguments.get("do_sample")) or float(arguments.get("temperature") or 0) > 0
        if (sampled or int(arguments.get("num_beams") or 1) > 1) and not self._warned:
            self._warned = True
            warnings.warn("The task requests sampling or beam search; SAMA decodes greedily.", stacklevel=3)

    def _plain(self, context: str) -> str:
        """The question without image placeholders. `<region>`, which messages refuse, is written `< region>`."""
        return without_region_word(context.replace(IMAGE_MARK, "").strip())


def _visual_parts(visuals: Sequence) -> list[dict]:
    """The images or the video of a question as content parts of a message."""
    pictures = [visual.convert("RGB") for visual in visuals if isinstance(visual, Image.Image)]
    paths = [visual for visual in visuals if isinstance(visual, str)]
    if len(pictures) + len(paths) < len(visuals) or len(paths) > 1 or (pictures and paths):
        kinds = ", ".join(type(visual).__name__ for visual in visuals)
        raise ValueError(f"A request must have one video or images only, got: {kinds}.")
    if len(pictures) == 1:
        return [{"type": "image", "image": pictures[0]}]
    if pictures:
        return [{"type": "video", "video": pictures}]
    return [{"type": "video", "video": path} for path in paths]
