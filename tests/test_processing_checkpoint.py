"""The processor as part of a checkpoint: saving, remote code, parity with the published inference code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from processor_fixtures import TINY_IMAGE, box_part, clip, mask_part, tiny_processor, user, video_part

from sama.templates_sama import CHAT_TEMPLATES
from sama.video_sama import SamaVideo


torch.set_num_threads(1)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


# Saving, loading, remote code


def assert_same_batch(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0)


def test_save_and_load(tmp_path):
    settings = {"preset": "published", "turn_format": "published", "region_shape": "box", "chat_template": "phi3_chat"}
    processor = tiny_processor(**settings)
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.to_dict() == {key: value for key, value in processor.to_dict().items() if key != "auto_map"}
    assert loaded.chat_template == CHAT_TEMPLATES["phi3_chat"]
    assert (loaded.image_processor.size["height"], loaded.max_tiles, loaded.preset) == (TINY_IMAGE, 6, "published")
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    shared = json.loads((tmp_path / "config.json").read_text())
    assert shared["backbone_config"]["image_seq_length"] == 4 and not {"image_seq_length", "preset", "config"} & set(
        saved
    )
    assert saved["auto_map"] == {"AutoProcessor": "processing_sama.SamaProcessor"}
    messages = [user(video_part(), "What is ", mask_part(6), "?")]
    assert_same_batch(processor(messages), loaded(messages))
    changed = type(processor).from_pretrained(tmp_path, preset="consistent", max_tiles=1)
    assert (changed.preset, changed.max_tiles, changed.turn_format) == ("consistent", 1, "newline_after")
    changed = type(processor).from_pretrained(tmp_path, config=processor.config, preset="consistent")
    assert (changed.preset, processor.preset) == ("consistent", "published")
    with pytest.raises(ValueError, match="turn_format='mine' is unknown"):
        type(processor).from_pretrained(tmp_path, turn_format="mine")


REMOTE_SCRIPT = """
import sys, numpy, torch
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not any(name == "sama" or name.startswith("sama.") for name in sys.modules)
content = [{"type": "video", "path": sys.argv[2]}, {"type": "text", "text": "What is "},
           {"type": "region", "frame": 13, "box": [40, 60, 100, 140]}, {"type": "text", "text": "?"}]
batch = processor.apply_chat_template([{"role": "user", "content": content}])
torch.save(dict(batch), sys.argv[3])
processor.save_pretrained(sys.argv[4])
"""


@pytest.mark.slow  # tests/test_remote_code.py does the same with the model
def test_remote_code_in_a_process_that_never_saw_the_repository(processor, tmp_path):
    processor.save_pretrained(tmp_path / "checkpoint")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment.update(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "home"), CUDA_VISIBLE_DEVICES="")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    arguments = [tmp_path / "checkpoint", clip("carphone_pristine"), tmp_path / "batch.pt", tmp_path / "again"]
    command = [sys.executable, "-c", REMOTE_SCRIPT, *map(str, arguments)]
    subprocess.run(command, cwd=elsewhere, env=environment, check=True, timeout=300)
    part = {"type": "video", "path": clip("carphone_pristine")}
    here = processor([user(part, "What is ", box_part(13, (40, 60, 100, 140)), "?")])
    assert_same_batch(dict(here), torch.load(tmp_path / "batch.pt"))
    for saved in (tmp_path / "checkpoint", tmp_path / "again"):
        for path in saved.glob("*.py"):
            assert path.read_bytes() == (Path(__file__).parents[1] / path.name).read_bytes()
        assert (saved / "qformer_tokenizer").is_dir()


# Parity with the published inference code


@pytest.fixture(scope="module")
def golden(golden_dir):
    safetensors = pytest.importorskip("safetensors")
    from transformers import AutoTokenizer

    processor = tiny_processor(
        tokenizer=AutoTokenizer.from_pretrained(golden_dir / "tokenizer"),
        qformer_tokenizer=AutoTokenizer.from_pretrained(golden_dir / "qformer_tokenizer"),
        chat_template="phi3_chat",
        image_size=448,
        image_seq_length=256,
        region_mask_size=112,
        max_tiles=12,
        turn_format="published",
        preset="published",
    )
    with safetensors.safe_open(golden_dir / "official_state_dict.safetensors", "pt") as weights:
        embeddings = weights.get_tensor("language_model.model.embed_tokens.weight")
    with safetensors.safe_open(golden_dir / "golden.safetensors", "pt") as tensors:
        values = {key: tensors.get_tensor(key) for key in tensors.keys() if not key.startswith("mask")}
    return processor, values, embeddings.float(), json.loads((golden_dir / "golden.json").read_text())


def assert_same_text(batch, golden_embeds, embeddings, image_token):
    """Text rows of the official input are the embeddings of our tokens; all other rows are our placeholders."""
    ids = batch["input_ids"][0]
    assert len(ids) == golden_embeds.shape[1]
    is_text = batch["mm_token_type_ids"][0] == 0
    assert (ids[~is_text] == image_token).all()
    torch.testing.assert_close(embeddings[ids[is_text]], golden_embeds[0][is_text], rtol=0, atol=0)


def test_golden_video_text(golden):
    processor, values, embeddings, facts = golden
    video = SamaVideo.open(values["video_uint8"].numpy())
    choice = processor.choose_frames(video)
    assert choice.context == facts["sparse_indices"] and choice.prompted == [0, 1, 2, 3, 4]
    part = {"type": "video", "video": video}
    plain = processor([user(part, facts["question_no_region"])])
    assert_same_text(plain, values["inputs_embeds_no_region"], embeddings, processor.image_token_id)
    assert plain["dense_frames"].tolist() == facts["dense_indices"]
    pieces = facts["question_two_regions"].split("<mask>")
    masks = [{"type": "region", "frame": 0, "mask": np.ones((video.height, video.width))} for _ in range(2)]
    pointed = processor([user(part, pieces[0], masks[0], pieces[1], masks[1], pieces[2])])
    assert_same_text(pointed, values["inputs_embeds_two_regions"], embeddings, processor.image_token_id)
    ids = pointed["qformer_input_ids"][0].tolist()
    assert ids[0] == 101 and ids[-1] == 102 and ids.count(30523) == ids.count(30524) == 2
    start = ids.index(30528)
    assert ids[start : start + 4] == [30528, 30523, 30524, 30529]


def test_golden_image_text(golden):
    processor, values, embeddings, facts = golden
    part = {"type": "image", "image": values["image_uint8"].numpy()}
    batch = processor([user(part, facts["question_image"])])
    assert_same_text(batch, values["inputs_embeds_image"], embeddings, processor.image_token_id)


def test_files_of_version_0_1_are_read(tmp_path):
    """`grounding_policy`, `frame_policy` and `layout` are `preset` and `turn_format`, `release` is `published`."""
    tiny_processor().save_pretrained(tmp_path)
    for name, old in (
        ("config.json", {"grounding_policy": "release"}),
        ("processor_config.json", {"grounding_policy": "release", "frame_policy": "release", "layout": "release"}),
    ):
        values = json.loads((tmp_path / name).read_text())
        for new in ("preset", "turn_format"):
            values.pop(new, None)
        (tmp_path / name).write_text(json.dumps(values | old))
    loaded = type(tiny_processor()).from_pretrained(tmp_path)
    assert (loaded.preset, loaded.turn_format, loaded.config.preset) == ("published", "newline_after", "published")
