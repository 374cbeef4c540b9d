"""The exchange's candles as they form: Upbit's WebSocket in, our types out, whatever happens to the connection.

1. `shares`   splits what is wanted over connections; each sends one request, because a second one would replace the first (pure)
2. `parse`    makes candles of a frame, or a typed error
3. `Newest`   tells news from repeats and from what came out of order (pure)
4. `_Line`    is one connection: joined in its turn, listened to, PINGed, given up when it falls silent, joined again
5. `_Lines`   is all of them: what is `Wanted` later is heard over a line of its own, and the others hear nothing of it
6. `listen`   is one stream of Heard, Lost and Joined

The exchange never says that a candle has closed: a newer one or the clock does. It tells of a candle at most once a second, and only where
a trade changed it. Source: Upbit developer documentation, read 2026-11-25.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import re
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.budget import Budget, SharedBudget, shared_file
from mdms_pipeline.collect.client import LONGEST_SAID, unlimited
from mdms_pipeline.collect.pace import CONNECT
from mdms_pipeline.market import DAY, TIMEFRAMES, Instant
from mdms_pipeline.settings import SANDBOX

PATH = "/websocket/v1"
TYPES = {name: f"candle.{frame.seconds // 60}m" for name, frame in TIMEFRAMES.items() if frame.seconds and frame.seconds < DAY}
FRAMES = {of: name for name, of in TYPES.items()}

LONGEST = 8_000  # bytes of a request; how long it may be is not published, and no common server's buffer for a text is below 8192
QUEUED = 10_000  # candles that wait for whoever listens; then the connection waits
KEPT = 8  # candles of a series whose last state is remembered
SPARE = 3  # lines more than are needed, for what is wanted later; then all are begun anew
REFUSALS = 3  # in a row, of a request that the exchange says is wrong, until it is given up
BEHIND = 2.0  # s by which the exchange may tell late: it tells once a second, and the way takes its time
MARK_EVERY = 0.1  # s between two instants that a Trail remembers

OURS = ("WRONG_FORMAT", "NO_TICKET", "NO_TYPE", "NO_CODES", "INVALID_PARAM")  # errors of a request as it is written; Upbit documentation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Heard:
    """One candle as it stood when the exchange sent it: the same numbers, to the bit, that REST answers for it then."""

    symbol: str
    timeframe: str
    opened_at: Instant
    open: float
    high: float
    low: float
    close: float
    volume: float  # base asset
    value: float  # KRW
    at: float  # s since 1970 UTC, the exchange's `timestamp`: its last trade
    received_at: float  # s since 1970 UTC, our clock


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream was interrupted: what closed since `since` must be asked for by REST."""

    since: float  # s since 1970 UTC, our clock: what had happened by then was heard
    reason: str
    symbols: tuple[str, ...] = ()  # whose candles are missing; empty: all


@dataclass(frozen=True, slots=True)
class Joined:
    """(Re)subscribed: from here on messages flow."""

    at: float  # s since 1970 UTC, our clock
    symbols: tuple[str, ...] = ()  # whose; empty: all


Event = Heard | Lost | Joined


class Wanted:
    """What is listened to: timeframe -> symbols. Whoever wants something else says so while the stream flows."""

    def __init__(self, of: Mapping[str, Sequence[str]]) -> None:
        self.of, self.changed = of, asyncio.Event()

    def change(self, of: Mapping[str, Sequence[str]]) -> None:
        self.of = of
        self.changed.set()


@dataclass
class Counts:
    """What came over all lines so far."""

    connects: int = 0  # handshakes that were tried
    lost: int = 0
    frames: int = 0
    heard: int = 0
    repeated: int = 0  # candles that said nothing new
    stale: int = 0  # candles older than what was heard of them
    rubbish: int = 0  # frames and candles that cannot be


