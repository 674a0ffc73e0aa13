"""The server of the review page: what it gives out, what it takes, and what it refuses."""

import io
import json
from pathlib import Path
from urllib.parse import urlencode

import anyio
import numpy as np
import pytest
from annotated_folder import copy_review, write_folder, write_rows
from http_server import Client, running_server
from PIL import Image

from sama import serve
from sama.annotation.errors import AnnotationError
from sama.annotation.review import ReviewQueue, read_decisions
from sama.annotation.review_server import ReviewService, create_review_app, trusted_of_run, videos_folder
from sama.serving.errors import ApiError
from sama.serving.security import Access


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("run"), 2)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return copy_review(written, tmp_path)


@pytest.fixture
def client(folder):
    with running_server(create_review_app(ReviewQueue(folder), videos_folder(folder, None))) as client:
        yield client


def get(client: Client, path: str, **query):
    return client.get(f"/v1/review/{path}?{urlencode(query)}")


def next_item(client: Client, reviewer: str = "ann") -> dict:
    answer = get(client, "next", reviewer=reviewer)
    assert answer.status == 200 and answer.headers["cache-control"] == "no-store"
    return answer.json()["item"]


def decide(client: Client, item: dict, decision: str = "accept", **fields):
    about = {"id": item["id"], "hash": item["hash"], "decision": decision, "reviewer": "ann"}
    return client.post("/v1/review/decisions", about | fields)


def test_an_item_says_nothing_of_what_the_checks_found(client):
    answer = get(client, "next", reviewer="ann")
    assert set(answer.json()) == {"item", "progress", "reasons"}
    item = answer.json()["item"]
    assert set(item) == {"id", "hash", "text", "about", "video", "frames", "objects", "decision"}
    for word in (b"audit", b"suggested", b"scores", b"relocate", b"verifying"):
        assert word not in answer.body
    checks = get(client, "checks", id=item["id"]).json()
    assert checks["suggested"] == "reject" and checks["reasons"][0]["code"] == "unseen"


def test_frames_and_masks_are_those_of_the_record(client, folder):
    item = next_item(client)
    record = next(row for row in map(json.loads, (folder / "review_records.jsonl").open()) if row["id"] == item["id"])
    assert item["video"] == {"height": 96, "width": 128, "frames": len(record["video"]["frames"])}
    names = list(record["objects"])
    for number, one in enumerate(item["objects"]):
        assert one["label"] == f"obj{number + 1}"
        assert one["masks"] == [record["objects"][names[number]]["masks"][frame] for frame in item["frames"]]
    frame = item["frames"][1]
    answer = get(client, "frame", id=item["id"], number=frame, hash=item["hash"])
    assert answer.headers["content-type"] == "image/jpeg" and "immutable" in answer.headers["cache-control"]
    root = videos_folder(folder, None)
    written = Image.open(root / record["video"]["path"] / record["video"]["frames"][frame])
    difference = np.asarray(Image.open(io.BytesIO(answer.body)), int) - np.asarray(written, int)
    assert np.abs(difference).mean() < 4


def test_decisions_are_written_and_taken_back(client, folder):
    first = next_item(client)
    assert decide(client, first, "reject", reasons=["fact"], seconds=2.5, informed=True).status == 200
    second = next_item(client)
    assert second["id"] != first["id"]
    assert client.post("/v1/review/undo", {"reviewer": "ann"}).json() == {"id": first["id"]}
    again = get(client, "items", id=first["id"], reviewer="ann").json()
    assert again["item"]["decision"] is None and again["progress"]["own"] == 0
    assert client.post("/v1/review/undo", {"reviewer": "ann"}).json() == {"id": None}
    (rejected, undone) = read_decisions(folder / "decisions.jsonl")
    assert (rejected.decision, rejected.reasons, rejected.seconds, rejected.informed) == (
        "reject",
        ["fact"],
        2.5,
        True,
    )
    assert undone.decision == "undo"


def test_a_stale_decision_is_a_conflict(client, folder):
    item = next_item(client)
    answer = decide(client, item | {"hash": "0" * 16})
    assert (
        answer.status == 409
        and answer.error["code"] == "stale"
        and "changed since it was shown" in answer.error["message"]
    )
    assert (folder / "decisions.jsonl").read_bytes() == b""


def test_an_edit_that_breaks_a_rule_names_the_rule(client):
    item = next_item(client)
    edit = {"question": "What is <obj9> doing there?", "answer": "It is <p> this </p> <obj1>."}
    answer = decide(client, item, "edit", edit=edit)
    assert answer.status == 400 and answer.error["code"] == "refused_edit" and "tag_unknown" in answer.error["message"]
    assert decide(client, item, "edit", edit=edit | {"question": "What is <obj1> doing there?"}).status == 200


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"decision": "undo"}, "decision"),
        ({"reviewer": ""}, "reviewer"),
        ({"reviewer": "a\u0007b"}, "printable"),
        ({"reasons": ["fact"]}, "Reasons belong to"),
        ({"decision": "reject", "reasons": ["ugly"]}, "The reason 'ugly'"),
        ({"seconds": -1}, "seconds"),
        ({"more": 1}, "more"),
        ({"decision": "edit", "edit": {"statements": [{"text": "a", "first": 0, "last": "1"}]}}, "last"),
        ({"decision": "edit", "edit": {}}, "The edit has nothing"),
        ({"id": "x"}, "no item 'x'"),
    ],
)
def test_decisions_of_another_form(client, folder, fields, problem):
    answer = decide(client, next_item(client), **fields)
    assert answer.status in (400, 404) and problem in answer.error["message"]
    assert (folder / "decisions.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("next", {}, 400),
        ("next", {"reviewer": "a" * 65}, 400),
        ("items", {"id": "x", "reviewer": "ann"}, 404),
        ("checks", {"id": "x"}, 404),
        ("frame", {"id": "x", "number": 0}, 404),
        ("frame", {"id": "toy/toy/train/0/0/conversation/1", "number": 1}, 404),  # not among the shown ones
        ("frame", {"id": "toy/toy/train/0/0/conversation/1", "number": -1}, 400),
        ("frame", {"id": "../../etc/passwd", "number": 0}, 404),
    ],
)
def test_what_is_not_there(client, path, query, status):
    answer = get(client, path, **query)
    assert answer.status == status and answer.error["message"]


