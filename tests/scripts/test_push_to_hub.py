"""Uploads to a fake Hub server."""

import base64
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from processes import run_script_anew, start

from sama.scripts.push_to_hub import files_to_upload, main
from sama.training.checkpoints import TrainingError
from sama.training.model_card import model_card


SCRIPT = Path(__file__).parents[2] / "scripts" / "push_to_hub.py"


class FakeHub(BaseHTTPRequestHandler):
    """Answers the Hub's requests for creating a repository, listing and committing files, and records them."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.requests.append((self.path, self.headers["Authorization"]))
        if self.path == "/api/repos/create":
            server.created = json.loads(body)
            if server.refuse:
                self.answer({"error": "no such token"}, status=401)
                return
            self.answer({"url": f"{server.address}/me/toy", "name": "me/toy", "id": "me/toy"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            added = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                     for line in lines if line["key"] == "file"}  # fmt: skip
            server.commits.append(added)
            for line in lines:
                if line["key"] == "deletedFile":
                    del server.files[line["value"]["path"]]
            server.files |= added
            self.answer({"commitUrl": f"{server.address}/me/toy/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer({"error": "unknown"}, status=404)

    def do_GET(self):
        if self.path.startswith("/api/models/me/toy/tree/main"):
            self.answer([{"type": "file", "path": path, "size": 1, "oid": "0"} for path in self.server.files])
        else:
            self.answer({"error": "unknown"}, status=404)

    def answer(self, content: dict | list, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("localhost", 0), FakeHub)
    server.address = f"http://localhost:{server.server_address[1]}"
    server.requests, server.commits, server.created, server.refuse = [], [], None, False
    server.files = {".gitattributes": b""}
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    """A run's output folder, with files that are not uploaded."""
    run = tmp_path / "run"
    contents = {
        "model.safetensors": "weights",
        "config.json": json.dumps({"model_type": "sama", "trained": True}),
        "modeling_sama.py": "code",
        "qformer_tokenizer/tokenizer.json": "{}",
        "checkpoint-3/model.safetensors": "older",
        "runs/events": "curves",
        "training_args.bin": "arguments",
        "fingerprint.json": json.dumps({"data": {"root": str(tmp_path)}}),
        "order.json": "{}",  # as manifest.json, of a checkpoint
        "manifest.json": "{}",
        "mixture.json": json.dumps({"sources": {"toy_train": {"weight": 1.0, "records": 4000}}}),
        "trainer_state.json": json.dumps(
            {"log_history": [{"loss": 9.0, "step": 1}, {"loss": 2.5, "mask_iou": 0.5, "step": 7}, {"runtime": 3}]}
        ),
    }
    for name, content in contents.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content, encoding="utf-8")
    return run


UPLOADED = ["README.md", "config.json", "model.safetensors", "modeling_sama.py", "qformer_tokenizer/tokenizer.json"]


