"""The model card of a trained model, written from the files that train.py saves."""

import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData

from sama.data.model_cards import CARD, card_metadata, hub_name, license_of
from sama.drawing.tables import markdown_table

from .checkpoints import TrainingError, read_json


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
ADAPTER_USAGE = """This is an adapter. Merge it into its base model with `python scripts/merge_lora.py FOLDER TO`, or:

```python
from peft import PeftModel
from transformers import AutoModel

model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}", trust_remote_code=True), "{repo}")
```"""


FOLDER_OF_BASE = "FOLDER_OF_THE_MODEL_THAT_IT_WAS_TRAINED_ON"
CARD_TAG = "sama"  # of each card that is written here
EMPTY_TEMPLATE = "# Model Card for Model ID"  # PEFT's, which it saves with each adapter


def read_if_there(path: Path) -> dict:
    """The content of a JSON file, or an empty dictionary if it does not exist; `ValueError` if it is damaged."""
    try:
        return read_json(path) if path.is_file() else {}
    except TrainingError as error:  # the scripts that write cards do not train
        raise ValueError(str(error)) from error


def data_section(folder: Path) -> str:
    """The sources of the mixture that train.py saved."""
    mixture = read_if_there(folder / "mixture.json")
    if not mixture:
        return "The training data is not recorded."
    rows = [(name, source["weight"], source["records"]) for name, source in mixture["sources"].items()]
    return markdown_table(("source", "repeats per epoch", "records"), rows)


def metric_section(folder: Path) -> str:
    """The metrics of the last entry in the training log."""
    history = read_if_there(folder / "trainer_state.json").get("log_history", [])
    last = next((line for line in reversed(history) if "loss" in line), None)
    if last is None:
        return "No training log was found next to the weights."
    rows = [(name.replace("_", " "), f"{last[name]:.4f}") for name in METRICS if name in last]
    text = f"On training batches at step {last['step']}, not a benchmark:\n\n"
    return text + markdown_table(("metric", "value"), rows)


def inherited_license(folder: Path) -> str | None:
    """The licence that the card of a model names, or that of its base model if it is an adapter of a local one."""
    base = read_if_there(folder / "adapter_config.json").get("base_model_name_or_path")
    return license_of(folder) or (license_of(base) if base else None)


def base_model_of(folder: Path) -> str | None:
    """The Hub's name of the model that this one was made from, if its card or its adapter's settings name one."""
    base = read_if_there(folder / "adapter_config.json").get("base_model_name_or_path")
    return hub_name(base) if base else card_metadata(folder).get("base_model")


def base_name_of(adapter: dict) -> str:
    """What the card of an adapter loads it on: the model on the Hub, or words for a folder, which readers do not have.
    The model that such a folder was converted from is another one, without SAMA's code."""
    base = str(adapter.get("base_model_name_or_path"))
    return FOLDER_OF_BASE if Path(base).exists() or base != hub_name(base) else base


def write_model_card(folder: Path, base: str, name: str | None = None) -> None:
    """
    Writes the card of a model that was made from another, with the licence and the Hub's name of that one.

    Args:
        folder (`Path`): of the new model; its card is replaced.
        base (`str`): folder or Hub name of the model it was made from.
        name (`str`, *optional*): of the new model in its card; by default that of its folder.
    """
    card = model_card(folder, name or folder.resolve().name, license_of(base), hub_name(base))
    (folder / CARD).write_text(card, encoding="utf-8")


def card_to_upload(folder: Path, repo: str, license_name: str) -> str:
    """
    The card of a folder, with the licence if it names none. Without a card, or with one that [`write_model_card`]
    wrote and nobody edited, a card is written for the name on the Hub.

    Args:
        folder (`Path`): of the model.
        repo (`str`): Name on the Hub, `owner/name`.
        license_name (`str`): Licence of the weights, as a Hub identifier.

    Raises:
        ValueError: if the folder's card names another licence, or cannot be read.
    """
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.strip() or EMPTY_TEMPLATE in text:
        return model_card(folder, repo, license_name)
    base_model, named = card_metadata(folder).get("base_model"), license_of(folder)
    title = re.search("^# (.+)$", text, re.MULTILINE)
    if title and text == model_card(folder, title[1], named, base_model):  # it names the folder in place of `repo`
        return model_card(folder, repo, license_name, base_model)
    if named == license_name:
        return text
    if named:
        raise ValueError(f"{path} names the licence {named}, not {license_name}: correct the card or leave it out")
    try:
        card = ModelCard(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata of {path} cannot be read ({error})") from error
    card.data.license = license_name
    return str(card)


def model_card(folder: Path, repo: str, license_name: str | None, base_model: str | list[str] | None = None) -> str:
    """
    The model card with the Hub's metadata header.

    Args:
        folder (`Path`): Output folder of train.py or merge_lora.py.
        repo (`str`): Name on the Hub, `owner/name`; for a card that stays in a folder, the folder's name.
        license_name (`str`, *optional*): Licence of the weights, as a Hub identifier; `None` if it is not known.
        base_model (`str` or `list[str]`, *optional*): The model that this one was made from, by its name on the Hub.
            By default what [`base_model_of`] finds.
    """
    adapter = read_if_there(folder / "adapter_config.json")
    config = read_if_there(folder / "config.json")
    base_model = base_model or base_model_of(folder)
    data = ModelCardData(
        license=license_name,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="video-text-to-text",
        tags=[CARD_TAG, "video", "grounded-dialogue", "video-segmentation"],
        base_model=base_model,
    )
    origin = base_model if isinstance(base_model, str) else ", ".join(base_model or ())
    usage = ADAPTER_USAGE if adapter else USAGE
    untrained = (
        "\n**The weights are untrained: answers and masks are noise.**\n" if config.get("trained") is False else ""
    )
    return f"""---
{data.to_yaml()}
---

# {repo.split("/")[-1]}

A SAMA model: it answers questions about a video over several turns, accepts clicks, boxes, scribbles and masks as
regions, and grounds phrases of its answers in mask tracks ([paper](https://arxiv.org/abs/2505.18812)).
{f"{chr(10)}It was made from [{origin}](https://huggingface.co/{origin}).{chr(10)}" if origin else ""}{untrained}
## Usage

{usage.format(repo=repo, base=base_name_of(adapter))}

Loading runs this repository's code (`trust_remote_code=True`). Requires transformers 5.17 or newer (below 6), `torch`
and `av`.

## Data

{data_section(folder)}

## Metrics

{metric_section(folder)}

## Licence

{license_name or "Not named by the model this one was made from"}.
The licences of the base models and of the data apply as well.
"""
