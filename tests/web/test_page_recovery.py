"""The page after what would otherwise stay wrong: reloads, a server with another model, keys, files that expired."""

import time

import numpy as np
import pytest
from PIL import Image


pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytest.importorskip("fastapi", reason="the server is not installed: pip install -e .[serve]")

from http_server import running_server  # noqa: E402

from sama.serving.engine import EngineStatus  # noqa: E402
from sama.serving.files import FileStore  # noqa: E402
from sama.serving.limits import Limits  # noqa: E402
from sama.serving.server import create_app  # noqa: E402


DAY = 86_400
# A conversation of an earlier load of the page, too large for sessionStorage: [seconds since 1970, bytes]
PUT = """async ([seconds, size]) => {
    const opened = indexedDB.open("sama", 1);
    opened.onupgradeneeded = () => opened.result.createObjectStore("conversations");
    await new Promise((resolve) => (opened.onsuccess = resolve));
    const turns = [{ parts: [{ text: "What?" }], answer: { content: "x".repeat(size), objects: [] } }];
    const text = JSON.stringify({ file: null, turns, question: [], nextNumber: 2, hidden: [], frame: 0 });
    const name = `${seconds * 1000} 1`;
    const change = opened.result.transaction("conversations", "readwrite");
    change.objectStore("conversations").put(text, name);
    await new Promise((resolve) => (change.oncomplete = resolve));
    opened.result.close();
    sessionStorage.setItem("sama.conversation", `large:${name}`);
}"""
NAMES = """async () => {
    const opened = indexedDB.open("sama", 1);
    await new Promise((resolve) => (opened.onsuccess = resolve));
    const asked = opened.result.transaction("conversations").objectStore("conversations").getAllKeys();
    await new Promise((resolve) => (asked.onsuccess = resolve));
    opened.result.close();
    return asked.result;
}"""
# A turn of the page that makes its conversation too large for sessionStorage: text
TURN = """async (text) => {
    const { state, emit } = await import("./state.js");
    state.turns = [{ parts: [{ text }], answer: { content: "A ball.", objects: [] }, padding: "x".repeat(6e6) }];
    emit("turns");
}"""
KEPT = "async () => (await (await import('./storage.js')).kept())?.turns[0]?.parts[0].text"


