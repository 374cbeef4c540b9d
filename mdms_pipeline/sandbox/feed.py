"""What one subscription has to be told, and when it is true: `snapshot` at once, then `news` at every beat. No network.

`news` looks at the clock and tells, of each candle, the state in which each that closed since the last beat ended, and the present one;
but only where a trade changed it since. Every market's minutes are added up once and then regrouped into all of its candles, so that 300
markets with 8 candles each cost some milliseconds. However far the clock has jumped, no final state is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np

from mdms_pipeline.market import HOUR, MINUTE, TIMEFRAMES, Candles, Instant, Timeframe, iso
from mdms_pipeline.sandbox.exchange import SECOND, Sandbox, Ticker, UnknownMarket
from mdms_pipeline.sandbox.messages import Message
from mdms_pipeline.sandbox.model import LAST_MS, SLOT, VOLUME, Ints, regroup
from mdms_pipeline.sandbox.rows import KST_AHEAD, tick_at, ticker_row
from mdms_pipeline.sandbox.world import Market

STRIDE = 4 * HOUR  # s; candles of every length open at its multiples, and no more is added up at once
CANDLES: dict[str, Timeframe] = {
    f"candle.{minutes}m": TIMEFRAMES[name] for minutes, name in zip((1, 3, 5, 10, 15, 30, 60, 240), TIMEFRAMES, strict=False)
}
ONE_SECOND = "candle.1s"
TYPES = ("ticker", "trade", ONE_SECOND, *CANDLES)  # an order book the sandbox has not


class Feed:
    """The subscription `wanted` (type -> codes) and how far it was told. Codes that are nobody's are passed over in silence."""

    def __init__(self, sandbox: Sandbox, wanted: Mapping[str, Iterable[str]]) -> None:
        self.sandbox = sandbox
        self._types: dict[str, list[str]] = {}
        for kind, codes in wanted.items():
            for code in dict.fromkeys(codes):
                self._types.setdefault(code, []).append(kind)
        self._seen_ms = int(sandbox.clock() * 1000)
        self._corrected = len(sandbox.corrected)

    def snapshot(self, types: Iterable[str]) -> list[Message]:
        """The newest message of each market and each of these types: of a candle without a trade yet, the one before it."""
        chosen = set(types)
        told = [self._newest(code, kind) for code, of_code in self._types.items() for kind in of_code if kind in chosen]
        return [message for message in told if message is not None]

    def news(self) -> Iterator[list[Message]]:
        """What happened since the last call, stride by stride, in the order of the trades; then what was corrected."""
        now_ms = int(self.sandbox.clock() * 1000)
        for cut_ms in strides(self._seen_ms, now_ms):
            told = [message for code, types in self._types.items() for message in self._news_of(code, types, cut_ms, now_ms)]
            self._seen_ms = cut_ms
            yield sorted(told, key=lambda message: message.last_ms)
        if corrected := list(self._corrections(now_ms)):
            yield corrected

    def _news_of(self, code: str, types: list[str], cut_ms: int, now_ms: int) -> Iterator[Message]:
        """Of one market, up to and with `cut_ms`."""
        market = self.sandbox.ever(code)
        if market is None:
            return
        if market.delisted_at is not None:
            cut_ms = min(cut_ms, market.delisted_at * 1000 - 1)
        if cut_ms <= self._seen_ms:
            return
        minutes = self.sandbox.trading(market, MINUTE, (self._seen_ms + 1) // 1000 // STRIDE * STRIDE, cut_ms)
        if minutes[:, LAST_MS].max() <= self._seen_ms:
            return
        yield from self._candles(market, [kind for kind in types if kind in CANDLES], minutes, now_ms)
        if ONE_SECOND in types or "trade" in types:
            yield from self._ticks(market, types, cut_ms)
        if "ticker" in types and (ticker := self._ticker(code)) is not None:
            yield ticker_message(ticker, market)

    def _candles(self, market: Market, types: list[str], minutes: Ints, now_ms: int) -> Iterator[Message]:
        """The candles of these types that a trade changed."""
        lengths = np.array([CANDLES[kind].seconds for kind in types], np.int64)
        rows = regroup(minutes, lengths, self._seen_ms)
        candles = self.sandbox.floats(market, rows)
        for k, kind in enumerate(types):
            mine = rows[:, SLOT] == k
            one = self.sandbox.corrections(market, CANDLES[kind], candles[mine])
            yield from candle_messages(kind, market.code, CANDLES[kind], one, rows[mine, LAST_MS], now_ms)

    def _ticks(self, market: Market, types: list[str], cut_ms: int) -> Iterator[Message]:
        """Trades and candles of one second: of the model's ticks never two are in the same second."""
        rows = self.sandbox.trading(market, 1, self._seen_ms // 1000, cut_ms)
        rows = rows[(rows[:, VOLUME] > 0) & (rows[:, LAST_MS] > self._seen_ms)]
        candles = self.sandbox.floats(market, rows)
        if ONE_SECOND in types:
            yield from candle_messages(ONE_SECOND, market.code, SECOND, candles, rows[:, LAST_MS], cut_ms)
        if "trade" in types and (ticker := self._ticker(market.code)) is not None:
            for price, volume, at_ms in zip(candles.close.tolist(), candles.volume.tolist(), rows[:, LAST_MS].tolist(), strict=True):
                yield trade_message(market, price, volume, at_ms, ticker.previous_close)

    def _newest(self, code: str, kind: str) -> Message | None:
        """The present state of what `type` tells of this market; None before its first trade, or where it is not listed."""
        try:
            market, now = self.sandbox.market(code), int(self.sandbox.clock())
            ticker = self._ticker(code) if kind in ("ticker", "trade", ONE_SECOND) else None
            if kind in CANDLES:
                candles, last_ms = self.sandbox.bars(code, CANDLES[kind], now + 1, 1)
                return next(candle_messages(kind, code, CANDLES[kind], candles, last_ms, now * 1000), None)
        except UnknownMarket:
            return None
        if ticker is None:
            return None
        if kind == ONE_SECOND:
            rows = self.sandbox.trading(market, 1, ticker.traded_ms // 1000, ticker.traded_ms)[:1]
            return next(candle_messages(kind, code, SECOND, self.sandbox.floats(market, rows), rows[:, LAST_MS], now * 1000))
        if kind == "trade":
            return trade_message(market, ticker.close, ticker.last_volume, ticker.traded_ms, ticker.previous_close)
        return ticker_message(ticker, market)

    def _ticker(self, code: str) -> Ticker | None:
        try:
            return self.sandbox.ticker(code)
        except UnknownMarket:
            return None

    def _corrections(self, now_ms: int) -> Iterator[Message]:
        """Candles that read differently than when they were told."""
        new = self.sandbox.corrected[self._corrected :]
        self._corrected += len(new)
        for origin, name, opened_at in new:
            for code, types in self._types.items():
                market = self.sandbox.ever(code)
                told = market is not None and market.alive(now_ms / 1000) and (market.origin or code) == origin
                for kind in types if told else ():
                    if kind in CANDLES and CANDLES[kind].name == name and opened_at * 1000 <= now_ms:
                        candles, last_ms = self.sandbox.bars(code, CANDLES[kind], opened_at + 1, 1)
                        mine = candles.opened_at == opened_at
                        yield from candle_messages(kind, code, CANDLES[kind], candles[mine], last_ms[mine], now_ms)


def strides(seen_ms: int, now_ms: int) -> Iterator[int]:
    """Up to where to look (ms), step by step: the ends of the strides between, then now. Nothing where the clock was set back."""
    first = (seen_ms + 1) // (STRIDE * 1000) + 1
    yield from (k * STRIDE * 1000 - 1 for k in range(first, now_ms // (STRIDE * 1000) + 1))
    if now_ms > seen_ms:
        yield now_ms


@lru_cache(maxsize=4_096)
def spelled(at: Instant) -> tuple[str, str]:
    """`2026-11-22T09:00:00` in UTC and in KST."""
    return iso(at)[:-1], iso(at + KST_AHEAD)[:-1]


def candle_messages(kind: str, code: str, frame: Timeframe, candles: Candles, last_ms: Ints, now_ms: int) -> Iterator[Message]:
    """One message for each of these candles."""
    columns = (getattr(candles, name).tolist() for name in ("open", "high", "low", "close", "volume", "value"))
    for opened_at, ms, first, high, low, close, volume, value in zip(candles.opened_at.tolist(), last_ms.tolist(), *columns, strict=True):
        utc, kst = spelled(opened_at)
        row = {
            "type": kind, "code": code, "candle_date_time_utc": utc, "candle_date_time_kst": kst,
            "opening_price": first, "high_price": high, "low_price": low, "trade_price": close,
            "candle_acc_trade_volume": volume, "candle_acc_trade_price": value, "timestamp": ms,
        }  # fmt: skip
        yield Message(kind, code, ms, opened_at, frame.after(opened_at) * 1000 <= now_ms, row)


def trade_message(market: Market, price: float, volume: float, at_ms: int, previous_close: float) -> Message:
    """One trade. The sandbox has no book: yesterday's close tells who pushed, and the best prices are one tick apart."""
    at, change = datetime.fromtimestamp(at_ms // 1000, UTC), round(price - previous_close, 8)
    tick, bought = tick_at(market, price), change >= 0
    row: dict[str, Any] = {
        "type": "trade", "code": market.code, "timestamp": at_ms, "trade_date": f"{at:%Y-%m-%d}", "trade_time": f"{at:%H:%M:%S}",
        "trade_timestamp": at_ms, "trade_price": price, "trade_volume": volume, "ask_bid": side(bought),
        "prev_closing_price": previous_close, "change": "RISE" if change > 0 else "FALL" if change < 0 else "EVEN",
        "change_price": abs(change), "sequential_id": at_ms * 10_000,
        "best_ask_price": price if bought else price + tick, "best_ask_size": volume,
        "best_bid_price": price - tick if bought else price, "best_bid_size": volume,
    }  # fmt: skip
    return Message("trade", market.code, at_ms, -1, False, row)


def ticker_message(ticker: Ticker, market: Market) -> Message:
    """One ticker: REST's fields and those that only the WebSocket has. The sandbox knows no sides: half of the volume was bought."""
    rest = ticker_row(ticker)
    for name in ("market", "trade_date_kst", "trade_time_kst"):
        del rest[name]
    gone = None if market.delisted_at is None else datetime.fromtimestamp(market.delisted_at, UTC)
    row: dict[str, Any] = {
        "type": "ticker", "code": ticker.market, **rest,
        "ask_bid": side(ticker.close >= ticker.previous_close),
        "acc_ask_volume": ticker.volume / 2, "acc_bid_volume": ticker.volume / 2,
        "market_state": "ACTIVE",
        "delisting_date": None if gone is None else {"year": gone.year, "month": gone.month, "day": gone.day},
    }  # fmt: skip
    return Message("ticker", ticker.market, ticker.traded_ms, -1, False, row)


def side(bought: bool) -> str:
    """Which side took the order of the other."""
    return "BID" if bought else "ASK"
