"""The state in RAM of one timeframe: of every symbol the last bars that the rules reach back to, and the memory of every needed indicator.

A closed bar replaces the memories (`close`); a forming one is calculated on what a closed one would be and thrown away (`peek`). The
memories before the last closed bar are kept, so that a bar which changes late is taken back and closed again (`undo`).
Arrays are (depth, symbols) by column, newest bar last; a place without a bar is NaN, its instant NEVER.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mdms_pipeline.calculate.indicator import Indicator
from mdms_pipeline.live.step import step
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Floats, Instant, Instants, Timeframe

Rows = npt.NDArray[np.int64]  # places of symbols
NEVER = np.iinfo(np.int64).min  # no bar
FAR = 10**6  # slots since a trade, where it lies before all that is held


@dataclass(frozen=True)
class Loaded:
    """What one symbol begins with: its last bars, and the memories after the last of them."""

    symbol: str
    opened_at: Instants  # of the last bars, oldest first
    columns: Mapping[str, Floats]  # candle columns and what the rules read, over those bars
    memories: Mapping[Indicator, Floats]
    bars: int  # that there are from the symbol's first on
    traded_at: Instant = NEVER  # opening of its last candle
    trades: int = 0  # candles from the first on (`bars` too, unless slots without a trade are bars)


class Past:
    """The last bars of every symbol."""

    def __init__(self, names: Sequence[str], depth: int, symbols: int) -> None:
        self.names = {name: i for i, name in enumerate(names)}
        self.values = np.full((len(names), depth + 1, symbols), np.nan)  # one more than is read: for taking the last one back
        self.opened_at = np.full((depth + 1, symbols), NEVER, dtype=np.int64)
        self.count = np.zeros(symbols, dtype=np.int64)  # bars since each symbol's first

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes + self.opened_at.nbytes + self.count.nbytes)

    def put(self, row: int, opened_at: Instants, columns: Mapping[str, Floats], count: int) -> None:
        """Begin a symbol anew with these bars."""
        kept = min(len(opened_at), len(self.opened_at))
        self.opened_at[:, row], self.values[:, :, row], self.count[row] = NEVER, np.nan, count
        if kept:
            self.opened_at[-kept:, row] = opened_at[-kept:]
            for name, i in self.names.items():
                self.values[i, -kept:, row] = columns[name][-kept:]

    def push(self, rows: Rows, opened_at: Instants, known: Mapping[str, Floats]) -> None:
        """One more bar of each of these symbols."""
        self.opened_at[:-1, rows], self.opened_at[-1, rows] = self.opened_at[1:, rows], opened_at
        fresh = np.array([known[name] for name in self.names]).reshape(len(self.names), len(rows))
        self.values[:, :-1, rows] = self.values[:, 1:, rows]
        self.values[:, -1, rows] = fresh
        self.count[rows] += 1

    def pop(self, row: int) -> None:
        """Take the last bar of a symbol back: the oldest that was held is unknown then."""
        self.opened_at[1:, row], self.opened_at[0, row] = self.opened_at[:-1, row].copy(), NEVER
        self.values[:, 1:, row], self.values[:, 0, row] = self.values[:, :-1, row].copy(), np.nan
        self.count[row] -= 1

    def adopt(self, other: Past, mine: Rows, theirs: Rows) -> None:
        """Hold at the places `mine` what another, of the same names and depth, holds at `theirs`."""
        self.values[:, :, mine], self.opened_at[:, mine] = other.values[:, :, theirs], other.opened_at[:, theirs]
        self.count[mine] = other.count[theirs]

    def columns(self, rows: Rows) -> dict[str, Floats]:
        """The last bars of these symbols, as many as rules read: (depth, symbols) by name."""
        return {name: self.values[i, 1:, rows].T for name, i in self.names.items()}

    def columns_with(self, rows: Rows, known: Mapping[str, Floats]) -> dict[str, Floats]:
        """The same with one more bar, that is not kept."""
        return {name: np.vstack([self.values[i, 2:, rows].T, known[name]]) for name, i in self.names.items()}


class Tape:
    """Every symbol of one timeframe, one behind the other."""

    def __init__(
        self, frame: Timeframe, symbols: Sequence[str], needed: Sequence[Indicator], columns: Sequence[str], lookback: int, flat: bool
    ) -> None:
        """`needed` is upstream first; rules read `columns`, as far back as `lookback`; `flat`: slots without a trade are bars."""
        self.frame, self.symbols, self.needed, self.flat = frame, tuple(symbols), tuple(needed), flat
        self.row = {symbol: i for i, symbol in enumerate(self.symbols)}
        names = tuple(dict.fromkeys((*columns, "close")))
        self.bars = Past(names, lookback + 1, len(self.symbols))
        self.trades = Past(names, lookback + 1, len(self.symbols)) if flat else self.bars
        self.traded_at = np.full(len(self.symbols), NEVER, dtype=np.int64)
        self.memory = {each: self._before_first(each) for each in needed}
        self.undo_memory = {each: memory.copy() for each, memory in self.memory.items()}

    def _before_first(self, indicator: Indicator) -> Floats:
        return np.broadcast_to(indicator.memory, (len(self.symbols), *indicator.memory_shape)).copy()

    @property
    def last(self) -> Instants:
        """The opening of each symbol's last closed bar, NEVER where there is none."""
        last: Instants = self.bars.opened_at[-1]
        return last

    @property
    def nbytes(self) -> int:
        """What it takes in RAM."""
        pasts = (self.bars, self.trades) if self.flat else (self.bars,)
        memories = (*self.memory.values(), *self.undo_memory.values())
        return int(self.traded_at.nbytes) + sum(int(each.nbytes) for each in (*pasts, *memories))

    def load(self, given: Loaded) -> None:
        """Begin a symbol with what is known of it."""
        row = self.row[given.symbol]
        self.bars.put(row, given.opened_at, given.columns, given.bars)
        if self.flat:
            traded = given.columns["volume"] > 0
            self.trades.put(row, given.opened_at[traded], {name: given.columns[name][traded] for name in self.trades.names}, given.trades)
        self.traded_at[row] = given.traded_at
        for indicator in self.needed:
            self.memory[indicator][row] = given.memories[indicator]
            self.undo_memory[indicator][row] = np.nan

    def adopt(self, other: Tape, mine: Rows, theirs: Rows) -> None:
        """Hold of the symbols at `mine` what another tape of the same rules holds of those at `theirs`."""
        self.bars.adopt(other.bars, mine, theirs)
        if self.flat:
            self.trades.adopt(other.trades, mine, theirs)
        self.traded_at[mine] = other.traded_at[theirs]
        for indicator in self.needed:
            self.memory[indicator][mine] = other.memory[indicator][theirs]
            self.undo_memory[indicator][mine] = other.undo_memory[indicator][theirs]

    def close(self, rows: Rows, opened_at: Instants, candles: Floats, traded: npt.NDArray[np.bool_]) -> None:
        """One closed bar of each of these symbols: `candles` is (columns, symbols), `traded` is False for a slot without a trade."""
        known = self._stepped(rows, candles, keep=True)
        self.bars.push(rows, opened_at, known)
        if self.flat and traded.any():
            self.trades.push(rows[traded], opened_at[traded], {name: known[name][traded] for name in self.trades.names})
        self.traded_at[rows] = np.where(traded, opened_at, self.traded_at[rows])

    def peek(self, rows: Rows, candles: Floats) -> dict[str, Floats]:
        """The columns of a bar that still forms, (symbols,) by name; nothing is kept."""
        return self._stepped(rows, candles, keep=False)

    def undo(self, row: int) -> None:
        """Take a symbol's last closed bar, a candle, back. Once: the memories before the bar before it are gone."""
        for indicator in self.needed:
            self.memory[indicator][row] = self.undo_memory[indicator][row]
        self.bars.pop(row)
        if self.flat:
            self.trades.pop(row)
        self.traded_at[row] = self.trades.opened_at[-1, row]

    def age(self, rows: Rows, back: int = 0) -> Instants:
        """Slots since the last candle of each symbol, at its last bar or (`back` 1) at the one before; FAR where it is not held."""
        if not self.flat:
            return np.zeros(len(rows), dtype=np.int64)
        volume = self.bars.values[self.bars.names["volume"], :, rows].T
        traded = np.flip(volume[: len(volume) - back] > 0, axis=0)
        return np.where(traded.any(axis=0), traded.argmax(axis=0), FAR)

    def _stepped(self, rows: Rows, candles: Floats, keep: bool) -> dict[str, Floats]:
        whole = len(rows) == len(self.symbols) and bool((np.diff(rows) > 0).all())  # then nothing is copied to and fro
        before = self.memory if whole else {indicator: self.memory[indicator][rows] for indicator in self.needed}
        previous = self.bars.values[self.bars.names["close"], -1, rows]
        after, known = step(self.needed, before, dict(zip(PRICES_AND_AMOUNTS, candles, strict=True)), previous)
        if keep and whole:
            self.undo_memory, self.memory = self.memory, after
        elif keep:
            for indicator in self.needed:
                self.undo_memory[indicator][rows] = before[indicator]
                self.memory[indicator][rows] = after[indicator]
        return known
