"""Reads JSON bodies strictly: what RFC 8259 leaves open is refused with one sentence instead of being guessed."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData

from .errors import MAX_NAME, ApiError, shown
from .limits import Limits, option


MAX_DIGITS = 20  # of a whole number with its sign; more do not fit into 64 bits
MAX_FORM_FIELDS, MAX_FORM_VALUE = 8, 1024
INLINE_BYTES = 64 * 1024  # a larger body is parsed in a thread, so that other requests do not wait for it
# Also one that does not end, so that the search goes over a body once
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(body: bytes, limits: Limits) -> Any:
    """
    The value of a JSON text.

    Raises:
        ApiError: with status 400 for what is not UTF-8 or not JSON, begins with a byte-order mark, names a field
            twice, nests too deeply, has too many values, NaN, Infinity, a number that is too large, or half of a
            surrogate pair.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        raise ApiError(400, "The body begins with a byte-order mark; JSON goes without one.")
    values = _count_values(body, limits.json_values)
    if values > limits.json_values:
        raise ApiError(
            400, f"The body has about {values:,} values, at most {limits.json_values:,} ({option('json_values')})."
        )
    try:
        value = json.loads(
            body.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_whole,
        )
        if _SURROGATE.search(body):
            _check_surrogates(value)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8: byte {error.start} does not belong there.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"The body is not JSON: {error.msg.lower()} at {where}.") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    return value


def _count_values(body: bytes, enough: int) -> int:
    """About how many values a JSON text has, counted before it is parsed: a body of commas would become a hundred
    times as large in memory. Above `enough` the number may be smaller than the true one."""
    values = _count_marks(body)
    if values > enough:
        # Codes of masks have brackets in their text. A value has two strings at most, its name and itself
        outside, strings = _STRING.subn(b"", body, 2 * enough + 2)
        values = max(_count_marks(outside), strings // 2)
    return values


def _count_marks(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ApiError(400, f"The field {shown(twice, MAX_NAME)} is given twice in one object.")
    return value


def _no_constant(name: str) -> Any:
    raise ApiError(400, f"The body holds {name}, which is not JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ApiError(400, f"The number {shown(text, MAX_NAME)} is too large.")
    return number


def _whole(text: str) -> int:
    # The length first: Python refuses to read numbers of thousands of digits
    if len(text) > MAX_DIGITS or not -(2**63) <= int(text) < 2**64:
        raise ApiError(400, f"The number {shown(text, MAX_NAME)} is too large.")
    return int(text)


def _check_surrogates(value) -> None:
    if isinstance(value, dict):
        for name, one in value.items():
            _check_surrogates(name)
            _check_surrogates(one)
    elif isinstance(value, list):
        for one in value:
            _check_surrogates(one)
    elif isinstance(value, str) and any("\ud800" <= mark <= "\udfff" for mark in value):
        raise ApiError(400, "The body holds a text with one half of a surrogate pair, which is not Unicode.")


def media_type(request: Request) -> str:
    """The type of a body without its parameters, in small letters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class StrictRequest(Request):
    """A request whose body is JSON as [`read_json`] reads it, or a form with one file."""

    async def body(self) -> bytes:
        """The bytes of the body; raises an [`ApiError`] with status 415 for a body that is not JSON."""
        if media_type(self) != "application/json":
            raise ApiError(415, "The body is JSON, so its Content-Type is application/json.")
        return await super().body()

    async def json(self) -> Any:
        """The value of the body; a large one is parsed in a thread. Raises an [`ApiError`] as [`read_json`] does."""
        limits: Limits = self.app.state.limits
        body = await super().body()
        if len(body) < INLINE_BYTES:
            return read_json(body, limits)
        return await to_thread.run_sync(read_json, body, limits, limiter=self.app.state.parsing)

    async def form(self, **_) -> FormData:
        """
        The fields of a form, of which one may be a file. FastAPI's own limits have no effect.

        Raises:
            ApiError: for a body of another type (415), and where there is no space for the file (507).
        """
        if media_type(self) != "multipart/form-data":
            raise ApiError(415, "A file is sent as a form, so the Content-Type is multipart/form-data.")
        try:
            return await super().form(max_files=1, max_fields=MAX_FORM_FIELDS, max_part_size=MAX_FORM_VALUE)
        except OSError as error:  # large files are written to the system's temporary folder as they arrive
            raise ApiError(507, f"The upload cannot be stored: {error.strerror or 'the disk failed'}.") from error


class StrictRoute(APIRoute):
    """A route whose requests are [`StrictRequest`]."""

    def get_route_handler(self) -> Callable:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def parsing_limiter() -> CapacityLimiter:
    """Few threads parse large bodies; the others wait."""
    return CapacityLimiter(2)
