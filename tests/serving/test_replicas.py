"""Engines of other processes, without Ray: all that is sent is pickled, and a host is lost when a test says so."""

import asyncio
import hashlib
import os
import pickle
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from http_server import question, running_server

from sama.objects_sama import GroundedPhrase, MaskTrack
from sama.serving.engine import EarlierTurn, EngineBusy, EngineClosed, EngineStatus, Question
from sama.serving.errors import ApiError
from sama.serving.file_copies import FileCopies
from sama.serving.files import FileStore
from sama.serving.limits import Limits
from sama.serving.replicas import EngineHost, HostLost, HostStatus, RemoteEngine, conversation_key
from sama.serving.server import create_app
from sama.serving.session import AnswerText, Cancelled, ChatTurn, Done, Failed, MaskFrame, TextDelta


CONTENT = b"a video"
FILE = f"file-{hashlib.sha256(CONTENT).hexdigest()}"
MASK = np.arange(24).reshape(4, 6) % 5 == 0


def done(text: str = "A ring.") -> Done:
    phrase = GroundedPhrase("A ring", (0, 6), MaskTrack(1, 4, 6), 0.5)
    reply = SimpleNamespace(
        text=text, tagged_text=text, objects=[phrase], prompt_tokens=9, prefilled_tokens=4, completion_tokens=3,
        stopped=True, video=lambda: None,
    )  # fmt: skip
    return Done(ChatTurn("?", (lambda: None,), reply, (1,)))


EVENTS = [TextDelta("A "), TextDelta("ring."), AnswerText("A ring.", ()), MaskFrame(0, {1: MASK}), done()]


class FakeStream:
    """Gives events; `wait` holds it before the event of that index."""

    def __init__(self, events, wait=None):
        self.events, self.wait, self.index, self.closed = events, wait, 0, threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        if self.index == self.wait:
            assert self.closed.wait(10)
            return Cancelled()
        if self.index == len(self.events):
            raise StopIteration
        self.index += 1
        return self.events[self.index - 1]

    def close(self):
        self.closed.set()


class FakeEngine:
    """Answers with `EVENTS`, or what it is given."""

    limits = Limits(running=1, waiting=1)

    def __init__(self, events=EVENTS, wait=None, error=None):
        self.events, self.wait, self.error = events, wait, error
        self.questions, self.streams, self.forgotten, self.previews = [], [], [], []

    def ask(self, question):
        if self.error is not None:
            raise self.error
        self.questions.append(question)
        self.streams.append(FakeStream(self.events, self.wait))
        return self.streams[-1]

    def preview(self, source, source_id, region, kind):
        if region["frame"] > 0:
            raise ValueError("The frame does not exist.")
        self.previews.append(source)
        return 0, MASK

    def forget(self, source_id):
        self.forgotten.append(source_id)

    def status(self):
        return EngineStatus(conversations=len(self.questions), tracked_frames=len(self.questions))


class LocalCall:
    """The items of an asynchronous iterator in another thread's loop. `lost_at` is the item that never comes."""

    def __init__(self, loop, items, lost_at):
        self.loop, self.items, self.left, self.future = loop, items, lost_at, None

    def __iter__(self):
        return self

    def __next__(self):
        if self.left == 0:
            raise HostLost
        self.left -= 1

        async def advance():
            return pickle.dumps([item async for item in first(self.items)])

        self.future = asyncio.run_coroutine_threadsafe(advance(), self.loop)
        try:
            received = pickle.loads(self.future.result(20))
        except CancelledError:
            raise StopIteration from None
        if not received:
            raise StopIteration
        return received[0]

    def close(self):
        self.future.cancel()


async def first(items):
    async for item in items:
        yield item
        return


