"""`mdms screen --live`: a screen over the bars that form, from one ticker/all and the stored memories. Nothing is kept.

The screen is judged by `screen.judge`, as over stored bars: only that the last bar of each market is the one that forms. Everything it says
is provisional; what of a forming bar could not be known is in `live/forming.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np

from mdms_pipeline.live.forming import Day, Forming, forming
from mdms_pipeline.live.lane import Lane
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
from mdms_pipeline.store.universe import universe
from mdms_pipeline.vocabulary import indicator_of


@dataclass(frozen=True)
class Looked:
    """A provisional result."""

    result: ScreenResult
    formed: int  # markets of which a bar forms
    guessed: Mapping[str, int]  # candle column -> markets of which it could not be known for sure
    behind: int  # markets whose stored candles end before the slot that forms: not known


def look_live(connection: duckdb.DuckDBPyConnection, screen: Screen, days: Mapping[str, Day], now: float) -> Looked:
    """Judge every collected symbol at the slot that forms."""
    at = screen.timeframe.floor(int(now))
    symbols, turnover = universe(connection), {symbol: day.turnover for symbol, day in days.items()}
    known = {symbol: one for (symbol, _), one in standings(connection, [(s, screen.timeframe.name) for s in symbols]).items()}
    ready = [symbol for symbol in symbols if symbol in known and _reaches(known[symbol], at)]
    forms = _forms(connection, screen, [symbol for symbol in ready if symbol in days], days, int(now))
    candidates = _candidates(connection, screen, known, ready, forms, turnover, at)
    late = [
        Candidate(symbol, known[symbol].covered_to if symbol in known else None, None, turnover.get(symbol, math.nan), 0, {})
        for symbol in symbols
        if symbol not in ready
    ]
    result = judge(screen, at, [*candidates, *late], {call: indicator_of(call).stable_after for call in screen.calls})
    guessed = Counter(name for one in forms.values() for name in one.guessed)
    return Looked(result, len(forms), dict(guessed), len(late))


def _reaches(standing: Standing, at: Instant) -> bool:
    """Whether every bar before the slot `at` is stored."""
    return standing.covered_to is not None and standing.covered_to >= at and standing.last_bar is not None


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
    connection: duckdb.DuckDBPyConnection, screen: Screen, known: Mapping[str, Standing], symbols: Sequence[str],
    forms: Mapping[str, Forming], turnover: Mapping[str, float], at: Instant,
) -> list[Candidate]:  # fmt: skip
    """Every symbol with its last bars, the forming one included where there is one."""
    watch = Watch(SCREEN, screen.name, WHERE, screen.timeframe.name, (*screen.where, *map(_reading, (screen.rank, *screen.columns))))
    flat = any(standing.no_trade != SKIP for standing in known.values())
    lane = Lane([watch], symbols, flat, lambda: float(at))
    lane.load(found.loaded for found in load(connection, [watch], symbols))
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
        "provisional": True, "formed": looked.formed, "guessed": dict(looked.guessed), "behind": looked.behind,
    }  # fmt: skip
