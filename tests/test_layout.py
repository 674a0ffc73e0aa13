"""The rules of CONTRIBUTING.md as code. Every rule is a function from a file to its violations, and every one is fed
a bad snippet below, so that none of them passes because it cannot fail."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest


ROOT = Path(__file__).parent.parent
TINY = ROOT / "checkpoints" / "sama-tiny"

# What the rooms without a model know of a conversation: its settings, its text, what is pointed at, its video
CONVERSATION = {
    "configuration_sama",
    "objects_sama",
    "pictures_sama",
    "prompts_sama",
    "regions_sama",
    "templates_sama",
    "video_readers_sama",
    "video_sama",
}
# Who may import whom. A file or folder that is not named here must be put somewhere first.
REMOTE_CODE = {
    "versions_sama": set(),
    "checkpointing_sama": set(),
    "configuration_sama": {"versions_sama"},
    "generation_sama": {"versions_sama"},
    "inputs_sama": {"configuration_sama"},
    "losses_sama": set(),
    "modeling_sama_aggregator": {"configuration_sama"},
    "modeling_sama_backbones": {"configuration_sama", "pixels_sama", "versions_sama"},
    "modeling_sama_memory": set(),
    "modeling_sama_tracker": {
        "checkpointing_sama",
        "configuration_sama",
        "modeling_sama_memory",
        "tracking_sama",
    },
    "tracking_sama": {"modeling_sama_memory"},
    "modeling_sama": {
        "chat_sama",
        "checkpointing_sama",
        "configuration_sama",
        "generation_sama",
        "frame_encoder_sama",
        "inputs_sama",
        "losses_sama",
        "modeling_sama_aggregator",
        "modeling_sama_backbones",
        "modeling_sama_tracker",
        "versions_sama",
    },
    "chat_sama": CONVERSATION - {"prompts_sama"}
    | {
        "encoding_sama",
        "feature_store_sama",
        "generation_sama",
        "frame_encoder_sama",
        "inputs_sama",
        "messages_sama",
        "modeling_sama_tracker",
        "overlay_sama",
        "prefetch_sama",
        "streaming_sama",
    },
    "feature_store_sama": {"frame_encoder_sama", "prefetch_sama", "tracking_sama"},
    "frame_encoder_sama": {"pixels_sama", "prefetch_sama", "tracking_sama"},
    "pixels_sama": set(),
    "prefetch_sama": set(),
    "streaming_sama": {"prompts_sama"},
    "processing_sama": CONVERSATION
    | {
        "encoding_sama",
        "messages_sama",
        "templates_sama",
        "mp4_sama",
        "pictures_sama",
        "pixels_sama",
        "regions_sama",
        "rendered_text_sama",
    }
    | {"checkpointing_sama", "modeling_sama_backbones", "modeling_sama_memory", "modeling_sama_tracker"}
    | {"tracking_sama", "versions_sama", "video_readers_sama"},
    "rendered_text_sama": {"configuration_sama", "messages_sama", "prompts_sama", "templates_sama"},
    "prompts_sama": {"configuration_sama", "objects_sama", "templates_sama"},
    "templates_sama": set(),
    "messages_sama": {"objects_sama", "prompts_sama", "regions_sama", "video_sama"},
    "encoding_sama": {"configuration_sama", "messages_sama", "objects_sama", "pixels_sama", "prompts_sama"}
    | {"templates_sama", "video_sama"},
    "objects_sama": {"regions_sama", "video_sama"},
    "regions_sama": {"video_sama"},
    "video_sama": {"configuration_sama", "pictures_sama", "video_readers_sama"},
    "video_readers_sama": {"mp4_sama"},
    "mp4_sama": set(),
    "pictures_sama": set(),
    "overlay_sama": {"video_readers_sama"},
}
ENTRY_POINTS = {"annotate", "cli", "demo", "evaluate", "serve", "train", "train_grpo"}
LIBRARY = {"annotation", "benchmarks", "bulk", "conversion", "data", "drawing", "evaluation", "metrics", "resources"}
LIBRARY |= {"serving", "toy_world", "training"}
EVERYTHING_BELOW = set(REMOTE_CODE) | LIBRARY
ROOMS = {
    **REMOTE_CODE,
    **dict.fromkeys(ENTRY_POINTS, EVERYTHING_BELOW),
    "__init__": set(),
    "annotation": set(REMOTE_CODE)
    | {"annotation", "bulk", "data", "drawing", "evaluation", "metrics", "resources", "serving", "toy_world"},
    "cli": {"annotate", "conversion", "demo", "evaluate", "resources", "serve", "train", "train_grpo"},
    "benchmarks": CONVERSATION | {"benchmarks", "data", "metrics", "resources", "toy_world"},
    "bulk": set(REMOTE_CODE) | {"benchmarks", "bulk", "data", "evaluation", "metrics", "resources", "serving"},
    "conversion": set(REMOTE_CODE) | {"conversion", "data"},
    "data": CONVERSATION | {"data", "toy_world"},
    "docs": set(),
    "drawing": CONVERSATION | {"benchmarks", "data", "drawing", "overlay_sama"},
    "evaluation": set(REMOTE_CODE) | {"benchmarks", "data", "drawing", "evaluation", "metrics", "resources"},
    "metrics": {"metrics"},
    "profiling": EVERYTHING_BELOW | {"profiling"},
    "recipes": EVERYTHING_BELOW | {"recipes"},
    "resources": set(),
    "scripts": EVERYTHING_BELOW,
    "serving": set(REMOTE_CODE) | {"data", "drawing", "resources", "serving"},
    "tests": EVERYTHING_BELOW | ENTRY_POINTS | {"profiling", "recipes", "scripts", "tests"},
    "toy_world": {"toy_world"},
    "training": set(REMOTE_CODE) | {"data", "drawing", "metrics", "training"},
}
REMOTE_LIBRARIES = {"torch", "numpy", "PIL", "transformers"} | set(sys.stdlib_module_names)
OPTIONAL_LIBRARIES = {"decord", "av", "pillow_heif"}  # inside try only

MAX_FUNCTION, MAX_FILE, MAX_PARAMETERS = 80, 500, 8
LONGER_FILES = {"modeling_sama.py": 900, "modeling_sama_tracker.py": 560, "processing_sama.py": 645}
SETTINGS_CLASSES = ("Config", "Processor")  # what their __init__ takes is what save_pretrained writes

# (file, code) -> why probing is right there
ALLOWED_PROBES: dict[tuple[str, str], str] = {}

GLOBAL_SEEDS = {"manual_seed", "manual_seed_all", "set_seed", "enable_full_determinism"}
GLOBAL_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}


class File(NamedTuple):
    """One Python file: its path below the root with forward slashes, and its text."""

    path: str
    text: str

    @property
    def nodes(self) -> tuple[ast.AST, ...]:
        return nodes_of(self)

    @property
    def room(self) -> str:
        first = self.path.split("/")[0]
        return first.removesuffix(".py")

    @property
    def runs(self) -> bool:
        """Entry points, scripts and tests: they own their process."""
        return (
            self.room in ENTRY_POINTS | {"profiling", "recipes", "scripts", "tests"}
            or self.path == "conversion/convert.py"
        )


@cache
def nodes_of(file: File) -> tuple[ast.AST, ...]:
    """All nodes of the file, outer ones first. They are the same for all rules, which only read them."""
    return tuple(ast.walk(ast.parse(file.text, file.path)))


def calls(file: File) -> Iterator[tuple[ast.Call, str]]:
    """Each call with the written name of what is called: `torch.rand`, `hasattr`."""
    for node in file.nodes:
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def functions(file: File) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Each function with the name of the class it stands in, or ''."""
    for parent in file.nodes:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node, parent.name if isinstance(parent, ast.ClassDef) else ""


