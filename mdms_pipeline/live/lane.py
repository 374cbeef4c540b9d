"""One timeframe as it is heard: the bars that form, when they close, and what its watched rules say of each.

A message changes the forming bar only. A bar is closed by a newer one of the same symbol (`hear`), or by the exchange's clock passing its
end plus SETTLE (`tick`), also where no trade comes: then there is no bar, or under `flat` one at the previous close. Closed bars of many
symbols are judged together. A message that tells a closed bar otherwise takes it back and closes it again; whoever was told a signal of it
is told the new one with `revision` + 1. What is heard of bars before the last one cannot be mended here: `doubted` says of whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.live.panel import Decided, Panel
from mdms_pipeline.live.signal import SIGNAL, Signal
from mdms_pipeline.live.tape import NEVER, Loaded, Past, Rows, Tape
from mdms_pipeline.live.watch import Watch, signal
from mdms_pipeline.market import PRICES_AND_AMOUNTS, SETTLE, Candles, Instant, timeframe
from mdms_pipeline.rules import UNKNOWN, Verdicts
from mdms_pipeline.vocabulary import needed

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Bar:
    """A candle as it is known at a moment."""

    opened_at: Instant
    candle: tuple[float, ...]  # as PRICES_AND_AMOUNTS
    at: float = math.nan  # s UTC, its last trade; NaN where that is not told; FINAL where nothing is added any more
    received_at: float = math.nan  # s UTC
    traded: bool = True

    def closed_at(self, moment: float) -> Bar:
        """The same, closed by what was received then (s UTC). `dataclasses.replace` takes more than twice as long."""
        return Bar(self.opened_at, self.candle, self.at, moment, self.traded)

    def supersedes(self, other: Bar) -> bool:
        """Whether this is the later telling of one candle, or the same: trades only add, and what is final stays."""
        if other.at == FINAL or self.at == FINAL:
            return self.at == FINAL
        volume, held = self.candle[VOLUME], other.candle[VOLUME]
        return volume >= held if math.isnan(self.at + other.at) else (self.at, volume) >= (other.at, held)


@dataclass(frozen=True)
class Shape:
    """What a lane of some rules holds of every market."""

    needed: tuple[Indicator, ...]  # upstream first
    columns: tuple[str, ...]  # that the rules read
    lookback: int  # bars
    flat: bool
    rules: int

    @property
    def held(self) -> int:
        """Bytes of one market, without the signals told at its last bar."""
        names, depth = len({*self.columns, "close"}), self.lookback + 2
        past = NUMBER * (names * depth + depth + 1)
        return (2 if self.flat else 1) * past + 2 * self.working + NUMBER + 4 * self.rules + 2 + MARKET

    @property
    def working(self) -> int:
        """Bytes of one market's memories: held twice, and once more while a bar is calculated."""
        return NUMBER * sum(indicator.memory_shape[0] for indicator in self.needed)


def shape_of(watches: Sequence[Watch], flat: bool) -> Shape:
    """Of rules of one timeframe."""
    rules = [rule for watch in watches for rule in watch.rules]
    columns = dict.fromkeys(name for watch in watches for name in watch.columns.values())
    lookback = max(max(watch.lookback, (watch.max_age or 0) if flat else 0) for watch in watches)
    return Shape(needed(rules), (*columns, *(("volume",) if flat and "volume" not in columns else ())), lookback, flat, len(watches))


FINAL = math.inf  # REST told it after it had closed and settled
NUMBER = 8  # bytes
MARKET = 2_000  # bytes of one market's forming and last bar and its places in lists and dictionaries at the most; tracemalloc
VOLUME, CLOSE = PRICES_AND_AMOUNTS.index("volume"), PRICES_AND_AMOUNTS.index("close")


