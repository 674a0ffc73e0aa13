"""Arrow stores: what they hold, when they are built anew, and that a failed build leaves nothing."""

import json
import os
import pickle
import shutil

import pytest
from data_fixtures import copied, entry, source
from fixture_sources import FIXTURES, SOURCES

from sama.data import store
from sama.data.catalogue import Entry
from sama.data.readers import READERS, read_mask_store
from sama.data.records import DataError
from sama.data.store import KINDS, MaskStore, open_masks, open_records


def open_entry(found, root, cache, **options):
    options = {**found.options, "source": found.name, **options}
    return open_records(found.format, found.files, root, options, cache)


@pytest.mark.parametrize("name", SOURCES)
def test_store_holds_what_the_reader_gives(name, tmp_path):
    reader, files, options = SOURCES[name]
    records = list(READERS[reader](files, FIXTURES, {**options, "source": name}))
    found = source(name, tmp_path)
    assert [found.record(index) for index in range(len(found))] == json.loads(json.dumps(records))
    for key, opened in found.masks.items():
        expected = dict(read_mask_store(FIXTURES / files[key]))
        assert {k: opened[k] for k in opened.keys()} == expected  # noqa: SIM118 (a store is no dict)


def test_columns_say_what_a_record_costs(tmp_path):
    columns = source("mevis", tmp_path).columns()
    assert [KINDS[kind] for kind in columns["kind"]] == ["video", "video"]
    assert columns["frames"].tolist() == [3, 13]
    assert columns["turns"].min() >= 1 and columns["characters"].min() > 0
    assert [KINDS[kind] for kind in source("llava", tmp_path).columns()["kind"]].count("text") == 1


def test_turns_and_characters_are_those_of_a_sample(tmp_path):
    """Two records of which a sample draws five turns, one of them with twelve times as many."""
    rounds = [{"role": role, "content": [{"type": "text", "text": "ten letter"}]} for role in ("user", "assistant")]
    records = [{"id": str(n), "messages": rounds * n, "sampling": {"turns": 5}} for n in (60, 5, 2)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    files = {"records": "records.jsonl", "media": "."}
    opened = open_records("json_lines", files, tmp_path, {"source": "mine"}, tmp_path / "cache")
    assert opened.column("turns").tolist() == [5, 5, 2] and opened.column("characters").tolist() == [100, 100, 40]


def test_absent_key_is_a_key_error(tmp_path):
    opened = open_masks(FIXTURES / SOURCES["mevis"][1]["masks"], tmp_path, "mevis")
    with pytest.raises(KeyError, match="no such key"):
        opened["no such key"]


def test_keys_with_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_digest", lambda words: "0" * 16)
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"a": [None], "b": [None, None]}))
    opened = open_masks(path, tmp_path / "cache", "x")
    assert len(opened["a"]), len(opened["b"]) == (1, 2)
    with pytest.raises(KeyError):
        opened["c"]


def test_store_survives_pickling(tmp_path):
    opened = open_masks(FIXTURES / SOURCES["mevis"][1]["masks"], tmp_path, "mevis")
    again = pickle.loads(pickle.dumps(opened))
    assert isinstance(again, MaskStore) and [again[key] for key in again.keys()] == [opened[k] for k in opened.keys()]  # noqa: SIM118
    assert len(pickle.dumps(opened)) < 1000  # a path, not masks


def counted(monkeypatch, name):
    """How often the reader of a source runs."""
    runs, reader = [], READERS[SOURCES[name][0]]

    def counting(files, root, options):
        runs.append(1)
        yield from reader(files, root, options)

    monkeypatch.setitem(store.READERS, SOURCES[name][0], counting)
    return runs


