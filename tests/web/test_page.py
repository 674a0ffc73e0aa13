"""The page in a real browser, as a person uses it. What is asserted of pictures and masks is read from pixels."""

import contextlib
import io
import json
import zipfile

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sama.resources import EXAMPLE_CLIPS


browsers = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
RING, CIRCLE, HEART = (64, 114), (183, 55), (195, 160)  # on frame 12 of the example clip
HEART_BOX = ((148, 112), (246, 206))
NUM_FRAMES = 24
QUESTION = ["What is ", 1, "?"]
HELD_BYTES = 9000  # of an answer: its text and a few of its masks
FULL = coco.encode(np.ones((256, 256), np.uint8, order="F"))["counts"].decode()
HOSTILE = "<img src=x onerror=window.hacked=1>"


def decoded(size: list[int], counts: str) -> np.ndarray:
    """A mask from COCO run lengths, bool."""
    return coco.decode({"size": size, "counts": counts.encode()}).astype(bool)


def mask_of(one: dict, frame: int) -> np.ndarray:
    """The mask of an object of an answer on a frame."""
    return decoded(one["masks"]["size"], one["masks"]["counts"][str(frame)])


def frames_of(name: str) -> list[np.ndarray]:
    with av.open(str(EXAMPLE_CLIPS / name)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def nearest(picture: np.ndarray, frames: list[np.ndarray]) -> int:
    """The number of the frame that a picture shows, up to the loss of its encoding."""
    differences = [np.abs(picture.astype(int) - frame).mean() for frame in frames]
    assert min(differences) < 4
    return int(np.argmin(differences))


def assert_drawn(drawn: np.ndarray, mask: np.ndarray, color: str) -> None:
    """The overlay has the mask, in its colour, and nothing away from its outline."""
    inside, outside = eroded(mask), eroded(~mask)
    assert inside.any() and outside.any()
    assert drawn[inside, 3].min() > 0 and drawn[outside, 3].max() == 0
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]  # which a canvas of 15 % opacity keeps in 38 levels
    assert np.abs(np.median(drawn[inside, :3], axis=0) - wanted).max() <= 5


def eroded(mask: np.ndarray, pixels: int = 3) -> np.ndarray:
    """What is at least so many pixels inside a mask, away from its outline."""
    padded = np.pad(mask, pixels, constant_values=False)
    height, width = mask.shape
    shifts = [padded[y : y + height, x : x + width] for y in range(2 * pixels + 1) for x in range(2 * pixels + 1)]
    return np.logical_and.reduce(shifts)


# ---- what is shown is what it says ----


def test_the_player_shows_the_frame_that_it_names(tab):
    frames = frames_of("toy_world.mp4")
    for number in (0, 12, 13, 1, NUM_FRAMES - 1):
        tab.seek(number)
        assert nearest(tab.picture(), frames) == number
    tab.page.focus("#overlay")
    for key, frame in [("Home", 0), ("ArrowRight", 1), ("Shift+ArrowRight", 11), ("ArrowLeft", 10), ("End", 23)]:
        tab.page.keyboard.press(key)
        tab.until_shown(frame)
    tab.page.keyboard.press("Space")  # at the end, play begins anew
    tab.until("state => state.frame > 2 && state.frame < 20")
    tab.page.keyboard.press("Space")
    tab.until("() => video.paused && !video.seeking")
    assert nearest(tab.picture(), frames) == tab.state("state => state.frame")


def test_masks_are_decoded_as_coco_encodes_them(new_tab):
    tab, generator = new_tab(), np.random.default_rng(0)
    masks = [generator.random((height, width)) < share for height, width, share in
             [(1, 1, 0.5), (7, 5, 0.5), (64, 48, 0.1), (33, 70, 0.97), (9, 200, 0.0), (200, 9, 1.0)]]  # fmt: skip
    large = np.zeros((720, 1280), bool)
    large[300:310, 900:1200] = True
    codes = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (*masks, large)]
    codes = [{"size": list(code["size"]), "counts": code["counts"].decode()} for code in codes]
    script = """async (codes) => {
        const { decode } = await import("./masks.js");
        return codes.map((code) => { const mask = decode(code); return { ...mask, bits: [...mask.bits] }; });
    }"""
    for mask, found in zip((*masks, large), tab.page.evaluate(script, codes), strict=True):
        restored = np.zeros_like(mask)
        bits = np.array(found["bits"], bool).reshape(found["height"], found["width"])
        restored[found["y"] : found["y"] + found["height"], found["x"] : found["x"] + found["width"]] = bits
        assert np.array_equal(restored, mask)
    for damaged in ("", "0", "~", "PPPPPPPPPPPP", "00"):
        with pytest.raises(browsers.Error, match="The code of a mask"):
            tab.page.evaluate(script, [{"size": [4, 4], "counts": damaged}])


