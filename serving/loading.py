"""Loads a checkpoint for use: a folder or a model of the Hub, on a device."""

import json
from pathlib import Path
from typing import Any

from sama.data.files import user_path
from sama.resources import PACKAGE, SMALL_MODEL


DEFAULT_MODEL = SMALL_MODEL
MODEL_CLASS = "modeling_sama.SamaForConditionalGeneration"  # as `auto_map` of a SAMA names it
HUB_TIMEOUT = 10.0  # seconds for the one request that tells whether a model exists


def check_model_name(model: str) -> None:
    """
    Checks that there is a model of this name, before anything is loaded or written: a folder, or a model on the Hub,
    for which one request is made unless it is in the cache.

    Raises:
        FileNotFoundError: if there is neither.
        ConnectionError: if the Hub cannot be reached.
        ValueError: if the folder holds a released model, which must be converted first.
    """
    if user_path(model).is_dir():
        if not (user_path(model) / "config.json").is_file():
            raise FileNotFoundError(f"The folder {model} has no config.json, so there is no model in it.")
        check_converted(model)
        return
    if model == str(DEFAULT_MODEL):
        raise FileNotFoundError(f"The small model is missing: there is no folder {DEFAULT_MODEL}; name another model.")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise FileNotFoundError(f"There is no folder {model} with a model, and a name on the Hub is owner/name.")
    # Imported here, so that other mistakes on the command line do not wait for it
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
        HfApi().model_info(model, timeout=HUB_TIMEOUT)
    except HFValidationError:
        raise FileNotFoundError(f"There is no folder {model} with a model, and it is no name on the Hub.") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"There is no folder {model}, and no model of this name on the Hub that this account can read."
        ) from None
    except Exception as error:  # of the HTTP library, which is another one in other versions of huggingface_hub
        raise ConnectionError(
            f"There is no folder {model}, and the Hub could not be asked for a model of this name: "
            f"{' '.join(str(error).split())}"
        ) from error


def read_settings(folder: Path) -> dict:
    """What stands in the config.json of a folder; nothing if it cannot be read. What is wrong with it is said where it
    is loaded."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def check_converted(model: str) -> None:
    """Raises `ValueError` for a folder with a released SAMA or Sa2VA, whose code needs another transformers."""
    settings = read_settings(user_path(model))
    if settings.get("model_type") == "sa2va_chat" or "llm_config" in settings:
        raise ValueError(
            f"The model {model} is as it was released and must be converted first: "
            "python scripts/convert_checkpoint.py (docs/checkpoints.md)."
        )


def load_model(
    model: str,
    device: str = "auto",
    dtype: str = "auto",
    preset: str | None = None,
    trust_remote_code: bool = False,
    memory_pool: int | None = None,
    compile: bool = False,
) -> tuple:
    """
    The model, on its device and in evaluation mode, and its processor.

    A folder is loaded with the code in it, or, where the two are the same, with that of this package. A model on the
    Hub is loaded with the code of this package, and none of its own code is run, unless `trust_remote_code` is set.

    Args:
        model (`str`): a folder, or the name of a model on the Hub.
        device (`str`, *optional*, defaults to "auto"): "cpu", "cuda" or "mps"; "auto" takes a GPU if there is one.
        dtype (`str`, *optional*, defaults to "auto"): "auto" takes the checkpoint's, and float32 on a CPU.
        preset (`str`, *optional*): "published" or "consistent"; by default the checkpoint's own.
        trust_remote_code (`bool`, *optional*, defaults to `False`): whether the code of a model on the Hub is run.
        memory_pool (`int`, *optional*): 1, or 2 for an approximation, see `SamaConfig`; by default the checkpoint's.
        compile (`bool`, *optional*, defaults to `False`): whether the mask tracker is compiled, which takes minutes at
            its first use.

    Raises:
        FileNotFoundError: if there is no such folder or model.
        ConnectionError: if the Hub cannot be reached.
        ValueError: if the device is not available, or the model has no such setting.
    """
    check_model_name(model)
    # Imported here, so that --help and mistakes on the command line do not wait for torch.
    import torch

    folder = user_path(model)
    model = str(folder) if folder.is_dir() else model
    own_code = folder.is_dir() and not has_code_of_package(folder)
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise ValueError(f'The device "{device}" is not available to this installation of torch; use "auto".')
    if dtype == "auto" and device == "cpu":
        dtype = "float32"  # half precision saves memory on a CPU, but is slower on most
    given = {"preset": preset, "memory_pool": memory_pool}
    settings = {name: value for name, value in given.items() if value is not None}
    load = load_own_code if own_code or (trust_remote_code and not folder.is_dir()) else load_package_code
    loaded, processor = load(model, dtype, settings)
    if compile:
        compile_tracker(loaded)
    return loaded.to(device).eval(), processor


def compile_tracker(model: Any) -> None:
    """Compiles a model's mask tracker. Raises `ValueError` for the code of a checkpoint that cannot."""
    try:
        compile_parts = model.model.mask_tracker.compile_parts
    except AttributeError as error:
        raise ValueError("The checkpoint carries code from before version 0.3, which cannot be compiled.") from error
    compile_parts()


def load_package_code(model: str, dtype: str, settings: dict[str, Any]) -> tuple:
    """Model and processor by the classes of this package."""
    from sama.modeling_sama import SamaForConditionalGeneration
    from sama.processing_sama import SamaProcessor

    loaded = SamaForConditionalGeneration.from_pretrained(model, dtype=dtype, **settings)
    # With the configuration, nothing looks for one in code
    return loaded, SamaProcessor.from_pretrained(model, trust_remote_code=False, config=loaded.config)


def load_own_code(model: str, dtype: str, settings: dict[str, Any]) -> tuple:
    """Model and processor by the classes that come with the model."""
    from transformers import AutoConfig, AutoModel, AutoProcessor

    if settings:
        config = AutoConfig.from_pretrained(model, trust_remote_code=True)
        for name in set(settings) - set(config.to_dict()):
            raise ValueError(f"The model {model} has no `{name}`, so it cannot be chosen.")
    loaded = AutoModel.from_pretrained(model, trust_remote_code=True, dtype=dtype, **settings)
    return loaded, AutoProcessor.from_pretrained(model, trust_remote_code=True, **settings)


def has_code_of_package(folder: Path) -> bool:
    """Whether the code in the folder of a SAMA is that of this package, byte for byte. Then it need not be copied into
    the cache of transformers, searched for imports and imported a second time."""
    classes = read_settings(folder).get("auto_map")
    if not isinstance(classes, dict) or classes.get("AutoModel") != MODEL_CLASS:
        return False
    files = list(folder.glob("*.py"))
    copies = [PACKAGE / file.name for file in files]
    return any(file.stem == MODEL_CLASS.split(".")[0] for file in files) and all(
        copy.is_file() and copy.read_bytes() == file.read_bytes() for copy, file in zip(copies, files, strict=True)
    )
