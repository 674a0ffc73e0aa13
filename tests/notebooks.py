"""Runs the code cells of a notebook one after another in this process, without Jupyter, and stores what they show.

    python tests/notebooks.py docs/tutorial.ipynb     # renews the outputs in the file

The last line of a cell is shown if it is an expression, as in Jupyter; a picture is stored as JPEG.
"""

import ast
import base64
import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image


JPEG_QUALITY = 80


def read_notebook(path: Path) -> dict:
    """The notebook as JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> Iterator[dict]:
    """Its code cells."""
    return (cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def run_cell(source: str, name: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Runs a cell in the namespace `names`: what it printed, and the value of its last line."""
    tree, value, printed = ast.parse(source, name), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), names)  # noqa: S102
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), names)  # noqa: S307
    return printed.getvalue(), value


def outputs_of(printed: str, value: Any) -> list[dict]:
    """What a cell showed, in the form of a notebook."""
    found = []
    if printed:
        found.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if isinstance(value, Image.Image):
        file = io.BytesIO()
        value.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
        data = {"image/jpeg": base64.b64encode(file.getvalue()).decode("ascii")}
        found.append({"output_type": "display_data", "data": data, "metadata": {}})
    elif value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        found.append({"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": None})
    return found


def renew_outputs(path: Path) -> None:
    """Runs all cells and stores what they show."""
    notebook, names = read_notebook(path), {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), start=1):
        shown = outputs_of(*run_cell("".join(cell["source"]), f"cell {number}", names))
        for output in shown:
            if output["output_type"] == "execute_result":
                output["execution_count"] = number
        cell["outputs"], cell["execution_count"] = shown, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.getLogger("DeepSpeed").disabled = True  # it prints which device it found
    renew_outputs(Path(sys.argv[1]))
