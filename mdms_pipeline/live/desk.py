"""What a rule says of one symbol now, asked for without a process that listens.

By memory in RAM where it was asked for lately; else by the short way, the stored memories of the indicators that the rule reads; else by
full calculation. The three agree to the bit (mdms_pipeline_tests/live/test_desk.py). What is kept in RAM is bounded, and the symbol that
was asked for longest ago goes first.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from mdms_pipeline.live.lane import Lane
from mdms_pipeline.live.load import load
from mdms_pipeline.live.watch import Watch
from mdms_pipeline.market import PRICES_AND_AMOUNTS, Candles, Instant, timeframe
from mdms_pipeline.rules import known
from mdms_pipeline.store import Warehouse
from mdms_pipeline.store.candles import Standing, standings
from mdms_pipeline.store.schema import SKIP
from mdms_pipeline.store.series import EVER, read_spans

IN_RAM = "memory in RAM"  # a way, besides those of load.py
SHARE = 0.2  # of the memory allowed, for what was asked for; the rest is DuckDB's, the chunks' and the interpreter's
OVERHEAD = 20_000  # bytes of one entry besides its arrays
More = Callable[[str, str, Instant], Candles]  # (symbol, timeframe, last known bar) -> what the exchange tells from there on


_State = tuple[tuple[int, int], ...]  # of each of the warehouse's files: when it was written, and its size


class NothingStored(ValueError):
    """There is no candle of that symbol in that timeframe."""


@dataclass(frozen=True)
class Said:
    """What one rule says at a bar."""

    rule: str
    answer: bool | None
    before: bool | None  # at the bar before; of a bar that forms: at the last closed one
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Answer:
    """What a strategy or a screen says of one symbol."""

    symbol: str
    name: str
    timeframe: str
    opened_at: Instant  # of the last closed bar that is known
    said: tuple[Said, ...]
    forming: tuple[Said, ...]  # provisional: of the bar that forms, where the exchange was asked for it
    behind: int  # slots that have closed since that bar, and of which nothing is known; a market without a trade has none to show
    way: str
    seconds: float


@dataclass
class _Kept:
    lane: Lane
    revision: int
    covered: Instant  # candles were asked for up to there
    seen: _State  # the warehouse's file, as it was then


class Desk:
    """Answers from one warehouse. Safe to use from several threads."""

    def __init__(self, warehouse: Warehouse, clock: Callable[[], float], room: int | None = None) -> None:
        """`room` is what may be kept in RAM, bytes; by default a share of the memory that the warehouse is allowed."""
        self.warehouse, self.clock = warehouse, clock
        self.room = int(warehouse.memory_mb * 2**20 * SHARE) if room is None else room
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], _Kept] = OrderedDict()
        self._guard = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes kept in RAM."""
        return sum(kept.lane.nbytes + OVERHEAD for kept in self._kept.values())

    def forget(self) -> None:
        self._kept.clear()

    def ask(self, watches: Sequence[Watch], symbol: str, more: More | None = None, short: bool = True) -> Answer:
        """What these watches of one strategy say of `symbol`. Without `short` everything is calculated; `more` asks the exchange for what
        is not stored yet. Raises NothingStored."""
        began = time.perf_counter()
        with self._guard:
            lane, way, covered = self._lane(watches, symbol, short)
            behind = self._behind(lane, covered)
            forming: tuple[Said, ...] = ()
            if more is not None:
                now = self.clock()
                lane.told_by_rest(symbol, more(symbol, lane.frame.name, int(lane.tape.last[0])), now)
                behind, forming = 0, tuple(forming_of(lane, 0, range(len(watches))))
            said = tuple(said_of(lane, 0, range(len(watches))))
            self._keep(watches, symbol, lane)
            if lane.doubted:  # the exchange tells otherwise what is stored: the next one asks the warehouse again
                self._kept.pop(_key(watches, symbol), None)
            last = int(lane.tape.last[0])
        return Answer(symbol, watches[0].name, lane.frame.name, last, said, forming, behind, way, time.perf_counter() - began)

    def _behind(self, lane: Lane, covered: Instant) -> int:
        """Slots that have closed since all that is known of the symbol."""
        known_to = max(covered, lane.frame.after(int(lane.tape.last[0])))
        return max(0, lane.frame.slots(known_to, lane.frame.after(lane.settled(self.clock()))))

    def _lane(self, watches: Sequence[Watch], symbol: str, short: bool) -> tuple[Lane, str, Instant]:
        """The symbol's state at its newest stored bar or later, by which way it came, and up to where candles were asked for."""
        frame, kept = watches[0].timeframe, self._kept.get(_key(watches, symbol)) if short else None
        state = self._state()  # before it is read: what is written meanwhile is seen the next time
        if kept is not None and kept.seen == state:
            return kept.lane, IN_RAM, kept.covered
        with self.warehouse.read() as connection:
            standing = standings(connection, [(symbol, frame)]).get((symbol, frame))
            if standing is None or standing.last_bar is None:
                raise NothingStored(
                    f"no {frame} candle of {symbol} is stored: `mdms run` collects what MDMS_SYMBOLS and MDMS_TIMEFRAMES name"
                )
            covered = standing.covered_to or timeframe(frame).after(standing.last_bar)
            if kept is not None and kept.revision == standing.revision:
                _follow(connection, kept.lane, symbol, standing.last_bar)
                kept.covered, kept.seen = covered, state
                return kept.lane, IN_RAM, covered
            found = next(load(connection, watches, [symbol], short=short))
        lane = Lane(watches, [symbol], _flat(standing), self.clock)
        lane.load([found.loaded])
        self._kept[_key(watches, symbol)] = _Kept(lane, standing.revision, covered, state)
        return lane, found.way, covered

    def _state(self) -> _State:
        """Whether anything was written since: asked of the file system, which takes no time, and not of the warehouse."""
        files = (self.warehouse.path, self.warehouse.path.with_name(f"{self.warehouse.path.name}.wal"))
        found = [file.stat() for file in files if file.exists()]
        return tuple((one.st_mtime_ns, one.st_size) for one in found)

    def _keep(self, watches: Sequence[Watch], symbol: str, lane: Lane) -> None:
        """Mark it as asked for just now; drop what was asked for longest ago while there is too much."""
        self._kept.move_to_end(_key(watches, symbol))
        while self._kept and self.held > self.room:
            self._kept.popitem(last=False)


