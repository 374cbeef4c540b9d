"""From the warehouse into RAM: of each symbol its last bars and the memories after them.

The short way reads the stored memories and the last rows; it is open where every needed indicator is stored as it is declared now, all of
them up to one bar. Otherwise everything is calculated from the stored candles. Both end at the newest stored bar, with the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from mdms_pipeline.calculate.advance import HIT, INCREMENTAL, due
from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.calculate.run import carry
from mdms_pipeline.live.tape import NEVER, Loaded
from mdms_pipeline.live.watch import Watch, calls_of, columns_of
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Floats, Instant, timeframe
from mdms_pipeline.rules import Call
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.indicators import Memory, memories
from mdms_pipeline.store.series import EVER, Series, read_bars, read_last
from mdms_pipeline.vocabulary import needed, tables

AT_ONCE = 20  # symbols calculated from all their candles at once
STORED, CALCULATED = "stored memory", "full calculation"  # ways


@dataclass(frozen=True)
class Found:
    """One symbol as the warehouse knows it, and by which way."""

    loaded: Loaded
    way: str


def indicators_of(watches: Sequence[Watch]) -> tuple[Indicator, ...]:
    """What these watches read and all that it reads, upstream first."""
    return needed(rule for watch in watches for rule in watch.rules)


def load(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[Watch],
    symbols: Sequence[str],
    since: Instant | None = None,
    short: bool = True,
) -> Iterator[Found]:
    """Every one of `symbols` that has a bar, with the bars that `watches` (of one timeframe) read: so many that the answers of all
    bars from `since` on, and of the last one, can be told. Without `short` everything is calculated."""
    frame = watches[0].timeframe
    known = {s: one for (s, _), one in standings(connection, [(s, frame) for s in symbols]).items() if one.last_bar is not None}
    wanted = indicators_of(watches)
    marks = _marks(connection, frame, known, wanted) if short else {}
    yield from _stored(connection, watches, wanted, {s: known[s] for s in marks}, marks, since)
    rest = [symbol for symbol in known if symbol not in marks]
    for start in range(0, len(rest), AT_ONCE):
        yield from _calculated(connection, watches, wanted, {s: known[s] for s in rest[start : start + AT_ONCE]}, since)


def _marks(
    connection: duckdb.DuckDBPyConnection, frame: str, known: Mapping[str, Standing], wanted: Sequence[Indicator]
) -> dict[str, dict[Indicator, Memory]]:
    """The symbols to which the short way is open, with their memories."""
    held = memories(connection, frame, list(known), {indicator.kind.name for indicator in wanted}) if known and wanted else {}
    return {symbol: found for symbol, standing in known.items() if (found := _memories(symbol, standing, wanted, held)) is not None}


def _memories(
    symbol: str, standing: Standing, wanted: Sequence[Indicator], held: Mapping[tuple[str, str], Memory]
) -> dict[Indicator, Memory] | None:
    """The memories of one symbol, all of one bar; None where one is not there or not valid."""
    dues = [due(indicator, symbol, standing, held) for indicator in wanted]
    if any(one.mode not in (HIT, INCREMENTAL) for one in dues):
        return None
    found = {one.indicator: one.held for one in dues if one.held is not None}
    return found if len({memory.watermark for memory in found.values()}) <= 1 else None


def _stored(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[Watch],
    wanted: Sequence[Indicator],
    known: Mapping[str, Standing],
    marks: Mapping[str, Mapping[Indicator, Memory]],
    since: Instant | None,
) -> Iterator[Found]:
    if not known:
        return
    columns, calls = columns_of(watches), calls_of(watches)
    read = read_last(connection, _tables(columns, calls), watches[0].timeframe, known, _depth(watches, known, marks, since))
    for symbol, series in read.items():
        held = marks[symbol]
        done = next((memory.watermark for memory in held.values()), int(series.opened_at[-1]))
        new = int(np.searchsorted(series.opened_at, done, side="right"))
        before = float(series.columns["close"][new - 1]) if new else np.nan
        after, fresh = carry(wanted, {indicator: memory.memory for indicator, memory in held.items()}, _candles(series, new), before)
        filled = {name: _filled(series.columns[name], fresh, name, new) for name in series.columns}
        yield Found(_loaded(symbol, known[symbol], Series(series.opened_at, filled), after), STORED)


def _calculated(
    connection: duckdb.DuckDBPyConnection,
    watches: Sequence[Watch],
    wanted: Sequence[Indicator],
    known: Mapping[str, Standing],
    since: Instant | None,
) -> Iterator[Found]:
    frame, columns = watches[0].timeframe, columns_of(watches)
    for symbol, series in read_bars(connection, PRICES_AND_AMOUNTS, frame, dict.fromkeys(known, EVER)).items():
        after, fresh = carry(wanted, {}, _candles(series, 0))
        kept = {**series.columns, **{name: fresh[name] for name in columns if name in fresh}}
        bars = Series(series.opened_at, kept).last(_depth(watches, {symbol: known[symbol]}, {}, since))
        yield Found(_loaded(symbol, known[symbol], bars, after), CALCULATED)


def _loaded(symbol: str, standing: Standing, series: Series, after: Mapping[Indicator, Floats]) -> Loaded:
    newest = NEVER if standing.newest is None else standing.newest
    return Loaded(symbol, series.opened_at, series.columns, after, standing.bars, newest, standing.candles)


def _filled(stored: Floats, fresh: Mapping[str, Floats], name: str, new: int) -> Floats:
    """A column whose bars from `new` on are calculated just now; a candle's column is stored already."""
    return np.concatenate([stored[:new], fresh[name]]) if name in fresh and name not in PRICES_AND_AMOUNTS else stored


def _tables(columns: Sequence[str], calls: Sequence[Call]) -> dict[str, list[str]]:
    return {**tables(calls), "candles": list(PRICES_AND_AMOUNTS)}


def _candles(series: Series, start: int) -> Candles:
    return Candles(series.opened_at[start:], *(np.ascontiguousarray(series.columns[name][start:]) for name in PRICES_AND_AMOUNTS))


def _depth(
    watches: Sequence[Watch], known: Mapping[str, Standing], marks: Mapping[str, Mapping[Indicator, Memory]], since: Instant | None
) -> int:
    """How many of the last bars are read of every symbol."""
    frame = timeframe(watches[0].timeframe)
    starts = [memory.watermark for held in marks.values() for memory in held.values()]
    ends = [standing.last_bar for standing in known.values() if standing.last_bar is not None]
    first = min([*starts, *ends, *([] if since is None else [frame.floor(since)])])
    return max(watch.lookback for watch in watches) + 3 + frame.slots(first, max([first, *ends]))
