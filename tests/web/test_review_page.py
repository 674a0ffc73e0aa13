"""The review page in a real browser, as a person uses it."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from annotated_folder import copy_review, write_folder, write_rows
from PIL import Image
from pycocotools import mask as coco


pytest.importorskip("fastapi", reason="the server is not installed: pip install -e .[serve]")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")

from http_server import running_server  # noqa: E402

from sama.annotation.export import item_hash  # noqa: E402
from sama.annotation.review import ReviewQueue, read_decisions  # noqa: E402
from sama.annotation.review_server import create_review_app, videos_folder  # noqa: E402
from sama.serving.security import Access  # noqa: E402


WAIT_MS = 60_000  # generous: it only ends a test that would hang
HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("run"), 2)


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return copy_review(written, tmp_path)


@pytest.fixture
def queue(folder) -> ReviewQueue:
    return ReviewQueue(folder)


@pytest.fixture
def reviewing(browser, profile, queue, folder):
    """A function that opens the page for a person; arguments are settings of a browser profile of its own. Each server
    has another port, so that pages of one profile share nothing that is kept."""
    opened, problems = [], []
    with running_server(create_review_app(queue, videos_folder(folder, None))) as client:

        def make(name: str = "ann", **settings) -> "Reviewing":
            window = {"viewport": {"width": 1280, "height": 800}, **settings}
            context = browser.new_context(**window) if settings else profile
            page = context.new_page()
            opened.append(context if settings else page)
            page.set_default_timeout(WAIT_MS)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text) if "Security" in message.text else None)
            page.goto(client.url)
            return Reviewing(page, name)

        yield make
        for one in opened:
            one.close()
    assert problems == [], "scripts failed, or the Content Security Policy was violated"


class Reviewing:
    """The page, as a person uses it."""

    def __init__(self, page, name: str):
        self.page = page
        page.wait_for_selector("#name-dialog[open]")
        page.fill("#name", name)
        page.keyboard.press("Enter")
        page.wait_for_selector("#picture[data-frame], #done:not([hidden])")

    def item(self) -> str:
        return self.page.text_content("#item-name")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def decide(self, *keys: str) -> None:
        """Presses keys that end in a decision, and waits for what comes next."""
        item = self.item()
        self.press(*keys)
        while self.item() == item:
            self.page.wait_for_timeout(20)
        self.page.wait_for_selector("#picture[data-frame], #done:not([hidden])")

    def until_frame(self, frame: int) -> None:
        self.page.wait_for_selector(f"#picture[data-frame='{frame}']")

    def canvas(self, name: str) -> np.ndarray:
        url = self.page.evaluate(f"document.getElementById('{name}').toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))

    def overlay(self, size: tuple[int, int]) -> np.ndarray:
        """What is drawn over the frame at the middle of each pixel of the video: `(height, width, 4)`, uint8."""
        drawn = self.canvas("overlay")
        rows, columns = (
            ((np.arange(length) + 0.5) * drawn.shape[axis] / length).astype(int) for axis, length in enumerate(size)
        )
        return drawn[rows[:, None], columns]


def decisions(folder: Path) -> list[tuple]:
    return [(one.decision, one.id, one.reviewer) for one in read_decisions(folder / "decisions.jsonl")]


def test_a_review_with_the_keyboard(reviewing, queue, folder):
    tab = reviewing()
    first = tab.item()
    tab.decide("a")
    second = tab.item()
    tab.decide("r", "2", "4", "Enter")
    third = tab.item()
    tab.decide("s")
    fourth = tab.item()
    assert sorted([first, second, third, fourth]) == sorted(queue.names())
    tab.press("e")
    tab.page.fill("textarea[name=question]", "What is <obj9> doing there?")
    tab.press("Control+Enter")
    tab.page.wait_for_selector("#edit-problem:not([hidden])")
    assert "tag_unknown" in tab.page.text_content("#edit-problem")
    tab.page.fill("textarea[name=question]", "What is <obj1> doing there?")
    tab.page.fill("textarea[name=answer]", "I see <p> this one </p> <obj1>.")
    tab.decide("Control+Enter")
    assert tab.page.is_visible("#done") and "You decided 3 of 4 items. You skipped 1." in tab.page.text_content(
        "#done"
    )
    expected = [("accept", first), ("reject", second), ("skip", third), ("edit", fourth)]
    assert decisions(folder) == [(*one, "ann") for one in expected]
    rejected, edited = [read_decisions(folder / "decisions.jsonl")[n] for n in (1, 3)]
    assert rejected.reasons == ["fact", "mask"] and 0 < rejected.seconds < 600 and not rejected.informed
    assert edited.edit == {"question": "What is <obj1> doing there?", "answer": "I see <p> this one </p> <obj1>."}
    tab.page.click("#again")
    tab.page.wait_for_selector("#picture[data-frame]")
    assert tab.item() == third
    tab.decide("a")
    assert queue.log.verdict(third).decision == "accept"
    assert tab.page.text_content("#progress") == "4 of 4 decided, 4 by you"


def test_undo_shows_the_item_again(reviewing, folder):
    tab = reviewing()
    first = tab.item()
    tab.decide("a")
    tab.decide("u")
    assert tab.item() == first and decisions(folder)[-1] == ("undo", first, "ann")
    assert tab.page.is_disabled("#undo")
    tab.decide("r", "Enter")
    assert decisions(folder)[-1] == ("reject", first, "ann")


def test_undo_whose_item_is_lost_on_its_way_takes_back_one_decision(reviewing, folder):
    tab = reviewing()
    first = tab.item()
    tab.decide("a")
    second = tab.item()
    tab.decide("a")
    tab.page.route("**/v1/review/items?*", lambda route: route.abort())
    tab.press("u")
    tab.page.wait_for_selector("#notice:not([hidden])")
    tab.page.click("#notice-retry")
    tab.page.wait_for_selector("#notice:not([hidden])")
    tab.page.unroute("**/v1/review/items?*")
    tab.page.click("#notice-retry")
    tab.page.locator("#item-name", has_text=second).wait_for()
    expected = [("accept", first), ("accept", second), ("undo", second)]
    assert [one[:2] for one in decisions(folder)] == expected


def test_the_focus_stays_where_the_next_item_is_decided(reviewing):
    tab, focused = reviewing(), "document.activeElement.id"
    tab.page.focus("#skip")
    tab.decide("Enter")
    assert tab.page.evaluate(focused) == "skip"
    tab.press("e")
    tab.page.fill("textarea[name=question]", "What is <obj1> doing there?")
    tab.page.fill("textarea[name=answer]", "I see <p> this one </p> <obj1>.")
    tab.decide("Control+Enter")
    assert tab.page.evaluate(focused) == "messages"
    item = tab.item()
    tab.page.click("#accept")
    while tab.item() == item:
        tab.page.wait_for_timeout(20)
    assert tab.page.evaluate(focused) != "accept", "the next space plays"


def test_a_review_with_the_mouse(reviewing, folder):
    tab = reviewing()
    first = tab.item()
    tab.page.click("#reject")
    tab.page.click("text=the video does not show it")
    tab.page.click("#reject-cancel")
    assert tab.page.is_hidden("#reject-form") and decisions(folder) == []
    tab.page.click("#accept")
    while tab.item() == first:
        tab.page.wait_for_timeout(20)
    assert decisions(folder) == [("accept", first, "ann")]


def test_frames_and_masks_are_those_of_the_item(reviewing, queue, folder):
    tab = reviewing()
    item = queue.item(tab.item())
    size = tuple(next(code for code in item.record["objects"][item.names[0]]["masks"] if code)["size"])
    folder_of_frames = videos_folder(folder, None) / item.record["video"]["path"]
    for place, frame in enumerate(item.frames):
        tab.until_frame(frame)
        written = np.asarray(Image.open(folder_of_frames / item.record["video"]["frames"][frame]), int)
        assert np.abs(tab.canvas("picture")[..., :3] - written).mean() < 4
        drawn, masks = tab.overlay(size)[..., 3] > 0, np.zeros(size, bool)
        for name in item.names:
            code = item.record["objects"][name]["masks"][frame]
            if code is not None:
                masks |= coco.decode({"size": size, "counts": code["counts"].encode()}).astype(bool)
        assert (drawn[masks]).all()
        assert np.count_nonzero(drawn & ~masks) < 0.06 * masks.size  # outlines
        assert tab.page.text_content("#frame") == f"Frame {frame} ({place + 1} of {len(item.frames)})"
        tab.press("ArrowRight")
    tab.press("m")
    assert not tab.canvas("overlay")[..., 3].any()
    tab.press("m")
    for button in tab.page.locator("#objects button").all():
        button.click()
    assert not tab.canvas("overlay")[..., 3].any()


def test_masks_are_those_of_the_picture_while_the_next_one_is_on_its_way(reviewing, queue):
    tab, held = reviewing(), []
    first, second = queue.item(tab.item()).frames[:2]
    tab.page.route(f"**/v1/review/frame?*number={second}*", lambda route: held.append(route))
    tab.page.reload()
    tab.until_frame(first)
    before = tab.canvas("overlay")
    tab.press("ArrowRight", "m", "m")  # which draws the masks again
    assert held and tab.page.get_attribute("#picture", "data-frame") == str(first)
    assert (tab.canvas("overlay") == before).all()
    held[0].continue_()
    tab.until_frame(second)


def test_nothing_is_opened_while_a_decision_is_on_its_way(reviewing, folder):
    """What is typed into it would be keys for the next item."""
    tab, held = reviewing(), []
    item = tab.item()
    tab.page.route("**/v1/review/decisions", lambda route: held.append(route))
    tab.press("a", "e")
    while not held:
        tab.page.wait_for_timeout(20)
    assert tab.page.is_hidden("#edit-form")
    held[0].continue_()
    while tab.item() == item:
        tab.page.wait_for_timeout(20)
    assert tab.page.is_hidden("#edit-form") and len(decisions(folder)) == 1


@pytest.mark.slow
def test_play_goes_on_until_it_is_stopped(reviewing, queue):
    tab = reviewing()
    frames = queue.item(tab.item()).frames
    tab.press("Space")
    tab.until_frame(frames[2])
    tab.press("Space")
    assert tab.page.get_attribute("#play", "aria-label") == "Play"


def test_pointing_at_a_phrase_lights_its_object_up(reviewing):
    tab = reviewing()
    before = tab.canvas("overlay")[..., 3].astype(int).sum()
    tab.page.hover(".phrase >> nth=0")
    assert tab.page.locator(".phrase.lit").count() >= 1
    assert tab.canvas("overlay")[..., 3].astype(int).sum() != before


def test_whoever_looks_at_the_checks_is_not_blind(reviewing, folder):
    tab = reviewing()
    assert "verifying" not in tab.page.content()
    tab.press("c")
    tab.page.wait_for_selector("#checks:not([hidden])")
    assert "unseen: the verifying model does not see it" in tab.page.text_content("#checks")
    tab.decide("a")
    assert tab.page.is_hidden("#checks")
    tab.decide("a")
    assert [one.informed for one in read_decisions(folder / "decisions.jsonl")] == [True, False]


def test_letters_in_a_text_are_letters(reviewing, folder):
    tab = reviewing()
    tab.press("e")
    tab.page.focus("textarea[name=answer]")
    tab.page.keyboard.type(" arsu m")
    assert tab.page.input_value("textarea[name=answer]").endswith(" arsu m")
    written = tab.page.input_value("textarea[name=answer]").removesuffix(" arsu m")
    script = """document.activeElement.dispatchEvent(
        new KeyboardEvent("keydown", { key: "Escape", keyCode: 229, bubbles: true, cancelable: true }))"""
    assert tab.page.evaluate(script) and tab.page.is_visible("#edit-form"), "it is for the input method"
    tab.press("Escape")
    assert tab.page.is_hidden("#edit-form") and decisions(folder) == []
    tab.press("e")
    assert tab.page.input_value("textarea[name=answer]") == f"{written} arsu m", "what was left is there again"
    assert tab.page.get_attribute("textarea[name=answer]", "dir") == "auto"
    tab.page.fill("textarea[name=answer]", written)
    tab.press("Control+Enter")
    tab.page.wait_for_selector("#edit-problem:not([hidden])")
    assert "Nothing is changed" in tab.page.text_content("#edit-problem")


def test_text_is_text(browser, folder):
    rows = [json.loads(line) for line in (folder / "review.jsonl").open()]
    records = {row["id"]: row for row in map(json.loads, (folder / "review_records.jsonl").open())}
    for row in rows:
        row["text"] = {"question": f"{HOSTILE} <obj1>?", "answer": f"<p> {HOSTILE} </p> <obj1> & {HOSTILE}"}
        row["reasons"] = [{"code": HOSTILE, "detail": HOSTILE}]
        row["item_hash"] = item_hash(row["text"], records[row["id"]])
    write_rows(folder / "review.jsonl", rows)
    with running_server(create_review_app(ReviewQueue(folder), videos_folder(folder, None))) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(client.url)
        tab = Reviewing(page, HOSTILE)
        tab.press("c")
        page.wait_for_selector("#checks:not([hidden])")
        for place in ("#messages", "#checks", "#reviewer"):
            assert HOSTILE in page.text_content(place)
        assert page.locator("main img").count() == 0 and page.evaluate("window.hacked") is None
        context.close()


def test_an_item_that_has_changed(reviewing, queue, folder):
    tab = reviewing()
    queue._rows[tab.item()]["item_hash"] = "f" * 16  # as after another run of annotate.py
    tab.press("a")
    tab.page.wait_for_selector("#notice:not([hidden])")
    assert "has changed since it was shown" in tab.page.text_content("#notice-text")
    tab.page.click("#notice-retry")
    tab.page.wait_for_selector("#notice", state="hidden")
    tab.decide("a")
    assert len(decisions(folder)) == 1


def test_a_lost_server_keeps_what_was_typed(reviewing, folder):
    tab = reviewing()
    tab.page.route("**/v1/review/**", lambda route: route.abort())
    tab.press("e")
    tab.page.fill("textarea[name=question]", "What is <obj1> doing there?")
    tab.page.fill("textarea[name=answer]", "I see <p> this one </p> <obj1>.")
    tab.press("Control+Enter")
    tab.page.wait_for_selector("#edit-problem:not([hidden])")
    assert "cannot be reached" in tab.page.text_content("#edit-problem")
    tab.page.unroute("**/v1/review/**")
    tab.decide("Control+Enter")
    assert [one[0] for one in decisions(folder)] == ["edit"]


def test_a_key_is_asked_for(browser, folder):
    app = create_review_app(ReviewQueue(folder), videos_folder(folder, None), access=Access(api_key="sk-review"))
    with running_server(app) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(client.url)
        page.fill("#name", "ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "sk-review")
        page.keyboard.press("Enter")
        page.wait_for_selector("#picture[data-frame]")  # pictures are fetched with the key
        context.close()


@pytest.mark.parametrize("width", [320, *(pytest.param(width, marks=pytest.mark.slow) for width in (900, 1280))])
def test_everything_fits(reviewing, width):
    tab = reviewing(viewport={"width": width, "height": 700})
    boxes = """(panel) => [...document.querySelectorAll(`${panel}, ${panel} button, #picture`)].map((node) => {
        const { left, top, right, bottom } = node.getBoundingClientRect();
        return [left, top, right, bottom];
    })"""
    for key, panel in (("", "#decisions"), ("e", "#edit-form"), ("r", "#reject-form")):
        tab.press("Escape", *([key] if key else []))
        size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        assert tab.page.evaluate(size) == [width, 700]
        found = tab.page.evaluate(boxes, panel)
        assert len(found) >= 4
        for left, _, right, _ in found:
            assert 0 <= left < right - 20 and right <= width
        assert all(0 <= top and bottom <= 700 for _, top, _, bottom in found[:2])  # the picture and the panel


@pytest.mark.parametrize(
    ("theme", "keys"), [("light", ["", "e", "r"]), pytest.param("dark", ["c"], marks=pytest.mark.slow)]
)
def test_axe_finds_nothing(reviewing, axe, theme, keys):
    tab = reviewing(color_scheme=theme, reduced_motion="reduce")
    for key in keys:
        tab.press("Escape", *([key] if key else []))
        if key == "c":
            tab.page.wait_for_selector("#checks:not([hidden])")
        tab.page.evaluate(axe)
        found = tab.page.evaluate("async () => (await axe.run()).violations")
        assert [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:150]}" for one in found] == []
