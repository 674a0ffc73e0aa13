"""Mixtures and their order: determinism, repeats, skipping, reports, grouping and resuming."""

import json
import logging
from collections import Counter

import numpy as np
import pytest
from data_fixtures import SIZE, copied, mixture, source, toy
from fixture_sources import SOURCES
from processor_fixtures import noise_video
from tiny_backbones import tiny_backbone
from torch.utils.data import DataLoader

from sama.data.catalogue import open_source
from sama.data.lengths import estimate_lengths
from sama.data.records import DataError
from sama.data.sampler import MixtureSampler
from sama.data.store import KINDS
from sama.video_sama import SamaVideo


def told(sample):
    """Everything of a sample that can be compared."""
    parts = [part for message in sample.messages for part in message["content"]]
    texts = [part.get("text") for part in parts]
    regions = [(part["region"].frame, part["region"].mask.tobytes()) for part in parts if "region" in part]
    return sample.id, texts, regions, sample.frames, sample.targets.tobytes()


def test_same_seed_epoch_and_index_give_the_same_bytes(tmp_path):
    weights = {"mevis": 4, "sama239k_conversation": 1, "refcoco": 2}
    first, second = (mixture({source(n, tmp_path): w for n, w in weights.items()}) for _ in range(2))
    order = range(2 * len(first))
    assert [told(first[i]) for i in order] == [told(second[i]) for i in reversed(order)][::-1]
    other = mixture({source(n, tmp_path): w for n, w in weights.items()}, seed=1)
    assert [told(first[i]) for i in order] != [told(other[i]) for i in order]
    size = len(first)
    assert [told(first[i]) for i in range(size)] != [told(first[i + size]) for i in range(size)]


def test_repeats_draw_anew(tmp_path):
    found = mixture({source("mevis", tmp_path): 30})
    assert [found.locate(index) for index in range(4)] == [(0, 0), (0, 1), (0, 0), (0, 1)]
    assert len({str(told(found[index])) for index in range(0, 60, 2)}) > 1


def test_partial_weight_takes_other_records_each_epoch():
    source = open_source(toy(40))
    found = mixture({source: 1.5})
    assert len(found) == len(found.lengths) == 60
    epochs = [Counter(found.locate(e * 60 + i)[1] for i in range(60)) for e in range(2)]
    for counts in epochs:
        assert set(counts) == set(range(40)) and Counter(counts.values()) == {1: 20, 2: 20}
    assert epochs[0] != epochs[1]


# specs/data.md 6.2: lists of lengths that ignored the repeats left the last 133,000 samples out of every epoch


def test_one_length_for_every_repeated_sample_and_all_are_drawn(tmp_path):
    sources = {"ref_sav": 4, "mevis": 4, "revos": 10, "ref_youtube_vos": 4, "sama239k_description": 5}
    found = mixture({source(name, tmp_path): weight for name, weight in sources.items()})
    assert len(found.lengths) == len(found) == sum(len(source(n, tmp_path)) * w for n, w in sources.items())
    order = list(MixtureSampler(found.lengths, batch_size=2, seed=3))
    assert sorted(order) == list(range(len(found)))
    drawn = Counter(found.sources[found.locate(index)[0]].name for index in order)
    assert drawn["sama239k_description"] == 20


@pytest.mark.parametrize("with_aggregator", [True, False])
def test_estimated_lengths_count_context_tokens_of_models_that_have_them(with_aggregator):
    _, processor = tiny_backbone("internvl", with_aggregator=with_aggregator)
    frames = processor.choose_frames(SamaVideo.open(noise_video(40, 56, 56)))
    columns = {"kind": KINDS.index("video"), "frames": 40, "turns": 3, "characters": 120}
    found = estimate_lengths({name: np.array([value]) for name, value in columns.items()}, processor)
    context = 3 * len(frames.context) if with_aggregator else 0
    assert found.tolist() == [len(frames.dense) * processor.max_frame_tokens + context + 30]