def imports(file: File) -> Iterator[tuple[str, int, int, bool]]:
    """(module, level, line, guarded) of each import; guarded: in a `try` that catches ImportError."""
    guarded = set()
    for node in file.nodes:
        if isinstance(node, ast.Try) and any(h.type and "ImportError" in ast.unparse(h.type) for h in node.handlers):
            guarded.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    for node in file.nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, 0, node.lineno, id(node) in guarded
        elif isinstance(node, ast.ImportFrom):
            # `from . import x` and `from sama import x` name the module in the second half
            alone = node.module is None or (node.module == "sama" and not node.level)
            for name in node.names if alone else [None]:
                module = ".".join(part for part in (node.module, name and name.name) if part)
                yield module, node.level, node.lineno, id(node) in guarded


def import_arrows(file: File) -> list[str]:
    if file.room not in ROOMS:
        return [f"{file.path} is in no room: name it in ROOMS"]
    found = []
    for module, level, line, _ in imports(file):
        parts = module.split(".")
        if level:
            folders = file.path.split("/")[:-1]
            target = [*folders[: len(folders) - level + 1], *parts][0]
        elif parts[0] == "sama":
            target = parts[1] if len(parts) > 1 else "sama"
        else:
            continue
        if target not in ROOMS[file.room]:
            found.append(f"{file.path}:{line} {file.room} must not import {target}")
    return found


