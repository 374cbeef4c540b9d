"""`mdms screen --live`: a screen over the bars that form, on the stored memories. Nothing is kept.

1. `wanted`      what a running `mdms live` is asked for: the screen's timeframe, else finer ones of which its bars are put together
2. `look_heard`  by what that process holds in RAM; also where the last closed bar is not stored yet
3. `look_live`   without one, by one ticker/all; what of a forming bar could not be known is in `live/forming.py`

The screen is judged by `screen.judge`, as over stored bars: only that the last bar of each market is the one that forms. Everything it says
is provisional.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from mdms_pipeline.live.ask import BY_LIVE, Bars
from mdms_pipeline.live.coarse import together
from mdms_pipeline.live.forming import Day, Forming, forming
from mdms_pipeline.live.lane import Bar, Lane, candles_of, rows_of
from mdms_pipeline.live.load import load
from mdms_pipeline.live.signal import SCREEN, WHERE
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import DAY, PRICES_AND_AMOUNTS, TIMEFRAMES, Candles, Floats, Instant, Timeframe, iso
from mdms_pipeline.rules import Key
from mdms_pipeline.rules.nodes import Comparison, Formula, Rule
from mdms_pipeline.screen.judge import Candidate, Row, ScreenResult, judge
from mdms_pipeline.screen.load import Screen
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.schema import SKIP
from mdms_pipeline.store.series import read_spans
from mdms_pipeline.store.universe import turnovers, universe
from mdms_pipeline.vocabulary import indicator_of

BY_TICKER = "ticker/all"  # a way, besides that of live/ask.py


@dataclass(frozen=True)
class Looked:
    """A provisional result."""

    result: ScreenResult
    formed: int  # markets of which a bar forms
    guessed: Mapping[str, int]  # candle column -> markets of which it could not be known for sure
    behind: int  # markets whose stored candles end before the slot that forms: not known
    way: str = BY_TICKER


def look_live(connection: duckdb.DuckDBPyConnection, screen: Screen, days: Mapping[str, Day], now: float) -> Looked:
    """Judge every collected symbol at the slot that forms."""
    at = screen.timeframe.floor(int(now))
    symbols, turnover = universe(connection), {symbol: day.turnover for symbol, day in days.items()}
    known = _standings_of(connection, symbols, screen.timeframe.name)
    ready = [symbol for symbol in symbols if symbol in known and _reaches(known[symbol], at)]
    forms = _forms(connection, screen, [symbol for symbol in ready if symbol in days], days, int(now))
    result = _judged(connection, screen, known, symbols, dict.fromkeys(ready, ()), forms, turnover, at)
    guessed = Counter(name for one in forms.values() for name in one.guessed)
    return Looked(result, len(forms), dict(guessed), len(symbols) - len(ready))


def _reaches(standing: Standing, at: Instant) -> bool:
    """Whether every bar before the slot `at` is stored."""
    return standing.covered_to is not None and standing.covered_to >= at and standing.last_bar is not None


def _judged(
    connection: duckdb.DuckDBPyConnection, screen: Screen, known: Mapping[str, Standing], symbols: Sequence[str],
    ready: Mapping[str, tuple[Bar, ...]], forms: Mapping[str, Forming], turnover: Mapping[str, float], at: Instant,
) -> ScreenResult:  # fmt: skip
    """The screen over `symbols`; `ready` are those known up to the slot `at`, with the closed bars that are not stored yet."""
    candidates = _candidates(connection, screen, known, ready, forms, turnover, at)
    late = [
        Candidate(symbol, known[symbol].covered_to if symbol in known else None, None, turnover.get(symbol, math.nan), 0, {})
        for symbol in symbols
        if symbol not in ready
    ]
    return judge(screen, at, [*candidates, *late], {call: indicator_of(call).stable_after for call in screen.calls})


# ---- by a running `mdms live`


def wanted(connection: duckdb.DuckDBPyConnection, screen: Screen) -> tuple[list[str], list[str]]:
    """Timeframes, the best first, and the markets of which bars are needed: those of the screen of which anything is stored."""
    frame, stored = screen.timeframe, {name for _, name in standings(connection)}
    finer = [name for name, one in reversed(TIMEFRAMES.items()) if name in stored and one != frame and _divides(one, frame)]
    known = _standings_of(connection, _asked_of(connection, screen), frame.name)
    return [frame.name, *finer], [symbol for symbol, standing in known.items() if standing.last_bar is not None]


def _asked_of(connection: duckdb.DuckDBPyConnection, screen: Screen) -> list[str]:
    """The collected symbols that the screen looks at, or chooses among."""
    named = screen.universe.symbols
    return [symbol for symbol in universe(connection) if named is None or symbol in named]


def _divides(one: Timeframe, other: Timeframe) -> bool:
    """Whether slots of `other` are whole numbers of those of `one`."""
    if one.seconds is None:
        return False
    return DAY % one.seconds == 0 if other.seconds is None else other.seconds % one.seconds == 0


def look_heard(connection: duckdb.DuckDBPyConnection, screen: Screen, heard: Bars) -> Looked:
    """Judge the collected symbols at the slot that forms, by the bars that a running `mdms live` holds."""
    frame, finer = screen.timeframe, TIMEFRAMES[heard.timeframe]
    at, symbols = frame.floor(int(heard.at)), _asked_of(connection, screen)
    known, since = _standings_of(connection, symbols, frame.name), _since_stored(connection, heard, symbols)
    if finer == frame:
        ready = {symbol: since[symbol] for symbol in symbols if symbol in since and known[symbol].last_bar is not None}
        bars = {symbol: bar for symbol in ready if (bar := heard.markets[symbol].forming) is not None}
    else:
        ready = {symbol: () for symbol in symbols if symbol in since and symbol in known and known[symbol].covered_to == at}
        bars = _put_together(connection, heard, {symbol: since[symbol] for symbol in ready}, at)
    forms = {symbol: Forming(bar) for symbol, bar in bars.items() if bar.opened_at == at}
    result = _judged(connection, screen, known, symbols, ready, forms, turnovers(connection), at)
    return Looked(result, len(forms), {}, len(symbols) - len(ready), BY_LIVE)


def _since_stored(connection: duckdb.DuckDBPyConnection, heard: Bars, symbols: Sequence[str]) -> dict[str, tuple[Bar, ...]]:
    """Of each symbol that is known up to the slot that forms: the closed bars, of the timeframe that was heard, that are not stored yet."""
    frame = TIMEFRAMES[heard.timeframe]
    slot, found = frame.floor(int(heard.at)), {}
    if frame.after(heard.settled) != slot:  # the slot before is over and not settled: nobody knows all of it
        return {}
    for symbol, standing in _standings_of(connection, symbols, frame.name).items():
        market, to = heard.markets.get(symbol), standing.covered_to
        closed = market.closed_since(to) if market is not None and to is not None and to <= slot else None
        if closed is not None:
            found[symbol] = closed
    return found


def _put_together(connection: duckdb.DuckDBPyConnection, heard: Bars, since: Mapping[str, tuple[Bar, ...]], at: Instant) -> dict[str, Bar]:
    """The bar that opened at `at`, of each of these symbols: of stored finer candles, of closed ones that are not stored yet, and of the
    one that forms."""
    stored = _stored(connection, heard.timeframe, list(since), at, int(heard.at)) if since else {}
    found = {}
    for symbol, closed in since.items():
        forming = heard.markets[symbol].forming
        new = [bar.candle for bar in (*closed, forming) if bar is not None and bar.traded and bar.opened_at >= at]
        if candles := [*(candle for _, candle in rows_of(stored.get(symbol, Candles.empty()))), *new]:
            found[symbol] = Bar(at, together(candles))
    return found


def _standings_of(connection: duckdb.DuckDBPyConnection, symbols: Sequence[str], frame: str) -> dict[str, Standing]:
    return {symbol: one for (symbol, _), one in standings(connection, [(symbol, frame) for symbol in symbols]).items()}


# ---- by one ticker/all


def _forms(
    connection: duckdb.DuckDBPyConnection, screen: Screen, symbols: Sequence[str], days: Mapping[str, Day], now: Instant
) -> dict[str, Forming]:
    """The bars that form, by symbol."""
    frame, slot, midnight = screen.timeframe, screen.timeframe.floor(now), now - now % DAY
    if not symbols:
        return {}
    fine = frame.seconds is not None and frame.seconds < DAY
    rest, since, until = (frame.name, midnight, slot - 1) if fine else ("1d", slot, midnight - 1)
    before = _stored(connection, rest, symbols, since, until) if since <= until else {}
    stored = {name for _, name in standings(connection)}
    finer = next((name for name, one in TIMEFRAMES.items() if fine and name in stored and _shorter(one, frame)), None)
    within = _stored(connection, finer, symbols, slot, now) if finer else {}
    found = {symbol: forming(frame, now, days[symbol], before.get(symbol, Candles.empty()), within.get(symbol)) for symbol in symbols}
    return {symbol: one for symbol, one in found.items() if one is not None}


def _shorter(one: Timeframe, other: Timeframe) -> bool:
    return one.seconds is not None and other.seconds is not None and one.seconds < other.seconds


def _stored(connection: duckdb.DuckDBPyConnection, name: str, symbols: Sequence[str], since: Instant, until: Instant) -> dict[str, Candles]:
    read = read_spans(connection, "candles", PRICES_AND_AMOUNTS, name, dict.fromkeys(symbols, (since, until)))
    return {symbol: series.candles for symbol, series in read.items()}


def _candidates(
    connection: duckdb.DuckDBPyConnection, screen: Screen, known: Mapping[str, Standing], ready: Mapping[str, tuple[Bar, ...]],
    forms: Mapping[str, Forming], turnover: Mapping[str, float], at: Instant,
) -> list[Candidate]:  # fmt: skip
    """Every symbol that is ready with its last bars, the forming one included where there is one."""
    symbols = list(ready)
    watch = Watch(SCREEN, screen.name, WHERE, screen.timeframe.name, (*screen.where, *map(_reading, (screen.rank, *screen.columns))))
    flat = any(standing.no_trade != SKIP for standing in known.values())
    lane = Lane([watch], symbols, flat, lambda: float(at))
    lane.load(found.loaded for found in load(connection, [watch], symbols))
    for symbol, closed in ready.items():
        for bar in closed:
            lane.follow(symbol, candles_of([bar] if bar.traded else []), bar.opened_at)
    rows = np.array([lane.tape.row[symbol] for symbol in symbols if symbol in forms], dtype=np.int64)
    columns = _with_forming(lane, rows, [forms[lane.symbols[row]] for row in rows.tolist()]) if len(rows) else {}
    place = {int(row): i for i, row in enumerate(rows)}
    found = []
    for symbol in symbols:
        row = lane.tape.row[symbol]
        last = {name: column[:, place[row]] for name, column in columns.items()} if row in place else _held(lane, row)
        opened_at = at if row in place else int(lane.tape.traded_at[row])
        bars = int(lane.tape.bars.count[row]) + (row in place)
        found.append(Candidate(symbol, screen.timeframe.after(at), opened_at, turnover.get(symbol, math.nan), bars, _named(watch, last)))
    return found


def _with_forming(lane: Lane, rows: np.ndarray, forms: Sequence[Forming]) -> dict[str, Floats]:
    known = lane.tape.peek(rows, np.array([one.bar.candle for one in forms]).T)
    return lane.tape.bars.columns_with(rows, {name: known[name] for name in lane.tape.bars.names})


def _held(lane: Lane, row: int) -> dict[str, Floats]:
    return {name: column[:, 0] for name, column in lane.tape.bars.columns(np.array([row])).items()}


def _named(watch: Watch, columns: Mapping[str, Floats]) -> dict[Key, Floats]:
    return {key: columns[column] for key, column in watch.columns.items()}


def _reading(formula: Formula) -> Rule:
    """A condition that reads what the formula reads: so that it is loaded with the others."""
    return Rule(Comparison(("==",), (formula.root, formula.root)))


def _values(row: Row) -> dict[str, float | None]:
    """What decided, and what is shown beside."""
    return {**{said: value for clause in row.clauses for said, value in clause.values}, **dict(row.columns)}


def ranked(screen: Screen, looked: Looked, names: Mapping[str, tuple[str, str, bool]]) -> dict[str, Any]:
    """A provisional result as JSON holds it, with the words that a kept ranking has."""
    rows = [
        {"place": row.place, "symbol": row.symbol, "korean_name": names.get(row.symbol, ("", "", False))[0],
         "english_name": names.get(row.symbol, ("", "", False))[1], "age": row.age, "unstable": ", ".join(row.unstable) or None,
         "rank": row.rank, "turnover": row.turnover, "values": _values(row)}
        for row in looked.result.ranking
    ]  # fmt: skip
    return {
        "title": screen.title, "timeframe": screen.timeframe.name, "rank": str(screen.rank), "at": iso(looked.result.at),
        "outcomes": {outcome: count for outcome, count in looked.result.counts.items() if count}, "rows": rows,
        "provisional": True, "way": looked.way, "formed": looked.formed, "guessed": dict(looked.guessed), "behind": looked.behind,
    }  # fmt: skip
