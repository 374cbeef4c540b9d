"""The exchange without its wire: candles and tickers of every market at the clock's instant, and the knobs for tests.

`Sandbox` holds no prices. It asks `model.aggregate` for whole numbers and turns them into floats once, at the end (`quotient`).
Days are added up once and kept (`Days`), because day, week, month and year candles read so many minutes; the extremes of 52 weeks
need only few days (`farthest`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import httpx
import numpy as np

from mdms_pipeline.market import DAY, TIMEFRAMES, Candles, Floats, Instant, Timeframe
from mdms_pipeline.sandbox import world
from mdms_pipeline.sandbox.limits import PER_SECOND, Limits, remaining_req
from mdms_pipeline.sandbox.messages import SocketFaults
from mdms_pipeline.sandbox.model import (
    CLOSE,
    HIGH,
    LAST_MS,
    LOW,
    OPEN,
    OPENED,
    PRICE_UNITS,
    VALUE,
    VOLUME,
    Ints,
    Nature,
    aggregate,
    reach,
    regroup,
)
from mdms_pipeline.sandbox.world import Market

SECONDS_KEPT = 90 * DAY  # s; candles of one second reach back three months, Upbit docs
EXTREME_DAYS = 364  # 52 weeks
BEAT = 1.0  # s; a candle is told at most once a second, Upbit docs
IDLE = 120.0  # s without a frame either way after which a WebSocket connection is closed; Upbit docs
LOG_SIZE = 100_000  # requests kept in Sandbox.log
EXACT = 2**53  # whole numbers below are floats without rounding


@dataclass(frozen=True)
class Year(Timeframe):
    """Candles that open on the 1st of January, UTC. Upbit has them, the project does not."""

    def floor(self, at: Instant) -> Instant:
        """The opening instant of the year that holds `at`."""
        return self.after(at, 0)

    def after(self, opened_at: Instant, slots: int = 1) -> Instant:
        """The opening instant `slots` years after the year of `opened_at`."""
        return int(datetime(datetime.fromtimestamp(opened_at, UTC).year + slots, 1, 1, tzinfo=UTC).timestamp())


SECOND = Timeframe("1s", 1)
YEAR = Year("1y", None)


class UnknownMarket(LookupError):
    """The market is not listed now: never was, not yet, or no more. The wire's 404."""


class Logged(NamedTuple):
    """One request that was answered; status 0 is a connection that was cut."""

    at: float  # s UTC, the exchange's clock
    path: str
    query: dict[str, str]
    status: int


@dataclass(frozen=True)
class Fault:
    """What a request gets instead of its answer, after `delay` seconds. With neither body nor error: only the delay, then the answer.

    With `error`, the body is sent in part and then the error raised: an in-process client sees exactly that exception, a client
    behind a socket sees the connection cut. Statuses below 500 carry Remaining-Req, as the exchange's own answers do.
    """

    status: int = 200
    body: str = ""
    content_type: str = "application/json"
    delay: float = 0.0  # s
    error: type[httpx.TransportError] | None = None

    @classmethod
    def page(cls, status: int = 503) -> Fault:
        """Maintenance: an HTML page."""
        return cls(status, "<html><body><h1>Service Temporarily Unavailable</h1></body></html>", "text/html")

    @classmethod
    def shape(cls, body: str = '{"data":null}') -> Fault:
        """Status 200 and JSON, but not what was asked for."""
        return cls(200, body)

    @classmethod
    def cut(cls) -> Fault:
        """The connection ends in the middle of the body."""
        return cls(200, '[{"market":"KRW-', error=httpx.RemoteProtocolError)

    @classmethod
    def timeout(cls, delay: float = 0.0) -> Fault:
        """No answer. Behind a socket choose a delay above the client's patience."""
        return cls(delay=delay, error=httpx.ReadTimeout)


Faults = Callable[[str, dict[str, str]], Fault | None]


@dataclass(frozen=True)
class Ticker:
    """A market's present: today is the UTC day. Prices in the quote currency, times in ms or as a day's opening instant."""

    market: str
    traded_ms: int
    open: float
    high: float
    low: float
    close: float
    previous_close: float
    last_volume: float
    value: float
    value_24h: float
    volume: float
    volume_24h: float
    high_52w: float
    high_52w_day: Instant
    low_52w: float
    low_52w_day: Instant