class IdleEngine:
    """An engine that nothing is asked of."""

    def status(self) -> EngineStatus:
        return EngineStatus()

    def forget(self, file_id: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def leave(new_tab):
    """A function that opens a tab whose page has left, so that it saves nothing, and keeps a conversation there."""

    def keep(age: float, size: int):
        tab = new_tab(locale="en-US")  # a profile of its own
        tab.page.goto(f"{tab.address}style.css")
        tab.page.evaluate(PUT, [int(time.time() - age), size])
        return tab

    return keep


def test_a_tab_that_was_opened_long_ago_keeps_its_conversation(leave):
    tab = leave(8 * DAY, 1000)
    tab.page.goto(tab.address)
    tab.until("state => state.turns.length === 1")
    tab.page.wait_for_selector("#examples button")
    tab.page.reload()
    tab.until("state => state.turns.length === 1")


def test_two_quick_reloads_keep_a_large_conversation(leave):
    tab = leave(DAY, 30_000_000)
    tab.page.goto(tab.address, wait_until="commit")
    tab.page.wait_for_load_state("domcontentloaded")
    tab.page.reload()
    tab.until("state => state.turns.length === 1")
    assert tab.turns()[0]["parts"] == [{"text": "What?"}]


def test_what_another_tab_wrote_last_week_is_swept_and_what_it_wrote_yesterday_is_not(new_tab):
    tab = new_tab(locale="en-US")
    for days, text in ((8, "first"), (1, "second")):
        tab.page.clock.set_fixed_time((time.time() - days * DAY) * 1000)
        if text == "first":
            tab.page.reload()  # on that day the page was opened
        tab.page.evaluate(TURN, text)
        tab.wait(lambda text=text: tab.page.evaluate(KEPT) == text)
    other = type(tab)(tab.page.context.new_page(), f"{tab.address}style.css")
    other.page.evaluate(PUT, [int(time.time() - 9 * DAY), 10])
    other.page.evaluate("sessionStorage.clear()")
    other.page.goto(tab.address)
    other.wait(lambda: not any(name.endswith(" 1") for name in other.page.evaluate(NAMES)))
    assert tab.page.evaluate(KEPT) == "second"


def test_a_server_with_another_model_is_asked_again(new_tab):
    tab, names = new_tab(), ["former"]
    tab.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": names[-1]}]}))
    tab.page.reload()
    tab.open()
    tab.type("What is this?")
    tab.page.press("#question", "Enter")
    assert "There is no model of this name here; this is sama-tiny." in tab.notice()
    assert tab.question() == ["What is this?"] and tab.page.text_content("#model") == "former"
    names.append("sama-tiny")
    tab.page.click("#ask")
    tab.until("state => state.turns.length === 1")
    assert tab.page.text_content("#model") == "sama-tiny" and tab.page.is_hidden("#notice")


def test_a_key_that_cannot_be_sent_is_asked_for_again(new_tab):
    tab, sent = new_tab(), []
    refusal = {"status": 401, "json": {"error": {"message": "The API key is missing.", "type": "x"}}}

    def check(route) -> None:
        sent.append(route.request.headers.get("authorization"))
        route.continue_() if sent[-1] == "Bearer s3cret" else route.fulfill(**refusal)

    tab.page.route("**/v1/**", check)
    tab.page.reload()
    for wrong in ("s3\u200bcret", "s3\u2013cret", "s3 cret"):
        tab.page.fill("#key", wrong)
        tab.page.keyboard.press("Enter")
        assert tab.page.is_visible("#key-dialog") and set(sent) == {None}
        assert "copy it again" in tab.page.evaluate("key.validationMessage").lower()
        assert tab.page.evaluate("sessionStorage.getItem('sama.key')") is None
    tab.page.fill("#key", " s3cret ")
    tab.page.keyboard.press("Enter")
    tab.open()
    assert set(sent) == {None, "Bearer s3cret"}


def test_files_that_expired(new_tab, tmp_path):
    limits, late = Limits(), [0.0]
    store = FileStore(tmp_path, limits, clock=lambda: time.time() + late[0])
    with running_server(create_app(IdleEngine(), store, limits, model_name="sama-tiny"), limits) as client:
        tab = new_tab(client.port, locale="en-US")
        tab.page.wait_for_selector("#examples button")
        listed = tab.page.evaluate("async () => (await import('./api.js')).examples()")
        late[0] += 2 * limits.file_seconds
        tab.open()  # an example, which is stored again
        assert tab.picture().std() > 20

        late[0] += 2 * limits.file_seconds
        script = "async (file) => (await import('./files.js')).open(file)"
        tab.page.evaluate(script, next(one for one in listed if one["filename"] != "toy_world.mp4"))
        assert "The server no longer has" in tab.notice() and tab.page.is_hidden("#notice-retry")
        tab.open()
        late[0] += 2 * limits.file_seconds
        tab.page.evaluate("video.dispatchEvent(new Event('error'))")  # as when more of it is fetched
        assert "The server no longer has toy_world.mp4. Open it again" in tab.notice()
        tab.open()
        tab.page.wait_for_selector("#media")
        tab.until_shown(0)
        tab.page.evaluate("video.dispatchEvent(new Event('error'))")
        assert "the connection broke, or the browser cannot show it" in tab.notice()
        tab.page.click("#notice-retry")
        tab.until_shown(0)


def test_a_cancelled_key_and_a_cancelled_fetch_can_be_tried_again(new_tab):
    tab, held, hold = new_tab(), [], [True]
    refusal = {"status": 401, "json": {"error": {"message": "The API key is missing.", "type": "x"}}}

    def check(route) -> None:
        if route.request.headers.get("authorization") != "Bearer s3cret":
            route.fulfill(**refusal)
        elif hold[0] and route.request.url.endswith("/content"):
            held.append(route)
        else:
            route.continue_()

    tab.page.route("**/v1/**", check)
    tab.page.reload()
    tab.page.click("#key-dialog [value=cancel]")
    assert tab.notice() == "The API key is missing."
    tab.page.click("#notice-retry")
    tab.page.fill("#key", "s3cret")
    tab.page.keyboard.press("Enter")
    tab.page.locator("#examples button", has_text="toy_world.mp4").click()
    tab.wait(lambda: held)
    assert tab.page.text_content("#loading-text") == "Loading toy_world.mp4" and tab.page.is_visible("#loading")
    assert tab.page.evaluate("tools.inert") and tab.page.is_hidden("#media")
    with tab.page.expect_event("requestfailed"):
        tab.page.click("#loading-cancel")
    assert tab.notice() == "toy_world.mp4 was not loaded." and tab.page.is_visible("#empty")
    hold[0] = False
    tab.page.click("#notice-retry")
    tab.until_shown(0)
    assert tab.picture().std() > 20 and not tab.page.evaluate("tools.inert")

    broken = """async () => {
        const { jsonOf } = await import("./api.js");
        const body = new ReadableStream({ pull: (controller) => controller.error(new TypeError("network error")) });
        return jsonOf(new Response(body)).catch((error) => [error.status, error.message]);
    }"""
    status, message = tab.page.evaluate(broken)
    assert status == 0 and "cannot be reached" in message

    forbidden = "{ get() { throw new DOMException('It is forbidden.', 'SecurityError'); } }"
    tab.page.add_init_script(f"Object.defineProperty(window, 'sessionStorage', {forbidden})")
    tab.page.reload()
    tab.page.fill("#key", "s3cret")
    tab.page.keyboard.press("Enter")
    tab.open()


def test_a_conversation_that_was_not_written_is_not_taken_for_kept(new_tab):
    tab = new_tab(locale="en-US")
    tab.page.wait_for_selector("#examples button")
    script = """async () => {
        const { keep } = await import("./storage.js");
        const put = IDBObjectStore.prototype.put;
        IDBObjectStore.prototype.put = function (value, key) {
            const request = put.call(this, value, key);
            // As where the disk is full: the request succeeds, and what it wrote is lost
            if (!key.startsWith("written:")) request.addEventListener("success", () => this.transaction.abort());
            return request;
        };
        const result = await keep({ turns: ["x".repeat(8e6)] }).then(() => "kept", () => "lost");
        IDBObjectStore.prototype.put = put;
        const entry = sessionStorage.getItem("sama.conversation") ?? "";
        await keep({ turns: ["x".repeat(8e6)] });
        const deleted = indexedDB.deleteDatabase("sama");
        const closed = await new Promise((resolve) => {
            deleted.onsuccess = () => resolve(true);
            deleted.onblocked = () => resolve(false);
        });
        return [result, entry.startsWith("large:"), closed];
    }"""
    assert tab.page.evaluate(script) == ["lost", False, True]


def test_a_video_with_odd_sides_is_not_squeezed(new_tab, tmp_path):
    """Its playable copy has one row and one column more."""
    rows, columns = np.mgrid[:45, :61]
    pixels = np.where((rows // 4 + columns // 4) % 2, 230, 20).astype(np.uint8)
    frames = [Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)) for _ in range(2)]
    frames[1].putpixel((0, 0), (99, 99, 99))  # or it would be one frame
    frames[0].save(tmp_path / "odd.webp", save_all=True, append_images=frames[1:], duration=200, lossless=True)
    tab = new_tab()
    tab.page.set_input_files("#file", tmp_path / "odd.webp")
    tab.until("state => state.file !== null && state.file.kind === 'video'")
    tab.until_shown(0)
    shown = tab.picture().astype(int)
    assert shown.shape == (45, 61, 3)
    assert np.abs(shown - pixels[..., None])[-12:, -12:].mean() < 12
