"""Many clients of one server at once: whether each gets its own answers, how long the first token takes, and memory.

    python profiling/serving_load.py [--clients 16] [--minutes 10] [--model FOLDER] [--out TABLE.md]

Starts `serve.py` as a process of its own on the loopback address. Before that, this process answers every conversation
without a server, and without anything that is remembered: the text of each answer over HTTP must be the same, its
objects must have the same ids, phrases and places, and their masks an IoU of at least 0.99. The exit code is 1 if an
answer differs or a request fails. Times depend on the machine, and clients and server share it.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import numpy as np
import psutil

from sama.drawing.tables import markdown_table
from sama.regions_sama import decode_rle
from sama.resources import EXAMPLE_CLIPS, SMALL_MODEL
from sama.serving.engine import EarlierTurn, Engine, Question
from sama.serving.settings import KEY_VARIABLE, component_fraction


ROOT = Path(__file__).resolve().parent.parent
MAX_TOKENS = 48
LEAST_IOU = 0.99
EARLIER_OBJECT = {"object": 1}  # where a question points at the first object of the answer before it
TIMEOUT = httpx2.Timeout(600.0)
NUM_PROBES, NUM_TRACKING = 20, 4
MIB = 2**20


# ---- conversations and their answers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """Questions about a clip, as parts; `EARLIER_OBJECT` becomes `instead` where the answer before has no object."""

    clip: str
    instead: dict
    questions: tuple[tuple[str | dict, ...], ...]


def scripts(clip: str, boxes: Sequence[dict]) -> list[Script]:
    """A conversation of three turns for each box."""
    last = ("Segment the circle.",), ("Describe the video.",), ("Is there a square?",)
    return [
        Script(clip, box, (("What is ", box, "?"), ("What does ", EARLIER_OBJECT, " do?"), last[number % 3]))
        for number, box in enumerate(boxes)
    ]


# A different answer to each
TOY_BOXES = [
    {"frame": frame, "box": box}
    for frame, box in (
        (12, [48, 70, 137, 159]),
        (12, [150, 20, 230, 100]),
        (5, [120, 100, 220, 200]),
        (18, [60, 140, 160, 240]),
        (23, [10, 10, 90, 90]),
    )
]
FILM_BOXES = [{"frame": 10, "box": [200, 80, 420, 300]}, {"frame": 30, "box": [60, 60, 260, 320]}]
SCRIPTS = [*scripts("toy_world.mp4", TOY_BOXES), *scripts("bigbuckbunny.mp4", FILM_BOXES)]


@dataclass(frozen=True)
class Expected:
    """An answer over HTTP as it must be: its question, its text, and its objects with ids and masks."""

    question: dict
    text: str
    objects: tuple[tuple[str, str, int, int], ...]
    masks: tuple[dict[str, np.ndarray], ...]


def expected_answers(engine: Engine, script: Script, max_tokens: int = MAX_TOKENS) -> list[Expected]:
    """The answers of a conversation from its messages alone: before each question all that is known is forgotten."""
    path, earlier, found = str(EXAMPLE_CLIPS / script.clip), [], []
    for parts in script.questions:
        known = bool(earlier) and bool(earlier[-1].objects)
        parts = tuple(script.instead if part == EARLIER_OBJECT and not known else part for part in parts)
        if EARLIER_OBJECT in parts:
            number = earlier[-1].objects[0].number
            parts = tuple({"object": number} if part == EARLIER_OBJECT else part for part in parts)
        engine.forget(script.clip)
        question = Question(
            parts, earlier=tuple(earlier), source=path, source_id=script.clip, max_new_tokens=max_tokens
        )
        *_, done = engine.ask(question)
        turn = done.turn
        found.append(
            Expected(
                message_of(parts),
                turn.reply.text,
                tuple((f"o{item.number}", item.phrase, *item.span) for item in turn.objects),
                tuple(visible_masks(phrase.track) for phrase in turn.reply.objects),
            )
        )
        earlier.append(EarlierTurn.of(parts, turn))
    return found


def message_of(parts: Sequence[str | dict]) -> dict:
    """A question as a message; the video is added to the first one of a conversation."""
    content = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            region = {"object": f"o{part['object']}"} if "object" in part else part
            content.append({"type": "region", "region": region})
    return {"role": "user", "content": content}


def visible_masks(track) -> dict[str, np.ndarray]:
    """Frame to mask, where the object is visible."""
    return {str(frame): decode_rle(track.to_rle(frame)) for frame in track.visible_frames()}


def differences(message: dict, expected: Expected) -> list[str]:
    """What is wrong with an answer, as sentences."""
    if message["content"] != expected.text:
        return [f"the text is {message['content']!r}, expected {expected.text!r}"]
    objects = tuple((one["id"], one["phrase"], one["start"], one["end"]) for one in message["objects"])
    if objects != expected.objects:
        return [f"the objects are {objects}, expected {expected.objects}"]
    found = []
    for one, masks in zip(message["objects"], expected.masks, strict=True):
        size = one["masks"]["size"]
        mine = {frame: decode_rle({"size": size, "counts": rle}) for frame, rle in one["masks"]["counts"].items()}
        both = sum(int((mine[frame] & masks[frame]).sum()) for frame in mine.keys() & masks.keys())
        union = sum(int(mask.sum()) for masks_of_one in (mine, masks) for mask in masks_of_one.values()) - both
        if union and both / union < LEAST_IOU:
            found.append(f"the masks of {one['id']} have an IoU of {both / union:.4f}")
    return found


# ---- clients --------------------------------------------------------------------------------------------------------


@dataclass
class LoadResult:
    """
    What clients met.

    Attributes:
        conversations, questions, busy (`int`): how many; `busy` counts refusals with 429, after which a client waits.
        problems (`list[str]`): answers that differ and requests that failed.
        first_token_seconds (`list[float]`): of streamed answers.
    """

    conversations: int = 0
    questions: int = 0
    busy: int = 0
    problems: list[str] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)


class LoadClient:
    """
    One client, which repeats its whole conversation in every request.

    Args:
        http (`httpx2.AsyncClient`): whose base URL is the server's.
        files (`dict`): name of a clip to the id of its upload.
        result ([`LoadResult`]): is added to.
    """

    def __init__(self, http: httpx2.AsyncClient, files: dict[str, str], result: LoadResult):
        self.http, self.files, self.result = http, files, result
        self.asked_at = 0.0

    async def converse(self, clip: str, answers: Sequence[Expected], stream: bool) -> None:
        """Has a conversation and compares every answer; ends it at the first problem."""
        messages: list[dict] = []
        for number, expected in enumerate(answers):
            question = expected.question
            if not number:
                part = {"type": "video_url", "video_url": {"file_id": self.files[clip]}}
                question = question | {"content": [part, *question["content"]]}
            messages.append(question)
            try:
                message = await self.ask(messages, stream)
            except (httpx2.HTTPError, RuntimeError, KeyError, ValueError) as error:
                self.result.problems.append(f"{clip}, turn {number}: {type(error).__name__}: {error}")
                return
            self.result.questions += 1
            problems = differences(message, expected)
            self.result.problems += [f"{clip}, turn {number}: {problem}" for problem in problems]
            if problems:
                return
            messages.append(message)
        self.result.conversations += 1

    async def ask(self, messages: list[dict], stream: bool) -> dict:
        """The message that answers; waits and asks again where the server is busy."""
        body = {"messages": messages, "max_tokens": MAX_TOKENS, "stream": stream}
        while True:
            self.asked_at = time.monotonic()
            async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code == 200:
                    return await self._read(response, stream)
                content = await response.aread()
            if response.status_code != 429:
                raise RuntimeError(f"status {response.status_code}: {content[:300]!r}")
            self.result.busy += 1
            await asyncio.sleep(int(response.headers["retry-after"]))

    async def _read(self, response: httpx2.Response, stream: bool) -> dict:
        if not stream:
            return json.loads(await response.aread())["choices"][0]["message"]
        message = {"role": "assistant", "content": "", "objects": []}
        async for delta in deltas(response):
            if not message["content"] and delta.get("content"):
                self.result.first_token_seconds.append(time.monotonic() - self.asked_at)
            add_delta(message, delta)
        return message


async def deltas(response: httpx2.Response) -> AsyncIterator[dict]:
    """The deltas of a streamed answer; raises `RuntimeError` if it ends with an error or without `[DONE]`."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            for choice in chunk["choices"]:
                yield choice["delta"]
    raise RuntimeError("The stream ended without [DONE].")