def quotient(whole: Ints, factor: int, divisor: float) -> Floats:
    """whole * factor / divisor, each correctly rounded; factor and divisor are whole."""
    if whole.size == 0 or int(whole.max()) * factor < EXACT:
        return whole * factor / divisor
    return np.array([n * factor / int(divisor) for n in whole.tolist()])


def edges(frame: Timeframe, start: Instant, end: Instant) -> Ints:
    """The boundaries of the slots between `start` and `end`, both of them boundaries."""
    if frame.seconds is not None:
        fixed: Ints = np.arange(start, end + 1, frame.seconds, dtype=np.int64)
        return fixed
    bounds = [start]
    while bounds[-1] < end:
        bounds.append(frame.after(bounds[-1]))
    return np.array(bounds, np.int64)


def grouped(days: Ints, bounds: Ints) -> Ints:
    """Rows of days added up into the slots between `bounds`; only slots with trades."""
    days = days[days[:, VOLUME] > 0]
    slot = np.searchsorted(bounds, days[:, OPENED], "right") - 1
    starts = np.flatnonzero(np.diff(slot, prepend=-1))
    ends = np.append(starts[1:], len(days)) - 1
    if not len(days):
        return days
    rows: Ints = days[ends]
    rows[:, OPENED], rows[:, OPEN] = bounds[slot[starts]], days[starts, OPEN]
    rows[:, HIGH] = np.maximum.reduceat(days[:, HIGH], starts)
    rows[:, LOW] = np.minimum.reduceat(days[:, LOW], starts)
    rows[:, VOLUME] = np.add.reduceat(days[:, VOLUME], starts)
    rows[:, VALUE] = np.add.reduceat(days[:, VALUE], starts)
    return rows


def farthest(nature: Nature, opened: Ints, bounds: Floats, column: int, sign: int) -> Ints | None:
    """Of the days `opened`, the row with the highest (sign 1) or lowest (sign -1) `column`; None where nobody traded.

    Days are added up in the order of what they could reach, until no other can reach as far: about 10 days of a year.
    """
    best: Ints | None = None
    for k in np.argsort(-sign * bounds, kind="stable").tolist():
        if best is not None and sign * bounds[k] < sign * best[column]:
            break
        row = aggregate(nature, np.array([opened[k], opened[k] + DAY]), int(opened[k] + DAY) * 1000)[0]
        if row[VOLUME] and (best is None or (sign * row[column], -row[OPENED]) > (sign * best[column], -best[OPENED])):
            best = row
    return best


