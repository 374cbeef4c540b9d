"""Upbit's public REST, one request at a time: paths and parameters out, our types in.

    ExchangeError
    ├── NotFound        the market does not exist (any more)
    ├── BadRequest      the exchange refuses the request as written: our mistake, never repeated
    ├── Blocked         418: no request may leave until `until`
    └── Transient       worth another try
        ├── TooMany     429: over the limit of this second
        ├── Unreachable no answer, or one that broke off
        ├── ServerDown  5xx
        └── Garbled     200, but not the JSON that was asked for

Source: Upbit developer documentation, read 2026-11-22.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import httpx
import numpy as np

from mdms_pipeline.market import PRICES_AND_AMOUNTS, TIMEFRAMES, Candles, Instant, iso

Found = TypeVar("Found", list[Any], dict[str, float])

MAX_CANDLES = 200  # per request; more is cut to this in silence. Upbit documentation
BLOCK_SECONDS = 60.0  # how long we stay away after a 418 that does not say how long
FIELDS = ("opening_price", "high_price", "low_price", "trade_price", "candle_acc_trade_volume", "candle_acc_trade_price")


class ExchangeError(Exception):
    """The exchange gave no usable answer."""


class NotFound(ExchangeError):
    """The exchange does not know this market."""


class BadRequest(ExchangeError):
    """The exchange refuses the request as it is written."""


class Blocked(ExchangeError):
    """The exchange has shut this address out for a while."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class Transient(ExchangeError):
    """Worth another try."""


class TooMany(Transient):
    """Over the limit of this second."""


class Unreachable(Transient):
    """No answer, or one that broke off."""


class ServerDown(Transient):
    """The exchange says that it has a problem."""


class Garbled(Transient):
    """An answer that is not what was asked for."""


@dataclass(frozen=True)
class Request:
    """One GET. `group` is the rate limit that it counts against."""

    group: str
    path: str
    params: Mapping[str, str]


@dataclass(frozen=True)
class Listing:
    """One row of market/all."""

    symbol: str
    korean_name: str
    english_name: str
    warning: bool


@dataclass(frozen=True)
class Today:
    """One row of ticker/all: the market's UTC day so far, as its day candle is; of an earlier day where nothing was traded since."""

    symbol: str
    traded_at: float  # s UTC, the last trade
    open: float
    high: float
    low: float
    close: float
    volume: float  # base asset, since midnight UTC
    value: float  # KRW, since midnight UTC
    turnover: float  # KRW, over 24 h


def markets_request() -> Request:
    return Request("market", "/v1/market/all", {"is_details": "true"})


def tickers_request() -> Request:
    return Request("ticker", "/v1/ticker/all", {"quote_currencies": "KRW"})


def candles_request(symbol: str, timeframe: str, to: Instant, count: int) -> Request:
    """The newest `count` candles that opened before `to`."""
    return Request("candles", _candle_path(timeframe), {"market": symbol, "to": iso(to), "count": str(min(count, MAX_CANDLES))})


def _candle_path(timeframe: str) -> str:
    seconds = TIMEFRAMES[timeframe].seconds
    if timeframe in ("1d", "1w", "1M"):
        return {"1d": "/v1/candles/days", "1w": "/v1/candles/weeks", "1M": "/v1/candles/months"}[timeframe]
    assert seconds is not None
    return f"/v1/candles/minutes/{seconds // 60}"


def check(response: httpx.Response) -> Any:
    """The JSON of a good answer, else the error that the answer stands for."""
    status = response.status_code
    if status == 200:
        try:
            return json.loads(response.content)
        except ValueError:
            raise Garbled(f"answered 200 with what is not JSON: {_said(response)}") from None
    said = _said(response)
    if status == 418:
        raise Blocked(f"answered 418, blocked: {said}", block_seconds(response))
    if status == 429:
        raise TooMany("answered 429, too many requests")
    if status == 404:
        raise NotFound(f"answered 404: {said}")
    if status >= 500:
        raise ServerDown(f"answered {status}: {said}")
    raise BadRequest(f"answered {status}: {said}")


