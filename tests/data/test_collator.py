"""The batch: labels on answers only, masks and frames of all samples, and what a skipped sample leaves."""

import pytest
import torch
from data_fixtures import copied, mixture, render, source, toy
from fixture_sources import FIXTURES
from processor_fixtures import TINY_SAM, tiny_processor

from sama.data.catalogue import open_source
from sama.data.collator import IGNORED, SamaCollator, blank_sample
from sama.data.mixture import load_mixture
from sama.data.records import DataError
from sama.data.sampler import MixtureSampler


NAMES = ("sama239k_conversation", "llava", "refcoco", "osprey_short", "mevis", "gcg_flickr")


def batch_of(tmp_path, names=NAMES, **settings):
    samples = [render(name, tmp_path, index=0, **settings) for name in names]
    processor = tiny_processor()
    return processor, samples, SamaCollator(processor)(samples)


def toy_source():
    return open_source(toy(), None, None, "raise")


def test_labels_are_the_answers_and_their_ends(tmp_path):
    processor, samples, batch = batch_of(tmp_path)
    assert batch["labels"].shape == batch["input_ids"].shape
    taught = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][taught], batch["input_ids"][taught])
    for sample, row in zip(samples, batch["labels"], strict=True):
        answers = []
        for message in sample.messages:
            if message["role"] == "assistant":
                text = processor.apply_chat_template([{"role": "user", "content": "q"}, message], tokenize=False)
                answers.append(text.split("assistant\n")[1].strip())
        assert processor.tokenizer.decode(row[row != IGNORED]) == "".join(answers)
    assert not (taught & (batch["attention_mask"] == 0)).any()


def test_masks_and_frames_fit_each_other_and_the_text(tmp_path):
    processor, samples, batch = batch_of(tmp_path)
    segs = (batch["input_ids"] == processor.seg_token_id).sum(dim=1).tolist()
    assert segs == [len(masks) for masks in batch["target_masks"]] and min(segs) == 0
    counts = batch["sam_frame_counts"].tolist()
    assert counts == [masks.shape[1] for masks in batch["target_masks"]]
    assert batch["sam_pixel_values"].shape == (sum(counts), 3, TINY_SAM, TINY_SAM)
    assert all(masks.dtype == torch.bool for masks in batch["target_masks"])
    start = 0
    for sample, count in zip(samples, counts, strict=True):
        for row, frame in enumerate(sample.frames):
            expected = processor.sam_pixel_values(sample.video[frame])
            assert torch.equal(batch["sam_pixel_values"][start + row], expected)
        start += count


def test_batch_without_masks_has_the_same_keys(tmp_path):
    _, _, batch = batch_of(tmp_path, ("llava", "osprey_short"))
    assert batch["sam_pixel_values"].shape == (0, 3, TINY_SAM, TINY_SAM)
    assert batch["sam_frame_counts"].tolist() == [0, 0]
    assert [tuple(masks.shape) for masks in batch["target_masks"]] == [(0, 0, 0, 0)] * 2


def test_each_sample_keeps_its_turn_format(tmp_path):
    processor, samples, batch = batch_of(tmp_path, preset="published")
    assert len({sample.turn_format for sample in samples}) == len(samples)
    for sample, ids, mask in zip(samples, batch["input_ids"], batch["attention_mask"], strict=True):
        alone = processor.apply_chat_template(
            sample.messages, add_generation_prompt=False, turn_format=sample.turn_format, frames=sample.frame_choice
        )
        assert torch.equal(ids[mask.bool()], alone["input_ids"][0])


def test_skipped_samples_are_left_out(tmp_path):
    processor = tiny_processor()
    sample = render("refcoco", tmp_path)
    batch = SamaCollator(processor)([None, sample, None])
    assert len(batch["input_ids"]) == len(batch["target_masks"]) == 1
    assert (batch["labels"] != IGNORED).any()


def test_batch_of_skipped_samples_teaches_nothing():
    batch = SamaCollator(tiny_processor())([None, None])
    assert len(batch["input_ids"]) == 1 and (batch["labels"] == IGNORED).all()
    assert batch["sam_frame_counts"].tolist() == [0] and len(blank_sample().targets) == 0


