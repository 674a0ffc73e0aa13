"""Serves a model: a page for the browser, and an HTTP interface in the form of OpenAI's chat completions.

    python serve.py                                      the small model, on http://127.0.0.1:8000
    python serve.py --model sama-1b --port 9000
    SAMA_API_KEY=... python serve.py --host 0.0.0.0      for other machines, with a key
    python serve.py --review outputs/annotation          a page on which people review what was annotated

Ctrl-C ends it. docs/serving.md describes the interface, the limits and who may do what.
"""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from sama.serving.limits import add_limit_options, limits_from
from sama.serving.loading import check_model_name
from sama.serving.settings import KEY_VARIABLE, ModelSettings, add_model_options, check_model_options, make_engine


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than 127.0.0.1 need a key")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--api-key", default=os.environ.get(KEY_VARIABLE), metavar="KEY",
        help=f"what clients must send; better given as the variable {KEY_VARIABLE}",
    )  # fmt: skip
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="ORIGIN",
        help="a page of another host that may use the server, https://example.org; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="another name by which the server may be called, as by a proxy; may be given several times",
    )  # fmt: skip
    parser.add_argument("--allow-urls", action="store_true", help="fetch http(s) URLs that messages name")
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="keep uploaded files there (default: a temporary folder)"
    )
    parser.add_argument(
        "--review", type=Path, metavar="FOLDER",
        help="serve the review page for this output folder of annotate.py, without a model",
    )  # fmt: skip
    parser.add_argument(
        "--review-videos", type=Path, metavar="FOLDER", help="its videos (default: where annotate.py found them)"
    )
    parser.add_argument("--verbose", action="store_true", help="log every request")
    add_limit_options(parser)
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port <= 65_535:
        parser.error(f"--port must lie between 0 and 65535, got {arguments.port}")
    if arguments.review_videos is not None and arguments.review is None:
        parser.error("--review-videos needs --review")
    if arguments.review is not None:
        given = {"--folder": arguments.folder is not None, "--allow-urls": arguments.allow_urls}
        given["--model"] = arguments.model != parser.get_default("model")
        unused = [name for name, is_given in given.items() if is_given]
        if unused:
            parser.error(f"--review needs no model, and does not use {', '.join(unused)}")
    check_model_options(parser, arguments)
    return arguments


def serve(arguments: argparse.Namespace) -> None:
    """Checks everything that can be checked without the model, then serves until the process is told to end."""
    settings, limits = cast(ModelSettings, arguments), limits_from(arguments)
    check_model_name(arguments.model)
    # What imports FastAPI is imported here, so that --help does not wait for it
    from sama.serving.connections import make_server
    from sama.serving.files import FileStore
    from sama.serving.security import access_for
    from sama.serving.server import create_app
    from sama.serving.service import model_name

    access = access_for(
        arguments.host,
        arguments.api_key,
        tuple(arguments.allow_origin),
        tuple(arguments.allow_host),
        arguments.allow_urls,
    )
    with listening_socket(arguments.host, arguments.port) as listener, state_folder(arguments.folder) as folder:
        store = FileStore(folder, limits)
        app = create_app(lambda: make_engine(settings, limits), store, limits, access, model_name(arguments.model))
        service = app.state.service
        server = make_server(app, limits, arguments.verbose, service.close)

        def loaded() -> None:
            if service.load_error is not None:
                server.should_exit = True
            elif not server.should_exit:  # a signal may have come while it was loaded
                print(f"SAMA: {address(listener)}  (Ctrl-C ends it)", flush=True)

        service.on_loaded = loaded
        server.run(sockets=[listener])
        if service.load_error is not None:
            raise ValueError(f"The model could not be loaded: {service.load_error}") from service.load_error


def serve_review(arguments: argparse.Namespace) -> None:
    """Serves the review page until the process is told to end."""
    from sama.annotation.review import ReviewQueue
    from sama.annotation.review_server import create_review_app, trusted_of_run, videos_folder
    from sama.serving.connections import make_server
    from sama.serving.security import access_for

    limits = limits_from(arguments)
    origins, hosts = tuple(arguments.allow_origin), tuple(arguments.allow_host)
    access = access_for(arguments.host, arguments.api_key, origins, hosts, urls=False)
    root = videos_folder(arguments.review, arguments.review_videos)
    # A folder that was given is the only one whose files are shown
    trusted = trusted_of_run(arguments.review) if arguments.review_videos is None else []
    with listening_socket(arguments.host, arguments.port) as listener:
        app = create_review_app(ReviewQueue(arguments.review), root, limits, access, trusted)
        print(f"SAMA review: {address(listener)}  (Ctrl-C ends it)", flush=True)
        make_server(app, limits, arguments.verbose).run(sockets=[listener])


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `OSError` with one sentence if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.") from error


def address(listener: socket.socket) -> str:
    """The address of the page. Where the server listens on all addresses, this machine's own."""
    bound, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bound) or bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextmanager
def state_folder(given: Path | None) -> Iterator[Path]:
    """Where uploaded files are: the folder that was given, or one that ends with the process, however it ends."""
    if given is not None:
        yield given
        return
    from sama.feature_store_sama import make_feature_folder

    with make_feature_folder() as name:
        yield Path(name) / "files"


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 2 after a mistake of the user."""
    arguments = parse_arguments(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until uvicorn has its own handlers
    try:
        (serve if arguments.review is None else serve_review)(arguments)
    except (ValueError, OSError) as error:
        print(f"serve: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # how a server is told to end
        return 0
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("sama"):
            raise
        sys.exit(f"serve: The Python module {error.name} is not installed. Run: pip install 'sama[serve]'")