def _follow(connection: duckdb.DuckDBPyConnection, lane: Lane, symbol: str, until: Instant) -> None:
    """Close what was stored since its last bar."""
    last = int(lane.tape.last[0])
    if last < until:
        new = read_spans(connection, "candles", PRICES_AND_AMOUNTS, lane.frame.name, {symbol: (last + 1, EVER[1])})[symbol]
        lane.follow(symbol, new.candles, until)


def _key(watches: Sequence[Watch], symbol: str) -> tuple[str, tuple[str, ...]]:
    return symbol, tuple(watch.key for watch in watches)


def _flat(standing: Standing) -> bool:
    return standing.no_trade != SKIP


def said_of(lane: Lane, row: int, among: Sequence[int]) -> Iterator[Said]:
    """What these watches of a lane say at the last closed bar of one symbol."""
    decided = lane.decided(np.array([row]))
    for i in among:
        yield Said(lane.watches[i].rule, known(int(lane.said[i, row])), known(int(lane.before[i, row])), decided.by(i, 0))


def forming_of(lane: Lane, row: int, among: Sequence[int]) -> Iterator[Said]:
    """What they say at the bar that forms; nothing where none does, or they do not take the symbol."""
    if lane.forming[row] is None:
        return
    said, decided = lane.provisional(np.array([row]))
    for i in among:
        if lane.watched[i, row]:
            yield Said(lane.watches[i].rule, known(int(said[i, 0])), known(int(lane.said[i, row])), decided.by(i, 0))
