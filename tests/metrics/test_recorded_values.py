"""Every recorded case of the official metric and data functions; `NOT_OURS` says which are not ours and why."""

import json
from pathlib import Path

import golden_metric_cases  # noqa: F401, both register their checks
import golden_protocol_cases  # noqa: F401
import pytest
from golden_cases import CHECKS


# Cases that no code of ours repeats, and why
NOT_OURS = {
    "sampling.dense_train": "the release trains on other dense frames than it uses; ours are the same in both",
    "sampling.gemini5": "frames shown to a hosted model that is no longer offered",
    "sampling.gradio_uniform": "frames of the release's demo page, which does not run with SAMA's weights",
}


@pytest.fixture(scope="module")
def cases(golden_dir: Path) -> dict[str, dict]:
    path = golden_dir.parent / "metrics.json"
    if not path.is_file():
        pytest.skip(f"no recorded values of the metrics in {path}")
    found = json.loads(path.read_text(encoding="utf-8"))["cases"]
    by_name: dict[str, dict] = {}
    # Some cases need the input of another
    by_name.update((case["id"], {**case, "all": by_name}) for case in found)
    return by_name


@pytest.mark.parametrize("name", CHECKS)
def test_case(cases, name):
    CHECKS[name](cases[name])


def test_every_case_is_checked_or_not_ours(cases):
    assert set(CHECKS) & set(NOT_OURS) == set()
    assert set(CHECKS) | set(NOT_OURS) == set(cases)
