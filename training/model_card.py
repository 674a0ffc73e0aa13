"""The model card of a trained model, written from the files that train.py saves."""

import json
from pathlib import Path

from huggingface_hub import ModelCardData

from sama.drawing.tables import markdown_table


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


def read_json(path: Path) -> dict:
    """The content of a JSON file, or an empty dictionary if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def data_section(folder: Path) -> str:
    """The sources of the mixture that train.py saved."""
    mixture = read_json(folder / "mixture.json")
    if not mixture:
        return "The training data is not recorded."
    rows = [(name, source["weight"], source["records"]) for name, source in mixture["sources"].items()]
    return markdown_table(("source", "repeats per epoch", "records"), rows)


def metric_section(folder: Path) -> str:
    """The metrics of the last entry in the training log."""
    history = read_json(folder / "trainer_state.json").get("log_history", [])
    last = next((line for line in reversed(history) if "loss" in line), None)
    if last is None:
        return "No training log was found next to the weights."
    rows = [(name.replace("_", " "), f"{last[name]:.4f}") for name in METRICS if name in last]
    text = f"On training batches at step {last['step']}, not a benchmark:\n\n"
    return text + markdown_table(("metric", "value"), rows)


def model_card(folder: Path, repo: str, license_name: str) -> str:
    """
    The model card with the Hub's metadata header.

    Args:
        folder (`Path`): Output folder of train.py or merge_lora.py.
        repo (`str`): Name on the Hub, `owner/name`.
        license_name (`str`): Licence of the weights, as a Hub identifier.
    """
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

A SAMA model: it answers questions about a video over several turns, accepts clicks, boxes, scribbles and masks as
regions, and grounds phrases of its answers in mask tracks ([paper](https://arxiv.org/abs/2505.18812)).
{untrained}
## Usage

{usage.format(repo=repo, base=adapter.get("base_model_name_or_path"))}

Loading runs this repository's code (`trust_remote_code=True`). Requires `torch`, `transformers` and `av`.

## Data

{data_section(folder)}

## Metrics

{metric_section(folder)}

## Licence

{license_name}. The licences of the base models and of the data apply as well.
"""
