"""Frames encoded ahead of a track: the same masks in batches, what is computed, what is in memory, and what fails."""

import gc
import threading
import warnings

import numpy as np
import pytest
import torch
from checkpoint import count_calls
from test_mask_trackers import KINDS, difference, make_tracker, seg_prompts
from test_prefetch_sama import own_threads

from sama.encoding_sama import SamFrames
from sama.feature_store_sama import SamFeatureStore
from sama.frame_encoder_sama import FrameEncoder, frame_requests, track_ahead
from sama.profiling.inference import FeatureCounter
from sama.tracking_sama import FrameFeatures, FrameRequest
from sama.video_sama import SamaVideo


torch.set_num_threads(1)  # the models are tiny

NUM_FRAMES, PROMPTED = 9, [2, 5]
PRESETS = ["published", "consistent"]


def clip(num_frames: int = NUM_FRAMES) -> SamaVideo:
    """Noise of 40x30 pixels."""
    return SamaVideo.open(np.random.default_rng(0).integers(0, 256, (num_frames, 30, 40, 3), dtype=np.uint8))


def sam_frames(tracker, video: SamaVideo) -> SamFrames:
    return SamFrames(video, tracker.mask_config.image_size, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))


@torch.no_grad()
def tracked(tracker, frames, num_frames: int | None = None, prompted: list[int] = PROMPTED) -> dict[int, torch.Tensor]:
    """Mask logits by frame, in the order of tracking."""
    track = track_ahead(tracker, seg_prompts(), frames, prompted, num_frames)
    return {frame.frame_index: frame.mask_logits for frame in track}


def one_by_one(tracker, frames):
    """Both decoders' levels of the frame that is asked for, when it is asked for."""
    return lambda index: tracker.encode_frames(frames[index][None])


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_in_batches_give_the_masks_of_single_frames(kind, preset):
    tracker = make_tracker(kind, preset=preset)
    frames = sam_frames(tracker, clip())
    sizes, wanted = count_calls(tracker.sam.vision_encoder), tracked(tracker, one_by_one(tracker, frames), NUM_FRAMES)
    assert sizes == [1] * len(wanted)
    # The prompted frames make a batch of their own: more levels of them are read
    left = [4, 3] if preset == "consistent" else [4, 1]
    for given in (frames, list(frames)):
        sizes.clear()
        found = tracked(tracker, FrameEncoder(tracker, given, batch_size=4), NUM_FRAMES)
        assert sizes == [2, *left] and list(found) == list(wanted)
        assert all(difference(found[index], wanted[index]) <= 1e-5 for index in wanted)
    sizes.clear()
    found = tracked(tracker, frames)  # one at a time on a CPU: the same bits
    assert sizes == [1] * len(wanted) and all(torch.equal(found[index], wanted[index]) for index in wanted)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_still(preset):
    tracker = make_tracker("sam2.1", preset=preset)
    frames = sam_frames(tracker, clip(1))
    wanted = tracked(tracker, one_by_one(tracker, frames), 1, [0])
    assert torch.equal(tracked(tracker, frames, prompted=[0])[0], wanted[0]) and not own_threads()


@pytest.mark.parametrize(("preset", "levels"), [("published", (9 - 2, 2)), ("consistent", (2, 9))])
def test_only_the_levels_that_a_preset_reads_are_computed(preset, levels):
    """Tracked frames are decoded by one of the two decoders; prompted ones have the levels of both."""
    tracker = make_tracker("sam2.1", preset=preset)
    computed = [count_calls(one.conv_s0) for one in (tracker.sam.mask_decoder, tracker.original_mask_decoder)]
    assert len(tracked(tracker, sam_frames(tracker, clip()))) == (7 if preset == "published" else 9)
    assert tuple(map(sum, computed)) == levels


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_encoder_computes_no_sines(kind):
    """The library computes them for each level of each frame; the tracker reads those of the lowest level, once."""
    tracker = make_tracker(kind)
    calls = []
    tracker.position_encoding.register_forward_pre_hook(lambda module, arguments: calls.append(arguments[0]))
    tracker.encode_frames(sam_frames(tracker, clip())[0][None])
    assert calls == []
    tracker.frame_position()
    assert len(calls) == 1


