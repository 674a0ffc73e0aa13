"""
A run over many small videos whose endpoint fails at a tenth of the calls, in every way that the scripted one knows.
It is killed twice and stopped once on the way.

    python tests/annotation/many_videos.py --output outputs/many_videos

Its files must be those of a run whose connections do not break, byte for byte; each video must be kept, reviewed,
rejected or an error; nothing may be asked twice but what was on its way when the run was killed; and the costs must be
what the endpoint counted.
"""

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image


sys.path.insert(0, str(Path(__file__).parent))

from scripted_endpoint import (  # noqa: E402
    CONNECTION_FAULTS,
    KEY,
    REPLY_FAULTS,
    STATUS_FAULTS,
    TEXT_FAULTS,
    Call,
    by_rate,
    by_request,
    make_completion,
    scripted_endpoint,
)

from sama.annotation import command as annotate  # noqa: E402
from sama.annotation import prompts  # noqa: E402
from sama.annotation.costs import read_ledger, sum_up  # noqa: E402
from sama.annotation.pipeline import ERRORS, FILES  # noqa: E402
from sama.data.masks import encode_rle  # noqa: E402
from sama.evaluation.chat_endpoint import EndpointReply  # noqa: E402
from sama.resources import PACKAGE  # noqa: E402


NUM_VIDEOS, CONCURRENCY, KILLS = 1_000, 8, 2
SIZE, OBJECT = (48, 64), (slice(10, 40), slice(12, 50))
# Faults that a retry mends come at a share of the calls, those of a reply whenever its request is asked
PASSING = ("429", "429 seconds", "429 zero", "500", "503", "503 seconds", *CONNECTION_FAULTS)
STOPPING = "insufficient_quota"
UNUSABLE = (*CONNECTION_FAULTS, "surrogates")  # replies that are asked for again
OF_ANY_REPLY = ("fence", "prose", "malformed", "truncated", "two objects", "duplicate keys", "NaN")
LASTING = ("400", "content_filter 400", *REPLY_FAULTS, *OF_ANY_REPLY)
OF_DIALOGUES = tuple(name for name in TEXT_FAULTS if name not in OF_ANY_REPLY)
SHARES = {"passing": 0.05, "lasting": 0.035, "dialogues": 0.06}  # a quarter of the requests are for dialogues
WORDS = {
    "look": "small large round flat bright dark shiny dull smooth rough narrow wide tall short heavy light".split(),
    "thing": "plate stone cup tile shell coin brick lamp drum leaf wheel bottle pillow basket ladder kettle".split(),
    "act": "turns rolls rests leans slides swings floats drops bends shakes waits sinks lifts drifts bounces".split(),
    "how": "slowly quickly gently calmly suddenly twice again softly evenly steadily freely loosely barely".split(),
    "where": "window corner door wall table edge middle floor ceiling shelf border path garden bridge".split(),
}  # fmt: skip


