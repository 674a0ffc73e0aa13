"""Puts a trained adapter into its model: the result loads without PEFT, and without the adapter's folder.

    python scripts/merge_lora.py outputs/train outputs/merged
    python scripts/merge_lora.py outputs/train outputs/merged --base checkpoints/sama-8b --dtype bfloat16

The adapter's folder is what train.py wrote with --use_peft. Parts that were trained in full beside it are put in too.
An adapter of a 4-bit model is merged into the model as it was before it was loaded in 4 bits.
"""

import argparse
import json
from pathlib import Path

import torch
from peft import PeftModel

from sama.modeling_sama import SamaForConditionalGeneration
from sama.processing_sama import SamaProcessor


def merge(adapter: Path, to: Path, base: str | None = None, dtype: str = "auto") -> SamaForConditionalGeneration:
    """
    Merges and saves, with the processor that lies beside the adapter.

    Args:
        adapter (`Path`): Folder with `adapter_config.json`.
        to (`Path`): Folder to write; it must not have a model in it.
        base (`str`, *optional*): The model that was trained, if not where the adapter says.
        dtype (`str`): Of the weights: `auto` as in `base`, or a name of torch's.

    Raises:
        ValueError: if `adapter` holds none, or `to` holds a model.
    """
    settings = adapter / "adapter_config.json"
    if not settings.is_file():
        raise ValueError(f"{settings} does not exist: a folder that train.py wrote with --use_peft is expected")
    if (to / "config.json").exists():
        raise ValueError(f"{to} holds a model already; name another folder")
    base = base or json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"]
    model = SamaForConditionalGeneration.from_pretrained(
        base, dtype=dtype if dtype == "auto" else getattr(torch, dtype)
    )
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    merged.config.trained = True
    processor_folder = adapter if (adapter / "processor_config.json").is_file() else base
    merged.save_pretrained(to)
    SamaProcessor.from_pretrained(processor_folder, trust_remote_code=True).save_pretrained(to)
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder that train.py wrote with --use_peft")
    parser.add_argument("to", type=Path, help="folder to write")
    parser.add_argument("--base", help="the model that was trained, if it is not where the adapter says")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    try:
        merge(arguments.adapter, arguments.to, arguments.base, arguments.dtype)
    except ValueError as error:
        parser.error(str(error))
    print(f"Saved to {arguments.to}")


if __name__ == "__main__":
    main()
