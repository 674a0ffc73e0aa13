"""How the server and its replicas load a model."""

import json
from types import SimpleNamespace

import pytest

from sama.serving import engine, settings
from sama.serving.limits import Limits
from sama.serving.loading import load_model


@pytest.mark.parametrize(
    ("given", "preset", "fraction"), [(None, None, 0.05), (None, "published", 0.0), (0.2, "published", 0.2)]
)
def test_an_engine_is_made_from_settings(monkeypatch, given, preset, fraction):
    monkeypatch.setattr(settings, "load_model", lambda *arguments: ("/".join(map(str, arguments)), "processor"))
    monkeypatch.setattr(engine, "Engine", lambda *arguments: arguments)
    model = SimpleNamespace(model="m", device="cpu", dtype="auto", preset=preset, trust_remote_code=False)
    model.min_component_fraction = given
    limits = Limits(feature_bytes=7)
    expected = (f"m/cpu/auto/{preset}/False", "processor", limits, fraction)
    assert settings.make_engine(model, limits) == expected


@pytest.mark.parametrize("settings", [{"model_type": "sa2va_chat"}, {"llm_config": {}, "vision_config": {}}])
def test_a_model_that_is_not_converted(tmp_path, settings):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="must be converted first: python scripts/convert_checkpoint.py"):
        load_model(str(tmp_path))
