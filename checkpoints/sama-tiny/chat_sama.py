"""A conversation about one video that keeps its state between turns: frames are encoded once, a new turn costs its own
tokens only, and SAM 2 sees every frame once however many objects and turns there are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import DynamicCache

from .configuration_sama import CONTEXT_TOKEN, DENSE_FRAME_TOKEN, REGION_POOLED_TOKEN
from .modeling_sama_tracker import FrameFeatures
from .overlay_sama import overlay_masks, write_video
from .video_sama import GroundedPhrase, MaskTrack, Region, SamaVideo


# Inputs with one row a question, and with one row a region: a later turn hands over only its own rows.
QUESTION_INPUTS = ("qformer_input_ids", "qformer_attention_mask", "question_samples")
REGION_INPUTS = ("region_masks", "region_grid_masks", "region_frames")


@dataclass
class SamaReply:
    """One answer.

    Args:
        text (`str`): the answer without tags.
        tagged_text (`str`): with `<p>`, `</p>` and [SEG], as the model wrote it.
        objects (`list[GroundedPhrase]`): what the answer points at; each may be a region of a later question.
        video ([`SamaVideo`], *optional*): what the conversation is about.
        prefilled_tokens (`int`): tokens the language model had to read for this turn, the rest was kept.
    """

    text: str
    tagged_text: str
    objects: list[GroundedPhrase] = field(default_factory=list)
    video: SamaVideo | None = None
    prefilled_tokens: int = 0

    def save_video(self, path: str | Path) -> None:
        """Writes the video with this answer's masks on it, one colour an object.

        Raises:
            ValueError: if the conversation has no video.
        """
        if self.video is None:
            raise ValueError("This conversation has no video to draw on.")
        tracks, shape = [phrase.track for phrase in self.objects], (-1, self.video.height, self.video.width)
        masks = (np.array([track[index] for track in tracks], bool).reshape(shape) for index in range(len(self.video)))
        write_video(path, map(overlay_masks, self.video, masks), self.video.fps)


@dataclass(frozen=True)
class ChatState:
    """What a conversation keeps between turns, besides the keys and values of `input_ids`. Replaced as a whole, so
    that a failed question changes nothing.

    Args:
        messages (`list[dict]`): the conversation so far.
        input_ids (`torch.LongTensor` of shape `(num_tokens,)`): tokens whose keys and values are kept.
        frame_features (`torch.Tensor` of shape `(num_frames, tokens_per_frame, width)`, *optional*)
        spatial_tokens (`torch.Tensor` of shape `(num_context_frames, num_spatial_queries, qformer_width)`, *optional*)
        video_ids (`torch.LongTensor` of shape `(num_video_tokens,)`, *optional*):
            The first of `input_ids`, in front of every question, once [`SamaChat.start_over`] read them.
    """

    messages: list[dict] = field(default_factory=list)
    input_ids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    frame_features: torch.Tensor | None = None
    spatial_tokens: torch.Tensor | None = None
    video_ids: torch.Tensor | None = None


class SamFeatureStore:
    """SAM 2's features of a video's frames: each frame is encoded when it is first asked for, then kept in a temporary
    folder, so that later turns do not encode it again and memory does not grow. A frame of the released size takes
    15 MB in bfloat16; beyond `max_bytes` frames are not kept, and a later turn encodes them again.

    Args:
        encode (`Callable`): frame index to [`FrameFeatures`].
        folder (`str`, *optional*): where to make the temporary folder; the system's by default.
        max_bytes (`int`, defaults to 16 GiB)
    """

    def __init__(self, encode: Callable[[int], FrameFeatures], folder: str | None = None, max_bytes: int = 16 * 2**30):
        self.encode, self.free_bytes = encode, max_bytes
        self.folder = TemporaryDirectory(prefix="sama_features_", dir=folder)
        self.stored: set[int] = set()

    def __call__(self, index: int) -> FrameFeatures:
        path = Path(self.folder.name) / f"{index}.pt"
        if index in self.stored:
            image, tuned, original = torch.load(path, weights_only=True)
            return FrameFeatures(image, tuned, original)
        features = self.encode(index)
        size = sum(level.nbytes for level in (features.image, *features.tuned, *features.original))
        if size <= self.free_bytes:
            torch.save((features.image, features.tuned, features.original), path)
            self.stored.add(index)
            self.free_bytes -= size
        return features


class SamaChat:
    """A conversation; made by `model.start_chat(processor, video=...)`.

    Args:
        model ([`SamaForConditionalGeneration`])
        processor ([`SamaProcessor`])
        video, image (*optional*): what `processor.open_video` takes; at most one of the two.
        feature_folder (`str`, *optional*): where SAM 2's features of the frames are kept, see [`SamFeatureStore`].

    Attributes:
        messages (`list[dict]`): the conversation so far, as `apply_chat_template` takes it; a copy, not to be edited.
        video ([`SamaVideo`], *optional*): what it is about.
    """

    def __init__(self, model, processor, video=None, image=None, feature_folder: str | None = None):
        if video is not None and image is not None:
            raise ValueError("A conversation is about one video or one image, got both.")
        self.model, self.processor = model, processor
        source = video if video is not None else image
        self.video = None if source is None else processor.open_video(source)
        self.cache = DynamicCache(config=model.config.get_text_config())
        self.state = ChatState()
        if self.video is not None:
            frames, tracker = processor.sam_frames(self.video), model.model.mask_tracker
            self.sam_features = SamFeatureStore(
                lambda index: tracker.encode_frames(frames[index][None]), folder=feature_folder
            )

    @property
    def messages(self) -> list[dict]:
        return list(self.state.messages)

    def ask(
        self,
        text: str,
        regions: Sequence[Region | GroundedPhrase | MaskTrack | dict] = (),
        max_new_tokens: int = 512,
        streamer=None,
        progress: Callable[[Iterable], Iterable] | None = None,
        masks: bool = True,
        on_answer: Callable[[SamaReply], None] | None = None,
        on_frame: Callable[[int, np.ndarray], None] | None = None,
        **generate_kwargs,
    ) -> SamaReply:
        """Asks the next question. If that fails, or is interrupted, the conversation is as it was before.

        Args:
            text (`str`): the question; every `<region>` in it stands for the next of `regions`.
            regions (*optional*): what the question points at, on any frame; objects of earlier answers too.
            max_new_tokens (`int`, defaults to 512)
            streamer (*optional*): a transformers streamer, as for `generate`.
            progress (`Callable`, *optional*): wraps the iterable over tracked frames, as `tqdm` does.
            masks (`bool`, defaults to `True`): whether the objects of the answer are found in the video.
            on_answer (`Callable`, *optional*): called with the reply when its text is complete, before its objects are
                found in the video; they have no tracks yet.
            on_frame (`Callable`, *optional*): called with the index and the bool masks, of shape `(num_objects,
                height, width)`, of each frame in the order of tracking. An exception raised in a callback ends the
                question.
            generate_kwargs: for `generate`.

        Raises:
            ValueError: if `text` holds more or fewer `<region>` marks than `regions`, if a region does not lie in the
                video, or if the conversation is longer than the model can read.
        """
        before = self.state
        try:
            generate_kwargs |= {"streamer": streamer, "max_new_tokens": max_new_tokens}
            tracking = {"progress": progress, "on_frame": on_frame}
            return self.answer(text, regions, tracking if masks else None, on_answer, **generate_kwargs)
        except BaseException:
            # The keys and values of the tokens that the failed question had in common with the rest are still good.
            self.state = replace(before, input_ids=self.state.input_ids)
            raise

    def start_over(self) -> None:
        """Forgets the conversation but not the video: the next question costs its own tokens only, and is answered as
        if it were the first, whatever was asked before. The first call encodes the frames and reads them; so many
        questions about a video that have nothing to do with one another are each asked after a `start_over`."""
        if self.video is None:  # what two conversations have in common stays
            self.state = ChatState(input_ids=self.state.input_ids)
            return
        state = self.state
        context = None if state.spatial_tokens is None else state.frame_features[: len(state.spatial_tokens)]
        self.state = replace(state, messages=[], frame_features=context)
        if state.video_ids is None:
            self.read_frames()
        self.state = replace(self.state, input_ids=self.state.video_ids)

    @torch.no_grad()
    def read_frames(self) -> None:
        """Reads everything that stands in front of the first question's context, whatever the question, into an empty
        cache."""
        inputs, pixel_values = self.model_inputs([{"role": "user", "content": self.question_content("?", ())}])
        types, model = inputs["mm_token_type_ids"][0], self.model.model
        length = int((types == CONTEXT_TOKEN).nonzero()[0])
        self.encode_new_frames(pixel_values, int(inputs["num_context_frames"][0]))
        embeds = model.get_input_embeddings()(inputs["input_ids"][:, :length])
        dense = self.state.frame_features[inputs["dense_frames"]].flatten(0, 1).to(embeds)
        embeds = embeds.masked_scatter((types[:length] == DENSE_FRAME_TOKEN).unsqueeze(-1), dense)
        self.cache = DynamicCache(config=self.model.config.get_text_config())
        model.language_model(inputs_embeds=embeds, cache=self.cache, use_cache=True)
        self.state = replace(self.state, video_ids=inputs["input_ids"][0, :length])

    def replace_answer(self, tagged_text: str) -> None:
        """Puts another answer, with its tags, in the place of the last one; later questions follow on that."""
        *before, last = self.state.messages
        self.state = replace(self.state, messages=[*before, {**last, "content": tagged_text}])

    def model_inputs(self, messages: list[dict]) -> tuple:
        """What the processor makes of the conversation, and its frames; the latter are not moved to the device."""
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        pixel_values = inputs.pop("pixel_values", None)
        inputs.pop("region_prompt_pixel_values", None)  # SAM 2's features of these frames come from the store
        return inputs.to(self.model.device), pixel_values

    def answer(self, text: str, regions: Sequence, tracking: dict | None, on_answer, **generate_kwargs) -> SamaReply:
        """[`ask`], without its promise about failures."""
        messages = [*self.state.messages, {"role": "user", "content": self.question_content(text, regions)}]
        inputs, pixel_values = self.model_inputs(messages)
        with torch.no_grad():
            kept = self.keep_common_prefix(inputs["input_ids"][0])
            visual = {} if pixel_values is None else self.visual_inputs(inputs, pixel_values, kept, regions)
        prompt_length = inputs["input_ids"].shape[1]
        output = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            cache=self.cache,
            return_dict_in_generate=True,
            **visual,
            **self.processor.stop_arguments | generate_kwargs,
        )
        if on_answer is not None:
            early = self.processor.post_process_answer(output.sequences[0, prompt_length:])
            on_answer(SamaReply(early.text, early.tagged_text, early.objects, self.video, prompt_length - kept))
        tracks, scores = (None, None) if tracking is None else self.track(output.seg_states[0], **tracking)
        answer = self.processor.post_process_answer(output.sequences[0, prompt_length:], tracks, scores)
        self.state = replace(
            self.state,
            messages=[*messages, {"role": "assistant", "content": answer.tagged_text}],
            input_ids=output.sequences[0, : self.cache.get_seq_length()],
        )
        return SamaReply(answer.text, answer.tagged_text, answer.objects, self.video, prompt_length - kept)

    def question_content(self, text: str, regions: Sequence) -> list[dict]:
        """The question as the chat template takes it; the video goes in with the first one."""
        content = self.processor.question_parts(text, regions)
        if self.video is not None and not self.state.messages:
            kind = "image" if self.video.is_image else "video"
            content = [{"type": kind, kind: self.video}, *content]
        return content

    def keep_common_prefix(self, input_ids: torch.Tensor) -> int:
        """Cuts the kept keys and values back to what the new prompt begins with, and says how many tokens that is.

        An answer's tokens may differ from how the tokenizer writes the same text: then the turn reads them again, so
        that a conversation never depends on how it was reached."""
        known = self.state.input_ids.to(input_ids.device)
        length = min(len(known), len(input_ids) - 1)  # one token is always left to read
        differs = (known[:length] != input_ids[:length]).nonzero()
        kept = int(differs[0]) if len(differs) else length
        self.state = replace(self.state, input_ids=known[:kept])
        for layer in self.cache.layers:  # one by one: an interrupted question leaves them at different lengths
            if layer.get_seq_length() > kept:
                layer.crop(kept - layer.get_seq_length())
        return kept

    def visual_inputs(
        self, inputs, pixel_values: torch.Tensor, kept: int, regions: Sequence
    ) -> dict[str, torch.Tensor]:
        """The visual inputs of the tokens after `kept`: features of frames that were encoded once, and the rows of the
        questions and regions that are new."""
        self.encode_new_frames(pixel_values, int(inputs["num_context_frames"][0]))
        types = inputs["mm_token_type_ids"][0, kept:]
        num_context = int(inputs["num_context_frames"][0])
        first_question = len(inputs["question_samples"]) - int((types == CONTEXT_TOKEN).sum()) // num_context
        visual = {name: inputs[name][first_question:] for name in QUESTION_INPUTS}
        visual |= {name: inputs[name] for name in ("num_context_frames", "num_extra_frames")}
        visual["dense_frames"] = inputs["dense_frames"] if kept == 0 else inputs["dense_frames"][:0]
        num_regions = int((types == REGION_POOLED_TOKEN).sum())
        if num_regions:
            first_region = len(inputs["region_masks"]) - num_regions
            visual |= {name: inputs[name][first_region:] for name in REGION_INPUTS}
            if "region_prompt_indices" in inputs:
                visual |= self.fill_prompts(inputs, visual, first_region, regions)
        if not len(visual["question_samples"]):
            return {}
        return visual | {"frame_features": self.state.frame_features, "spatial_tokens": self.state.spatial_tokens}

    def encode_new_frames(self, pixel_values: torch.Tensor, num_context_frames: int) -> None:
        """Vision tower for the rows that no earlier turn encoded, spatial Q-Former once. The processor lists the
        context frames first and others in order of first use, so a turn only adds rows."""
        features, model = self.state.frame_features, self.model.model
        known = 0 if features is None else len(features)
        if known == len(pixel_values):
            return
        new = model.encode_frames(pixel_values[known:].to(self.model.device))
        if features is None:
            spatial_tokens = model.context_aggregator.summarise_frames(new[:num_context_frames])
            self.state = replace(self.state, frame_features=new, spatial_tokens=spatial_tokens)
        else:
            self.state = replace(self.state, frame_features=torch.cat([features, new]))

    def fill_prompts(self, inputs, visual: dict, first_region: int, regions: Sequence) -> dict[str, torch.Tensor]:
        """Masks of this turn's regions, those given as clicks and boxes filled by SAM 2."""
        indices = inputs["region_prompt_indices"]
        new = indices >= first_region
        if not new.any():
            return {}
        rows = indices[new] - first_region
        frames = [self.processor.region_frame(regions[row], self.video) for row in rows.tolist()]
        masks, grid_masks = self.model.model.fill_region_prompts(
            (visual["region_masks"], visual["region_grid_masks"]),
            rows,
            inputs["region_prompt_points"][new],
            inputs["region_prompt_labels"][new],
            FrameFeatures.concatenate([self.sam_features(frame) for frame in frames]),
        )
        return {"region_masks": masks, "region_grid_masks": grid_masks}

    def track(
        self,
        seg_states: torch.Tensor,
        progress: Callable[[Iterable], Iterable] | None,
        on_frame: Callable[[int, np.ndarray], None] | None,
    ) -> tuple[list[MaskTrack] | None, list[float] | None]:
        """Mask tracks and scores of an answer's objects; None when there is no video to find them in."""
        if self.video is None:
            return None, None
        return self.model.track_objects(seg_states, self.processor, self.video, self.sam_features, progress, on_frame)