def remote_code_imports(file: File) -> list[str]:
    if file.path.removesuffix(".py") not in REMOTE_CODE:
        return []
    found = []
    for module, level, line, guarded in imports(file):
        library = module.split(".")[0]
        if level == 1 and "." not in module:
            continue
        if level or library not in REMOTE_LIBRARIES | (OPTIONAL_LIBRARIES if guarded else set()):
            found.append(f"{file.path}:{line} imports {'.' * level}{module}: every user of a checkpoint would need it")
    # transformers finds the files to copy by this expression over the text, docstrings included
    written = re.findall(r"^\s*(?:from\s+\.\S+\s+import|import\s+\.)", file.text, re.MULTILINE)
    if len(written) != sum(level > 0 for _, level, _, _ in imports(file)):
        found.append(f"{file.path}: a relative import stands in a string, where transformers reads it as one")
    return found


def sizes(file: File) -> list[str]:
    lines, limit = len(file.text.splitlines()), LONGER_FILES.get(file.path, MAX_FILE)
    found = [f"{file.path} has {lines} lines, at most {limit}"] if lines > limit else []
    for function, _ in functions(file):
        length = function.end_lineno - function.lineno + 1
        if length > MAX_FUNCTION:
            found.append(f"{file.path}:{function.lineno} {function.name} has {length} lines, at most {MAX_FUNCTION}")
    return found


def parameters(file: File) -> list[str]:
    found = []
    for function, owner in functions(file):
        if function.name in ("forward", "apply_chat_template") or (
            function.name == "__init__" and owner.endswith(SETTINGS_CLASSES)
        ):
            continue
        names = [
            argument.arg for argument in function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        ]
        count = len(names) - (bool(owner) and names[:1] in (["self"], ["cls"]))
        if count > MAX_PARAMETERS:
            found.append(f"{file.path}:{function.lineno} {function.name} has {count} parameters, at most 8")
    return found


def probing(file: File) -> list[str]:
    return [
        f"{file.path}:{node.lineno} probes: {ast.unparse(node)}"
        for node, name in calls(file)
        if (name == "hasattr" or (name == "getattr" and len(node.args) == 3))
        and (file.path, ast.unparse(node)) not in ALLOWED_PROBES
    ]


def global_chance(file: File) -> list[str]:
    found = [f"{file.path}:{line} imports random" for module, level, line, _ in imports(file)
             if module == "random" and not level]  # fmt: skip
    for node, name in calls(file):
        first, _, last = name.rpartition(".")
        own = first.endswith("Generator()")  # a generator that was just made
        seeds = last in GLOBAL_SEEDS and not own and (first in ("", "transformers") or first.startswith("torch"))
        draws = first == "torch" and last in GLOBAL_DRAWS and "generator" not in [word.arg for word in node.keywords]
        if not file.runs and (seeds or draws):
            found.append(f"{file.path}:{node.lineno} {name} uses the global random state")
    return found


RULES: list[Callable[[File], list[str]]] = [
    import_arrows, remote_code_imports, sizes, parameters, probing, global_chance,
]  # fmt: skip

