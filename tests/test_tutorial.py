"""The notebook docs/tutorial.ipynb: its code cells run one after another in this process, without Jupyter, in a short
form; what they show is stored, and small."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from notebooks import code_cells, outputs_of, read_notebook, run_cell
from PIL import Image


ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
MAX_BYTES = 500_000


def test_cells_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAMA_TUTORIAL_STEPS", "1")
    monkeypatch.setenv("SAMA_TUTORIAL_CLIPS", "1")
    names, printed, pictures = {"__name__": "__main__"}, "", []
    for number, cell in enumerate(code_cells(read_notebook(NOTEBOOK)), start=1):
        text, value = run_cell("".join(cell["source"]), f"cell {number} of the tutorial", names)
        printed += text
        pictures += [value] if isinstance(value, Image.Image) else []
    assert printed.count(" is a large purple ring.") == 3  # in Python, on the command line, over HTTP
    assert "masks (24, 256, 256), visible in 24 frames" in printed
    assert "exit code 0" in printed and printed.count("referring by look") == 2
    assert len(pictures) == 5 and all(np.asarray(picture).std() > 10 for picture in pictures)
    written = {path.name for path in (tmp_path / "outputs" / "tutorial").iterdir()}
    assert {"answer.mp4", "circle.mp4", "captains-1"} <= written
    assert not names["thread"].is_alive()


def test_stored_outputs_are_those_of_a_whole_run():
    notebook = read_notebook(NOTEBOOK)
    assert (notebook["nbformat"], NOTEBOOK.stat().st_size < MAX_BYTES) == (4, True)
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in code_cells(notebook)] == [*range(1, 1 + len([*code_cells(notebook)]))]
    assert "It is captain red." in json.dumps(outputs)  # what was learned
    pictures = [output["data"]["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(pictures) == 5
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width <= 900


def test_tutorial_is_linked():
    assert "docs/tutorial.ipynb" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "tutorial.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "kinds"),
    [
        ("x = 1\nprint(x)\nx + 1", ["stream", "execute_result"]),
        ("from PIL import Image\nImage.new('RGB', (4, 4))", ["display_data"]),
        ("x = 1", []),
    ],
)
def test_outputs_have_the_form_of_a_notebook(source, kinds):
    assert [output["output_type"] for output in outputs_of(*run_cell(source, "cell", {}))] == kinds
