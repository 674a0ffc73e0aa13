"""Merges a trained adapter into its base model, so that the result loads without PEFT.

    python scripts/merge_lora.py outputs/train outputs/merged
    python scripts/merge_lora.py outputs/train outputs/merged --base checkpoints/sama-8b --dtype bfloat16

The adapter is an output folder of train.py with --use_peft. Fully trained parts are merged too. An adapter of a 4-bit
model is merged into the unquantized base model.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch


try:
    from peft import PeftModel

    from sama.conversion.convert import new_folder
    from sama.modeling_sama import SamaForConditionalGeneration
    from sama.processing_sama import SamaProcessor
    from sama.training.model_card import write_model_card
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name is None or error.name.startswith("sama"):
        raise
    sys.exit(f"merge_lora: The Python module {error.name} is not installed. Run: pip install 'sama[train]'")


HISTORY = ("mixture.json", "trainer_state.json")  # what the model card tells about the training


def merge(adapter: Path, to: Path, base: str | None = None, dtype: str = "auto") -> SamaForConditionalGeneration:
    """
    Merges an adapter and saves the model with the adapter's processor, the records of its training and a model card.

    Args:
        adapter (`Path`): Folder with `adapter_config.json`.
        to (`Path`): Output folder, which must be new or empty. It appears only when complete.
        base (`str`, *optional*): Base model, if it has moved since training.
        dtype (`str`): Dtype of the weights: `auto` keeps that of `base`.

    Raises:
        ValueError: if `adapter` contains no adapter, or `to` contains anything.
    """
    settings = adapter / "adapter_config.json"
    if not settings.is_file():
        raise ValueError(f"{settings} does not exist: expected an output folder of train.py with --use_peft")
    if (to / "config.json").exists():
        raise ValueError(f"{to} already contains a model; choose another folder")
    base = base or json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"]
    processor_folder = adapter if (adapter / "processor_config.json").is_file() else base
    local = Path(processor_folder).is_dir()  # code of the Hub is not run: the classes are those of this package
    with new_folder(to) as folder:
        processor = SamaProcessor.from_pretrained(processor_folder, trust_remote_code=local)  # fails in less time
        model = SamaForConditionalGeneration.from_pretrained(
            base, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
        )
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
        merged.config.trained = True
        merged.save_pretrained(folder)
        processor.save_pretrained(folder)
        for name in HISTORY:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
        write_model_card(folder, base, to.resolve().name)
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="output folder of train.py with --use_peft")
    parser.add_argument("to", type=Path, help="output folder")
    parser.add_argument("--base", help="base model, if it has moved since training")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    try:
        merge(arguments.adapter, arguments.to, arguments.base, arguments.dtype)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"Saved to {arguments.to}")


if __name__ == "__main__":
    main()