BAD_SNIPPETS = [
    (import_arrows, "modeling_sama.py", "from .processing_sama import SamaProcessor"),
    (import_arrows, "processing_sama.py", "def f():\n    from . import modeling_sama"),
    (import_arrows, "scripts/plot_run.py", "from sama.demo import main"),
    (import_arrows, "train.py", "import sama.scripts.plot_run"),
    (import_arrows, "metrics/jf.py", "from sama import data"),
    (import_arrows, "data/masks.py", "from ..modeling_sama import SamaModel"),
    (import_arrows, "data/readers/llava.py", "from ...processing_sama import SamaProcessor"),
    (import_arrows, "utils.py", "x = 1"),
    (remote_code_imports, "modeling_sama.py", "import tqdm"),
    (remote_code_imports, "video_sama.py", "import decord"),
    (remote_code_imports, "video_sama.py", "try:\n    import cv2\nexcept ImportError:\n    cv2 = None"),
    (remote_code_imports, "video_sama.py", "try:\n    import av\nfinally:\n    pass"),
    (remote_code_imports, "chat_sama.py", "from sama.video_sama import Region"),
    (remote_code_imports, "chat_sama.py", "from .data.masks import decode"),
    (remote_code_imports, "chat_sama.py", '"""For example:\n    from .video_sama import Region\n"""'),
    (sizes, "video_sama.py", "\n" * 501),
    (sizes, "modeling_sama.py", "\n" * 901),
    (sizes, "video_sama.py", "def f():\n" + "    x = 1\n" * 80),
    (parameters, "video_sama.py", "def f(a, b, c, d, e, f, g, h, *, i): ..."),
    (parameters, "chat_sama.py", "class Chat:\n    def __init__(self, a, b, c, d, e, f, g, h, i): ..."),
    (probing, "video_sama.py", "if hasattr(video, 'fps'): ..."),
    (probing, "tests/test_video_sama.py", "fps = getattr(video, name, None)"),
    (global_chance, "demo.py", "import random"),
    (global_chance, "tests/test_demo.py", "from random import choice"),
    (global_chance, "video_sama.py", "torch.manual_seed(0)"),
    (global_chance, "video_sama.py", "torch.cuda.manual_seed_all(0)"),
    (global_chance, "video_sama.py", "set_seed(0)"),
    (global_chance, "modeling_sama.py", "x = torch.randint(3, (2,))"),
]
GOOD_SNIPPETS = [
    ("modeling_sama.py", "from .configuration_sama import SamaConfig\nimport torch\nimport torch.nn.functional as F"),
    ("video_sama.py", "try:\n    import decord\nexcept ImportError:\n    decord = None"),
    ("data/readers/llava.py", "from ..masks import union\nfrom .streams import stream_list"),
    ("video_sama.py", "def f(self, a, b, c, d, e, f, g): ...\n" + "def g():\n" + "    x = 1\n" * 79),
    ("modeling_sama.py", "class M:\n    def forward(self, a, b, c, d, e, f, g, h, i): ...\n" + "\n" * 890),
    ("configuration_sama.py", "class SamaConfig:\n    def __init__(self, a, b, c, d, e, f, g, h, i): ..."),
    ("modeling_sama.py", "x = torch.randint(3, (2,), generator=generator)\ngenerator.manual_seed(0)"),
    ("tests/test_demo.py", "from sama.demo import main\ntorch.manual_seed(0)\nx = getattr(torch, name)"),
]