def block_seconds(response: httpx.Response) -> float:
    """How long a 418 lasts. Its body is not documented: a number beside the word second(s) is taken, else Retry-After, else a minute."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*(?:s\b|sec)", response.text)
    if found:
        return float(found.group(1))
    after = response.headers.get("Retry-After", "")
    return float(after) if re.fullmatch(r"\d+", after) else BLOCK_SECONDS


def remaining(headers: Mapping[str, str]) -> tuple[str, int] | None:
    """(group, requests left in this second) from `Remaining-Req: group=candles; min=600; sec=9`; None where it is absent or odd."""
    parts = dict(part.strip().split("=", 1) for part in headers.get("Remaining-Req", "").split(";") if "=" in part)
    left = parts.get("sec", "")
    return (parts["group"], int(left)) if "group" in parts and re.fullmatch(r"\d{1,9}", left) else None


def parse_markets(body: Any) -> list[Listing]:
    """KRW markets of market/all.

    {"market": "KRW-BTC", "korean_name": "비트코인", "english_name": "Bitcoin", "market_event": {"warning": false, "caution": {...}}}
    """
    with shape("market/all"):
        found = [
            Listing(row["market"], row["korean_name"], row["english_name"], bool(row.get("market_event", {}).get("warning", False)))
            for row in _rows(body)
            if row["market"].startswith("KRW-")
        ]
        return _some(found)


def parse_turnovers(body: Any) -> dict[str, float]:
    """Market -> KRW traded over 24 h, from ticker/all.

    {"market": "KRW-BTC", "trade_price": 162876000.0, "acc_trade_price_24h": 167740032580.71, ...}
    """
    with shape("ticker/all"):
        return _some({row["market"]: float(row["acc_trade_price_24h"]) for row in _rows(body)})


def parse_last_trades(body: Any) -> dict[str, float]:
    """Market -> instant of its last trade (s UTC), from ticker/all.

    {"market": "KRW-BTC", "trade_timestamp": 1753894995076, ...}
    """
    with shape("ticker/all"):
        return _some({row["market"]: float(row["trade_timestamp"]) / 1000 for row in _rows(body)})


def parse_today(body: Any) -> list[Today]:
    """Every KRW market's day, from ticker/all.

    {"market": "KRW-BTC", "trade_timestamp": 1753894995076, "opening_price": 163248000.0, "high_price": 163708000.0,
     "low_price": 162248000.0, "trade_price": 162876000.0, "acc_trade_price": 137728155832.96, "acc_trade_price_24h": 167740032580.71,
     "acc_trade_volume": 844.94, ...}
    """
    names = ("opening_price", "high_price", "low_price", "trade_price", "acc_trade_volume", "acc_trade_price", "acc_trade_price_24h")
    with shape("ticker/all"):
        return [Today(row["market"], float(row["trade_timestamp"]) / 1000, *(float(row[name]) for name in names)) for row in _rows(body)]


def parse_candles(body: Any, symbol: str) -> Candles:
    """Candles of one market, oldest first. They come newest first:

    {"market": "KRW-BTC", "candle_date_time_utc": "2026-08-30T04:26:00", "opening_price": 108580000.0, "high_price": 108580000.0,
     "low_price": 108536000.0, "trade_price": 108580000.0, "candle_acc_trade_price": 1389734.84452,
     "candle_acc_trade_volume": 0.01280224, ...}
    """
    with shape("candles"):
        if any(row["market"] != symbol for row in _rows(body)):
            raise Garbled(f"answered candles of another market than {symbol}")
        rows = [(opened_at(row["candle_date_time_utc"]), *(float(row[field]) for field in FIELDS)) for row in body]
    rows.sort(key=lambda row: row[0])
    if not rows:
        return Candles.empty()
    instants, *columns = zip(*rows, strict=True)
    assert len(columns) == len(PRICES_AND_AMOUNTS)
    return Candles(np.array(instants, dtype=np.int64), *(np.array(column, dtype=np.float64) for column in columns))


def _rows(body: Any) -> list[Any]:
    """`body` if it is a list: an empty object must not read as "no candles"."""
    if not isinstance(body, list):
        raise TypeError(f"a list was expected, got {type(body).__name__}")
    return body


def _some(found: Found) -> Found:
    """`found` unless it is empty: an exchange without a market would make every one of ours delisted."""
    if not found:
        raise ValueError("there is no KRW market in it")
    return found


@lru_cache(maxsize=4_096)  # a whole market opens its candles at the same instants
def opened_at(text: str) -> Instant:
    """The instant that `2026-08-30T04:26:00` names, which is UTC."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text):
        raise ValueError(f"time {text!r} is not like 2026-08-30T04:26:00")
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


class shape:  # noqa: N801  (reads as a word where it is used)
    """Whatever goes wrong while a body is read means that the body is not what it should be."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)):
            raise Garbled(f"answered JSON that is not {self.what}: {type(error).__name__} {error}") from error


def _said(response: httpx.Response) -> str:
    """The exchange's own message, or the beginning of its body, in one line."""
    try:
        return str(json.loads(response.content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:120] or "an empty body"
