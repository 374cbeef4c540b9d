"""Every watched timeframe behind one door: messages, the clock and REST's candles in, signals out. Knows no network and no store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mdms_pipeline.live.coarse import COARSE, PART, Parts
from mdms_pipeline.live.lane import Bar, Clock, Lane, rows_of
from mdms_pipeline.live.signal import Signal
from mdms_pipeline.live.watch import Watch, grouped
from mdms_pipeline.market import TIMEFRAMES, Candles

Message = tuple[str, str, Bar]  # timeframe, symbol, the candle


class Engine:
    """The lanes of all timeframes."""

    def __init__(self, watches: Sequence[Watch], symbols: Sequence[str], flat: bool, clock: Clock) -> None:
        """`symbols` are those that may be watched; a lane holds those that any of its watches takes."""
        self.watches, self.flat, self.clock = watches, flat, clock
        self.lanes = {
            frame: Lane(mine, [symbol for symbol in symbols if any(watch.takes(symbol) for watch in mine)], flat, clock)
            for frame, mine in grouped(watches).items()
        }
        self.parts = Parts(lane.frame for name, lane in self.lanes.items() if name in COARSE)

    def of(self, symbols: Sequence[str]) -> Engine:
        """The same rules on these symbols: with all that is known of those that were here before, of the others nothing."""
        new = Engine(self.watches, symbols, self.flat, self.clock)
        for name, lane in new.lanes.items():
            lane.adopt(self.lanes[name])
        new.parts = self.parts
        new.parts.keep(symbols)
        return new

    @property
    def wanted(self) -> dict[str, list[str]]:
        """What the socket is asked for: timeframe -> symbols."""
        asked: dict[str, dict[str, None]] = {}
        for name, lane in self.lanes.items():
            asked.setdefault(PART.name if name in COARSE else name, {}).update(dict.fromkeys(lane.symbols))
        return {frame: list(asked[frame]) for frame in TIMEFRAMES if asked.get(frame)}

    @property
    def fine(self) -> Mapping[str, Lane]:
        """The lanes whose bars the socket tells; those of the others are told by REST when they have closed."""
        return {name: lane for name, lane in self.lanes.items() if name not in COARSE}

    @property
    def coarse(self) -> Mapping[str, Lane]:
        return {name: lane for name, lane in self.lanes.items() if name in COARSE}

    @property
    def nbytes(self) -> int:
        """What it takes in RAM."""
        return self.parts.nbytes + sum(lane.nbytes for lane in self.lanes.values())

    def hear(self, messages: Sequence[Message]) -> list[Signal]:
        """Candles in the order in which they came."""
        found = []
        for name, lane in self.fine.items():
            if mine := [(symbol, bar) for frame, symbol, bar in messages if frame == name]:
                found += lane.hear(mine)
        if self.parts.frames:
            for frame, symbol, bar in messages:
                if frame == PART.name:
                    self.put_part(symbol, bar)
        return found

    def put_part(self, symbol: str, part: Bar) -> None:
        """A candle of four hours: the longer bars that form have it too."""
        self.parts.put(symbol, part)
        for lane in self.coarse.values():
            row = lane.tape.row.get(symbol)
            at = lane.frame.floor(part.opened_at)
            if row is not None and at > lane.tape.last[row]:
                lane.forming[row] = self.parts.bar(symbol, lane.frame, at)
                lane.changed.add(row)

    def tick(self, now: float) -> list[Signal]:
        """The exchange's clock has come to `now`."""
        return [signal for lane in self.fine.values() for signal in lane.tick(now)]

    def peek(self) -> list[Signal]:
        """What the bars that form say: provisional."""
        return [signal for lane in self.lanes.values() for signal in lane.peek()]

    def told(self, frame: str, symbol: str, candles: Candles, asked_at: float) -> list[Signal]:
        """Candles that REST tells, from the symbol's last closed bar on."""
        lane = self.lanes[frame]
        return lane.told_by_rest(symbol, candles, asked_at) if symbol in lane.tape.row else []


def bars_of(candles: Candles, received_at: float) -> Iterable[Bar]:
    """Candles of REST as bars that may still form."""
    return (Bar(opened_at, candle, received_at=received_at) for opened_at, candle in rows_of(candles))
