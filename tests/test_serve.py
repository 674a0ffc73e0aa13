"""The command line of the server, in a process of its own: it starts, says where it is, and ends."""

import http.client
import os
import re
import signal
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from processes import finish, run_script, run_script_without, start

from sama import serve
from sama.serving import connections
from sama.serving.limits import Limits, described_limits, limits_from, option


ROOT = Path(__file__).parent.parent


def test_it_serves_until_it_is_told_to_end(tmp_path):
    log = tmp_path / "log.txt"
    process = start(log, run_script, ROOT / "serve.py", "--port", "0", "--folder", tmp_path / "files")
    try:
        while not (log.exists() and log.read_text(encoding="utf-8").count("ends it)\n")):
            assert process.is_alive(), log.read_text(encoding="utf-8")[-2000:]
            process.join(0.05)
        address = r"^SAMA: http://127\.0\.0\.1:(\d+)/  \(Ctrl-C ends it\)$"
        port = int(re.search(address, log.read_text(encoding="utf-8"), re.MULTILINE)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        assert connection.getresponse().read() == b'{"status":"ok","model":"sama-tiny"}'
        assert (tmp_path / "files").is_dir()
        process.terminate()  # SIGTERM
        finish(process, log, 60)
        assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        process.kill()
        process.join()


def test_a_signal_while_the_model_is_loaded_ends_the_server(monkeypatch, capsys, tmp_path):
    servers, make_server, handler = [], connections.make_server, signal.getsignal(signal.SIGTERM)
    forgotten = threading.Event()

    def end_anyway():
        forgotten.set()
        servers[0].should_exit = True

    timer = threading.Timer(60, end_anyway)

    def make_and_keep(*arguments):
        servers.append(make_server(*arguments))
        return servers[-1]

    def load(settings, limits):
        timer.start()
        while not (servers[0].started or forgotten.is_set()):  # from then on the handlers are uvicorn's
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        while not servers[0].should_exit:
            time.sleep(0.001)
        return Mock()  # before the server looks whether it should end

    monkeypatch.setattr(connections, "make_server", make_and_keep)
    monkeypatch.setattr(serve, "make_engine", load)
    try:
        assert serve.main(["--port", "0", "--folder", str(tmp_path / "files")]) == 0
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, handler)
    for thread in threading.enumerate():
        if thread.name == "sama-load":
            thread.join()
    assert not forgotten.is_set()
    assert capsys.readouterr().out == ""  # it does not say where it is


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "no/such/folder"], "There is no folder no/such/folder"),
        (["--model", "~nobody/x"], "There is no folder ~nobody/x"),
        (["--host", "0.0.0.0"], "needs an API key"),
        (["--api-key", "a b"], "printable ASCII"),
        (["--allow-origin", "*"], "An allowed origin looks like"),
        (["--max-running", "0"], "The limit running must be a whole number above 0, got 0."),
        (["--max-request-seconds", "nan"], "The limit request_seconds must be a number above 0, got nan."),
        (["--host", "192.0.2.1", "--api-key", "k"], "Cannot listen on 192.0.2.1, port 8000"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, capsys, options, sentence):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    assert serve.main(options) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("serve: ") and sentence in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--port", "65536"], ["--min-component-fraction", "2"], ["--max-running", "x"], ["--max-runing", "3"]]
)
def test_options_that_are_none(capsys, options):
    with pytest.raises(SystemExit) as stopped:
        serve.main(options)
    assert stopped.value.code == 2 and options[0][:9] in capsys.readouterr().err


def test_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv(serve.KEY_VARIABLE, "secret")
    assert serve.parse_arguments([]).api_key == "secret"
    assert serve.parse_arguments(["--api-key", "other"]).api_key == "other"


def test_every_limit_is_an_option():
    arguments = serve.parse_arguments([])
    assert limits_from(arguments) == Limits()
    for one, _, text in described_limits():
        assert text and limits_from(serve.parse_arguments([option(one.name), "7"])) == Limits(**{one.name: 7})


@pytest.mark.parametrize("value", [0, -1, True, "3", float("inf"), 1.5])
def test_limits_are_whole_numbers_above_zero(value):
    with pytest.raises(ValueError, match="The limit running must be a whole number above 0, got"):
        Limits(running=value)


def test_a_missing_extra_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    log = tmp_path / "log.txt"
    process = start(log, run_script_without, "fastapi", ROOT / "serve.py", "--port", "0")
    process.join()
    assert process.exitcode == 1
    sentence = "serve: The Python module fastapi is not installed. Run: pip install 'sama[serve]'\n"
    assert log.read_text(encoding="utf-8").endswith(sentence)
