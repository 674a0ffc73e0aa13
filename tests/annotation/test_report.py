"""The report of a run: what it says, that it needs nothing else, and that no text in it becomes HTML."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from annotated_folder import write_folder, write_rows
from PIL import Image

from sama.annotation.errors import AnnotationError
from sama.annotation.html import join, page, table, tag
from sama.annotation.report import write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    return write_report(write_folder(tmp_path_factory.mktemp("run"), 2)).read_text(encoding="utf-8")


class Parsed(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in ("img", "meta", "br"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_counts_reasons_and_costs(report):
    text = Parsed(report).text
    assert "writer: writer-7b 2026-10 at models.example, verifier: verifier-3b" in text
    assert "6 videos 73 of 98 items kept 200,676 tokens" in text
    assert "kept 2 review 1 rejected 1 error 2" in text
    assert "description 41 33 4 2 6" in text and "conversation 57 40 9 8 9" in text
    assert "leak exact 6 5 the text must not mention the drawn marks" in text and "unseen scored 11 0" in text
    assert "describe writer 9 9 142,308 27,000 8,199 4.25 0.4040" in text
    assert "verify verifier 3 3 47,436 9,000 2,733 4.25 –" in text and "tokens of 3 calls; they are estimated" in text
    assert "toy/8 transient writer gave no answer in 6 tries: HTTP 503." in text


def test_the_page_needs_and_runs_nothing(report):
    elements = Parsed(report).elements
    assert not {"script", "link", "iframe", "form", "object"} & {name for name, _ in elements}
    policy = dict(elements)["meta"]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for name, attributes in elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("href", "srcset", "action")]
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,"), name
    assert "url(" not in report and "http://" not in report and "https://" not in report


def test_texts_are_escaped(report):
    assert "<script>" not in report and "&lt;script&gt;alert(1)&lt;/script&gt;" in report
    assert "<b>clip.mp4" not in report and "<obj9>" not in report


def test_conversations_with_frames_in_the_drawn_colours(report):
    found = Parsed(report)
    pictures = [attributes for name, attributes in found.elements if name == "img"]
    assert len(pictures) == 2 * 4 and all(one["alt"].startswith("frame ") for one in pictures)
    sizes = {Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2]))).size for one in pictures}
    assert sizes == {(320, 240)}
    styles = [one["style"] for name, one in found.elements if one.get("class") in ("object", "phrase")]
    assert styles and all(re.fullmatch(r"--object: rgb\(\d+ \d+ \d+\)", style) for style in styles)
    assert "toy/toy/train/0/0" in found.text and "How many objects are in the video?" in found.text


def test_without_what_is_optional(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    text = Parsed(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "0 videos 0 of 0 items kept 0 tokens" in text and "No check found anything." in text


def test_two_examples_of_a_reason_are_shown_and_cut(tmp_path):
    (tmp_path / "run.json").write_text('{"reasons": {"leak": 3}}')
    reasons = [{"code": "leak", "detail": "words"}]
    rejected = [{"record": f"clip{n}", "reasons": reasons, "text": {"answer": "x" * 900}} for n in range(3)]
    write_rows(tmp_path / "rejected.jsonl", rejected)
    text = Parsed(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "clip0" in text and "clip1" in text and "clip2" not in text
    assert "x" * 400 + "…" in text and "x" * 401 not in text


def test_samples_without_provenance_or_frames(tmp_path):
    out = write_folder(tmp_path, 1)
    (out / "provenance.jsonl").unlink()
    for picture in (out / "rendered").rglob("*.jpg"):
        picture.unlink()
    found = Parsed(write_report(out).read_text(encoding="utf-8"))
    assert "toy/toy/train/0/0" in found.text and "img" not in dict(found.elements)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("run.json", None, "run.json does not exist: a report needs the output folder of a run"),
        ("run.json", "[]", "has another form than annotate.py writes"),
        ("run.json", '{"items": 5}', "has another form"),
        ("run.json", '{"models": {"writer": 5}}', "model of the writer: this is not a JSON object"),
        ("run.json", "{", "run.json cannot be read"),
        ("records.jsonl", '{"id": "a"}\n5\n', "records.jsonl, line 2: this is not a JSON object"),
        ("rendered/index.json", "{", "index.json cannot be read"),
        ("rendered/index.json", '{"toy/toy/train/0/0": "../.."}', "names a folder outside of it"),
        ("rendered/0000000000000000/00000.jpg", "no picture", "00000.jpg cannot be read"),
    ],
)
def test_damaged_folders(tmp_path, name, content, problem):
    out = write_folder(tmp_path, 1)
    path = out / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(AnnotationError, match=problem):
        write_report(out)
    assert not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "row", "problem"),
    [
        ("rejected", {"id": 5}, "line 1: the field 'record' is missing or of another type"),
        ("rejected", {"record": "a", "reasons": [5], "text": {}}, "this is not a JSON object"),
        ("rejected", {"record": "a", "reasons": 5, "text": {}}, "the field 'reasons'"),
        ("rejected", {"record": "a", "reasons": [{"code": ["x"]}], "text": {}}, "the field 'code'"),
        ("errors", {"video": "a", "class": None, "message": ""}, "the field 'class'"),
        (
            "records",
            {"id": "toy/toy/train/0/0/conversation", "messages": 5},
            "records.jsonl, field 'source': is missing",
        ),
        ("provenance", {"id": "toy/toy/train/0/0/conversation", "objects": 5}, "this is not a JSON object"),
        ("provenance", {"id": "toy/toy/train/0/0/conversation", "objects": {"obj1": {}}}, "the field 'name'"),
    ],
)
def test_rows_of_another_form(tmp_path, name, row, problem):
    out = write_folder(tmp_path, 1)
    write_rows(out / f"{name}.jsonl", [row])
    with pytest.raises(AnnotationError, match=problem):
        write_report(out)


def test_html_is_escaped_unless_it_was_made_here():
    assert tag("p", "a < b & c", title='"x"') == '<p title="&quot;x&quot;">a &lt; b &amp; c</p>'
    assert tag("p", tag("b", 5), None, ["<", [1.5]]) == "<p><b>5</b>&lt;1.5</p>"
    assert tag("td", "x", class_=None, aria_label="y") == '<td aria-label="y">x</td>'
    assert join("</script>") == "&lt;/script&gt;"
    assert "&lt;i&gt;" in page("<i>", "", "") and "<i>" not in page("<i>", "", "")
    assert "<i>" not in table(["<i>"], [["<i>"]])
