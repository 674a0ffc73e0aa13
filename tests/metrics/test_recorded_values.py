"""The recorded cases of the official metric and data functions (tests/goldens/metrics.json)."""

import gzip
import os
import shutil
import sys

import golden_metric_cases  # both register their checks
import golden_protocol_cases  # noqa: F401
import pytest
from golden_cases import CHECKS, recorded_cases


# Cases without a counterpart in this repository, and why
NOT_OURS = {
    "agg.rank_merge": "the published script averages the means of its processes; ours scores all predictions at once",
    "sampling.dense_train": "the release trains on other dense frames than it uses; ours are the same in both",
    "sampling.gemini5": "frames shown to a hosted model that is no longer offered",
    "sampling.gradio_uniform": "frames of the release's demo page, which does not run with SAMA's weights",
}


@pytest.fixture(scope="module")
def cases() -> dict[str, dict]:
    by_name: dict[str, dict] = {}
    # Some cases need the input of another
    by_name.update((name, {**case, "all": by_name}) for name, case in recorded_cases().items())
    return by_name


@pytest.fixture(scope="module", params=["no paraphrases", pytest.param("paraphrases", marks=pytest.mark.slow)])
def java_programs(request, tmp_path_factory):
    """METEOR's Java program, which takes ten seconds to read its table of paraphrases, with an empty one, and as it
    is."""
    java = shutil.which("java")
    if request.param == "paraphrases" or java is None or sys.platform == "win32":
        yield
        return
    folder = tmp_path_factory.mktemp("java")
    (folder / "none.gz").write_bytes(gzip.compress(b""))
    program = folder / "java"
    more = f'case "$*" in *meteor*) set -- "$@" -a "{folder}/none.gz";; esac'
    program.write_text(f'#!/bin/sh\n{more}\nexec "{java}" "$@"\n')
    program.chmod(0o755)
    golden_metric_cases.caption_scores.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        patch.setenv(golden_metric_cases.EMPTY_TABLE, "1")
        yield
    golden_metric_cases.caption_scores.cache_clear()


@pytest.mark.parametrize("name", CHECKS)
def test_case(java_programs, cases, name):
    CHECKS[name](cases[name])


def test_every_case_is_checked_or_not_ours(cases):
    assert set(CHECKS) & set(NOT_OURS) == set()
    assert set(CHECKS) | set(NOT_OURS) == set(cases)