class LocalHosts:
    """Hosts in this process. Those that are `dead` end before their item of that index; `elsewhere` is where they look
    for a file."""

    def __init__(self, *hosts, dead=None, elsewhere=None):
        self.hosts, self.dead, self.elsewhere = list(hosts), dead or {}, elsewhere
        self.keys, self.loop = [], asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def _sent(self, question):
        if self.elsewhere is not None:
            question = replace(question, source=str(self.elsewhere))
        return pickle.loads(pickle.dumps(question))

    def stream(self, key, question, content):
        self.keys.append(key)
        host = self.hosts[0]
        lost_at = self.dead.get(host.name, -1)
        if lost_at >= 0:
            self.hosts.pop(0)  # the next question goes to another one
        return LocalCall(self.loop, host.ask(self._sent(question), content), lost_at)

    def call(self, key, method, *arguments):
        if method == "forget":
            asyncio.run_coroutine_threadsafe(self.hosts[0].forget(*arguments), self.loop).result(20)
            return None
        asked, region, content = arguments
        call = self.hosts[0].preview(self._sent(asked), region, content)
        return pickle.loads(pickle.dumps(asyncio.run_coroutine_threadsafe(call, self.loop).result(20)))


@pytest.fixture
def host(tmp_path):
    def make(engine, name="a", max_bytes=2**20):
        return EngineHost(engine, FileCopies(tmp_path / f"copies-{name}", max_bytes), name, 1)

    return make


def ask(hosts, asked=Question(("What is it?",))):  # noqa: B008
    return list(RemoteEngine(hosts, 4).ask(asked))


# ---- which host answers


def test_a_conversation_keeps_its_key():
    first_turn = Question(("What is it?",), source_id=FILE, source="x")
    later = replace(first_turn, parts=("And this?",), earlier=(EarlierTurn(("What is it?",), "A ring."),))
    assert conversation_key(first_turn) == conversation_key(later) == FILE
    assert conversation_key(replace(later, source="y", masks=False, seed=3)) == FILE


def test_a_conversation_without_a_file_is_known_by_its_beginning():
    first_turn = Question(("Hello", {"frame": 1, "box": [0, 0, 1, 1]}), system="Be brief.")
    later = replace(first_turn, parts=("More?",), earlier=(EarlierTurn(first_turn.parts, "Hi."),))
    others = (replace(first_turn, system=None), replace(first_turn, parts=("Hello",)))
    assert conversation_key(first_turn) == conversation_key(later)
    assert len({conversation_key(one) for one in (first_turn, *others)}) == 3


# ---- what travels


def test_events_arrive_as_they_were(host):
    hosts = LocalHosts(host(FakeEngine()))
    *events, last = ask(hosts, Question(("?",), source_id=FILE))
    assert hosts.keys == [FILE]
    assert events[:3] == EVENTS[:3]
    assert events[3].frame == 0 and np.array_equal(events[3].masks[1], MASK)
    assert last.turn.objects == EVENTS[-1].turn.objects
    sent = last.turn.reply
    assert (sent.text, sent.prompt_tokens, sent.prefilled_tokens, sent.completion_tokens) == ("A ring.", 9, 4, 3)
    assert sent.stopped and sent.objects[0].score == 0.5


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), ValueError),
        (MemoryError("full"), MemoryError),
        (torch.OutOfMemoryError("full"), MemoryError),
        (type("Strange", (Exception,), {"__init__": lambda self, a, b: None})(1, 2), RuntimeError),
    ],
)
def test_failures_arrive_as_a_kind_that_is_told_apart(host, raised, arrives):
    (event,) = ask(LocalHosts(host(FakeEngine([Failed("It failed.", raised)]))))
    assert event.message == "It failed." and type(event.cause) is arrives


def test_a_refusal_arrives_as_an_error_with_a_status(host):
    (event,) = ask(LocalHosts(host(FakeEngine(error=EngineBusy(3, 7)))))
    assert isinstance(event.cause, ApiError) and event.cause.status_code == 429
    assert event.cause.headers == {"Retry-After": "7"}
    (event,) = ask(LocalHosts(host(FakeEngine(error=ValueError("No such region.")))))
    assert type(event.cause) is ValueError and str(event.cause) == "No such region."


# ---- lost hosts


def test_a_question_that_was_not_begun_goes_to_another_host(host):
    hosts = LocalHosts(host(FakeEngine(), "a"), host(FakeEngine(), "b"), dead={"a": 0})
    assert isinstance(ask(hosts)[-1], Done)


