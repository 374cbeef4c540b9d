"""Clients that people use for Upbit do not notice the sandbox, and each gets what ours gets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import ccxt
import httpx
import pytest
import upbit

from mdms_pipeline.collect import wire
from mdms_pipeline.market import TIMEFRAMES, iso, timeframe
from mdms_pipeline.sandbox import Sandbox
from mdms_pipeline_tests.clients.conftest import Ours
from mdms_pipeline_tests.support import NOW

BUSY, QUIET = "KRW-BTC", "KRW-CBK"  # the second is not traded every minute
COUNT = 7
PERIODS = {"1d": "days", "1w": "weeks", "1M": "months"}
Row = tuple[float, ...]  # opening instant (s UTC), open, high, low, close, volume, value

every_timeframe = pytest.mark.parametrize("frame", TIMEFRAMES)
ends = pytest.mark.parametrize("forming", [False, True], ids=["closed", "with the forming one"])
markets = pytest.mark.parametrize("market", [BUSY, QUIET])


def end(frame: str, forming: bool) -> int:
    """Before which candles are asked for."""
    return NOW + 1 if forming else timeframe(frame).floor(NOW)


def our_candles(ours: Ours, market: str, frame: str, to: int) -> list[Row]:
    found = ours(lambda exchange: exchange.candles(market, frame, to, COUNT))
    columns = (found.opened_at, found.open, found.high, found.low, found.close, found.volume, found.value)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# ---- candles


@markets
@ends
@every_timeframe
def test_candles_of_upbit_sdk(ours: Ours, sdk: upbit.Upbit, market: str, frame: str, forming: bool) -> None:
    to = end(frame, forming)
    asked: dict[str, Any] = {"market": market, "to": iso(to), "count": COUNT}
    if frame in PERIODS:
        found = getattr(sdk.candles, f"list_{PERIODS[frame]}")(**asked)
    else:
        seconds = timeframe(frame).seconds
        assert seconds is not None
        found = sdk.candles.list_minutes(seconds // 60, **asked)  # type: ignore[arg-type]
    names = ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume", "candle_acc_trade_price")
    rows = [(wire.opened_at(row.candle_date_time_utc), *(float(getattr(row, name)) for name in names)) for row in reversed(found)]
    assert rows == our_candles(ours, market, frame, to)
    assert len(rows) == COUNT


@markets
@ends
@every_timeframe
def test_candles_of_pyupbit(ours: Ours, quotations: Any, market: str, frame: str, forming: bool) -> None:
    to = end(frame, forming)
    seconds = timeframe(frame).seconds or 0
    interval = PERIODS[frame].removesuffix("s") if frame in PERIODS else f"minute{seconds // 60}"
    found = quotations.get_ohlcv(market, interval=interval, count=COUNT, to=iso(to).replace("T", " ").removesuffix("Z"))
    opened_at = [int((at - timedelta(hours=9)).tz_localize("UTC").timestamp()) for at in found.index]
    columns = [found[name].tolist() for name in ("open", "high", "low", "close", "volume", "value")]
    assert list(zip(opened_at, *columns, strict=True)) == our_candles(ours, market, frame, to)


@markets
@ends
@every_timeframe
def test_candles_of_ccxt(ours: Ours, exchange_of_ccxt: ccxt.upbit, market: str, frame: str, forming: bool) -> None:
    to = end(frame, forming)
    found = exchange_of_ccxt.fetch_ohlcv("/".join(reversed(market.split("-"))), frame, limit=COUNT, params={"to": iso(to)})
    rows = [(row[0] // 1000, *row[1:]) for row in found]
    assert rows == [row[:-1] for row in our_candles(ours, market, frame, to)]  # ccxt leaves the value out


# ---- markets and tickers


def test_markets(ours: Ours, sdk: upbit.Upbit, quotations: Any, exchange_of_ccxt: ccxt.upbit) -> None:
    listings = ours(lambda exchange: exchange.markets())
    symbols = [listing.symbol for listing in listings]
    rows = [row for row in sdk.trading_pairs.list(is_details=True) if row.market.startswith("KRW-")]
    assert [
        wire.Listing(row.market, row.korean_name, row.english_name, bool(row.market_event and row.market_event.warning)) for row in rows
    ] == listings
    assert quotations.get_tickers("KRW") == symbols
    assert [market["id"] for market in exchange_of_ccxt.fetch_markets() if market["quote"] == "KRW"] == symbols


def test_tickers(ours: Ours, sdk: upbit.Upbit, quotations: Any, exchange_of_ccxt: ccxt.upbit) -> None:
    turnovers = ours(lambda exchange: exchange.turnovers())
    rows = sdk.tickers.list_by_quote_currencies(quote_currencies="KRW")
    assert {row.market: float(row.acc_trade_price_24h) for row in rows} == turnovers
    assert {row.market: row.trade_timestamp // 1000 for row in rows} == {
        symbol: int(at) for symbol, at in ours(lambda exchange: exchange.last_trades()).items()
    }
    some = [BUSY, QUIET, "KRW-ETH"]
    prices = {row.market: float(row.trade_price) for row in sdk.tickers.list_by_trading_pairs(markets=",".join(some))}
    assert quotations.get_current_price(some) == prices
    assert quotations.get_current_price(BUSY) == prices[BUSY]
    tickers = exchange_of_ccxt.fetch_tickers(["/".join(reversed(symbol.split("-"))) for symbol in some])
    assert {ticker["info"]["market"]: ticker["last"] for ticker in tickers.values()} == prices
    assert {ticker["info"]["market"]: ticker["quoteVolume"] for ticker in tickers.values()} == {
        symbol: turnovers[symbol] for symbol in some
    }


# ---- errors


def test_an_unknown_market(ours: Ours, sdk: upbit.Upbit, quotations: Any, exchange_of_ccxt: ccxt.upbit) -> None:
    with pytest.raises(wire.NotFound, match="Code not found"):
        ours(lambda exchange: exchange.candles("KRW-NOPE", "1d", NOW, 1))
    with pytest.raises(upbit.NotFoundError, match="Code not found") as error:
        sdk.candles.list_days(market="KRW-NOPE")
    assert error.value.body == {"error": {"name": 404, "message": "Code not found"}}
    with pytest.raises(quotations.errors.UpbitError, match="Code not found"):
        quotations.get_current_price("KRW-NOPE")
    assert quotations.get_ohlcv("KRW-NOPE") is None  # its way of saying so
    with pytest.raises(ccxt.ExchangeError, match="Code not found"):
        exchange_of_ccxt.publicGetCandlesTimeframe({"timeframe": "days", "market": "KRW-NOPE"})


def test_requests_that_are_wrong(url: str, sdk: upbit.Upbit, exchange_of_ccxt: ccxt.upbit) -> None:
    with pytest.raises(wire.BadRequest, match="specified unit is not valid"):
        wire.check(httpx.get(f"{url}/v1/candles/minutes/7", params={"market": BUSY}))
    with pytest.raises(upbit.BadRequestError, match="specified unit is not valid"):
        sdk.candles.list_minutes(7, market=BUSY)  # type: ignore[arg-type]
    with pytest.raises(ccxt.ExchangeError, match="specified unit is not valid"):
        exchange_of_ccxt.publicGetCandlesTimeframeUnit({"timeframe": "minutes", "unit": 7, "market": BUSY})
    with pytest.raises(wire.BadRequest, match="Missing request parameter"):
        wire.check(httpx.get(f"{url}/v1/candles/days"))
    with pytest.raises(upbit.BadRequestError, match="Missing request parameter"):
        sdk.candles.list_days(market="")
    with pytest.raises(ccxt.BadRequest, match="Missing request parameter"):
        exchange_of_ccxt.publicGetCandlesTimeframe({"timeframe": "days"})


@pytest.fixture
def unlimited_again(sandbox: Sandbox) -> Iterator[None]:
    """What a test limits is lifted behind it."""
    yield
    sandbox.limit("candles", None)
    sandbox.limits.blocked_until = 0.0
    sandbox.limits.refused.clear()


@pytest.mark.usefixtures("unlimited_again")
def test_too_many_requests(url: str, sandbox: Sandbox, sdk: upbit.Upbit, quotations: Any, exchange_of_ccxt: ccxt.upbit) -> None:
    exchange_of_ccxt.load_markets()
    sandbox.limit("candles", 0)
    with pytest.raises(wire.TooMany):
        wire.check(httpx.get(f"{url}/v1/candles/days", params={"market": BUSY}))
    with pytest.raises(upbit.RateLimitError):
        sdk.candles.list_days(market=BUSY)
    with pytest.raises(ccxt.RateLimitExceeded):
        exchange_of_ccxt.fetch_ohlcv("BTC/KRW", "1d")
    assert quotations.get_ohlcv(BUSY) is None


@pytest.mark.usefixtures("unlimited_again")
def test_a_block(ours: Ours, sandbox: Sandbox, sdk: upbit.Upbit, quotations: Any, exchange_of_ccxt: ccxt.upbit) -> None:
    exchange_of_ccxt.load_markets()
    sandbox.limits.blocked_until = NOW + 600.0
    with pytest.raises(wire.Blocked, match=r"blocked for 600 seconds") as error:
        ours(lambda exchange: exchange.candles(BUSY, "1d", NOW, 1))
    assert "until 2026-11-20 09:40:20 UTC = 2026-11-20 18:40:20 KST" in str(error.value)
    with pytest.raises(upbit.RateLimitPenaltyError, match="blocked for 600 seconds"):
        sdk.candles.list_days(market=BUSY)
    with pytest.raises(ccxt.ExchangeError, match="blocked for 600 seconds"):
        exchange_of_ccxt.fetch_ohlcv("BTC/KRW", "1d")
    with pytest.raises(quotations.errors.UpbitError, match="blocked for 600 seconds"):
        quotations.get_current_price(BUSY)


def test_upbit_sdk_without_waiting(ours: Ours, url: str) -> None:
    """Its other half, which is asynchronous."""

    async def asked() -> list[str]:
        async with upbit.AsyncUpbit(base_url=url, max_retries=0) as client:
            return [row.market for row in await client.trading_pairs.list() if row.market.startswith("KRW-")]

    assert asyncio.run(asked()) == [listing.symbol for listing in ours(lambda exchange: exchange.markets())]
