"""What cannot be run in the tests: the image and the files for clusters name things that exist, and no key."""

import ast
import json
import re
import tomllib
from dataclasses import fields
from fnmatch import fnmatch

import pytest
from test_layout import LISTED, ROOT
from test_package import shipped_files

from sama import serve
from sama.serving.limits import Limits


yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install -e '.[dev]'")
SECRET = re.compile(r"key|secret|token|password", re.IGNORECASE)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def context(paths: list[str]) -> list[str]:
    """Those of the paths that .dockerignore lets in. The last pattern that matches one, or its folder, decides."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    found = []
    for path in paths:
        parts, ignored = path.split("/"), False
        above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        for pattern in patterns:
            name = pattern.removeprefix("!").removeprefix("**/")
            candidates = parts if "**/" in pattern else [one for one in above if one.count("/") == name.count("/")]
            if any(fnmatch(one, name) for one in candidates):
                ignored = not pattern.startswith("!")
        found += [] if ignored else [path]
    return found


def test_images_are_pinned_or_stages():
    arguments = dict(text.split("=", 1) for name, text in instructions() if name == "ARG")
    stages = set()
    for text in [text for name, text in instructions() if name == "FROM"]:
        image, _, stage = text.partition(" AS ")
        image = re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], image)
        assert image in stages or re.search(r":\d+\.\d+", image), image
        stages.add(stage)


def test_what_is_copied_exists():
    stages = {text.partition(" AS ")[2] for name, text in instructions() if name == "FROM"}
    for text in [text for name, text in instructions() if name == "COPY"]:
        option = re.match(r"--from=(\w+) ", text)
        if option:
            assert option[1] in stages
            continue
        for source in text.split()[:-1]:
            assert (ROOT / source).exists() and (source == "." or context([source]))


def test_the_context_is_the_package():
    needed = shipped_files(LISTED) | {"pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"}
    assert sorted(needed - set(context(sorted(needed)))) == []


@pytest.mark.parametrize(
    "path",
    [".env", ".git/config", "serving/__pycache__/x.pyc", "checkpoints/sama-1b/model.safetensors", "key.txt"]
    + ["tests/test_layout.py", "docs/log.md", "outputs/x.mp4", "holiday.mp4", ".venv/bin/python"],
)
def test_nothing_else_is_in_the_context(path):
    assert context([path]) == []


def test_the_image_runs_the_server_without_rights():
    last = dict(instructions())  # the last one of each name
    assert last["USER"] not in ("root", "0")
    program, subcommand, *options = json.loads(last["ENTRYPOINT"])
    assert program in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert subcommand == "serve"
    arguments = serve.parse_arguments(options)
    assert (arguments.host, str(arguments.port)) == ("0.0.0.0", last["EXPOSE"])
    assert f"http://127.0.0.1:{last['EXPOSE']}/health" in last["HEALTHCHECK"]


def test_no_layer_holds_a_secret():
    assert [text for name, text in instructions() if name in ("ARG", "ENV") and SECRET.search(text)] == []


# ---- the files for clusters


def app_arguments() -> dict[str, ast.AnnAssign]:
    """The fields of the arguments of ray_app.py, which cannot be imported without Ray."""
    tree = ast.parse((ROOT / "serving" / "ray_app.py").read_text())
    assert "app_builder" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "AppArguments")
    names = {node.target.id: node for node in found.body if isinstance(node, ast.AnnAssign)}
    return {name: node for name, node in names.items() if name != "model_config"}


def applications() -> list[dict]:
    kubernetes = yaml.safe_load((ROOT / "deploy" / "rayservice.yaml").read_text())
    configs = [(ROOT / "deploy" / "serve.yaml").read_text(), kubernetes["spec"]["serveConfigV2"]]
    return [application for config in configs for application in yaml.safe_load(config)["applications"]]


def test_clusters_run_the_application():
    assert len(applications()) == 2
    for application in applications():
        assert application["import_path"] == "sama.serving.ray_app:app_builder"
        assert set(application["args"]) <= set(app_arguments())
        assert set(application["args"].get("limits", {})) <= {one.name for one in fields(Limits)}


def test_no_file_for_clusters_holds_the_key():
    cluster = yaml.safe_load((ROOT / "deploy" / "cluster.yaml").read_text())
    assert cluster["max_workers"] == len(cluster["provider"]["worker_ips"])
    assert "SAMA_API_KEY=" not in (ROOT / "deploy" / "cluster.yaml").read_text()  # the machines read only sama/.env
    kubernetes = yaml.safe_load((ROOT / "deploy" / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    for group in (kubernetes["headGroupSpec"], *kubernetes["workerGroupSpecs"]):
        (variable,) = group["template"]["spec"]["containers"][0]["env"]
        assert variable["name"] == "SAMA_API_KEY" and set(variable) == {"name", "valueFrom"}


def test_every_argument_is_documented():
    guide = (ROOT / "docs" / "deployment.md").read_text()
    assert [name for name in app_arguments() if f"`{name}`" not in guide] == []
    named = set(re.findall(r"\bdeploy/[\w.]+", guide))
    assert named == {f"deploy/{path.name}" for path in (ROOT / "deploy").iterdir()}