@dataclass
class Lane:
    """The state of one timeframe over many symbols."""

    watches: Sequence[Watch]
    symbols: Sequence[str]
    flat: bool
    clock: Clock
    doubted: set[str] = field(default_factory=set)  # symbols that must be loaded again
    closed: int = 0  # bars, ever, and symbols loaded: it changes with whatever stands closed

    def __post_init__(self) -> None:
        self.frame, shape = timeframe(self.watches[0].timeframe), shape_of(self.watches, self.flat)
        self.tape = Tape(self.frame, self.symbols, shape.needed, shape.columns, shape.lookback, self.flat)
        self.forming: list[Bar | None] = [None] * len(self.symbols)
        self.last: list[Bar | None] = [None] * len(self.symbols)  # the last closed bar, where it was closed here
        self.said = np.full((len(self.watches), len(self.symbols)), UNKNOWN, dtype=np.int8)  # of the last closed bar
        self.before = self.said.copy()  # and of the one before
        self.shown = self.said.copy()  # of the bar that forms, as last told
        self.told: list[dict[int, Signal]] = [{} for _ in self.symbols]  # signals of the last bar, by watch
        self.known = np.zeros(len(self.symbols), dtype=np.bool_)  # loaded
        self.gone: set[str] = set()  # markets that are no more
        self.away = np.zeros(len(self.symbols), dtype=np.bool_)  # not heard at present: the clock closes nothing of theirs
        self.changed: set[int] = set()  # rows whose forming bar was not looked at yet
        pasts = [self._past(watch) for watch in self.watches]
        self.panels = [Panel(past, {i: watch for i, watch in enumerate(self.watches) if pasts[i] is past}) for past in dict.fromkeys(pasts)]
        self.watched = np.array([[watch.takes(symbol) for symbol in self.symbols] for watch in self.watches], dtype=np.bool_)

    # ---- what is known at the beginning

    def load(self, found: Iterable[Loaded]) -> None:
        """Begin symbols with what is stored of them."""
        rows = []
        for loaded in found:
            self.tape.load(loaded)
            rows.append(row := self.tape.row[loaded.symbol])
            self.forming[row] = self.last[row] = None
            self.told[row] = {}
            self.known[row] = True
            self.doubted.discard(loaded.symbol)
        self.closed += len(rows)
        if rows:
            self._say(np.array(rows), self.before, np.ones(len(rows), dtype=np.bool_), back=1)
            self._say(np.array(rows), self.said, np.ones(len(rows), dtype=np.bool_))

    def adopt(self, other: Lane) -> None:
        """Go on with all that another lane of the same watches knows, as far as its symbols are also here: nothing is judged anew."""
        places = [(row, other.tape.row[symbol]) for row, symbol in enumerate(self.symbols) if symbol in other.tape.row]
        mine, theirs = (np.array(rows, dtype=np.int64) for rows in (zip(*places, strict=True) if places else ((), ())))
        self.tape.adopt(other.tape, mine, theirs)
        for ours, held in ((self.said, other.said), (self.before, other.before), (self.shown, other.shown)):
            ours[:, mine] = held[:, theirs]
        self.known[mine], self.away[mine] = other.known[theirs], other.away[theirs]
        for row, its in places:
            self.forming[row], self.last[row], self.told[row] = other.forming[its], other.last[its], other.told[its]
        self.changed = {row for row, its in places if its in other.changed}
        self.doubted, self.gone = other.doubted & set(self.symbols), other.gone & set(self.symbols)
        self.closed = other.closed

    def knows(self, symbol: str) -> bool:
        """Whether anything is known of it."""
        row = self.tape.row.get(symbol)
        return row is not None and bool(self.known[row])

    # ---- messages and the clock

    def hear(self, heard: Iterable[tuple[str, Bar]]) -> list[Signal]:
        """Candles as the exchange tells them, in its order; the signals of the bars that this closes, or tells otherwise."""
        closing, late = list[tuple[int, Bar]](), list[tuple[int, Bar]]()
        ended: dict[int, Bar] = {}  # the newest bar that closes here
        for symbol, bar in heard:
            row = self.tape.row.get(symbol)
            if row is None or not self.known[row]:  # of whose past nothing is known, nothing is said
                continue
            held = self.forming[row]
            if held is not None and bar.opened_at > held.opened_at:
                ended[row] = held.closed_at(bar.received_at)
                closing.append((row, ended[row]))
                self.forming[row] = held = None
            last = ended.get(row) or self._last_bar(row)
            if bar.opened_at <= last.opened_at:
                late.append((row, bar))
            elif held is None:
                closing += [(row, quiet) for quiet in self._quiet(last, bar.opened_at, bar.received_at)]
                self.forming[row] = bar
            elif bar.opened_at < held.opened_at:
                late.append((row, bar))
            elif bar.supersedes(held):
                self.forming[row] = bar
            self.changed.add(row)
        return [*self._close(closing), *self._mend(late)]

    def tick(self, now: float) -> list[Signal]:
        """The clock has come to `now`: bars whose end and settle time have passed are closed."""
        limit, closing = self.settled(now), list[tuple[int, Bar]]()
        for row, held in enumerate(self.forming):
            if self.away[row] or not self.known[row]:
                continue
            over = held is not None and held.opened_at <= limit
            if held is not None and over:
                closing.append((row, held.closed_at(now)))
                self.forming[row] = None
            if self.flat and (held is None or over):
                closing += [(row, quiet) for quiet in self._quiet(held or self._last_bar(row), self.frame.after(limit), now)]
        return self._close(closing)

    def settled(self, now: float) -> Instant:
        """The newest slot that is over for all."""
        return self.frame.newest_closed(int(now), SETTLE)

    def complete_to(self, row: int) -> float:
        """Up to which trade (s UTC) everything is known that counts for the bars of a symbol, as far as they have closed."""
        last = self.last[row]
        if last is None or last.at == FINAL:
            return self.frame.after(self._last_opened(row))
        return -math.inf if math.isnan(last.at) else last.at

    def hold(self, symbols: Iterable[str], away: bool) -> None:
        """These symbols are not heard from now on, or are again; all where none is named."""
        rows = [self.tape.row[symbol] for symbol in symbols if symbol in self.tape.row]
        self.away[rows] = away

    def drop(self, symbol: str) -> None:
        """The market is no more: nothing forms and nothing closes."""
        row = self.tape.row[symbol]
        self.known[row], self.away[row], self.forming[row] = False, False, None
        self.doubted.discard(symbol)
        self.gone.add(symbol)

    def told_by_rest(self, symbol: str, candles: Candles, now: float) -> list[Signal]:
        """Candles of one symbol, oldest first, from its last closed bar on and without a gap; the newest may still form."""
        row, limit, found = self.tape.row[symbol], self.settled(now), list[Signal]()
        for opened_at, candle in rows_of(candles):
            last, held = self._last_bar(row), self.forming[row]
            if opened_at <= last.opened_at:
                found += self._mend([(row, Bar(opened_at, candle, FINAL, now))])
            elif opened_at <= limit:
                if held is not None and held.opened_at <= opened_at:
                    self.forming[row] = None
                quiet = self._quiet(last, opened_at, now)
                found += self._close([*((row, each) for each in quiet), (row, Bar(opened_at, candle, FINAL, now))])
            else:
                found += self.hear([(symbol, Bar(opened_at, candle, received_at=now))])
        return found

    def follow(self, symbol: str, candles: Candles, until: Instant) -> None:
        """Closed candles of one symbol after its last bar; under `flat` also slots without a trade, up to `until`. Nothing is told."""
        row = self.tape.row[symbol]
        for opened_at, candle in rows_of(candles):
            bar = Bar(opened_at, candle, FINAL)
            self._close([*((row, quiet) for quiet in self._quiet(self._last_bar(row), opened_at, math.nan)), (row, bar)])
        self._close([(row, quiet) for quiet in self._quiet(self._last_bar(row), self.frame.after(until), math.nan)])

    @property
    def nbytes(self) -> int:
        """What it takes in RAM, as far as it grows with the symbols."""
        marks = (self.said, self.before, self.shown, self.watched, self.known, self.away)
        arrays = self.tape.nbytes + sum(mark.nbytes for mark in marks)
        return arrays + MARKET * len(self.symbols) + SIGNAL * sum(map(len, self.told))

    # ---- bars that form

    def peek(self) -> list[Signal]:
        """What the forming bars say that were heard since the last look: provisional, and nothing is kept but what was shown."""
        rows = np.array([row for row in sorted(self.changed) if self.forming[row] is not None], dtype=np.int64)
        self.changed.clear()
        if not len(rows):
            return []
        bars, now, found = self._bars(rows), self.clock(), list[Signal]()
        said, decided = self.provisional(rows)
        for i, j, new, old in _where((said != self.shown[:, rows]) & self.watched[:, rows], said, self.said[:, rows]):
            watch, symbol, bar = self.watches[i], self.symbols[rows[j]], bars[j]
            found.append(signal(watch, symbol, bar.opened_at, new, old, decided.by(i, j), bar.received_at, now, provisional=True))
        self.shown[:, rows] = said
        return found

    def provisional(self, rows: Rows) -> tuple[Verdicts, Decided]:
        """What every watch says of the bars that form at `rows` (each has one): (watches, rows), with what decided. Nothing is kept."""
        fresh = self.tape.peek(rows, np.array([bar.candle for bar in self._bars(rows)]).T)
        said, seen = np.empty((len(self.watches), len(rows)), dtype=np.int8), []
        for panel in self.panels:
            seen.append((panel, readings := panel.forming(rows, fresh)))
            said[panel.among] = panel.verdicts(readings, panel.past.count[rows], np.zeros(len(rows), dtype=np.int64))
        return said, Decided(seen)

    def _bars(self, rows: Rows) -> list[Bar]:
        return [bar for row in rows.tolist() if (bar := self.forming[row]) is not None]

    # ---- bars that closed

    def _close(self, closing: Sequence[tuple[int, Bar]]) -> list[Signal]:
        """Close bars in order, of each symbol one at a time, all symbols together."""
        return [each for batch in _rounds(closing) for each in self._changes(*self._close_once(batch))]

    def _close_once(self, batch: Sequence[tuple[int, Bar]], revised: bool = False) -> tuple[Rows, list[Bar], Decided]:
        """Close one bar of each of these symbols, or what is told otherwise of their last one; with what decided there."""
        batch = sorted(batch, key=lambda each: each[0])
        rows = np.array([row for row, _ in batch], dtype=np.int64)
        bars = [bar for _, bar in batch]
        opened_at = np.array([bar.opened_at for bar in bars], dtype=np.int64)
        self.tape.close(rows, opened_at, np.array([bar.candle for bar in bars]).T, np.array([bar.traded for bar in bars]))
        self.closed += len(batch)
        for row, bar in batch:
            self.last[row] = bar
            if not revised:
                self.told[row] = {}
        if not revised:
            self.before[:, rows] = self.said[:, rows]
        return rows, bars, self._say(rows, self.said, np.array([bar.traded for bar in bars]))

    def _say(self, rows: Rows, said: Verdicts, traded: npt.NDArray[np.bool_], back: int = 0) -> Decided:
        """Judge the last bar of these symbols, or (`back` 1) the one before, into `said`; what decides on candles only where one came."""
        seen, age = [], self.tape.age(rows, back)
        for panel in self.panels:
            seen.append((panel, readings := panel.readings(rows, back)))
            found, places = panel.verdicts(readings, panel.past.count[rows] - 1 - back, age), np.ix_(panel.among, rows)
            said[places] = np.where(self.watched[places] & (traded | panel.always), found, said[places])
        self.shown[:, rows] = self.said[:, rows]
        return Decided(seen)

    def _changes(self, rows: Rows, bars: Sequence[Bar], decided: Decided) -> Iterator[Signal]:
        """The answers of these bars that are not those of the bars before."""
        now, said, before, those = self.clock(), self.said[:, rows], self.before[:, rows], rows.tolist()
        for i, j, new, old in _where(said != before, said, before):
            row, bar = those[j], bars[j]
            found = signal(self.watches[i], self.symbols[row], bar.opened_at, new, old, decided.by(i, j), bar.received_at, now)
            self.told[row][i] = found
            yield found

    def decided(self, rows: Rows) -> Decided:
        """What decides at the last bar of each of these symbols."""
        return Decided((panel, panel.readings(rows)) for panel in self.panels)

    # ---- bars that were told otherwise after they closed

    def _mend(self, late: Iterable[tuple[int, Bar]]) -> list[Signal]:
        """Close the last bar of a symbol again where it has changed; a bar before that one casts doubt on the symbol."""
        found: list[Signal] = []
        for row, bar in late:
            held = self.last[row]
            if bar.opened_at == self._last_opened(row) and held is not None and held.traded:
                if bar.candle != held.candle and bar.supersedes(held):
                    found += self._again(row, bar)
            elif not self._as_held(row, bar):
                self.doubted.add(self.symbols[row])
        return found

    def _as_held(self, row: int, bar: Bar) -> bool:
        """Whether this is what is held of that bar, as far as it is held at all: an old message repeated."""
        past = self.tape.trades
        at = np.flatnonzero(past.opened_at[:, row] == bar.opened_at)
        if not len(at):
            return bool(bar.opened_at < past.opened_at[0, row])
        held = {name: past.values[i, at[0], row] for name, i in past.names.items() if name in PRICES_AND_AMOUNTS}
        told = dict(zip(PRICES_AND_AMOUNTS, bar.candle, strict=True))
        return all(told[name] == value for name, value in held.items()) or (bar.at != FINAL and told["volume"] <= held.get("volume", -1))

    def _again(self, row: int, bar: Bar) -> list[Signal]:
        """The last bar of a symbol, once more."""
        self.tape.undo(row)
        *_, decided = self._close_once([(row, bar)], revised=True)
        now, told, found = self.clock(), self.told[row], []
        for i, (watch, said, before) in enumerate(zip(self.watches, self.said[:, row].tolist(), self.before[:, row].tolist(), strict=True)):
            held = told.get(i)
            if held is None and said == before:
                continue
            revision, values = 1 if held is None else held.revision + 1, decided.by(i, 0)
            new = signal(watch, self.symbols[row], bar.opened_at, said, before, values, bar.received_at, now, revision=revision)
            if held is None or (held.answer, held.values) != (new.answer, new.values):
                told[i] = new
                found.append(new)
        return found

    # ---- slots without a trade, where they are bars

    def _quiet(self, last: Bar, end: Instant, received_at: float) -> Iterator[Bar]:
        """Under `flat` the slots after `last` and before `end`, in which nothing was traded."""
        close, at = last.candle[CLOSE], last.opened_at
        while self.flat and at != NEVER and (at := self.frame.after(at)) < end:
            yield Bar(at, (close, close, close, close, 0.0, 0.0), received_at=received_at, traded=False)

    def _last_bar(self, row: int) -> Bar:
        """The last closed bar, as far as slots without a trade go on from it; one that opened NEVER where there is none."""
        close = float(self.tape.bars.values[self.tape.bars.names["close"], -1, row])
        return Bar(self._last_opened(row), (close, close, close, close, 0.0, 0.0))

    def _last_opened(self, row: int) -> Instant:
        return int(self.tape.bars.opened_at[-1, row])

    def _past(self, watch: Watch) -> Past:
        """The bars that a watch decides on."""
        return self.tape.trades if watch.trades else self.tape.bars