@dataclass(frozen=True)
class Patience:
    """Seconds of our own time."""

    ping_every: float = 10.0  # an idle connection is closed after 60 to 120; 6 of the 100 messages a minute
    silence: float = 15.0  # without a frame, PONG or other, until a connection is given up
    look: float = 1.0  # between two looks at both
    connect: float = 10.0  # for a handshake
    first_pause: float = 0.5  # before the second try; doubled each time, and drawn at random below
    longest_pause: float = 30.0
    steady: float = 5.0  # a connection that lasted as long begins with the first pause again


# What is asked


def socket_url(url: str) -> str:
    """`wss://api.upbit.com/websocket/v1` of `https://api.upbit.com`."""
    return re.sub(r"^http", "ws", url.rstrip("/")) + PATH


def request(share: Mapping[str, Sequence[str]], ticket: str) -> str:
    """`[{"ticket":"..."},{"type":"candle.60m","codes":["KRW-BTC"]},{"format":"DEFAULT"}]` of timeframe -> symbols."""
    parts = [{"type": TYPES[timeframe], "codes": list(symbols)} for timeframe, symbols in share.items()]
    return json.dumps([{"ticket": ticket}, *parts, {"format": "DEFAULT"}], separators=(",", ":"))


def shares(wanted: Mapping[str, Sequence[str]], longest: int = LONGEST) -> list[dict[str, list[str]]]:
    """`wanted` (timeframe -> symbols) as parts of which each fits into one request, as few as can be and of one size.

    All timeframes of a symbol are in the same part. Neighbours are dealt out in turn: the busiest markets stand side by side.
    ValueError where a timeframe is not on the socket, or nothing is wanted.
    """
    unknown = [name for name in wanted if name not in TYPES]
    if unknown:
        raise ValueError(f"timeframe {unknown[0]!r} is not on the exchange's socket: use one of {', '.join(TYPES)}")
    symbols = list(dict.fromkeys(symbol for of_one in wanted.values() for symbol in of_one))
    if not symbols:
        raise ValueError("no symbol is wanted: name at least one market and timeframe")
    for n in range(1, len(symbols) + 1):
        parts = [_part(wanted, set(symbols[i::n])) for i in range(n)]
        if all(len(request(part, str(uuid.UUID(int=0)))) <= longest for part in parts):
            break
    return parts


def _part(wanted: Mapping[str, Sequence[str]], symbols: set[str]) -> dict[str, list[str]]:
    found = {timeframe: [symbol for symbol in dict.fromkeys(of_one) if symbol in symbols] for timeframe, of_one in wanted.items()}
    return {timeframe: of_one for timeframe, of_one in found.items() if of_one}


# What is answered


def _impossible(text: str) -> float:
    raise ValueError(f"{text} is not a number")


DECODER = json.JSONDecoder(parse_constant=_impossible)


def parse(frame: bytes, received_at: float) -> list[Heard]:
    """The candles of a frame, be it binary or text; none of one that only says that the exchange is UP. Unknown fields are passed over.

    {"type":"candle.1m","code":"KRW-BTC","candle_date_time_utc":"2026-08-26T08:08:00","candle_date_time_kst":"2026-08-26T17:08:00",
     "opening_price":109715000.0,"high_price":109756000.0,"low_price":109714000.0,"trade_price":109756000.0,
     "candle_acc_trade_volume":0.71326612,"candle_acc_trade_price":78269528.64757,"timestamp":1787731717049,"stream_type":"SNAPSHOT"}
    {"status":"UP"}
    {"error":{"name":"INVALID_PARAM","message":"The codes field is empty."}}

    Raises wire.Garbled where it is none of these, and what `error_of` makes of an error.
    """
    with wire.shape("a message of the WebSocket"):
        body = DECODER.decode(frame.decode())
        rows = body if isinstance(body, list) else [body]
        for row in rows:
            if "error" in row:
                raise error_of(row["error"])
        return [_candle(row, received_at) for row in rows if "status" not in row]


