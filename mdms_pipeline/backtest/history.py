"""What a backtest stands on: the stored candles of many symbols on one complete slot grid, and what is known of them.

ValueError
  HistoryError    there is nothing to trade on: no symbol, no candle, an empty period
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import duckdb
import numpy as np

from mdms_pipeline.backtest.engine import Market, Whole
from mdms_pipeline.backtest.strategy import TURNOVER_WINDOW, Strategy
from mdms_pipeline.calculate.advance import current
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.run import calculate
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, Instant, Timeframe, iso, timeframe
from mdms_pipeline.store.candles import DELISTED, Standing, standings
from mdms_pipeline.store.schema import SKIP, indicator_tables, no_trade
from mdms_pipeline.store.series import EVER, Series, flattened, read_spans
from mdms_pipeline.vocabulary import column_of, indicator_of, tables


class HistoryError(ValueError):
    """There is nothing to trade on; the message says why and what to do."""


@dataclass(frozen=True)
class Past:
    """Everything that is known of one symbol, oldest candle first."""

    candles: Candles
    stored: Mapping[str, Floats] = field(default_factory=dict)  # indicator columns of the warehouse that are up to date; a value per candle
    delisted: bool = False
    known_from: Instant | None = None  # where the covered span starts; None: before the first candle there was no market
    revision: int = 0

    def until(self, at: Instant) -> Past:
        """What was known before `at`. A delisting counts if its last candle was."""
        end = int(np.searchsorted(self.candles.opened_at, at))
        stored = {name: column[:end] for name, column in self.stored.items()}
        return replace(self, candles=self.candles[:end], stored=stored, delisted=self.delisted and end == len(self.candles))

    def since(self, at: Instant) -> Past:
        """As if history started at `at`."""
        start = int(np.searchsorted(self.candles.opened_at, at))
        return replace(self, candles=self.candles[start:], stored={}, known_from=at)


NOTHING = Past(Candles.empty())


@dataclass(frozen=True)
class History:
    """Candles of one timeframe. Slot 0 opens at `start`; every symbol has its own candles, the grid has them all."""

    timeframe: Timeframe
    start: Instant
    slots: int
    past: Mapping[str, Past]
    notes: tuple[str, ...] = ()  # what is not there
    no_trade: str = SKIP  # what indicators see of a slot without a trade; rules see candles alone

    @classmethod
    def of(cls, timeframe: Timeframe, past: Mapping[str, Past], notes: Sequence[str] = (), no_trade: str = SKIP) -> History:
        """From the first candle of any symbol to the last. Raises HistoryError where there is none."""
        held = {symbol: one for symbol, one in past.items() if len(one.candles)}
        if not held:
            asked = f"{', '.join(list(past)[:5])}{' ...' if len(past) > 5 else ''}" if past else "the universe, which is empty"
            raise HistoryError(f"there are no {timeframe} candles of {asked}: collect them with `mdms run`, or choose others")
        start = min(int(one.candles.opened_at[0]) for one in held.values())
        end = max(int(one.candles.opened_at[-1]) for one in held.values())
        missing = [f"{symbol}: no candles are stored" for symbol in past if symbol not in held]
        return cls(timeframe, start, timeframe.slots(start, end) + 1, held, (*notes, *missing), no_trade)

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(self.past)

    def only(self, symbols: Collection[str]) -> History:
        """As if nothing else were stored."""
        kept = {symbol: one for symbol, one in self.past.items() if symbol in symbols}
        return History.of(self.timeframe, kept, self.notes, self.no_trade)

    def calculated(self, indicator: Indicator, symbol: str) -> dict[str, Floats]:
        """The indicator's columns at each candle of `symbol`, by the kernels, from its first candle on."""
        candles = self.past[symbol].candles
        if self.no_trade == SKIP or not len(candles):
            return calculate([indicator], candles)
        traded = Series(candles.opened_at, {name: getattr(candles, name) for name in PRICES_AND_AMOUNTS})
        bars = flattened(traded, self.timeframe.name, int(candles.opened_at[0]), int(candles.opened_at[-1]))
        at = np.searchsorted(bars.opened_at, candles.opened_at)
        return {name: column[at] for name, column in calculate([indicator], bars.candles).items()}

    @cached_property
    def opened_at(self) -> Whole:
        """The opening instant of every slot."""
        seconds = self.timeframe.seconds
        if seconds is not None:
            return self.start + seconds * np.arange(self.slots, dtype=np.int64)
        return np.array([self.timeframe.after(self.start, i) for i in range(self.slots)], dtype=np.int64)

    @cached_property
    def rows(self) -> dict[str, Whole]:
        """Of each symbol, the slots of its candles."""
        return {symbol: np.searchsorted(self.opened_at, one.candles.opened_at) for symbol, one in self.past.items()}

    @cached_property
    def market(self) -> Market:
        """The candles on the grid, as the engine takes them."""
        columns = {
            name: self.grid({symbol: getattr(one.candles, name) for symbol, one in self.past.items()}) for name in PRICES_AND_AMOUNTS
        }
        gone = np.array([int(self.rows[symbol][-1]) if one.delisted else -1 for symbol, one in self.past.items()], dtype=np.int64)
        return Market(columns["open"], columns["high"], columns["low"], columns["close"], columns["value"], gone)

    def grid(self, series: Mapping[str, Floats]) -> Floats:
        """Values at each symbol's candles on the grid (slots, symbols), NaN elsewhere."""
        spread = np.full((self.slots, len(self.past)), np.nan)
        for i, (symbol, values) in enumerate(series.items()):
            spread[self.rows[symbol], i] = values
        return spread

    def slot(self, at: Instant) -> int:
        """The first slot that opens at or after `at`, within the grid."""
        return int(np.clip(np.searchsorted(self.opened_at, at), 0, self.slots))

    def until(self, slots: int) -> History:
        """As it was known when `slots` slots had closed: the symbols stay, even those without a candle yet."""
        end = self.timeframe.after(self.start, slots)
        return replace(self, slots=slots, past={symbol: one.until(end) for symbol, one in self.past.items()})

    @property
    def unstored(self) -> History:
        """The candles alone: every indicator is calculated from them again."""
        return replace(self, past={symbol: replace(one, stored={}) for symbol, one in self.past.items()})

    def since(self, slot: int) -> History:
        """The same grid, as if nothing before `slot` had been stored."""
        at = int(self.opened_at[slot])
        return replace(self, past={symbol: one.since(at) for symbol, one in self.past.items()})

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever any candle does."""
        said = hashlib.blake2b(digest_size=16)
        for symbol, one in self.past.items():
            said.update(f"{symbol} {one.delisted} {one.known_from}".encode())  # `delisted` closes positions
            said.update(one.candles.opened_at.tobytes())
            for name in PRICES_AND_AMOUNTS:
                said.update(np.ascontiguousarray(getattr(one.candles, name)).tobytes())
        return said.hexdigest()

    def period(self, start: Instant | None, end: Instant | None) -> tuple[int, int]:
        """The slots of [start, end). Raises HistoryError where that holds no candle."""
        first, last = 0 if start is None else self.slot(start), self.slots if end is None else self.slot(end)
        if first >= last or not any(((rows >= first) & (rows < last)).any() for rows in self.rows.values()):
            held = f"{iso(self.start)} to {iso(int(self.opened_at[-1]))}"
            raise HistoryError(f"the period holds no candle: {self.timeframe} candles are stored from {held}; choose a period inside")
        return first, last


def read_history(connection: duckdb.DuckDBPyConnection, strategy: Strategy) -> History:
    """Everything stored of the symbols that the strategy's universe may hold, delisted ones included, with the indicators it reads."""
    frame = strategy.timeframe.name
    known = {symbol: standing for (symbol, name), standing in standings(connection).items() if name == frame and standing.candles}
    symbols = list(strategy.universe.symbols or sorted(known))
    stored = [symbol for symbol in symbols if symbol in known]
    wanted = _there(connection, tables((*PRICES_AND_AMOUNTS, *strategy.calls)))
    read = _joined(connection, wanted, frame, dict.fromkeys(stored, EVER)) if stored else {}
    indicators = list(dict.fromkeys(map(indicator_of, strategy.calls)))
    valid = current(connection, indicators, frame, stored) if stored and indicators else {}
    past = {symbol: _past(read[symbol], known[symbol], valid.get(symbol, ())) if symbol in read else NOTHING for symbol in symbols}
    return History.of(strategy.timeframe, past, _missing(connection, strategy, symbols), no_trade(connection))


