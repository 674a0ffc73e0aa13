"""The versions of transformers that SAMA runs with, and what they call things that were renamed within that range.

The other files import this one before they import from transformers, so that a version outside the range ends in one
sentence instead of an error from somewhere inside the library.
"""

import transformers


OLDEST_TRANSFORMERS = (5, 17)  # included
NEWEST_TRANSFORMERS = (6,)  # excluded


def release_of(version: str) -> tuple[int, int]:
    """Major and minor release number of a version: `(5, 24)` for "5.24.0", "5.24.1rc1" and "5.24.0.dev0"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def check_transformers(version: str) -> tuple[int, int]:
    """`release_of(version)`, if SAMA runs with it.

    Raises:
        ImportError: for a version outside the supported range.
    """
    release = release_of(version)
    if not OLDEST_TRANSFORMERS <= release < NEWEST_TRANSFORMERS:
        oldest, newest = (".".join(map(str, numbers)) for numbers in (OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS))
        raise ImportError(
            f"SAMA needs transformers >= {oldest} and < {newest}, but version {version} is installed. "
            f'Run: pip install "transformers>={oldest},<{newest}"'
        )
    return release


TRANSFORMERS = check_transformers(transformers.__version__)

# The key/value cache as an argument of a language model and of `generate`, and as a field of what they return
CACHE = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"