def _candle(row: Mapping[str, Any], received_at: float) -> Heard:
    """A candle that can be, else ValueError, KeyError or TypeError."""
    timeframe, opened_at = FRAMES[row["type"]], wire.opened_at(row["candle_date_time_utc"])
    first, high, low, close, volume, value = (float(row[name]) for name in wire.FIELDS)
    if not (0 < low <= first <= high < math.inf and low <= close <= high and 0 <= volume < math.inf and 0 <= value < math.inf):
        raise ValueError(f"open {first}, high {high}, low {low}, close {close}, volume {volume}, value {value} cannot be")
    if TIMEFRAMES[timeframe].floor(opened_at) != opened_at:
        raise ValueError(f"no {timeframe} candle opens at {row['candle_date_time_utc']}")
    return Heard(row["code"], timeframe, opened_at, first, high, low, close, volume, value, int(row["timestamp"]) / 1000, received_at)


def error_of(error: Mapping[str, Any]) -> wire.ExchangeError:
    """`{"name":"NO_CODES","message":"The codes field does not exist."}` as an error of ours: whose fault it is decides which."""
    name, said = str(error["name"]), f"answered {error['name']}: {error.get('message', '')}"[:LONGEST_SAID]
    if name in OURS:
        return wire.BadRequest(said)
    return wire.TooMany(said) if name.startswith("TOO_MANY") else wire.ServerDown(said)


class News(Enum):
    """What a candle tells to somebody who heard the ones before."""

    NEW = "new"
    REPEATED = "repeated"
    STALE = "stale"


class Newest:
    """The last state of the newest KEPT candles of each series.

    The last message about a candle wins, unless the exchange's own time says that it is an earlier state. A message about an older candle
    than the newest is not stale for that: it may be its last state, overtaken, or a correction.
    """

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], dict[Instant, tuple[float, ...]]] = {}

    def take(self, heard: Heard) -> News:
        """Is it news? If so, it is remembered."""
        series = self._series.setdefault((heard.symbol, heard.timeframe), {})
        state = (heard.at, heard.open, heard.high, heard.low, heard.close, heard.volume, heard.value)
        known = series.get(heard.opened_at)
        if known is not None:
            if heard.at < known[0]:
                return News.STALE
            if state == known:
                return News.REPEATED
        elif len(series) == KEPT:
            oldest = min(series)
            if heard.opened_at < oldest:
                return News.STALE
            del series[oldest]
        series[heard.opened_at] = state
        return News.NEW


# One connection


class Silent(wire.Transient):
    """The connection is there, but nothing comes over it."""


class Trail:
    """How far the stream was heard for sure, so that what may be missing after its end can be asked for.

    What the newest frame tells is not all that had happened by then: others were still under way. But what had happened when a frame came
    BEHIND s before was on its way before it. What had happened before `joined_at` is not ours to tell. `newest_at` is the time of the
    newest trade heard of, by the exchange: where frames come late in a mass, our clock is far ahead of what they tell.
    """

    def __init__(self, timer: Callable[[], float], clock: Callable[[], float], joined_at: float) -> None:
        self._timer, self._clock = timer, clock
        self.newest_at = joined_at
        self._marks = deque([(timer(), joined_at, joined_at)])

    def mark(self) -> None:
        """A frame has come."""
        now = self._timer()
        if now - self._marks[-1][0] >= MARK_EVERY:
            self._marks.append((now, self._clock(), self.newest_at))
        while len(self._marks) > 1 and self._marks[1][0] <= now - BEHIND:
            self._marks.popleft()

    @property
    def since(self) -> float:
        """s since 1970 UTC: what had happened by then was heard."""
        _, at, newest_at = self._marks[0]
        return min(at, newest_at - BEHIND)


def pause(tries: int, patience: Patience) -> float:
    """Seconds before the next try after so many that failed: half of it and up, for all who were cut off at once must not come at once."""
    return random.uniform(0.5, 1.0) * min(patience.longest_pause, patience.first_pause * 2.0 ** min(tries - 1, 32))


