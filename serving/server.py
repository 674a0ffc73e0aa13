"""The server as a FastAPI app, which uvicorn, Ray Serve or a test runs."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import Scope

from ..resources import PACKAGE
from .bodies import parsing_limiter
from .engine import Engine
from .errors import ApiError, error_response, validation_error
from .files import FileStore
from .limits import Limits
from .metrics import Metrics, MetricsMiddleware
from .reference_page import STYLE, reference_page
from .routes import protected, public
from .schema import ChatChunk
from .security import UPLOAD_PATH, Access, BodyGuard, BrowserGuard, KeyGuard, security_headers
from .service import Service


WEB = PACKAGE / "serving" / "web"
TITLE = "SAMA"
DESCRIPTION = (
    "Chat about a video, point at things in it, get text whose phrases carry mask tracks. The form is that of OpenAI's"
    " chat completions, with a content part `region` in questions and a field `objects` in answers."
)


def create_app(
    engine: Engine | Callable[[], Engine],
    store: FileStore,
    limits: Limits | None = None,
    access: Access | None = None,
    model_name: str = "sama",
) -> FastAPI:
    """
    The server's app.

    Args:
        engine ([`Engine`] or `Callable`): the engine, or a function that makes it. The function is called in a thread
            when the app starts; until it has returned, questions and `/health` are answered with status 503. An engine
            that was made so is closed when the app ends; one that was given is not.
        store ([`FileStore`]): where videos and pictures are.
        limits ([`Limits`], *optional*)
        access ([`Access`], *optional*): who may use the server; by default programs and pages of this machine.
        model_name (`str`, *optional*): the name of the model for clients.
    """
    limits, access = limits or Limits(), access or Access()
    service = Service(engine, store, limits, access, model_name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start_loading()
        yield
        service.close()

    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service, app.state.limits, app.state.parsing = service, limits, parsing_limiter()
    add_guards(app, limits, access, service.metrics)
    add_error_handlers(app, access)
    app.include_router(public)
    # The check itself is in KeyGuard, before the body; this is for the documentation
    needs_key = [Security(HTTPBearer(auto_error=False))] if access.api_key is not None else []
    app.include_router(protected, dependencies=needs_key)
    _add_reference(app)
    if WEB.is_dir():
        app.mount("/", PageFiles(directory=WEB, html=True), name="page")
    return app


class PageFiles(StaticFiles):
    """The files of a page. Browsers ask each time whether one has changed: those of two versions are never mixed.

    It is mounted at the root, so it is also asked for every address that no route takes with this method: 405 if one
    takes another method, 404 if nothing is there.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            methods = allowed_methods(scope)
            if methods:
                raise HTTPException(405, headers={"Allow": ", ".join(methods)}) from error
            if error.status_code == 405 and self.lookup_path(path)[1] is None:
                raise HTTPException(404) from error
            raise

    def file_response(self, *arguments, **options) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


def allowed_methods(scope: Scope) -> list[str]:
    """The methods that the routes of the app take at the address of a request to what is mounted at its root."""
    scope = {**scope, "root_path": scope["app_root_path"]}
    routes = [*scope["app"].routes, *public.routes, *protected.routes]
    found = [route for route in routes if isinstance(route, Route) and route.matches(scope)[0] != Match.NONE]
    return sorted({method for route in found for method in route.methods or ()})


def add_guards(app: FastAPI, limits: Limits, access: Access, metrics: Metrics | None = None) -> None:
    """The checks before the routes; what is added last comes first."""
    app.add_middleware(BodyGuard, limits=limits)
    app.add_middleware(KeyGuard, access=access)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("Retry-After", "Content-Disposition"),
        )
    app.add_middleware(BrowserGuard, access=access)
    if metrics is not None:
        app.add_middleware(MetricsMiddleware, metrics=metrics)


def add_error_handlers(app: FastAPI, access: Access) -> None:
    """Answers every error as an OpenAI error object."""

    async def known(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(error)

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(validation_error(error.errors()))

    async def left(_: Request, error: Exception) -> Response:
        return error_response(ApiError(400, "The connection was closed before the request was complete."))

    async def unknown(_: Request, error: Exception) -> Response:
        # Answered outside of the guards, which would add the headers
        headers = security_headers(access)
        return error_response(ApiError(500, "There was an error in the server; its log has more.", headers=headers))

    app.add_exception_handler(HTTPException, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, left)
    app.add_exception_handler(Exception, unknown)


def _add_reference(app: FastAPI) -> None:
    """The documentation: `/openapi.json`, and a page of our own at `/docs` that loads nothing from other hosts."""

    def openapi() -> dict:
        if app.openapi_schema is None:
            app.openapi_schema = openapi_document(app)
        return app.openapi_schema

    async def page() -> Response:
        return HTMLResponse(reference_page(openapi()))

    async def style() -> Response:
        return Response(STYLE, media_type="text/css")

    app.openapi = openapi
    app.add_api_route("/docs", page, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route("/docs/style.css", style, methods=["GET", "HEAD"], include_in_schema=False)


def openapi_document(app: FastAPI) -> dict:
    """FastAPI's OpenAPI document, without its own form of validation errors, and with the chunks of streams."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    schemas = document["components"]["schemas"]
    form = document["paths"][UPLOAD_PATH]["post"]["requestBody"]["content"]["multipart/form-data"]
    schemas["UploadForm"] = schemas.pop(form["schema"]["$ref"].rpartition("/")[2]) | {"title": "UploadForm"}
    form["schema"] = {"$ref": "#/components/schemas/UploadForm"}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    chunk = ChatChunk.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= chunk.pop("$defs", {}) | {"ChatChunk": chunk}
    return document
