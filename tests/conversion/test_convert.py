"""Conversion of every kind of checkpoint and storage format, and the errors for broken ones."""

import json
import runpy
import sys
import weakref
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import torch
from checkpoint import CHECKPOINT
from parity import check_golden
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, Sam2VideoModel

from sama.conversion import convert as convert_checkpoint
from sama.conversion import files as checkpoint_files
from sama.conversion.convert import ConversionRequest, convert, parse_arguments
from sama.conversion.files import CheckpointError, WeightFiles
from sama.conversion.keys import map_instructblip
from sama.conversion.pieces import AGGREGATOR, ORIGINAL_DECODER, SAM, split_grouped_qkv
from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor


SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> dict:
    """A tiny SAMA in the release's format, its weights, the converted checkpoint, and the weights loaded from it."""
    folder = tmp_path_factory.mktemp("released")
    weights, ours = foreign.write_release(folder / "sama", "sama"), folder / "ours"
    report = convert_source(folder / "sama", "sama", ours)
    state = load(ours).state_dict()
    return {"folder": folder / "sama", "weights": weights, "ours": ours, "report": report, "state": state}


def convert_source(source: Path, kind: str, to: Path, **others):
    """Converts one source with the sizes of the tiny weights."""
    sizes = to.parent / "sizes.json"
    sizes.write_text(json.dumps(foreign.SIZES), encoding="utf-8")
    return convert(ConversionRequest([(source, kind)], to, sizes=None if "into" in others else sizes, **others))


def load(folder: Path) -> SamaForConditionalGeneration:
    """Loads a converted checkpoint and checks that no weight is missing or unexpected."""
    model, info = SamaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    return model


# The repository's own recording is `official_long` without its masks, which `official_tiny` has as well
@pytest.mark.parametrize(
    "name", ["repository", "official_tiny", pytest.param("official_long", marks=pytest.mark.slow)]
)
def test_golden_numbers(name, request):
    if name == "repository":
        folder = request.getfixturevalue("repository_golden")
    else:
        folder = Path(__file__).parents[3] / "shared" / "golden" / name
        if not folder.is_dir():
            pytest.skip(f"no whole recording in {folder}: its masks are not compared")
    found = check_golden.check(folder)
    print(check_golden.table(found))  # noqa: T201, shown if the test fails
    assert [finding.quantity for finding in found if not finding.ok] == []


def test_release_loads_with_correct_weights(released):
    state, weights, report = released["state"], released["weights"], released["report"]
    layer = "model.layers.1.self_attn.q_proj.weight"
    qkv = weights["vision_model.encoder.layers.1.attn.qkv.bias"]
    sam, points = "grounding_encoder.sam2_model.", "sam_prompt_encoder.point_embeddings"
    expected = {
        f"model.backbone.language_{layer}": weights[f"language_model.{layer}"],
        "lm_head.weight": weights["language_model.lm_head.weight"],
        "model.backbone.vision_tower.encoder.layer.1.attention.k_proj.bias": qkv[
            foreign.VISION_WIDTH : 2 * foreign.VISION_WIDTH
        ],
        "model.backbone.multi_modal_projector.linear_2.bias": weights["mlp1.3.bias"],
        "model.seg_projection.2.weight": weights["text_hidden_fcs.2.weight"],
        "model.region_encoder.shape_projection.4.bias": weights["Qformer_mask_proj.layers.2.bias"],
        f"{AGGREGATOR}region_encoder.shape_projection.2.bias": weights["Qformer_mask_proj_st.layers.1.bias"],
        f"{AGGREGATOR}injection.value_projection.weight": weights["Qformer_temp_attn_v.weight"],
        f"{AGGREGATOR}temporal_queries": weights["temporal_Qformer_query_tokens"],
        f"{SAM}memory_encoder.memory_fuser.layers.1.scale": weights[f"{sam}memory_encoder.fuser.layers.1.gamma"],
        f"{SAM}prompt_encoder.point_embed.weight": torch.cat([weights[f"{sam}{points}.{n}.weight"] for n in range(4)]),
        f"{ORIGINAL_DECODER}conv_s0.bias": weights[f"{sam}sam_mask_decoder.conv_s0.bias"],
    }
    for name, values in expected.items():
        assert torch.equal(state[name], values), name
    assert all(tensor.dtype == torch.bfloat16 for tensor in state.values())
    assert report.used == len(weights) - 2 and report.filled == len(state)
    assert sum(map(len, report.unused.values())) == 2 and report.fresh == []
    assert report.copied and all(name.startswith(ORIGINAL_DECODER) for name in report.copied)


