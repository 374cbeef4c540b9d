"""The exchange's candles as they form: its WebSocket in, our types out."""

from __future__ import annotations

from dataclasses import dataclass

from mdms_pipeline.market import Instant


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

    since: float  # s since 1970 UTC, our clock: what was heard before is complete
    reason: str


@dataclass(frozen=True, slots=True)
class Joined:
    """(Re)subscribed: from here on messages flow."""

    at: float  # s since 1970 UTC, our clock
