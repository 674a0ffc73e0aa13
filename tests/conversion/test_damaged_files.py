"""Weight files, indexes, configurations and tokenizers of any content: one sentence with the name of the file."""

import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import foreign_checkpoints as foreign
import pytest
import torch
from safetensors.torch import save_file

from sama.conversion.convert import ConversionRequest, convert, parse_arguments
from sama.conversion.files import CheckpointError, WeightFiles, read_json
from sama.conversion.pieces import EMBEDDINGS, HEAD
from sama.conversion.plan import plan_release
from sama.conversion.sources import open_sources


TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def saved(**options) -> bytes:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, **options)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), content)
    return buffer.getvalue()


OLD = saved(_use_new_zipfile_serialization=False)
GARBAGE = {
    "empty": b"",
    "text": "café".encode(),
    "latin-1": b"caf\xe9",
    "number": b"\x80\x02K\x01.",
    "end of a zip file": saved()[-200:],
    "half of a zip file": saved()[: len(saved()) // 2],
    "zip file of something else": zipped(readme=b"x"),
    "zip file without tensors": zipped(archive__data_pkl=pickle.dumps({"a": 1}, 2), archive__version=b"3\n"),
    "zip file with a broken pickle": zipped(archive__data_pkl=b"\x80\x02h\x05.", archive__version=b"3\n"),
    "half of an old file": OLD[: len(OLD) // 2],
    "old file with another length": OLD.replace(struct.pack("<q", 6), struct.pack("<q", 2**40)),
    "magic number alone": OLD[:20],
    "memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "long name": b"\x80\x02c" + b"a" * 30_000 + b"\nb\n.",
    "long name in a zip file": zipped(
        archive__data_pkl=b"\x80\x02c" + b"a" * 30_000 + b"\nb\n.", archive__version=b"3\n"
    ),
    "list": pickle.dumps([1, 2], 2),
    "tar file": b"storages\0" + b"\0" * 1500,
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_in_the_place_of_a_pickle(tmp_path, name, suffix):
    (tmp_path / f"w{suffix}").write_bytes(GARBAGE[name])
    with pytest.raises(
        CheckpointError, match=rf"w{suffix} (is (truncated or )?damaged|contains no tensors)"
    ) as caught:
        WeightFiles(tmp_path)
    assert "\n" not in str(caught.value)


def header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        header(b"{"),
        header(b"[]"),
        header(b"\xff\xfe"),
        header(b'{"a": 5}'),
        header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}') + b"\0" * 4,
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
        header(b'{"a": {"dtype": "F32", "shape": [18446744073709551615, 2], "data_offsets": [0, 4]}}') + b"\0" * 4,
        header(b"[" * 5000),
    ],
)
def test_damaged_safetensors(tmp_path, data):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"w\.safetensors is truncated or damaged"):
        WeightFiles(tmp_path)


def test_safetensors_that_shrink_while_they_are_read(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors")
    files = WeightFiles(tmp_path)
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"w\.safetensors is truncated or damaged"):
        files.read("a.weight")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "contains list where an object is expected"),
        (b"5", "contains int where an object is expected"),
        (b"\xff", "is not a valid JSON file .is not UTF-8"),
        (b"[" * 3000, "is not a valid JSON file .is nested more than 100"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not a valid JSON file"),
        (b'{"a": NaN}', "is not a valid JSON file"),
    ],
)
def test_json_files(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json {message}"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "weight_map",
    [[], 5, {"a": 5}, {"a": ["x"]}, {"a": "../secret.safetensors"}, {"a": "/secret"}, {"a": ""}, {"a": ".."}],
)
def test_an_index_names_files_of_its_folder(tmp_path, weight_map):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map is not an object of tensor names"):
        WeightFiles(tmp_path)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A tiny SAMA in the release's format."""
    folder = tmp_path_factory.mktemp("release") / "sama"
    foreign.write_release(folder, "sama")
    return folder


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "config.json",
            lambda content: content.update(llm_config=[]),
            "that describe no model",
        ),
        ("config.json", lambda content: content.update(vision_config=None), "that describe no model"),
        ("config.json", lambda content: content["llm_config"].update(model_type=["x"]), "that describe no model"),
        ("config.json", lambda content: content["vision_config"].update(patch_size=0), "that describe no model"),
        ("config.json", lambda content: content["llm_config"].update(hidden_size="32"), "that describe no model"),
        ("tokenizer.json", lambda content: content.update(model=5), "a tokenizer that cannot be read"),
    ],
)
def test_settings_that_describe_no_model(release, tmp_path, file, change, message):
    folder = shutil.copytree(release, tmp_path / "sama")
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(foreign.SIZES))
    with pytest.raises(CheckpointError, match=rf"sama has .*{message} \(\w+: "):
        convert(ConversionRequest([(folder, "sama")], tmp_path / "ours", sizes=sizes))
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"hiera": {"num_heads": 1, "window_spec": [8]}}, "sizes.json has no global_attention_blocks in 'hiera'"),
        ({"sizes": [1]}, r"sizes.json has \[1\] where an object of sizes is expected"),
        ({"sizes": {"vit": 3}}, "sizes.json has 3 where an object of sizes is expected"),
    ],
)
def test_wrong_sizes_are_no_damage_of_the_checkpoint(release, tmp_path, content, message):
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        convert(ConversionRequest([(release, "sama")], tmp_path / "ours", sizes=sizes))


