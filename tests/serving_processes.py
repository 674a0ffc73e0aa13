"""What the processes of tests/serving/test_load.py do: a server that can be killed, and a client that can."""

import socket
import tempfile
from pathlib import Path

from sama import serve


def run_server(folder: Path, scratch: Path) -> int:
    """`serve.py` with uploaded files in `folder` and temporary ones in `scratch`."""
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    options = ["--port", "0", "--device", "cpu", "--min-component-fraction", "0"]  # as an `Engine` of the tests
    return serve.main([*options, "--folder", str(folder)])


def read_answer(port: int, request: bytes, received: Path) -> None:
    """Sends a request and appends what comes to the file `received`."""
    with socket.create_connection(("127.0.0.1", port)) as connection, open(received, "wb", buffering=0) as file:
        connection.sendall(request)
        while chunk := connection.recv(65_536):
            file.write(chunk)
