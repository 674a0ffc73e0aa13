"""How the server and its replicas load a model."""

import json
from types import SimpleNamespace

import pytest

from sama.modeling_sama_tracker import SamaMaskTracker
from sama.serving import engine, settings
from sama.serving.limits import Limits
from sama.serving.loading import DEFAULT_MODEL, compile_tracker, load_model


@pytest.mark.parametrize(
    ("given", "preset", "fraction"), [(None, "consistent", 0.05), (None, "published", 0.0), (0.2, "published", 0.2)]
)
def test_an_engine_is_made_from_settings(monkeypatch, given, preset, fraction):
    """The preset is that of the loaded model; the command line names none."""
    loaded, asked = SimpleNamespace(config=SimpleNamespace(preset=preset)), []
    monkeypatch.setattr(settings, "load_model", lambda *arguments: asked.append(arguments) or (loaded, "processor"))
    monkeypatch.setattr(engine, "Engine", lambda *arguments, **options: (*arguments, options))
    model = SimpleNamespace(model="m", device="cpu", dtype="auto", preset=None, trust_remote_code=False)
    model.memory_pool, model.compile = None, True
    model.min_component_fraction = given
    limits = Limits(feature_bytes=7)
    expected = (loaded, "processor", limits, fraction, {"compile_options": {}})
    assert settings.make_engine(model, limits) == expected
    assert asked == [("m", "cpu", "auto", None, False, None, True)]


@pytest.mark.parametrize("settings", [{"model_type": "sa2va_chat"}, {"llm_config": {}, "vision_config": {}}])
def test_a_model_that_is_not_converted(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="must be converted first: python scripts/convert_checkpoint.py"):
        load_model(str(tmp_path))


def test_a_model_is_loaded_with_pooled_memories_and_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(SamaMaskTracker, "compile_parts", lambda tracker: compiled.append(tracker))
    model, processor = load_model(str(DEFAULT_MODEL), "cpu", memory_pool=2, compile=True)
    assert model.config.memory_pool == processor.config.memory_pool == 2
    assert compiled == [model.model.mask_tracker]
    with pytest.raises(ValueError, match="`memory_pool` is 3; it must be 1 or 2"):
        load_model(str(DEFAULT_MODEL), "cpu", memory_pool=3)


def test_code_that_cannot_be_compiled():
    former = SimpleNamespace(model=SimpleNamespace(mask_tracker=SimpleNamespace()))
    with pytest.raises(ValueError, match="code from before version 0.3, which cannot be compiled"):
        compile_tracker(former)
