"""The client of an endpoint: forms of structured output, keys that nobody may see, budgets, and settings."""

import json
import logging
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from asking import ANSWER, make_endpoint, question
from scripted_endpoint import KEY, always, scripted_endpoint

from sama.annotation.completions import Completion
from sama.annotation.costs import Budget, Costs
from sama.annotation.endpoint import Endpoint, EndpointSettings, estimate_tokens
from sama.annotation.errors import AnnotationError, BudgetError, PermanentError, RejectedRequestError


pytestmark = pytest.mark.usefixtures("api_key")


# Structured output


@pytest.mark.parametrize(
    ("formats", "sent"),
    [
        (["json_schema"], ["json_schema"]),
        (["json_object"], ["json_schema", "json_object"]),
        ([], ["json_schema", "json_object", None]),
    ],
)
def test_an_endpoint_without_schemas_is_asked_in_the_next_form(time, caplog, formats, sent):
    with scripted_endpoint(lambda request: ANSWER, formats=formats) as server, caplog.at_level(logging.WARNING):
        endpoint = make_endpoint(server, time, tries=1)
        assert endpoint.complete(question()).attempts == len(sent)
        assert endpoint.complete(question("again")).attempts == 1  # it is remembered
    found = [body.get("response_format", {}).get("type") for body in server.requests]
    assert found == [*sent, sent[-1]] and len(caplog.records) == len(sent) - 1 and time.waits == []
    assert all(
        "does not support" in record.getMessage() and KEY not in record.getMessage() for record in caplog.records
    )


def test_a_request_without_a_schema(ask):
    ask(request=question(schema=None, seed=7, temperature=None), max_tokens_name="max_completion_tokens")
    assert ask.server.requests == [
        {
            "model": "writer",
            "messages": question().messages,
            "max_completion_tokens": 100,
            "seed": 7,
        }
    ]


# Keys


def everything_raised(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("fault", ["400", "401", "404", "429 long", "insufficient_quota", "500"])
def test_no_error_tells_the_key(ask, fault, caplog):
    with pytest.raises(AnnotationError) as caught:
        ask(always(fault), tries=1)
    assert KEY not in everything_raised(caught.value) + caplog.text
    if fault != "429 long":
        assert "***" in str(caught.value)  # the endpoint quotes it


def test_an_answer_that_quotes_the_key_is_refused(ask):
    with pytest.raises(RejectedRequestError, match="contains the API key in OPENAI_API_KEY") as caught:
        ask(text=json.dumps({"answer": f"My key is {KEY}."}))
    assert KEY not in everything_raised(caught.value) and ask.costs.total.answers == 1  # it was paid


def test_a_short_key_does_not_change_answers(ask, monkeypatch):
    text = json.dumps({"answer": "The local bus stops."})
    monkeypatch.setattr("scripted_endpoint.KEY", "local")
    monkeypatch.setenv("OPENAI_API_KEY", "local")
    assert ask(text=text).text == text


def test_a_wrong_key_and_one_that_no_header_carries(ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(PermanentError, match="HTTP 401"):
        ask()
    monkeypatch.setenv("OPENAI_API_KEY", "sk wrong")
    with pytest.raises(PermanentError, match="The API key in OPENAI_API_KEY contains blanks"):
        ask()


def test_the_key_of_a_request_is_of_what_decides_the_answer():
    first = question()
    assert first.key() == question().key() and len(first.key()) == 64
    others = [question("Other."), question(seed=1), question(temperature=0.5), question(max_tokens=101)]
    others += [question(schema=None), replace(first, model="verifier"), question("\ud800")]
    assert len({request.key() for request in [first, *others]}) == len(others) + 1


def test_text_that_is_not_unicode(ask):
    with pytest.raises(RejectedRequestError, match="surrogates"):
        ask(request=question("\ud800"))


# Budgets


def test_a_budget_stops_before_the_call_that_could_exceed_it(ask):
    need = estimate_tokens(question())
    assert ask(budget=Budget(tokens=need.prompt + need.completion)).text == ANSWER
    with pytest.raises(BudgetError, match="next call may need"):
        ask.endpoint.complete(question())
    with pytest.raises(BudgetError, match="budget of 0.0001 does not"):
        ask(budget=Budget(money=0.0001))
    assert ask.server.calls == []


def test_calls_beside_each_other_do_not_exceed_a_budget_together(time):
    """Eight threads; the budget allows four calls as they are counted, and more than two of the reserved size."""
    with scripted_endpoint(lambda request: ANSWER) as server:
        one = make_endpoint(server, time).complete(question()).usage
        need = estimate_tokens(question())
        tokens = 3 * (one.prompt + one.completion) + need.prompt + need.completion
        costs = Costs(budget=Budget(tokens=tokens))
        endpoint = make_endpoint(server, time, costs, concurrency=8)

        def run(number):
            try:
                return endpoint.complete(question()).text == ANSWER
            except BudgetError:
                return False

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(run, range(8)))
    assert sum(found) == costs.total.answers >= 4 and costs.total.tokens <= tokens


# Settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"url": "ftp://a/v1"}, "The URL of the endpoint is 'ftp://a/v1'"),
        ({"url": "http://me:secret@a/v1"}, "contains a user name or password"),
        ({"structured_output": "xml"}, "structured_output is 'xml', expected one of json_schema, json_object, none"),
        ({"max_tokens_name": "n"}, "max_tokens_name is 'n'"),
        ({"tries": 0}, "tries is 0, expected at least 1"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"timeout_s": 0.0}, "timeout_s is 0.0, expected a number above 0"),
        ({"requests_per_minute": float("nan")}, "requests_per_minute is nan"),
    ],
)
def test_settings_out_of_range(settings, problem):
    with pytest.raises(ValueError, match=problem):
        Endpoint(EndpointSettings(**{"url": "http://localhost/v1", **settings}))


@pytest.mark.parametrize(
    "value",
    [None, {}, {"text": "a"}, {**Completion("a", "stop", None, None, 1.0, 1, "m").to_json(), "attempts": "1"},
     {**Completion("a", "stop", None, None, 1.0, 1, "m").to_json(), "usage": {"prompt": 1}}],
)  # fmt: skip
def test_a_saved_completion_that_is_damaged(value):
    with pytest.raises(AnnotationError, match="saved completion"):
        Completion.from_json(value)


@pytest.mark.parametrize(
    ("url", "warned"), [("http://a.example/v1", True), ("https://a.example/v1", False), ("http://localhost/v1", False)]
)
def test_a_key_over_plain_http_to_another_machine_is_told(time, caplog, url, warned):
    Endpoint(EndpointSettings(url))
    assert ("is sent to http://a.example/v1 without encryption" in caplog.text) == warned
