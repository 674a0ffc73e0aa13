"""The question box of the page: what is typed and pointed at stays there, in order, until it is asked or removed."""

import pytest


pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
RING, CIRCLE = (32, 114), (200, 200)  # on frame 0 of the example clip


def type_about_two(tab) -> None:
    tab.type("Is ")
    tab.click(*RING)
    tab.type(" left of ")
    tab.click(*CIRCLE)
    tab.type("?")
    assert tab.question() == ["Is ", 1, " left of ", 2, "?"]


def test_pointing_replaces_nothing_that_is_selected(tab):
    type_about_two(tab)
    tab.page.keyboard.press("Control+a")
    tab.click(*RING)
    assert tab.question() == ["Is ", 1, " left of ", 2, "? ", 3]
    assert [region["number"] for region in tab.draft()] == [1, 2, 3]


def test_undo_puts_a_region_back_where_it_stood(tab):
    type_about_two(tab)
    tab.page.locator(".question .chip-label").first.click()
    tab.page.keyboard.press("Escape")
    assert tab.question() == ["Is  left of ", 2, "?"]
    tab.page.click("#undo")
    assert tab.question() == ["Is ", 1, " left of ", 2, "?"]
    tab.page.locator(".question .chip-remove").first.click()
    tab.page.keyboard.type("it")
    tab.page.click("#undo")
    assert [part for part in tab.question() if isinstance(part, int)] == [1, 2]
    assert "it" in "".join(map(str, tab.question()))


def test_another_file_keeps_what_was_typed_and_none_of_the_regions(tab):
    tab.type("What moves ")
    tab.click(*RING)
    tab.type("here?")
    tab.page.evaluate("window.before = document.querySelector('.question .chip')")
    script = """async () => {
        const file = (await (await import("./api.js")).examples()).at(-1);
        await (await import("./files.js")).open(file);
        return file.id;
    }"""
    opened = tab.page.evaluate(script)
    tab.until("(state, id) => state.file.id === id", opened)
    assert tab.question() == ["What moves  here?"] and tab.draft() == []
    # As when the browser's own undo brings back what was removed
    tab.page.evaluate("question.append(window.before); question.dispatchEvent(new Event('input'))")
    assert tab.question() == ["What moves  here?"] and tab.draft() == []


def test_a_suggestion_keeps_what_is_typed(tab):
    first, second = tab.page.locator(".suggestions button").all()
    first.click()
    second.click()
    assert tab.question() == ["What does  do?"]
    tab.click(*RING)
    assert tab.question() == ["What does ", 1, " do?"]
    first.click()
    assert tab.question() == ["What is ", 1, "?"]
    tab.type("now")
    before = tab.question()
    first.click()
    assert tab.question()[:2] == before[:2] and tab.question()[2] == f"{before[2]} What is ?"


def test_objects_of_an_answer_that_was_stopped_leave_the_question(tab):
    script = """async () => {
        const { state, emit } = await import("./state.js");
        const one = { id: "o1", phrase: "ring", start: 0, end: 4, color: "#ff4068" };
        const answer = { content: "ring", objects: [one] };
        state.pending = { parts: [{ text: "What?" }], answer, tracked: new Set(), waiting: false };
        emit("pending", "objects");
    }"""
    tab.page.evaluate(script)
    tab.page.click(".answer .phrase")
    tab.page.click(".lanes .icon")
    tab.type("and this?")
    assert tab.question() == ["o1", " and this?"] and tab.state("state => [...state.hidden]") == ["o1"]
    tab.state("async (state) => { state.pending = null; (await import('./state.js')).emit('turns', 'objects'); }")
    assert tab.question() == ["and this?"] and tab.state("state => [...state.hidden]") == []


def test_keys_of_an_input_method_are_no_keys_of_the_page(tab):
    tab.type("What ")
    tab.click(*RING)
    script = """(key) => question.dispatchEvent(
        new KeyboardEvent("keydown", { key, keyCode: 229, bubbles: true, cancelable: true }))"""
    for key in ("Enter", "Escape"):
        assert tab.page.evaluate(script, key), f"{key} is left to the input method"
    assert tab.state("state => state.pending") is None and tab.question() == ["What ", 1]
    assert len(tab.draft()) == 1


def test_the_focus_of_a_tool_that_disables_itself_goes_to_the_picture(tab):
    for name in ("finish", "undo", "redo", "clear"):
        if name != "redo":
            tab.click(*RING)
        tab.page.focus(f"#{name}")
        tab.page.keyboard.press("Enter")
        if name == "finish":
            tab.page.keyboard.press("Control+z")
        assert tab.page.is_disabled(f"#{name}"), name
        assert tab.page.evaluate("document.activeElement.id") == "overlay", name


def test_text_from_right_to_left_runs_from_right_to_left(tab):
    text = "\u05de\u05d4 \u05d6\u05d4"  # Hebrew
    tab.type(f"{text} ")
    tab.click(*RING)
    script = """async (text) => {
        const { state, emit } = await import("./state.js");
        const one = { id: "o1", phrase: text, start: 0, end: text.length, color: "#ff4068" };
        const parts = [{ region: { number: 9, prompt: { frame: 0, points: [[1, 1]] }, mask: null } }, { text }];
        state.turns = [{ parts, answer: { content: text, objects: [one] } }];
        emit("turns", "objects");
    }"""
    tab.page.evaluate(script, text)
    tab.page.wait_for_selector(".lanes .name")
    names = ["#question", ".asked p", ".answer p", ".lanes .name"]
    found = "(names) => names.map((name) => getComputedStyle(document.querySelector(name)).direction)"
    assert tab.page.evaluate(found, names) == ["rtl"] * 4
    assert tab.page.locator("bdi").all_text_contents() == ["9", "1"]
