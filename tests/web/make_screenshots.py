"""Takes the pictures of the page that the README and the documentation show:

    python tests/web/make_screenshots.py

It starts the server on the small model and has a conversation about the example clip in Chromium (a Debian package),
driven by Playwright: page_light.webp, page_dark.webp and page_phone.webp in assets/. --to takes another folder.
"""

import argparse
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright


ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# name: width and height of the window in CSS pixels, theme, pixels of the picture for each of them
PICTURES = {
    "page_light": ((1280, 760), "light", 1.5),
    "page_dark": ((1280, 760), "dark", 1.5),
    "page_phone": ((390, 844), "light", 2.0),
}
# `wait_for_function` is forbidden by the page's Content Security Policy
SHOWN = "async () => { while (video.readyState < 2 || video.seeking) await new Promise((r) => setTimeout(r, 20)); }"
FRAME, RING, HEART = 12, (64, 114), ((150, 112), (246, 206))  # pixels of the clip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=ROOT / "assets", metavar="FOLDER")
    folder = parser.parse_args(argv).to
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        print("make_screenshots: no Chromium is installed: apt-get install chromium", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name in PICTURES:
            picture = screenshot(browser, address, name)
            picture.save(folder / f"{name}.webp", quality=86, method=6)
            print(f"{folder / name}.webp: {picture.width} x {picture.height}")
        browser.close()
    return 0


@contextmanager
def served() -> Iterator[str]:
    """The address of a server on the small model."""
    command = [sys.executable, str(ROOT / "serve.py"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "http://" in line), None)
        if line is None:
            raise RuntimeError("The server did not start; it says why above.")
        yield next(word for word in line.split() if word.startswith("http://"))
    finally:
        process.terminate()
        process.wait()


def screenshot(browser: Browser, address: str, name: str) -> Image.Image:
    """The page in the middle of a conversation."""
    (width, height), theme, scale = PICTURES[name]
    window = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=theme,
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    window.goto(address)
    converse(window)
    picture = Image.open(io.BytesIO(window.screenshot()))
    window.close()
    return picture.convert("RGB")


def converse(page: Page) -> None:
    """Asks about the ring, then about it again, then about the circle, and begins to ask about the heart."""
    page.locator("#examples button", has_text="toy_world.mp4").click()
    page.evaluate(SHOWN)
    page.fill("#frame", str(FRAME))
    page.press("#frame", "Enter")
    page.evaluate(SHOWN)
    write(page, "What is ")
    with page.expect_response("**/v1/regions/preview"):
        page.mouse.click(*window_point(page, RING))
    write(page, "?")
    ask(page, 1)
    write(page, "What does ")
    page.locator(".answer .phrase").first.click()
    write(page, " do?")
    ask(page, 2)
    write(page, "Please segment the red circle.")
    ask(page, 3)
    write(page, "What is ")
    page.locator("label:has(input[value=box])").click()
    page.mouse.move(*window_point(page, HEART[0]))
    page.mouse.down()
    page.mouse.move(*window_point(page, HEART[1]), steps=8)
    with page.expect_response("**/v1/regions/preview"):
        page.mouse.up()
    write(page, "?")
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)  # until the last frame is drawn


def write(page: Page, text: str) -> None:
    page.focus("#question")
    page.keyboard.type(text)


def ask(page: Page, turns: int) -> None:
    """Asks what stands in the box and waits for the answer."""
    page.press("#question", "Enter")
    page.wait_for_selector(f"#messages > :nth-child({2 * turns}).answer:not(:has(progress, .thinking))")
    page.wait_for_selector("#ask[aria-label=Ask]")


def window_point(page: Page, pixel: tuple[int, int]) -> tuple[float, float]:
    """Where a pixel of the clip, which is 256 x 256, is in the window."""
    box = page.locator("#overlay").bounding_box()
    assert box is not None
    return box["x"] + pixel[0] * box["width"] / 256, box["y"] + pixel[1] * box["height"] / 256


if __name__ == "__main__":
    sys.exit(main())