def listed_files() -> list[str]:
    """What git tracks or would add; without git, what lies outside hidden folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        listed = [path.as_posix() for path in every if not any(part.startswith(".") for part in path.parts)]
    return sorted(path for path in listed if (ROOT / path).is_file())


LISTED = listed_files()
PYTHON = [path for path in LISTED if path.endswith(".py") and not path.startswith(("checkpoints/", "build/"))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule):
    files = [File(path, (ROOT / path).read_text(encoding="utf-8")) for path in PYTHON]
    assert [violation for file in files for violation in rule(file)] == []


@pytest.mark.parametrize(("rule", "path", "text"), BAD_SNIPPETS)
def test_rule_finds_the_bad_snippet(rule, path, text):
    assert len(rule(File(path, text))) == 1


@pytest.mark.parametrize(("path", "text"), GOOD_SNIPPETS)
def test_rules_let_the_good_snippet_pass(path, text):
    assert [rule(File(path, text)) for rule in RULES] == [[]] * len(RULES)


def test_every_rule_is_fed_a_bad_snippet():
    assert {rule for rule, _, _ in BAD_SNIPPETS} == set(RULES)


# What ruff knows how to find: print, bare except, mutable defaults, import *, commented-out code, numpy's global state


def ruff(*arguments: str, text: str | None = None) -> list[dict]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json", *arguments]
    result = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stderr
    return json.loads(result.stdout)


def test_ruff_finds_nothing():
    found = [f"{row['filename']}:{row['location']['row']} {row['code']} {row['message']}" for row in ruff(".")]
    assert found == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("T201", "print(1)\n"),
        ("E722", "try:\n    x = 1\nexcept:\n    x = 2\n"),
        ("B006", "def f(x=[]):\n    return x\n"),
        ("F403", "from torch import *\n"),
        ("ERA001", "x = 1\n# y = f(x)\n"),
        ("NPY002", "import numpy as np\n\n\nnp.random.seed(0)\n"),
        ("E501", f"x = '{'a' * 119}'\n"),
    ],
)
def test_ruff_is_set_to_find(code, text):
    assert code in [row["code"] for row in ruff("--stdin-filename", "video_sama.py", "-", text=text)]


@pytest.mark.parametrize("path", ["demo.py", "scripts/plot_run.py", "profiling/inference.py"])
def test_programs_may_print(path):
    assert ruff("--stdin-filename", path, "-", text="print(1)\n") == []


# Text files of every kind

# Written with classes of one letter, so that this file does not match itself
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.~<:/-])/(?:home|root|work|workspace|mnt|data|tmp|opt|usr/local|Users|scratch|var)/[\w.]|\b[C-Z]:\\Users"
)
REGISTRY_URL = re.compile(
    r"https?[:]//\S*(?:pypi|pythonhosted|whl|simple/|wheel|index|conda|npm|mirror)", re.IGNORECASE
)


def outside_world(text: str) -> list[str]:
    """Absolute paths and addresses of package registries: they are true on one machine only."""
    return [match[0] for pattern in (ABSOLUTE_PATH, REGISTRY_URL) for match in pattern.finditer(text)]


def test_no_file_names_a_machine():
    found = {}
    for path in LISTED:
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures, videos and weights
        if outside_world(text):
            found[path] = outside_world(text)
    assert found == {}


@pytest.mark.parametrize("host", ["pypi.org/simple", "download.pytorch.org/whl/cpu", "files.pythonhosted.org/x"])
def test_outside_world_finds_registries(host):
    assert outside_world("pip install --index-url https" + "://" + host)


@pytest.mark.parametrize("folder", ["home", "root", "work", "tmp", "data"])
def test_outside_world_finds_absolute_paths(folder):
    assert outside_world(f"path = '/{folder}/x.mp4'")
    assert outside_world(f"see https://example.org/{folder}/x, ../{folder}/x and #!/usr/bin/env bash") == []


# Links


def links(listing: str) -> list[str]:
    """The symbolic links in the output of `git ls-files --stage`: they lead out of a clone, or nowhere on Windows."""
    entries = (line.split(maxsplit=3) for line in listing.splitlines())
    return [path for mode, _, _, path in entries if mode == "120000"]


def test_no_link_is_tracked():
    command = ["git", "ls-files", "--stage"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git, or this is not a repository")
    assert links(listing) == []


def test_links_are_found():
    assert links("100644 0123abc 0\ta b.py\n120000 0123abc 0\t.venv\n") == [".venv"]


# The copies beside the small checkpoint


def different_copies(folder: Path) -> list[str]:
    """Remote-code files whose copy in `folder` is absent or differs by a byte from the one at the root."""
    names = [f"{name}.py" for name in REMOTE_CODE]
    return [
        name
        for name in names
        if not (folder / name).is_file() or (folder / name).read_bytes() != (ROOT / name).read_bytes()
    ]


def test_checkpoint_carries_the_same_code():
    if not TINY.is_dir():
        pytest.skip("checkpoints/sama-tiny does not exist: make it with recipes/sama_tiny/initialize.py")
    assert different_copies(TINY) == [], "make sync renews the copies"
    assert sorted(path.stem for path in TINY.glob("*.py")) == sorted(REMOTE_CODE)


def test_different_copies_finds_one_byte(tmp_path):
    for name in REMOTE_CODE:
        if (ROOT / f"{name}.py").is_file():
            (tmp_path / f"{name}.py").write_bytes((ROOT / f"{name}.py").read_bytes() + b"\n")
    assert len(different_copies(tmp_path)) == len(REMOTE_CODE)
