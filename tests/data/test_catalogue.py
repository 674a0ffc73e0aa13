"""The catalogue and the mixture files that ship, and what is wrong with others."""

import numpy as np
import pytest
import yaml
from data_fixtures import CONFIGS, toy
from fixture_sources import FIXTURES, SOURCES
from processor_fixtures import tiny_processor

from sama.data.catalogue import open_source, parse_entry, read_catalogue, read_yaml
from sama.data.mixture import load_mixture, read_mixture
from sama.data.records import DataError, validate_record


CATALOGUE = read_catalogue(CONFIGS / "catalogue.yaml")
SHIPPED = sorted({path.name for path in CONFIGS.glob("*.yaml")} - {"catalogue.yaml", "benchmarks.yaml"})


def test_catalogue_has_every_source_where_the_fixtures_have_it():
    found = {name: (entry.format, entry.files, entry.options) for name, entry in CATALOGUE.items()}
    expected = {name: value for name, value in SOURCES.items() if name != "json_lines"}
    assert {name: value for name, value in found.items() if value[0] != "toy_world"} == expected


def test_weights_are_those_of_the_paper():
    def weights(name):
        return {entry.name: weight for entry, weight in read_mixture(CONFIGS / name)[0]}

    small, middle, large, base = (weights(f"{name}.yaml") for name in ("sama_1b", "sama_4b", "sama_8b", "sa2va"))
    assert len(small) == 20
    repeated = {"refcoco": 4, "refcoco+": 4, "refcocog": 4, "mevis": 4, "revos": 10, "ref_youtube_vos": 4}
    repeated |= {"ref_sav": 4, "gcg_grandf": 10, "sama239k_conversation": 5, "sama239k_description": 5}
    assert {name: weight for name, weight in small.items() if weight != 1} == repeated
    assert middle == small | {"sama239k_conversation": 3, "sama239k_description": 3}
    assert large == small
    assert base == {name: weight for name, weight in small.items() if not name.startswith("sama239k")}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_mixture_gives_samples(name, tmp_path):
    mixture = load_mixture(CONFIGS / name, tiny_processor(), root=FIXTURES, cache=tmp_path)
    assert len(mixture.lengths) == len(mixture)
    for index in np.linspace(0, len(mixture) - 1, 25).astype(int):
        assert mixture[int(index)].messages


def test_toy_source_gives_valid_records_and_their_frames():
    source = open_source(toy(6, height=48, width=64))
    for index in range(len(source)):
        record = source.record(index)
        validate_record(record)
        video = source.visual(record)
        masks = next(iter(record["objects"].values()))["masks"]
        assert len(video) == len(masks) and (video.height, video.width) == (48, 64)
        np.testing.assert_array_equal(video[0], source.world[index].frames[0])
    assert {len(column) for column in source.columns().values()} == {6}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "mevis"}, "a, field 'format': is 'mevis', expected one of refcoco"),
        ({}, "a, field 'format': is missing"),
        ({"format": "llava", "path": "x"}, "a, field 'path': is unknown"),
        ({"format": "llava", "files": {"annotations": 3}}, "a, field 'files.annotations'"),
        ([], "a: is a list where an object"),
    ],
)
def test_wrong_entry_is_named(content, message):
    with pytest.raises(DataError, match=message):
        parse_entry("a", content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sources": {"nowhere": 1}}, "mix.yaml, field 'sources.nowhere': is not in the catalogue"),
        ({"sources": {"mevis": 0}}, "field 'sources.mevis': has the weight 0"),
        ({"sources": {"mevis": "four"}}, "field 'sources.mevis': is a string where"),
        ({"sources": {"mevis": {"weight": 1, "files": {}}}}, "field 'sources.mevis.files': is unknown"),
        ({"sources": {}}, "field 'sources': is empty"),
        ({"source": {"mevis": 1}}, "field 'source': is unknown"),
        ({"sources": {"mevis": 1}, "catalogue": "no.yaml"}, "no.yaml: there is no such file"),
    ],
)
def test_wrong_mixture_is_named(content, message, tmp_path):
    (tmp_path / "catalogue.yaml").write_text((CONFIGS / "catalogue.yaml").read_text())
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(DataError, match=message):
        read_mixture(tmp_path / "mix.yaml")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rendering": {"preset": "old"}}, "rendering"),
        ({"rendering": {"shape": 1}}, "rendering"),
        ({"on_error": "no"}, "on_error"),
    ],
)
def test_wrong_settings_are_named(settings, field, tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump({"sources": {"t": {"format": "toy_world"}}, **settings}))
    with pytest.raises(DataError, match=f"mix.yaml, field '{field}'"):
        load_mixture(path, tiny_processor())


def test_mixture_may_change_options_of_a_source(tmp_path):
    (tmp_path / "catalogue.yaml").write_text((CONFIGS / "catalogue.yaml").read_text())
    path = tmp_path / "mix.yaml"
    path.write_text(yaml.safe_dump({"sources": {"ref_sav": {"weight": 2, "options": {"captions": "short"}}}}))
    (entry, weight), = read_mixture(path)[0]  # fmt: skip
    assert weight == 2 and entry.options == {"captions": "short"} and entry.files == CATALOGUE["ref_sav"].files


def test_data_root_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.delenv("SAMA_DATA_ROOT", raising=False)
    with pytest.raises(DataError, match="mevis: needs a data root: set SAMA_DATA_ROOT"):
        open_source(CATALOGUE["mevis"])
    monkeypatch.setenv("SAMA_DATA_ROOT", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="does not exist: set SAMA_DATA_ROOT"):
        open_source(CATALOGUE["mevis"])
    monkeypatch.setenv("SAMA_DATA_ROOT", str(FIXTURES))
    assert len(open_source(CATALOGUE["mevis"], cache=tmp_path)) == 2


def test_yaml_that_is_none(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(DataError, match="a.yaml: is not YAML"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- a")
    with pytest.raises(DataError, match="b.yaml: contains list"):
        read_yaml(tmp_path / "b.yaml")
    (tmp_path / "c.yaml").write_text("a: &shared {x: 1}\nb: {<<: *shared, x: 2}")
    assert read_yaml(tmp_path / "c.yaml")["b"] == {"x": 2}
    (tmp_path / "d.yaml").write_text("sources: {toy: 1, toy: 5}")
    with pytest.raises(DataError, match="d.yaml: is not YAML .*has the key 'toy' twice"):
        read_yaml(tmp_path / "d.yaml")


def test_a_mask_file_that_the_source_does_not_have():
    with pytest.raises(DataError, match="no mask file 'maks' among the files of the source, which has masks"):
        open_source(CATALOGUE["mevis"], FIXTURES).lookup("maks", "7")