@lru_cache(maxsize=1_024)
def extremes(nature: Nature, start: Instant, end: Instant) -> tuple[Ints | None, Ints | None]:
    """The rows of the days with the highest and the lowest price of the closed days in [start, end), both midnights."""
    opened = np.arange(start, end, DAY, dtype=np.int64)
    if not len(opened):
        return None, None
    low, high = reach(nature, start // DAY, len(opened))
    return farthest(nature, opened, high, HIGH, 1), farthest(nature, opened, low, LOW, -1)


class Days:
    """Whole days, added up from their minutes once: chunks of CHUNK days, the KEPT least forgotten ones."""

    CHUNK, KEPT = 32, 8_192  # days; chunks of 2 kB: 16 MB

    def __init__(self) -> None:
        self._chunks: OrderedDict[tuple[Nature, int], Ints] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, nature: Nature, start: Instant, end: Instant) -> Ints:
        """One row per day opened in [start, end), both midnights; a day without a trade has VOLUME 0."""
        if end <= start:
            return np.empty((0, 8), np.int64)
        span = self.CHUNK * DAY
        chunks = [self._chunk(nature, k) for k in range(start // span, (end - 1) // span + 1)]
        skip = (start - start // span * span) // DAY
        rows: Ints = np.concatenate(chunks)[skip : skip + (end - start) // DAY]
        return rows

    def _chunk(self, nature: Nature, k: int) -> Ints:
        with self._lock:
            known = self._chunks.get((nature, k))
            if known is not None:
                self._chunks.move_to_end((nature, k))
                return known
        bounds = np.arange(k * self.CHUNK, (k + 1) * self.CHUNK + 1, dtype=np.int64) * DAY
        rows = aggregate(nature, bounds, int(bounds[-1]) * 1000)
        with self._lock:
            self._chunks[nature, k] = rows
            if len(self._chunks) > self.KEPT:
                self._chunks.popitem(last=False)
        return rows


class Sandbox:
    """An exchange whose prices are a pure function of (seed, market, time).

    Answers
        markets(), candles(market, timeframe, end, count), ticker(market)

    Knobs for tests, all at once in force
        limit(group, per_second)      None lifts it; groups: market, candles, ticker, orderbook, websocket-connect, websocket-message
        header = f(group, left)       the value of Remaining-Req; None omits the header
        faults = f(path, query)       a Fault, or None for the true answer
        listing(code, price=...)      a new market, now or at an instant
        delist(code, at)              from that instant on the row is gone and everything else a 404
        rename(old, new)              the new code carries the whole history
        redenominate(code, factor)    prices times factor, volumes divided by it, the whole history
        warn(code)                    market_event.warning
        correct(code, timeframe, opened_at, close=...)   one candle of one timeframe reads differently from now on
        log                           every request answered so far, the newest LOG_SIZE
        socket_faults = f(told)       what a WebSocket connection does at one beat instead of telling the truth: a SocketFault, or None
        beat, idle                    s of ours between two looks of a WebSocket connection at the clock, and until one without traffic ends
    """

    def __init__(self, seed: int = 7, clock: Callable[[], float] = time.time, limits: bool = False, faults: Faults | None = None) -> None:
        self.seed = seed
        self.clock = clock
        self.faults = faults
        self.header: Callable[[str, int], str | None] = remaining_req
        self.limits = Limits({group: per_second if limits else None for group, per_second in PER_SECOND.items()})
        self.log: list[Logged] = []
        self.socket_faults: SocketFaults | None = None
        self.beat = BEAT
        self.idle = IDLE
        self.corrected: list[tuple[str, str, Instant]] = []  # (market's origin, timeframe, opened_at) of every correction, in order
        self._markets = world.first_markets()
        self._natures: dict[str, Nature] = {}
        self._corrections: dict[tuple[str, str, Instant], dict[str, float]] = {}
        self._days = Days()

    # Answers

    def ever(self, code: str) -> Market | None:
        """The market of that code, listed now or not; None where no market is called so."""
        return self._markets.get(code)

    def markets(self) -> list[Market]:
        """The markets listed now, in the table's order."""
        now = self.clock()
        return [replace(market, warning=market.warned(now)) for market in self._markets.values() if market.alive(now)]

    def market(self, code: str) -> Market:
        """The market of that code, else UnknownMarket."""
        market = self._markets.get(code)
        if market is None or not market.alive(self.clock()):
            raise UnknownMarket(f"market {code!r} is not listed now")
        return market

    def candles(self, market: str, timeframe: Timeframe, end: Instant, count: int) -> Candles:
        """The newest `count` candles opened before `end`, the forming one included, oldest first."""
        return self.bars(market, timeframe, end, count)[0]

    def bars(self, code: str, frame: Timeframe, end: Instant, count: int) -> tuple[Candles, Ints]:
        """`candles` and the instant of each one's last tick (ms)."""
        market = self.market(code)
        rows = self.rows(code, frame, end, count)
        return self.corrections(market, frame, self.floats(market, rows)), rows[:, LAST_MS]

    def rows(self, code: str, frame: Timeframe, end: Instant, count: int) -> Ints:
        """`candles` as whole numbers (the columns of `model`), before redenomination and corrections."""
        return self._rows(self.market(code), frame, end, count, self.clock())

    def trading(self, market: Market, slot: int, start: Instant, cut_ms: int) -> Ints:
        """One row for each `slot` s from `start` up to and with the instant `cut_ms`; a row without a trade has VOLUME 0."""
        return aggregate(self._nature(market), np.arange(start, cut_ms // 1000 + slot + 1, slot, dtype=np.int64), cut_ms)

    def floats(self, market: Market, rows: Ints) -> Candles:
        """Whole numbers as the exchange tells them, before corrections."""
        nature = self._nature(market)
        first, high, low, close = (quotient(rows[:, column], market.scale, PRICE_UNITS) for column in (OPEN, HIGH, LOW, CLOSE))
        volume = quotient(rows[:, VOLUME], 1, nature.lots * market.scale)
        value = quotient(rows[:, VALUE], 1, nature.value_units)
        return Candles(rows[:, OPENED], first, high, low, close, volume, value)

    def corrections(self, market: Market, frame: Timeframe, candles: Candles) -> Candles:
        """`candles` with what was corrected later, in place."""
        if not self._corrections:
            return candles
        for i, opened_at in enumerate(candles.opened_at.tolist()):
            for column, value in self._corrections.get((market.origin or market.code, frame.name, opened_at), {}).items():
                getattr(candles, column)[i] = value
        return candles

    def ticker(self, code: str) -> Ticker | None:
        """The market's present, or None before its first trade."""
        market, now = self.market(code), self.clock()
        nature, second, cut_ms = self._nature(market), int(now), int(now * 1000)
        today = second - second % DAY
        last_days = self._rows(market, TIMEFRAMES["1d"], second + 1, 2, now)
        if not len(last_days):
            return None
        newest, before = last_days[-1], last_days[0]
        quiet = newest[OPENED] < today  # no trade today: everything stands at yesterday's close
        previous = newest[CLOSE] if quiet else before[CLOSE] if len(last_days) == 2 else before[OPEN]
        traded = int(newest[LAST_MS]) // 1000
        tick = aggregate(nature, np.array([traded, traded + 1]), cut_ms)[0]
        recent = aggregate(nature, np.array([second + 1 - DAY, second + 1]), cut_ms)[0]
        highest, lowest = extremes(nature, max(today - EXTREME_DAYS * DAY, nature.listed_at // DAY * DAY), today)
        highest = newest if highest is None or newest[HIGH] > highest[HIGH] else highest
        lowest = newest if lowest is None or newest[LOW] < lowest[LOW] else lowest
        prices = (newest[CLOSE],) * 4 if quiet else (newest[OPEN], newest[HIGH], newest[LOW], newest[CLOSE])
        opening, high, low, close, previous_close, top, bottom = quotient(
            np.array([*prices, previous, highest[HIGH], lowest[LOW]]), market.scale, PRICE_UNITS
        ).tolist()
        today_sums = (0, 0) if quiet else (newest[VOLUME], newest[VALUE])
        volumes = quotient(np.array([tick[VOLUME], today_sums[0], recent[VOLUME]]), 1, nature.lots * market.scale).tolist()
        values = quotient(np.array([today_sums[1], recent[VALUE]]), 1, nature.value_units).tolist()
        return Ticker(
            market=code,
            traded_ms=int(newest[LAST_MS]),
            open=opening,
            high=high,
            low=low,
            close=close,
            previous_close=previous_close,
            last_volume=volumes[0],
            value=values[0],
            value_24h=values[1],
            volume=volumes[1],
            volume_24h=volumes[2],
            high_52w=top,
            high_52w_day=int(highest[OPENED]),
            low_52w=bottom,
            low_52w_day=int(lowest[OPENED]),
        )

    # Knobs

    def limit(self, group: str, per_second: int | None) -> None:
        """Requests per second that `group` may make from now on; None: as many as it likes."""
        if group not in self.limits.per_second:
            raise ValueError(f"group {group!r} is not known: use one of {', '.join(self.limits.per_second)}")
        self.limits.per_second[group] = per_second

    def listing(
        self, code: str, price: float, turnover: float = 1e10, at: Instant | None = None, korean_name: str = "", english_name: str = ""
    ) -> None:
        """A new market, listed at the next whole minute or at `at` (a whole minute, past or future)."""
        if code in self._markets:
            raise ValueError(f"market {code!r} exists already: choose another code")
        if at is None:
            at = -(-int(self.clock()) // 60) * 60
        if at % 60:
            raise ValueError(f"a market is listed at a whole minute, got {at}")
        self._markets[code] = Market(code, korean_name or code, english_name or code, price, turnover, at)

    def delist(self, code: str, at: Instant | None = None) -> None:
        """The market is gone from `at` (now) on."""
        self._change(code, delisted_at=int(self.clock()) if at is None else at)

    def rename(self, old: str, new: str) -> None:
        """`new` takes over everything of `old`, which is unknown from now on."""
        if new in self._markets:
            raise ValueError(f"market {new!r} exists already: choose another code")
        market = self._known(old)
        renamed = replace(market, code=new, origin=market.origin or market.code)
        self._markets = {renamed.code if code == old else code: renamed if code == old else row for code, row in self._markets.items()}

    def redenominate(self, code: str, factor: int) -> None:
        """Prices times `factor`, volumes divided by it, in the whole history. Powers of ten keep KRW prices on the grid."""
        if factor < 1:
            raise ValueError(f"factor must be >= 1, got {factor}")
        self._change(code, scale=self._known(code).scale * factor)

    def warn(self, code: str, warning: bool = True) -> None:
        """Set or lift the market's warning."""
        self._change(code, warning=warning)

    def correct(self, code: str, timeframe: Timeframe, opened_at: Instant, **columns: float) -> None:
        """Late correction: that one candle of that one timeframe has these columns (open, high, ... value) from now on."""
        wrong = set(columns) - {field.name for field in fields(Candles)} | ({"opened_at"} & set(columns))
        if wrong:
            raise ValueError(f"{sorted(wrong)} cannot be corrected: use open, high, low, close, volume, value")
        market = self._known(code)
        self._corrections.setdefault((market.origin or code, timeframe.name, opened_at), {}).update(columns)
        self.corrected.append((market.origin or code, timeframe.name, opened_at))

    def note(self, path: str, query: dict[str, str], status: int) -> None:
        """Write one request into the log."""
        if len(self.log) >= 2 * LOG_SIZE:
            del self.log[:LOG_SIZE]
        self.log.append(Logged(self.clock(), path, query, status))

    def warm(self) -> None:
        """Compile the kernels, or load them: 4 s once on a machine, 0.2 s once in a process, so that no request waits for it."""
        nature = self._nature(next(iter(self._markets.values())))
        extremes(nature, nature.listed_at // DAY * DAY, nature.listed_at // DAY * DAY + DAY)
        regroup(np.zeros((1, 8), np.int64), np.array([60]), 0)

    # Inside

    def _known(self, code: str) -> Market:
        if code not in self._markets:
            raise UnknownMarket(f"market {code!r} is not in the sandbox")
        return self._markets[code]

    def _change(self, code: str, **changes: object) -> None:
        self._markets[code] = replace(self._known(code), **changes)  # type: ignore[arg-type]

    def _nature(self, market: Market) -> Nature:
        origin = market.origin or market.code
        if origin not in self._natures:
            self._natures[origin] = world.nature(market, self.seed)
        return self._natures[origin]

    def _rows(self, market: Market, frame: Timeframe, end: Instant, count: int, now: float) -> Ints:
        """Looks back, further and further where trades are rare, until `count` candles are found or the market begins."""
        nature, first = self._nature(market), market.listed_at
        if frame is SECOND:
            first = max(first, int(now) - SECONDS_KEPT)
        end = min(end, int(now) + 1)
        found, missing = [np.empty((0, 8), np.int64)], count
        top = frame.after(frame.floor(end - 1)) if end > first else first
        while missing > 0 and top > first:
            slots = count if len(found) == 1 else 4 * missing
            bottom = max(frame.after(top, -slots), frame.floor(first))
            found.append(self._added(nature, frame, bottom, top, int(now * 1000)))
            missing -= len(found[-1])
            top = bottom
        rows = np.concatenate(found[::-1])
        return rows[max(len(rows) - count, 0) :]

    def _added(self, nature: Nature, frame: Timeframe, start: Instant, end: Instant, cut_ms: int) -> Ints:
        """The slots between two boundaries that saw a trade up to `cut_ms`."""
        bounds = edges(frame, start, end)
        if frame.seconds is not None and frame.seconds % DAY:
            rows = aggregate(nature, bounds, cut_ms)
            return rows[rows[:, VOLUME] > 0]
        today = cut_ms // 1000 // DAY * DAY
        closed = self._days.rows(nature, max(start, nature.listed_at // DAY * DAY), min(end, today))
        if start <= today < end:
            closed = np.concatenate([closed, aggregate(nature, np.array([today, today + DAY]), cut_ms)])
        return grouped(closed, bounds)
