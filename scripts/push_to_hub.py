"""Uploads a trained model to the Hugging Face Hub, with a model card: data, metrics, usage, licence.

    python scripts/push_to_hub.py outputs/sama_1b me/sama-1b --dry_run outputs/upload   # writes the files, no network
    python scripts/push_to_hub.py outputs/sama_1b me/sama-1b --private

The licence is that of the model the weights were made from, as far as its card came with it; otherwise name it with
--license. The released SAMA weights are under creativeml-openrail-m.

All files are uploaded in one commit, so the repository is never incomplete. Intermediate checkpoints, optimizer states
and logs are not uploaded. Log in with `hf auth login`, or set the variable HF_TOKEN.
"""

import argparse
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from sama.data.model_cards import CARD
from sama.training.checkpoints import (
    FINGERPRINT_FILE,
    MANIFEST,
    ORDER_FILE,
    STATE_FILE,
    TrainingError,
    missing_weights,
)
from sama.training.model_card import inherited_license, model_card


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
PATTERNS = ("*.safetensors", "*.json", "*.py", "*.jinja", "*.txt", "*.model", "qformer_tokenizer/*")
# Of a run and its checkpoints: the fingerprint names folders of the machine, and the checksums are of all files
RUN_FILES = {STATE_FILE, ORDER_FILE, FINGERPRINT_FILE, MANIFEST}
EXCLUDED = RUN_FILES | {"mixture.json", "train_results.json", "all_results.json"}


def files_to_upload(folder: Path) -> list[Path]:
    """
    The model's files, sorted by name.

    Raises:
        ValueError: if the folder contains no weights, only some of their shards, or no configuration.
        TrainingError: if the index of the shards cannot be read.
    """
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ValueError(f"{folder} contains no weights: expected one of {', '.join(WEIGHTS)}")
    if missing := missing_weights(folder):
        raise ValueError(f"{folder} lacks {', '.join(missing)}, which its index of weights names")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{folder} contains neither config.json nor adapter_config.json")
    found = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in EXCLUDED)


def write_upload(folder: Path, card: str, to: Path) -> None:
    """Writes the files that would be uploaded to the folder `to`."""
    for path in files_to_upload(folder):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (to / CARD).write_text(card, encoding="utf-8")


def upload(folder: Path, card: str, repo: str, private: bool) -> str:
    """Creates the repository if needed and uploads everything in one commit; returns the commit's URL."""
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    files = files_to_upload(folder)
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    return api.create_commit(repo, operations, commit_message="Model and card").commit_url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of train.py or merge_lora.py")
    parser.add_argument("repo", help="owner/name on the Hub")
    parser.add_argument(
        "--license",
        help="of the weights, a Hub identifier (default: what the folder's or the base model's card names)",
    )
    parser.add_argument("--card", type=Path, help="model card to use instead of the generated one")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is created")
    parser.add_argument("--dry_run", type=Path, metavar="FOLDER", help="write the files to FOLDER, without network")
    arguments = parser.parse_args()
    folder, repo, own = arguments.folder, arguments.repo, arguments.card
    try:
        files = files_to_upload(folder)
    except (ValueError, TrainingError) as error:
        parser.error(str(error))
    license_name = arguments.license or inherited_license(folder)
    if not own and not license_name:
        parser.error(
            f"--license is missing, and neither {folder / CARD} nor its base model's card names one. Weights made "
            "from a converted checkpoint keep its licence: creativeml-openrail-m for the released SAMA weights."
        )
    try:
        card = own.read_text(encoding="utf-8") if own else model_card(folder, repo, license_name)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    for path in files:
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path.relative_to(folder).as_posix()}")
    if arguments.dry_run:
        write_upload(folder, card, arguments.dry_run)
        print(f"Dry run: the files for {repo} are in {arguments.dry_run}")
        return
    try:
        print(f"Uploaded: {upload(folder, card, repo, arguments.private)}")
    except Exception as error:  # without network that of an HTTP library, which depends on huggingface_hub
        parser.exit(1, f"push_to_hub: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