def test_a_question_to_a_host_that_ends_goes_to_another_one(host):
    closed = FakeEngine(error=EngineClosed("The engine was closed."))
    hosts = LocalHosts(host(closed, "a"), host(FakeEngine(), "b"), dead={"a": 5})  # of which one comes
    assert isinstance(ask(hosts)[-1], Done)
    (event,) = ask(LocalHosts(host(closed, "a")))
    assert (event.cause.status_code, event.cause.code) == (503, "replica_lost")


@pytest.mark.parametrize("items", [1, 4])
def test_an_answer_that_was_begun_fails_with_a_sentence(host, items):
    *events, last = ask(LocalHosts(host(FakeEngine()), dead={"a": items}))
    assert len(events) == items
    assert isinstance(last, Failed) and (last.cause.status_code, last.cause.code) == (503, "replica_lost")
    assert last.cause.headers == {"Retry-After": "2"}


def test_without_any_host_the_answer_says_so(host):
    dead = dict.fromkeys("abc", 0)
    (event,) = ask(LocalHosts(*(host(FakeEngine(), name) for name in dead), dead=dead))
    assert event.cause.code == "replica_lost"


# ---- files of another machine


def test_a_host_is_sent_a_file_that_it_lacks_once(host, tmp_path):
    (tmp_path / "original").write_bytes(CONTENT)
    asked = Question(("?",), source=str(tmp_path / "original"), source_id=FILE)
    engine = FakeEngine()
    hosts = LocalHosts(host(engine), elsewhere=tmp_path / "not here")
    assert isinstance(ask(hosts, asked)[-1], Done) and isinstance(ask(hosts, asked)[-1], Done)
    assert len(hosts.keys) == 3  # twice for the first question
    sources = [question.source for question in engine.questions]
    assert sources == [str(tmp_path / "copies-a" / FILE)] * 2
    assert (tmp_path / "copies-a" / FILE).read_bytes() == CONTENT
    frame, mask = RemoteEngine(hosts, 1).preview(asked.source, FILE, {"frame": 0})
    assert frame == 0 and np.array_equal(mask, MASK) and engine.previews == sources[:1]


def test_a_file_that_is_gone_is_to_be_uploaded_again(host, tmp_path):
    asked = Question(("?",), source=str(tmp_path / "gone"), source_id=FILE)
    (event,) = ask(LocalHosts(host(FakeEngine())), asked)
    assert (event.cause.status_code, event.cause.code) == (404, "file_not_found")
    assert "upload it again" in str(event.cause.detail)


def test_copies_make_room_for_each_other(host, tmp_path):
    contents = [bytes([number]) * 40 for number in range(3)]
    engine, ids = FakeEngine(), []
    hosts = LocalHosts(host(engine, max_bytes=100), elsewhere=tmp_path / "not here")
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
        ids.append(f"file-{hashlib.sha256(content).hexdigest()}")
        ask(hosts, Question(("?",), source=str(tmp_path / str(number)), source_id=ids[-1]))
    assert sorted(path.name for path in (tmp_path / "copies-a").iterdir()) == sorted(ids[1:])
    assert engine.forgotten == ids[:1]
    with pytest.raises(ValueError, match="is not that of this file"):
        hosts.hosts[0].copies.add(ids[0], b"something else")


@pytest.fixture
def copies(tmp_path) -> FileCopies:
    return FileCopies(tmp_path / "copies", 100)


def test_a_copy_that_is_in_use_is_neither_written_again_nor_deleted(copies):
    contents = [bytes([number]) * 60 for number in range(3)]
    ids = [f"file-{hashlib.sha256(content).hexdigest()}" for content in contents]
    assert copies.add(ids[0], contents[0]) == []
    with copies.use(ids[0]) as path, open(path, "rb") as file:
        assert copies.add(ids[0], contents[0]) == []
        assert os.fstat(file.fileno()).st_mtime_ns == path.stat().st_mtime_ns and file.read() == contents[0]
        assert copies.add(ids[1], contents[1]) == []  # though both together are too many bytes
        assert copies.add(ids[2], contents[2]) == [ids[1]]
        copies.remove(ids[0])
        assert path.is_file()
        with copies.use(ids[0]) as again:
            assert again is None
        assert path.is_file()
    assert [path.name for path in copies.folder.iterdir()] == [ids[2]]