def test_frames_for_a_gpu_are_resized_and_normalised_there_with_the_same_bits():
    tracker = make_tracker("sam2.1")
    encoder = FrameEncoder(tracker, sam_frames(tracker, clip()))
    raw = [encoder.frames.read(index, True) for index in (3, 4)]
    assert all(pixels.dtype == torch.uint8 and pixels.shape == (30, 40, 3) for pixels, _ in raw)
    given = []
    tracker.sam.vision_encoder.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    encoder.encode(raw, FrameRequest(3))
    assert torch.equal(given[0], torch.stack([encoder.frames[3], encoder.frames[4]]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_no_more_than_a_batch_of_features_is_in_memory(batch_size, monkeypatch):
    tracker, counter, split = make_tracker("sam2.1"), FeatureCounter(), FrameFeatures.split

    def counted(features):
        parts = split(features)
        for part in parts:
            counter.add(part)
        return parts

    monkeypatch.setattr(FrameFeatures, "split", counted)
    encoder = FrameEncoder(tracker, sam_frames(tracker, clip(24)), batch_size)
    assert len(tracked(tracker, encoder, 24, [1])) == 24
    gc.collect()
    assert batch_size <= counter.peak <= batch_size + 1 and counter.alive == 0


class BrokenVideo:
    """A video whose frame 4 cannot be decoded, and whose frame 3 has a defect worth a warning."""

    def __init__(self):
        self.video, self.readers = clip(), set()

    def __len__(self):
        return len(self.video)

    def read(self, index):
        self.readers.add(threading.current_thread())
        if index == 4:
            raise ValueError("Frame 4 cannot be decoded.")
        return self.video.read(index)[0], ["Frame 3 is damaged."] * (index == 3)

    def warn(self, messages):
        self.readers.discard(threading.current_thread())
        for message in messages:
            warnings.warn(message, stacklevel=2)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_error_of_the_decoder_comes_after_the_frames_before_it(batch_size):
    tracker, video, found = make_tracker("sam2.1"), BrokenVideo(), []
    encoder = FrameEncoder(tracker, sam_frames(tracker, video), batch_size)
    with pytest.raises(ValueError, match="Frame 4 cannot"), pytest.warns(UserWarning, match="Frame 3 is damaged"):
        with torch.no_grad():
            for frame in track_ahead(tracker, seg_prompts(), encoder, [1], len(video)):
                found.append(frame.frame_index)
    assert found == [1, 2, 3] and not own_threads()
    assert threading.current_thread() not in video.readers and len(video.readers) == 1


def test_a_track_that_is_closed_ends_its_threads():
    tracker = make_tracker("sam2.1")
    with torch.no_grad():
        track = track_ahead(tracker, seg_prompts(), sam_frames(tracker, clip()), [0])
        next(track)
        assert own_threads()
        track.close()
    assert not own_threads()


def test_other_sequences_are_read_where_they_are_asked_for():
    """They may be of a user who did not write them for threads."""
    tracker, readers = make_tracker("sam2.1"), set()
    frames = sam_frames(tracker, clip())

    class Lazy(list):
        def __getitem__(self, index):
            readers.add(threading.current_thread())
            return frames[index]

    tracked(tracker, Lazy(range(NUM_FRAMES)))
    assert readers == {threading.current_thread()}


def test_frames_come_in_the_order_of_the_requests_only():
    tracker = make_tracker("sam2.1", preset="consistent")
    encoder = FrameEncoder(tracker, sam_frames(tracker, clip()))
    requests = frame_requests(tracker, NUM_FRAMES, PROMPTED)
    assert [one.frame_index for one in requests] == [2, 5, 3, 4, 6, 7, 8, 1, 0]
    with torch.no_grad(), encoder.ahead(requests) as features:
        assert isinstance(features(2), FrameFeatures)
        with pytest.raises(ValueError, match="Frame 3 is asked for, but the next of the requests is .*frame_index=5"):
            features(3)
    with pytest.raises(ValueError, match="needs `num_frames`"):
        next(track_ahead(tracker, seg_prompts(), encoder, PROMPTED))


# ---- features that are kept -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 2**16, 2**29])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_later_turn_encodes_nothing(preset, memory, tmp_path, monkeypatch):
    """What fits is read from memory, the rest from the disk; neither decodes a frame."""
    tracker = make_tracker("sam2.1", preset=preset)
    frames = sam_frames(tracker, clip())
    store = SamFeatureStore(FrameEncoder(tracker, frames), str(tmp_path), max_memory_bytes=memory)
    sizes, loaded, read, load = count_calls(tracker.sam.vision_encoder), [], [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: loaded.append(path) or load(path, **options))
    first = tracked(tracker, store, NUM_FRAMES)
    assert sum(sizes) == len(first) == len(store.stored) and not loaded and not own_threads()
    monkeypatch.setattr(frames, "read", lambda *arguments: read.append(arguments))
    sizes.clear()
    again = tracked(tracker, store, NUM_FRAMES)
    assert list(again) == list(first) and all(torch.equal(again[index], first[index]) for index in first)
    files = len(list(tmp_path.glob("*/*.pt")))
    assert sizes == read == [] and len(loaded) == files
    assert store.memory_nbytes <= memory and (store.nbytes == store.memory_nbytes) == (files == 0)
    assert {0: files == len(first), 2**16: 0 < files < len(first), 2**29: files == 0}[memory]


def test_levels_that_a_preset_never_reads_are_not_kept(tmp_path):
    tracker = make_tracker("sam2.1", preset="published")
    store = SamFeatureStore(FrameEncoder(tracker, sam_frames(tracker, clip())), str(tmp_path))
    tracked(tracker, store, NUM_FRAMES)
    both = tracker.encode_frames(sam_frames(tracker, clip())[0][None])
    levels = sum(level.nbytes for level in both.original)
    assert store.nbytes == both.nbytes * len(PROMPTED) + (both.nbytes - levels) * (NUM_FRAMES - 2 - len(PROMPTED))
    # A click on a tracked frame needs them: this one is encoded again, with the levels of both, and kept so
    sizes, before = count_calls(tracker.sam.vision_encoder), store.nbytes
    with torch.no_grad():
        for _ in range(2):
            assert store(7, tuned=False).original and store(2, tuned=False).original
    assert sizes == [1] and store.nbytes == before + levels
    tracked(tracker, store, NUM_FRAMES)
    assert sizes == [1]
