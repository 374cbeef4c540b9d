"""The market's words and units, shared by every layer.

An *instant* is an int: seconds since 1970-01-01 in UTC. Text and time zones exist only at the edges (`iso`, `kst`, `instant`).
A candle is named by its opening instant. Prices are KRW, `volume` is in the base asset, `value` is in KRW.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Instant = int  # seconds since 1970-01-01T00:00:00Z
Floats = npt.NDArray[np.float64]
Instants = npt.NDArray[np.int64]

MINUTE, HOUR, DAY = 60, 3_600, 86_400
WEEK = 7 * DAY
MONDAY = 4 * DAY  # 1970-01-05, the first Monday of the epoch
KST = timezone(timedelta(hours=9), "KST")

SETTLE = 2  # seconds after a slot's end until its candle is taken as final; the last tick can be late by some ms
FEE_RATE = 0.0005  # fraction of the amount, maker and taker alike; Upbit, KRW markets
MIN_ORDER = 5_000  # KRW; Upbit, KRW markets

# (price from which the tick holds, tick), KRW markets since 2025-07-31; Upbit trading policy.
TICKS: tuple[tuple[float, float], ...] = (
    (1_000_000, 1_000), (500_000, 500), (100_000, 100), (50_000, 50), (10_000, 10), (5_000, 5), (1_000, 1), (100, 1),
    (10, 0.1), (1, 0.01), (0.1, 0.001), (0.01, 1e-4), (0.001, 1e-5), (1e-4, 1e-6), (1e-5, 1e-7), (0.0, 1e-8),
)  # fmt: skip

SYMBOL = re.compile(r"KRW-[A-Z0-9]+")


def tick_size(price: float) -> float:
    """The tick of a KRW market at `price` (KRW)."""
    return next(tick for bound, tick in TICKS if price >= bound)


def check_symbol(text: str) -> str:
    """`text` if it is written as a KRW market is, else ValueError naming it and the remedy."""
    if not SYMBOL.fullmatch(text):
        raise ValueError(f"symbol {text!r} is not a KRW market code: write it like KRW-BTC")
    return text


@dataclass(frozen=True)
class Timeframe:
    """One candle length. Fixed lengths open at `anchor + k * seconds`; months open on the 1st, UTC, and have `seconds` None."""

    name: str
    seconds: int | None
    anchor: Instant = 0

    def __str__(self) -> str:
        return self.name

    def floor(self, at: Instant) -> Instant:
        """The opening instant of the slot that holds `at`."""
        if self.seconds is not None:
            return at - (at - self.anchor) % self.seconds
        day = datetime.fromtimestamp(at, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())

    def after(self, opened_at: Instant, slots: int = 1) -> Instant:
        """The opening instant `slots` slots later (earlier when negative) than the slot that opened at `opened_at`."""
        if self.seconds is not None:
            return opened_at + slots * self.seconds
        day = datetime.fromtimestamp(opened_at, UTC)
        month = day.year * 12 + day.month - 1 + slots
        return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp())

    def slots(self, start: Instant, end: Instant) -> int:
        """How many slots open in [start, end); both on slot boundaries."""
        if self.seconds is not None:
            return (end - start) // self.seconds
        first, last = (datetime.fromtimestamp(at, UTC) for at in (start, end))
        return (last.year - first.year) * 12 + last.month - first.month

    def newest_closed(self, now: Instant, settle: int = 0) -> Instant:
        """The opening instant of the newest slot that closed at least `settle` seconds before `now`."""
        return self.after(self.floor(now - settle), -1)

    @property
    def bars_per_year(self) -> float:
        """Slots in 365 days: crypto trades always."""
        return 12.0 if self.seconds is None else 365 * DAY / self.seconds


# Finest first; this order is also the order of the Dagster dimension.
TIMEFRAMES: dict[str, Timeframe] = {
    frame.name: frame
    for frame in (
        *(Timeframe(f"{minutes}m", minutes * MINUTE) for minutes in (1, 3, 5, 10, 15, 30)),
        Timeframe("1h", HOUR),
        Timeframe("4h", 4 * HOUR),
        Timeframe("1d", DAY),
        Timeframe("1w", WEEK, MONDAY),
        Timeframe("1M", None),
    )
}


def timeframe(name: str) -> Timeframe:
    """The timeframe of that name, else ValueError with the known ones."""
    if name not in TIMEFRAMES:
        raise ValueError(f"timeframe {name!r} is not known: use one of {', '.join(TIMEFRAMES)}")
    return TIMEFRAMES[name]


@dataclass(frozen=True)
class Candles:
    """Candles of one (symbol, timeframe), oldest first. Every array has the same length."""

    opened_at: Instants
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats  # base asset
    value: Floats  # KRW

    def __len__(self) -> int:
        return len(self.opened_at)

    def __getitem__(self, rows: Any) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The candles of all parts, one behind the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in CANDLE_COLUMNS)) if parts else cls.empty()

    @classmethod
    def empty(cls) -> Self:
        return cls(np.empty(0, np.int64), *(np.empty(0) for _ in PRICES_AND_AMOUNTS))


PRICES_AND_AMOUNTS = ("open", "high", "low", "close", "volume", "value")
CANDLE_COLUMNS = ("opened_at", *PRICES_AND_AMOUNTS)


def instant(text: str) -> Instant:
    """The instant that an ISO date or time names; UTC where it says nothing else."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"time {text!r} is not known: write it like 2026-11-22 or 2026-11-22T09:00") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


def iso(at: Instant) -> str:
    """`2026-11-22T09:00:00Z`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(at: Instant) -> str:
    """`2026-11-22 00:00 UTC`, for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def kst(at: Instant) -> str:
    """`2026-11-22 09:00 KST`, for people."""
    return datetime.fromtimestamp(at, KST).strftime("%Y-%m-%d %H:%M KST")


def stretches(names: list[str]) -> Iterator[list[str]]:
    """`names` of timeframes in dimension order, cut into runs of neighbours: a Dagster range may not span one that is off."""
    known = list(TIMEFRAMES)
    ordered = sorted(names, key=known.index)
    start = 0
    for i in range(1, len(ordered) + 1):
        if i == len(ordered) or known.index(ordered[i]) != known.index(ordered[i - 1]) + 1:
            yield ordered[start:i]
            start = i
