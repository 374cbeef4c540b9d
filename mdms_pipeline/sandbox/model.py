"""Prices out of nothing but (seed, market, time): the one kernel every candle of the sandbox comes from.

1. A market's level at midnight is layered noise: a common factor of the whole market plus moves of its own (`log_level`).
2. Between two midnights `fill_path` pins a random bridge; `fill_day` makes 1440 minutes of it. In quiet ones nobody trades.
3. A minute has four ticks (open, both extremes, close) of equal size or, when little is traded, one; all on the price grid.
4. `aggregate` adds minutes into buckets; a minute cut by the clock or by a bucket's edge is added tick by tick; `regroup` adds
   its minutes into longer slots.

All amounts are whole numbers: prices in 1e-8 of the quote currency, volumes in the market's lots, values in the quote's small
units. So every timeframe sums the same minutes exactly, and a forming candle ends equal to the closed one.
Kernels are pure: no clock, no state. Hashes are splitmix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, sqrt
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

from mdms_pipeline.market import DAY, MINUTE, TICKS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bits = npt.NDArray[np.uint64]
Whole = int | np.signedinteger[Any]

PRICE_UNITS = 100_000_000  # whole price units in one unit of the quote currency
MINUTES = 1440  # in a day

# Columns of what `aggregate` answers, one row per bucket.
OPENED, OPEN, HIGH, LOW, CLOSE, VOLUME, VALUE, LAST_MS = range(8)
SLOT = 8  # and of what `regroup` answers one more: which of the lengths the row is of

# Maintenance: every 13 weeks on a Wednesday, 16:00 to 20:00 UTC (01:00 to 05:00 KST); 2026-11-11 is one of them.
HOLE_EVERY, HOLE_PHASE = 91, 20_768 % 91  # days; 20768 is 2026-11-11
HOLE_FROM, HOLE_TO = 16 * 60, 20 * 60  # minute of the day, half-open

# np.int64 and not int: numba compiles a function anew for every literal it is called with.
REFERENCE_DAY = np.int64(20_779)  # 2026-11-22: a market stands at its `price` at this midnight
OCTAVES = 11  # of noise, drawn from streams 0 to 10; the slowest has a knot every 1024 days
WILD_SLOWLY, WILD_QUICKLY, BUSY_SLOWLY, BUSY_TODAY, BUSY_HOUR, TICK_TIME = np.arange(101, 107)  # the other streams
_DAYS_5, _DAYS_24, _DAYS_60 = np.array([5, 24, 60])
_ZERO = cast(int, np.int64(0))

_BOUNDS = np.array([bound * PRICE_UNITS for bound, _ in TICKS])
_TICKS = np.array([float(round(tick * PRICE_UNITS)) for _, tick in TICKS])

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S16, _S27, _S30, _S31, _S32, _S48 = (np.uint64(n) for n in (16, 27, 30, 31, 32, 48))
_LOW16 = np.uint64(0xFFFF)
_UNIT = 1.0 / 65536.0  # one step of a 16-bit draw
_STEP_SD = 0.5  # of a sum of three uniforms


F = TypeVar("F", bound=Callable[..., Any])


# Ways into compiled code that nobody takes cost a third of the time to compile. numba takes these, its types do not tell.
_NOT_FROM_C: dict[str, Any] = {"no_cfunc_wrapper": True}
_NOT_FROM_PYTHON: dict[str, Any] = {"no_cpython_wrapper": True}


def jit(kernel: F) -> F:
    """Compile once for this machine. error_model: a division that may raise is not vectorised (12 against 7 ns per minute)."""
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy", **_NOT_FROM_C)(kernel))


def inner(kernel: F) -> F:
    """As `jit`, for what only compiled code calls."""
    return cast(F, numba.njit(nogil=True, error_model="numpy", **_NOT_FROM_C, **_NOT_FROM_PYTHON)(kernel))


class Nature(NamedTuple):
    """What the kernel has to know of a market. Types matter: numba compiles one version for them."""

    key: int  # names the market's own randomness
    common: int  # names the randomness that all markets share
    listed_at: int  # s UTC, a whole minute
    price: float  # quote currency, at REFERENCE_DAY
    beta: float  # share of the common factor
    daily_move: float  # own standard deviation of a day, fraction
    turnover: float  # quote currency per ordinary day
    lots: float  # whole volume units in one unit of the base asset
    value_units: float  # whole value units in one unit of the quote currency
    min_order: float  # quote currency
    flat_tick: float  # price units; 0 means the KRW table


@inner
def mix(x: np.uint64) -> np.uint64:
    """64 well-mixed bits (splitmix64's finaliser)."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@inner
def draw(key: int, stream: Whole, at: Whole) -> float:
    """A uniform number in [-1, 1) named by (key, stream, at)."""
    bits = mix(mix(np.uint64(key) + np.uint64(stream) * _GOLDEN) + np.uint64(at) * _GOLDEN)
    return float(bits >> _S32) / 2147483648.0 - 1.0


@inner
def noise(key: int, stream: Whole, day: Whole, period: Whole) -> float:
    """Value noise in [-1, 1): a draw every `period` days, straight lines between."""
    knot = day // period
    share = (day - knot * period) / period
    return (1.0 - share) * draw(key, stream, knot) + share * draw(key, stream, knot + 1)


@inner
def weather(key: int, day: Whole) -> float:
    """How wild a day is: 1 is ordinary, calm spells near 0.4, wild ones near 2.5."""
    return exp(0.55 * noise(key, WILD_SLOWLY, day, _DAYS_24) + 0.35 * noise(key, WILD_QUICKLY, day, _DAYS_5))


@inner
def wander(key: int, day: Whole) -> float:
    """Log level of a walk with a daily standard deviation near 1, as layers of noise: trends, ranges and regimes.

    A layer twice as slow is sqrt(2) times as tall (the scaling of a random walk); the quickest are as tall as the day is wild.
    The 0.9 makes the moves of neighbouring days uncorrelated (0.5: +0.3, 1.1: -0.05, measured over 1000 days).
    """
    total = 0.0
    wild = weather(key, day)
    for octave in range(OCTAVES):
        tall = 0.87 * sqrt(2.0**octave) * (wild if octave < 3 else 1.0) * (0.9 if octave == 0 else 1.0)
        total += tall * noise(key, octave, day, 2**octave)
    return total


@inner
def log_level(nature: Nature, day: Whole) -> float:
    """Natural logarithm of the price at the midnight that opens `day`, before the price grid."""
    return nature.beta * 0.022 * wander(nature.common, day) + nature.daily_move * wander(nature.key, day)


@inner
def snap(prices: Floats, least: float, most: float, flat_tick: float) -> None:
    """Round `prices` (price units, all in [least, most]) down to the exchange's grid in place. Monotone: extremes stay extremes.

    A day nearly always lies in two neighbouring bands of the tick table, which need no search. Never below one tick.
    """
    top = 0
    while flat_tick == 0.0 and most < _BOUNDS[top]:
        top += 1
    low = min(top + 1, _BOUNDS.size - 1)
    bound, upper, lower = _BOUNDS[top], _TICKS[top], _TICKS[low]
    if flat_tick != 0.0:
        upper = lower = flat_tick
    elif least < _BOUNDS[low]:
        for i in range(prices.size):
            band = top
            while prices[i] < _BOUNDS[band]:
                band += 1
            prices[i] = max(float(int(prices[i] / _TICKS[band])), 1.0) * _TICKS[band]
        return
    for i in range(prices.size):
        tick = upper if prices[i] >= bound else lower
        n = float(int(prices[i] / tick))
        prices[i] = (n if n >= 1.0 else 1.0) * tick


@inner
def outline(nature: Nature, day: int) -> tuple[float, float, float, float, float, float]:
    """A day before its minutes: price at both midnights, standard deviation (fraction), how wild, and the bounds (price units).

    Two and a half deviations beyond both midnights no minute goes: 1 day in 100 000 would. So `reach` knows a day's extremes.
    """
    unit = nature.price * PRICE_UNITS
    here = log_level(nature, REFERENCE_DAY)
    start = unit * exp(log_level(nature, day) - here)
    end = unit * exp(log_level(nature, day + 1) - here)
    youth = exp(-max(day - nature.listed_at // DAY, 0) / 5.0)  # the first days after a listing are wild
    wild = (0.5 * weather(nature.key, day) + 0.5 * weather(nature.common, day)) * (1.0 + youth)
    sd = min((nature.daily_move + 0.01 * nature.beta) * wild, 0.12)
    return start, end, sd, wild, min(start, end) / (1.0 + 2.5 * sd), max(start, end) * (1.0 + 2.5 * sd)


@jit
def reach(nature: Nature, first_day: int, days: int) -> Floats:
    """Prices (2, days) on the grid, in price units, that no minute of these days can be below or above."""
    bounds = np.empty((2, days))
    for i in range(days):
        _, _, _, _, bounds[0, i], bounds[1, i] = outline(nature, first_day + i)
    least, most = np.inf, 0.0
    for i in range(days):
        least, most = min(least, bounds[0, i]), max(most, bounds[1, i])
    snap(bounds[0], least, most, nature.flat_tick)
    snap(bounds[1], least, most, nature.flat_tick)
    return bounds


@inner
def fill_path(nature: Nature, day: int, path: Floats, bits: Bits, steps: Floats) -> None:
    """The bridge of one day: `path[i]` is the price (price units, not yet on the grid) as minute i opens, `path[1440]` the next midnight's.

    `bits` are the minutes' own random bits: three of their four 16-bit draws make the step, the fourth decides if anybody trades.
    """
    start, end, sd, _, least, most = outline(nature, day)
    key = mix(np.uint64(nature.key) + np.uint64(day) * _GOLDEN)
    for i in range(MINUTES):
        bits[i] = mix(key + np.uint64(i) * _GOLDEN)
    for i in range(MINUTES):
        b = bits[i]
        steps[i] = float((b & _LOW16) + ((b >> _S16) & _LOW16) + ((b >> _S32) & _LOW16)) * _UNIT - 1.5
    total = 0.0
    for hour in range(24):
        lively = 1.0 + 0.5 * draw(nature.key, BUSY_HOUR, day * 24 + hour)
        for i in range(hour * 60, hour * 60 + 60):
            path[i] = total
            total += lively * steps[i]
    path[MINUTES] = total
    step = start * sd / (_STEP_SD * sqrt(MINUTES))
    slope = (end - start - step * total) / MINUTES
    for i in range(MINUTES + 1):
        price = start + slope * i + step * path[i]
        price = price if price > least else least
        path[i] = price if price < most else most


@inner
def fill_day(nature: Nature, day: int, path: Floats, high: Floats, low: Floats, lots: Floats, bits: Bits) -> None:
    """The minutes of one day, all whole numbers: minute i runs from path[i] to path[i + 1] (price units).

    `lots` per tick: 0 where nobody traded; below 0 for a lone tick, which has the price path[i]. `path` holds 1441 numbers, the
    others 1440; `bits` is scratch. Loops are written out, without max and min, so that they are vectorised.
    """
    start, _, sd, wild, least, most = outline(nature, day)
    fill_path(nature, day, path, bits, high)
    step = start * sd / (_STEP_SD * sqrt(MINUTES))  # price units, as in `fill_path`
    per_step = 1.0 / step
    busy = wild * exp(0.5 * noise(nature.key, BUSY_SLOWLY, day, _DAYS_60) + 0.5 * draw(nature.key, BUSY_TODAY, day))
    per_minute = 1.06 * nature.turnover * busy / MINUTES  # quote currency; 1.06 brings the mean to `turnover`
    lots_per_worth = 0.25 * nature.lots * PRICE_UNITS
    holed = day % HOLE_EVERY == HOLE_PHASE
    for hour in range(24):
        lively = 1.0 + 0.5 * draw(nature.key, BUSY_HOUR, day * 24 + hour)
        evening = 1.25 if 10 <= hour < 16 else 0.85  # 19:00 to 01:00 KST
        wanted = per_minute * lively * evening
        chance = 1.0 - exp(-wanted / (10.0 * nature.min_order))  # of a trade in a minute: orders of ten times the minimum
        if holed and HOLE_FROM <= hour * 60 < HOLE_TO:
            chance = 0.0
        size = 0.25 * wanted / max(chance, 1e-9)
        for i in range(hour * 60, hour * 60 + 60):
            c = bits[i] * _M2
            first, last = path[i], path[i + 1]
            up, down = float(c >> _S48) * _UNIT, float((c >> _S32) & _LOW16) * _UNIT
            above = (first if first > last else last) + step * up * up
            high[i] = above if above < most else most
            under = (last if first > last else first) - step * down * down
            low[i] = under if under > least else least
            # Heavy-tailed, and larger where the price moves.
            worth = size * (0.6 + 0.8 * abs(first - last) * per_step) / (float((c >> _S16) & _LOW16) * _UNIT + 0.02)
            lot = float(int((worth if worth > nature.min_order else nature.min_order) * lots_per_worth / first)) + 1.0
            lot = -lot if worth < 4.0 * nature.min_order else lot  # too little for four orders
            lots[i] = lot if float(bits[i] >> _S48) * _UNIT < chance else 0.0
    top, bottom = int(start), int(start)
    for i in range(MINUTES + 1):  # whole numbers: a maximum of floats would not be vectorised
        top, bottom = max(top, int(path[i])), min(bottom, int(path[i]))
    debut = (nature.listed_at - day * DAY) // MINUTE
    if 0 <= debut < MINUTES and lots[debut] == 0.0:
        lots[debut] = -float(int(nature.min_order * lots_per_worth / path[debut])) - 1.0
    lots[: min(max(debut, 0), MINUTES)] = 0.0
    snap(path, bottom - step, top + step + 1.0, nature.flat_tick)
    snap(high, bottom - step, top + step + 1.0, nature.flat_tick)
    snap(low, bottom - step, top + step + 1.0, nature.flat_tick)


@inner
def tick_ms(key: int, minute: int, k: int, lone: bool) -> int:
    """When the `k`-th tick of a minute (since the epoch) happened, ms UTC: one in every quarter of it; a lone one anywhere."""
    share = 0.5 * (draw(key, TICK_TIME + k, minute) + 1.0)
    return minute * 60_000 + (int(share * 60_000.0) if lone else k * 15_000 + int(share * 15_000.0))


@inner
def merge(rows: Ints, b: int, first: float, high: float, low: float, last: float, volume: int, value: int, at_ms: int) -> None:
    """Add to row `b` a piece of trading later than what it holds."""
    if rows[b, VOLUME] == 0:
        rows[b, OPEN], rows[b, LOW] = int(first), int(low)
    rows[b, HIGH] = max(rows[b, HIGH], int(high))
    rows[b, LOW] = min(rows[b, LOW], int(low))
    rows[b, CLOSE] = int(last)
    rows[b, VOLUME] += volume
    rows[b, VALUE] += value
    rows[b, LAST_MS] = at_ms


@jit
def aggregate(nature: Nature, edges: Ints, cut_ms: int) -> Ints:
    """Trading between neighbouring `edges` (s UTC, rising, n + 1 of them) up to and with the instant `cut_ms`: (n, 8) rows.

    Columns OPENED (s), OPEN..CLOSE (price units), VOLUME (lots), VALUE (value units), LAST_MS (the last tick, ms).
    A bucket without a trade has VOLUME 0. The value of a tick is the step that it adds to the minute's rounded value.
    """
    n = edges.size - 1
    rows = np.zeros((n, 8), np.int64)
    for b in range(n):
        rows[b, OPENED] = edges[b]
    path, bits = np.empty(MINUTES + 1), np.empty(MINUTES, np.uint64)
    high, low, lots = np.empty(MINUTES), np.empty(MINUTES), np.empty(MINUTES)
    prices = np.empty(4)
    rate = nature.value_units / (nature.lots * PRICE_UNITS)
    stop = min(edges[n], cut_ms // 1000 + 1)
    b = 0
    for day in range(max(edges[0], nature.listed_at) // DAY, (stop + DAY - 1) // DAY):
        fill_day(nature, day, path, high, low, lots, bits)
        midnight = day * DAY
        i = max((edges[0] - midnight) // MINUTE, 0)
        until = min((stop - midnight + MINUTE - 1) // MINUTE, MINUTES)
        while i < until:
            opened = midnight + i * MINUTE
            while b < n - 1 and opened >= edges[b + 1]:
                b += 1
            whole = min((min(edges[b + 1], cut_ms // 1000) - midnight) // MINUTE, until)
            if opened >= edges[b] and i < whole:  # whole minutes of this bucket: no need to look at their ticks
                first, top, bottom, last, volume, value, newest = 0.0, 0.0, np.inf, 0.0, _ZERO, _ZERO, -1
                for j in range(i, whole):
                    lot = lots[j]
                    if lot == 0.0:
                        continue
                    here = path[j]
                    first = here if newest < 0 else first
                    newest = j
                    if lot < 0.0:
                        top, bottom, last, total, lot = max(top, here), min(bottom, here), here, 4.0 * here, -lot
                    else:
                        top, bottom, last = max(top, high[j]), min(bottom, low[j]), path[j + 1]
                        total = here + high[j] + low[j] + last
                    volume += 4 * int(lot)
                    value += int(lot * total * rate + 0.5)
                if newest >= 0:
                    lone = lots[newest] < 0.0
                    at = tick_ms(nature.key, day * MINUTES + newest, 0 if lone else 3, lone)
                    merge(rows, b, first, top, bottom, last, volume, value, at)
                i = whole
                continue
            # A minute cut by an edge or by the clock: tick by tick.
            lone, size, total, worth = lots[i] < 0.0, int(abs(lots[i])), 0.0, 0
            rising = path[i + 1] >= path[i]
            prices[0], prices[3] = path[i], path[i + 1]
            prices[1], prices[2] = (low[i], high[i]) if rising else (high[i], low[i])
            for k in range(0 if size == 0 else 1 if lone else 4):
                price = prices[k]
                total += 4.0 * price if lone else price
                value = int(size * total * rate + 0.5) - worth
                worth += value
                at = tick_ms(nature.key, day * MINUTES + i, k, lone)
                if edges[0] * 1000 <= at < edges[n] * 1000 and at <= cut_ms:
                    while at >= edges[b + 1] * 1000:
                        b += 1
                    merge(rows, b, price, price, price, price, 4 * size if lone else size, value, at)
            i += 1
    return rows


@jit
def regroup(minutes: Ints, lengths: Ints, after_ms: int) -> Ints:
    """Minutes added up into slots of each of `lengths` (s): (n, 9) rows, of those slots only that saw a trade later than `after_ms`.

    The minutes begin where a slot of every length begins. Sums of whole numbers: the same rows that `aggregate` answers for these slots.
    """
    rows = np.zeros((minutes.shape[0] * lengths.size, 9), np.int64)
    n = 0
    for k in range(lengths.size):
        begun = np.int64(-1)
        for i in range(minutes.shape[0]):
            if minutes[i, VOLUME] == 0:
                continue
            opened = minutes[i, OPENED] - minutes[i, OPENED] % lengths[k]
            if opened != begun:
                if begun >= 0 and rows[n, LAST_MS] > after_ms:
                    n += 1
                rows[n] = 0
                rows[n, OPENED], rows[n, SLOT], begun = opened, k, opened
            high, low, last = float(minutes[i, HIGH]), float(minutes[i, LOW]), float(minutes[i, CLOSE])
            merge(rows, n, float(minutes[i, OPEN]), high, low, last, minutes[i, VOLUME], minutes[i, VALUE], minutes[i, LAST_MS])
        if begun >= 0 and rows[n, LAST_MS] > after_ms:
            n += 1
    return rows[:n]
