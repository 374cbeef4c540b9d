"""What REST and the WebSocket spell alike: JSON, times, and a ticker's fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from mdms_pipeline.market import tick_size
from mdms_pipeline.sandbox.exchange import Ticker
from mdms_pipeline.sandbox.model import PRICE_UNITS, Ints
from mdms_pipeline.sandbox.world import QUOTES, Market

KST_AHEAD = 9 * 3600  # s
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def compact(value: Any) -> str:
    """JSON as the exchange spells it: no blanks, Korean as it is."""
    return ENCODER.encode(value)


def times(opened_at: Ints) -> list[str]:
    """`2026-11-22T00:00:00` of each instant."""
    return np.datetime_as_string(opened_at.astype("datetime64[s]")).tolist()  # type: ignore[no-any-return]


def ticker_row(ticker: Ticker) -> dict[str, Any]:
    """One ticker as it is on the wire."""
    at = datetime.fromtimestamp(ticker.traded_ms // 1000, UTC)
    at_kst = at + timedelta(seconds=KST_AHEAD)
    change = round(ticker.close - ticker.previous_close, 8)
    rate = round((ticker.close - ticker.previous_close) / ticker.previous_close, 10)
    return {
        "market": ticker.market,
        "trade_date": f"{at:%Y%m%d}",
        "trade_time": f"{at:%H%M%S}",
        "trade_date_kst": f"{at_kst:%Y%m%d}",
        "trade_time_kst": f"{at_kst:%H%M%S}",
        "trade_timestamp": ticker.traded_ms,
        "opening_price": ticker.open,
        "high_price": ticker.high,
        "low_price": ticker.low,
        "trade_price": ticker.close,
        "prev_closing_price": ticker.previous_close,
        "change": "RISE" if change > 0 else "FALL" if change < 0 else "EVEN",
        "change_price": abs(change),
        "change_rate": abs(rate),
        "signed_change_price": change,
        "signed_change_rate": rate,
        "trade_volume": ticker.last_volume,
        "acc_trade_price": ticker.value,
        "acc_trade_price_24h": ticker.value_24h,
        "acc_trade_volume": ticker.volume,
        "acc_trade_volume_24h": ticker.volume_24h,
        "highest_52_week_price": ticker.high_52w,
        "highest_52_week_date": f"{datetime.fromtimestamp(ticker.high_52w_day, UTC):%Y-%m-%d}",
        "lowest_52_week_price": ticker.low_52w,
        "lowest_52_week_date": f"{datetime.fromtimestamp(ticker.low_52w_day, UTC):%Y-%m-%d}",
        "timestamp": ticker.traded_ms,
    }


def tick_at(market: Market, price: float) -> float:
    """The tick of `market` at `price`."""
    return QUOTES[market.quote][2] / PRICE_UNITS or tick_size(price)
