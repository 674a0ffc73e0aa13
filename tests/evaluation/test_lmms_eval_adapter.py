"""
The adapter for lmms-eval drives the small checkpoint on a made-up task.

lmms-eval is not among what the tests install: it asks for torchvision and fifty more packages. Where it is absent, its
base class, request and manifest stand here with the same fields and methods (version 0.7.3).
"""

import abc
import sys
import types
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


TINY = Path(__file__).parents[2] / "checkpoints" / "sama-tiny"


class FakeLmms(abc.ABC):
    """`lmms_eval.api.model.lmms` as far as a model of its own touches it."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook, self.task_dict = types.SimpleNamespace(add_partial=lambda attr, req, res: None), {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        given = dict(pair.split("=", 1) for pair in arg_string.split(","))
        return cls(**given, **{name: value for name, value in (additional_config or {}).items() if value is not None})

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size


@dataclass(frozen=True)
class FakeManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class Request:
    """`lmms_eval.api.instance.Instance` as a model sees it."""

    arguments: tuple
    metadata: dict = field(default_factory=dict)

    @property
    def args(self):
        return self.arguments


def fake_modules() -> dict:
    made = {name: types.ModuleType(name) for name in (
        "lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2",
    )}  # fmt: skip
    made["lmms_eval.api.model"].lmms = FakeLmms
    made["lmms_eval.models.registry_v2"].ModelManifest = FakeManifest
    return made


@pytest.fixture(scope="module")
def adapter():
    """The module, imported over lmms-eval or over what stands for it."""
    patch = pytest.MonkeyPatch()
    if find_spec("lmms_eval") is None:
        for name, module in fake_modules().items():
            patch.setitem(sys.modules, name, module)
    from sama.evaluation import lmms_eval_adapter

    yield lmms_eval_adapter
    patch.undo()
    sys.modules.pop("sama.evaluation.lmms_eval_adapter")


@pytest.fixture(scope="module")
def model(adapter):
    """Opened as lmms-eval opens it: from its command line, with what it hands to every model."""
    if not TINY.is_dir():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    extra = {"batch_size": 1, "max_batch_size": None, "device": "cpu"}
    return adapter.SamaLmms.create_from_arg_string(f"pretrained={TINY},dtype=float32,max_new_tokens=6", extra)


def picture(seed: int, size=(40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def ask(model):
    """Answers to `(question, visuals, generation arguments)` of a made-up task."""

    def run(*rows) -> list[str]:
        model.task_dict = {"made_up": {"test": [visuals for _, visuals, _ in rows]}}
        requests = [
            Request((question, arguments, lambda doc: doc, number, "made_up", "test"))
            for number, (question, _, arguments) in enumerate(rows)
        ]
        return model.generate_until(requests)

    return run


def test_a_process_knows_its_place(adapter, monkeypatch):
    if not TINY.is_dir():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    for name, value in {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    found = adapter.SamaLmms(str(TINY), device="cpu")
    assert (found.rank, found.world_size) == (9, 16)


def test_manifest_names_the_class(adapter):
    found = adapter.manifest()
    module, _, name = found.simple_class_path.rpartition(".")
    assert (found.model_id, module) == ("sama", "sama.evaluation.lmms_eval_adapter")
    assert adapter.SamaLmms is vars(sys.modules[module])[name] and adapter.SamaLmms.is_simple


def test_stills_videos_and_text(ask, real_clip):
    rows = [
        ("<image>\nIs there a dog?", [picture(0)], {"max_new_tokens": 4}),
        ("Which is larger?", [picture(1), picture(2)], {}),  # frames of a video; they may differ in size
        ("What happens?", [str(real_clip)], {"until": ["\n\n"]}),
        ("2 + 2 = <p> <|im_end|>", [], {"temperature": 0, "until": "\n"}),
    ]
    answers = ask(*rows)
    assert len(answers) == 4 and all(isinstance(answer, str) for answer in answers)
    assert not any(tag in answer for answer in answers for tag in ("<p>", "[SEG]", "<|im_end|>"))
    assert ask(*rows) == answers


def test_the_answer_is_the_one_of_the_model(ask, model):
    """The same question by hand."""
    image = picture(3)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "A dog?"}]}]
    inputs = model.processor(messages)
    with torch.no_grad():
        sequences = model.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = model.processor.post_process_answer(sequences[0, inputs["input_ids"].shape[1] :]).text
    assert ask(("<image> A dog?", [image], {})) == [expected.strip()] != [""]
    stop = expected.strip()[1]
    assert ask(("A dog?", [image], {"until": [stop]})) == [expected.strip().split(stop)[0].strip()]


def test_sampling_is_said_not_to_happen(ask):
    with pytest.warns(UserWarning, match="SAMA decodes greedily"):
        ask(("A dog?", [picture(0)], {"temperature": 0.7}))


@pytest.mark.parametrize("visuals", [["a.mp4", "b.mp4"], [{"array": 1}], ["a.mp4", Image.new("RGB", (4, 4))]])
def test_what_sama_cannot_look_at(ask, visuals):
    with pytest.raises(ValueError, match="one video or images only"):
        ask(("What?", visuals, {}))


def test_wrong_arguments(adapter):
    with pytest.raises(ValueError, match="use --batch_size 1"):
        adapter.SamaLmms("x", batch_size=4)
    with pytest.raises(ValueError, match="Unknown model_args colour"):
        adapter.SamaLmms("x", colour="red")


def test_other_kinds_of_tasks(model):
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="output_type generate_until"):
            method([])


def test_nothing_imports_it():
    root = Path(__file__).parents[2]
    files = [path for folder in ("evaluation", "benchmarks", "metrics") for path in (root / folder).glob("*.py")]
    files += root.glob("*.py")
    assert [path.name for path in files if "lmms_eval_adapter" in path.read_text()] == []
