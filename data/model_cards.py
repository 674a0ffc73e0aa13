"""The metadata of a model card: what a model may be used for, and what it was made from."""

from pathlib import Path

import yaml


CARD = "README.md"


def card_metadata(folder: str | Path) -> dict:
    """
    The metadata at the head of a folder's model card; empty if there is no card, or its head cannot be read.

    Args:
        folder (`str` or `Path`): of a model. A name on the Hub, which is not a folder, has no card here.
    """
    path = Path(folder) / CARD
    try:
        head, mark, rest = path.read_text(encoding="utf-8").partition("---\n")
        values = yaml.safe_load(rest.partition("\n---")[0]) if mark and not head.strip() else None
    except (OSError, ValueError, yaml.YAMLError):  # PyYAML raises ValueError for a date such as 2024-13-01
        return {}
    return values if isinstance(values, dict) else {}


def license_of(folder: str | Path) -> str | None:
    """The licence that a folder's model card names, as a Hub identifier."""
    value = card_metadata(folder).get("license")
    return value if isinstance(value, str) and value else None


def hub_name(model: str | Path) -> str | None:
    """
    The name on the Hub of a model: of a folder in the Hub's cache its own, of another folder the base model that its
    card names, and of what is no folder the text itself if it has the form `owner/name`.
    """
    path = Path(model)
    for part in path.parts:
        if part.startswith("models--") and part.count("--") == 2:
            return part.removeprefix("models--").replace("--", "/")
    if path.is_dir():
        value = card_metadata(path).get("base_model")
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, str) and value.count("/") == 1 else None
    name = str(model)
    return name if name.count("/") == 1 and not name.startswith((".", "/", "~")) else None
