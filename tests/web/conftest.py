"""What the tests of the page share: one server on the small model, a line to it that can be cut, and one browser."""

import base64
import io
import selectors
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from checkpoint import load_checkpoint
from PIL import Image


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_SECONDS = 60  # generous: it only ends a test that would hang
# Without animations, for which Chromium would draw sixty pictures a second while an answer is awaited
SETTINGS = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
STATE = "async ([code, value]) => { const { state } = await import('./state.js'); return (%s)(state, value); }"


class Line:
    """
    Forwards connections to the server.

    Attributes:
        budget (`int`): how many more bytes of answers to questions it forwards before it holds them back; `None` for
            all.
    """

    def __init__(self, port: int):
        self.target, self.port, self.budget = port, 0, None
        self.asking: set[socket.socket] = set()  # to the server, where the last request was a question
        self.mend()

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        self.cut_pipe, self.end = socket.socketpair()
        self.thread = threading.Thread(target=self._forward, args=(self.listener, self.end), daemon=True)
        self.thread.start()

    def cut(self) -> None:
        """Breaks all connections; new ones are refused until [`Line.mend`]."""
        self.cut_pipe.close()
        self.thread.join(WAIT_SECONDS)

    def _forward(self, listener: socket.socket, end: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            peers: dict[socket.socket, socket.socket] = {}
            for one in (listener, end):
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is end:
                        for one in (*peers, listener, end):
                            one.close()
                        return
                    if key.fileobj is listener:
                        client, _ = listener.accept()
                        server = socket.create_connection(("127.0.0.1", self.target))
                        peers |= {client: server, server: client}
                        for one in (client, server):
                            selector.register(one, selectors.EVENT_READ)
                    elif key.fileobj in peers:
                        self._pass_on(key.fileobj, peers, selector)

    def _pass_on(self, source: socket.socket, peers: dict, selector: selectors.BaseSelector) -> None:
        limited = self.budget is not None and source in self.asking
        if limited and self.budget == 0:
            selector.unregister(source)  # what comes stays in the connection
            return
        try:
            data = source.recv(self.budget if limited else 65536)
            if data:
                if limited:
                    self.budget -= len(data)
                if data.startswith(b"POST /v1/chat/completions"):
                    self.asking.add(peers[source])
                peers[source].sendall(data)
                return
        except OSError:
            pass
        for one in (source, peers[source]):
            if one in selector.get_map():
                selector.unregister(one)
            peers.pop(one)
            one.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The port of a server on the small model, with the settings of `python serve.py`."""
    for module in ("fastapi", "uvicorn", "multipart"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[serve]'")
    from http_server import running_server

    from sama.serving.engine import Engine
    from sama.serving.files import FileStore
    from sama.serving.limits import Limits
    from sama.serving.server import create_app
    from sama.serving.settings import component_fraction

    model, processor = load_checkpoint()
    limits = Limits()
    engine = Engine(model, processor, limits, component_fraction(None, model.config.preset))
    app = create_app(engine, FileStore(tmp_path_factory.mktemp("server"), limits), limits, model_name="sama-tiny")
    with running_server(app, limits) as client:
        yield client.port
    engine.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'"
    )
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def line(server):
    line = Line(server)
    yield line
    line.cut()


@pytest.fixture(scope="module")
def profile(browser):
    """The browser profile of the tests that need no settings of their own: a tab of it, whose conversation and key are
    its own, opens with a third less work than the first one of another profile."""
    context = browser.new_context(**SETTINGS)
    yield context
    context.close()


@pytest.fixture
def new_tab(browser, profile, server):
    """A function that opens the page in a new tab; arguments are settings of a browser profile of its own."""
    opened, problems = [], []

    def make(port: int = server, **settings) -> "Tab":
        context = browser.new_context(**{**SETTINGS, **settings}) if settings else profile
        page = context.new_page()
        opened.append(context if settings else page)
        page.set_default_timeout(1000 * WAIT_SECONDS)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if "Security" in message.text else None)
        return Tab(page, f"http://127.0.0.1:{port}/")

    yield make
    for one in opened:
        one.close()
    assert problems == [], "scripts failed, or the Content Security Policy was violated"


@pytest.fixture
def tab(new_tab) -> "Tab":
    """The page with the generated example clip open."""
    return new_tab().open()


@pytest.fixture(scope="module")
def axe(tmp_path_factory) -> str:
    """The script of axe-core, from the npm registry."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which fetches axe-core")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4.14.1"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("axe-core cannot be fetched from the npm registry")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


