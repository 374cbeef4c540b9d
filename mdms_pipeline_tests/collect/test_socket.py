"""Our client of the exchange's WebSocket: what it makes of frames, and what it does when the connection, or the exchange, misbehaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from mdms_pipeline.collect import socket, wire
from mdms_pipeline.collect.budget import MemoryBudget, SharedBudget
from mdms_pipeline.collect.client import unlimited
from mdms_pipeline.collect.socket import (
    BEHIND,
    KEPT,
    LONGEST,
    PATH,
    REFUSALS,
    TYPES,
    Counts,
    Event,
    Heard,
    Joined,
    Lost,
    Newest,
    News,
    Patience,
    Trail,
    Wanted,
    error_of,
    listen,
    parse,
    pause,
    request,
    shares,
    socket_url,
)
from mdms_pipeline.market import MINUTE, TIMEFRAMES, instant, timeframe
from mdms_pipeline.sandbox import Message, Sandbox, SocketFault, Told, served
from mdms_pipeline.settings import FastClock
from mdms_pipeline_tests.support import NOW, Clock

T = TypeVar("T")
BTC, ETH, XRP = "KRW-BTC", "KRW-ETH", "KRW-XRP"
MINUTE_OPEN = NOW // MINUTE * MINUTE
HANGS = 20.0  # s for what must come
ROW: dict[str, Any] = json.loads(
    '{"type":"candle.1m","code":"KRW-BTC","candle_date_time_utc":"2026-08-26T08:08:00","candle_date_time_kst":"2026-08-26T17:08:00",'
    '"opening_price":109715000.0,"high_price":109756000.0,"low_price":109714000.0,"trade_price":1.09756E8,'
    '"candle_acc_trade_volume":0.71326612,"candle_acc_trade_price":78269528.64757,"timestamp":1787731717049,"stream_type":"SNAPSHOT"}'
)  # recorded from the exchange on 2026-08-26
CANDLE = Heard(
    BTC,
    "1m",
    instant("2026-08-26T08:08"),
    109715000.0,
    109756000.0,
    109714000.0,
    109756000.0,
    0.71326612,
    78269528.64757,
    1787731717.049,
    5.0,
)


def frame(**changes: Any) -> bytes:
    return json.dumps({**ROW, **changes}).encode()


# ---- frames


def test_a_recorded_frame() -> None:
    assert parse(json.dumps(ROW).encode(), 5.0) == [CANDLE]


def test_lists_and_unknown_fields() -> None:
    assert parse(b"[" + frame() + b"," + frame() + b"]", 5.0) == [CANDLE, CANDLE]
    assert parse(frame(a_new_field={"x": [None]}), 5.0) == [CANDLE]


def test_every_type_is_a_timeframe_of_ours() -> None:
    assert TYPES == {
        "1m": "candle.1m", "3m": "candle.3m", "5m": "candle.5m", "10m": "candle.10m", "15m": "candle.15m", "30m": "candle.30m",
        "1h": "candle.60m", "4h": "candle.240m",
    }  # fmt: skip
    for name, kind in TYPES.items():
        opened_at = timeframe(name).floor(CANDLE.opened_at)
        utc = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(opened_at))
        (heard,) = parse(frame(type=kind, candle_date_time_utc=utc), 5.0)
        assert (heard.timeframe, heard.opened_at) == (name, opened_at)


def test_the_exchange_is_up() -> None:
    assert parse(b'{"status":"UP"}', 5.0) == []
    assert parse(b'[{"status":"UP"}]', 5.0) == []


RUBBISH = [
    b"", b"hello", b"\xff\xfe", b"{", b"1", b"null", b'"error"', b"[1]", b"{}", b"[" * 100_000, b'{"error":1}', b'{"error":{}}',
    frame(type="candle.1d"), frame(type="ticker"), frame(type=["candle.1m"]), frame(trade_price=None), frame(trade_price="much"),
    frame(trade_price=math.nan), frame(candle_acc_trade_volume=math.inf), frame(candle_acc_trade_volume=-1.0),
    frame(candle_acc_trade_price=-1.0), frame(low_price=0.0), frame(low_price=-5.0), frame(high_price=1.0), frame(opening_price=2e8),
    frame(low_price=1.0975e8, trade_price=1.0974e8), frame(candle_date_time_utc="yesterday"), frame(candle_date_time_utc=None),
    frame(candle_date_time_utc="2026-08-26T08:08:30"), frame(timestamp=None), frame(timestamp=math.inf), frame(opening_price=10**400),
    json.dumps({name: value for name, value in ROW.items() if name != "code"}).encode(),
    b'{"type":"candle.1m","trade_price":1e999}',
]  # fmt: skip


@pytest.mark.parametrize("rubbish", RUBBISH, ids=[str(n) for n in range(len(RUBBISH))])
def test_rubbish(rubbish: bytes) -> None:
    with pytest.raises(wire.Garbled):
        parse(rubbish, 5.0)


@given(st.binary(max_size=60))
def test_no_frame_is_a_surprise(frame: bytes) -> None:
    with suppress(wire.ExchangeError):
        parse(frame, 5.0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("WRONG_FORMAT", wire.BadRequest),
        ("NO_TICKET", wire.BadRequest),
        ("NO_TYPE", wire.BadRequest),
        ("NO_CODES", wire.BadRequest),
        ("INVALID_PARAM", wire.BadRequest),
        ("TOO_MANY_REQUESTS", wire.TooMany),
        ("INTERNAL", wire.ServerDown),
    ],
)
def test_errors_have_types(name: str, kind: type[wire.ExchangeError]) -> None:
    with pytest.raises(kind, match=f"answered {name}: because"):
        parse(json.dumps({"error": {"name": name, "message": "because"}}).encode(), 5.0)
    assert type(error_of({"name": name})) is kind


# ---- requests


def test_addresses() -> None:
    assert socket_url("https://api.upbit.com") == "wss://api.upbit.com/websocket/v1"
    assert socket_url("http://127.0.0.1:8017/") == "ws://127.0.0.1:8017/websocket/v1"


def test_a_request() -> None:
    assert json.loads(request({"1m": [BTC], "4h": [BTC, ETH]}, "x")) == [
        {"ticket": "x"},
        {"type": "candle.1m", "codes": [BTC]},
        {"type": "candle.240m", "codes": [BTC, ETH]},
        {"format": "DEFAULT"},
    ]


@given(
    st.dictionaries(st.sampled_from(sorted(TYPES)), st.lists(st.integers(0, 400).map("KRW-X{}".format)), min_size=1),
    st.integers(300, 9_000),
)
def test_shares_are_all_that_is_wanted_once_and_fit(wanted: dict[str, list[str]], longest: int) -> None:
    asked = {(symbol, name) for name, symbols in wanted.items() for symbol in symbols}
    if not asked:
        with pytest.raises(ValueError, match="no symbol is wanted"):
            shares(wanted, longest)
        return
    parts = shares(wanted, longest)
    dealt = [(symbol, name) for part in parts for name, symbols in part.items() for symbol in symbols]
    assert sorted(dealt) == sorted(asked)
    sizes = [len({symbol for symbols in part.values() for symbol in symbols}) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if longest >= 600:  # below, one symbol with all timeframes may not fit
        assert all(len(request(part, "t" * 36)) <= longest for part in parts)


def test_300_markets_with_8_timeframes_need_4_connections() -> None:
    symbols = [f"KRW-{n:04}" for n in range(300)]
    parts = shares(dict.fromkeys(TYPES, symbols))
    assert [len(part["1m"]) for part in parts] == [75] * 4
    assert all(len(request(part, "t" * 36)) <= LONGEST for part in parts)


@pytest.mark.parametrize("name", ["1d", "1w", "1M", "1s", "60m"])
def test_timeframes_that_the_socket_lacks(name: str) -> None:
    with pytest.raises(ValueError, match=f"timeframe '{name}' is not on the exchange's socket: use one of 1m, 3m"):
        shares({name: [BTC]})


# ---- news


def heard(opened_at: int = 0, at: float = 0.0, close: float = 1.0) -> Heard:
    return Heard(BTC, "1m", opened_at, 1.0, 9.0, 0.5, close, 1.0, 1.0, at, 0.0)


def test_news_repeats_and_what_is_stale() -> None:
    newest = Newest()
    assert newest.take(heard(60, 1.0)) is News.NEW
    assert newest.take(heard(60, 1.0)) is News.REPEATED
    assert newest.take(heard(60, 1.0, close=2.0)) is News.NEW  # corrected
    assert newest.take(heard(60, 3.0)) is News.NEW
    assert newest.take(heard(60, 2.0)) is News.STALE
    assert newest.take(heard(120, 4.0)) is News.NEW
    assert newest.take(heard(60, 3.5)) is News.NEW  # its last state, overtaken
    assert newest.take(heard(60, 3.4)) is News.STALE
    assert newest.take(heard(0, 0.5)) is News.NEW  # never heard of


def test_the_last_state_is_remembered_for_a_while() -> None:
    newest = Newest()
    for n in range(KEPT + 1):
        assert newest.take(heard(60 * n, 1.0)) is News.NEW
    assert newest.take(heard(0, 1.0)) is News.STALE
    assert newest.take(heard(60, 1.0)) is News.REPEATED
    assert len(newest._series[BTC, "1m"]) == KEPT


@given(st.permutations([(opened_at, at) for opened_at in range(4) for at in range(3)]), st.lists(st.integers(0, 11)))
def test_whatever_the_order_the_last_state_of_each_candle_is_news_last(order: list[tuple[int, int]], again: list[int]) -> None:
    newest, told = Newest(), {}
    for opened_at, at in [*order, *(order[k] for k in again)]:
        one = heard(opened_at * 60, float(at), close=1.0 + at)
        if newest.take(one) is News.NEW:
            assert one.opened_at not in told or told[one.opened_at].at < one.at
            told[one.opened_at] = one
    assert {one.at for one in told.values()} == {2.0}
    assert len(told) == 4


# ---- how far it was heard


def test_a_trail_goes_back_behind_the_newest_frame() -> None:
    now = Clock(100.0)
    trail = Trail(now, lambda: 1000.0 + now.now, 1100.0)
    assert trail.since == 1100.0 - BEHIND
    for n in range(1, 41):
        now.now = 100.0 + n * 0.25
        trail.newest_at = 1000.0 + now.now
        trail.mark()
    assert trail.since == 1110.0 - BEHIND - BEHIND
    now.now = 500.0  # nothing came any more
    assert trail.since == 1110.0 - BEHIND - BEHIND
    assert len(trail._marks) <= BEHIND / socket.MARK_EVERY + 2


def test_a_trail_believes_the_exchange_where_its_frames_come_late() -> None:
    """At fast-forward an hour of candles comes in a second of ours: our clock is far ahead of what was told."""
    now = Clock(0.0)
    trail = Trail(now, lambda: 3600.0 * now.now, 0.0)
    for n in range(1, 100):
        now.now = n * 0.1
        trail.newest_at = 3600.0 * now.now / 2
        trail.mark()
    assert trail.since == pytest.approx(3600.0 * (9.9 - BEHIND) / 2, abs=3600 * 0.11)


@given(st.integers(1, 10_000))
def test_pauses_double_and_differ(tries: int) -> None:
    patience = Patience()
    longest = min(patience.longest_pause, patience.first_pause * 2.0 ** min(tries - 1, 60))
    assert longest / 2 <= pause(tries, patience) <= longest


# ---- a stream


@dataclass
class Stream:
    """What is heard of `wanted` from a sandbox that looks at its clock 200 times a second."""

    sandbox: Sandbox
    clock: Clock
    url: str
    counts: Counts = field(default_factory=Counts)
    notices: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def of(self, wanted: dict[str, list[str]] | Wanted, **options: Any) -> AsyncIterator[Events]:
        given = {"budget": unlimited(), "patience": Patience(look=0.005), "sleep": at_once, "counts": self.counts, **options}
        async with aclosing(listen(self.url, wanted, self.clock, notice=self.notices.append, **given)) as events:
            yield Events(events)


@dataclass
class Events:
    """A stream of events, read step by step."""

    source: AsyncIterator[Event]
    seen: list[Event] = field(default_factory=list)

    async def until(self, done: Callable[[Event], bool]) -> list[Event]:
        """The next ones, with the first of which `done` is true."""
        found: list[Event] = []
        async with asyncio.timeout(HANGS):
            while not found or not done(found[-1]):
                found.append(await anext(self.source))
        self.seen += found
        return found

    async def join(self) -> None:
        """Joined again, and the snapshot of KRW-BTC is there."""
        await self.until(lambda event: isinstance(event, Joined))

    async def next(self, kind: type[T]) -> T:
        found = (await self.until(lambda event: isinstance(event, kind)))[-1]
        assert isinstance(found, kind)
        return found


async def at_once(_: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
def stream() -> Iterator[Stream]:
    clock = Clock(NOW)
    sandbox = Sandbox(clock=clock)
    sandbox.beat = 0.005
    with served(sandbox) as url:
        yield Stream(sandbox, clock, url)


def run(main: Awaitable[T]) -> T:
    async def started() -> T:
        return await main

    return asyncio.run(started())


def final_of(sandbox: Sandbox, symbol: str, name: str, opened_at: int) -> tuple[float, ...]:
    found = sandbox.candles(symbol, timeframe(name), opened_at + 1, 1)
    columns = (found.opened_at, found.open, found.high, found.low, found.close, found.volume, found.value)
    return tuple(column[0].item() for column in columns)


def numbers(one: Heard) -> tuple[float, ...]:
    return (one.opened_at, one.open, one.high, one.low, one.close, one.volume, one.value)


def fault_once(fault: SocketFault, connection: int = 0, beat: int = 1) -> Callable[[Told], SocketFault | None]:
    return lambda told: fault if (told.connection, told.beat) == (connection, beat) else None


def test_what_is_heard_last_of_every_candle_is_rests_candle(stream: Stream) -> None:
    wanted = {name: [BTC, "KRW-CBK"] for name in TYPES}

    async def main() -> list[Event]:
        async with stream.of(wanted) as events:
            await events.join()
            for step in (1.0, 90.0, 3600.0, 7 * 3600.0, 30.0):
                stream.clock.now += step
                ticker, left = stream.sandbox.ticker(BTC), set(TYPES)
                assert ticker is not None
                while left:
                    one = await events.next(Heard)
                    left -= {one.timeframe} if (one.symbol, one.at) == (BTC, ticker.traded_ms / 1000) else set()
            return events.seen

    last = {(one.symbol, one.timeframe, one.opened_at): one for one in run(main()) if isinstance(one, Heard)}
    assert len(last) > 8 * 60 * 2
    for (symbol, name, opened_at), one in last.items():
        assert numbers(one) == final_of(stream.sandbox, symbol, name, opened_at), one
    for name in TYPES:
        expected = stream.sandbox.candles(BTC, TIMEFRAMES[name], int(stream.clock.now) + 1, 9 * 60)
        opened = [at for at in expected.opened_at.tolist() if at >= timeframe(name).floor(NOW)]
        assert [at for symbol, of, at in last if (symbol, of) == (BTC, name)] == opened
    assert (stream.counts.rubbish, stream.counts.stale, stream.counts.lost, stream.counts.connects) == (0, 0, 0, 1)


async def after_a_fault(stream: Stream, events: Events) -> tuple[Lost, Joined, list[Heard]]:
    """Join, let a minute pass in which the fault happens, be joined again, and hear the candle that is open then."""
    await events.join()
    stream.clock.now += 60
    lost = await events.next(Lost)
    joined = await events.next(Joined)
    more = await events.until(lambda event: isinstance(event, Heard) and event.opened_at == MINUTE_OPEN + 60)
    return lost, joined, [event for event in more if isinstance(event, Heard)]


ENDS = {
    "cut": (SocketFault.cutting(), "the connection was cut"),
    "error": (SocketFault.saying("SERVER_ERROR", "maintenance"), "answered SERVER_ERROR: maintenance"),
    "silence": (SocketFault.silence(), "silent for 0.5 s"),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_connection_that_ends_is_joined_again_and_the_gap_is_told(stream: Stream, name: str) -> None:
    fault, reason = ENDS[name]
    stream.sandbox.socket_faults = fault_once(fault)
    patience = Patience(look=0.005, silence=0.5 if fault.silent else 100, ping_every=0.02)

    async def main() -> tuple[Lost, Joined, list[Heard]]:
        async with stream.of({"1m": [BTC]}, patience=patience) as events:
            return await after_a_fault(stream, events)

    lost, joined, after = run(main())
    assert lost.reason == reason
    assert lost.symbols == joined.symbols == (BTC,)
    assert lost.since <= NOW  # the candle whose end was lost closed later: REST will be asked for it
    assert joined.at == NOW + 60
    assert [numbers(one) for one in after] == [final_of(stream.sandbox, BTC, "1m", MINUTE_OPEN + 60)]
    assert stream.counts.lost == 1
    assert any(reason in notice for notice in stream.notices)


def test_an_idle_connection_that_the_exchange_closes(stream: Stream) -> None:
    async def main() -> Lost:
        async with stream.of({"1m": ["KRW-NOPE"]}) as events:
            await events.join()
            stream.sandbox.idle = 0.02
            lost = await events.next(Lost)
            stream.sandbox.idle = 100
            await events.join()
            return lost

    assert run(main()).reason == "closed by the exchange: 1000"


def test_lost_and_joined_take_turns_over_a_hundred_cuts(stream: Stream) -> None:
    stream.sandbox.socket_faults = lambda told: SocketFault.cutting() if told.beat == 1 and told.connection < 100 else None

    async def main() -> list[Event]:
        async with stream.of({"1m": [BTC]}) as events:
            await events.join()
            for _ in range(100):
                stream.clock.now += 20
                await events.join()
            return events.seen

    changes = [type(event) for event in run(main()) if not isinstance(event, Heard)]
    assert changes == [Joined, *[Lost, Joined] * 100]
    assert (stream.counts.connects, stream.counts.lost) == (101, 100)


CUTS = 8


@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_heard_to_its_end_is_in_a_gap_that_was_told(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Hours at fast-forward, the connection cut in the middle of a beat's messages again and again."""
    monkeypatch.setattr(socket, "BEHIND", 0.02)
    monkeypatch.setattr(socket, "MARK_EVERY", 0.001)
    dice = random.Random(seed)
    last_beat = [dice.randrange(1, 15) for _ in range(CUTS)]  # of each connection
    sandbox = Sandbox(clock=FastClock(36_000.0, NOW, time.time()))
    sandbox.beat = 0.005
    wanted = {"1m": [BTC, ETH, "KRW-CBK"], "15m": [BTC, ETH], "4h": [BTC, "KRW-CBK"]}

    def cut(told: Told) -> SocketFault | None:
        if told.connection >= CUTS or told.beat != last_beat[told.connection]:
            return None
        kept = dice.randrange(len(told.messages) + 1)
        return SocketFault(alter=lambda messages: messages[:kept], cut=True)

    sandbox.socket_faults = cut

    async def main(url: str) -> list[Event]:
        async with aclosing(listen(url, wanted, sandbox.clock, budget=unlimited(), sleep=at_once)) as source:
            events = Events(source)
            for _ in range(CUTS):
                await events.next(Lost)
            joined = await events.next(Joined)
            await events.until(lambda event: isinstance(event, Heard) and event.at > joined.at + 3600)
            return events.seen

    with served(sandbox) as url:
        events = run(main(url))
    until = max(
        event.at for event in events if isinstance(event, Heard)
    )  # of the messages' order: up to here all was told that was not lost
    sandbox.clock = lambda: until
    heard_last = {(one.symbol, one.timeframe, one.opened_at): numbers(one) for one in events if isinstance(one, Heard)}
    changes = [event for event in events if not isinstance(event, Heard)]
    assert [type(event) for event in changes] == [Joined, *[Lost, Joined] * CUTS]
    begun = changes[0]
    assert isinstance(begun, Joined)
    pairs = itertools.pairwise(changes)
    gaps = [(lost.since, joined.at) for lost, joined in pairs if isinstance(lost, Lost) and isinstance(joined, Joined)]
    missed = 0
    for name, symbols in wanted.items():
        for symbol in symbols:
            for opened_at in sandbox.candles(symbol, timeframe(name), int(until), 10_000).opened_at.tolist():
                closed = timeframe(name).after(opened_at)
                candle = (symbol, name, opened_at)
                if begun.at < closed < until and heard_last.get(candle) != final_of(sandbox, *candle):
                    missed += 1
                    assert any(since < closed <= at for since, at in gaps), candle
    assert missed > 5


