"""Loads a checkpoint for use: a folder or a model of the Hub, on a device."""

from pathlib import Path

from sama.resources import SMALL_MODEL


DEFAULT_MODEL = SMALL_MODEL


def load_model(model: str, device: str = "auto", dtype: str = "auto", preset: str | None = None) -> tuple:
    """
    The model, on its device and in evaluation mode, and its processor.

    Args:
        model (`str`): a folder, or the name of a model on the Hub.
        device (`str`, *optional*, defaults to "auto"): "cpu", "cuda" or "mps"; "auto" takes a GPU if there is one.
        dtype (`str`, *optional*, defaults to "auto"): "auto" takes the checkpoint's, and float32 on a CPU.
        preset (`str`, *optional*): "published" or "consistent"; by default the checkpoint's own.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the device is not available, or the model has no presets.
    """
    # Imported here, so that --help and mistakes on the command line do not wait for torch.
    import torch
    from transformers import AutoConfig, AutoModel, AutoProcessor

    if model == str(DEFAULT_MODEL) and not DEFAULT_MODEL.is_dir():
        raise FileNotFoundError(f"The small model is missing: there is no folder {DEFAULT_MODEL}; name another model.")
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise FileNotFoundError(f"There is no folder {model} with a model.")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise ValueError(f'The device "{device}" is not available to this installation of torch; use "auto".')
    if dtype == "auto" and device == "cpu":
        dtype = "float32"  # half precision saves memory on a CPU, but is slower on most
    settings = {}
    if preset is not None:
        config = AutoConfig.from_pretrained(model, trust_remote_code=True)
        if "preset" not in config.to_dict():
            raise ValueError(f"The model {model} has no presets, so none can be chosen.")
        settings = {"preset": preset}
    loaded = AutoModel.from_pretrained(model, trust_remote_code=True, dtype=dtype, **settings)
    processor = AutoProcessor.from_pretrained(model, trust_remote_code=True, **settings)
    return loaded.to(device).eval(), processor
