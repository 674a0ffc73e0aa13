"""The page where two things happen at once: files, seeks and fingers that come while something is under way."""

import contextlib

import pytest


browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
RING = (32, 114)  # on frame 0 of the example clip
QUESTION = ["What is ", 1, "?"]


def test_the_file_that_was_chosen_last_is_opened(new_tab, tmp_path):
    tab, held, sent = new_tab(), [], []
    for event in ("requestfailed", "requestfinished"):
        tab.page.on(event, lambda request: sent.append(request.url) if request.method == "POST" else None)
    tab.page.route(
        "**/v1/files", lambda route: held.append(route) if route.request.method == "POST" else route.continue_()
    )
    slow = tmp_path / "slow.png"
    slow.write_bytes(tab.page.screenshot())
    tab.page.set_input_files("#file", str(slow))
    tab.wait(lambda: held and tab.page.locator("#examples button").count())
    tab.page.evaluate("document.querySelector('#examples button').click()")
    tab.until("state => state.file !== null")
    tab.until_shown(0)
    opened = tab.state("state => state.file.filename")
    tab.type_about_ring()
    with contextlib.suppress(browsers.Error):  # the browser has given it up
        held[0].continue_()
    tab.wait(lambda: any(url.endswith("/v1/files") for url in sent))
    tab.page.wait_for_timeout(300)
    assert tab.state("state => state.file.filename") == opened != "slow.png"
    assert tab.question() == QUESTION and tab.page.is_visible("#media")


def test_what_was_written_before_the_first_file_stays(new_tab):
    tab = new_tab()
    tab.type("What moves?")
    tab.open()
    assert tab.question() == ["What moves?"]


def test_a_box_lies_on_the_frame_on_which_it_was_begun(tab):
    tab.choose("box")
    tab.page.mouse.move(*tab.point(10, 90))
    tab.page.mouse.down()
    tab.page.keyboard.press("ArrowRight")
    tab.until_shown(1)
    tab.page.mouse.move(*tab.point(60, 140), steps=4)
    tab.page.mouse.up()
    (region,) = tab.draft()
    assert region["prompt"]["frame"] == 0 and region["prompt"]["box"] == [10, 90, 61, 141]


def test_a_second_finger_points_at_nothing(tab):
    x, y = tab.point(*RING)
    for primary in ("false", "true"):
        tab.page.evaluate(
            f"""() => {{
                const about = {{ clientX: {x}, clientY: {y}, pointerId: 1, isPrimary: {primary}, button: 0 }};
                const overlay = document.getElementById("overlay");
                overlay.setPointerCapture = () => undefined; // there is no such finger
                overlay.dispatchEvent(new PointerEvent("pointerdown", about));
                overlay.dispatchEvent(new PointerEvent("pointerup", about));
            }}"""
        )
        assert len(tab.draft()) == (primary == "true")


def test_a_tap_with_the_brush_is_a_click(tab):
    tab.choose("scribble")
    tab.click(*RING)
    tab.until_masks()
    assert tab.draft()[0]["prompt"] == {"frame": 0, "points": [list(RING)], "labels": [1]}


def test_a_box_that_is_too_small_is_said_to_everybody(new_tab):
    tab = new_tab(viewport={"width": 500, "height": 800}).open()
    assert tab.page.is_hidden("#hint")
    tab.choose("box")
    tab.click(*RING)
    assert tab.draft() == [] and tab.page.is_visible("#hint")
    assert "too small" in tab.page.text_content("#hint") and "too small" in tab.page.text_content("#announcer")


def test_a_double_click_asks_and_does_not_stop(tab):
    tab.type_about_ring()
    tab.page.dblclick("#ask")
    tab.until("state => state.pending === null && (state.turns.length === 1 || !notice.hidden)")
    assert len(tab.turns()) == 1 and tab.page.is_hidden("#notice")


def test_masks_that_failed_are_asked_for_again_all_together(tab):
    failed = []
    tab.page.on("requestfailed", lambda request: failed.append(request.post_data_json["region"]["points"]))
    tab.page.route("**/v1/regions/preview", lambda route: route.abort())
    for place in (RING, (200, 200)):
        tab.click(*place)
        tab.wait(lambda place=place: [list(place)] in failed)
        tab.page.click("#finish")
    assert [region["mask"] for region in tab.draft()] == [None, None]
    tab.page.unroute("**/v1/regions/preview")
    tab.page.click("#notice-retry")
    tab.until_masks()


def test_each_object_is_sent_with_its_masks_once_and_its_row_stays(tab):
    tab.type_about_ring()
    tab.ask()
    tab.page.evaluate("window.kept = document.querySelector('.lanes .icon')")
    tab.type("What does ")
    tab.page.locator(".object-name").click()
    tab.type(" do?")
    tab.ask()
    assert tab.page.evaluate("window.kept.isConnected")
    turns = tab.turns()
    assert [one["id"] for turn in turns for one in turn["answer"]["objects"]][:2] == ["o1", "o1"]
    assert all(one["masks"] for turn in turns for one in turn["answer"]["objects"]), "the page itself keeps them"
    sent = tab.page.evaluate("async () => (await import('./state.js')).messages()")
    answers = [message["objects"] for message in sent if message["role"] == "assistant"]
    assert answers[0][0]["masks"] and answers[1][0].get("masks") is None


def test_who_reads_further_up_stays_there(tab):
    for _ in range(3):
        tab.type_about_ring()
        tab.ask()
    tab.page.evaluate("document.getElementById('messages').style.maxHeight = '60px'")
    tab.page.evaluate("document.getElementById('messages').scrollTop = 5")
    tab.page.evaluate("async () => (await import('./state.js')).emit('turns')")
    assert tab.page.evaluate("document.getElementById('messages').scrollTop") == 5


def test_the_focus_stays_on_a_phrase_when_the_answer_ends(tab):
    """The end of an answer shows all of the conversation anew."""
    for _ in range(2):
        tab.type_about_ring()
        tab.ask()
    tab.page.locator(".phrase").nth(1).focus()
    tab.page.evaluate("window.focused = document.activeElement")
    tab.page.evaluate("async () => (await import('./state.js')).emit('pending')")
    assert not tab.page.evaluate("window.focused.isConnected")
    found = "[...document.querySelectorAll('.phrase')].indexOf(document.activeElement)"
    assert tab.page.evaluate(found) == 1