def test_what_is_wanted_later_is_joined_by_itself(stream: Stream) -> None:
    """Those that were heard before hear nothing of it; what is not wanted any more is not heard."""
    wanted = Wanted({"1m": [BTC, ETH]})

    async def main() -> tuple[list[Event], list[Event]]:
        async with stream.of(wanted) as events:
            await events.until(lambda event: isinstance(event, Heard) and event.symbol == ETH)
            wanted.change({"1m": [BTC, XRP]})
            joined = await events.until(lambda event: isinstance(event, Heard) and event.symbol == XRP)
            stream.clock.now += 60
            return joined, await events.until(lambda event: isinstance(event, Heard) and event.symbol == XRP and event.at > NOW)

    joined, after = run(main())
    assert [event.symbols for event in joined if isinstance(event, Joined)] == [(XRP,)]
    assert not [event for event in (*joined, *after) if isinstance(event, Lost)]
    assert ETH not in {event.symbol for event in after if isinstance(event, Heard)}
    assert stream.counts.connects == 2


def test_a_connection_that_nobody_needs_is_closed(stream: Stream) -> None:
    wanted = Wanted({"1m": [BTC]})

    async def main() -> list[Event]:
        async with stream.of(wanted) as events:
            await events.join()
            for symbol in (ETH, XRP, BTC, ETH, XRP, BTC):
                wanted.change({"1m": [symbol]})
                await events.join()
            return events.seen

    changes = [event for event in run(main()) if not isinstance(event, Heard)]
    assert [event.symbols for event in changes] == [(BTC,), *[(ETH,), (XRP,), (BTC,)] * 2]
    assert all(isinstance(event, Joined) for event in changes)