def test_release_has_the_published_settings(released):
    config = load(released["ours"]).config
    processor = SamaProcessor.from_pretrained(released["ours"], trust_remote_code=True)
    assert (config.preset, config.region_shape, config.null_region_scale) == ("published", "box", 1.0)
    assert (config.trained, config.round_rotary_to_bfloat16) == (True, True)
    policies = (processor.preset, processor.turn_format, processor.config.region_shape)
    assert policies == ("published", "newline_after", "box")
    sizes = (processor.sam_image_size, processor.image_processor.size["height"], config.region_mask_size)
    assert sizes == (128, 56, 8)
    assert config.seg_token_id == processor.tokenizer.convert_tokens_to_ids("[SEG]")
    assert config.qformer_mask_token_id == processor.qformer_tokenizer.convert_tokens_to_ids("<mask>") == 12
    generation = json.loads((released["ours"] / "generation_config.json").read_text())
    assert config.round_memory_to_bfloat16
    ends = ["<|im_end|>", "<|endoftext|>"]
    assert processor.tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == ends
    assert "sama" in (released["ours"] / "README.md").read_text()


def test_folder_loads_with_its_own_code(released):
    """test_remote_code.py shows that the small checkpoint's code needs no repository; this folder has the same."""
    ours = released["ours"]
    code = sorted(path.name for path in CHECKPOINT.glob("*.py"))
    assert sorted(path.name for path in ours.glob("*.py")) == code
    assert all((ours / name).read_bytes() == (CHECKPOINT / name).read_bytes() for name in code)
    for name in ("config.json", "processor_config.json"):
        found, expected = (json.loads((folder / name).read_text())["auto_map"] for folder in (ours, CHECKPOINT))
        assert found == expected
    model = AutoModel.from_pretrained(ours, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(ours, trust_remote_code=True)
    assert all(type(one).__module__.startswith("transformers_modules.") for one in (model, processor))


@pytest.mark.parametrize("storage", ["shards", "shards without index", "pt", "nested pth"])
def test_storage_formats_give_the_same_weights(released, storage, tmp_path):
    source = tmp_path / "foreign"
    source.mkdir()
    foreign.write_config(source)
    foreign.write_tokenizers(source)
    weights = released["weights"]
    if storage.startswith("shards"):
        foreign.write_shards(source, weights, 3)
        if storage == "shards without index":
            (source / "model.safetensors.index.json").unlink()
    elif storage == "pt":
        torch.save(weights, source / "model.pt")
    else:
        torch.save({"model": weights, "epoch": 3}, source / "model.pth")
    convert_source(source, "sama", tmp_path / "ours", max_shard_size="5MB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) > 1
    again = load(tmp_path / "ours").state_dict()
    assert all(torch.equal(values, again[name]) for name, values in released["state"].items())


def test_at_most_one_shard_is_in_memory(released, tmp_path, monkeypatch):
    """Counts the bytes of the converted tensors that are alive when the next one is read."""
    limit, alive, peaks = 4_000_000, {}, []
    read, write = WeightFiles.read, convert_checkpoint.write_weights

    def counting_read(files, name):
        peaks.append(sum(alive.values()))
        return read(files, name)

    def counting_write(folder, planned, load, max_shard_size):
        def counting_load(name):
            tensor = load(name)
            alive[name] = tensor.nbytes
            weakref.finalize(tensor, alive.pop, name)
            return tensor

        write(folder, planned, counting_load, max_shard_size)

    monkeypatch.setattr(WeightFiles, "read", counting_read)
    monkeypatch.setattr(convert_checkpoint, "write_weights", counting_write)
    convert_source(released["folder"], "sama", tmp_path / "ours", max_shard_size=limit)
    assert sum(tensor.nbytes for tensor in released["weights"].values()) > 3 * limit
    assert 0 < max(peaks) <= limit


def test_one_source_file_is_open_at_a_time(released, tmp_path):
    foreign.write_shards(tmp_path, released["weights"], 3)
    files = WeightFiles(tmp_path)
    opened = [files.read(name) is not None and files.tensors[name].file for name in files.tensors]
    assert len(set(opened)) == 3
    assert opened == sorted(opened)  # each is opened once if tensors are read in file order


def test_internlm2_becomes_llama(tmp_path):
    weights = foreign.write_release(tmp_path / "foreign", "sama", "internlm2")
    convert_source(tmp_path / "foreign", "sama", tmp_path / "ours")
    model = load(tmp_path / "ours")
    state, wqkv = model.state_dict(), weights["language_model.model.layers.0.attention.wqkv.weight"]
    # Two groups of 16 rows: two query heads of 4 rows, one key head, one value head
    rows = {
        "q": [*range(8), *range(16, 24)],
        "k": [*range(8, 12), *range(24, 28)],
        "v": [*range(12, 16), *range(28, 32)],
    }
    for letter, chosen in rows.items():
        assert torch.equal(
            state[f"model.backbone.language_model.layers.0.self_attn.{letter}_proj.weight"], wqkv[chosen]
        )
    w1 = weights["language_model.model.layers.1.feed_forward.w1.weight"]
    assert torch.equal(state["model.backbone.language_model.layers.1.mlp.gate_proj.weight"], w1)
    text = model.config.text_config
    assert text.model_type == "llama" and not model.config.round_rotary_to_bfloat16
    assert text.rope_parameters == {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}


def test_grouped_split_with_published_numbers():
    """8B: 8 groups of 4 query heads, key, value, each of 128 rows."""
    rows = torch.arange(6144)
    assert split_grouped_qkv("q", 8, 128)(rows)[512].item() == 768  # the second group's first query row
    assert split_grouped_qkv("k", 8, 128)(rows)[:2].tolist() == [512, 513]
    assert split_grouped_qkv("v", 8, 128)(rows)[128].item() == 768 + 640
    assert [len(split_grouped_qkv(letter, 8, 128)(rows)) for letter in "qkv"] == [4096, 1024, 1024]


def test_sa2va_starts_with_instructblip(tmp_path):
    weights = foreign.write_release(tmp_path / "foreign", "sa2va")
    blip = foreign.random_weights(foreign.instructblip_shapes(), seed=5, dtype=torch.float32)
    torch.save({"model": blip}, tmp_path / "instructblip.pth")
    sizes = tmp_path / "foreign" / "sizes.json"
    sources = [(tmp_path / "foreign", "sa2va"), (tmp_path / "instructblip.pth", "instructblip")]
    report = convert(ConversionRequest(sources, tmp_path / "ours", sizes=sizes))
    model = load(tmp_path / "ours")
    state, layer = model.state_dict(), "encoder.layer.2.crossattention"
    key = blip[f"Qformer.bert.{layer}.self.key.weight"].bfloat16()
    assert torch.equal(state[f"{AGGREGATOR}spatial_qformer.{layer}.attention.key.weight"], key)
    assert torch.equal(state[f"{AGGREGATOR}spatial_norm.bias"], blip["ln_vision.bias"].bfloat16())
    assert torch.equal(state[f"{AGGREGATOR}spatial_queries"], blip["query_tokens"].bfloat16())
    assert torch.equal(state["model.seg_projection.0.bias"], weights["text_hidden_fcs.0.bias"])
    assert f"{AGGREGATOR}temporal_queries" in report.fresh and f"{AGGREGATOR}spatial_queries" not in report.fresh
    assert state[f"{AGGREGATOR}injection.query_projection.weight"].std() > 0
    config = model.config
    assert (config.trained, config.preset, config.null_region_scale) == (False, "consistent", 0.0)


def test_instructblip_as_transformers_stores_it():
    names = {"query_tokens", "vision_model.post_layernorm.weight", "qformer.embeddings.layernorm.weight",
             "qformer.encoder.layer.0.attention.attention.query.weight", "vision_model.embeddings.class_embedding",
             "language_projection.bias"}  # fmt: skip
    keys = map_instructblip(names)
    assert keys.unknown == [] and len(keys.unused) == 2
    assert f"{AGGREGATOR}spatial_qformer.encoder.layer.0.attention.attention.query.weight" in keys.pieces
    assert f"{AGGREGATOR}spatial_norm.weight" in keys.pieces


def test_internvl_gets_the_tags_and_a_sam2(tmp_path):
    weights = foreign.write_release(tmp_path / "foreign", "internvl")
    sam = foreign.random_weights(foreign.sam2_shapes(version="2.1"), seed=3, dtype=torch.float32)
    torch.save({"model": sam}, tmp_path / "sam2.1_tiny.pt")
    sources = [(tmp_path / "foreign", "internvl"), (tmp_path / "sam2.1_tiny.pt", "sam2")]
    report = convert(ConversionRequest(sources, tmp_path / "first", sizes=tmp_path / "foreign" / "sizes.json"))
    model, words = load(tmp_path / "first"), weights["language_model.model.embed_tokens.weight"]
    embeddings = model.get_input_embeddings().weight
    assert len(embeddings) == len(words) + 5
    assert torch.equal(embeddings[:-5], words)
    torch.testing.assert_close(embeddings[-5:].float(), words.float().mean(0).expand(5, -1), atol=1e-3, rtol=0)
    assert torch.equal(model.state_dict()[f"{SAM}no_object_pointer"], sam["no_obj_ptr"].bfloat16())
    assert torch.equal(
        model.state_dict()[f"{ORIGINAL_DECODER}conv_s1.bias"], sam["sam_mask_decoder.conv_s1.bias"].bfloat16()
    )
    assert model.config.mask_config.enable_occlusion_spatial_embedding
    assert any("new tokens" in note for note in report.notes) and "model.seg_projection.0.weight" in report.fresh

    blip = foreign.random_weights(foreign.instructblip_shapes(), seed=5, dtype=torch.float32)
    save_file(blip, tmp_path / "blip.safetensors")
    with pytest.raises(CheckpointError, match="gives .* the shape .* but the configuration expects"):
        convert_source(tmp_path / "blip.safetensors", "instructblip", tmp_path / "second", into=tmp_path / "first")


def test_tied_embeddings_stay_tied(tmp_path):
    weights = foreign.write_release(tmp_path / "foreign", "sa2va")
    del weights["language_model.lm_head.weight"]
    save_file(weights, tmp_path / "foreign" / "model.safetensors")
    convert_source(tmp_path / "foreign", "sa2va", tmp_path / "ours")
    model = load(tmp_path / "ours")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert torch.equal(model.lm_head.weight, weights["language_model.model.embed_tokens.weight"])


def test_sam2_replaces_the_original_decoder(released, tmp_path):
    sam = foreign.random_weights(foreign.sam2_shapes(), seed=7, dtype=torch.float32)
    torch.save({"model": sam}, tmp_path / "sam2_tiny.pt")
    report = convert_source(tmp_path / "sam2_tiny.pt", "sam2", tmp_path / "ours", into=released["ours"])
    before, after = load(released["ours"]).state_dict(), load(tmp_path / "ours").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(ORIGINAL_DECODER)}
    values = sam["sam_mask_decoder.iou_prediction_head.layers.1.bias"].bfloat16()
    assert torch.equal(after[f"{ORIGINAL_DECODER}iou_prediction_head.layers.0.bias"], values)
    assert report.copied == [] and len(report.unused) == 1
    assert SamaProcessor.from_pretrained(tmp_path / "ours", trust_remote_code=True).turn_format == "newline_after"


def test_standalone_sam2_is_a_transformers_model(tmp_path):
    for version in ("2.0", "2.1"):
        sam = foreign.random_weights(foreign.sam2_shapes(version=version), seed=7, dtype=torch.float32)
        torch.save({"model": sam}, tmp_path / f"sam{version}.pt")
        convert_source(tmp_path / f"sam{version}.pt", "sam2", tmp_path / version)
        model, info = Sam2VideoModel.from_pretrained(tmp_path / version, output_loading_info=True)
        assert not any(info.values())
        assert torch.equal(model.no_object_pointer, sam["no_obj_ptr"])
        assert model.config.enable_temporal_pos_encoding_for_object_pointers == (version == "2.1")


def test_command_line(released, tmp_path, capsys, monkeypatch):
    arguments = ["--from", str(released["folder"]), "--kind", "sama", "--to", str(tmp_path / "ours")]
    sizes = ["--sizes", str(released["folder"] / "sizes.json")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments, *sizes])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    assert "copied: the original mask decoder" in printed.out and "Converting" in printed.err
    assert convert_checkpoint.main([*arguments, *sizes]) == 1
    assert "is not empty; give a folder that does not exist yet" in capsys.readouterr().err
    several = parse_arguments([*arguments, "--from", "sam2.pt", "--kind", "sam2"])
    assert several.sources == [(released["folder"], "sama"), (Path("sam2.pt"), "sam2")]


