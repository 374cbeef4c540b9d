"""What really ran against what is stored: the signals of every stretch that was watched, and those that its candles give.

1. the stretches of the rules as they are now, of late; a rule that has changed since cannot be compared, and is named
2. of each market as far as its candles are stored; one whose candles were told otherwise later is left out, and named
3. `differences` of both (`parity.py`); those at the last bar that anybody judged are `open`: it was closed by the clock, a trade may have
   been told after that, and whoever listens next takes back what is not so (docs/live.md)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import duckdb

from mdms_pipeline.live.coarse import COARSE
from mdms_pipeline.live.load import expected
from mdms_pipeline.live.parity import Difference, differences
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import DAY, Instant, timeframe
from mdms_pipeline.store.candles import standings
from mdms_pipeline.store.signals import Watched, signals_of, watches

Key = tuple[str, str, str, str, str]  # source, name, rule, symbol, timeframe
DAYS, BARS = 30, 2_000  # that a comparison looks back at most, whichever is less


@dataclass
class Compared:
    """What a comparison found. It holds if nothing differs, and something was compared."""

    stretches: int = 0
    judged: int = 0  # slots, of all markets and rules
    signals: int = 0  # that the candles give
    differences: list[Difference] = field(default_factory=list)
    open: list[Difference] = field(default_factory=list)  # of the last bar that was judged: nobody has listened after it yet
    changed: set[str] = field(default_factory=set)  # rules that were watched and are not as they were
    corrected: set[str] = field(default_factory=set)  # "symbol timeframe" whose candles were told otherwise since

    @property
    def said(self) -> str:
        kinds = Counter(one.what for one in self.differences)
        found = ", ".join(f"{count} {what}" for what, count in kinds.items()) or "none differs"
        found += f"; {len(self.open)} open, of the last bar judged" if self.open else ""
        return f"{self.signals} signals from {self.judged:,} judged bars in {self.stretches} stretches: {found}"


def compare(connection: duckdb.DuckDBPyConnection, rules: Sequence[Watch], now: Instant) -> Compared:
    """The signals in the table against those that the stored candles give, wherever `rules` were watched of late."""
    known, found = {watch.key: watch for watch in rules}, Compared()
    alike: dict[tuple[str, Instant, Instant, tuple[str, ...]], list[Watched]] = defaultdict(list)
    stretches = watches(connection)
    for one in _of_late(stretches, now):
        if one.watch not in known:
            found.changed.add(f"{one.source} {one.name} {one.rule}")
        elif one.until is not None:
            alike[one.timeframe, one.since, one.until, one.symbols].append(one)
    last = _last_judged(stretches)
    for together in alike.values():
        _compare(connection, [known[one.watch] for one in together], together, last, found)
    return found


def _last_judged(stretches: Sequence[Watched]) -> dict[Key, Instant]:
    """The newest bar of each rule and market that the clock has closed; what is closed by REST alone is final."""
    last: dict[Key, Instant] = {}
    for one in stretches:
        if one.until is not None and one.timeframe not in COARSE:
            for symbol in one.symbols:
                key = one.source, one.name, one.rule, symbol, one.timeframe
                last[key] = max(one.until, last.get(key, one.until))
    return last


def comparable(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the candles of anything that was watched are stored by now."""
    row = connection.execute(
        """SELECT 1 FROM watched w JOIN coverage c ON c.timeframe = w.timeframe AND list_contains(w.symbols, c.symbol)
           WHERE w.until IS NOT NULL AND c.covered_to > w.since LIMIT 1"""
    ).fetchone()
    return row is not None


def _of_late(stretches: Sequence[Watched], now: Instant) -> list[Watched]:
    """What of them lies within DAYS and BARS."""
    recent = []
    for one in stretches:
        frame = timeframe(one.timeframe)
        since = max(one.since, frame.floor(now - DAYS * DAY), frame.after(frame.floor(now), -BARS))
        if one.until is None or one.until >= since:
            recent.append(replace(one, since=since))
    return recent


def _compare(
    connection: duckdb.DuckDBPyConnection,
    rules: Sequence[Watch],
    stretches: Sequence[Watched],
    last: Mapping[Key, Instant],
    found: Compared,
) -> None:
    """Compare stretches of the same markets and bars; all that is read is read once for all of them."""
    first = stretches[0]
    corrected = _corrected(connection, first)
    found.corrected |= {f"{symbol} {first.timeframe}" for symbol in corrected}
    ends = _ends(connection, first, corrected)
    if not ends:
        return
    wanted = [one for one in expected(connection, rules, sorted(ends), first.since) if one.opened_at <= ends[one.symbol]]
    told = [one for each in stretches for one in signals_of(connection, each) if one.opened_at <= ends.get(one.symbol, first.since - 1)]
    frame = timeframe(first.timeframe)
    for one in differences(wanted, told):
        (found.open if one.key[-1] == last.get(one.key[:-1]) else found.differences).append(one)
    found.signals += len(wanted)
    found.stretches += len(stretches)
    found.judged += sum(frame.slots(first.since, frame.after(end)) for end in ends.values()) * len(stretches)


def _ends(connection: duckdb.DuckDBPyConnection, stretch: Watched, without: Collection[str]) -> dict[str, Instant]:
    """Symbol -> the newest bar of the stretch whose candle is stored, or known to have had no trade."""
    assert stretch.until is not None
    known = standings(connection, [(symbol, stretch.timeframe) for symbol in stretch.symbols if symbol not in without])
    ends = {one.symbol: min(stretch.until, one.covered[1] - 1) for one in known.values() if one.covered is not None}
    return {symbol: timeframe(stretch.timeframe).floor(end) for symbol, end in ends.items() if end >= stretch.since}


def _corrected(connection: duckdb.DuckDBPyConnection, stretch: Watched) -> set[str]:
    """Markets whose candles were told otherwise since the stretch began: what was live then is not what is stored now."""
    rows = connection.execute(
        "SELECT DISTINCT symbol FROM revisions WHERE timeframe = ? AND revised_at >= make_timestamp(?::BIGINT * 1000000)",
        [stretch.timeframe, stretch.since],
    ).fetchall()
    return {symbol for (symbol,) in rows} & set(stretch.symbols)