# specs/data.md 6.3: 13 frames gave 4 grounding frames and 5 masks


@pytest.mark.parametrize("index", [0, 1])
def test_short_videos_have_as_many_masks_as_frames(index, tmp_path):
    sample = mixture({source("mevis", tmp_path): 1})[index]
    assert len(sample.video) in (3, 13)
    assert sample.targets.shape == (len(sample.objects), len(sample.frames), *SIZE)
    assert sorted(set(sample.frames)) == sample.frames and sample.frames[0] >= 0


def broken(tmp_path):
    root = copied(tmp_path)
    (root / "video_datas/mevis/train/JPEGImages/vid_b/00001.jpg").unlink()
    return source("mevis", tmp_path / "cache", root)


def test_broken_sample_raises_with_its_place(tmp_path):
    with pytest.raises(DataError, match=r"mevis, item mevis/vid_b, field 'video.frames\[1\]': there is no file"):
        mixture({broken(tmp_path): 1})[0]


def test_skipped_sample_is_counted_and_none_comes_instead(tmp_path, caplog):
    found = mixture({broken(tmp_path): 2, open_source(toy(4)): 1}, on_error="skip")
    with caplog.at_level(logging.WARNING):
        samples = [found[index] for index in range(len(found))]
    assert [sample is None for sample in samples] == [True, False, True, False] + [False] * 4
    assert found.report()["mevis"] == {"read": 2, "skipped": 2, "shortened": 0, "rounds left out": 0}
    assert found.report()["toy"]["read"] == 4
    assert "skipped: mevis, item mevis/vid_b" in caplog.text


def test_workers_count_for_the_main_process(tmp_path):
    found = mixture({broken(tmp_path): 2, open_source(toy(4)): 1}, on_error="skip")
    loader = DataLoader(found, batch_size=2, num_workers=2, collate_fn=list)
    ids = [None if sample is None else sample.id for batch in loader for sample in batch]
    assert found.report()["mevis"]["skipped"] == 2 and found.report()["toy"]["read"] == 4
    alone = [found[index] for index in range(len(found))]
    assert ids == [None if sample is None else sample.id for sample in alone]
    assert found.report()["mevis"]["skipped"] == 4 and found.report()["toy"]["read"] == 8


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_broken_mask_costs_the_samples_that_need_it(action, tmp_path):
    root = copied(tmp_path)
    path = root / SOURCES["mevis"][1]["masks"]
    content = json.loads(path.read_text())
    assert isinstance(content["8"][0], list)  # a list of codes, which is united when it is read
    content["8"][0][0]["counts"] = content["8"][0][0]["counts"][:-2]
    cut = next(mask for mask in content["7"] if mask)
    cut["counts"] = cut["counts"][:-2]
    path.write_text(json.dumps(content))
    found = mixture({source("mevis", tmp_path / "cache", root): 20}, on_error=action)
    if action == "skip":
        assert {found[index].id for index in range(len(found)) if found[index]} == {"mevis/vid_a"}
        return
    messages = set()
    for index in range(0, len(found), 2):
        with pytest.raises(DataError, match="mevis, video_datas/mevis/train/mask_dict.json, item mevis/vid_b") as told:
            found[index]
        messages.add(str(told.value).split("field ")[1])
    assert {message[:5] for message in messages} == {"'8[0]", "'obje"}
    assert all("damaged" in message for message in messages)


def test_resolved_mixture_is_printed_and_saved(tmp_path):
    found = mixture({source("refcoco", tmp_path): 4, open_source(toy(10)): 0.5}, seed=7)
    lines = str(found).splitlines()
    assert lines[1].split() == ["refcoco", "4", "2", "8", "61.5%"] and lines[-1].split() == ["together", "13"]
    found.save(tmp_path / "mixture.json")
    saved = json.loads((tmp_path / "mixture.json").read_text())
    assert saved["seed"] == 7 and saved["samples"] == 13
    assert saved["sources"]["refcoco"] | {"files": 0} == {
        "weight": 4, "records": 2, "samples": 8, "format": "refcoco", "files": 0,
        "left out by the reader": {"empty sentences": 1},
    }  # fmt: skip