# ---- bad input ----------------------------------------------------------------------------------


@pytest.fixture
def copy(released, tmp_path) -> Path:
    """A copy of the tiny release in three shards, for a test to break."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    foreign.write_config(folder)
    foreign.write_tokenizers(folder)
    foreign.write_shards(folder, released["weights"], 3)
    return folder


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def delete_shard(folder: Path) -> None:
    (folder / "model-00003-of-00003.safetensors").unlink()


def name_absent_key(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    edit_json(
        index, lambda content: content["weight_map"].update({"mlp1.9.weight": "model-00001-of-00003.safetensors"})
    )


def delete_tensor(folder: Path) -> None:
    first, index = folder / "model-00001-of-00003.safetensors", folder / "model.safetensors.index.json"
    tensors = load_file(first)
    name = next(name for name in tensors if "vision_model.encoder" in name)
    del tensors[name]
    save_file(tensors, first)
    edit_json(index, lambda content: content["weight_map"].pop(name))


def delete_size(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("model-*"):
        tensors = load_file(file)
        tensors.pop("spatial_Qformer_query_tokens", None)
        save_file(tensors, file)


def add_tensor(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    save_file({"some.other.weight": torch.zeros(2)}, folder / "extra-00001-of-00001.safetensors")


def change_config(section: str | None, **values):
    def change(folder: Path) -> None:
        edit_json(folder / "config.json", lambda config: (config[section] if section else config).update(values))

    return change


BAD_INPUT = {
    "truncated shard": (truncate, r"model-00002-of-00003.safetensors is truncated or damaged"),
    "missing shard": (delete_shard, "1 of 3 shards are missing, first model-00003"),
    "index with an absent key": (name_absent_key, "the index names 1 tensors that are not in the files, first mlp1"),
    "missing tensor": (delete_tensor, "tensors of the model are missing: model.backbone.vision_tower"),
    "tensor of another model": (add_tensor, "1 unknown tensors: some.other.weight"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "broken config": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not a valid JSON file"),
    "config of another kind": (
        lambda folder: (folder / "config.json").write_text("{}"),
        "config.json has no llm_config .* and no text_config",
    ),
    "another language model": (change_config("llm_config", model_type="phi3"), "'phi3' is not supported"),
    "another width": (change_config("llm_config", intermediate_size=32), "but the configuration expects"),
    "missing tensor that determines a size": (delete_size, "has no tensor spatial_Qformer_query_tokens; is it"),
    "more layers": (change_config("vision_config", num_hidden_layers=3), "tensors of the model are missing"),
    "fewer layers": (change_config("llm_config", num_hidden_layers=1), "have no counterpart in the model"),
    "another pixel shuffle": (change_config(None, ps_version="v1"), "`ps_version` is 'v1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(copy, case):
    damage, message = BAD_INPUT[case]
    damage(copy)
    check_refused(copy, "sama", message)


def check_refused(source: Path, kind: str, message: str, **others) -> None:
    """Checks that the error is one line and no files are left."""
    to = source.parent / "ours"
    with pytest.raises(CheckpointError, match=message) as caught:
        convert_source(source, kind, to, **others)
    assert "\n" not in str(caught.value)
    assert not to.exists() and not list(source.parent.glob(".ours*"))


@pytest.mark.parametrize(("kind", "found"), [("sa2va", "sama"), ("sam2", "sama"), ("instructblip", "sama")])
def test_wrong_kind(copy, kind, found):
    check_refused(copy, kind, f"is not a checkpoint of --kind {kind}: it looks like --kind {found}")


def test_vocabulary_of_another_checkpoint(copy, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    foreign.write_tokenizers(other, sama=False)
    check_refused(copy, "sama", r"has no \[SEG\], <p>, </p>, <vp>, </vp>", tokenizer=other)
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    last = dict(tokenizer["added_tokens"][-1])
    tokenizer["added_tokens"].append(last | {"id": last["id"] + 1, "content": "<more>"})
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    check_refused(copy, "sama", "has 19 tokens but the checkpoint has embeddings for 18")


def test_question_vocabulary_of_another_checkpoint(copy):
    vocab = copy / "qformer_tokenizer" / "vocab.txt"
    vocab.write_text(vocab.read_text(encoding="utf-8") + "cat\n", encoding="utf-8")
    check_refused(copy, "sama", "question tokenizer has 20 tokens but the checkpoint has embeddings for 19")
    vocab.unlink()
    check_refused(copy, "sama", "give --qformer_tokenizer")


def test_target_must_be_empty(copy, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty"):
        convert_source(copy, "sama", tmp_path / "ours")
    assert [file.name for file in (tmp_path / "ours").iterdir()] == ["notes.txt"]


def test_full_disk(copy, monkeypatch):
    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "save_file", full)
    check_refused(copy, "sama", "is the disk full")
    usage = convert_checkpoint.shutil.disk_usage(copy)
    monkeypatch.setattr(convert_checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    check_refused(copy, "sama", "but the disk has 0.0 GB left")


def test_pickles_that_run_code_are_refused(copy, released):
    for file in copy.glob("model*"):
        file.unlink()
    torch.save({"model": released["weights"], "hook": Path("x")}, copy / "model.pt")
    check_refused(copy, "sama", "holds more than tensors")
    (copy / "model.pt").write_bytes((copy / "model.pt").read_bytes()[:100_000])
    check_refused(copy, "sama", "is damaged|truncated or damaged")


def test_parts_must_fit(copy, released, tmp_path):
    sam = foreign.random_weights(foreign.sam2_shapes(version="2.1"), seed=7)
    torch.save(sam, tmp_path / "sam2.1.pt")
    check_refused(tmp_path / "sam2.1.pt", "sam2", r"is SAM 2.1 .* trained with SAM 2.0", into=released["ours"])
    blip = foreign.random_weights(foreign.instructblip_shapes(), seed=5)
    torch.save(blip, tmp_path / "blip.pt")
    check_refused(tmp_path / "blip.pt", "instructblip", "has a trained context aggregator", into=released["ours"])
    check_refused(tmp_path / "blip.pt", "instructblip", "replaces one part of a SAMA")
    check_refused(copy, "sama", "cannot be combined", into=released["ours"])


def test_unpublished_sizes_must_be_given(copy, tmp_path):
    with pytest.raises(CheckpointError, match="not a published size; give its heads, windows"):
        convert(ConversionRequest([(copy, "sama")], tmp_path / "ours"))


def test_several_weight_files(copy, released):
    save_file({"x": torch.zeros(1)}, copy / "other.safetensors")
    (copy / "model.safetensors.index.json").unlink()
    for file in copy.glob("model-*"):
        file.unlink()
    save_file(released["weights"], copy / "weights.safetensors")
    assert set(WeightFiles(copy, lambda names: "mlp1.0.bias" in names).tensors) == set(released["weights"])
    save_file(released["weights"], copy / "more.safetensors")
    check_refused(copy, "sama", "contains several weight files")