def test_events_are_read_however_the_stream_is_cut(new_tab):
    script = """async (text) => {
        const { eventData } = await import("./api.js");
        const bytes = new TextEncoder().encode(text);
        const read = async (cuts) => {
            const pieces = [0, ...cuts].map((start, i) => bytes.slice(start, [...cuts, bytes.length][i]));
            const body = new ReadableStream({ start(c) { pieces.forEach((p) => c.enqueue(p)); c.close(); } });
            const found = [];
            for await (const data of eventData(body)) found.push(data);
            return JSON.stringify(found);
        };
        return Promise.all([...bytes.keys()].map((cut) => read([cut])).concat(read([...bytes.keys()].slice(1))));
    }"""
    text = ': comment\r\n\r\ndata: {"a": "é🙂"}\r\n\r\nid: 3\ndata:b\ndata: c\n\ndata: [DONE]\r\r'
    found = set(new_tab().page.evaluate(script, text))
    assert [json.loads(one) for one in found] == [['{"a": "é🙂"}', "b\nc", "[DONE]"]]


def test_a_conversation(tab):
    tab.seek(12)
    tab.type("What is ")
    tab.click(*RING)
    tab.until_masks()
    region = tab.draft()[0]
    assert region["prompt"] == {"frame": 12, "points": [list(RING)], "labels": [1]}
    mask = decoded(region["mask"]["size"], region["mask"]["counts"])
    assert mask[RING[1], RING[0]] and 0.03 < mask.mean() < 0.3
    drawn = tab.overlay()
    assert drawn[eroded(mask), 3].min() > 0 and drawn[eroded(~mask), 3].mean() < 3, "the mask, and the point on it"
    tab.seek(13)
    assert tab.overlay()[..., 3].max() == 0, "the mask belongs to frame 12"
    tab.page.click(".question .chip-label")
    tab.until_shown(12)
    tab.type("?")
    assert tab.question() == ["What is ", 1, "?"]

    first = tab.ask()["answer"]
    one = first["objects"][0]
    assert (one["id"], one["phrase"]) == ("o1", first["content"][one["start"] : one["end"]])
    check_colors(tab, first)
    for frame in (12, 3):
        tab.seek(frame)
        assert_drawn(tab.overlay(), mask_of(one, frame), one["color"])
    resting = tab.overlay()[eroded(mask_of(one, 3)), 3].max()
    tab.page.hover(".asked .chip")
    assert tab.overlay()[eroded(mask_of(one, 3)), 3].min() > resting, "what is pointed at is highlighted"
    tab.page.click(".lanes .icon")
    assert tab.overlay()[..., 3].max() == 0, "hidden"
    tab.page.click(".lanes .icon")
    width = tab.page.locator("#scrubber").bounding_box()["width"]  # the lanes are as wide
    tab.page.locator(".lane").click(position={"x": width * 7.5 / NUM_FRAMES, "y": 5})
    tab.until_shown(7)

    tab.page.click(".phrase")
    assert tab.question() == ["o1"]
    tab.page.keyboard.press("Escape")
    tab.page.locator("#question").press("Home")
    tab.page.keyboard.type("What does ")
    tab.page.locator("#question").press("End")
    tab.page.keyboard.type("do?")
    assert tab.question() == ["What does ", "o1", " do?"]
    second = tab.ask()["answer"]
    assert second["content"] != first["content"] and second["objects"][0]["id"] == "o1"

    tab.seek(20)
    tab.choose("box")
    tab.drag(*HEART_BOX)
    tab.until_masks()
    assert tab.draft()[0]["prompt"]["frame"] == 20 and len(tab.draft()[0]["prompt"]["box"]) == 4
    tab.type("and what is")
    tab.ask()
    check_downloads(tab)

    turns, question = tab.turns(), "Which color does it have?"
    tab.type(question)
    tab.page.wait_for_timeout(500)
    tab.page.reload()
    tab.until("state => state.file !== null && state.turns.length === 3")
    tab.until_shown(20)
    assert tab.turns() == turns and tab.question() == [question]
    tab.ask()
    assert len(tab.turns()) == 4


