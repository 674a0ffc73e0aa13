"""HTML as Python values. Every text is escaped unless it is [`Html`] already, which only [`tag`] makes."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """A piece of a page, ready to be written."""


Child = str | int | float | None | Iterable["Child"]
VOID = {"img", "meta", "br"}  # elements without an end


def tag(element: str, /, *children: Child, **attributes: str | int | None) -> Html:
    """
    An element.

    Args:
        element (`str`): Such as `"td"`.
        children: Texts and numbers are escaped, `None` is left out, lists are flattened.
        attributes: `class_` is `class`, and other underscores are hyphens. `None` leaves an attribute out.
    """
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    start = f"<{element}{''.join(parts)}>"
    return Html(start if element in VOID else f"{start}{join(children)}</{element}>")


def join(children: Child) -> Html:
    """All children, one after the other."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int | float):
        return Html(escape(str(children)))
    return Html("".join(join(child) for child in children))


def table(header: Sequence[Child], rows: Iterable[Sequence[Child]], numbers: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways where the page is narrower. `numbers` are the columns that are aligned right."""
    right = set(numbers)

    def row(cells: Sequence[Child], name: str) -> Html:
        scope = "col" if name == "th" else None
        return tag(
            "tr",
            [tag(name, cell, class_="number" if i in right else None, scope=scope) for i, cell in enumerate(cells)],
        )

    body = tag("tbody", [row(cells, "td") for cells in rows])
    return tag("div", tag("table", tag("thead", row(header, "th")), body), class_="scroll", tabindex="0")


def page(title: str, style: str, body: Child) -> str:
    """
    A whole page. It may load nothing and run nothing, even if an escape were missing.

    Args:
        title (`str`): Its title.
        style (`str`): Our own CSS, written as it is.
        body: What it shows.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        Html(f"<style>{style}</style>"),
    ]
    return "<!doctype html>\n" + tag("html", tag("head", head), "\n", tag("body", body), lang="en") + "\n"
