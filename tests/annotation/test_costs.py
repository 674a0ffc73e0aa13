"""The ledger of costs: sums, prices, budgets, and what is left of a run that was killed."""

import json
import os
import threading

import pytest

from sama.annotation.completions import Usage
from sama.annotation.costs import Budget, Costs, Price, Spent, parse_budget, parse_price
from sama.annotation.errors import AnnotationError, BudgetError, LedgerError


PRICES = {"small": Price(prompt=2, completion=10, cached=1)}


def spent(outcome="answer", usage=None, model="small", stage="describe", estimated=False) -> Spent:
    return Spent(stage, "clip", model, outcome, usage or Usage(1000, 400, 100), estimated, 0.5)


def call(costs: Costs, estimate: Usage, entry: Spent) -> None:
    costs.settle(costs.reserve(entry.model, estimate), entry)


def test_the_price_of_cached_prompt_and_completion_tokens():
    assert PRICES["small"].of(Usage(1_000_000, 400_000, 100_000)) == pytest.approx(0.6 * 2 + 0.4 * 1 + 0.1 * 10)


def test_sums_by_stage_and_model_survive_the_run(tmp_path):
    path = tmp_path / "out" / "costs.jsonl"
    costs = Costs(path, PRICES)
    call(costs, Usage(1000, 0, 500), spent())
    call(costs, Usage(1000, 0, 500), spent("429", Usage()))
    call(costs, Usage(1000, 0, 500), spent(model="other", stage="verify", estimated=True))
    line, table = costs.line(), costs.table()
    costs.close()
    assert list(table) == [("describe", "small"), ("verify", "other")]
    assert (table["describe", "small"].calls, table["describe", "small"].answers) == (2, 1)
    assert table["describe", "small"].usage == Usage(1000, 400, 100)
    assert table["describe", "small"].money == pytest.approx((600 * 2 + 400 + 100 * 10) / 1e6)
    assert line == "3 calls, 2,200 tokens, price 0.00, 1 without a price, 1 estimated"
    again = Costs(path, PRICES)
    assert again.table() == table and again.line() == line
    assert len(path.read_text().splitlines()) == 3


def test_what_earlier_runs_spent_counts(tmp_path):
    first = Costs(tmp_path / "costs.jsonl", budget=Budget(tokens=2000))
    call(first, Usage(1000, 0, 500), spent())
    first.close()
    second = Costs(tmp_path / "costs.jsonl", budget=Budget(tokens=2000))
    with pytest.raises(BudgetError, match="of 2,000 tokens .* 1,100 are spent, and the next call may need 1,000"):
        second.reserve("small", Usage(600, 0, 400))
    second.reserve("small", Usage(500, 0, 400))


def test_money_that_was_spent_keeps_its_price(tmp_path):
    first = Costs(tmp_path / "costs.jsonl", PRICES)
    call(first, Usage(1, 0, 1), spent(usage=Usage(1_000_000)))
    first.close()
    cheaper = Costs(tmp_path / "costs.jsonl", {"small": Price(1, 1, 1)}, Budget(money=2.5))
    assert cheaper.line() == "1 calls, 1,000,000 tokens, price 2.00 of 2.50"
    call(cheaper, Usage(500_000), spent(usage=Usage(400_000)))
    with pytest.raises(BudgetError, match="budget of 2.5 .* 2.4000 are spent, and the next call may need 0.2000"):
        cheaper.reserve("small", Usage(200_000))
    hashes = {json.loads(line)["prices"] for line in (tmp_path / "costs.jsonl").read_text().splitlines()}
    assert len(hashes) == 2


def test_a_large_budget_is_written_in_full():
    with pytest.raises(BudgetError, match="The budget of 2,500,000.5 does not allow another call"):
        Costs(prices={"small": Price(3, 3, 3)}, budget=Budget(money=2_500_000.5)).reserve("small", Usage(10**12, 0, 1))


def test_a_budget_in_money_needs_prices():
    with pytest.raises(BudgetError, match=r"needs the price of the model other.*\['small'\]: give --price other="):
        Costs(prices=PRICES, budget=Budget(money=1)).reserve("other", Usage(1, 0, 1))


def test_a_call_waits_for_reservations_but_not_for_what_is_spent():
    costs = Costs(budget=Budget(tokens=1000))
    first = costs.reserve("small", Usage(600, 0, 0))
    answered = []
    waiting = threading.Thread(target=lambda: answered.append(costs.reserve("small", Usage(600, 0, 0))))
    waiting.start()
    assert answered == []
    costs.settle(first, spent(usage=Usage(300, 0, 0)))
    waiting.join(30)
    assert answered == [Usage(600, 0, 0)]
    costs.settle(answered[0], spent(usage=Usage(600, 0, 0)))
    with pytest.raises(BudgetError):
        costs.reserve("small", Usage(600, 0, 0))


