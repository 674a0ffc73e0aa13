"""Errors as the server shows them: OpenAI's error object with one sentence, never a traceback or a path of the
machine."""

import logging
import math
from collections.abc import Sequence
from http import HTTPStatus

import torch
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException


log = logging.getLogger("sama.serving")

MAX_MESSAGE, MAX_NAME = 400, 60  # characters
# The branch of a union that a value belongs to stands in pydantic's locations as if it were a field
_FORM_TAGS = {"text", "parts", "compressed", "plain"}


class ApiError(HTTPException):
    """
    An answer that is an error.

    Args:
        status (`int`): the HTTP status, 400 or more.
        message (`str`): one sentence.
        param (`str`, *optional*): the field of the request that is wrong.
        code (`str`, *optional*): a word for programs.
        headers (`dict`, *optional*)
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.param, self.code = param, code


def error_type(status: int) -> str:
    """OpenAI's name for the kind of an error."""
    names = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return names.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict:
    """OpenAI's error object."""
    sentence = shown(message, MAX_MESSAGE)
    return {"error": {"message": sentence, "type": error_type(status), "param": param, "code": code}}


def error_response(error: HTTPException) -> JSONResponse:
    """The response for an error of ours or of Starlette."""
    param, code = (error.param, error.code) if isinstance(error, ApiError) else (None, None)
    message = str(error.detail)
    if not isinstance(error, ApiError) and message == HTTPStatus(error.status_code).phrase:
        message = {404: "There is nothing at this address.", 405: "This address does not take this method."}.get(
            error.status_code, message
        )
    message = message if message.endswith((".", "!", "?")) else f"{message}."
    body = error_body(error.status_code, message, param, code)
    return JSONResponse(body, error.status_code, headers=error.headers)


def shown(text: str, limit: int) -> str:
    """Text on one line that any terminal and log can show, cut at `limit` characters."""
    line = "".join(mark if mark.isprintable() else " " for mark in text[: limit + 1])
    line = " ".join(line.split())
    return line if len(text) <= limit else f"{line[: limit - 3]}..."


def field_name(location: Sequence[str | int]) -> str:
    """
    `messages[0].content[1].region.box` from the location of an error of pydantic: without the branches of unions,
    which pydantic puts between the fields.
    """
    parts: list[str | int] = []
    role, skip = None, False
    for one in location:
        before, parents = (parts[-1] if parts else None), [part for part in parts if isinstance(part, str)]
        if isinstance(before, int) and not skip:  # the branch of a message or of a content part
            if parents == ["messages"]:
                role, skip = one, True
                continue
            if parents == ["messages", "content"] and role == "user":
                skip = True
                continue
        if before in ("content", "counts") and one in _FORM_TAGS:
            continue
        skip = False
        parts.append(one)
    name = ""
    for part in parts:
        name += f"[{part}]" if isinstance(part, int) else f".{shown(part, MAX_NAME)}"
    return name.removeprefix(".")


def validation_error(errors: Sequence[dict]) -> ApiError:
    """The first error of pydantic as one sentence that names the field."""
    error = errors[0]
    location = error["loc"][1:] if error["loc"] and error["loc"][0] in ("body", "path", "query") else error["loc"]
    name, kind, context = field_name(location), error["type"], error.get("ctx", {})
    place = name or "the body"
    if kind in ("missing", "union_tag_not_found"):
        missing = f"{name}.{context['discriminator'].strip(chr(39))}" if kind == "union_tag_not_found" else name
        return ApiError(400, f"{missing or 'The body'} is missing.", missing or None, "missing")
    if kind == "unknown_field":
        field = f"{name}.{shown(str(context['name']), MAX_NAME)}".removeprefix(".")
        return ApiError(400, f"There is no field {field}.", field, "unknown_field")
    if kind == "extra_forbidden":
        return ApiError(400, f"There is no field {place}.", name or None, "unknown_field")
    if kind == "union_tag_invalid":
        found = shown(str(context["tag"]), MAX_NAME)
        field = f"{name}.{context['discriminator'].strip(chr(39))}"
        return ApiError(400, f"{field} is one of {context['expected_tags']}, got '{found}'.", field)
    if kind in ("too_long", "too_short"):
        least, most = context.get("min_length"), context.get("max_length")
        expected = f"at most {most:,}" if kind == "too_long" else f"at least {least:,}"
        found = f"{place} has {context['actual_length']:,} entries"
        return ApiError(400, f"{found}, {expected} are expected.", name or None)
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ApiError(400, f"{place} {message}." if not message.endswith(".") else f"{place} {message}", name or None)


NO_MEMORY_SECONDS = 10  # until a client should ask again: about as long as an answer
RESTART_SECONDS = 30  # the same, for a server that is restarted


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that the machine or the device has no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def no_memory() -> ApiError:
    """What a client learns when there is no memory for its request."""
    message = "The server has no memory left for this question; a shorter video may work."
    return ApiError(503, message, headers=retry_after(NO_MEMORY_SECONDS))


def shutting_down(what: str) -> ApiError:
    """What a client learns whose request the end of the server leaves without an answer."""
    return ApiError(503, f"{what} because the server is shutting down.", headers=retry_after(RESTART_SECONDS))


def log_value_error(error: ValueError) -> None:
    """
    Leaves a trace of a `ValueError` that becomes a 400. Most are checks of the model code of what a request holds; a
    mistake of the server can look the same.
    """
    log.warning("A request was refused because of a ValueError", exc_info=error)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that tells when to try again."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