def test_a_copy_is_in_use_until_its_answer_ends(host, tmp_path):
    one, copy = host(FakeEngine()), tmp_path / "copies-a" / FILE

    async def ask_and_leave():
        events = one.ask(Question(("?",), source="not here", source_id=FILE), CONTENT)
        assert await anext(events) == TextDelta("A ")
        await one.forget(FILE)
        assert copy.is_file()
        await events.aclose()
        assert not copy.exists()

    asyncio.run(ask_and_leave())


# ---- the interface of an engine


def test_closing_cancels_in_the_host(host):
    engine = FakeEngine(wait=1)
    remote = RemoteEngine(LocalHosts(host(engine)), 1)
    answer = remote.ask(Question(("?",)))
    assert next(answer) == TextDelta("A ")
    reader = threading.Thread(target=list, args=(answer,))
    reader.start()
    while answer._call.future.done():  # until the reader waits for the second event
        pass
    assert remote.status().running == 1
    answer.close()
    reader.join(10)
    assert not reader.is_alive() and engine.streams[0].closed.wait(10)
    assert (remote.status().running, remote.status().cancelled) == (0, 1)


def test_more_questions_than_places_are_refused(host):
    remote = RemoteEngine(LocalHosts(host(FakeEngine())), 1)
    answer = remote.ask(Question(("?",)))
    with pytest.raises(EngineBusy):
        remote.ask(Question(("?",)))
    assert isinstance(list(answer)[-1], Done)
    assert isinstance(list(remote.ask(Question(("?",))))[-1], Done)
    with pytest.raises(ValueError, match="<region>"):
        remote.ask(Question(("What is <region>?",)))


def test_status_counts_what_was_asked_here(host):
    remote = RemoteEngine(LocalHosts(host(FakeEngine())), 1)
    for _ in range(2):
        list(remote.ask(Question(("?",))))
    status = remote.status()
    assert (status.answered, status.generated_tokens, status.read_tokens, status.reused_tokens) == (2, 6, 8, 10)
    assert (status.conversations, status.tracked_frames, status.running) == (2, 2, 0)


def test_the_status_of_a_lost_host_goes(host):
    remote = RemoteEngine(LocalHosts(host(FakeEngine())), 1, num_hosts=2)
    for name in "abacb":
        remote.take_status(HostStatus(name, 1, EngineStatus(conversations=1)))
    assert sorted(remote.statuses) == ["b", "c"] and remote.status().conversations == 2


def test_previews_and_forgetting(host, tmp_path):
    engine = FakeEngine()
    hosts = LocalHosts(host(engine), elsewhere=tmp_path / "not here")
    hosts.hosts[0].copies.add(FILE, CONTENT)
    remote = RemoteEngine(hosts, 1)
    with pytest.raises(ValueError, match="The frame does not exist"):
        remote.preview(__file__, FILE, {"frame": 1})
    remote.forget(FILE)
    assert engine.forgotten == [FILE] and list((tmp_path / "copies-a").iterdir()) == []


def test_a_host_tells_who_it_is(host):
    assert host(FakeEngine(), "b").status() == HostStatus("b", 1, EngineStatus())


def test_the_server_answers_as_with_an_engine_of_its_own(host, limits, tmp_path):
    store, messages = FileStore(tmp_path / "store", limits), [question("What is it?")]
    with running_server(create_app(FakeEngine(), store, limits), limits) as server:
        expected = [server.ask(messages).json()["choices"], deltas(server.stream(messages))]
    remote = RemoteEngine(LocalHosts(host(FakeEngine())), 4)
    with running_server(create_app(remote, store, limits), limits) as server:
        assert [server.ask(messages).json()["choices"], deltas(server.stream(messages))] == expected
        assert "sama_engine_answered_total 2.0" in server.get("/metrics").body.decode()
    busy = RemoteEngine(LocalHosts(host(FakeEngine(error=EngineBusy(3, 7)))), 4)
    with running_server(create_app(busy, store, limits), limits) as server:
        for stream in (False, True):
            answer = server.ask(messages, stream=stream)
            assert (answer.status, answer.headers["retry-after"]) == (429, "7")


def deltas(chunks: list[dict]) -> list[dict]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]
