"""Which page to ask for next, and what an answer covers. Pure: standings and candles in, decisions out.

The covered span of a partition has no gap: it grows forward in steps that adjoin it, and backward from its oldest candle. So an
interruption at any point leaves a span that the next collection goes on from, and asks for nothing twice but the newest candle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mdms_pipeline.collect.wire import MAX_CANDLES
from mdms_pipeline.market import Candles, Instant, Instants, timeframe
from mdms_pipeline.store.candles import Page, Standing

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ask:
    """The newest `count` candles that opened before `to`. `since` is where a forward page begins; None asks backward."""

    to: Instant
    count: int
    since: Instant | None


def next_ask(standing: Standing, end: Instant, history: int, since: Instant | None = None) -> Ask | None:
    """What to ask for, given what is covered; None when nothing is missing that the exchange may have.

    Wanted are all slots before `end`, `history` candles, and everything back to `since`. A forward page asks for one candle more than
    it has slots, so that the newest stored one is told again: with or without trades in between it is the next older one.
    """
    frame = timeframe(standing.timeframe)
    start, covered_to = standing.covered or (end, end)
    if covered_to < end:
        to = min(frame.after(covered_to, MAX_CANDLES - 1), end)
        return Ask(to, frame.slots(covered_to, to) + 1, covered_to)
    wanted = max(history - standing.candles, _slots_back(standing, start, since))
    if wanted > 0 and not standing.begins:
        return Ask(start, min(MAX_CANDLES, wanted), None)
    return None


def _slots_back(standing: Standing, start: Instant, since: Instant | None) -> int:
    """Slots between what is asked for and `start`; what is collected again counts as asked for as far back as it was."""
    frame = timeframe(standing.timeframe)
    targets = [at for at in (since, standing.refill_from) if at is not None]
    return frame.slots(frame.floor(min(targets)), start) if targets else 0


def pages_left(standing: Standing, end: Instant, history: int, since: Instant | None = None) -> int:
    """How many pages that takes if every slot has a trade and the market is old enough: what an honest time left stands on."""
    frame = timeframe(standing.timeframe)
    start, covered_to = standing.covered or (end, end)
    forward = max(0, frame.slots(covered_to, end))
    if standing.begins:
        return -(-forward // (MAX_CANDLES - 1))
    back = max(0, history - standing.candles - forward, _slots_back(standing, start, since))
    return -(-forward // (MAX_CANDLES - 1)) + -(-back // MAX_CANDLES)


def page_of(standing: Standing, ask: Ask, answer: Candles) -> Page:
    """What the answer adds. It covers its slots up to, and never past, a candle that cannot be."""
    if ask.since is not None and standing.covered is not None:  # few trades: the answer may reach back beyond all that is stored
        answer = answer[answer.opened_at >= standing.covered[0]]
    bad, reason = impossible(answer, standing.timeframe, ask.to)
    refused = answer[bad] if bad.any() else None
    frame = timeframe(standing.timeframe)
    if ask.since is not None:  # the answer reaches back into what is stored
        stop = int(refused.opened_at[0]) if refused is not None else ask.to
        stop = max(ask.since, frame.floor(stop))
        kept = answer[~bad & (answer.opened_at >= ask.since) & (answer.opened_at < stop)]
        again = answer[answer.opened_at < ask.since] if stop > ask.since else Candles.empty()
        return Page(
            standing.symbol, standing.timeframe, kept, (ask.since, stop), False, refused, reason, reread=again if len(again) else None
        )
    start = frame.after(frame.floor(int(refused.opened_at[-1]))) if refused is not None else -(2**60)
    kept = answer[~bad & (answer.opened_at >= start)]
    covered = (int(kept.opened_at[0]) if len(kept) else ask.to, ask.to)
    begins = refused is None and len(answer) < ask.count
    return Page(standing.symbol, standing.timeframe, kept, covered, begins, refused, reason)


def quiet_page(standing: Standing, end: Instant, traded_at: float) -> Page | None:
    """The page that need not be asked for: nobody has traded since the covered span ended, says a ticker of after `end`.

    `traded_at` is the instant of the market's last trade (s UTC). None where there may be candles, or nothing is covered yet.
    """
    if standing.covered is None or standing.covered[1] >= end or traded_at >= standing.covered[1]:
        return None
    return Page(standing.symbol, standing.timeframe, Candles.empty(), (standing.covered[1], end), evidence="ticker")


def impossible(candles: Candles, name: str, to: Instant) -> tuple[Flags, str | None]:
    """Which candles cannot be, and what is wrong with the first of them."""
    tests = dict(_impossibilities(candles, name, to))
    bad = np.zeros(len(candles), dtype=bool)
    for found in tests.values():
        bad |= found
    if not bad.any():
        return bad, None
    first = int(np.argmax(bad))
    reason = next(text for text, found in tests.items() if found[first])
    return bad, f"{reason} at {np.datetime64(int(candles.opened_at[first]), 's')}Z"


def _impossibilities(candles: Candles, name: str, to: Instant) -> Iterator[tuple[str, Any]]:
    prices = np.stack([candles.open, candles.high, candles.low, candles.close]) if len(candles) else np.empty((4, 0))
    amounts = np.stack([candles.volume, candles.value]) if len(candles) else np.empty((2, 0))
    yield "a price that is not a number above 0", ~(np.isfinite(prices) & (prices > 0)).all(axis=0)
    yield "an amount that is not a number of at least 0", ~(np.isfinite(amounts) & (amounts >= 0)).all(axis=0)
    yield "high below open, low or close", candles.high < prices.max(axis=0, initial=0.0)
    yield "low above open, high or close", candles.low > prices.min(axis=0, initial=np.inf)
    yield "not at the opening of a slot", ~_on_slots(candles.opened_at, name)
    yield "twice in one answer", np.isin(candles.opened_at, _repeated(candles.opened_at))
    yield "newer than asked for", candles.opened_at >= to


def _on_slots(opened_at: Instants, name: str) -> Flags:
    frame = timeframe(name)
    if frame.seconds is not None:
        return np.asarray((opened_at - frame.anchor) % frame.seconds == 0)
    return np.array([frame.floor(at) == at for at in opened_at.tolist()], dtype=bool)


def _repeated(opened_at: Instants) -> Instants:
    return np.unique(opened_at[1:][np.diff(opened_at) == 0])