def test_too_many_connections_are_begun_anew(stream: Stream) -> None:
    """All are lost and joined then, over as few as can be."""
    markets = [BTC, ETH, XRP, "KRW-ADA", "KRW-DOGE", "KRW-SOL"]
    wanted = Wanted({"1m": markets[:1]})

    async def main() -> list[Event]:
        async with stream.of(wanted) as events:
            await events.join()
            for n in range(2, len(markets) + 1):
                wanted.change({"1m": markets[:n]})
                await events.until(lambda event, n=n: isinstance(event, Joined) and markets[n - 1] in event.symbols)  # type: ignore[misc]
            return events.seen

    changes = [event for event in run(main()) if not isinstance(event, Heard)]
    assert [event.symbols for event in changes if isinstance(event, Lost)] == [(symbol,) for symbol in markets[: socket.SPARE + 1]]
    joined = [event.symbols for event in changes if isinstance(event, Joined)]
    assert joined == [*[(symbol,) for symbol in markets[: socket.SPARE + 1]], tuple(markets[: socket.SPARE + 2]), (markets[-1],)]


def test_messages_that_are_repeated_are_heard_once(stream: Stream) -> None:
    stream.sandbox.socket_faults = lambda told: SocketFault.repeating()

    async def main() -> list[Event]:
        async with stream.of({"1m": [BTC]}) as events:
            await events.join()
            for _ in range(5):
                stream.clock.now += 60
                await events.until(lambda event: isinstance(event, Heard) and event.opened_at == stream.clock.now // 60 * 60)
            return events.seen

    found = [event for event in run(main()) if isinstance(event, Heard)]
    assert len(found) == len(set(found)) == 11
    assert stream.counts.repeated >= 9  # what follows the last is not waited for


def test_messages_out_of_order_leave_the_same_last_states(stream: Stream) -> None:
    stream.sandbox.socket_faults = lambda told: SocketFault.backwards()

    async def main() -> list[Event]:
        async with stream.of({"1m": [BTC]}) as events:
            await events.join()
            stream.clock.now += 5 * 60
            await events.until(lambda event: isinstance(event, Heard) and event.opened_at == MINUTE_OPEN and event.at > NOW)
            return events.seen

    last = {one.opened_at: one for one in run(main()) if isinstance(one, Heard)}
    assert sorted(last) == [MINUTE_OPEN + n * 60 for n in range(6)]
    assert all(numbers(one) == final_of(stream.sandbox, BTC, "1m", at) for at, one in last.items())


def test_a_state_that_was_overtaken_by_a_later_one_is_not_passed_on(stream: Stream) -> None:
    earlier: list[Message] = []

    def also_the_one_before(told: Told) -> SocketFault:
        before = list(earlier)
        earlier[:] = told.messages
        return SocketFault(alter=lambda messages: messages + before)

    stream.sandbox.socket_faults = also_the_one_before

    async def main() -> list[Event]:
        async with stream.of({"4h": [BTC]}) as events:
            await events.join()
            for _ in range(4):
                stream.clock.now += 60
                await events.next(Heard)
            return events.seen

    ats = [one.at for one in run(main()) if isinstance(one, Heard)]
    assert ats == sorted(set(ats))
    assert stream.counts.stale >= 3


def test_a_candle_that_changes_after_its_close_is_heard_again(stream: Stream) -> None:
    async def main() -> list[Heard]:
        async with stream.of({"1m": [BTC]}) as events:
            await events.join()
            stream.clock.now += 60
            await events.until(lambda event: isinstance(event, Heard) and event.opened_at == MINUTE_OPEN + 60)
            before = [one for one in events.seen if isinstance(one, Heard) and one.opened_at == MINUTE_OPEN][-1]
            stream.sandbox.correct(BTC, TIMEFRAMES["1m"], MINUTE_OPEN, close=before.close + 1, high=before.high + 1)
            return [before, await events.next(Heard)]

    before, after = run(main())
    assert after.at == before.at
    assert numbers(after) == final_of(stream.sandbox, BTC, "1m", MINUTE_OPEN) != numbers(before)


def test_a_final_state_that_is_never_told_is_not_made_up(stream: Stream) -> None:
    stream.sandbox.socket_faults = lambda told: SocketFault.without_finals()

    async def main() -> list[Event]:
        async with stream.of({"1m": [BTC]}) as events:
            await events.join()
            stream.clock.now += 60
            await events.until(lambda event: isinstance(event, Heard) and event.opened_at == MINUTE_OPEN + 60)
            return events.seen

    states = [one for one in run(main()) if isinstance(one, Heard) and one.opened_at == MINUTE_OPEN]
    assert [one.at <= NOW for one in states] == [True]


# ---- what the exchange refuses


def test_a_request_that_is_refused_again_and_again_is_our_mistake(stream: Stream) -> None:
    stream.sandbox.socket_faults = lambda told: SocketFault.saying("INVALID_PARAM", "type candle.1m is not supported.")

    async def main() -> None:
        async with stream.of({"1m": [BTC]}) as events:
            await events.join()

    with pytest.raises(wire.BadRequest, match=r"answered INVALID_PARAM: type candle\.1m is not supported"):
        run(main())
    assert stream.counts.connects == REFUSALS


def test_a_request_that_is_refused_now_and_then_is_made_again(stream: Stream) -> None:
    stream.sandbox.socket_faults = lambda told: SocketFault.saying("NO_CODES", "?") if told.beat == 1 else None

    async def main() -> None:
        async with stream.of({"1m": [BTC]}) as events:
            for _ in range(2 * REFUSALS):
                await events.next(Heard)
                stream.clock.now += 60

    run(main())
    assert stream.counts.lost >= 2 * REFUSALS - 1


@dataclass
class Jumping:
    """Time that passes only where somebody sleeps."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def test_too_many_handshakes_are_waited_for(stream: Stream) -> None:
    stream.sandbox.limit("websocket-connect", 0)
    ours = Jumping()
    budget = MemoryBudget(ours)

    async def sleep(seconds: float) -> None:
        if stream.counts.connects == 3:
            stream.sandbox.limit("websocket-connect", None)
        await ours.sleep(seconds)

    async def main() -> None:
        async with stream.of({"1m": [BTC]}, budget=budget, sleep=sleep) as events:
            await events.join()

    run(main())
    assert stream.counts.connects == 4
    assert ours.now >= 1_003.0  # after each refusal the exchange's next second
    assert any("429" in notice for notice in stream.notices)


def test_a_block_is_waited_for_and_all_who_share_the_budget_know_of_it(stream: Stream) -> None:
    stream.sandbox.limits.blocked_until = NOW + 600.0
    stream.sandbox.limit("websocket-connect", 5)
    ours = Jumping()
    budget = MemoryBudget(ours)

    async def sleep(seconds: float) -> None:
        stream.clock.now += seconds
        await ours.sleep(seconds)

    async def main() -> None:
        async with stream.of({"1m": [BTC]}, budget=budget, sleep=sleep) as events:
            await events.join()

    run(main())
    assert stream.counts.connects == 2
    assert ours.now >= 1_600.0
    assert any("has blocked this address for 600 s" in notice for notice in stream.notices)


def test_all_handshakes_of_one_budget_together_are_five_a_second() -> None:
    ours = Jumping()
    budget = MemoryBudget(ours)

    async def main() -> list[float]:
        lines = [socket._Line("", {"1m": [BTC]}, noted, ours, budget, Patience(), ours.sleep, Counts(), None) for _ in range(3)]
        return [await line._turn() for _ in range(20) for line in lines]

    turns = run(main())
    assert all(turns[n + 5] - turns[n] > 1.0 for n in range(len(turns) - 5))
    assert turns[-1] - turns[0] < 60 / 5 * 1.05  # and hardly fewer


async def noted(_: Event) -> None:
    raise AssertionError("nothing happened")


def test_300_markets_with_8_timeframes_and_a_second_client_beside(tmp_path: Any) -> None:
    """The limits of the exchange are in force."""
    sandbox = Sandbox(limits=True)
    symbols = [f"KRW-X{n}" for n in range(297)] + [BTC, ETH, "KRW-XRP"]
    wanted = dict.fromkeys(TYPES, symbols)

    async def join(url: str) -> None:
        async with aclosing(listen(url, wanted, time.time, budget=SharedBudget(tmp_path / "budget.json"))) as source:
            events = Events(source)
            joined = [await events.next(Joined) for _ in range(4)]
            assert sorted(symbol for one in joined for symbol in one.symbols) == sorted(symbols)

    async def main(url: str) -> None:
        await asyncio.gather(join(url), join(url))

    with served(sandbox) as url:
        run(main(url))
    requests = [logged.query["request"] for logged in sandbox.log if logged.status == 200]
    assert len(requests) == 8
    assert all(len(request) <= LONGEST for request in requests)


def test_an_exchange_that_cannot_be_reached(tmp_path: Any) -> None:
    notices: list[str] = []
    three = asyncio.Event()

    def notice(what: str) -> None:
        notices.append(what)
        if len(notices) == 3:
            three.set()

    async def main() -> None:
        listening = listen("http://127.0.0.1:1", {"1m": [BTC]}, budget=unlimited(), sleep=at_once, notice=notice)
        async with aclosing(listening) as source:
            first = asyncio.ensure_future(anext(source))
            async with asyncio.timeout(HANGS):
                await three.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    run(main())
    assert all("ws://127.0.0.1:1/websocket/v1 cannot be reached: ConnectionRefusedError" in what for what in notices[:3])


# ---- an exchange of another kind


@asynccontextmanager
async def exchange(
    talk: Callable[[ServerConnection], Awaitable[None]], wanted: dict[str, list[str]], patience: Patience | None = None, refuse: Any = None
) -> AsyncIterator[tuple[Events, Counts]]:
    """What is heard of an exchange that does nothing but `talk`, at 5 o'clock."""
    counts = Counts()
    async with serve(talk, "127.0.0.1", 0, process_request=refuse) as server:
        url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        async with aclosing(
            listen(url, wanted, lambda: 5.0, budget=unlimited(), patience=patience, sleep=at_once, counts=counts)
        ) as source:
            yield Events(source), counts


def test_rubbish_is_survived_and_counted() -> None:
    headers: list[Any] = []

    async def talk(socket: ServerConnection) -> None:
        assert socket.request is not None
        headers.append((socket.request.path, socket.request.headers))
        await socket.recv()
        for rubbish in RUBBISH:
            await socket.send(rubbish)
        socket.transport.write(b"\x81\x02\xff\xfe")  # a text that is none
        await socket.send(frame(code="KRW-ETH"))  # nobody asked for it
        await socket.send(frame(type="candle.3m", candle_date_time_utc="2026-08-26T08:06:00"))
        await socket.send(frame())
        await socket.wait_closed()

    async def main() -> tuple[list[Event], Counts]:
        async with exchange(talk, {"1m": [BTC]}) as (events, counts):
            return await events.until(lambda event: isinstance(event, Heard)), counts

    found, counts = run(main())
    assert found == [Joined(5.0, (BTC,)), CANDLE]
    assert (counts.rubbish, counts.lost) == (len(RUBBISH) + 1, 0)
    ((path, header),) = headers
    assert path == PATH
    assert "Origin" not in header  # would leave us one request in 10 s


def test_a_handshake_that_somebody_refuses_is_tried_again() -> None:
    """A proxy's 403, and the 503 of a maintenance, are not the exchange's word on our request."""
    refusals = [403, 503, 403, 403, 403]

    def refuse(connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(refusals.pop(), "<html>") if refusals else None

    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.send(frame())
        await connection.wait_closed()

    async def main() -> list[Event]:
        async with exchange(talk, {"1m": [BTC]}, refuse=refuse) as (events, _):
            return await events.until(lambda event: isinstance(event, Heard))

    assert run(main()) == [Joined(5.0, (BTC,)), CANDLE]
    assert refusals == []


def test_one_request_and_then_a_ping_now_and_then() -> None:
    told: list[str | bytes] = []

    async def talk(socket: ServerConnection) -> None:
        async for message in socket:
            told.append(message)
            if message == "PING" and len(told) > 4:
                await socket.send('{"status":"UP"}')

    async def main() -> None:
        async with exchange(talk, {"1h": [BTC]}, Patience(look=0.005, ping_every=0.01)) as (events, _):
            await events.join()

    run(main())
    assert told[1:5] == ["PING"] * 4
    (ticket, kind, form) = json.loads(told[0])
    assert len(ticket["ticket"]) == 36
    assert (kind, form) == ({"type": "candle.60m", "codes": [BTC]}, {"format": "DEFAULT"})


def test_who_listens_slowly_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "QUEUED", 1)

    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        for n in range(200):
            await connection.send(frame(timestamp=1787731717049 + n))
        await connection.wait_closed()

    async def main() -> tuple[list[float], Counts]:
        found = []
        async with exchange(talk, {"1m": [BTC]}, Patience(look=0.005, silence=0.3, ping_every=100)) as (events, counts):
            for n in range(200):
                found.append((await events.next(Heard)).at)
                if n == 50:
                    await asyncio.sleep(0.6)  # twice as long as a silence
        return found, counts

    found, counts = run(main())
    assert found == [(1787731717049 + n) / 1000 for n in range(200)]
    assert counts.lost == 0


# ---- the embedded exchange


def test_the_embedded_exchange_runs_by_our_clock() -> None:
    clock = FastClock(3600.0, NOW, time.time())
    threads = threading.active_count()

    async def main() -> tuple[list[Event], set[Any]]:
        async with aclosing(listen("sandbox", {"1m": [BTC, ETH], "1h": [BTC]}, clock)) as source:
            events = Events(source)
            await events.until(lambda event: isinstance(event, Heard) and (event.symbol, event.opened_at) == (ETH, MINUTE_OPEN + 3600))
        return events.seen, asyncio.all_tasks()

    seen, tasks = run(main())
    last = {one.opened_at: one for one in seen if isinstance(one, Heard) and (one.symbol, one.timeframe) == (ETH, "1m")}
    rest = Sandbox(clock=lambda: float(MINUTE_OPEN + 7200))
    expected = rest.candles(ETH, TIMEFRAMES["1m"], MINUTE_OPEN + 3600, 60)
    opened = [at for at in expected.opened_at.tolist() if at >= min(last)]
    assert len(opened) > 10
    assert [numbers(last[at]) for at in opened] == [final_of(rest, ETH, "1m", at) for at in opened]
    assert len(tasks) == 1
    assert threading.active_count() <= threads + 1  # the loop's own pool may keep one
