"""Puts a trained model on the Hugging Face Hub, with a model card: data, metrics, usage, licence.

    python scripts/push_to_hub.py outputs/sama_1b me/sama-1b --dry_run outputs/upload   # no network, writes it there
    python scripts/push_to_hub.py outputs/sama_1b me/sama-1b --private

Everything goes up in one commit, so the repository never holds half a model. Intermediate checkpoints, optimiser
states and curves stay at home. The token is huggingface_hub's own: `hf auth login`, or the variable HF_TOKEN.
"""

import argparse
import json
import shutil
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError

from sama.drawing.tables import markdown_table


CARD = "README.md"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
PATTERNS = ("*.safetensors", "*.json", "*.py", "*.jinja", "*.txt", "*.model", "qformer_tokenizer/*")
LEFT_OUT = {"trainer_state.json", "mixture.json", "train_results.json", "all_results.json"}
METRICS = ("loss", "lm_loss", "mask_loss", "dice_loss", "token_accuracy", "seg_accuracy", "mask_iou")

USAGE = """```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo}", trust_remote_code=True, dtype="auto")
processor = AutoProcessor.from_pretrained("{repo}", trust_remote_code=True)
chat = model.start_chat(processor, video="video.mp4")
reply = chat.ask("Describe the video, and show what you name.")
print(reply.text)
reply.save_video("answer.mp4")
```"""
ADAPTER_USAGE = """This is an adapter. Put it into its model with `python scripts/merge_lora.py FOLDER TO`, or:

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}", trust_remote_code=True), "{repo}")
```"""


def read_json(path: Path) -> dict:
    """The file's content, or nothing if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def data_section(folder: Path) -> str:
    """What was read, from the mixture that train.py saved."""
    mixture = read_json(folder / "mixture.json")
    if not mixture:
        return "What the model was trained on is not recorded."
    rows = [(name, source["weight"], source["records"]) for name, source in mixture["sources"].items()]
    return markdown_table(("source", "read how often in an epoch", "records"), rows)


def metric_section(folder: Path) -> str:
    """The last line of the training log, if there is one."""
    history = read_json(folder / "trainer_state.json").get("log_history", [])
    last = next((line for line in reversed(history) if "loss" in line), None)
    if last is None:
        return "No training log lies beside the weights."
    rows = [(name.replace("_", " "), f"{last[name]:.4f}") for name in METRICS if name in last]
    text = f"Training batches at step {last['step']}, not a benchmark:\n\n"
    return text + markdown_table(("metric", "value"), rows)


def model_card(folder: Path, repo: str, license_name: str) -> str:
    """The card, with the header that the Hub reads."""
    adapter = read_json(folder / "adapter_config.json")
    config = read_json(folder / "config.json")
    data = ModelCardData(
        license=license_name,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="video-text-to-text",
        tags=["sama", "video", "grounded-dialogue", "video-segmentation"],
        base_model=adapter.get("base_model_name_or_path"),
    )
    usage = ADAPTER_USAGE if adapter else USAGE
    untrained = (
        "\n**The weights are untrained: answers and masks are noise.**\n" if config.get("trained") is False else ""
    )
    return f"""---
{data.to_yaml()}
---

# {repo.split("/")[-1]}

A SAMA: it talks about a video over several turns, takes clicks, boxes, scribbles and masks as questions, and answers
with phrases that carry mask tracks ([paper](https://arxiv.org/abs/2505.18812)).
{untrained}
## Usage

{usage.format(repo=repo, base=adapter.get("base_model_name_or_path"))}

The code in this repository is run with `trust_remote_code=True`. Install `torch`, `transformers` and `av`.

## Data

{data_section(folder)}

## Metrics

{metric_section(folder)}

## Licence

{license_name}. The licences of the models that the weights started from, and of the data, apply as well.
"""


def files_to_upload(folder: Path) -> list[Path]:
    """
    The model's files, in the order of their names.

    Raises:
        ValueError: if the folder holds no weights or no configuration.
    """
    if not any((folder / name).is_file() for name in WEIGHTS):
        raise ValueError(f"{folder} holds no weights: none of {', '.join(WEIGHTS)} is there")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(f"{folder} holds neither config.json nor adapter_config.json")
    found = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in LEFT_OUT)


def write_upload(folder: Path, card: str, to: Path) -> None:
    """Writes what would be uploaded."""
    for path in files_to_upload(folder):
        target = to / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (to / CARD).write_text(card, encoding="utf-8")


def upload(folder: Path, card: str, repo: str, private: bool) -> str:
    """Makes the repository if it is missing, and commits everything at once; returns the commit's address."""
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    files = files_to_upload(folder)
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    return api.create_commit(repo, operations, commit_message="Model and card").commit_url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what train.py or merge_lora.py wrote")
    parser.add_argument("repo", help="owner/name on the Hub")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, as the Hub names it")
    parser.add_argument("--card", type=Path, help="a model card of your own instead of the generated one")
    parser.add_argument("--private", action="store_true", help="make a private repository, if it is new")
    parser.add_argument(
        "--dry_run", type=Path, metavar="FOLDER", help="write what would be uploaded there, no network"
    )
    arguments = parser.parse_args()
    folder, repo = arguments.folder, arguments.repo
    try:
        files = files_to_upload(folder)
    except ValueError as error:
        parser.error(str(error))
    card = (
        arguments.card.read_text(encoding="utf-8") if arguments.card else model_card(folder, repo, arguments.license)
    )
    for path in files:
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path.relative_to(folder).as_posix()}")
    if arguments.dry_run:
        write_upload(folder, card, arguments.dry_run)
        print(f"Nothing was uploaded; {repo} would hold what is in {arguments.dry_run}")
        return
    try:
        print(f"Uploaded: {upload(folder, card, repo, arguments.private)}")
    except HfHubHTTPError as error:
        parser.exit(1, f"push_to_hub: {error}\n")


if __name__ == "__main__":
    main()