def test_built_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    root, cache = copied(tmp_path), tmp_path / "cache"
    runs = counted(monkeypatch, "llava")
    found = entry("llava")
    first = len(open_entry(found, root, cache))
    open_entry(found, root, cache)
    assert len(runs) == 1
    path = root / found.files["annotations"]
    path.write_text(json.dumps(json.loads(path.read_text())[:1]))
    assert len(open_entry(found, root, cache)) == 1 < first
    assert len(runs) == 2
    os.utime(path, ns=(1, 1))  # same size, other time
    open_entry(found, root, cache)
    assert len(runs) == 3
    folders = [folder for place in cache.iterdir() for folder in place.iterdir() if folder.is_dir()]
    assert len(folders) == 1  # what is out of date is gone


def test_other_options_and_other_version_are_other_stores(tmp_path, monkeypatch):
    runs = counted(monkeypatch, "ref_sav")
    open_entry(entry("ref_sav"), FIXTURES, tmp_path)
    open_entry(entry("ref_sav", captions="short"), FIXTURES, tmp_path)
    open_entry(entry("ref_sav"), FIXTURES, tmp_path)
    assert len(runs) == 2
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    open_entry(entry("ref_sav"), FIXTURES, tmp_path)
    assert len(runs) == 3


def test_failed_build_leaves_nothing(tmp_path):
    root, cache = copied(tmp_path), tmp_path / "cache"
    path = root / SOURCES["llava"][1]["annotations"]
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match="llava, .*llava_v1_5_mix665k.json.*is truncated or not JSON"):
        open_entry(entry("llava"), root, cache)
    assert [file for file in cache.rglob("*") if file.is_file() and file.name != "lock"] == []


def test_left_over_of_a_killed_build_is_swept(tmp_path):
    open_entry(entry("llava"), FIXTURES, tmp_path)
    place = next(tmp_path.iterdir())
    (place / "building-1").mkdir()
    for folder in [folder for folder in place.iterdir() if folder.is_dir() and "building" not in folder.name]:
        folder.rename(place / "out-of-date")
    open_entry(entry("llava"), FIXTURES, tmp_path)
    assert sorted(item.name for item in place.iterdir() if item.is_dir() and item.name != "lock") != ["building-1"]
    assert not (place / "building-1").exists() and not (place / "out-of-date").exists()


def broken_root(tmp_path):
    root = copied(tmp_path)
    path = root / SOURCES["llava"][1]["annotations"]
    items = json.loads(path.read_text())
    items[1]["conversations"] = "nothing"
    path.write_text(json.dumps(items))
    return root


def test_broken_item_raises_or_is_counted(tmp_path):
    root = broken_root(tmp_path)
    with pytest.raises(DataError, match="item 1, field 'conversations'"):
        source("llava", tmp_path / "a", root)
    skipping = source("llava", tmp_path / "b", root, "skip")
    assert len(skipping) == 3 and skipping.dropped["broken items"] == 1
    assert [str(error) for error in skipping.broken][0].startswith("llava, llava_data")
    # A store that was built with something left out is not silently used by who wants to know
    with pytest.raises(DataError, match="item 1, field 'conversations'"):
        source("llava", tmp_path / "b", root)


def test_a_store_that_lacks_records_is_built_again_when_their_files_have_come(tmp_path, monkeypatch):
    root, cache = copied(tmp_path), tmp_path / "cache"
    runs = counted(monkeypatch, "chat_univi")
    found = entry("chat_univi")
    whole = open_entry(found, root, cache)
    videos = [root / whole[index]["video"]["path"] for index in range(len(whole))]
    kept = [(path, path.read_bytes()) for path in dict.fromkeys(videos)]
    for path, _ in kept:
        path.unlink()
    shutil.rmtree(cache)
    opened = [open_entry(found, root, cache, on_error="skip") for _ in range(2)]  # the second one finds the first
    assert len(runs) == 2 and [len(one) for one in opened] == [0, 0]
    assert opened[0].dropped["broken items"] == len(whole)
    with pytest.raises(DataError, match="there is no file"):
        open_entry(found, root, cache)
    for number, (path, content) in enumerate(kept, start=1):
        path.write_bytes(content)
        again = [open_entry(found, root, cache, on_error="skip") for _ in range(2)]
        assert len(runs) == 2 + number and len(again[0]) == len(again[1]) > len(opened[0])
    assert again[1].digest() == open_entry(found, root, cache).digest() == whole.digest()
    assert len(opened[0]) == 0  # what a process has opened does not change