def test_a_video_that_is_gone_is_a_sentence_without_paths(folder):
    (folder / "empty").mkdir()
    with running_server(create_review_app(ReviewQueue(folder), folder / "empty")) as client:
        answer = get(client, "next", reviewer="ann")
    assert answer.status == 400 and str(folder) not in answer.error["message"]


def test_an_item_without_its_video_stands_in_the_way_of_no_other(folder):
    rows = [json.loads(line) for line in (folder / "review_records.jsonl").open()]
    first = ReviewQueue(folder, read_only=True).names()[0]
    shown = {**next(row for row in rows if row["id"] == first), "video": {"path": "gone.mp4"}}
    write_rows(folder / "review_records.jsonl", [shown if row["id"] == first else row for row in rows])
    queue = ReviewQueue(folder)
    with running_server(create_review_app(queue, videos_folder(folder, None))) as client:
        seen = set()
        for _ in range(len(rows) - 1):
            item = next_item(client)
            assert decide(client, item).status == 200
            seen.add(item["id"])
        assert len(seen) == len(rows) - 1 and first not in seen
        answer = get(client, "next", reviewer="ann")
    assert answer.status == 400 and "gone.mp4" in answer.error["message"]


def test_a_review_trusts_the_folders_of_its_run(folder):
    assert trusted_of_run(folder) == []
    (folder / "run.json").write_text('{"trusted": ["/media/a", 5]}')
    assert trusted_of_run(folder) == [Path("/media/a")]


def test_the_guards_are_those_of_the_other_server(folder):
    access = Access(api_key="sk-review")
    with running_server(create_review_app(ReviewQueue(folder), videos_folder(folder, None), access=access)) as client:
        assert get(client, "next", reviewer="ann").status == 401
        answer = client.get("/v1/review/next?reviewer=ann", Authorization="Bearer sk-review")
        assert answer.status == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
        assert client.get("/", Host="evil.example").status == 403
        assert client.get("/", Origin="https://evil.example").status == 403
        page = client.get("/")
        assert page.status == 200 and b"review.js" in page.body
        script = client.get("/review.js")
        assert script.status == 200 and page.headers["cache-control"] == script.headers["cache-control"] == "no-cache"
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/docs").status == client.get("/openapi.json").status == 404


def test_the_folder_of_the_videos(folder, tmp_path):
    assert videos_folder(folder, tmp_path) == tmp_path
    with pytest.raises(AnnotationError, match="does not exist: give --review-videos"):
        videos_folder(folder, tmp_path / "none")
    for content in ("{}", "[]", "{", '{"root": 5}'):
        (folder / "run.json").write_text(content)
        with pytest.raises(AnnotationError, match="does not name the folder of the videos: give --review-videos"):
            videos_folder(folder, None)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--review", "NONE"], "none; --review takes the --output of annotate.py."),
        (["--review", "FOLDER", "--review-videos", "NONE"], "does not exist"),
        (["--review", "FOLDER", "--host", "0.0.0.0"], "needs an API key"),
        (["--review", "FOLDER"], "review.jsonl cannot be read"),
    ],
)
def test_the_command_line_says_what_is_wrong(folder, capsys, monkeypatch, arguments, problem):
    monkeypatch.delenv("SAMA_API_KEY", raising=False)
    (folder / "review.jsonl").unlink()
    paths = {"FOLDER": str(folder), "NONE": str(folder / "none")}
    assert serve.main([*(paths.get(one, one) for one in arguments), "--port", "0"]) == 2
    assert problem in capsys.readouterr().err


def test_videos_without_a_review(capsys):
    with pytest.raises(SystemExit):
        serve.main(["--review-videos", "x"])
    assert "--review-videos needs --review" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        serve.main(["--review", "x", "--model", "y", "--allow-urls"])
    assert "does not use --allow-urls, --model" in capsys.readouterr().err


def test_a_damaged_record_is_an_error_of_its_item(folder):
    rows = [json.loads(line) for line in (folder / "review_records.jsonl").open()]
    write_rows(folder / "review_records.jsonl", [{**row, "messages": 5} for row in rows])
    with running_server(create_review_app(ReviewQueue(folder), videos_folder(folder, None))) as client:
        answer = get(client, "next", reviewer="ann")
    assert answer.status == 400 and "cannot be used" in answer.error["message"]


def test_a_frame_that_cannot_be_decoded_is_one_sentence(tmp_path):
    def damaged():
        raise ValueError("Frame 3 of 'clip' cannot be used.")

    with pytest.raises(ApiError, match="Frame 3 of 'clip' cannot be used") as caught:
        anyio.run(ReviewService(None, tmp_path).run, damaged)
    assert caught.value.status_code == 400
