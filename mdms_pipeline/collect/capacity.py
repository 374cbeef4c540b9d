"""What the settings ask of the exchange, against what it allows. Pure arithmetic; a setting that needs too much is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mdms_pipeline.market import DAY, TIMEFRAMES
from mdms_pipeline.settings import Settings

ALLOWED = 10.0  # requests/s of the group `candles`; Upbit documentation
MOST = 0.8  # share of it that may be needed in the steady state: the rest is for histories, retries and other programs
LISTED = 289  # KRW markets, assumed while the exchange was not asked; 2026-11-22
MONTH = 30 * DAY  # s


class OverCapacity(ValueError):
    """The settings need more requests than the exchange allows."""


@dataclass(frozen=True)
class Capacity:
    """One request per market and closed candle: the most that it can be, since a ticker spares the quiet markets theirs."""

    markets: int
    timeframes: tuple[str, ...]
    per_second: float  # requests in the steady state
    share: float  # of what is allowed
    peak: int  # requests when all timeframes close together, as on Monday 00:00 UTC
    peak_seconds: float

    @property
    def arithmetic(self) -> str:
        """`289 markets x (1m 1/60 s + 1h 1/3600 s) = 4.90 requests/s of 10/s = 49 %`"""
        terms = " + ".join(f"{name} 1/{seconds(name)} s" for name in self.timeframes)
        summed = f"({terms})" if len(self.timeframes) > 1 else terms
        return f"{self.markets} markets x {summed} = {self.per_second:.2f} requests/s of {ALLOWED:g}/s = {self.share:.0%}"


def seconds(name: str) -> int:
    """How often a candle of this timeframe closes."""
    return TIMEFRAMES[name].seconds or MONTH


def capacity(markets: int, timeframes: Sequence[str], allowed: float = ALLOWED) -> Capacity:
    """What it takes to keep so many markets fresh in these timeframes."""
    per_second = markets * sum(1 / seconds(name) for name in timeframes)
    peak = markets * len(timeframes)
    return Capacity(markets, tuple(timeframes), per_second, per_second / allowed, peak, peak / allowed)


def capacity_of(settings: Settings, listed: int | None) -> Capacity:
    """What the settings ask for; `listed` is how many markets there are, None where nobody has asked yet."""
    markets = len(settings.symbols) or min(settings.top, LISTED if listed is None else listed)
    return capacity(markets, settings.timeframes)


def check_capacity(settings: Settings, listed: int | None = None) -> Capacity:
    """The capacity that the settings need, else OverCapacity with the arithmetic and the remedy."""
    needed = capacity_of(settings, listed)
    if needed.share > MOST:
        raise OverCapacity(
            f"MDMS_TIMEFRAMES={','.join(settings.timeframes)} of MDMS_SYMBOLS={settings.universe} needs more than {MOST:.0%} of what the "
            f"exchange allows: {needed.arithmetic}; keep fewer markets, or leave out the finest timeframe"
        )
    return needed