def add_delta(message: dict, delta: dict) -> None:
    """Adds a piece of a streamed answer to the message that it becomes."""
    message["content"] += delta.get("content") or ""
    for item in delta.get("objects") or ():
        known = next((one for one in message["objects"] if one["id"] == item["id"]), None)
        if known is None:
            known = {"masks": {"size": item.get("masks", {}).get("size"), "counts": {}}}
            message["objects"].append(known)
        if "masks" in item:
            known["masks"]["size"] = item["masks"]["size"]
            known["masks"]["counts"] |= item["masks"]["counts"]
        known |= {name: value for name, value in item.items() if name != "masks"}


async def upload_clips(http: httpx2.AsyncClient, names: Sequence[str]) -> dict[str, str]:
    """Uploads clips; their ids by name."""
    ids = {}
    for name in names:
        response = await http.post("/v1/files", files={"file": (name, (EXAMPLE_CLIPS / name).read_bytes())})
        ids[name] = response.raise_for_status().json()["id"]
    return ids


async def run_clients(
    url: str, answers: Sequence[tuple[str, list[Expected]]], clients: int, go_on: Callable[[int], bool]
) -> LoadResult:
    """
    Lets clients talk at the same time, each beginning with another conversation, every second one without streaming.

    Args:
        url (`str`): of the server.
        answers (sequence): clip and answers of each conversation.
        clients (`int`)
        go_on (`Callable`): from the number of conversations that a client has had to whether it has another one.
    """
    result = LoadResult()
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as http:
        files = await upload_clips(http, sorted({clip for clip, _ in answers}))

        async def run(number: int) -> None:
            client, had = LoadClient(http, files, result), 0
            while go_on(had):
                clip, expected = answers[(number + had) % len(answers)]
                await client.converse(clip, expected, stream=(number + had) % 2 == 0)
                had += 1

        await asyncio.gather(*(run(number) for number in range(clients)))
    return result


