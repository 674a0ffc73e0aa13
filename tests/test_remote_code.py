"""The shipped checkpoint in a process that has never seen the repository."""

import json
import subprocess
import sys

from checkpoint import CHECKPOINT


PROGRAM = """
import json, sys
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

assert not any(name == "sama" or name.startswith("sama.") for name in sys.modules)
path = sys.argv[1]
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
assert not any(name == "sama" or name.startswith("sama.") for name in sys.modules)
print(json.dumps([classes, str(model.dtype), output.shape[1] - inputs["input_ids"].shape[1], same]))
"""


def test_loads_answers_and_saves_outside_the_repository(tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(CHECKPOINT), str(tmp_path / "copy")]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    classes, dtype, new_tokens, same = json.loads(result.stdout.splitlines()[-1])
    assert classes == ["SamaConfig", "SamaProcessor"] + ["SamaForConditionalGeneration"] * 2
    assert (dtype, new_tokens, same) == ("torch.bfloat16", 4, True)
    copied = {path.name for path in (tmp_path / "copy").glob("*.py")}
    assert copied == {path.name for path in CHECKPOINT.glob("*.py")}