def _past(series: Series, standing: Standing, valid: Iterable[Indicator]) -> Past:
    """With the columns of `valid` indicators alone: a market that left the universe keeps what an older declaration has calculated."""
    columns = {name for indicator in valid for name in indicator.columns if name in series.columns}
    known_from = None if standing.begins or standing.covered is None else standing.covered[0]
    stored = {name: series.columns[name] for name in columns}
    return Past(series.candles, stored, standing.state == DELISTED, known_from, standing.revision)


def _joined(
    connection: duckdb.DuckDBPyConnection, wanted: Mapping[str, list[str]], frame: str, spans: Mapping[str, tuple[Instant, Instant]]
) -> dict[str, Series]:
    joined = read_spans(connection, "candles", wanted["candles"], frame, spans)
    for table, columns in wanted.items():
        if table != "candles" and columns:
            found = read_spans(connection, table, columns, frame, spans)
            joined = {symbol: series.join(found[symbol]) for symbol, series in joined.items()}
    return joined


def _there(connection: duckdb.DuckDBPyConnection, wanted: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Those columns that were ever calculated; the others are calculated in memory."""
    have = indicator_tables(connection)
    return {table: columns if table == "candles" else [c for c in columns if c in have.get(table, ())] for table, columns in wanted.items()}


def _missing(connection: duckdb.DuckDBPyConnection, strategy: Strategy, symbols: Iterable[str]) -> list[str]:
    """Markets that a universe over all markets should hold, and of which nothing is stored."""
    if strategy.universe.symbols is not None:
        return []
    known = [symbol for (symbol,) in connection.execute("SELECT symbol FROM symbols ORDER BY symbol").fetchall()]
    absent = sorted(set(known) - set(symbols))
    notes = ["markets that were delisted before collection began are not there: results lean to those that survived"]
    if absent:
        few = f"{', '.join(absent[:8])}{' ...' if len(absent) > 8 else ''}"
        notes.append(f"{len(absent)} markets are known of which no {strategy.timeframe} candle is stored: {few}")
    return notes


def members(strategy: Strategy, history: History) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which symbols the universe holds at each slot (slots, symbols), from what was known at that slot's close; and what to say of it."""
    shape = (history.slots, len(history.past))
    if strategy.universe.top is None:
        return np.ones(shape, np.bool_), ()
    opened_at = history.opened_at
    trailing, known = _trailing_turnover(history)
    boundary = timeframe(strategy.universe.rebalance)
    closes_at = np.append(opened_at[1:], history.timeframe.after(int(opened_at[-1])))
    periods = np.array([boundary.floor(int(at)) for at in closes_at])
    renewed = np.append(True, periods[1:] != periods[:-1])
    chosen = np.zeros(shape, np.bool_)
    current = np.zeros(shape[1], np.bool_)
    for slot in range(history.slots):
        if renewed[slot]:
            worth = np.where(known[slot] & (trailing[slot] > 0), trailing[slot], -np.inf)
            order = np.argsort(-worth, kind="stable")[: strategy.universe.top]
            current = np.zeros(shape[1], np.bool_)
            current[order[np.isfinite(worth[order])]] = True
        chosen[slot] = current
    never = [symbol for i, symbol in enumerate(history.symbols) if not known[:, i].any()]
    said = f"never ranked, less than 30 days are stored: {', '.join(never)}"
    return chosen, ((said,) if never else ())


def _trailing_turnover(history: History) -> tuple[Floats, np.ndarray]:
    """KRW traded in the 30 days up to each slot's close, and whether that whole span is known."""
    opened_at = history.opened_at
    start = np.searchsorted(opened_at, opened_at - TURNOVER_WINDOW, side="right")
    value = np.nan_to_num(history.market.value)
    total = np.vstack([np.zeros((1, value.shape[1])), np.cumsum(value, axis=0)])
    trailing = total[1:] - total[start]
    known = np.empty(value.shape, np.bool_)
    for i, one in enumerate(history.past.values()):
        since = -np.inf if one.known_from is None else one.known_from
        known[:, i] = opened_at - TURNOVER_WINDOW >= since
    return trailing, known


def not_calculated(strategy: Strategy, history: History) -> dict[str, int]:
    """Indicator columns that are not stored up to date -> of how many symbols; those are calculated in memory."""
    names = map(column_of, strategy.calls)
    counts = {name: sum(name not in one.stored for one in history.past.values()) for name in names}
    return {name: count for name, count in counts.items() if count}
