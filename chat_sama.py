"""A conversation about one video that keeps its state between turns: frames are encoded once, a new turn costs its own
tokens only, and SAM 2 sees every frame once however many objects and turns there are."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, TextStreamer

from .configuration_sama import CONTEXT_TOKEN, DENSE_FRAME_TOKEN
from .encoding_sama import prompt_tensors
from .feature_store_sama import SamFeatureStore
from .frame_encoder_sama import FrameEncoder
from .generation_sama import DecodingBatch, copy_cache, crop_cache
from .inputs_sama import SamaVisualInputs
from .messages_sama import checked_messages
from .modeling_sama_tracker import FrameFeatures
from .objects_sama import GroundedPhrase, MaskTrack, Region, check_region_list, encode_masks
from .overlay_sama import overlay_masks, write_video
from .prefetch_sama import BackgroundWorker, copy_to_host
from .streaming_sama import LibraryTextStreamer
from .video_sama import SamaVideo


DECODED_BYTES = 128 * 2**20  # of decoded frames that are held while a question is answered
FRAMES_BEHIND = 2  # whose masks are being encoded while the next frame is tracked


@dataclass
class SamaReply:
    """One answer.

    Args:
        text (`str`): the answer without tags.
        tagged_text (`str`): with `<p>`, `</p>` and [SEG], as the model wrote it.
        objects (`list[GroundedPhrase]`): what the answer points at; each may be a region of a later question.
        video ([`SamaVideo`], *optional*): what the conversation is about.
        prompt_tokens (`int`): tokens of the conversation up to the answer.
        prefilled_tokens (`int`): how many of them the language model had to read for this turn; the rest was kept.
        completion_tokens (`int`): tokens of the answer.
        stopped (`bool`): whether the answer ended by itself; otherwise it was cut at `max_new_tokens`.
    """

    text: str
    tagged_text: str
    objects: list[GroundedPhrase] = field(default_factory=list)
    video: SamaVideo | None = None
    prefilled_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stopped: bool = True

    def save_video(self, path: str | Path) -> None:
        """Writes the video with this answer's masks on it, one colour an object.

        Raises:
            ValueError: if the conversation has no video.
        """
        if self.video is None:
            raise ValueError("This conversation has no video to draw on.")
        tracks = [phrase.track for phrase in self.objects if phrase.track is not None]
        shape = (-1, self.video.height, self.video.width)
        masks = (np.array([track[index] for track in tracks], bool).reshape(shape) for index in range(len(self.video)))
        write_video(path, map(overlay_masks, self.video, masks), self.video.fps, self.video)


@dataclass(frozen=True)
class ChatState:
    """What a conversation keeps between turns, besides the keys and values of `input_ids`. Replaced as a whole, so
    that a failed question changes nothing.

    Args:
        messages (`list[dict]`): the conversation so far.
        input_ids (`torch.LongTensor` of shape `(num_tokens,)`): tokens whose keys and values are kept.
        frames (`list[int]`): frames of the video that were encoded, in the order of their features.
        num_context_frames (`int`): how many of them belong to the video, the others to regions.
        frame_features (`torch.Tensor` of shape `(num_frames, tokens_per_frame, width)`, *optional*)
        deepstack_features (`torch.Tensor` of shape `(num_dense_frames, tokens_per_frame, num_levels, width)`,
        *optional*): of the dense frames, where the backbone has such features.
        spatial_tokens (`torch.Tensor` of shape `(num_context_frames, num_spatial_queries, qformer_width)`, *optional*)
        video_length (`int`): how many of `input_ids` come before the first question and do not depend on it.
        turn_lengths (`dict[int, int]`): number of messages to how many of `input_ids` are those of the messages; of
            the conversation as it was after each answer.
    """

    messages: list[dict] = field(default_factory=list)
    input_ids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    frames: list[int] = field(default_factory=list)
    num_context_frames: int = 0
    frame_features: torch.Tensor | None = None
    deepstack_features: torch.Tensor | None = None
    spatial_tokens: torch.Tensor | None = None
    video_length: int = 0
    turn_lengths: dict[int, int] = field(default_factory=dict)


class SamaChat:
    """A conversation; made by `model.start_chat(processor, video=...)`.

    Args:
        model ([`SamaForConditionalGeneration`])
        processor ([`SamaProcessor`])
        video, image (*optional*): what `processor.open_video` takes; at most one of the two.
        feature_folder (`str`, *optional*): where SAM 2's features of the frames are kept, see [`SamFeatureStore`].
        sam_features ([`SamFeatureStore`], *optional*): that of another chat about the same video, to share it.

    Attributes:
        messages (`list[dict]`): the conversation so far, as `apply_chat_template` takes it; a copy, not to be edited.
        video ([`SamaVideo`], *optional*): what it is about.
        min_component_fraction (`float`, defaults to 0): specks of masks smaller than this fraction of their mask are
            dropped; 0 keeps the masks as the model gives them. May be set at any time.
        decoding_batch ([`DecodingBatch`], *optional*): where its answers are generated together with those of other
            chats of the model; `between_steps` then lets these compute.
        between_steps (`Callable`): called between two steps of reading a question, such as decoding frames, encoding
            them and reading them, so that others may use the device. An exception raised in it ends the question.
    """

    def __init__(
        self,
        model,
        processor,
        video=None,
        image=None,
        feature_folder: str | None = None,
        sam_features: SamFeatureStore | None = None,
    ):
        if video is not None and image is not None:
            raise ValueError("A conversation is about one video or one image, got both.")
        self.model, self.processor = model, processor
        self.min_component_fraction = 0.0
        self.decoding_batch: DecodingBatch | None = None
        self.between_steps: Callable[[], None] = lambda: None
        source, kind = (video, "video") if video is not None else (image, "image")
        self.video = None if source is None else processor.open_video(source, kind)
        self.cache = DynamicCache(config=model.config.get_text_config())
        self.state = ChatState()
        self.sam_features: Any = sam_features
        if self.video is not None and sam_features is None:
            encoder = FrameEncoder(model.model.mask_tracker, processor.sam_frames(self.video))
            self.sam_features = SamFeatureStore(encoder, folder=feature_folder)

    @property
    def messages(self) -> list[dict]:
        return list(self.state.messages)

    def __reduce_ex__(self, protocol):
        raise TypeError(
            "A chat cannot be copied or pickled: it holds the model, its key/value cache and a folder of features. "
            "Keep `chat.messages`, or start another chat with `model.start_chat(processor, video=...)`."
        )

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
            streamer (*optional*): a transformers streamer, as for `generate`; text streamers get the text of the
                reply, without tags.
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
        if isinstance(streamer, TextStreamer):
            streamer = LibraryTextStreamer(self.processor, streamer)
        try:
            generate_kwargs |= {"streamer": streamer, "max_new_tokens": max_new_tokens}
            tracking = {"progress": progress, "on_frame": on_frame} if masks else None
            with self.frames_in_memory():
                return self.answer(text, regions, tracking, on_answer, **generate_kwargs)
        except BaseException:
            if isinstance(streamer, LibraryTextStreamer):
                streamer.stop()
            # The keys and values of the tokens that the failed question had in common with the rest are still good.
            kept = ("input_ids", "video_length", "turn_lengths")
            self.state = replace(before, **{name: vars(self.state)[name] for name in kept})
            raise

    def frames_in_memory(self) -> AbstractContextManager[None]:
        """Holds frames that both towers read, so that they are decoded once for both."""
        if self.video is None:
            return nullcontext()
        return self.video.keeping(self.processor.choose_frames(self.video).prompted, DECODED_BYTES)

    def reset(self) -> None:
        """Forgets the conversation but not the video: the next question costs its own tokens only, and is answered as
        if it were the first. So many questions about a video that have nothing to do with one another are each asked
        after a `reset`."""
        state = self.state
        if self.video is None:  # what two conversations have in common stays
            self.state = ChatState(input_ids=state.input_ids)
            return
        context = state.num_context_frames
        self.state = replace(
            state,
            messages=[],
            turn_lengths={},
            input_ids=state.input_ids[: state.video_length],
            frames=state.frames[:context],
            frame_features=None if state.frame_features is None else state.frame_features[:context],
        )

    def branch(self, num_turns: int = 0) -> "SamaChat":
        """Another chat about the same video that begins with the first questions and answers of this one. It shares
        SAM 2's features and has a copy of what the model has read of those turns, so that either goes on by itself.

        Args:
            num_turns (`int`, defaults to 0): how many questions with their answers; 0 keeps the video alone.

        Raises:
            ValueError: if the conversation has fewer.
        """
        state = self.state
        ends = [0, *(number for number, one in enumerate(state.messages, start=1) if one["role"] == "assistant")]
        if not 0 <= num_turns < len(ends):
            raise ValueError(f"The conversation has {len(ends) - 1} answers, it cannot branch off after {num_turns}.")
        known = [length for messages, length in state.turn_lengths.items() if messages <= ends[num_turns]]
        # Never beyond a turn that both have: placeholders of two questions are the same tokens, their states are not
        length = min(max([state.video_length, *known]), len(state.input_ids))
        chat = SamaChat(self.model, self.processor, video=self.video, sam_features=self.sam_features)
        chat.min_component_fraction, chat.decoding_batch = self.min_component_fraction, self.decoding_batch
        copy_cache(self.cache, chat.cache, length)
        chat.state = replace(
            state,
            messages=state.messages[: ends[num_turns]],
            input_ids=state.input_ids[:length],
            turn_lengths={messages: end for messages, end in state.turn_lengths.items() if end <= length},
        )
        return chat

    def add_messages(self, messages: Sequence[dict]) -> None:
        """Adds questions and answers of a conversation that was held elsewhere; the next question reads them. Raises
        `ValueError` if they cannot be read, or their questions do not show `chat.video`.

        Args:
            messages (`list[dict]`): as `apply_chat_template` takes them. The first user message of a chat about a
                video shows it, as `question_content` writes it.
        """
        messages = [*self.state.messages, *messages]
        self.state = replace(self.state, messages=checked_messages(messages, self.video))

    def start_over(self) -> None:
        """The name of [`reset`] before version 0.2."""
        self.reset()

    def replace_answer(self, tagged_text: str) -> None:
        """Puts another answer, with its tags, in the place of the last one; later questions follow on that.
        Raises `ValueError` if the conversation does not end with an answer, or `tagged_text` cannot be one."""
        before, last = self.messages[:-1], self.messages[-1:]
        if not last or last[0]["role"] != "assistant":
            raise ValueError("There is no answer to replace: the conversation does not end with one.")
        messages = [*before, {**last[0], "content": tagged_text}]
        self.state = replace(self.state, messages=checked_messages(messages, self.video))

    def answer(self, text: str, regions: Sequence, tracking: dict | None, on_answer, **generate_kwargs) -> SamaReply:
        """[`ask`], without its promise about failures."""
        messages = [*self.state.messages, {"role": "user", "content": self.question_content(text, regions)}]
        turn = self.processor.encode_turn(messages, self.state.input_ids, self.state.frames)
        self.keep_tokens(turn.num_known_tokens)
        self.between_steps()
        visual = self.encode_visual(turn)
        input_ids, device = turn.input_ids.to(self.model.device), self.model.device
        batch = self.decoding_batch
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=turn.mm_token_type_ids.to(device),
            cache=self.cache,
            return_dict_in_generate=True,
            **({} if turn.position_ids is None else {"position_ids": turn.position_ids.to(device)}),
            **({} if batch is None else {"decoding_slot": batch.slot(self.between_steps)}),
            **visual,
            **self.processor.stop_arguments | generate_kwargs,
        )
        sequence = output.sequences[0].cpu()  # once: token by token, each would wait for the GPU
        reply = self.reply(sequence, turn)
        streamer = generate_kwargs.get("streamer")
        if isinstance(streamer, LibraryTextStreamer):
            streamer.finish(reply.text)
        if on_answer is not None:
            on_answer(reply)
        if tracking is not None and self.video is not None:
            tracks, scores = self.track_objects(output.seg_states[0], **tracking)
            reply = self.reply(sequence, turn, tracks, scores)
        messages.append({"role": "assistant", "content": reply.tagged_text})
        input_ids = sequence[: self.cache.get_seq_length()]
        self.state = replace(
            self.state,
            messages=messages,
            input_ids=input_ids,
            turn_lengths=self.state.turn_lengths | {len(messages): len(input_ids)},
        )
        return reply

    def reply(self, sequence: torch.Tensor, turn, tracks=None, scores=None) -> SamaReply:
        """What the model's new tokens say, those of `sequence` behind the prompt of a turn."""
        num_prompt = turn.input_ids.shape[1]
        answer = self.processor.post_process_answer(sequence[num_prompt:], tracks, scores)
        return SamaReply(
            answer.text,
            answer.tagged_text,
            answer.objects,
            self.video,
            prefilled_tokens=num_prompt - turn.num_known_tokens,
            prompt_tokens=num_prompt,
            completion_tokens=len(sequence) - num_prompt,
            stopped=self.ends_by_itself(sequence[num_prompt:]),
        )

    def ends_by_itself(self, tokens: torch.Tensor) -> bool:
        """Whether the model ended its answer with `tokens`, by an end-of-text token or by the text of an end mark."""
        ends = self.model.generation_config.eos_token_id
        if len(tokens) and int(tokens[-1]) in (ends if isinstance(ends, list) else [ends]):
            return True
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=False)
        return any(mark in text for mark in self.processor.stop_arguments.get("stop_strings", ()))

    def question_content(self, text: str, regions: Sequence) -> list[dict]:
        """The question as the chat template takes it; the video goes in with the first one."""
        check_region_list(regions)
        if self.model.config.region_prompts == "cells":  # the text depends on which cells a region covers
            regions = [dict(zip(("frame", "mask"), self.region_mask(region), strict=True)) for region in regions]
        content = self.processor.question_parts(text, regions)
        if self.video is not None and all(message["role"] != "user" for message in self.state.messages):
            kind = "image" if self.video.is_image else "video"
            content = [{"type": kind, kind: self.video}, *content]
        return content

    def keep_tokens(self, number: int) -> None:
        """Cuts the kept keys and values back to the first `number` tokens, with which the new prompt begins.

        An answer's tokens may differ from how the tokenizer writes the same text: then the turn reads them again, so
        that a conversation never depends on how it was reached."""
        lengths = {messages: length for messages, length in self.state.turn_lengths.items() if length <= number}
        self.state = replace(self.state, input_ids=self.state.input_ids[:number], turn_lengths=lengths)
        crop_cache(self.cache, number)

    @torch.no_grad()
    def encode_visual(self, turn) -> dict[str, torch.Tensor]:
        """The visual arguments of a turn: frames that are new go through the vision tower, clicks and boxes become
        masks, and the video is read into the cache unless it is there."""
        if not turn.visual:
            return {}
        self.encode_new_frames(turn)
        self.between_steps()
        device = self.model.device
        visual = {name: value.to(device) for name, value in turn.visual.items()}
        kept = ("frame_features", "deepstack_features", "spatial_tokens")
        visual |= {name: vars(self.state)[name] for name in kept}
        if turn.prompt_frames:
            features = FrameFeatures.concatenate([self.point_features(frame) for frame in turn.prompt_frames])
            filled = self.model.model.fill_region_prompts(SamaVisualInputs(**visual), features)
            visual |= {name: vars(filled)[name] for name in ("region_masks", "region_grid_masks")}
            visual = {name: value for name, value in visual.items() if not name.startswith("region_prompt_")}
            self.between_steps()
        if len(visual["dense_frames"]):
            self.read_video(turn, visual)
            self.between_steps()
        return visual | {"dense_frames": visual["dense_frames"][:0], "deepstack_features": None}

    def encode_new_frames(self, turn) -> None:
        """Vision tower for the frames that no earlier turn encoded, spatial Q-Former once."""
        features: Any = self.state.frame_features
        model = self.model.model
        if turn.num_new_frames:
            grids = turn.visual["frame_grids"].expand(turn.num_new_frames, -1)
            new = model.encode_frames(turn.pixel_values.to(self.model.device), grids)
            if new.deepstack is not None and turn.num_new_frames == len(turn.frames):
                # Kept although the language model may not read these frames now: it may have to later
                self.state = replace(self.state, deepstack_features=new.deepstack[turn.dense_rows])
            features = new.features if features is None else torch.cat([features, new.features])
            self.state = replace(
                self.state,
                frames=turn.frames,
                num_context_frames=turn.num_context_frames,
                frame_features=features,
            )
        if self.state.spatial_tokens is None and model.context_aggregator is not None:
            spatial_tokens = model.context_aggregator.summarise_frames(features[: turn.num_context_frames])
            self.state = replace(self.state, spatial_tokens=spatial_tokens)

    def read_video(self, turn, visual: dict[str, torch.Tensor]) -> None:
        """Reads what comes before the first question into the cache, apart from the question: so its keys and values
        do not depend on the question, and [`reset`] can go back to them."""
        types = turn.mm_token_type_ids
        context, dense = ((types[0] == kind).nonzero().flatten() for kind in (CONTEXT_TOKEN, DENSE_FRAME_TOKEN))
        length = int(context[0]) if len(context) else int(dense[-1]) + 1
        first = len(self.state.input_ids)
        frames = ("num_context_frames", "num_extra_frames", "frame_grids", "frame_features", "deepstack_features",
                  "spatial_tokens", "dense_frames")  # fmt: skip
        positions = None if turn.position_ids is None else turn.position_ids[..., first:length].to(self.model.device)
        self.model(
            input_ids=turn.input_ids[:, first:length].to(self.model.device),
            mm_token_type_ids=types[:, first:length].to(self.model.device),
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **{name: visual[name] for name in frames},
        )
        self.state = replace(self.state, input_ids=turn.input_ids[0, :length], video_length=length)

    @torch.no_grad()
    def region_mask(self, region) -> tuple[int, np.ndarray]:
        """What a region selects, before anything is asked about it: for clicks, a box or a scribble the mask that
        SAM 2 makes of them on the frame they are drawn on.

        Args:
            region: as one of the `regions` of [`ask`].

        Returns:
            `tuple` of the frame and a bool array of shape `(height, width)`.

        Raises:
            ValueError: if the region does not lie in the video.
        """
        if self.video is None:
            raise ValueError("This conversation has no video to point at.")
        prepared = self.processor.prepare_region(region, self.video)
        if prepared.mask is not None:
            return prepared.frame, prepared.mask
        prompts = prompt_tensors([(prepared, self.video)], self.processor.sam_image_size)
        points, labels = (prompts[f"region_prompt_{name}"].to(self.model.device) for name in ("points", "labels"))
        features, (height, width) = self.point_features(prepared.frame), (self.video.height, self.video.width)
        logits = self.model.model.mask_tracker.segment_points(features, points, labels).mask_logits
        mask = self.processor.post_process_masks(logits[0], height, width)[0]
        if not mask.any() or self.model.config.region_shape == "box":
            model = self.model.model
            found = model.segment_region_prompts(points, labels, features)
            mask = model.resize_region_masks(found, (height, width))[0].bool().cpu().numpy()
        return prepared.frame, mask

    def point_features(self, frame: int) -> FrameFeatures:
        """Features of a frame that is pointed at, which the original decoder reads."""
        return replace(self.sam_features(frame, tuned=False), tuned=())

    @torch.no_grad()
    def track_objects(
        self,
        seg_states: torch.Tensor,
        progress: Callable[[Iterable], Iterable] | None = None,
        on_frame: Callable[[int, np.ndarray], None] | None = None,
    ) -> tuple[list[MaskTrack], list[float]]:
        """Mask tracks at the video's own size, and scores, of all objects of an answer.

        Args:
            seg_states (`torch.Tensor` of shape `(num_objects, width)`): one entry of `generate(...).seg_states`.
            progress, on_frame (`Callable`, *optional*): as for [`ask`].

        Returns:
            a `MaskTrack` for each object, and its mean predicted IoU on the prompted frames, from 0 to 1.
        """
        video, processor = self.video, self.processor
        if video is None:
            raise ValueError("This conversation has no video to find objects in.")
        prompted = processor.choose_frames(video).prompted
        frames = self.model.segment_video(seg_states, self.sam_features, prompted, num_frames=len(video))
        tracks = [MaskTrack(len(video), video.height, video.width) for _ in seg_states]
        encode, scores = partial(encode_masks, tracks, self.min_component_fraction), []
        with closing(frames), BackgroundWorker(FRAMES_BEHIND) as worker:

            def hand_on(encoded: list[tuple[int, np.ndarray]]) -> None:
                if on_frame is not None:
                    for index, masks in encoded:
                        on_frame(index, masks)

            for frame in progress(frames) if progress else frames:
                masks = processor.resize_mask_logits(frame.mask_logits, video.height, video.width) > 0
                if frame.prompted:
                    scores.append(frame.predicted_iou.float())
                hand_on(worker.submit(encode, frame.frame_index, copy_to_host(masks)))
            hand_on(worker.finish())
        return tracks, torch.stack(scores).mean(0).tolist() if scores else []
