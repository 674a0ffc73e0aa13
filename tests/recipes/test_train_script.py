"""recipes/sama_tiny/train.sh with a program in the place of Python that does nothing."""

import os
import subprocess
from pathlib import Path


SCRIPT = Path(__file__).parents[2] / "recipes" / "sama_tiny" / "train.sh"


def train(folder: Path, seed: int) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHON": "true"}
    return subprocess.run(["bash", SCRIPT, folder, str(seed)], env=environment, capture_output=True, text=True)


def test_a_folder_belongs_to_one_seed(tmp_path):
    assert train(tmp_path / "run", 3).returncode == train(tmp_path / "run", 3).returncode == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("*.log")) == [
        "language.log",
        "masks.log",
        "videos.log",
    ]
    other = train(tmp_path / "run", 4)
    assert other.returncode == 1 and other.stderr.endswith(
        "run is a run with the seed 3, not 4: choose another folder.\n"
    )