def check_colors(tab, answer: dict) -> None:
    """Phrase, lane and chip of an object have the colour that the server gave it."""
    color = answer["objects"][0]["color"]
    selectors = (".answer .phrase", ".lanes li", ".asked .chip")
    script = "names => names.map(n => getComputedStyle(document.querySelector(n)).getPropertyValue('--object').trim())"
    assert tab.page.evaluate(script, list(selectors)) == [color] * 3
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    lane = tab.page.evaluate("getComputedStyle(document.querySelector('.lane span')).backgroundColor")
    assert lane == f"rgb({red}, {green}, {blue})"


def download(tab, name: str):
    tab.page.click("#download")
    with tab.page.expect_download() as event:
        tab.page.click(f"[data-format={name}]")
    return event.value


def check_downloads(tab) -> None:
    """The files of the download menu hold the video, the masks and the conversation."""
    objects = tab.state("async () => [...(await import('./state.js')).allObjects().values()]")
    shown = {one["id"]: one for one in objects}
    with av.open(str(download(tab, "mp4").path())) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == NUM_FRAMES and frames[0].shape == (256, 256, 3)
    changed = np.abs(frames[12].astype(int) - frames_of("toy_world.mp4")[12]).max(axis=2) > 60
    ring = mask_of(shown["o1"], 12)
    assert changed[ring].mean() > 0.1 > changed[eroded(~ring, 6) & ~eroded(ring, 0)].mean() - 0.1

    exported = json.loads(download(tab, "coco").path().read_text())
    masks = [one["segmentation"] for one in exported["annotations"]]
    assert any(np.array_equal(decoded(**code), ring) for code in masks)
    assert len(masks) == sum(len(one["masks"]["counts"]) for one in objects)

    with zipfile.ZipFile(download(tab, "png").path()) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L")) > 0 for name in names]
    assert any(np.array_equal(picture, ring) for picture in pictures)

    conversation = json.loads(download(tab, "json").path().read_text())
    contents = [message["content"] for message in conversation["messages"] if message["role"] == "assistant"]
    assert contents == [turn["answer"]["content"] for turn in tab.turns()]


def test_pointing_can_be_refined_undone_and_cleared(tab):
    tab.click(*RING)
    tab.click(*CIRCLE)
    tab.click(*HEART, button="right")
    assert tab.draft()[0]["prompt"]["labels"] == [1, 1, 0]
    tab.page.keyboard.down("Alt")
    tab.click(10, 10)
    tab.page.keyboard.up("Alt")
    assert tab.draft()[0]["prompt"]["labels"] == [1, 1, 0, 0]
    for labels in ([1, 1, 0], [1, 1], [1]):
        tab.page.keyboard.press("Control+z")
        assert tab.draft()[0]["prompt"]["labels"] == labels
    tab.until_masks()
    tab.page.keyboard.press("Control+z")
    assert tab.draft() == [] and tab.question() == []
    tab.page.click("#redo")
    assert tab.question() == [1]
    tab.choose("scribble")
    tab.drag((180, 40), (190, 55), (175, 70))
    tab.until_masks()
    stroke = tab.draft()[1]["prompt"]["scribble"]
    assert stroke[0] == [180, 40] and stroke[-1] == [175, 70] and tab.question() == [1, " ", 2]
    tab.page.keyboard.type("same?")  # letters go to the question, wherever the focus is
    assert tab.question() == [1, " ", 2, " same?"]
    tab.page.locator(".question .chip-label").first.focus()
    tab.page.keyboard.press("Delete")
    assert [region["number"] for region in tab.draft()] == [2]
    tab.page.keyboard.press("Escape")
    assert tab.draft() == [] and tab.question() == ["same?"]


def test_only_the_last_preview_counts(tab):
    """The reply about the first click comes after that about the second one, and is dropped."""
    held, given_up = [], []
    tab.page.route("**/v1/regions/preview", lambda route: held.append(route))
    tab.page.on("requestfailed", lambda request: given_up.append(request.post_data_json["region"]["points"]))
    tab.click(32, 114)
    tab.wait(lambda: len(held) == 1)
    tab.click(38, 95)
    tab.wait(lambda: len(held) == 2)
    held[1].continue_()
    tab.until_masks()
    mask = tab.draft()[0]["mask"]
    with contextlib.suppress(browsers.Error):  # the browser may not want it any more
        held[0].fulfill(json={"size": [256, 256], "counts": FULL, "frame": 0, "area": 256 * 256})
    tab.page.wait_for_timeout(200)
    assert tab.draft()[0]["mask"] == mask and mask["counts"] != FULL
    assert given_up == [[[32, 114]]]


