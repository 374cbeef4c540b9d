"""Upbit's own package on the sandbox's WebSocket gets what ours gets, message for message."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from contextlib import aclosing
from typing import Any, Literal

import pytest
import upbit

from mdms_pipeline.collect import wire
from mdms_pipeline.collect.client import unlimited
from mdms_pipeline.collect.socket import FRAMES, TYPES, Heard, listen
from mdms_pipeline.sandbox import Sandbox, served
from mdms_pipeline_tests.support import NOW, Clock

SYMBOLS = ["KRW-BTC", "KRW-ETH", "KRW-CBK"]  # the last is not traded every minute
STEPS = (1.0, 61.0, 3_600.0, 5 * 3_600.0)  # s
WANTED = dict.fromkeys(TYPES, SYMBOLS)
Row = tuple[Any, ...]  # symbol, timeframe, opening instant, open, high, low, close, volume, value, time of the last trade (s)

NAMES = (
    "code", "type", "candle_date_time_utc", "opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume",
    "candle_acc_trade_price", "timestamp",
)  # fmt: skip
SHORT = ("cd", "ty", "cdttmu", "op", "hp", "lp", "tp", "catv", "catp", "tms")
formats = pytest.mark.parametrize("form", ["DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"])


class World:
    """An exchange whose clock goes on once a client has heard all that there is at its instant."""

    def __init__(self) -> None:
        self.clock = Clock(NOW)
        self.sandbox = Sandbox(clock=self.clock)
        self.sandbox.beat = 0.005

    def hear(self) -> Generator[None, Row, list[Row]]:
        """Is sent every row; ends with all of them, after the last step's last."""
        rows: list[Row] = []
        heard = set()
        for step in (0.0, *STEPS):
            self.clock.now += step
            left = self._newest()
            while not left <= heard:
                row = yield
                rows.append(row)
                heard.add((row[0], row[1], row[-1]))
        return rows

    def _newest(self) -> set[Row]:
        """(symbol, timeframe, time of the last trade) of each candle that forms now."""
        tickers = [self.sandbox.ticker(symbol) for symbol in SYMBOLS]
        return {(ticker.market, name, ticker.traded_ms / 1000) for ticker in tickers if ticker is not None for name in WANTED}


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def address(world: World) -> Iterator[str]:
    with served(world.sandbox) as found:
        yield found


def row_of(event: Any) -> Row:
    """A candle of upbit-sdk, whose numbers are texts."""
    names = NAMES if hasattr(event, "type") else SHORT
    symbol, kind, opened_at, *numbers, timestamp = (getattr(event, name) for name in names)
    return (symbol, FRAMES[kind], wire.opened_at(opened_at), *map(float, numbers), timestamp / 1000)


def ours() -> list[Row]:
    """What our client hears in the same world, from the beginning."""
    world = World()

    async def main(address: str) -> list[Row]:
        hearing = world.hear()
        next(hearing)
        async with asyncio.timeout(30), aclosing(listen(address, WANTED, world.clock, budget=unlimited())) as events:
            async for event in events:
                if isinstance(event, Heard):
                    columns = (event.open, event.high, event.low, event.close, event.volume, event.value, event.at)
                    try:
                        hearing.send((event.symbol, event.timeframe, event.opened_at, *columns))
                    except StopIteration as end:
                        return list(end.value)
        raise AssertionError("the stream ended")

    with served(world.sandbox) as address:
        return asyncio.run(main(address))


def subscribed() -> dict[str, list[str]]:
    """`WANTED` by the names of upbit-sdk."""
    return {TYPES[name].removeprefix("candle."): symbols for name, symbols in WANTED.items()}


def together(event: Any) -> list[Any]:
    """The LIST formats put messages into lists."""
    return event if isinstance(event, list) else [event]


@formats
def test_candles_of_upbit_sdk(world: World, address: str, form: Literal["DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"]) -> None:
    hearing = world.hear()
    next(hearing)
    theirs: list[Row] = []
    with upbit.Upbit(base_url=address).ws_stream.subscribe(candle=subscribed(), format=form) as stream:
        for event in (one for frame in stream for one in together(frame)):
            try:
                hearing.send(row_of(event))
            except StopIteration as end:
                theirs = end.value
                break
    assert theirs == ours()
    assert len(theirs) > 3 * 6 * 60


def test_candles_of_upbit_sdk_without_waiting(world: World, address: str) -> None:
    """Its other half, which is asynchronous."""

    async def main() -> list[Row]:
        hearing = world.hear()
        next(hearing)
        async with upbit.AsyncUpbit(base_url=address) as client, client.ws_stream.subscribe(candle=subscribed()) as stream:
            async for event in stream:
                try:
                    hearing.send(row_of(event))
                except StopIteration as end:
                    return list(end.value)
        raise AssertionError("the stream ended")

    assert asyncio.run(main()) == ours()


@formats
def test_tickers_and_trades_of_upbit_sdk(
    world: World, address: str, form: Literal["DEFAULT", "SIMPLE", "JSON_LIST", "SIMPLE_LIST"]
) -> None:
    ticker = world.sandbox.ticker("KRW-BTC")
    assert ticker is not None
    with upbit.Upbit(base_url=address).ws_stream.subscribe(ticker=["KRW-BTC"], trade=["KRW-BTC"], format=form) as stream:
        first, second = (together(stream.recv())[0] for _ in range(2))
        names = ("tp", "ttms", "st", "ab") if form.startswith("SIMPLE") else ("trade_price", "trade_timestamp", "stream_type", "ask_bid")
        expected = (ticker.close, ticker.traded_ms, "SNAPSHOT")
        for event, kind in ((first, "Ticker"), (second, "Trade")):
            price, at, stream_type, side = (getattr(event, name) for name in names)
            assert (float(price), at, stream_type) == expected
            assert side in ("ASK", "BID")
            assert type(event).__name__ == ("Simple" if form.startswith("SIMPLE") else "") + kind
        answer = stream.list_subscriptions()
    found = getattr(answer, "result", None) or answer.rslt  # type: ignore[union-attr]
    assert [getattr(one, "type", None) or one.ty for one in found] == ["ticker", "trade"]


def test_an_error(address: str) -> None:
    with upbit.Upbit(base_url=address).ws_stream.candle([], interval="1m") as stream:
        assert stream.recv().error == {"name": "INVALID_PARAM", "message": "The codes field is empty."}
        assert list(stream) == []  # closed in good order: it does not come again
