"""
What clients of an OpenAI-compatible endpoint need besides the exchange itself: a checked URL, the API key, texts in
which the key is hidden, and the wait that the endpoint asks for. Nothing here imports `openai`.
"""

import json
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlsplit


CHAT_PATH = "/chat/completions"
SHOWN_CHARACTERS = 300  # of an invalid response, in error messages
HIDDEN = "***"


def check_url(url: str, owner: str) -> None:
    """
    Checks the URL of an endpoint. The message contains no password.

    Args:
        url (`str`): What the user gave.
        owner (`str`): Whose URL it is, for the message: "judge".

    Raises:
        `ValueError`: It is not an http or https URL, or contains a user name, a password, a query or a fragment.
    """
    shown = f"{HIDDEN}@{url.rpartition('@')[2]}" if "@" in url else url
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is not a number
        right = False
    if not right or not url.isprintable() or " " in url:
        raise ValueError(f"The URL of the {owner} is {shown!r}, expected one such as http://localhost:8000/v1.")
    if "@" in parts.netloc:
        raise ValueError(
            f"The URL of the {owner} contains a user name or password ({shown}), which would be saved with the "
            "results. Remove it; a key belongs in the environment variable OPENAI_API_KEY."
        )
    if parts.query or parts.fragment:
        raise ValueError(
            f"The URL of the {owner} has a query or fragment after {url.partition('?')[0].partition('#')[0]}, "
            "expected only scheme, host and path."
        )


def base_url(url: str) -> str:
    """`url` without `/chat/completions` and without a slash at the end."""
    return url.rstrip("/").removesuffix(CHAT_PATH).rstrip("/")


def read_api_key(variable: str) -> str | None:
    """The key in an environment variable, or `None`; `ValueError` if a header cannot carry it."""
    key = os.environ.get(variable) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"The API key in {variable} contains blanks, line breaks or characters outside ASCII.")
    return key


def without_key(text: str, key: str | None) -> str:
    """`text` with the API key hidden, also where it is quoted as in JSON or in a URL."""
    for form in sorted({key, json.dumps(key)[1:-1], quote(key, safe="")}, key=len, reverse=True) if key else ():
        text = text.replace(form, HIDDEN)
    return text


def shown_body(body: bytes, key: str | None) -> str:
    """The beginning of a body, without the key and without control characters."""
    text = without_key(body.decode(errors="replace"), key)[:SHOWN_CHARACTERS]
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def has_surrogates(text: str) -> bool:
    """Whether a text contains surrogates, which are not Unicode characters and cannot be saved in UTF-8."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def retry_after_s(header: str | None) -> float | None:
    """Seconds of a `Retry-After` header, a number or a date; `None` if it is neither."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        pass
    else:
        return max(0.0, seconds) if seconds < float("inf") else None  # NaN is not, either
    try:
        date = parsedate_to_datetime(header)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None