@pytest.mark.parametrize("size", ["2GiB", "2", "abc"])
def test_wrong_shard_sizes_are_refused(size, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--from", "x", "--kind", "sama", "--to", "y", "--max_shard_size", size])
    assert f"'{size}' is no size such as 500MB or 2GB" in capsys.readouterr().err


def test_targets_that_cannot_be_made(release, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/ours cannot be made"):
        convert(ConversionRequest([(release, "sama")], tmp_path / "file" / "ours"))


def test_the_current_folder_is_a_target(release, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "sizes.json").write_text(json.dumps(foreign.SIZES))
    convert(ConversionRequest([(release, "sama")], Path("."), sizes=tmp_path / "sizes.json"))
    assert (tmp_path / "here" / "model.safetensors").is_file()


def test_a_tokenizer_with_more_tokens_than_a_backbone_has_embeddings_is_refused(tmp_path):
    """The tags that the conversion adds have rows appended; tokens that the tokenizer has already must have theirs."""
    foreign.write_release(tmp_path / "foreign", "internvl")
    (tmp_path / "other").mkdir()
    foreign.write_tokenizers(tmp_path / "other", False, [*foreign.CHAT_TOKENS, *(f"<{i}>" for i in range(300))])
    own = len(foreign.WORDS + foreign.CHAT_TOKENS)
    request = ConversionRequest([(tmp_path / "foreign", "internvl")], tmp_path / "ours", tokenizer=tmp_path / "other")
    with pytest.raises(CheckpointError, match=f"has {own + 300} tokens but the checkpoint has embeddings for {own}"):
        convert(request)


@pytest.mark.parametrize("tags", [False, True])
def test_few_tokens_without_embedding_get_the_mean(tmp_path, tags):
    """As the released InternVL3-8B-hf, whose tokenizer has one token more; also where it has all of our tags."""
    weights = foreign.write_release(tmp_path / "foreign", "internvl")
    (tmp_path / "other").mkdir()
    foreign.write_tokenizers(tmp_path / "other", tags, [*foreign.CHAT_TOKENS, "<more>"])
    request = ConversionRequest([(tmp_path / "foreign", "internvl")], tmp_path / "ours", tokenizer=tmp_path / "other")
    plan, _ = plan_release(*open_sources(request), request)
    words = weights["language_model.model.embed_tokens.weight"]
    rows = len(words) + 6
    assert plan.config.text_config.vocab_size == rows
    for name in (EMBEDDINGS, HEAD):
        source, piece = plan.pieces[name]
        stored = source.files.read(piece.keys[0])
        made = piece.make(stored)
        assert torch.equal(made[: len(words)], stored)
        assert torch.equal(made[len(words) :], stored.float().mean(0).bfloat16().expand(6, -1))
    beyond, added = (6, 0) if tags else (1, 5)
    notes = [note for note in plan.report.notes if note.endswith("are initialized with the mean of the embeddings")]
    assert [int(note.split()[0]) for note in notes] == ([added] if added else []) + [beyond]