# ---- first token with others tracking -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstToken:
    """Medians in seconds: to the first token when nothing else is computed and while others track, and of a frame."""

    idle: float
    loaded: float
    frame: float

    @property
    def bound(self) -> float:
        """Twice the idle time and one frame."""
        return 2 * self.idle + self.frame


async def measure_first_token(url: str, probe: tuple[str, dict], tracking: tuple[str, dict]) -> FirstToken:
    """`probe` and `tracking` are a clip and a question about it; the second one is asked by `NUM_TRACKING` clients."""
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT) as http:
        files = await upload_clips(http, sorted({probe[0], tracking[0]}))

        def body(clip: str, question: dict, masks: str) -> dict:
            part = {"type": "video_url", "video_url": {"file_id": files[clip]}}
            message = question | {"content": [part, *question["content"]]}
            return {"messages": [message], "stream": True, "masks": masks, "max_tokens": MAX_TOKENS}

        async def first_token() -> float:
            begin, first = time.monotonic(), math.nan
            async with http.stream("POST", "/v1/chat/completions", json=body(*probe, "none")) as response:
                async for delta in deltas(response.raise_for_status()):
                    if math.isnan(first) and delta.get("content"):
                        first = time.monotonic() - begin
            return first

        async def track(frames: list[float]) -> None:
            while True:
                async with http.stream("POST", "/v1/chat/completions", json=body(*tracking, "rle")) as response:
                    async for delta in deltas(response.raise_for_status()):
                        if "frame" in delta:
                            frames.append(time.monotonic())

        alone: list[float] = []
        idle = [await first_token() for _ in range(NUM_PROBES + 1)][1:]  # the first one reads the video
        async with background([track(alone)]) as tasks:
            await until(lambda: len(alone) > 60, tasks)
        frame = statistics.median(np.diff(alone))
        counts: list[list[float]] = [[] for _ in range(NUM_TRACKING)]
        async with background([track(count) for count in counts]) as tasks:
            await until(lambda: all(counts), tasks)
            loaded = [await first_token() for _ in range(NUM_PROBES)]
    return FirstToken(statistics.median(idle), statistics.median(loaded), float(frame))