def make_videos(folder: Path, number: int) -> Path:
    """Writes so many videos of two pictures, each with an object; returns the file of their masks."""
    rng = np.random.default_rng(0)
    mask = np.zeros(SIZE, dtype=bool)
    mask[OBJECT] = True
    lines = []
    for index in range(number):
        name = f"{index:04d}"
        (folder / name).mkdir(parents=True)
        for frame in range(2):
            pixels = np.broadcast_to(rng.integers(0, 256, 3, dtype=np.uint8), (*SIZE, 3)).copy()
            pixels[OBJECT] = rng.integers(0, 256, 3, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{frame}.png")
        video = {"path": name, "frames": ["0.png", "1.png"]}
        code = encode_rle(mask)
        lines.append({"id": name, "source": "many", "video": video, "objects": {"thing": {"masks": [code, code]}}})
    path = folder / "objects.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


# ---- the models


def answer(request: dict) -> str:
    """What a model writes: words that depend on the pictures alone; of claims, a few are not true."""
    system = request["messages"][0]["content"]
    parts = next(message["content"] for message in request["messages"] if message["role"] == "user")
    if system.startswith(prompts.VERIFY):
        claims = re.findall(r"^(\d+)\. (.*)$", parts[-1]["text"], re.MULTILINE)
        return json.dumps({"verdicts": [{"claim": int(n), "verdict": _verdict(claim)} for n, claim in claims]})
    seen = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    if system.startswith(prompts.DESCRIBE):
        sentences = ["It is a {look} {thing} with a {look} side.", "It {act} {how} near the {where}."]
        statements = [{"text": _filled(text, seen), "first": 0, "last": 1} for text in sentences]
        return json.dumps({"objects": [{"object": "obj1", "statements": statements}]})
    turns = [
        ("What does the {look} {thing} <obj1> do?", "<p> The {thing} </p> <obj1> {act} {how} and {act} by a {where}."),
        ("How does this {thing} <obj1> look now?", "It is {look}: <p> a {look} {thing} </p> <obj1> by the {where}."),
    ]  # fmt: skip
    evidence = [{"object": "obj1", "first": 0, "last": 1}]
    made = [
        {"turn": number, "question": _filled(q, seen), "answer": _filled(a, seen), "kind": "action"}
        | {"evidence": evidence}
        for number, (q, a) in enumerate(turns, start=1)
    ]
    wanted = re.search(r"only turns ([0-9, ]+) again", str(request["messages"][-1]["content"]))
    numbers = [1, 2] if wanted is None else [int(one) for one in wanted[1].split(", ")]
    return json.dumps({"turns": [turn for turn in made if turn["turn"] in numbers]})


def _filled(text: str, seen: Sequence[str]) -> str:
    digits = iter(hashlib.sha256(json.dumps([text, seen]).encode()).digest())
    return re.sub(r"\{(\w+)\}", lambda found: WORDS[found[1]][next(digits) % len(WORDS[found[1]])], text)


def _verdict(claim: str) -> str:
    chance = hashlib.sha256(claim.encode()).digest()[0]
    return "false" if chance < 8 else "unseen" if chance < 13 else "true"


def lasting_fault(number: int, request: dict, repetition: int) -> str | None:
    """What is wrong with the reply to a request, whenever it is asked."""
    if request["messages"][0]["content"].startswith(prompts.CONVERSE):
        fault = by_request(SHARES["dialogues"], OF_DIALOGUES, seed=1)(number, request, 0)
        if fault is not None and len(json.loads(answer(request))["turns"]) == 2:
            return fault
    return by_request(SHARES["lasting"], LASTING, seed=2)(number, request, 0)


passing_fault = by_rate(SHARES["passing"], PASSING, seed=3)


# ---- the run


class SeenCall(NamedTuple):
    """A call as the endpoint saw it: its fault, the status of the reply, a hash of the request, the tokens that were
    counted."""

    fault: str | None
    status: int
    body: str
    tokens: int | None


def seen_call(call: Call) -> SeenCall:
    body = hashlib.sha256(json.dumps(call.request, sort_keys=True).encode()).hexdigest()
    usage = make_completion(call.request, answer(call.request), call.fault).get("usage")
    return SeenCall(call.fault, call.status, body, usage and usage["prompt_tokens"] + usage["completion_tokens"])


@dataclass
class Figures:
    """What came out, for the log."""

    videos: Counter = field(default_factory=Counter)
    calls: int = 0
    faults: Counter = field(default_factory=Counter)
    repeated: int = 0
    unbooked: int = 0
    booked_tokens: int = 0
    counted_tokens: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, right: bool, problem: str) -> None:
        if not right:
            self.problems.append(problem)

    def lines(self) -> Iterator[str]:
        yield f"{sum(self.videos.values())} videos: {', '.join(f'{n} {name}' for name, n in self.videos.items())}"
        yield f"{self.calls} calls, {sum(self.faults.values())} with one of {len(self.faults)} faults"
        yield f"{self.repeated} replies were sent twice, {self.unbooked} calls are not booked: on their way at a kill"
        yield f"{self.booked_tokens:,} tokens are booked for answers, {self.counted_tokens:,} were counted for them"
        yield from self.problems or ["no problem"]


