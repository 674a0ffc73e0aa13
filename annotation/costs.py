"""
What the calls cost: a ledger with one line for every attempt, sums by stage and model, and a budget that is checked
before each call. The ledger lies in the output folder, so that a resumed run goes on with what is left.
"""

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from .completions import Usage
from .errors import AnnotationError, BudgetError, LedgerError
from .json_lines import AppendOnlyFile, complete_lines


MILLION = 1_000_000
ANSWERED = {"answer", "length", "refusal"}  # outcomes of attempts that the model replied to


@dataclass(frozen=True)
class Price:
    """Prices of a million tokens; `cached` is that of prompt tokens that the endpoint had in its cache."""

    prompt: float
    completion: float
    cached: float

    def of(self, usage: Usage) -> float:
        """The price of so many tokens."""
        new = usage.prompt - usage.cached
        return (new * self.prompt + usage.cached * self.cached + usage.completion * self.completion) / MILLION


def parse_price(text: str) -> tuple[str, Price]:
    """
    Model and price from a command line: `MODEL=PROMPT,COMPLETION` or `MODEL=PROMPT,COMPLETION,CACHED`, each for a
    million tokens. Cached tokens cost as much as others if no price is given for them.

    Raises:
        [`AnnotationError`]: The text has another form, or a price is negative.
    """
    model, _, numbers = text.rpartition("=")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        values = []
    if not model or len(values) not in (2, 3) or not all(0 <= value < math.inf for value in values):
        raise AnnotationError(
            f"The price is {text!r}, expected MODEL=PROMPT,COMPLETION or MODEL=PROMPT,COMPLETION,CACHED in money for "
            "a million tokens, such as small=0.15,0.60,0.075."
        )
    return model, Price(values[0], values[1], values[2] if len(values) == 3 else values[0])


def parse_prices(texts: Sequence[str]) -> dict[str, Price]:
    """
    The prices of all models from a command line.

    Raises:
        [`AnnotationError`]: As [`parse_price`] does, or a model has two prices.
    """
    found: dict[str, Price] = {}
    for model, price in map(parse_price, texts):
        if found.setdefault(model, price) != price:
            raise AnnotationError(f"The price of the model {model} is given twice, and differently.")
    return found


@dataclass(frozen=True)
class Budget:
    """Limits on all calls of an output folder: tokens (prompt and completion), and money in the unit of the prices."""

    tokens: int | None = None
    money: float | None = None


