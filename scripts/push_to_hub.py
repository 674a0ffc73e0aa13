"""Uploads a trained model to the Hugging Face Hub, with a model card: data, metrics, usage, licence.

    python scripts/push_to_hub.py outputs/sama_1b me/sama-1b --dry_run outputs/upload   # writes the files, no network
    python scripts/push_to_hub.py outputs/sama_1b me/sama-1b --private

The card is the folder's own. A card is generated if the folder has none, or one that train.py or merge_lora.py
generated and nobody edited, or with --new_card.

The licence is that of the model the weights were made from, as far as its card came with it; otherwise name it with
--license. The released SAMA weights are under creativeml-openrail-m.

All files are uploaded in one commit, so the repository is never incomplete. The same commit deletes weights, their
indices and adapters of an earlier upload that this one does not replace: they would be loaded in place of the new
ones. Intermediate checkpoints, optimizer states and logs are not uploaded. Log in with `hf auth login`,
or set the variable HF_TOKEN.
"""

import argparse
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from sama.conversion.convert import new_folder
from sama.data.model_cards import CARD
from sama.training.checkpoints import (
    FINGERPRINT_FILE,
    MANIFEST,
    ORDER_FILE,
    STATE_FILE,
    TrainingError,
    missing_weights,
)
from sama.training.model_card import card_to_upload, inherited_license, model_card


WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
PATTERNS = ("*.safetensors", "*.json", "*.py", "*.jinja", "*.txt", "*.model", "qformer_tokenizer/*")
# Of a run and its checkpoints: the fingerprint names folders of the machine, and the checksums are of all files
RUN_FILES = {STATE_FILE, ORDER_FILE, FINGERPRINT_FILE, MANIFEST}
# At the top of a repository, what transformers and PEFT may load weights from
LOADED = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.bin.index.json", "adapter_model*",
    "adapter_config.json",
)  # fmt: skip
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
    """
    Writes the files that would be uploaded to the folder `to`, which appears only when it is complete.

    Raises:
        CheckpointError: if `to` is neither new nor empty.
        OSError: if a file cannot be written.
    """
    with new_folder(to) as written:
        for path in files_to_upload(folder):
            target = written / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        (written / CARD).write_text(card, encoding="utf-8")


def upload(folder: Path, card: str, repo: str, private: bool) -> tuple[str, list[str]]:
    """Creates the repository if needed and uploads everything in one commit, which deletes the weights of an earlier
    upload that would be loaded in place of these; returns the commit's URL and the names of the deleted files."""
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    files = {path.relative_to(folder).as_posix(): path for path in files_to_upload(folder)}
    present = set(api.list_repo_files(repo)) - set(files)
    outdated = sorted(name for name in present if "/" not in name and any(fnmatchcase(name, one) for one in LOADED))
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    operations += [CommitOperationAdd(name, path) for name, path in files.items()]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    operations += [CommitOperationDelete(name) for name in outdated]
    return api.create_commit(repo, operations, commit_message="Model and card").commit_url, outdated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of train.py or merge_lora.py")
    parser.add_argument("repo", help="owner/name on the Hub")
    parser.add_argument(
        "--license",
        help="of the weights, a Hub identifier (default: what the folder's or the base model's card names)",
    )
    card_choice = parser.add_mutually_exclusive_group()
    card_choice.add_argument("--card", type=Path, help="model card to use instead of the folder's; it has the licence")
    card_choice.add_argument("--new_card", action="store_true", help="generate the card, whatever the folder has")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is created")
    parser.add_argument(
        "--dry_run", type=Path, metavar="FOLDER", help="write the files to a new or empty FOLDER, without network"
    )
    arguments = parser.parse_args()
    if arguments.card and arguments.license:
        parser.error("--license is for a card that is generated or the folder's: that of --card names its own")
    folder, repo = arguments.folder, arguments.repo
    try:
        files = files_to_upload(folder)
        card = chosen_card(arguments)
        for path in files:
            print(f"{path.stat().st_size / 1e6:10.2f} MB  {path.relative_to(folder).as_posix()}")
        if arguments.dry_run:
            write_upload(folder, card, arguments.dry_run)
            print(f"Dry run: the files for {repo} are in {arguments.dry_run}")
            return
    except (ValueError, OSError, TrainingError) as error:
        parser.error(" ".join(str(error).split()))
    try:
        url, outdated = upload(folder, card, repo, arguments.private)
    except Exception as error:  # without network that of an HTTP library, which depends on huggingface_hub
        parser.exit(1, f"push_to_hub: {' '.join(str(error).split())}\n")
    if outdated:
        print(f"Deleted, of an earlier upload: {', '.join(outdated)}")
    print(f"Uploaded: {url}")


def chosen_card(arguments: argparse.Namespace) -> str:
    """The card that the command line asks for; `ValueError` or `OSError` if it has no licence or cannot be read."""
    folder = arguments.folder
    if arguments.card:
        return arguments.card.read_text(encoding="utf-8")
    license_name = arguments.license or inherited_license(folder)
    if not license_name:
        raise ValueError(
            f"--license is missing, and neither {folder / CARD} nor its base model's card names one. Weights made "
            "from a converted checkpoint keep its licence: creativeml-openrail-m for the released SAMA weights."
        )
    make = model_card if arguments.new_card else card_to_upload
    return make(folder, arguments.repo, license_name)


if __name__ == "__main__":
    main()