def test_file_to_batch_through_workers(tmp_path):
    processor = tiny_processor()
    path = tmp_path / "mix.yaml"
    path.write_text("sources: {toy: {format: toy_world, options: {samples: 8}}}")
    found = load_mixture(path, processor, root=FIXTURES, cache=tmp_path)
    sampler = MixtureSampler(found.lengths, batch_size=4)
    loader = torch.utils.data.DataLoader(found, 4, sampler=sampler, num_workers=1, collate_fn=SamaCollator(processor))
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4]
    alone = SamaCollator(processor)([found[index] for index in list(MixtureSampler(found.lengths, 4))[:4]])
    for key, value in alone.items():
        same = value if key != "target_masks" else torch.cat([masks.ravel() for masks in value])
        other = batches[0][key] if key != "target_masks" else torch.cat([m.ravel() for m in batches[0][key]])
        assert torch.equal(same, other), key


def test_collator_is_deterministic(tmp_path):
    processor = tiny_processor()
    found = mixture({source("sama239k_conversation", tmp_path): 1})
    first, second = (SamaCollator(processor)([found[0], found[1]]) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first if key != "target_masks")


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_a_frame_that_breaks_in_the_collator_costs_its_sample(action, tmp_path, caplog):
    """Only the first frame is decoded before."""
    root = copied(tmp_path)
    (root / "video_datas/mevis/train/JPEGImages/vid_a/00003.jpg").write_bytes(b"no picture")
    found = mixture({source("mevis", tmp_path / "cache", root): 1, toy_source(): 1}, on_error=action)
    samples = [found[index] for index in range(4)]
    broken = next(sample for sample in samples if sample.id == "mevis/vid_a")
    collator = SamaCollator(tiny_processor(), leave_out=found.leave_out)
    if action == "raise":
        with pytest.raises(DataError, match=r"mevis, item mevis/vid_a: .*00003\.jpg"):
            collator(samples)
        return
    batch, rest = collator(samples), [sample for sample in samples if sample is not broken]
    assert torch.equal(batch["input_ids"], collator(rest)["input_ids"]) and len(batch["input_ids"]) == 3
    assert found.report()["mevis"] == {"read": 1, "skipped": 1, "shortened": 0, "rounds left out": 0}
    assert "skipped: mevis, item mevis/vid_a" in caplog.text
    assert (collator([broken])["labels"] == IGNORED).all()


def test_samples_carry_seeds_for_their_points():
    found = mixture({toy_source(): 1})
    samples = [found[index] for index in range(4)]
    batch = SamaCollator(tiny_processor())(samples)
    assert batch["point_seeds"].tolist() == [sample.point_seed for sample in samples]
    assert len(set(batch["point_seeds"].tolist())) == 4 and "sam_prompted" not in batch
    assert found[0].point_seed != found[len(found)].point_seed  # the next epoch compares other points


def test_frames_for_memory_have_targets_and_are_not_prompted(tmp_path):
    found, plain = mixture({toy_source(): 1}, memory_frames=2), mixture({toy_source(): 1})
    samples = [found[index] for index in range(6)]
    batch = SamaCollator(tiny_processor(), with_memory=True)(samples)
    assert batch["sam_prompted"].dtype == torch.bool and not batch["sam_prompted"].all()
    assert batch["sam_frame_counts"].tolist() == [len(sample.frames) for sample in samples]
    start = 0
    for index, sample in enumerate(samples):
        frames, prompted = sample.frames, batch["sam_prompted"][start : start + len(sample.frames)]
        start += len(frames)
        assert frames == sorted(set(frames)) and sample.targets.shape[1] == len(frames)
        kept = [frame for frame, given in zip(frames, prompted.tolist(), strict=True) if given]
        assert kept == sample.prompted == plain[index].frames
        if sample.targets.size:
            rows = [frames.index(frame) for frame in sample.prompted]
            assert (sample.targets[:, rows] == plain[index].targets).all()
            assert len(frames) == len(sample.prompted) + min(2, len(sample.video) - len(sample.prompted))


def test_stills_and_text_have_no_frames_for_memory(tmp_path):
    samples = [render(name, tmp_path, memory_frames=3) for name in ("refcoco", "llava")]
    batch = SamaCollator(tiny_processor(), with_memory=True)(samples)
    assert batch["sam_prompted"].tolist() == [True]
    assert SamaCollator(tiny_processor(), with_memory=True)([None])["sam_prompted"].shape == (0,)
