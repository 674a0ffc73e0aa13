"""The shipped checkpoint, and a saved model on each backbone, in one process that has never seen the repository."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from backbone_batches import few_frames, save_backbones
from checkpoint import CHECKPOINT
from tiny_backbones import FAMILY, tiny_backbone

from sama.objects_sama import Region


VERSIONS = ["5.16.1", "6.0.0"]  # below and above those that are supported


def test_the_hook_that_copies_the_code_sees_every_file():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install -e '.[dev]'")
    root = CHECKPOINT.parents[1]
    (repository,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    (hook,) = [one for one in repository["hooks"] if one["id"] == "sync"]
    copied = [path.name for path in root.glob("*_sama*.py")]
    assert "mp4_sama.py" in copied and [name for name in copied if not re.search(hook["files"], name)] == []


PROGRAM = """
import json, sys
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

assert not any(name == "sama" or name.startswith("sama.") for name in sys.modules)
path = sys.argv[1]
installed = sys.modules["transformers"].__version__
refused = []
for version in sys.argv[4:]:
    sys.modules["transformers"].__version__ = version
    for auto in (AutoConfig, AutoModel, AutoProcessor):
        try:
            auto.from_pretrained(path, trust_remote_code=True)
        except ImportError as error:
            refused.append(str(error))
sys.modules["transformers"].__version__ = installed
config = AutoConfig.from_pretrained(path, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
classes = [type(config).__name__, type(processor).__name__]
for auto in (AutoModel, AutoModelForImageTextToText):
    model = auto.from_pretrained(path, trust_remote_code=True, dtype="auto")
    classes.append(type(model).__name__)
video = np.random.default_rng(0).integers(0, 255, (6, 40, 60, 3), dtype=np.uint8)
messages = [{"role": "user", "content": [
    {"type": "video", "video": video},
    {"type": "text", "text": "What is "}, {"type": "region", "frame": 4, "box": [10, 10, 30, 30]},
    {"type": "text", "text": " doing?"}]}]
inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=4)
reply = model.start_chat(processor, video=video).ask(
    "What is <region> doing?", regions=[{"frame": 4, "box": [10, 10, 30, 30]}], max_new_tokens=4)
model.save_pretrained(sys.argv[2])
processor.save_pretrained(sys.argv[2])
again = AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True, dtype="auto")
same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
AutoProcessor.from_pretrained(sys.argv[2], trust_remote_code=True)
new_tokens, dtype = output.shape[1] - inputs["input_ids"].shape[1], str(model.dtype)
backbones = {}
for name, path in json.loads(sys.argv[3]).items():
    model = AutoModel.from_pretrained(path, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    reply = model.start_chat(processor, video=video).ask(
        "Is <region>?", regions=[{"frame": 1, "box": [2, 3, 20, 18]}], max_new_tokens=3)
    backbones[name] = [type(model).__module__.split(".")[0], type(model).__name__, reply.tagged_text]
assert not any(name == "sama" or name.startswith("sama.") for name in sys.modules)
print(json.dumps({"refused": refused, "loaded": [classes, dtype, new_tokens, same], "backbones": backbones}))
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What the process found, and the folder into which it saved model and processor."""
    folder = tmp_path_factory.mktemp("elsewhere")
    backbones = {name: str(path) for name, path in save_backbones(folder).items()}
    command = [sys.executable, "-c", PROGRAM, str(CHECKPOINT), str(folder / "copy"), json.dumps(backbones), *VERSIONS]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1]), folder / "copy"


def test_loads_answers_and_saves(outside):
    found, copy = outside
    classes, dtype, new_tokens, same = found["loaded"]
    assert classes == ["SamaConfig", "SamaProcessor"] + ["SamaForConditionalGeneration"] * 2
    assert (dtype, new_tokens, same) == ("torch.bfloat16", 4, True)
    assert {path.name for path in copy.glob("*.py")} == {path.name for path in CHECKPOINT.glob("*.py")}


def test_other_versions_are_refused(outside):
    pattern = r"SAMA needs .* but version (\S+) is installed\. Run: pip install .*"
    found = [re.fullmatch(pattern, message)[1] for message in outside[0]["refused"]]
    assert found == [version for version in VERSIONS for _ in range(3)]


def test_a_model_on_any_backbone_answers_as_in_the_repository(outside):
    shown = np.random.default_rng(0).integers(0, 255, (6, 40, 60, 3), dtype=np.uint8)
    for name in FAMILY:
        model, processor = tiny_backbone(name)
        chat = model.start_chat(few_frames(processor), video=shown)
        reply = chat.ask("Is <region>?", [Region(frame=1, box=(2, 3, 20, 18))], max_new_tokens=3, masks=False)
        expected = ["transformers_modules", "SamaForConditionalGeneration", reply.tagged_text]
        assert outside[0]["backbones"][name] == expected