@dataclass
class _Line:
    """One connection and its share of what is wanted, joined again and again. What happens goes to `tell`."""

    url: str  # ws:// or wss://
    share: Mapping[str, Sequence[str]]  # timeframe -> symbols
    tell: Callable[[Event], Awaitable[None]]
    clock: Callable[[], float]
    budget: Budget
    patience: Patience
    sleep: Callable[[float], Awaitable[None]]
    counts: Counts
    notice: Callable[[str], None] | None
    timer: Callable[[], float] = time.monotonic
    newest: Newest = field(default_factory=Newest)

    def __post_init__(self) -> None:
        self._count()
        self.trail: Trail | None = None  # None while not joined
        self.refused = 0  # times in a row that the exchange said that our request is wrong
        self.heard_at = 0.0  # by `timer`: when the newest frame came, or we began to wait for one
        self.waits = False  # for a frame; not for whoever listens
        self.silent = False

    def _count(self) -> None:
        self.wanted = _pairs(self.share)
        self.symbols = tuple(dict.fromkeys(symbol for of_one in self.share.values() for symbol in of_one))

    def keep_to(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Let go of what is not wanted any more: the exchange tells of it until the next request, and nobody listens."""
        self.share = _both(self.share, wanted)
        self._count()

    async def keep(self) -> None:
        """Listen for ever. Raises wire.BadRequest where the exchange refuses our request again and again."""
        tries = 0
        while True:
            begun = self.timer()
            try:
                await self._listen()
            except wire.ExchangeError as error:
                self.refused = self.refused + 1 if isinstance(error, wire.BadRequest) else 0
                if self.refused == REFUSALS:
                    raise
                tries = 1 if self.trail is not None and self.timer() - begun >= self.patience.steady else tries + 1
                await self.lost(error)
            await self.sleep(pause(tries, self.patience))

    async def _listen(self) -> None:
        """One connection from its beginning to its end, which is always an error."""
        async with self._connected() as socket:
            self.heard_at, self.waits, self.silent = self.timer(), True, False
            watch = asyncio.create_task(self._watch(socket))
            try:
                await socket.send(request(self.share, str(uuid.uuid4())))
                await socket.send("PING")  # is answered even where no market of ours has a candle
                while True:
                    await self._take(await socket.recv(decode=False))
            except ConnectionClosed as error:
                raise self._end(error) from error
            finally:
                watch.cancel()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[ClientConnection]:
        """A connection, once it is our turn. Raises wire.ExchangeError."""
        sent_at = await self._turn()
        self.counts.connects += 1
        loopback = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
        try:
            socket = await connect_socket(
                self.url,
                compression=None if loopback else "deflate",
                proxy=None if loopback else True,
                open_timeout=self.patience.connect,
                close_timeout=1.0,
                ping_interval=None,  # PING as the exchange describes it instead
            )
        except InvalidStatus as error:
            raise await self._refused(error, sent_at) from error
        except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
            raise wire.Unreachable(f"{self.url} cannot be reached: {type(error).__name__} {error}".rstrip()) from error
        async with socket:
            yield socket

    async def _turn(self) -> float:
        """Wait for our turn to connect: 5 a second for all of this machine, and none while we are shut out. When it came."""
        while (turn := await self.budget.change(lambda ledger, now: ledger.take(CONNECT, now))).wait:
            if turn.block is not None:
                self._say(f"{self.url} has blocked this address for {math.ceil(turn.wait)} s: {turn.block.said}")
            await self.sleep(turn.wait)
        return turn.at

    async def _refused(self, error: InvalidStatus, sent_at: float) -> wire.ExchangeError:
        """What the status of a refused handshake means; the budget hears of it."""
        response = httpx.Response(error.response.status_code, content=bytes(error.response.body or b""))
        try:
            wire.check(response)
        except wire.TooMany as found:
            await self.budget.change(lambda ledger, now: (ledger.refused(CONNECT, sent_at, now), None))
            return found
        except wire.Blocked as found:
            seconds, said = None if found.seconds == wire.BLOCK_SECONDS else found.seconds, str(found)[:LONGEST_SAID]
            await self.budget.change(lambda ledger, now: (ledger.shut_out(now, seconds, said), None))
            return found
        except wire.BadRequest as found:  # of a handshake, which is none of our making: somebody between us may refuse it for a while
            return wire.ServerDown(str(found))
        except wire.ExchangeError as found:
            return found
        return wire.Garbled(f"answered {response.status_code} to a handshake")

    async def _take(self, frame: bytes) -> None:
        """Pass on what is news in it. Raises the error that it tells of."""
        self.waits = False
        self.counts.frames += 1
        received_at = self.clock()
        try:
            found = parse(frame, received_at)
        except wire.Garbled as error:
            found = []
            self._throw_away(frame, error)
        trail = await self._joined(received_at)
        for heard in found:
            if (heard.symbol, heard.timeframe) in self.wanted:
                trail.newest_at = max(trail.newest_at, heard.at)
                await self._pass_on(heard)
        trail.mark()
        self.heard_at, self.waits = self.timer(), True

    def _throw_away(self, frame: bytes, error: wire.Garbled) -> None:
        """Told the first time and each time that it has doubled."""
        self.counts.rubbish += 1
        if self.counts.rubbish & (self.counts.rubbish - 1) == 0:
            log.warning("%s, %d times so far: %s: %.200r", self.url, self.counts.rubbish, error, frame)

    async def _pass_on(self, heard: Heard) -> None:
        news = self.newest.take(heard)
        self.refused = 0
        if news is News.NEW:
            self.counts.heard += 1
            await self.tell(heard)
        elif news is News.REPEATED:
            self.counts.repeated += 1
        else:
            self.counts.stale += 1

    async def _joined(self, at: float) -> Trail:
        """The first frame shows that the request was read."""
        if self.trail is None:
            self.trail = Trail(self.timer, self.clock, at)
            await self.tell(Joined(at, self.symbols))
        return self.trail

    async def lost(self, error: wire.ExchangeError) -> None:
        """Tell of it, once for each time it was joined."""
        self._say(f"{self.url}: {error}")
        if self.trail is not None:
            self.counts.lost += 1
            since, self.trail = self.trail.since, None
            await self.tell(Lost(since, str(error), self.symbols))

    async def _watch(self, socket: ClientConnection) -> None:
        """PING now and then; give the connection up once nothing comes."""
        pinged_at = self.timer()
        while True:
            await asyncio.sleep(self.patience.look)
            now = self.timer()
            if self.waits and now - self.heard_at > self.patience.silence:
                self.silent = True
                socket.transport.abort()
                return
            if now - pinged_at >= self.patience.ping_every:
                pinged_at = now
                with suppress(ConnectionClosed):  # whoever reads hears of it too
                    await socket.send("PING")

    def _end(self, error: ConnectionClosed) -> wire.Transient:
        """Why a connection ended that the exchange did not end with an error message."""
        if self.silent:
            return Silent(f"silent for {self.patience.silence:g} s")
        if error.rcvd is None:
            return wire.Unreachable("the connection was cut")
        return wire.Unreachable(f"closed by the exchange: {error.rcvd.code} {error.rcvd.reason}".rstrip())

    def _say(self, what: str) -> None:
        log.warning("%s", what)
        if self.notice is not None:
            self.notice(what)


# All of them


class _Lines:
    """The connections of one stream. `make` is a line of a share; what they tell, and why one has failed for good, goes to `queue`."""

    def __init__(self, make: Callable[[Mapping[str, Sequence[str]]], _Line], queue: asyncio.Queue[Event | Exception]) -> None:
        self._make, self._queue = make, queue
        self._held: list[tuple[_Line, asyncio.Task[None]]] = []

    async def follow(self, wanted: Wanted) -> None:
        """Listen to what is wanted, whatever that becomes."""
        while True:
            wanted.changed.clear()
            await self._want(wanted.of)
            await wanted.changed.wait()

    async def end(self) -> None:
        await self._end(self._held)

    async def _want(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """What is new over lines of its own, so that nothing is missed over the others; all anew where those have become too many."""
        for line, _ in self._held:
            line.keep_to(wanted)
        await self._end([each for each in self._held if not each[0].wanted])
        heard = {pair for line, _ in self._held for pair in line.wanted}
        new = {name: [symbol for symbol in of_one if (symbol, name) not in heard] for name, of_one in wanted.items()}
        fresh, needed = _shares(new), _shares(wanted)
        if self._held and len(self._held) + len(fresh) > len(needed) + SPARE:
            await self._end(self._held, "joined anew: other markets are wanted")
            fresh = needed
        self._held += [(line, asyncio.create_task(_kept(line, self._queue))) for line in map(self._make, fresh)]

    async def _end(self, lines: Sequence[tuple[_Line, asyncio.Task[None]]], told: str | None = None) -> None:
        """Close these lines; of those that were joined it is told where a reason is given."""
        for _, task in lines:
            task.cancel()
        await asyncio.gather(*(task for _, task in lines), return_exceptions=True)
        self._held = [each for each in self._held if each not in lines]
        for line, _ in lines if told else ():
            await line.lost(wire.Unreachable(told))


def _shares(wanted: Mapping[str, Sequence[str]]) -> list[dict[str, list[str]]]:
    return shares(wanted) if any(wanted.values()) else []


def _pairs(wanted: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """(symbol, timeframe)"""
    return {(symbol, timeframe) for timeframe, of_one in wanted.items() for symbol in of_one}


def _both(share: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """What is in the share and wanted."""
    pairs = _pairs(wanted)
    found = {name: [symbol for symbol in of_one if (symbol, name) in pairs] for name, of_one in share.items()}
    return {name: of_one for name, of_one in found.items() if of_one}


async def listen(
    url: str,
    wanted: Mapping[str, Sequence[str]] | Wanted,
    clock: Callable[[], float] = time.time,
    *,
    budget: Budget | None = None,
    patience: Patience | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    counts: Counts | None = None,
    notice: Callable[[str], None] | None = None,
) -> AsyncIterator[Event]:
    """Candles of `wanted` (timeframe -> symbols) as the exchange at `url` tells them, for ever; `sandbox` is the embedded one.

    Where a `Wanted` is given and changed meanwhile, what is new is Joined by itself, and what is not wanted any more is not heard.

    `clock` is s since 1970 UTC, and the embedded exchange's own. `budget` is by default the one of all processes of this machine. `notice`
    hears of what goes wrong. Whoever stops listening closes the stream: `async with aclosing(listen(...)) as events`.
    Raises wire.BadRequest where the exchange refuses our requests, ValueError where nothing can be asked for.
    """
    queue: asyncio.Queue[Event | Exception] = asyncio.Queue(QUEUED)
    wanted = wanted if isinstance(wanted, Wanted) else Wanted(wanted)
    shares(wanted.of)  # what cannot be asked for is refused at once
    async with _address(url, clock) as address:
        budget = budget or (unlimited() if url == SANDBOX else SharedBudget(shared_file(url)))
        patience, counts = patience or Patience(), counts or Counts()
        lines = _Lines(lambda part: _Line(socket_url(address), part, queue.put, clock, budget, patience, sleep, counts, notice), queue)
        following = asyncio.create_task(lines.follow(wanted))
        try:
            while True:
                event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await lines.end()


async def _kept(line: _Line, queue: asyncio.Queue[Event | Exception]) -> None:
    """A line that fails for good fails whoever listens."""
    try:
        await line.keep()
    except Exception as error:
        await queue.put(error)


@asynccontextmanager
async def _address(url: str, clock: Callable[[], float]) -> AsyncIterator[str]:
    """`url`; for the embedded exchange one that listens on a free port of this machine meanwhile."""
    if url != SANDBOX:
        yield url
        return
    from mdms_pipeline.sandbox import Sandbox, served

    serving = served(Sandbox(clock=clock))
    address = await asyncio.to_thread(serving.__enter__)
    try:
        yield address
    finally:
        await asyncio.to_thread(serving.__exit__, None, None, None)
