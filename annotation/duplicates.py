"""Texts that say the same: equal when normalised, or with many word sequences in common."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np


SEQUENCE_LENGTH = 5  # words
MAX_SIMILARITY = 0.8  # Jaccard index of the word sequences, above which two texts are duplicates
NUM_HASHES, ROWS_PER_BAND = 128, 4  # 32 bands: finds pairs at 0.8 with a probability of 1 - 1e-7
PRIME = (1 << 31) - 1


def normalised(text: str) -> tuple[str, ...]:
    """The words in lower case, without punctuation. Object tags stay: they say what a question is about."""
    return tuple(re.findall(r"<obj[0-9]+>|[^\W_]+(?:'[^\W_]+)?", text.lower()))


def sequences(words: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """All sequences of `SEQUENCE_LENGTH` consecutive words; the whole text if it is shorter."""
    if len(words) <= SEQUENCE_LENGTH:
        return frozenset([tuple(words)])
    return frozenset(tuple(words[i : i + SEQUENCE_LENGTH]) for i in range(len(words) - SEQUENCE_LENGTH + 1))


def similarity(first: frozenset, second: frozenset) -> float:
    """The Jaccard index of two sets."""
    return len(first & second) / len(first | second)


def duplicates_within(texts: Sequence[str]) -> dict[int, int]:
    """Index of each text that repeats an earlier one, and the index of that one."""
    found, earlier = {}, []
    for index, text in enumerate(texts):
        words = normalised(text)
        parts = sequences(words)
        for other, other_words, other_parts in earlier:
            if words == other_words or similarity(parts, other_parts) > MAX_SIMILARITY:
                found[index] = other
                break
        else:
            earlier.append((index, words, parts))
    return found


def duplicates_across(texts: Mapping[str, str]) -> dict[str, str]:
    """
    Name of each text that repeats an earlier one, and the name of that one. Candidates are found by MinHash with
    bands, so that the time grows with the number of texts; their similarity is then computed exactly.
    """
    found, bands, kept = {}, {}, {}
    for name, text in texts.items():
        parts = sequences(normalised(text))
        keys = list(_band_keys(_signature(parts)))
        candidates = dict.fromkeys(other for key in keys for other in bands.get(key, ()))
        twin = next((other for other in candidates if similarity(parts, kept[other]) > MAX_SIMILARITY), None)
        if twin is not None:
            found[name] = twin
            continue
        kept[name] = parts
        for key in keys:
            bands.setdefault(key, []).append(name)
    return found


def _signature(parts: Iterable[tuple[str, ...]]) -> np.ndarray:
    """The smallest of the hashes of a set, for each of `NUM_HASHES` hash functions."""
    rng = np.random.default_rng(0)
    factors, offsets = rng.integers(1, PRIME, size=(2, NUM_HASHES, 1), dtype=np.uint64)
    digests = [hashlib.blake2b(" ".join(part).encode(), digest_size=4).digest() for part in parts]
    values = np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64) % np.uint64(PRIME)
    return ((factors * values + offsets) % np.uint64(PRIME)).min(axis=1)


def _band_keys(signature: np.ndarray) -> Iterator[tuple]:
    for start in range(0, NUM_HASHES, ROWS_PER_BAND):
        yield (start, *signature[start : start + ROWS_PER_BAND].tolist())
