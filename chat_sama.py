"""A conversation about one video that keeps its state between turns: frames are encoded once, a new turn costs its own
tokens only, and SAM 2 sees every frame once however many objects and turns there are."""

import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, TextStreamer

from .configuration_sama import CONTEXT_TOKEN
from .modeling_sama_tracker import FrameFeatures
from .objects_sama import GroundedPhrase, MaskTrack, Region
from .overlay_sama import overlay_masks, write_video
from .streaming_sama import LibraryTextStreamer
from .video_sama import SamaVideo


fcntl: Any = None  # on Windows: feature folders are not locked, and those of killed processes stay

try:
    import fcntl
except ImportError:
    pass

FEATURE_PREFIX, FEATURE_LOCK = "sama_features_", ".lock"


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
        frame_features (`torch.Tensor` of shape `(num_frames, tokens_per_frame, width)`, *optional*)
        spatial_tokens (`torch.Tensor` of shape `(num_context_frames, num_spatial_queries, qformer_width)`, *optional*)
        video_length (`int`): how many of `input_ids` come before the first question and do not depend on it.
    """

    messages: list[dict] = field(default_factory=list)
    input_ids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    frames: list[int] = field(default_factory=list)
    frame_features: torch.Tensor | None = None
    spatial_tokens: torch.Tensor | None = None
    video_length: int = 0


def make_feature_folder(parent: str | None = None) -> TemporaryDirectory:
    """A temporary folder that is deleted with the returned object. A file in it is locked as long as this process
    lives, so that another process can tell the folders of killed ones, which are deleted first.

    Args:
        parent (`str`, *optional*): where to make it; the system's folder for temporary files by default.
    """
    delete_dead_feature_folders(parent or gettempdir())
    while True:
        folder = TemporaryDirectory(prefix=FEATURE_PREFIX, dir=parent)
        if fcntl is None:
            return folder
        path = Path(folder.name) / FEATURE_LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        weakref.finalize(folder, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process found the file before it was locked, and deletes the folder
            continue
        except OSError:  # of a file system without locks: nobody deletes a folder without the file
            path.unlink()
            return folder
        if path.exists():
            return folder


def delete_dead_feature_folders(parent: str | Path) -> None:
    """Deletes this user's feature folders in `parent` whose process has ended; each may hold 16 GiB."""
    if fcntl is None:
        return
    for folder in Path(parent).glob(f"{FEATURE_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / FEATURE_LOCK, os.O_RDWR)
        except OSError:  # without the file nothing tells whether its process is alive
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # locked by a process that is alive
            pass
        finally:
            os.close(descriptor)


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
        self.folder = make_feature_folder(folder)
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
        min_component_fraction (`float`, defaults to 0): specks of masks smaller than this fraction of their mask are
            dropped; 0 keeps the masks as the model gives them. May be set at any time.
    """

    def __init__(self, model, processor, video=None, image=None, feature_folder: str | None = None):
        if video is not None and image is not None:
            raise ValueError("A conversation is about one video or one image, got both.")
        self.model, self.processor = model, processor
        self.min_component_fraction = 0.0
        source, kind = (video, "video") if video is not None else (image, "image")
        self.video = None if source is None else processor.open_video(source, kind)
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
            tracking = {"progress": progress, "on_frame": on_frame}
            return self.answer(text, regions, tracking if masks else None, on_answer, **generate_kwargs)
        except BaseException:
            if isinstance(streamer, LibraryTextStreamer):
                streamer.stop()
            # The keys and values of the tokens that the failed question had in common with the rest are still good.
            self.state = replace(before, input_ids=self.state.input_ids, video_length=self.state.video_length)
            raise

    def reset(self) -> None:
        """Forgets the conversation but not the video: the next question costs its own tokens only, and is answered as
        if it were the first. So many questions about a video that have nothing to do with one another are each asked
        after a `reset`."""
        state = self.state
        if self.video is None:  # what two conversations have in common stays
            self.state = ChatState(input_ids=state.input_ids)
            return
        context = 0 if state.spatial_tokens is None else len(state.spatial_tokens)
        self.state = replace(
            state,
            messages=[],
            input_ids=state.input_ids[: state.video_length],
            frames=state.frames[:context],
            frame_features=None if state.frame_features is None else state.frame_features[:context],
        )

    def start_over(self) -> None:
        """The name of [`reset`] before version 0.2."""
        self.reset()

    def replace_answer(self, tagged_text: str) -> None:
        """Puts another answer, with its tags, in the place of the last one; later questions follow on that."""
        *before, last = self.state.messages
        self.state = replace(self.state, messages=[*before, {**last, "content": tagged_text}])

    def answer(self, text: str, regions: Sequence, tracking: dict | None, on_answer, **generate_kwargs) -> SamaReply:
        """[`ask`], without its promise about failures."""
        messages = [*self.state.messages, {"role": "user", "content": self.question_content(text, regions)}]
        turn = self.processor.encode_turn(messages, self.state.input_ids, self.state.frames)
        self.keep_tokens(turn.num_known_tokens)
        visual = self.encode_visual(turn)
        input_ids, device = turn.input_ids.to(self.model.device), self.model.device
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=turn.mm_token_type_ids.to(device),
            cache=self.cache,
            return_dict_in_generate=True,
            **visual,
            **self.processor.stop_arguments | generate_kwargs,
        )
        new_tokens = output.sequences[0, input_ids.shape[1] :]
        num_read = input_ids.shape[1] - turn.num_known_tokens
        streamer = generate_kwargs.get("streamer")
        if isinstance(streamer, LibraryTextStreamer):
            streamer.finish(self.reply(new_tokens, num_read).text)
        if on_answer is not None:
            on_answer(self.reply(new_tokens, num_read))
        tracks, scores = (None, None)
        if tracking is not None and self.video is not None:
            tracks, scores = self.track_objects(output.seg_states[0], **tracking)
        reply = self.reply(new_tokens, num_read, tracks, scores)
        self.state = replace(
            self.state,
            messages=[*messages, {"role": "assistant", "content": reply.tagged_text}],
            input_ids=output.sequences[0, : self.cache.get_seq_length()],
        )
        return reply

    def reply(self, tokens: torch.Tensor, num_read: int, tracks=None, scores=None) -> SamaReply:
        """What the model's new `tokens` say."""
        answer = self.processor.post_process_answer(tokens, tracks, scores)
        return SamaReply(answer.text, answer.tagged_text, answer.objects, self.video, num_read)

    def question_content(self, text: str, regions: Sequence) -> list[dict]:
        """The question as the chat template takes it; the video goes in with the first one."""
        content = self.processor.question_parts(text, regions)
        if self.video is not None and not self.state.messages:
            kind = "image" if self.video.is_image else "video"
            content = [{"type": kind, kind: self.video}, *content]
        return content

    def keep_tokens(self, number: int) -> None:
        """Cuts the kept keys and values back to the first `number` tokens, with which the new prompt begins.

        An answer's tokens may differ from how the tokenizer writes the same text: then the turn reads them again, so
        that a conversation never depends on how it was reached."""
        self.state = replace(self.state, input_ids=self.state.input_ids[:number])
        layers: list[Any] = self.cache.layers
        for layer in layers:  # one by one: an interrupted question leaves them at different lengths
            if layer.get_seq_length() > number:
                layer.crop(number - layer.get_seq_length())

    @torch.no_grad()
    def encode_visual(self, turn) -> dict[str, torch.Tensor]:
        """The visual arguments of a turn: frames that are new go through the vision tower, clicks and boxes become
        masks, and the video is read into the cache unless it is there."""
        if not turn.visual:
            return {}
        self.encode_new_frames(turn)
        device = self.model.device
        visual = {name: value.to(device) for name, value in turn.visual.items()}
        visual |= {"frame_features": self.state.frame_features, "spatial_tokens": self.state.spatial_tokens}
        if turn.prompt_frames:
            features = FrameFeatures.concatenate([self.sam_features(frame) for frame in turn.prompt_frames])
            prompts = [visual.pop(f"region_prompt_{name}") for name in ("indices", "points", "labels")]
            masks = (visual["region_masks"], visual["region_grid_masks"])
            filled = self.model.model.fill_region_prompts(masks, *prompts, features)
            visual |= dict(zip(("region_masks", "region_grid_masks"), filled, strict=True))
        if len(visual["dense_frames"]):
            self.read_video(turn, visual)
            visual["dense_frames"] = visual["dense_frames"][:0]
        return visual

    def encode_new_frames(self, turn) -> None:
        """Vision tower for the frames that no earlier turn encoded, spatial Q-Former once."""
        features: Any = self.state.frame_features
        model = self.model.model
        if len(turn.pixel_values):
            new = model.encode_frames(turn.pixel_values.to(self.model.device))
            features = new if features is None else torch.cat([features, new])
            self.state = replace(self.state, frames=turn.frames, frame_features=features)
        if self.state.spatial_tokens is None:
            spatial_tokens = model.context_aggregator.summarise_frames(features[: turn.num_context_frames])
            self.state = replace(self.state, spatial_tokens=spatial_tokens)

    def read_video(self, turn, visual: dict[str, torch.Tensor]) -> None:
        """Reads what comes before the first question into the cache, apart from the question: so its keys and values
        do not depend on the question, and [`reset`] can go back to them."""
        types = turn.mm_token_type_ids
        length = int((types[0] == CONTEXT_TOKEN).nonzero()[0])
        first = len(self.state.input_ids)
        frames = ("num_context_frames", "num_extra_frames", "frame_features", "spatial_tokens", "dense_frames")
        self.model(
            input_ids=turn.input_ids[:, first:length].to(self.model.device),
            mm_token_type_ids=types[:, first:length].to(self.model.device),
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **{name: visual[name] for name in frames},
        )
        self.state = replace(self.state, input_ids=turn.input_ids[0, :length], video_length=length)

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
        scores = []
        for frame in progress(frames) if progress else frames:
            masks = processor.post_process_masks(
                frame.mask_logits, video.height, video.width, self.min_component_fraction
            )
            for track, mask in zip(tracks, masks, strict=True):
                track[frame.frame_index] = mask
            if on_frame is not None:
                on_frame(frame.frame_index, masks)
            if frame.prompted:
                scores.append(frame.predicted_iou.float().cpu())
        return tracks, torch.stack(scores).mean(0).tolist() if scores else []
