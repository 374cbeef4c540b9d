"""One screen at one instant: a verdict for every symbol and clause, and the ranking.

1. Who looks: the universe's symbols; a named symbol that nothing is known of is a row too.
2. Who takes part: coverage must reach the slot, and the last trade must be at most `max_age` slots old.
3. The last bars of those that take part are stacked to arrays (bars, symbols), so each clause is evaluated once for all.
4. A symbol passes if every clause is true. Those that pass are ranked; ties go to turnover, then symbol; an unknown rank is last.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from mdms_pipeline.market import Floats, Instant, iso
from mdms_pipeline.rules import Call, Explanation, Formula, Key, MissingSeriesError, evaluate, explain, known, operands
from mdms_pipeline.screen.load import Screen, Universe

Shown = tuple[tuple[str, float | None], ...]  # (text, value), None where unknown


class Outcome(StrEnum):
    """What a screen says of one symbol."""

    PASSED = "passed"
    FAILED = "failed"  # a clause is false
    UNKNOWN = "unknown"  # no clause is false, but one is unknown
    TOO_OLD = "too old"  # no trade within max_age
    NOT_KNOWN = "not known"  # coverage does not reach the instant


@dataclass(frozen=True)
class Candidate:
    """What is known of one symbol at the instant.

    `series` has, for all that the screen reads, the last bars up to and with the one that opened at `opened_at`, oldest first:
    `screen.lookback + 1` of them (more are cut off, missing ones are unknown).
    """

    symbol: str
    covered_to: Instant | None  # end of the coverage, exclusive; None: never collected
    opened_at: Instant | None  # of the newest candle not after the screen's slot; None: there is none
    turnover: float  # KRW; for `top` and for ties; NaN where not known
    bars: int  # candles from the symbol's first up to that one
    series: Mapping[Key, Floats]


@dataclass(frozen=True)
class Clause:
    """One condition at one symbol. `verdict` is None where unknown; `values` are both sides of each comparison, numbers left out."""

    text: str
    verdict: bool | None
    values: Shown


@dataclass(frozen=True)
class Row:
    """One symbol's part of the result. Where it took no part, `reason` says why and there are no clauses."""

    symbol: str
    outcome: Outcome
    reason: str  # empty where it passed
    age: int | None  # slots from its last candle to the instant; 0: traded in that very slot
    turnover: float | None
    place: int | None = None  # among those that passed, from 1
    rank: float | None = None
    clauses: tuple[Clause, ...] = ()
    columns: Shown = ()
    unstable: tuple[str, ...] = ()  # indicators whose seed still shows in the values used here


@dataclass(frozen=True)
class ScreenResult:
    """All rows: first those that passed, in order, then the others by outcome and symbol."""

    screen: str
    timeframe: str
    at: Instant  # opening of the slot that was judged
    limit: int
    rows: tuple[Row, ...]

    @property
    def ranking(self) -> tuple[Row, ...]:
        """The first `limit` of those that passed."""
        return tuple(row for row in self.rows if row.place is not None and row.place <= self.limit)

    @property
    def counts(self) -> dict[str, int]:
        """Symbols by outcome, every outcome named."""
        found = Counter(row.outcome for row in self.rows)
        return {str(outcome): found[outcome] for outcome in Outcome}

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def judge(screen: Screen, at: Instant, candidates: Iterable[Candidate], stable_after: Mapping[Call, int] | None = None) -> ScreenResult:
    """The result of `screen` at the slot that opened at `at`.

    `stable_after` has per call the index, from a symbol's first candle, of the first bar whose value no longer shows its seed;
    a call that is not in it counts as stable. ValueError for an instant or a candle off the slot grid or after `at`.
    """
    if screen.timeframe.floor(at) != at:
        raise ValueError(f"instant {iso(at)} does not open a {screen.timeframe} slot: use {iso(screen.timeframe.floor(at))}")
    members = _members(screen.universe, candidates)
    absent = [_absent(screen, at, candidate) for candidate in members]
    taking_part = [candidate for candidate, row in zip(members, absent, strict=True) if row is None]
    rows = _judged(screen, at, taking_part, stable_after or {})
    ranked = _ranked(screen, [row for row in rows if row.outcome is Outcome.PASSED])
    others = [row for row in (*rows, *absent) if row is not None and row.outcome is not Outcome.PASSED]
    others.sort(key=lambda row: (list(Outcome).index(row.outcome), row.symbol))
    return ScreenResult(screen.name, screen.timeframe.name, at, screen.limit, (*ranked, *others))


def why(screen: Screen, candidate: Candidate) -> tuple[Explanation, ...]:
    """Every clause, the rank and the columns at one symbol, down to the last sub-expression."""
    stack = _stack(screen, [candidate])
    series = {name: bars[:, 0] for name, bars in stack.items()}
    return tuple(explain(expression, series) for expression in screen.expressions)


# ---- who looks, who takes part


def _members(universe: Universe, candidates: Iterable[Candidate]) -> list[Candidate]:
    by_symbol = {candidate.symbol: candidate for candidate in candidates}
    if universe.symbols is not None:
        return [by_symbol.get(symbol, Candidate(symbol, None, None, math.nan, 0, {})) for symbol in universe.symbols]
    return sorted(by_symbol.values(), key=lambda candidate: (*_order(_number(candidate.turnover), True), candidate.symbol))[: universe.top]