def parse_budget(texts: Sequence[str]) -> Budget:
    """
    The budget from a command line: `"2000000 tokens"`, `"25"` in money, or both.

    Raises:
        [`AnnotationError`]: A text has another form, or one of the two is given twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        number, _, unit = text.strip().partition(" ")
        kind = {"tokens": "tokens", "": "money"}.get(unit.strip())
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if kind is None or not 0 <= value < math.inf or (kind == "tokens" and value != int(value)):
            raise AnnotationError(f"The budget is {text!r}, expected such as '2000000 tokens' or '25' (money).")
        if kind in found:
            raise AnnotationError(f"The budget in {kind} is given twice, {found[kind]:g} and {value:g}.")
        found[kind] = value
    tokens = found.get("tokens")
    return Budget(None if tokens is None else int(tokens), found.get("money"))


@dataclass(frozen=True)
class Spent:
    """
    One line of the ledger: what one attempt cost.

    Args:
        stage, record, model (`str`): Who asked, about what, and which model.
        outcome (`str`): `"answer"`, `"length"`, `"refusal"`, or what went wrong: `"429"`, `"no reply"`.
        usage ([`Usage`]): Tokens.
        estimated (`bool`): The endpoint did not tell the tokens: `usage` is an estimate.
        seconds (`float`): From the request to the reply, without waits before it.
        money (`float`, *optional*): Price of the tokens; `None` if the model has none.
        prices (`str`): Hash of the table of prices.
        time (`str`): When, in UTC.
    """

    stage: str
    record: str
    model: str
    outcome: str
    usage: Usage
    estimated: bool
    seconds: float
    money: float | None = None
    prices: str = ""
    time: str = ""


@dataclass
class Sum:
    """Sums over lines of the ledger; `unpriced` counts calls that have no price."""

    calls: int = 0
    answers: int = 0
    estimated: int = 0
    unpriced: int = 0
    usage: Usage = field(default_factory=Usage)
    seconds: float = 0.0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.usage.prompt + self.usage.completion

    def add(self, spent: Spent) -> None:
        """Adds a line."""
        self.calls += 1
        self.answers += spent.outcome == "answer"
        self.estimated += spent.estimated
        self.unpriced += spent.money is None
        self.usage += spent.usage
        self.seconds += spent.seconds
        self.money += spent.money or 0.0

    def merge(self, other: "Sum") -> None:
        """Adds another sum."""
        self.calls += other.calls
        self.answers += other.answers
        self.estimated += other.estimated
        self.unpriced += other.unpriced
        self.usage += other.usage
        self.seconds += other.seconds
        self.money += other.money


class Costs:
    """
    The ledger of an output folder. One object serves all threads and endpoints of a run.

    Args:
        path (`str` or `Path`, *optional*): File of the ledger, JSON Lines. Its lines of earlier runs count.
        prices (`dict`, *optional*): From the name of a model to its [`Price`].
        budget ([`Budget`], *optional*): Of this and all earlier runs together.

    Raises:
        [`AnnotationError`]: A line of the ledger cannot be read.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        prices: Mapping[str, Price] | None = None,
        budget: Budget | None = None,
    ):
        self.prices, self.budget = dict(prices or {}), budget or Budget()
        table = {name: asdict(price) for name, price in self.prices.items()}
        self._prices_hash = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]
        self._settled, self._reserved = threading.Condition(), Usage()
        self._reserved_money = 0.0
        self._sums: dict[tuple[str, str], Sum] = {}
        self._answered: set[str] = set()
        self.total = Sum()
        self._file, self._path = None, path
        if path is not None:
            self._file = AppendOnlyFile(path)
            try:
                self._read(path)
            except (ValueError, OSError):  # among them AnnotationError
                self.close()
                raise

    def _read(self, path: str | Path) -> None:
        """Adds up what earlier runs spent. Calls without a price get that of today."""
        unpriced = Counter()
        for spent in read_ledger(path):
            if spent.money is None:
                spent = replace(spent, money=self._money(spent.model, spent.usage))
            if spent.money is None and spent.usage != Usage():
                unpriced[spent.model] += 1
            self._add(spent)
        if self.budget.money is not None and unpriced:
            model, number = unpriced.most_common(1)[0]
            raise AnnotationError(
                f"{path} has {number:,} calls of the model {model} without a price, which a budget of "
                f"{_amount(self.budget.money)} cannot count: give --price {model}=PROMPT,COMPLETION."
            )

    def close(self) -> None:
        """Closes the ledger's file."""
        if self._file is not None:
            self._file.close()

    @property
    def locked(self) -> bool:
        """Whether this process holds the lock of the ledger's file, so that no other run works in its folder."""
        return self._file is not None and self._file.locked

    def reserve(self, model: str, estimate: Usage) -> Usage:
        """
        Sets tokens aside for a call. Waits for calls that run while only their reservations stand in the way. Each
        reservation must be followed by one [`settle`] or [`release`].

        Raises:
            [`BudgetError`]: The call could cost more than is left.
        """
        money = self._money(model, estimate)
        if self.budget.money is not None and money is None:
            raise BudgetError(
                f"A budget of {_amount(self.budget.money)} needs the price of the model {model}, which is not "
                f"among {sorted(self.prices)}: give --price {model}=PROMPT,COMPLETION."
            )
        with self._settled:
            self._settled.wait_for(lambda: self._fits(estimate, money) or self._reserved == Usage())
            if not self._fits(estimate, money):
                raise BudgetError(self._problem(estimate, money))
            self._reserved += estimate
            self._reserved_money += money or 0.0
        return estimate

    def settle(self, reserved: Usage, spent: Spent) -> None:
        """
        Replaces a reservation with what the call really cost, and writes it to the ledger.

        Raises:
            [`LedgerError`]: The ledger cannot be written.
        """
        money = self._money(spent.model, spent.usage)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        spent = Spent(**{**vars(spent), "money": money, "prices": self._prices_hash, "time": now})
        with self._settled:
            self._give_back(spent.model, reserved)
            self._add(spent)
            self._settled.notify_all()
            if self._file is not None:
                try:
                    self._file.append(asdict(spent))
                except OSError as error:
                    raise LedgerError(
                        f"The ledger {self._path} cannot be written ({error.strerror or error}); what is not in it "
                        "would not count for the budget."
                    ) from error

    def release(self, model: str, reserved: Usage) -> None:
        """Gives a reservation back for a call that was not made."""
        with self._settled:
            self._give_back(model, reserved)
            self._settled.notify_all()

    def _give_back(self, model: str, reserved: Usage) -> None:
        back = self._reserved
        self._reserved = Usage(
            back.prompt - reserved.prompt, back.cached - reserved.cached, back.completion - reserved.completion
        )
        self._reserved_money -= self._money(model, reserved) or 0.0

    def has_answered(self, model: str) -> bool:
        """Whether the model has replied to a call of this or an earlier run."""
        with self._settled:
            return model in self._answered

    def table(self) -> dict[tuple[str, str], Sum]:
        """Sums by (stage, model), in the order of the first call."""
        with self._settled:
            return dict(self._sums)

    def line(self) -> str:
        """The running cost in one line."""
        with self._settled:
            total = self.total
            tokens = f"{total.tokens:,}"
            if self.budget.tokens is not None:
                tokens += f" of {self.budget.tokens:,}"
            parts = [f"{total.calls:,} calls", f"{tokens} tokens"]
            if self.prices:
                limit = "" if self.budget.money is None else f" of {self.budget.money:.2f}"
                parts.append(f"price {total.money:.2f}{limit}")
                parts += [f"{total.unpriced:,} without a price"] if total.unpriced else []
            parts += [f"{total.estimated:,} estimated"] if total.estimated else []
            return ", ".join(parts)

    def _add(self, spent: Spent) -> None:
        self.total.add(spent)
        self._sums.setdefault((spent.stage, spent.model), Sum()).add(spent)
        if spent.outcome in ANSWERED:
            self._answered.add(spent.model)

    def _money(self, model: str, usage: Usage) -> float | None:
        price = self.prices.get(model)
        return None if price is None else price.of(usage)

    def _fits(self, estimate: Usage, money: float | None) -> bool:
        waiting = self._reserved + estimate
        tokens = self.total.tokens + waiting.prompt + waiting.completion
        expense = self.total.money + self._reserved_money + (money or 0.0)
        budget = self.budget
        return (budget.tokens is None or tokens <= budget.tokens) and (budget.money is None or expense <= budget.money)

    def _problem(self, estimate: Usage, money: float | None) -> str:
        tokens = estimate.prompt + estimate.completion
        if self.budget.tokens is not None and self.total.tokens + tokens > self.budget.tokens:
            spent, next_call, limit = f"{self.total.tokens:,}", f"{tokens:,}", f"{self.budget.tokens:,} tokens"
        else:
            spent, next_call = f"{self.total.money:.4f}", f"{money or 0.0:.4f}"
            limit = _amount(self.budget.money or 0.0)
        return (
            f"The budget of {limit} does not allow another call: {spent} are spent, and the next call may need "
            f"{next_call}. What is finished is saved; run again with a larger --budget to go on."
        )


