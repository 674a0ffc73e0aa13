"""The question box of the page: what is typed and pointed at stays there, in its order, until it is asked or removed."""

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