def push(log: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code of the script, and what it printed. The Hub's client reads its settings when it is imported."""
    process = start(log, run_script_anew, ("huggingface_hub",), SCRIPT, *arguments, **environment)
    process.join()
    return process.exitcode, log.read_text(encoding="utf-8")


def online(hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}


def test_one_commit_has_everything(hub, folder, tmp_path):
    words = (str(folder), "me/toy", "--private", "--license", "apache-2.0")
    code, printed = push(tmp_path / "log.txt", *words, **online(hub))
    assert code == 0, printed
    assert f"{hub.address}/me/toy/commit/1" in printed
    assert (hub.created["name"], hub.created["organization"], hub.created["visibility"]) == ("toy", "me", "private")
    assert {token for path, token in hub.requests if "/toy" in path} == {"Bearer hf_secret"}
    (commit,) = hub.commits
    assert sorted(commit) == UPLOADED
    assert commit["model.safetensors"] == b"weights"
    assert commit["README.md"].decode() == model_card(folder, "me/toy", "apache-2.0")


def test_a_second_upload_deletes_the_weights_of_the_first(hub, folder, tmp_path):
    words = (str(folder), "me/toy", "--license", "mit")
    hub.files |= dict.fromkeys(("adapter_config.json", "adapter_model.bin", "notes.md", "onnx/model.safetensors"), b"")
    code, printed = push(tmp_path / "log.txt", *words, **online(hub))
    assert code == 0 and "Deleted, of an earlier upload: adapter_config.json, adapter_model.bin" in printed, printed
    kept = {".gitattributes", "notes.md", "onnx/model.safetensors"}
    assert set(hub.files) == {*UPLOADED, *kept}
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors").rename(folder / shards[0])
    (folder / shards[1]).write_text("more")
    index = "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    code, printed = push(tmp_path / "log.txt", *words, **online(hub))
    assert code == 0 and len(hub.commits) == 2, printed
    assert set(hub.files) == {*UPLOADED, *kept, *shards, index} - {"model.safetensors"}


def test_http_error_is_a_message(hub, folder, tmp_path):
    hub.refuse = True
    code, printed = push(tmp_path / "log.txt", str(folder), "me/toy", "--license", "mit", **online(hub))
    assert code == 1 and "push_to_hub:" in printed and "Traceback" not in printed
    assert hub.commits == []


def test_dry_run_sends_no_request(hub, folder, tmp_path):
    (folder / "README.md").write_text(model_card(folder, "run", "apache-2.0"))  # as train.py and merge_lora write it
    words = (str(folder), "me/toy", "--dry_run", str(tmp_path / "upload"))
    code, printed = push(tmp_path / "log.txt", *words, **online(hub))
    assert code == 0, printed
    assert hub.requests == []
    written = [path for path in (tmp_path / "upload").rglob("*") if path.is_file()]
    assert sorted(path.relative_to(tmp_path / "upload").as_posix() for path in written) == UPLOADED
    card = ModelCard.load(tmp_path / "upload" / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    for part in ("| toy_train | 1.0 | 4000 |", "| loss | 2.5000 |", "| mask iou | 0.5000 |", "step 7",
                 'from_pretrained("me/toy", trust_remote_code=True'):  # fmt: skip
        assert part in card.text


def run_main(monkeypatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *map(str, arguments)])
    main()


CARD = "---\nlicense: mit\ntags: [sama]\n---\n# My model\n\nResults.\n"


def test_the_card_of_the_folder_is_kept(folder, tmp_path, monkeypatch):
    upload, card = tmp_path / "upload", folder / "README.md"
    card.write_text(CARD)
    run_main(monkeypatch, folder, "me/toy", "--dry_run", upload)
    assert (upload / "README.md").read_text() == CARD
    run_main(monkeypatch, folder, "me/toy", "--new_card", "--dry_run", tmp_path / "new")
    assert (tmp_path / "new" / "README.md").read_text() == model_card(folder, "me/toy", "mit")
    edited = model_card(folder, "run", "mit") + "\n## Limits\n"
    card.write_text(edited)
    run_main(monkeypatch, folder, "me/toy", "--dry_run", tmp_path / "edited")
    assert (tmp_path / "edited" / "README.md").read_text() == edited


def test_the_licence_is_added_to_a_card_without_one(folder, tmp_path, monkeypatch, capsys):
    (folder / "README.md").write_text(CARD.replace("license: mit\n", ""))  # as the conversion of a nameless source
    run_main(monkeypatch, folder, "me/toy", "--license", "mit", "--dry_run", tmp_path / "upload")
    card = ModelCard.load(tmp_path / "upload" / "README.md")
    assert (card.data.license, card.data.tags, card.text.strip()) == ("mit", ["sama"], "# My model\n\nResults.")
    for text, message in ((CARD, "names the licence mit, not gpl-3.0"), ("---\na: [\n---\n# B\n", "cannot be read")):
        (folder / "README.md").write_text(text)
        with pytest.raises(SystemExit):
            run_main(monkeypatch, folder, "me/toy", "--license", "gpl-3.0", "--dry_run", tmp_path / "other")
        assert message in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_an_empty_template_is_no_card(folder, tmp_path, monkeypatch):
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# Model Card for Model ID\n")
    run_main(monkeypatch, folder, "me/toy", "--license", "mit", "--dry_run", tmp_path / "upload")
    assert (tmp_path / "upload" / "README.md").read_text() == model_card(folder, "me/toy", "mit")


def test_a_given_card_names_its_own_licence(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "card.md").write_text(CARD)
    own = ("--card", tmp_path / "card.md", "--dry_run", tmp_path / "upload")
    for other in (("--license", "mit"), ("--new_card",)):
        with pytest.raises(SystemExit):
            run_main(monkeypatch, folder, "me/toy", *own, *other)
        assert "--card" in capsys.readouterr().err and not (tmp_path / "upload").exists()
    run_main(monkeypatch, folder, "me/toy", *own)
    assert (tmp_path / "upload" / "README.md").read_text() == CARD


def test_a_dry_run_needs_an_empty_folder(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "old.py").touch()
    for to in (folder, tmp_path / "used", folder / "config.json"):
        before = sorted(folder.rglob("*"))
        with pytest.raises(SystemExit):
            run_main(monkeypatch, folder, "me/toy", "--license", "mit", "--dry_run", to)
        assert "is not empty" in capsys.readouterr().err.splitlines()[-1] and sorted(folder.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    run_main(monkeypatch, folder, "me/toy", "--license", "mit", "--dry_run", tmp_path / "empty")
    assert (tmp_path / "empty" / "README.md").is_file()


def test_a_licence_is_not_invented(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, folder, "me/toy", "--dry_run", folder / "out")
    assert "--license is missing" in capsys.readouterr().err and not (folder / "out").exists()


def test_missing_network_is_a_message(folder, tmp_path):
    """The HTTP library's errors are of no class that Python or huggingface_hub knows."""
    nobody = {"HF_ENDPOINT": "http://localhost:9", "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    code, printed = push(tmp_path / "log.txt", str(folder), "me/toy", "--license", "mit", **nobody)
    assert code == 1 and "\npush_to_hub: " in printed and "Traceback" not in printed


def test_missing_shards_are_named(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    shards = {f"layer{number}.weight": f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))
    message = "lacks model-00002-of-00003.safetensors, model-00003-of-00003.safetensors, which its index"
    with pytest.raises(ValueError, match=message):
        files_to_upload(folder)
    index.write_text("{")
    with pytest.raises(TrainingError, match=r"index\.json cannot be read"):
        files_to_upload(folder)


@pytest.mark.parametrize(("missing", "message"), [("model.safetensors", "no weights"), ("config.json", "neither")])
def test_incomplete_folder_is_an_error(folder, missing, message):
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=message):
        files_to_upload(folder)