def test_an_answer_that_is_stopped_and_one_whose_server_is_lost(new_tab, line):
    tab = new_tab(line.port).open()
    tab.type_about_ring()
    begin_to_answer(tab, line)
    tab.page.click("#ask")
    assert "Stopped" in tab.notice()
    assert tab.turns() == [] and tab.question() == QUESTION and len(tab.draft()) == 1
    assert tab.page.locator(".answer, .lanes li").count() == 0

    begin_to_answer(tab, line)
    line.cut()
    line.budget = None
    assert "server" in tab.notice()
    assert tab.turns() == [] and tab.question() == QUESTION
    tab.page.click("#notice-retry")
    assert "cannot be reached" in tab.notice()
    assert tab.question() == QUESTION
    line.mend()
    tab.page.click("#notice-retry")
    tab.until("state => state.turns.length === 1")
    assert tab.page.is_hidden("#notice")


def begin_to_answer(tab, line) -> None:
    """Asks a question whose answer stays on the line after its text and a few frames of masks."""
    line.budget = HELD_BYTES
    tab.page.press("#question", "Enter")
    tab.until("state => state.pending && state.pending.tracked.size > 1")
    assert tab.question() == [] and tab.page.locator(".answer progress").count() == 1
    assert tab.page.locator(".lane span").count() > 0


def ask_about_ring(tab) -> dict:
    """Asks the first question about the ring on frame 0."""
    tab.type_about_ring()
    return tab.ask()


# ---- what goes wrong ----


def test_uploads_that_are_broken_and_hostile(tab, tmp_path):
    data = (EXAMPLE_CLIPS / "toy_world.mp4").read_bytes()[:5000]
    tab.type("still here")
    script = """(bytes) => {
        const carried = new DataTransfer();
        carried.items.add(new File([new Uint8Array(bytes)], "broken.mp4"));
        return carried;
    }"""
    dropped = tab.page.evaluate_handle(script, list(data))
    tab.page.dispatch_event("#stage", "drop", {"dataTransfer": dropped})
    assert tab.notice().endswith(".") and "/" not in tab.notice()
    assert tab.page.is_visible("#media") and tab.question() == ["still here"]

    path = tmp_path / f"{HOSTILE}.png"
    Image.fromarray(frames_of("toy_world.mp4")[12]).save(path)
    tab.page.set_input_files("#file", path)
    tab.until("state => state.file.kind === 'image'")
    tab.until_shown(0)
    assert tab.page.locator("main img[src=x], header img").count() == 0
    assert np.abs(tab.picture().astype(int) - frames_of("toy_world.mp4")[12]).max() == 0
    assert tab.page.evaluate("window.hacked") is None
    tab.click(*CIRCLE)
    tab.until_masks()
    mask = tab.draft()[0]["mask"]
    assert decoded(mask["size"], mask["counts"])[CIRCLE[1], CIRCLE[0]]


def test_text_of_the_model_is_text(tab):
    one = {"id": "o1", "phrase": HOSTILE, "start": 2, "end": 2 + len(HOSTILE), "color": "#ff4068"}
    deltas = [{"role": "assistant", "content": ""}, {"content": f"🙂 {HOSTILE}"}, {"content": "!"}]
    deltas += [{"objects": [one]}, {"objects": [{"id": "o1", "score": 0.5, "frames": []}]}]
    events = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas] + ["[DONE]"]
    body = "".join(f"data: {event}\n\n" for event in events)
    stream = {"status": 200, "content_type": "text/event-stream", "body": body}
    tab.page.route("**/v1/chat/completions", lambda route: route.fulfill(**stream))
    tab.type("say it")
    tab.ask()
    assert tab.page.text_content(".answer p") == f"🙂 {HOSTILE}!"
    assert tab.page.text_content(".phrase") == HOSTILE
    assert tab.page.evaluate("[document.querySelectorAll('main img[src=x]').length, window.hacked ?? 0]") == [0, 0]


def test_a_key_is_asked_for(new_tab):
    tab = new_tab()
    refusal = {"status": 401, "json": {"error": {"message": "The API key is missing.", "type": "x"}}}

    def check(route) -> None:
        if route.request.headers.get("authorization") == "Bearer s3cret":
            route.continue_()
        else:
            route.fulfill(**refusal)

    tab.page.route("**/v1/**", check)
    tab.page.reload()
    tab.page.fill("#key", "s3cret")
    tab.page.keyboard.press("Enter")
    tab.open()
    assert tab.picture().std() > 20
    kept = tab.page.evaluate("['sessionStorage', 'localStorage'].map((name) => window[name].getItem('sama.key'))")
    assert kept == ["s3cret", None]


