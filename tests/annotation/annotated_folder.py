"""An output folder of `annotate.py` for tests of what reads one: clips of toy world with their true dialogues."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sama.annotation.completions import Usage
from sama.annotation.costs import Costs, Price, Spent
from sama.annotation.export import item_hash, tagged_text
from sama.annotation.render import RenderSettings, render
from sama.annotation.scenes import Scene, SceneObject
from sama.toy_world.export import write_records
from sama.toy_world.world import ToySettings, ToyWorld


WORLD = ToySettings(frames=(12, 16), height=96, width=128, tasks={"dialogue": 1.0})
REVIEW_FILES = ("records.jsonl", "provenance.jsonl", "review.jsonl", "review_records.jsonl", "run.json")
MODELS = {
    "writer": {"model": "writer-7b", "revision": "2026-10", "host": "models.example"},
    "verifier": {"model": "verifier-3b", "revision": "", "host": ""},
}


def copy_review(written: Path, to: Path) -> Path:
    """Copies the files of a review, so that each test has its own decisions; returns `to`."""
    for name in REVIEW_FILES:
        (to / name).write_bytes((written / name).read_bytes())
    return to


def write_folder(folder: Path, num_clips: int = 2, review_turns: int = 2, seed: int = 0) -> Path:
    """
    Writes `folder / "clips"` and the output folder `folder / "out"`, which is returned.

    Args:
        folder (`Path`): Created if needed.
        num_clips (`int`): Each becomes one record with a dialogue.
        review_turns (`int`): Turns of each dialogue that are in the review queue, too.
        seed (`int`): Of toy world.
    """
    clips, out = folder / "clips", folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    lines = write_records(ToyWorld(WORLD, seed), clips, range(num_clips)).read_text(encoding="utf-8").splitlines()
    records, origins, review, review_records, index = [], [], [], [], {}
    for number, line in enumerate(lines):
        record = json.loads(line)
        scene = _scene(record, clips)
        record["id"] = f"{scene.id}/conversation"
        pictures = render(scene.id, scene.open(), scene.objects, RenderSettings(frames=6, size=320))
        index[scene.id] = f"{number:016x}"
        _write_pictures(out / "rendered" / index[scene.id], pictures.shown, pictures.drawn)
        names = [one.name for one in scene.objects]
        labels = {f"obj{i}": name for i, name in enumerate(names, 1)}
        drawn = {label: {"name": labels[label], "color": c} for label, c in zip(labels, pictures.colors, strict=True)}
        records.append(record)
        origins.append({"id": record["id"], "objects": drawn})
        for turn in range(review_turns):
            item, own = _review_item(record, turn, labels, pictures.shown)
            review.append(item)
            review_records.append(own)
    write_rows(out / "records.jsonl", records)
    write_rows(out / "provenance.jsonl", origins)
    write_rows(out / "review.jsonl", review)
    write_rows(out / "review_records.jsonl", review_records)
    (out / "rendered" / "index.json").write_text(json.dumps(index), encoding="utf-8")
    _write_run(out, clips, num_clips)
    return out


def _scene(record: dict, clips: Path) -> Scene:
    objects = tuple(SceneObject(name, tuple(item["masks"])) for name, item in record["objects"].items())
    return Scene(f"toy/{record['id']}", "toy", record["video"], objects, clips)


def _review_item(record: dict, turn: int, labels: dict[str, str], shown: Sequence[int]) -> tuple[dict, dict]:
    question, answer = record["messages"][2 * turn : 2 * turn + 2]
    name = f"{record['id']}/{turn + 1}"
    own = {**record, "id": name, "messages": [question, answer]}
    names = list(labels.values())
    text = {"question": tagged_text(question, names), "answer": tagged_text(answer, names)}
    item = {
        "id": name,
        "record": record["id"],
        "turn": turn,
        "object": None,
        "reasons": [{"code": "unseen", "at": "turns[0]", "detail": "the verifying model does not see it"}],
        "text": text,
        "frames": list(shown),
        "masks_ref": {"file": "review_records.jsonl", "id": name, "objects": labels},
        "scores": {"relocate_iou": [0.41]},
        "audit": turn % 2 == 1,
        "suggested": "reject",
        "item_hash": item_hash(text, own),
    }
    return item, own


def _write_pictures(folder: Path, numbers: Iterable[int], pictures: Iterable[bytes]) -> None:
    folder.mkdir(parents=True)
    for number, picture in zip(numbers, pictures, strict=True):
        (folder / f"{number:05d}.jpg").write_bytes(picture)


def _write_run(out: Path, clips: Path, num_clips: int) -> None:
    run = {
        "settings": {"rounds": 1, "seed": 0},
        "models": MODELS,
        "root": str(clips),
        "videos": {"kept": num_clips, "review": 1, "rejected": 1, "error": 2},
        "items": {
            "description": {"items": 41, "kept": 33, "refined": 4, "review": 2, "rejected": 6},
            "conversation": {"items": 57, "kept": 40, "refined": 9, "review": 8, "rejected": 9},
        },
        "findings": {"tag_unknown": 7, "leak": 6, "count": 2, "unseen": 11, "relocate": 4},
        "reasons": {"tag_unknown": 3, "leak": 5, "relocate": 4},
    }
    (out / "run.json").write_text(json.dumps(run), encoding="utf-8")
    answer = "It is <p> the red box </p> <obj9> & <script>alert(1)</script>"
    text = {"question": "What is <obj9> doing?", "answer": answer}
    reasons = [
        {"code": "tag_unknown", "at": "turns[0].question", "detail": "<obj9> is none of the 3 objects"},
        {"code": "leak", "at": "turns[0].answer", "detail": "names a drawn box"},
    ]
    place = {"record": "toy/7/conversation", "turn": 0, "object": None, "stage": "conversation"}
    write_rows(out / "rejected.jsonl", [place | {"reasons": reasons, "text": text}])
    errors = [
        {"video": "toy/8", "class": "transient", "message": "writer gave no answer in 6 tries: HTTP 503."},
        {"video": "toy/9", "class": "data", "message": "<b>clip.mp4</b> cannot be read."},
    ]
    write_rows(out / "errors.jsonl", errors)
    costs = Costs(out / "costs.jsonl", {"writer": Price(2.5, 10, 1.25)})
    call = Spent("describe", "toy/0", "writer", "answer", Usage(15_812, 3_000, 911), False, 4.25)
    for spent in [call] * 9 + [replace(call, stage="verify", model="verifier", estimated=True)] * 3:
        costs.settle(costs.reserve(spent.model, Usage(1, 0, 1)), spent)
    costs.close()


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """Writes JSON Lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