class Tab:
    """The page, as a person uses it."""

    def __init__(self, page, address: str):
        self.page, self.address = page, address
        page.goto(address)

    def open(self, name: str = "toy_world.mp4") -> "Tab":
        self.page.locator("#examples button", has_text=name).click()
        self.until("state => state.file !== null")
        self.until_shown(0)
        return self

    # ---- what the page knows and shows ----

    def state(self, code: str, value=None):
        """What a function of the page's state returns."""
        return self.page.evaluate(STATE % code, [None, value])

    def wait(self, condition: Callable[[], object]) -> None:
        """Waits until a condition is true; the page goes on meanwhile."""
        end = time.monotonic() + WAIT_SECONDS
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self.page.wait_for_timeout(50)

    def until(self, code: str, value=None) -> None:
        """Waits until a function of the page's state returns something true. Playwright's own `wait_for_function` is
        forbidden by the page's Content Security Policy."""
        self.wait(lambda: self.state(code, value))

    def until_shown(self, frame: int) -> None:
        """Waits until a frame is shown."""
        ready = "(video.readyState > 1 || state.file.kind === 'image')"
        # A canvas is transparent until the first frame of a new file is drawn
        drawn = "picture.getContext('2d').getImageData(0, 0, 1, 1).data[3] > 0"
        self.until(f"(state, n) => state.frame === n && !video.seeking && {ready} && {drawn}", frame)

    def question(self) -> list:
        """The question in the box: texts, numbers of regions, ids of objects."""
        script = "async () => (await import('./editor.js')).parts().map(p => p.text ?? p.object ?? p.region.number)"
        return self.page.evaluate(script)

    def draft(self) -> list[dict]:
        return self.state("state => state.draft")

    def turns(self) -> list[dict]:
        return self.state("state => state.turns")

    def notice(self) -> str:
        self.page.wait_for_selector("#notice:not([hidden])")
        return self.page.text_content("#notice-text")

    def picture(self) -> np.ndarray:
        """The shown frame, of shape `(height, width, 3)`, uint8."""
        return self._canvas("picture")[..., :3]

    def overlay(self) -> np.ndarray:
        """What is drawn over the frame at the middle of each pixel of the video: `(height, width, 4)`, uint8."""
        drawn = self._canvas("overlay")
        height, width = self.state("state => [state.file.height, state.file.width]")
        rows = ((np.arange(height) + 0.5) * drawn.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * drawn.shape[1] / width).astype(int)
        return drawn[rows[:, None], columns]

    def _canvas(self, name: str) -> np.ndarray:
        url = self.page.evaluate(f"document.getElementById('{name}').toDataURL('image/png')")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))

    # ---- what a person does ----

    def seek(self, frame: int) -> None:
        self.page.fill("#frame", str(frame))
        self.page.press("#frame", "Enter")
        self.until_shown(frame)

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the video is in the window."""
        box = self.page.locator("#overlay").bounding_box()
        height, width = self.state("state => [state.file.height, state.file.width]")
        return box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height

    def click(self, x: float, y: float, **options) -> None:
        self.page.mouse.click(*self.point(x, y), **options)

    def drag(self, *points: tuple[float, float]) -> None:
        self.page.mouse.move(*self.point(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.point(*point), steps=4)
        self.page.mouse.up()

    def choose(self, tool: str) -> None:
        self.page.locator(f"label:has(input[value={tool}])").click()

    def type(self, text: str) -> None:
        self.page.focus("#question")
        self.page.keyboard.type(text)

    def until_masks(self) -> None:
        """Waits until every region of the question has its mask."""
        self.until("state => state.draft.length > 0 && state.draft.every(region => region.mask)")

    def type_about_ring(self) -> None:
        """Types a question about the ring on frame 0 of the example clip."""
        self.type("What is ")
        self.click(32, 114)
        self.until_masks()
        self.type("?")

    def ask(self) -> dict:
        """Asks what stands in the box and returns the turn when it is answered."""
        count = len(self.turns())
        self.page.press("#question", "Enter")
        self.until("(state, n) => state.pending === null && (state.turns.length > n || !notice.hidden)", count)
        assert len(self.turns()) == count + 1, self.notice()
        return self.turns()[-1]