def read_ledger(path: str | Path) -> Iterator[Spent]:
    """
    The lines of a ledger. What follows the last line break is half a line of a run that was killed while it wrote, and
    is left out.

    Raises:
        [`AnnotationError`]: Another line cannot be read.
    """
    for number, line in complete_lines(path):
        yield _spent(line, f"{path}, line {number}")


def _amount(money: float) -> str:
    return f"{money:,.10g}"


def sum_up(ledger: Iterable[Spent]) -> dict[tuple[str, str], Sum]:
    """Sums by (stage, model), in the order of the first call."""
    sums: dict[tuple[str, str], Sum] = {}
    for spent in ledger:
        sums.setdefault((spent.stage, spent.model), Sum()).add(spent)
    return sums


def _spent(line: bytes, place: str) -> Spent:
    kinds = {"stage": str, "record": str, "model": str, "outcome": str, "usage": dict, "estimated": bool}
    kinds |= {"seconds": float | int, "money": float | int | None, "prices": str, "time": str}
    try:
        value = json.loads(line)
        right = isinstance(value, dict) and value.keys() == kinds.keys()
        right = right and all(isinstance(value[name], kind) for name, kind in kinds.items())
        counts = list(value["usage"].values()) if right else []
        right = right and all(type(count) is int and count >= 0 for count in counts)
        return Spent(**{**value, "usage": Usage(**value["usage"])}) if right else _unreadable(place)
    except (ValueError, TypeError, RecursionError):  # TypeError: of other names in `usage`
        return _unreadable(place)


def _unreadable(place: str):
    raise AnnotationError(
        f"{place}: this is no line of a cost ledger. Remove the line, and its call no longer counts for the budget."
    ) from None