@asynccontextmanager
async def background(coroutines: Sequence) -> AsyncIterator[list[asyncio.Future]]:
    """Runs coroutines as tasks until the block ends, and raises the error of one that failed."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


async def until(condition: Callable[[], bool], tasks: Sequence[asyncio.Future]) -> None:
    """Waits for a condition, or until one of the tasks that bring it about has ended."""
    while not condition() and not any(task.done() for task in tasks):
        await asyncio.sleep(0.02)


# ---- the server as a process ----------------------------------------------------------------------------------------


def start_server(folder: Path, model: str, *options: str) -> tuple[subprocess.Popen, str]:
    """Starts `serve.py` with its files in `folder` and waits for its model: the process and its address."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), *sys.path])}
    environment.pop(KEY_VARIABLE, None)  # the clients send no key
    command = [sys.executable, str(ROOT / "serve.py"), "--port", "0", "--folder", str(folder), "--model", model]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("SAMA: "):
            return process, line.split()[1].rstrip("/")
    raise RuntimeError(f"The server ended with {process.wait()} before its model was loaded.")


async def sample_memory(pid: int, found: list[float], seconds: float = 1.0) -> None:
    """Adds the resident memory of a process in MiB to `found`, once in `seconds`."""
    process = psutil.Process(pid)
    while True:
        found.append(process.memory_info().rss / MIB)
        await asyncio.sleep(seconds)


async def measure(url: str, pid: int, answers: list, clients: int, minutes: float) -> tuple:
    """Runs clients for some minutes: what they met, the memory of the server, and times to the first token."""
    memory: list[float] = []
    async with background([sample_memory(pid, memory)]):
        end = time.monotonic() + 60 * minutes
        result = await run_clients(url, answers, clients, lambda _: time.monotonic() < end)
    first = {clip: expected[0].question for clip, expected in reversed(answers)}
    probe, tracking = ((clip, first[clip]) for clip in (SCRIPTS[0].clip, SCRIPTS[-1].clip))
    return result, memory, await measure_first_token(url, probe, tracking)


def report(result: LoadResult, memory: list[float], first: FirstToken, clients: int, minutes: float) -> str:
    """The figures as a Markdown table."""
    seconds = result.first_token_seconds or [float("nan")]
    tenths = [f"{memory[len(memory) * number // 10 - 1]:.0f}" for number in range(1, 11)]
    rows = [
        ("clients at once, minutes", f"{clients}, {minutes:g}"),
        ("conversations, questions", f"{result.conversations}, {result.questions}"),
        ("questions a minute", f"{result.questions / minutes:.0f}"),
        ("failed requests and answers that differ", len(result.problems)),
        ("refused because busy (429), asked again", result.busy),
        ("first token, median and 95th percentile", f"{np.median(seconds):.2f} s, {np.percentile(seconds, 95):.2f} s"),
        ("memory of the server in MiB, after each tenth of the time", ", ".join(tenths)),
        ("first token of one client, idle", f"{1000 * first.idle:.0f} ms"),
        (f"the same with {NUM_TRACKING} others tracking", f"{1000 * first.loaded:.0f} ms"),
        ("twice idle and one frame", f"{1000 * first.bound:.0f} ms (a frame takes {1000 * first.frame:.0f} ms)"),
    ]  # fmt: skip
    return markdown_table(("", f"{os.cpu_count()} CPUs"), rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SMALL_MODEL))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    from sama.serving.loading import load_model

    model, processor = load_model(arguments.model)
    engine = Engine(model, processor, min_component_fraction=component_fraction(None, model.config.preset))
    answers = [(script.clip, expected_answers(engine, script)) for script in SCRIPTS]
    engine.close()
    with TemporaryDirectory() as folder:
        process, url = start_server(Path(folder), arguments.model)
        try:
            found = asyncio.run(measure(url, process.pid, answers, arguments.clients, arguments.minutes))
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
    table = report(*found, arguments.clients, arguments.minutes)
    print(table)
    for problem in found[0].problems[:20]:
        print(problem)
    if arguments.out is not None:
        arguments.out.write_text(table + "\n", encoding="utf-8")
    return 1 if found[0].problems else 0


if __name__ == "__main__":
    sys.exit(main())