def command(folder: Path, output: Path, url: str) -> list[str]:
    """The arguments of annotate.py."""
    return [
        *("--videos", str(folder / "videos"), "--masks", str(folder / "videos" / "objects.jsonl"), "--name", "many"),
        *("--output", str(output), "--endpoint", url, "--model", "writer", "--verifier-model", "verifier"),
        *("--allow-unknown", "--frames", "2", "--image-size", "64", "--concurrency", str(CONCURRENCY)),
        *("--palette-share", "0", "--request-timeout", "30", "--price", "writer=1,4", "--price", "verifier=1,4"),
    ]


@contextmanager
def without_sockets() -> Iterator[None]:
    """Requests are answered in this process, with the lasting faults alone."""

    def post(base_url: str, key: str | None, request: dict, timeout_s: float) -> EndpointReply:
        fault = lasting_fault(0, request, 0)
        if fault in STATUS_FAULTS:
            status, headers, code = STATUS_FAULTS[fault]
            error = {"message": f"Error {code} for the key Bearer {KEY}.", "type": code, "code": code}
            return EndpointReply(status, headers, json.dumps({"error": error}).encode())
        return EndpointReply(200, {}, json.dumps(make_completion(request, answer(request), fault)).encode())

    with mock.patch("sama.annotation.endpoint.post_chat", post):
        yield


class Killer:
    """Starts the run again and again, and kills it at some calls. At one call, the quota is used up."""

    def __init__(self, calls: int):
        self.kills = [calls * (number + 1) // (KILLS + 2) for number in range(KILLS)]
        self.stop = calls * (KILLS + 1) // (KILLS + 2)
        self.process: subprocess.Popen | None = None
        self.codes: list[int] = []
        self._lock = threading.Lock()

    def fault(self, number: int, request: dict, repetition: int) -> str | None:
        """The fault of a call; called by the server with its lock held."""
        with self._lock:
            if self.kills and number >= self.kills[0] and self.process is not None and self.process.poll() is None:
                self.kills.pop(0)
                self.process.kill()
            if self.stop and not self.kills and number >= self.stop:
                self.stop = 0
                return STOPPING
        return passing_fault(number, request, repetition) or lasting_fault(number, request, repetition)

    def run(self, arguments: Sequence[str], log: Path) -> None:
        """Runs until it ends by itself."""
        words = [sys.executable, "-m", "sama.annotate", *arguments]
        environment = os.environ | {"OPENAI_API_KEY": KEY, "PYTHONPATH": str(PACKAGE.parent)}
        while not self.codes or self.codes[-1] in (-signal.SIGKILL, 1):
            with log.open("a") as file:
                with self._lock:
                    self.process = subprocess.Popen(words, env=environment, stdout=file, stderr=file)
                self.codes.append(self.process.wait())
            if len(self.codes) > KILLS + 2:
                raise RuntimeError(f"The run ended with {self.codes}; see {log}.")


def run(folder: Path, number: int) -> Figures:
    """Makes the videos and annotates them twice: without broken connections, and with everything."""
    make_videos(folder / "videos", number)
    os.environ["OPENAI_API_KEY"] = KEY
    figures = Figures()
    killer = Killer(4 * number)
    with scripted_endpoint(answer, killer.fault) as server:
        with without_sockets():
            code = annotate.main(command(folder, folder / "undisturbed", server.url))
        figures.check(code == annotate.INCOMPLETE, f"the undisturbed run ended with {code}")
        killer.run(command(folder, folder / "disturbed", server.url), folder / "log.txt")
    expected = [-signal.SIGKILL] * KILLS + [1, annotate.INCOMPLETE]
    figures.check(killer.codes == expected, f"the runs ended with {killer.codes}, expected {expected}")
    check_files(figures, folder, number)
    calls = [seen_call(call) for call in server.calls]
    (folder / "calls.json").write_text(json.dumps(calls))
    check_costs(figures, folder / "disturbed", calls)
    return figures


def check_files(figures: Figures, folder: Path, number: int) -> None:
    """Nothing is lost, nothing is there twice, and the files are those of the undisturbed run."""
    one, other = folder / "undisturbed", folder / "disturbed"
    for name in (*FILES, ERRORS):
        same = (one / f"{name}.jsonl").read_bytes() == (other / f"{name}.jsonl").read_bytes()
        figures.check(same, f"{name}.jsonl is not that of the undisturbed run")
    summary = json.loads((other / "run.json").read_text())
    figures.videos = Counter(summary["videos"])
    figures.check(sum(figures.videos.values()) == number, f"{dict(figures.videos)} are not {number} videos")

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (other / f"{name}.jsonl").read_text().splitlines()]

    ids = [row["id"] for row in rows("records")] + [row["id"] for row in rows("review")]
    figures.check(len(ids) == len(set(ids)), "a record or an item is there twice")
    seen = {row["record"].rpartition("/")[0] for name in ("rejected", "review") for row in rows(name)}
    seen |= {row["id"].rpartition("/")[0] for row in rows("records")}
    failed = {row["video"] for row in rows(ERRORS)}
    figures.check(not seen & failed, "a video has a result and an error")
    figures.check(len(seen | failed) == number, f"{len(seen | failed)} of {number} videos have an outcome")