def test_half_a_line_of_a_killed_run_is_removed(tmp_path):
    path = tmp_path / "costs.jsonl"
    costs = Costs(path)
    for _ in range(2):
        call(costs, Usage(1, 0, 1), spent())
    costs.close()
    size = path.stat().st_size
    os.truncate(path, size - 7)
    costs = Costs(path)
    assert costs.total.calls == 1
    call(costs, Usage(1, 0, 1), spent())
    costs.close()
    assert Costs(path).total.calls == 2 and path.stat().st_size == size


@pytest.mark.parametrize(
    "line",
    ["", "null", "{}", "[", '{"stage": "describe"}', "[" * 100_000, "\xff",
     '{"stage": 1, "record": "", "model": "", "outcome": "", "usage": {}, "estimated": true, "seconds": 1, '
     '"money": null, "prices": "", "time": ""}',
     '{"stage": "", "record": "", "model": "", "outcome": "", "usage": {"a": 1}, "estimated": true, "seconds": 1, '
     '"money": null, "prices": "", "time": ""}',
     '{"stage": "", "record": "", "model": "", "outcome": "", "usage": {"prompt": -1}, "estimated": true, '
     '"seconds": 1, "money": null, "prices": "", "time": ""}'],
)  # fmt: skip
def test_a_damaged_ledger_is_an_error(tmp_path, line):
    path = tmp_path / "costs.jsonl"
    costs = Costs(path)
    call(costs, Usage(1, 0, 1), spent())
    costs.close()
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(AnnotationError, match="costs.jsonl, line 2: this is no line of a cost ledger"):
        Costs(path)


def test_prices_from_the_command_line():
    assert parse_price("a=b/c:7b=2,10") == ("a=b/c:7b", Price(2, 10, 2))
    assert parse_price("small=0.15,0.6,0.075") == ("small", Price(0.15, 0.6, 0.075))


@pytest.mark.parametrize("text", ["", "small", "small=1", "=1,2", "small=1,2,3,4", "small=1,x", "s=-1,2", "s=nan,1"])
def test_prices_that_are_none(text):
    with pytest.raises(AnnotationError, match="expected MODEL=PROMPT,COMPLETION"):
        parse_price(text)


@pytest.mark.parametrize(
    ("texts", "budget"),
    [
        ([], Budget()),
        (["2000000 tokens"], Budget(tokens=2_000_000)),
        (["25"], Budget(money=25.0)),
        (["2.5", "1e6 tokens"], Budget(tokens=1_000_000, money=2.5)),
    ],
)
def test_budgets_from_the_command_line(texts, budget):
    assert parse_budget(texts) == budget


@pytest.mark.parametrize("text", ["", "tokens", "-1", "nan", "inf tokens", "1.5 tokens", "25 USD", "10 calls"])
def test_budgets_that_are_none(text):
    with pytest.raises(AnnotationError, match="expected such as '2000000 tokens' or '25'"):
        parse_budget([text])


def test_a_budget_that_is_given_twice():
    with pytest.raises(AnnotationError, match="The budget in money is given twice, 1 and 2"):
        parse_budget(["1", "2"])


def test_calls_of_a_run_without_prices_count_for_a_budget_in_money(tmp_path):
    path = tmp_path / "costs.jsonl"
    first = Costs(path)
    call(first, Usage(1, 0, 1), spent(usage=Usage(1_000_000)))
    first.close()
    with pytest.raises(AnnotationError, match="has 1 calls of the model small without a price.*--price small="):
        Costs(path, {"other": Price(1, 1, 1)}, Budget(money=5))
    second = Costs(path, PRICES, Budget(money=2.5))
    assert second.total.money == pytest.approx(2.0)
    with pytest.raises(BudgetError, match="2.0000 are spent"):
        second.reserve("small", Usage(300_000))


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "costs.jsonl"
    costs = Costs(path)
    call(costs, Usage(1, 0, 1), spent())
    size, write = path.stat().st_size, os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(LedgerError, match="costs.jsonl cannot be written"):
            call(costs, Usage(1, 0, 1), spent())
    assert path.stat().st_size == size
    call(costs, Usage(1, 0, 1), spent())
    costs.close()
    assert Costs(path).total.calls == 2


def test_a_reservation_that_is_released_lets_others_go_on():
    costs = Costs(budget=Budget(tokens=1000))
    costs.release("small", costs.reserve("small", Usage(900)))
    assert costs.reserve("small", Usage(900)) == Usage(900) and costs.total.calls == 0
