"""The console command `sama`: which entry point runs, with which arguments, and what is said when it cannot run."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import run_script_without, start

from sama import cli


ROOT = Path(__file__).parent.parent


def use_entry_point(monkeypatch, module: str, main) -> None:
    monkeypatch.setitem(sys.modules, f"sama.{module}", SimpleNamespace(main=main))


@pytest.mark.parametrize(("name", "command"), cli.COMMANDS.items())
def test_command_hands_over_its_arguments(monkeypatch, name, command):
    calls = []

    def entry_point(argv):
        calls.append((argv, sys.argv))
        return 3

    before = sys.argv
    use_entry_point(monkeypatch, command.module, entry_point)
    assert cli.main([name, "--limit", "2", "--help"]) == 3
    assert calls == [(["--limit", "2", "--help"], [f"sama {name}", "--limit", "2", "--help"])]
    assert sys.argv is before


def test_arguments_come_from_the_process(monkeypatch):
    calls = []
    use_entry_point(monkeypatch, "train", lambda argv: calls.append(argv) or 0)
    monkeypatch.setattr(sys, "argv", ["sama", "train", "--config", "run.yaml"])
    assert cli.main() == 0 and calls == [["--config", "run.yaml"]]


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_commands_and_shipped_files(capsys, option):
    assert cli.main([option]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text and command.summary in text for name, command in cli.COMMANDS.items())
    assert str(cli.SMALL_MODEL) in text and str(cli.DATA_CONFIGS) in text


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sama {version('sama')}\n"


def test_no_command_prints_the_help_as_an_error(capsys):
    assert cli.main([]) == 2
    assert "usage: sama" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["trian", "--frames"])
def test_unknown_command(capsys, argument):
    assert cli.main([argument, "--help"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    expected = "expected one of chat, serve, train, grpo, evaluate, annotate, convert."
    assert captured.err == f"sama: unknown command '{argument}', {expected}\n"


@pytest.mark.parametrize(
    ("name", "missing", "requirement"),
    [
        ("train", "datasets", "'sama[train]'"),
        ("evaluate", "yaml", "'sama[eval]'"),
        ("serve", "fastapi", "'sama[serve]'"),
        ("convert", "av", "sama"),
    ],
)
def test_missing_module_names_the_extra(monkeypatch, capsys, name, missing, requirement):
    def entry_point(argv):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    use_entry_point(monkeypatch, cli.COMMANDS[name].module, entry_point)
    assert cli.main([name]) == 1
    sentence = f"The Python module {missing} is not installed. Run: pip install {requirement}"
    assert capsys.readouterr().err == f"sama {name}: {sentence}\n"


def test_missing_module_during_the_import_of_an_entry_point(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "sama.train", raising=False)
    monkeypatch.setitem(sys.modules, "trl", None)
    assert cli.main(["train", "--help"]) == 1
    assert (
        capsys.readouterr().err
        == "sama train: The Python module trl is not installed. Run: pip install 'sama[train]'\n"
    )


def test_unsupported_version_is_one_sentence(monkeypatch, capsys):
    def entry_point(argv):
        raise ImportError("SAMA needs transformers >= 5.17.")

    use_entry_point(monkeypatch, "train", entry_point)
    assert cli.main(["train"]) == 1
    assert capsys.readouterr().err == "sama train: SAMA needs transformers >= 5.17.\n"


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'sama.absent'", name="sama.absent"),
        ImportError("cannot import name 'x' from 'torch'", name="torch"),
    ],
)
def test_defects_keep_their_traceback(monkeypatch, error):
    def entry_point(argv):
        raise error

    use_entry_point(monkeypatch, "train", entry_point)
    with pytest.raises(type(error)) as raised:
        cli.main(["train"])
    assert raised.value is error


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["--help"], "usage: sama "),
        (["chat", "--help"], "usage: sama chat "),
        (["serve", "--help"], "usage: sama serve "),
    ],
)
def test_help_does_not_import_torch(arguments, usage):
    program = f"""
import sys
from sama.cli import main
try:
    code = main({arguments})
except SystemExit as stop:
    code = stop.code
assert not code and not {{"torch", "transformers", "fastapi"}} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(usage)


@pytest.mark.parametrize(
    ("script", "missing", "extra"),
    [
        ("evaluate", "pycocotools", "eval"),
        ("train", "trl", "train"),
        ("scripts/predict", "pyarrow", "bulk"),
        ("scripts/plot_run", "matplotlib", "train"),
        ("scripts/merge_lora", "peft", "train"),
        ("scripts/validate_data", "datasets", "train"),
    ],
)
def test_a_script_without_its_extra_is_one_sentence(script, missing, extra, tmp_path):
    """The file is run as `python evaluate.py --help` would, in an environment that lacks a module of the extra."""
    log = tmp_path / "log.txt"
    process = start(log, run_script_without, missing, ROOT / f"{script}.py", "--help")
    process.join()
    assert process.exitcode == 1
    name = Path(script).name
    sentence = f"{name}: The Python module {missing} is not installed. Run: pip install 'sama[{extra}]'\n"
    printed = log.read_text(encoding="utf-8")
    assert printed.endswith(sentence) and "Traceback" not in printed