def check_costs(figures: Figures, output: Path, calls: Sequence[SeenCall]) -> None:
    """The ledger against what the endpoint saw."""
    ledger = list(read_ledger(output / "costs.jsonl"))
    complete = [call for call in calls if call.status == 200 and call.fault not in UNUSABLE]
    bodies = Counter(call.body for call in complete)
    figures.calls, figures.faults = len(calls), Counter(call.fault for call in calls if call.fault is not None)
    figures.repeated, figures.unbooked = sum(bodies.values()) - len(bodies), len(calls) - len(ledger)
    most = KILLS * CONCURRENCY  # and the run that was stopped waited for its calls
    figures.check(figures.repeated <= most, f"{figures.repeated} replies were sent twice, at most {most} may be")
    figures.check(0 <= figures.unbooked <= most, f"{figures.unbooked} calls are not booked, at most {most} may be")
    counted = Counter(call.tokens for call in complete if call.tokens is not None)
    booked = Counter(
        one.usage.prompt + one.usage.completion
        for one in ledger
        if not one.estimated and one.outcome in ("answer", "length", "refusal") and one.usage.prompt
    )
    figures.counted_tokens, figures.booked_tokens = (sum(n * k for n, k in one.items()) for one in (counted, booked))
    lost, invented = counted - booked, booked - counted
    figures.check(not invented and sum(lost.values()) <= most, f"booked are {invented}, not booked {lost}")
    prices = {"writer": (1, 4), "verifier": (1, 4)}
    for one in ledger:
        new, price = one.usage.prompt, prices[one.model]
        figures.check(
            abs((one.money or 0) * 1e6 - new * price[0] - one.usage.completion * price[1]) < 1e-6,
            f"{one} has the wrong price",
        )
    report = (output / "report.html").read_text(encoding="utf-8")
    for (stage, model), total in sum_up(ledger).items():
        shown = all(f"{value:,}" in report for value in (total.calls, total.usage.prompt, total.usage.completion))
        figures.check(shown, f"the report lacks the costs of {stage} by {model}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="new folder for videos and results")
    parser.add_argument("--videos", type=int, default=NUM_VIDEOS)
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True)  # an error if it is there: a new run is measured
    figures = run(given.output, given.videos)
    print("\n".join(figures.lines()))
    return 1 if figures.problems else 0


if __name__ == "__main__":
    sys.exit(main())