def _absent(screen: Screen, at: Instant, candidate: Candidate) -> Row | None:
    """The row of a candidate that takes no part; None for one that does."""
    frame, age, covered_to = screen.timeframe, _age(screen, at, candidate), candidate.covered_to
    if covered_to is None or covered_to < frame.after(at):
        reason = f"{frame} was never collected" if covered_to is None else f"{frame} is collected up to {iso(covered_to)} only"
        return Row(candidate.symbol, Outcome.NOT_KNOWN, reason, age, _number(candidate.turnover))
    if age is None or age > screen.max_age:
        reason = "no trade is stored" if age is None else f"the last trade is {age} slots old, max_age is {screen.max_age}"
        return Row(candidate.symbol, Outcome.TOO_OLD, reason, age, _number(candidate.turnover))
    return None


def _age(screen: Screen, at: Instant, candidate: Candidate) -> int | None:
    """Slots from the last candle to `at`; None without a candle."""
    frame, last = screen.timeframe, candidate.opened_at
    if last is None:
        return None
    if last > at or frame.floor(last) != last:
        raise ValueError(
            f"{candidate.symbol}: its last candle, {iso(last)}, is no {frame} slot up to {iso(at)}: hand in candles up to there"
        )
    return frame.slots(last, at)


# ---- evaluation, all symbols at once


def _stack(screen: Screen, candidates: Sequence[Candidate]) -> dict[Key, Floats]:
    """What the screen reads as arrays (lookback + 1, symbols): row -1 is each symbol's last candle; NaN before its first."""
    depth = screen.lookback + 1
    stack: dict[Key, Floats] = {}
    names: tuple[Key, ...] = (*screen.series, *screen.calls)
    for name in names:
        stack[name] = np.full((depth, len(candidates)), np.nan)
        for column, candidate in enumerate(candidates):
            if name not in candidate.series:
                raise MissingSeriesError(f"{screen.name} reads {name}, which {candidate.symbol} does not have: add it to its series")
            bars = candidate.series[name][-depth:]
            stack[name][depth - len(bars) :, column] = bars
    return stack


def _judged(screen: Screen, at: Instant, candidates: Sequence[Candidate], stable_after: Mapping[Call, int]) -> list[Row]:
    """A row without a place for every candidate, in order."""
    stack = _stack(screen, candidates)
    clauses = _clauses(screen, stack)
    ranks = _last(screen.rank, stack)
    columns = _shown(screen.columns, stack)
    needed = _bars_needed(screen, stable_after)
    return [
        Row(
            candidate.symbol,
            *_outcome(own),
            age=_age(screen, at, candidate),
            turnover=_number(candidate.turnover),
            rank=rank,
            clauses=own,
            columns=shown,
            unstable=tuple(call for call, bars in needed.items() if candidate.bars < bars),
        )
        for candidate, own, rank, shown in zip(candidates, clauses, ranks, columns, strict=True)
    ]


def _clauses(screen: Screen, stack: Mapping[Key, Floats]) -> list[tuple[Clause, ...]]:
    """Of every symbol, all its clauses."""
    by_clause = []
    for rule in screen.where:
        said, deciding = str(rule), dict.fromkeys(operands(rule.root))
        shown = _shown(tuple(map(Formula, deciding)), stack)
        verdicts = map(known, evaluate(rule, stack)[-1].tolist())
        by_clause.append([Clause(said, verdict, values) for verdict, values in zip(verdicts, shown, strict=True)])
    return list(zip(*by_clause, strict=True))


def _shown(formulas: Sequence[Formula], stack: Mapping[Key, Floats]) -> list[Shown]:
    """Of every symbol, all `formulas` with their values."""
    texts = tuple(map(str, formulas))
    symbols = next(iter(stack.values())).shape[1]
    by_symbol = zip(*(_last(formula, stack) for formula in formulas), strict=True) if formulas else [()] * symbols
    return [tuple(zip(texts, values, strict=True)) for values in by_symbol]


def _last(formula: Formula, stack: Mapping[Key, Floats]) -> list[float | None]:
    """Of every symbol, the value at its last candle."""
    return list(map(_number, evaluate(formula, stack)[-1].tolist()))


def _outcome(clauses: Sequence[Clause]) -> tuple[Outcome, str]:
    """All clauses together, by Kleene's `and`, and those that decided."""
    for verdict, outcome in ((False, Outcome.FAILED), (None, Outcome.UNKNOWN)):
        if deciding := [clause.text for clause in clauses if clause.verdict is verdict]:
            return outcome, "; ".join(deciding)
    return Outcome.PASSED, ""


def _bars_needed(screen: Screen, stable_after: Mapping[Call, int]) -> dict[str, int]:
    """By call, how many candles a symbol must have for every value read here to be stable."""
    needed: dict[str, int] = {}
    for expression in screen.expressions:
        for leaf, bars_back in expression.reads.items():
            if isinstance(leaf, Call) and leaf in stable_after:
                needed[str(leaf)] = max(needed.get(str(leaf), 0), stable_after[leaf] + bars_back + 1)
    return needed


# ---- ranking


def _ranked(screen: Screen, rows: Sequence[Row]) -> list[Row]:
    """`rows` in order, with their places."""
    ordered = sorted(rows, key=lambda row: (*_order(row.rank, screen.descending), *_order(row.turnover, True), row.symbol))
    return [replace(row, place=place) for place, row in enumerate(ordered, 1)]


def _order(value: float | None, descending: bool) -> tuple[bool, float]:
    """A sort key that puts the unknown last in either direction."""
    return (True, 0.0) if value is None else (False, -value if descending else value)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
