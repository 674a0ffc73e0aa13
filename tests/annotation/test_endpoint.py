"""The client of an endpoint that is overloaded, broken or wrong in every way of `scripted_endpoint`."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import sleep

import pytest
from asking import ANSWER, SCHEMA, make_endpoint, png, question, with_picture
from scripted_endpoint import (
    CONNECTION_FAULTS,
    FAULTS,
    KEY,
    REPLY_FAULTS,
    STATUS_FAULTS,
    TEXT_FAULTS,
    TOKENS_PER_PICTURE,
    always,
    by_call,
    by_rate,
    by_request,
    scripted_endpoint,
)

from sama.annotation.calls import ModelChoice, Question, StoredReplies
from sama.annotation.completions import BrokenReplyError, Completion, Usage, read_completion
from sama.annotation.costs import Costs, Spent
from sama.annotation.endpoint import Endpoint, EndpointSettings, _error_codes, estimate_tokens
from sama.annotation.errors import (
    LedgerError,
    PermanentError,
    RejectedRequestError,
    TransientError,
    UnansweredError,
    UnusableReplyError,
)
from sama.annotation.store import ReplyStore


pytestmark = pytest.mark.usefixtures("api_key")


def test_an_answer_with_its_usage(ask):
    completion = ask(request=with_picture(png()))
    assert completion.text == ANSWER and completion.finish_reason == "stop" and completion.refusal is None
    assert completion.model == "writer-2026" and completion.attempts == 1
    system, text = len("Answer in JSON.") // 4, len("What is this?") // 4
    assert completion.usage == Usage(system + text + TOKENS_PER_PICTURE, system, len(ANSWER) // 4)
    assert Completion.from_json(json.loads(json.dumps(completion.to_json()))) == completion
    (body,) = ask.server.requests
    assert body["response_format"]["json_schema"] == {"name": "Reply", "schema": SCHEMA, "strict": True}
    assert body["max_tokens"] == 100 and body["temperature"] == 0.0 and "seed" not in body and "stream" not in body
    assert ask.server.calls[0].authorization == f"Bearer {KEY}"
    assert list(ask.costs.table()) == [("describe", "writer")] and ask.costs.total.answers == 1


@pytest.mark.parametrize("fault", [None, "brackets", "refusal", "length", "no usage"])
def test_a_streamed_answer_is_the_same(ask, fault):
    faults = always(fault) if fault else None
    whole, parts = ask(faults), ask(faults, stream=True)
    assert replace(parts, seconds=whole.seconds) == whole
    assert ask.server.requests[0]["stream_options"] == {"include_usage": True}


def test_an_answer_with_its_own_reason_to_end(time):
    answers = iter([{"content": None, "refusal": "No."}, {"content": "a", "finish_reason": "content_filter"}])
    with scripted_endpoint(lambda request: next(answers)) as server:
        endpoint = make_endpoint(server, time)
        assert [endpoint.complete(question()).refusal for _ in range(2)] == ["No.", "content_filter"]


# Faults that pass: each is met once, then the endpoint answers


@pytest.mark.parametrize("fault", ["500", "503", "reset", "cut", "no JSON", "surrogates"])
def test_what_is_broken_is_asked_again_after_a_while(ask, time, fault):
    completion = ask(by_call({1: fault, 2: fault}))
    assert completion.text == ANSWER and completion.attempts == len(ask.server.calls) == 3
    assert time.waits == [1, 2] and completion.seconds == 3
    # A status says that nothing was charged; of a broken reply the cost is unknown, and its estimate counts
    assert ask.costs.total.estimated == (0 if fault.isdigit() else 2) and ask.costs.total.calls == 3


def test_a_stalled_endpoint_is_given_up(ask, time):
    completion = ask(by_call({1: "stall"}), timeout_s=0.3)
    assert completion.attempts == 2 and time.waits == [1] and ask.costs.total.estimated == 1


@pytest.mark.parametrize("fault", ["cut", "end"])
def test_a_stream_that_ends_early_is_asked_again(ask, fault):
    completion = ask(by_call({1: fault}), stream=True)
    assert completion.text == ANSWER and completion.attempts == 2 and ask.costs.total.estimated == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_proxy_error_page_is_asked_again(ask, stream):
    assert ask(by_call({1: "no JSON"}), stream=stream).attempts == 2


@pytest.mark.parametrize(
    ("fault", "waits"),
    [("429", [1.0]), ("429 seconds", [7.0]), ("429 zero", [1.0]), ("503 seconds", [7.0])],
)
def test_an_overloaded_endpoint_is_left_alone_as_long_as_it_asks(ask, time, fault, waits):
    assert ask(by_call({1: fault})).attempts == 2
    assert time.waits == waits and ask.costs.total.tokens == ask(None).usage.prompt + len(ANSWER) // 4


def test_a_date_to_wait_for(ask, time):
    assert ask(by_call({1: "429 date"}), longest_wait_s=4000).attempts == 2
    assert sum(time.waits) == pytest.approx(3600, abs=5)


def test_waits_grow_with_jitter_up_to_a_minute(time):
    with scripted_endpoint(lambda request: ANSWER, always("500")) as server:
        chances = iter([0.0, 1.0, 0.5, 0.0] + [1.0] * 4)
        settings = EndpointSettings(server.url, tries=9)
        endpoint = Endpoint(settings, clock=time.clock, sleep=time.sleep, jitter=lambda: next(chances))
        with pytest.raises(TransientError, match="gave no answer in 9 tries: HTTP 500"):
            endpoint.complete(question())
    assert time.waits == [0.5, 2, 3, 4, 16, 32, 60, 60]


def test_one_busy_reply_slows_all_threads(time):
    """Whoever asks while it waits must wait, too, and half as many ask at a time until it goes well again."""
    delays = []

    def sleep(seconds):
        delays.append(endpoint.rate.delay(endpoint.rate.reserve(0)))  # of another thread
        time.sleep(seconds)

    with scripted_endpoint(lambda request: ANSWER, by_call({1: "429 seconds"})) as server:
        settings = EndpointSettings(server.url, concurrency=4)
        endpoint = Endpoint(settings, clock=time.clock, sleep=sleep, jitter=lambda: 1.0)
        assert endpoint.complete(question("first")).attempts == 2
        assert delays == [7] and endpoint.concurrency.allowed == 2
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda n: endpoint.complete(question(f"{n}")), range(8)))
    assert server.most_at_a_time <= 4 == endpoint.concurrency.allowed


def test_the_rate_is_kept_by_all_threads_together(time):
    with scripted_endpoint(lambda request: ANSWER) as server:
        endpoint = make_endpoint(server, time, concurrency=3, requests_per_minute=30)
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(lambda n: endpoint.complete(question(f"{n}")), range(6)))
    assert time.now >= 5 * 2.0  # six starts, two seconds apart


# Faults that stay


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "no JSON"])
def test_what_stays_broken_is_an_error_of_this_request(ask, fault):
    with pytest.raises(TransientError, match=r"writer at http://127.0.0.1:\d+/v1 gave no answer in 3 tries: .+\.$"):
        ask(always(fault), tries=3)
    assert len(ask.server.calls) == 3
    assert ask.endpoint.concurrency.allowed == 1


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("insufficient_quota", "The quota at .* is used up .HTTP 429"),
        ("401", "refuses all requests .HTTP 401.*Check the URL, the model and the key in OPENAI_API_KEY"),
        ("403", "refuses all requests .HTTP 403"),
        ("404", "refuses all requests .HTTP 404"),
        ("429 long", "asks to wait 86,400 seconds, more than the 600 that are allowed"),
    ],
)
def test_what_no_request_survives_stops_the_run(ask, time, fault, sentence):
    with pytest.raises(PermanentError, match=f"(?s){sentence}.*") as caught:
        ask(by_call({1: fault}))
    assert "What is finished is saved" in str(caught.value)
    with pytest.raises(PermanentError, match=f"(?s){sentence}"):  # the endpoint would answer, but is not asked
        ask.endpoint.complete(question("another"))
    assert len(ask.server.calls) == 1 and time.waits == []


def test_an_unknown_model_stops_the_run(ask):
    with pytest.raises(PermanentError, match="model_not_found"):
        ask(request=replace(question(), model="other"))


def test_a_stop_ends_the_wait_of_other_threads():
    """The default sleep: a thread that would wait for 500 seconds ends as soon as the run stops."""
    with scripted_endpoint(lambda request: ANSWER, always("503")) as server:
        endpoint = Endpoint(EndpointSettings(server.url, backoff_s=60))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(endpoint.complete, question())
            while not server.calls:
                sleep(0.005)
            endpoint.stop()
            with pytest.raises(PermanentError, match="The run was stopped"):
                waiting.result(timeout=30)
    assert len(server.calls) == 1


def test_an_endpoint_that_answers_nobody_stops_the_run(time):
    with scripted_endpoint(lambda request: ANSWER, always("500")) as server:
        endpoint = make_endpoint(server, time, tries=1)
        for _ in range(EndpointSettings.most_failures - 1):
            with pytest.raises(TransientError):
                endpoint.complete(question())
        with pytest.raises(PermanentError, match="None of the last 20 requests was answered"):
            endpoint.complete(question())


def test_refused_requests_stop_a_run_only_until_the_model_has_answered(time, tmp_path):
    """The same videos come first in each run: what is wrong with them must not block the others for ever."""
    with scripted_endpoint(lambda request: ANSWER, always("400")) as server:
        endpoint = make_endpoint(server, time, most_failures=3)
        for _ in range(2):
            with pytest.raises(RejectedRequestError):
                endpoint.complete(question())
        with pytest.raises(PermanentError, match="None of the last 3 requests was answered.*most_failures"):
            endpoint.complete(question())
    faults = dict.fromkeys(range(2, 7), "400")
    with scripted_endpoint(lambda request: ANSWER, by_call(faults)) as server:
        costs = Costs(tmp_path / "costs.jsonl")
        make_endpoint(server, time, costs, most_failures=3).complete(question())
        costs.close()
        endpoint = make_endpoint(server, time, Costs(tmp_path / "costs.jsonl"), most_failures=3)  # another run
        for _ in faults:
            with pytest.raises(RejectedRequestError):
                endpoint.complete(question())
        assert endpoint.complete(question()).text == ANSWER


@pytest.mark.parametrize("unusable", ["huge", "with the key"])
def test_replies_that_are_charged_and_cannot_be_used_stop_a_run_that_was_answered(time, monkeypatch, unusable):
    answers = iter([ANSWER])
    with scripted_endpoint(lambda request: next(answers, f"My key is {KEY}." + "." * 3_000)) as server:
        endpoint = make_endpoint(server, time, most_failures=3)
        assert endpoint.complete(question()).text == ANSWER
        if unusable == "huge":
            monkeypatch.setattr("sama.evaluation.chat_endpoint.MAX_REPLY_BYTES", 2_000)
        for _ in range(2):
            with pytest.raises(UnusableReplyError):
                endpoint.complete(question())
        with pytest.raises(UnansweredError, match="None of the last 3 requests was answered"):
            endpoint.complete(question())
        assert len(server.calls) == 4 and endpoint.costs.total.calls == 4 and endpoint.costs.total.tokens > 0


def test_an_answer_of_another_model_does_not_excuse_refusals(time):
    costs = Costs()
    costs.settle(costs.reserve("verifier", Usage()), Spent("verify", "v", "verifier", "answer", Usage(), False, 0.0))
    with scripted_endpoint(lambda request: ANSWER, always("400")) as server:
        endpoint = make_endpoint(server, time, costs, most_failures=1)
        with pytest.raises(PermanentError, match="None of the last 1 requests"):
            endpoint.complete(question())


def test_one_answer_between_failures_lets_the_run_go_on(time):
    most = EndpointSettings.most_failures
    faults = {number: "500" for number in range(1, 2 * most) if number != most}
    with scripted_endpoint(lambda request: ANSWER, by_call(faults)) as server:
        endpoint = make_endpoint(server, time, tries=1)
        for number in range(1, 2 * most):
            if number == most:
                endpoint.complete(question())
            else:
                with pytest.raises(TransientError):
                    endpoint.complete(question())


@pytest.mark.parametrize("data", [b"no picture", png()[:30]])
def test_a_picture_that_the_endpoint_cannot_read_concerns_this_request(ask, data):
    with pytest.raises(RejectedRequestError, match="invalid_image"):
        ask(request=with_picture(data))
    assert len(ask.server.calls) == 1


def test_nobody_listens(time):
    with scripted_endpoint(lambda request: ANSWER) as server:
        pass
    with pytest.raises(TransientError, match="gave no answer in 2 tries: .*[Rr]efused"):
        make_endpoint(server, time, tries=2).complete(question())


# What the answer is


def test_a_cut_answer_is_asked_for_once_more_with_a_larger_limit(ask):
    completion = ask(by_call({1: "length"}))
    assert [body["max_tokens"] for body in ask.server.requests] == [100, 200]
    assert completion.text == ANSWER and completion.finish_reason == "stop" and completion.attempts == 2
    assert ask.costs.total.calls == 2 and ask.costs.total.answers == 1


def test_an_answer_that_is_cut_before_its_first_word_is_no_refusal(time):
    """As of a model that reasons first."""
    answers = iter([{"content": None, "finish_reason": "length"}, ANSWER])
    with scripted_endpoint(lambda request: next(answers)) as server:
        completion = make_endpoint(server, time).complete(question())
    assert completion.text == ANSWER and completion.refusal is None and len(server.calls) == 2


def test_an_answer_that_is_cut_twice_is_no_success(ask):
    completion = ask(always("length"))
    assert completion.finish_reason == "length" and len(ask.server.calls) == 2 and ask.costs.total.answers == 0


def test_a_cut_answer_is_kept_until_there_is_a_longer_one(time, tmp_path):
    asked = Question("key", "describe", "writer", "clip", question())
    with scripted_endpoint(lambda request: ANSWER, by_call({1: "length", 2: "500"})) as server:
        for _ in range(2):
            replies = StoredReplies(
                ReplyStore(tmp_path), {"writer": ModelChoice(make_endpoint(server, time, tries=1), "writer")}
            )
            try:
                reply = replies(asked)
            except TransientError:  # of the longer one: the next run asks for it alone
                continue
        assert [body["max_tokens"] for body in server.requests] == [100, 200, 200]
    assert reply.completion.text == ANSWER and reply.completion.finish_reason == "stop"


def test_a_larger_limit_that_is_refused_leaves_the_cut_answer(ask):
    completion = ask(by_call({1: "length", 2: "400"}))
    assert completion.finish_reason == "length" and completion.attempts == 2


@pytest.mark.parametrize(
    ("fault", "refusal"),
    [
        ("refusal", "I cannot describe this person."),
        ("content_filter", "content_filter"),
        ("content_filter 400", "content_filter"),
        ("empty", "empty"),
        ("null", "empty"),
    ],
)
def test_a_refusal_is_not_repeated(ask, fault, refusal):
    completion = ask(always(fault))
    assert completion.refusal == refusal and completion.text == "" and len(ask.server.calls) == 1
    assert ask.costs.total.answers == 0


def test_what_a_filter_refused_was_read_and_an_unusable_reply_was_made(ask, monkeypatch):
    """So both are charged, and count for the budget."""
    ask(always("content_filter 400"))
    prompt = estimate_tokens(question()).prompt
    total = ask.costs.total
    assert total.usage == Usage(prompt=prompt, completion=0) and (total.estimated, total.answers) == (1, 0)
    with pytest.raises(RejectedRequestError, match="gave no usable reply: its reply is larger than"):
        monkeypatch.setattr("sama.evaluation.chat_endpoint.MAX_REPLY_BYTES", 100)
        ask()
    assert ask.costs.total.usage == Usage(prompt=prompt, completion=100) and ask.costs.total.estimated == 1
    assert len(ask.server.calls) == 1


def test_without_usage_the_cost_is_an_estimate(ask):
    completion = ask(always("no usage"))
    assert completion.text == ANSWER and completion.usage is None
    assert ask.costs.total.estimated == 1 and ask.costs.total.tokens > 0 and "1 estimated" in ask.costs.line()


@pytest.mark.parametrize("fault", TEXT_FAULTS)
def test_what_is_wrong_in_the_text_is_handed_on_as_it_is(ask, fault):
    """Reading it is up to the stages and their checks."""
    completion = ask(always(fault))
    assert completion.text == TEXT_FAULTS[fault](ANSWER) != ANSWER
    assert completion.refusal is None and completion.finish_reason == "stop" and len(ask.server.calls) == 1


def test_every_fault_is_met_by_a_test():
    tested = {"429 date", "429 long", "content_filter 400", "400", "401", "403", "404", "insufficient_quota"}
    tested |= {"429", "429 seconds", "429 zero", "500", "503", "503 seconds"}
    assert tested == set(STATUS_FAULTS)
    assert {"reset", "stall", "cut", "end", "no JSON"} == set(CONNECTION_FAULTS)
    assert {"no usage", "length", "refusal", "content_filter", "empty", "null", "surrogates"} == set(REPLY_FAULTS)
    assert len(FAULTS) == len(set(FAULTS))


# Many requests


@pytest.mark.parametrize("faults", [by_rate, by_request])
def test_a_run_with_faults_answers_or_reports_every_request(time, faults):
    """120 requests, a fifth of them broken, four threads: each is answered or has an error, and only broken ones."""
    temporary: Sequence[str] = ("500", "503", "reset", "429 seconds", "no JSON")
    with scripted_endpoint(lambda request: ANSWER, faults(0.2, temporary, seed=3)) as server:
        endpoint = make_endpoint(server, time, concurrency=4, tries=4)

        def run(number):
            try:
                return endpoint.complete(question(f"{number}")).text
            except TransientError:
                return None

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(run, range(120)))
    failed = found.count(None)
    assert found.count(ANSWER) + failed == 120
    if faults is by_rate:
        assert failed == 0 and len(server.calls) > 120
    else:  # the same requests are always broken
        assert 10 < failed < 40 and len(server.calls) == 120 - failed + 4 * failed


def test_a_ledger_that_cannot_be_written_stops_the_run_but_not_before_the_reply_is_there(time, monkeypatch, tmp_path):
    costs = Costs(tmp_path / "costs.jsonl")
    with scripted_endpoint(lambda request: ANSWER) as server:
        endpoint = make_endpoint(server, time, costs)
        monkeypatch.setattr(os, "write", lambda file, data: 3)
        assert endpoint.complete(question()).text == ANSWER
        with pytest.raises(LedgerError, match="cannot be written"):
            endpoint.complete(question())
        assert len(server.calls) == 1


def test_the_quota_is_seen_in_the_code_and_in_the_type():
    for error in ({"code": "429", "type": "insufficient_quota"}, {"code": "insufficient_quota", "type": None}):
        assert "insufficient_quota" in _error_codes(json.dumps({"error": error}).encode())
    assert _error_codes(b"[") == _error_codes(b'{"error": "x"}') == set()


def test_a_reply_that_is_lost_on_its_way_may_have_been_charged_whole(ask):
    with pytest.raises(TransientError):
        ask(always("reset"), tries=1)
    need = estimate_tokens(question())
    assert ask.costs.total.usage == need and ask.costs.total.estimated == 1


def test_a_request_that_never_left_costs_nothing(time):
    costs = Costs()
    with scripted_endpoint(lambda request: ANSWER) as server:
        endpoint = make_endpoint(server, time, costs, tries=3)
    with pytest.raises(TransientError, match="Connection refused"):  # the server has ended
        endpoint.complete(question())
    assert (costs.total.calls, costs.total.usage, costs.total.estimated) == (3, Usage(), 0)


@pytest.mark.parametrize("tries", [1, 2])
def test_a_wait_that_is_too_long_ends_the_run_at_whatever_try(ask, tries):
    with pytest.raises(PermanentError, match="asks to wait 86,400 seconds"):
        ask(always("429 long"), tries=tries)


def test_a_reply_whose_reasoning_used_all_tokens_may_have_no_content():
    choice = {"finish_reason": "length", "message": {"role": "assistant", "reasoning": "First"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    found = read_completion(json.dumps({"choices": [choice], "usage": usage}).encode(), stream=False)
    assert (found.text, found.finish_reason, found.refusal, found.usage) == ("", "length", None, Usage(3, 0, 5))


@pytest.mark.parametrize("place", [("message", "content"), ("message", "refusal"), ("finish_reason",)])
def test_half_a_character_is_no_reply_wherever_it_is(place):
    choice: dict = {"finish_reason": "stop", "message": {"content": None, "refusal": "no"}}
    (choice[place[0]] if len(place) == 2 else choice)[place[-1]] = "I can\ud83d"
    with pytest.raises(BrokenReplyError, match="surrogates"):
        read_completion(json.dumps({"choices": [choice]}).encode(), stream=False)


def test_estimates_grow_with_what_the_endpoint_counts(time):
    endpoint = Endpoint(EndpointSettings("http://localhost/v1"), clock=time.clock)
    first = endpoint._estimate(question())
    for _ in range(8):  # all of them were on their way before the first was answered
        endpoint._learn(question(), replace(first, prompt=3 * first.prompt))
    assert endpoint._estimate(question()).prompt == 3 * first.prompt
    endpoint._learn(question(), Usage(1))
    assert endpoint._estimate(question()).prompt == 3 * first.prompt  # the largest counts


def test_a_busy_reply_to_the_last_try_holds_back_the_others(ask):
    with pytest.raises(TransientError):
        ask(always("429 seconds"), tries=1)
    assert ask.endpoint.rate.delay(0.0) == 7.0


def test_a_call_that_waited_for_the_budget_is_not_made_after_a_stop(time):
    costs = Costs()
    with scripted_endpoint(lambda request: ANSWER) as server:
        endpoint = make_endpoint(server, time, costs)
        reserve = costs.reserve

        def stopped_meanwhile(model, estimate):
            endpoint.stop()
            return reserve(model, estimate)

        costs.reserve = stopped_meanwhile
        with pytest.raises(PermanentError, match="The run was stopped"):
            endpoint.complete(question())
    assert server.calls == [] and costs._reserved == Usage() and costs.total.calls == 0