def test_changed_questions_of_mme_are_read_again(tmp_path):
    shutil.copytree(FIXTURES.parent / "benchmark_fixtures" / "mme", tmp_path / "mme")

    def answers() -> list[str]:
        opened = open_records("mme", {"media": "mme"}, tmp_path, {"source": "mme"}, tmp_path / "cache")
        messages = [message for index in range(len(opened)) for message in opened[index]["messages"][1::2]]
        return [message["content"][0]["text"] for message in messages]

    before = answers()
    for path in (tmp_path / "mme").rglob("*.txt"):
        text = path.read_text().replace("\tYes", "\tno").replace("\tNo", "\tYes").replace("\tno", "\tNo")
        path.write_text(text)
    assert answers() == [{"Yes": "No", "No": "Yes"}[one] for one in before]


MASK_FILES = [
    (name, key, file)
    for name, (_, files, _) in SOURCES.items()
    for key, file in files.items()
    if key == "masks" or key.endswith("_masks")
]


@pytest.mark.parametrize("action", ["raise", "skip"])
@pytest.mark.parametrize(("name", "key", "file"), MASK_FILES)
def test_mask_file_that_is_missing_or_cut_is_named(name, key, file, action, tmp_path):
    root = copied(tmp_path)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: len(content) - 20])
    with pytest.raises(DataError, match="is truncated or not JSON |this pickle is (damaged|not accepted)") as told:
        source(name, tmp_path / "cache", root, action)
    assert told.value.source == name and str(told.value.file).endswith(file)
    (root / file).unlink()
    with pytest.raises(DataError, match="there is no such file") as told:
        source(name, tmp_path / "cache", root, action)
    assert told.value.source == name and str(told.value.file).endswith(file)


def test_a_file_that_appears_is_noticed_however_many_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_ERRORS", 2)
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
    items = [{"video": f"{number}.mp4", "conversations": said} for number in range(5)]
    (tmp_path / "items.json").write_text(json.dumps(items))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0.mp4").touch()
    found = Entry("chat", "chat_univi", {"annotations": "items.json", "media": "videos"})

    def number_of_records() -> int:
        opened = open_entry(found, tmp_path, tmp_path / "cache", on_error="skip")
        assert len(opened.broken) == min(2, 5 - len(opened))
        return len(opened)

    assert number_of_records() == number_of_records() == 1
    (tmp_path / "videos" / "4.mp4").touch()
    assert number_of_records() == 2


def test_a_picture_that_is_repaired_is_noticed(tmp_path):
    root, found = copied(tmp_path), entry("gcg_refcocog")
    pictures = sorted(path for path in root.rglob("*.jpg"))
    whole, expected = {path: path.read_bytes() for path in pictures}, len(open_entry(found, root, tmp_path / "cache"))
    for path in pictures:
        path.write_bytes(b"")
    cache = tmp_path / "other"
    assert len(open_entry(found, root, cache, on_error="skip")) < expected
    for path, content in whole.items():
        path.write_bytes(content)
    assert len(open_entry(found, root, cache, on_error="raise")) == expected


def test_a_key_that_a_mask_file_has_twice(tmp_path):
    (tmp_path / "masks.json").write_text('{"1": [null], "2": [null], "1": [null]}')
    masks = open_masks(tmp_path / "masks.json", tmp_path / "cache", "a")
    assert masks["2"] == [None]
    with pytest.raises(DataError, match="field '1': is 2 times in the mask file"):
        masks["1"]