# ---- several tabs, no mouse, small windows ----


def test_two_tabs_do_not_mix(new_tab):
    one, other = new_tab().open(), new_tab().open()
    one.type("What is this?")
    other.type("Please segment the red circle.")
    one.page.press("#question", "Enter")
    second = other.ask()
    one.until("state => state.turns.length === 1")
    first = one.turns()
    assert first[0]["parts"] != second["parts"]
    for tab in (one, other):
        tab.page.wait_for_timeout(500)
        tab.page.reload()
        tab.until("state => state.turns.length === 1")
    assert one.turns() == first and other.turns() == [second]


def test_a_large_conversation_is_kept_elsewhere(tab):
    tab.page.wait_for_timeout(500)  # until the page has kept its own
    script = """async () => {
        const { keep, kept } = await import("./storage.js");
        await keep({ turns: ["x".repeat(8e6)] });
        return [(await kept()).turns[0].length, sessionStorage.getItem("sama.conversation").length < 100];
    }"""
    assert tab.page.evaluate(script) == [8_000_000, True]


def test_without_a_mouse(new_tab):
    tab = new_tab()
    page = tab.page
    page.wait_for_selector("#examples button")

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("name => document.activeElement.matches(name)", selector):
                return
        raise AssertionError(f"{selector} cannot be reached by the Tab key")

    tab_to("#examples button")
    page.keyboard.press("Enter")
    tab.until("state => state.file !== null")
    tab.until_shown(0)
    tab_to("#overlay")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    tab.until_shown(12)
    page.keyboard.press("Enter")
    for key, count in [("Control+ArrowLeft", 128 - RING[0]), ("Control+ArrowUp", 128 - RING[1])]:
        for _ in range(count):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    tab.until_masks()
    assert tab.draft()[0]["prompt"] == {"frame": 12, "points": [list(RING)], "labels": [1]}
    page.keyboard.press("Escape")
    page.keyboard.type("?")
    page.keyboard.press("Home")
    page.keyboard.type("What is ")
    assert tab.question() == QUESTION
    tab.ask()
    page.locator(".phrase").first.focus()
    page.keyboard.press("Enter")
    assert tab.question() == ["o1"] and page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Backspace")
    assert tab.question() == []


@pytest.mark.parametrize("sizes", [((390, 844), (360, 640), (667, 375)), ((1440, 844), (1024, 844))])
def test_everything_fits(new_tab, sizes):
    ask_about_ring(tab := new_tab(viewport=dict(zip(("width", "height"), sizes[0], strict=True))).open())
    tab.page.click(".phrase")
    tab.click(*CIRCLE)  # with the button for the next region
    tab.page.evaluate("document.querySelector('#file-name').textContent = 'a long name '.repeat(20)")
    tab.page.evaluate("document.querySelector('.question bdi').textContent = 'a long name '.repeat(20)")
    for width, height in sizes:
        tab.page.set_viewport_size({"width": width, "height": height})
        assert tab.page.evaluate("(e => [e.scrollWidth, e.scrollHeight])(document.documentElement)") == [width, height]
        for name in ("#overlay", "#play", "#scrubber", "#question", "#ask", "#messages", "#undo", "#finish", "#help"):
            box = tab.page.locator(name).bounding_box()
            x, y, across, down = (box[side] for side in ("x", "y", "width", "height"))
            assert across > 20 and 0 <= x <= width - across and 0 <= y <= height - down, name
        assert tab.page.evaluate("question.scrollWidth <= question.clientWidth && messages.clientHeight > 100")
        assert tab.page.is_visible("#lanes") == (sizes[0][0] > 720)


def test_axe_finds_nothing(new_tab, axe):
    tab = new_tab()

    def check() -> None:
        tab.page.evaluate(axe)
        for theme in ("light", "dark"):
            tab.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            found = tab.page.evaluate("async () => (await axe.run()).violations")
            assert [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:150]}" for one in found] == [], theme

    tab.page.wait_for_selector("#examples button")
    check()
    ask_about_ring(tab.open())
    tab.page.click(".phrase")
    tab.click(*CIRCLE)
    tab.until_masks()
    check()
    tab.page.click("#help")
    check()
