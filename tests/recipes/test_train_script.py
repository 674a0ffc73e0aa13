"""recipes/sama_tiny/train.sh with a program in the place of Python that notes its arguments and makes what a stage
makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sama.recipes.sama_tiny import finish, initialize, train_language, train_masks, train_videos


SCRIPT = Path(__file__).parents[2] / "recipes" / "sama_tiny" / "train.sh"
STAGES = {
    "initialize.py": initialize, "train_masks.py": train_masks, "train_videos.py": train_videos,
    "train_language.py": train_language, "finish.py": finish,
}  # fmt: skip
NOTES = f"""#!{sys.executable}
import json, sys
from pathlib import Path

words = sys.argv[1:]
folder = Path(words[words.index("--to") + 1])
folder.mkdir(exist_ok=True)
for name in ("config.json", "state.pt", "processor_config.json"):
    (folder / name).touch()
with open(Path(__file__).with_name("calls.jsonl"), "a") as file:
    file.write(json.dumps(words) + "\\n")
"""


@pytest.fixture
def train(tmp_path):
    """Runs the script; the arguments of each call of Python are in `calls.jsonl`."""
    python = tmp_path / "python"
    python.write_text(NOTES, encoding="utf-8")
    python.chmod(0o755)

    def run(folder: str, seed: int) -> subprocess.CompletedProcess:
        words = ["bash", SCRIPT, tmp_path / folder, str(seed)]
        return subprocess.run(words, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True)

    return run


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_folder_belongs_to_one_seed(train, tmp_path):
    assert train("run", 3).returncode == train("run", 3).returncode == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("*.log")) == [
        "language.log",
        "masks.log",
        "videos.log",
    ]
    other = train("run", 4)
    assert other.returncode == 1 and other.stderr.endswith(
        "run is a run with the seed 3, not 4: choose another folder.\n"
    )


def test_each_stage_gets_options_that_it_has_and_what_the_stages_before_it_made(train, tmp_path):
    assert train("run", 3).returncode == 0
    launched, parsed = [], {}
    for words in calls(tmp_path):
        place = next(place for place, word in enumerate(words) if Path(word).name in STAGES)
        name = Path(words[place]).name
        launched.append((name, words[:place]))
        parsed[name] = STAGES[name].parse_arguments(words[place + 1 :])
    group = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    assert launched == [(name, group if name.startswith("train") else []) for name in STAGES]
    assert all(parsed[name].seed == 3 for name in STAGES if name != "finish.py")
    run, trained = tmp_path / "run", [parsed[name] for name in STAGES if name.startswith("train")]
    assert all(one.device == "cpu" and one.compile for one in trained)
    masks, videos, language = trained
    assert masks.model == videos.model == parsed["initialize.py"].to == run / "start"
    assert (language.masks, language.videos) == (masks.to, videos.to) == (run / "masks", run / "videos")
    assert parsed["finish.py"].run / "language" == language.to and parsed["finish.py"].to == run / "shipped"


def test_initial_weights_are_made_once(train, tmp_path):
    assert train("run", 3).returncode == train("run", 3).returncode == 0
    assert sum(word.endswith("initialize.py") for words in calls(tmp_path) for word in words) == 1