def rows_of(candles: Candles) -> Iterator[tuple[Instant, tuple[float, ...]]]:
    """The opening of each candle and its numbers, as PRICES_AND_AMOUNTS."""
    return zip(candles.opened_at.tolist(), zip(*(getattr(candles, name).tolist() for name in PRICES_AND_AMOUNTS), strict=True), strict=True)


def candles_of(bars: Sequence[Bar]) -> Candles:
    """The other way round."""
    columns = np.array([bar.candle for bar in bars]).reshape(len(bars), len(PRICES_AND_AMOUNTS)).T
    return Candles(np.array([bar.opened_at for bar in bars], dtype=np.int64), *columns)


def _where(changed: npt.NDArray[np.bool_], new: Verdicts, old: Verdicts) -> Iterator[tuple[int, int, int, int]]:
    """Watch, place, and both answers, wherever an answer has changed."""
    at, places = np.nonzero(changed)
    return zip(at.tolist(), places.tolist(), new[changed].tolist(), old[changed].tolist(), strict=True)


def _rounds(closing: Sequence[tuple[int, Bar]]) -> Iterator[list[tuple[int, Bar]]]:
    """Each symbol's first bar, then each one's second, and so on."""
    rounds: list[list[tuple[int, Bar]]] = []
    turn: dict[int, int] = {}
    for row, bar in closing:
        nth = turn[row] = turn.get(row, -1) + 1
        if nth == len(rounds):
            rounds.append([])
        rounds[nth].append((row, bar))
    return iter(rounds)