def test_mixture_without_sources_or_samples():
    with pytest.raises(DataError, match="'sources': is empty"):
        mixture({})
    with pytest.raises(DataError, match="sources.toy': has no sample with this weight"):
        mixture({open_source(toy(4)): 0.1})
    with pytest.raises(IndexError, match="no sample -1"):
        mixture({open_source(toy(4)): 1})[-1]


# The order

LENGTHS = np.repeat([2000, 900, 60], [300, 500, 800])
SAMPLE_KINDS = np.repeat(["video", "image", "text"], [300, 500, 800])


def test_order_has_every_index_once_in_every_epoch():
    sampler = MixtureSampler(LENGTHS, batch_size=4, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == list(range(1600)) and sorted(second) == list(range(1600, 3200))
    assert [index - 1600 for index in second] != first
    assert len(sampler) == 1600


def test_batches_are_of_like_length_and_steps_of_mixed_kinds():
    order = np.array(list(MixtureSampler(LENGTHS, batch_size=4)))
    batches = SAMPLE_KINDS[order].reshape(-1, 4)
    assert np.mean([len(set(batch)) == 1 for batch in batches]) > 0.97
    steps = batches[: len(batches) // 8 * 8].reshape(-1, 8, 4)  # eight ranks
    mixed = np.mean([len({kind for batch in step for kind in batch}) > 1 for step in steps])
    assert mixed > 0.95
    plain = np.array(list(MixtureSampler(LENGTHS, batch_size=4, grouped=False)))
    assert np.mean([len(set(batch)) == 1 for batch in SAMPLE_KINDS[plain].reshape(-1, 4)]) < 0.3


def test_ranks_divide_the_order():
    whole = np.array(list(MixtureSampler(LENGTHS, batch_size=4)))
    shares = [list(MixtureSampler(LENGTHS, 4, 0, rank, 3)) for rank in range(3)]
    assert {len(share) for share in shares} == {len(MixtureSampler(LENGTHS, 4, 0, 0, 3))} == {1600 // 12 * 4}
    together = np.stack([np.reshape(share, (-1, 4)) for share in shares], axis=1).ravel()
    np.testing.assert_array_equal(together, whole[: len(together)])


@pytest.mark.parametrize("ranks", [1, 2])
def test_resumes_exactly_in_the_middle_of_an_epoch(ranks):
    sampler = MixtureSampler(LENGTHS, 4, 5, 0, ranks)
    sampler.set_epoch(2)
    whole = list(sampler)
    reading = iter(sampler)
    read = [next(reading) for _ in range(123)]
    again = MixtureSampler(LENGTHS, 4, 5, 0, ranks)
    again.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    again.set_epoch(2)  # as a trainer says at the start of the epoch that it resumes
    assert read + list(again) == whole
    again.set_epoch(3)
    assert len(list(again)) == len(whole)
    # Workers had fetched ahead: 40 samples were trained on
    again.load_state_dict(sampler.state_dict(consumed=40))
    assert whole[:40] + list(again) == whole


def test_order_is_not_resumed_over_another_mixture():
    state = MixtureSampler(LENGTHS, 4).state_dict()
    with pytest.raises(ValueError, match="samples 1600 instead of 1599, batch_size 4 instead of 8"):
        MixtureSampler(LENGTHS[1:], 8).load_state_dict(state)
    with pytest.raises(ValueError, match="seed 0 instead of 1"):
        MixtureSampler(LENGTHS, 4, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="rank=2, num_ranks=2"):
        MixtureSampler(LENGTHS, 4, rank=2, num_ranks=2)


def test_fewer_samples_than_a_batch():
    assert sorted(MixtureSampler([5, 6, 7], batch_size=8)) == [0, 1, 2]
