"""Provenance of results: hash of the checkpoint and commit of the code."""

import hashlib
import subprocess
from pathlib import Path

from transformers.utils import cached_file


# Files that determine the answers. Code files in the checkpoint do not: the code of this repository is used
CHECKPOINT_FILES = (
    "*.safetensors", "*.index.json", "pytorch_model*.bin", "*config.json", "*token*", "*chat_template*", "*vocab*",
    "merges.txt", "qformer_tokenizer/*",
)  # fmt: skip
HASH_DIGITS, BLOCK = 16, 2**20


def checkpoint_hash(name: str) -> str:
    """The first digits of the SHA-256 over names and contents of weights, configurations and tokenizers in a folder;
    for a name on the Hub the commit of the cached or fetched snapshot."""
    folder = Path(name)
    if not folder.is_dir():
        return Path(cached_file(name, "config.json")).parent.name[:HASH_DIGITS]
    digest = hashlib.sha256()
    found = {path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(found):
        digest.update(path.relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()[:HASH_DIGITS]


def commit_of(folder: Path) -> str:
    """The commit that is checked out in `folder`, with "+" if files differ from it; "unknown" where `folder` is not
    the root of a git repository: an installed package may lie inside the repository of another project."""
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return "unknown"
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout.strip()
