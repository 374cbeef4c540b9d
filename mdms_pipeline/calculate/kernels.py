"""The indicators: each a declaration and one pure kernel over the bars of one (symbol, timeframe).

The split law: `kernel(whole)` equals `kernel(head)` then `kernel(tail)` with the memory carried over, bit for bit, for every
split. So one kernel serves ten years, one day and one live bar. Memory goes in, new memory comes out; nothing is written to.

Unknown values are NaN, and an infinite one counts as unknown: it is no price. Two families treat them in two ways:
- windowed (sma stddev highest lowest tr stoch): unknown while an unknown value is in the window. Their memory is the window
  before the next bar, NaN before the first bar, and a value depends on its window alone: no running sum that could drift.
- recursive (ema atr rsi macd): unknown at an unknown value, and the memory stays; a seed counts known values only.

How they are fast without fastmath: windows of 2 s are two windows of s side by side, so a window of n takes log2(n) passes
that the processor does 8 values at a time, where a running sum is one long chain of additions; CHUNK bars at a time keep the
passes in the first-level cache. A recursive mean is such a chain too; it is shortened to one link per GROUP bars (`_decay`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy import inf, nan

from mdms_pipeline.calculate.indicator import forgets, indicator
from mdms_pipeline.market import Floats

Function = TypeVar("Function", bound=Callable[..., Any])

CHUNK = 512  # bars; the passes of a window then work on some 20 kB
GROUP = 4  # bars between two links of a recursive mean (written out in `_decay_groups`): 0.6 ns per bar against 2.5 of the plain recursion

# Ways into compiled code that nobody takes cost time to compile. Live bars call a kernel by its address, the way from C. numba takes this,
# its types do not tell.
_NO_WAY_IN: dict[str, Any] = {"no_cfunc_wrapper": True, "no_cpython_wrapper": True}


def jit(function: Function) -> Function:
    """Compile at the first call and keep the result on disk; run without the interpreter lock. No fastmath: the bits are as written."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inner(function: Function) -> Function:
    """As `jit`, for what only compiled code calls."""
    return cast(Function, numba.njit(nogil=True, error_model="numpy", **_NO_WAY_IN)(function))


# ---------------------------------------------------------------------------------------------- what the kernels share


@inner
def _with_past(past: Floats, x: Floats, start: int, stop: int) -> Floats:
    """x[start:stop] and the past.size values before it, which are `past` if start is 0; a later start lies beyond past.size."""
    if start > 0:
        return x[start - past.size : stop]
    return np.concatenate((past, x[:stop]))


@inner
def _next_past(past: Floats, x: Floats) -> Floats:
    """The last past.size values of `past` and `x` together: the past of the bar after `x`."""
    newest = x[max(x.size - past.size, 0) :]
    return np.concatenate((past, newest))[newest.size :].copy()


@inner
def _moved(close: float, before: float, sign: float) -> float:
    change = sign * (close - before)
    up = change if change > 0 else 0.0
    return up if abs(change) < inf else nan


@jit
def movement(close: Floats, previous_close: float, sign: float) -> Floats:
    """How far each close rose (sign 1) or fell (sign -1) since the one before, else 0; unknown if either is."""
    out = np.empty(close.size)
    if close.size > 0:
        out[0] = _moved(close[0], previous_close, sign)
    later, changes = close[1:], out[1:]
    for i in range(changes.size):
        changes[i] = _moved(later[i], close[i], sign)
    return out


# A window is named by its first index. One loop each, which the processor does 4 or 8 values at a time.


@inner
def _sum_two(a: Floats, b: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = a[i] + b[i]


@inner
def _sum_four(a: Floats, b: Floats, c: Floats, d: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = (a[i] + b[i]) + (c[i] + d[i])


@inner
def _first_means(sums: Floats, scale: float, means: Floats) -> None:
    for i in range(means.size):
        mean = scale * sums[i]
        means[i] = mean if abs(mean) < inf else nan


@inner
def _blend(sums: Floats, scale: float, share: float, means: Floats) -> None:
    """Bring into the means the windows that follow theirs, whose share of all bars is `share`. Equal means stay as they are."""
    for i in range(means.size):
        mean = means[i] + share * (scale * sums[i] - means[i])
        means[i] = mean if abs(mean) < inf else nan


@inner
def _means(past: Floats, x: Floats, n: int, out: Floats) -> None:
    """Mean of the last `n` values at each of `x`, into `out`; `past` is the n - 1 values before `x`.

    A window is its binary digits: 20 = 4 + 16. The sum of a constant is exact where the size is a power of 2, so is its mean.
    """
    chunk = max(CHUNK, 4 * n)
    wider, other = np.empty(chunk + n), np.empty(chunk + n)
    for start in range(0, x.size, chunk):
        means = out[start : start + chunk]
        sums = _with_past(past, x, start, start + chunk)
        size, known, rest = 1, 0, n
        while True:
            if rest & 1:
                if known == 0:
                    _first_means(sums, 1.0 / size, means)
                else:
                    _blend(sums[known:], 1.0 / size, size / (known + size), means)
                known += size
            if rest == 1:
                break
            if rest & 2:
                wide = wider[: sums.size - size]
                _sum_two(sums, sums[size:], wide)
                size, rest = 2 * size, rest >> 1
            else:
                wide = wider[: sums.size - 3 * size]
                _sum_four(sums, sums[size:], sums[2 * size :], sums[3 * size :], wide)
                size, rest = 4 * size, rest >> 2
            sums = wide
            wider, other = other, wider


@inner
def _unknown(values: Floats) -> int:
    """How many are."""
    count = 0
    for i in range(values.size):
        count += not abs(values[i]) < inf
    return count


@inner
def _known_or_largest(values: Floats, sign: float) -> Floats:
    """An unknown value becomes the largest of all, so that it wins every comparison."""
    out = np.empty(values.size)
    for i in range(values.size):
        out[i] = values[i] if abs(values[i]) < inf else sign * inf
    return out


@inner
def _largest_to_unknown(values: Floats) -> None:
    for i in range(values.size):
        values[i] = values[i] if abs(values[i]) < inf else nan


@inner
def _max_four(a: Floats, b: Floats, c: Floats, d: Floats, sign: float, out: Floats) -> None:
    """The largest (sign 1) or smallest (sign -1)."""
    for i in range(out.size):
        first, second, third, fourth = sign * a[i], sign * b[i], sign * c[i], sign * d[i]
        left = first if first > second else second
        right = third if third > fourth else fourth
        out[i] = sign * (left if left > right else right)


@inner
def _maxima(past: Floats, x: Floats, n: int, sign: float, out: Floats) -> None:
    """Maximum (sign 1) or minimum (sign -1) of the last `n` values at each of `x`, into `out`; `past` is the n - 1 values before `x`."""
    chunk = max(CHUNK, 4 * n)
    wider, other = np.empty(chunk + n), np.empty(chunk + n)
    for start in range(0, x.size, chunk):
        maxima = out[start : start + chunk]
        best = _with_past(past, x, start, start + chunk)
        unknown = _unknown(best)
        if unknown:
            best = _known_or_largest(best, sign)
        size = 1
        while 4 * size <= n:
            wide = wider[: best.size - 3 * size]
            _max_four(best, best[size:], best[2 * size :], best[3 * size :], sign, wide)
            best = wide
            wider, other = other, wider
            size *= 4
        last = n - size  # the four may overlap, which a maximum does not mind
        _max_four(best, best[min(size, last) :], best[min(2 * size, last) :], best[last:], sign, maxima)
        if unknown:
            _largest_to_unknown(maxima)


@inner
def _pair(values: Floats, ahead: Floats, squares: Floats) -> None:
    """Windows of 2: how far the mean is ahead of the first value, and the sum of squares of distances from the mean."""
    second = values[1:]
    for i in range(ahead.size):
        ahead[i] = 0.5 * (second[i] - values[i])
        squares[i] = 2.0 * (ahead[i] * ahead[i])


@inner
def _double(values: Floats, ahead: Floats, squares: Floats, size: int, wider_ahead: Floats, wider_squares: Floats) -> None:
    """Two windows of `size` side by side."""
    beside, ahead_beside, squares_beside = values[size:], ahead[size:], squares[size:]
    weight = 0.5 * size
    for i in range(wider_ahead.size):
        between = (beside[i] - values[i]) + (ahead_beside[i] - ahead[i])  # of the means
        wider_ahead[i] = ahead[i] + 0.5 * between
        wider_squares[i] = (squares[i] + squares_beside[i]) + weight * (between * between)


@inner
def _append(values: Floats, size: int, ahead: Floats, squares: Floats) -> None:
    """One more value in each window of `size`."""
    end = values[size:]
    share, weight = 1.0 / (size + 1.0), size / (size + 1.0)
    for i in range(ahead.size):
        between = (end[i] - values[i]) - ahead[i]
        ahead[i] += share * between
        squares[i] += weight * (between * between)


@inner
def _deviations(past: Floats, x: Floats, n: int, out: Floats) -> None:
    """Population deviation of the last `n` values at each of `x`, into `out`; `past` is the n - 1 values before `x`.

    Reads `n` in binary from its highest digit: 20 = 10100 is 1, doubled 2, doubled and one more 5, doubled 10, doubled 20.
    """
    chunk = max(CHUNK, 4 * n)
    digits = 1
    while n >> digits:
        digits += 1
    ahead, wider_ahead = np.empty(chunk + n), np.empty(chunk + n)
    squares, wider_squares = np.empty(chunk + n), np.empty(chunk + n)
    for i in range(ahead.size if n == 1 else 0):
        squares[i] = 0.0
    for start in range(0, x.size, chunk):
        deviations = out[start : start + chunk]
        values = _with_past(past, x, start, start + chunk)
        for unread in range(digits - 2, -1, -1):  # digits
            size = 2 * (n >> (unread + 1))
            windows = values.size - size + 1
            if size == 2:
                _pair(values, wider_ahead[:windows], wider_squares[:windows])
            else:
                _double(values, ahead, squares, size // 2, wider_ahead[:windows], wider_squares[:windows])
            if n >> unread & 1:
                _append(values, size, wider_ahead[: windows - 1], wider_squares[: windows - 1])
            ahead, wider_ahead = wider_ahead, ahead
            squares, wider_squares = wider_squares, squares
        share = 1.0 / n
        for i in range(deviations.size):
            deviation = np.sqrt(share * squares[i]) + 0.0 * values[i]  # unknown if a window of one is
            deviations[i] = deviation if deviation < inf else nan


@inner
def _decay_groups(state: Floats, x: Floats, rate: float, out: Floats) -> int:
    """As `_decay`, over whole groups from the first of `x` to the first that has an unknown value; how many values they are.

    The shape spares the processor the question of what an index below 0 would mean, which took longer than the mean: 0.9 ns per bar.
    """
    start, keep, groups = state[0], 1.0 - rate, x.size // GROUP
    keep_2 = keep * keep
    keep_3 = keep_2 * keep
    keep_4 = keep_3 * keep
    values, means = x[: GROUP * groups].reshape((groups, GROUP)), out[: GROUP * groups].reshape((groups, GROUP))
    for group in range(groups):
        first = rate * values[group, 0]
        second = keep * first + rate * values[group, 1]
        third = keep * second + rate * values[group, 2]
        mean = keep_4 * start + (keep * third + rate * values[group, 3])
        if not abs(mean) < inf:
            groups = group
            break
        means[group, 0] = keep * start + first
        means[group, 1] = keep_2 * start + second
        means[group, 2] = keep_3 * start + third
        means[group, 3] = mean
        start = mean
    state[0] = start
    return GROUP * groups


@inner
def _decay(state: Floats, x: Floats, rate: float, out: Floats) -> None:
    """A mean that moves by `rate` towards each value, into `out`; an unknown value is passed over. Brings `state` up to the last bar.

    mean = keep mean[1] + rate x, in groups of GROUP known values: `part` is what those of the group so far contribute, `start`
    the mean before it, `power` what it still weighs. Only `start` waits for the group before, so the processor works on
    several groups at once.
    """
    part, power, step = state[1], state[2], int(state[3])
    keep = 1.0 - rate
    i = 0
    while i < x.size:
        if step == 0 and x.size - i >= GROUP:
            i += _decay_groups(state, x[i:], rate, out[i:])
            if i == x.size:
                break
        value = x[i]
        if abs(value) < inf:
            part = keep * part + rate * value
            power *= keep
            mean = power * state[0] + part
            out[i] = mean
            step += 1
            if step == GROUP:
                state[0], part, power, step = mean, 0.0, 1.0, 0
        else:
            out[i] = nan
        i += 1
    state[1], state[2], state[3] = part, power, step


@inner
def _smooth(memory: Floats, x: Floats, n: int, rate: float, out: Floats) -> Floats:
    """As `_decay`, seeded by the plain mean of the first `n` known values; the memory after `x`."""
    state = memory.copy()
    count, seeded = state[4], 0
    while seeded < x.size and count < n:
        value = x[seeded]
        out[seeded] = nan
        if abs(value) < inf:
            count += 1
            state[0] += (value - state[0]) / count
            if count == n:
                out[seeded] = state[0]
        seeded += 1
    state[4] = count
    _decay(state, x[seeded:], rate, out[seeded:])
    return state


UNSEEDED = (0.0, 0.0, 1.0, 0.0, 0.0)  # the memory of `_smooth`: that of `_decay` and the known values in the seed


def _window(n: int) -> list[float]:
    """The memory of a window before the first bar."""
    return [nan] * (n - 1)


# ------------------------------------------------------------------------------------------------------- the indicators


@inner
def _reach(high: float, low: float, before: float) -> float:
    reach = max(high - low, max(abs(high - before), abs(low - before)))
    return reach if abs(high) + abs(low) + abs(before) < inf else nan


@indicator(
    reads=lambda: ("high", "low", "close"),
    memory=lambda: (nan, 0.0),
    settles=lambda: 1,  # the first bar knows no close before it
)
@jit
def tr(memory: Floats, high: Floats, low: Floats, close: Floats) -> tuple[Floats, Floats]:
    """True Range: how far the price moved in a bar, with the gap from the bar before. In KRW.

        TR = max(high - low, |high - close[1]|, |low - close[1]|)

    The first bar has no close before it: high - low. A bar after an unknown close is unknown.
    Source: Wilder, New Concepts in Technical Trading Systems (1978).
    """
    out = np.empty((1, close.size))
    if close.size == 0:
        return memory.copy(), out
    first = memory[0] if memory[1] else close[0]  # a price of the bar itself adds nothing
    out[0, 0] = _reach(high[0], low[0], first)
    ranges, high_after, low_after = out[0, 1:], high[1:], low[1:]
    for i in range(ranges.size):
        ranges[i] = _reach(high_after[i], low_after[i], close[i])
    after = np.empty(2)
    after[0], after[1] = close[-1], 1.0
    return after, out


@indicator(source="close", reads=lambda source, n: (source,), memory=_window, lag=lambda n: n - 1, version=2)
@jit
def sma(memory: Floats, x: Floats, n: int = 20) -> tuple[Floats, Floats]:
    """Simple Moving Average: the plain mean of the last `n` values of `x`. In the unit of `x`.

        SMA = (x + x[1] + ... + x[n-1]) / n

    Over a constant window it is exactly that constant. Unknown while a value in the window is.
    """
    out = np.empty((1, x.size))
    _means(memory, x, n, out[0])
    return _next_past(memory, x), out


@indicator(
    source="close",
    reads=lambda source, n: (source,),
    memory=lambda n: UNSEEDED,
    lag=lambda n: n - 1,
    settles=lambda n: forgets(2 / (n + 1)),
)
@jit
def ema(memory: Floats, x: Floats, n: int = 20) -> tuple[Floats, Floats]:
    """Exponential Moving Average: a mean of `x` in which older values weigh less and less. In the unit of `x`.

        EMA = EMA[1] + 2 / (n + 1) (x - EMA[1])

    Starts as the plain mean of the first `n` known values. An unknown value gives unknown and is passed over.
    """
    out = np.empty((1, x.size))
    return _smooth(memory, x, n, 2.0 / (n + 1), out[0]), out


@indicator(source="close", reads=lambda source, n: (source,), memory=_window, lag=lambda n: n - 1, version=2)
@jit
def stddev(memory: Floats, x: Floats, n: int = 20) -> tuple[Floats, Floats]:
    """Standard deviation of the last `n` values of `x`, of the population. In the unit of `x`.

        SD = sqrt(mean((x - mean(x))^2))

    Over a constant window it is exactly 0. Unknown while a value in the window is. Squares are of distances between means of
    neighbouring windows, never of prices: Chan, Golub and LeVeque, Updating Formulae for Computing Sample Variances (1979).
    """
    out = np.empty((1, x.size))
    _deviations(memory, x, n, out[0])
    return _next_past(memory, x), out


@indicator(source="high", reads=lambda source, n: (source,), memory=_window, lag=lambda n: n - 1)
@jit
def highest(memory: Floats, x: Floats, n: int = 20) -> tuple[Floats, Floats]:
    """The highest of the last `n` values of `x` (of `high`, if the call names no other), this bar included. In the unit of `x`.

    Unknown while a value in the window is.
    """
    out = np.empty((1, x.size))
    _maxima(memory, x, n, 1.0, out[0])
    return _next_past(memory, x), out


@indicator(source="low", reads=lambda source, n: (source,), memory=_window, lag=lambda n: n - 1)
@jit
def lowest(memory: Floats, x: Floats, n: int = 20) -> tuple[Floats, Floats]:
    """The lowest of the last `n` values of `x` (of `low`, if the call names no other), this bar included. In the unit of `x`.

    Unknown while a value in the window is.
    """
    out = np.empty((1, x.size))
    _maxima(memory, x, n, -1.0, out[0])
    return _next_past(memory, x), out


@inner
def _share(up: float, down: float) -> float:
    return 100 * up / (up + down) if up + down > 0 else nan


@indicator(
    reads=lambda n: ("rise", "fall", sma("rise", n), sma("fall", n)),
    memory=lambda n: (nan, 0.0, 1.0, 0.0) * 2,  # start, part, power and step of the rises, and of the falls, as in _decay
    settles=lambda n: forgets(1 / n),
    version=2,
)
@jit
def rsi(memory: Floats, rise: Floats, fall: Floats, mean_rise: Floats, mean_fall: Floats, n: int = 14) -> tuple[Floats, Floats]:
    """Relative Strength Index: how much of the recent movement was upward, 0 to 100.

        RSI = 100 U / (U + D)

    U and D are Wilder means over `n` bars of the rises and falls of `close`; each starts as their plain mean (sma).
    A market that has not moved has no direction: unknown. Source: Wilder, New Concepts in Technical Trading Systems (1978).
    """
    up, down = memory[:4].copy(), memory[4:].copy()
    out = np.empty((1, rise.size))
    share, falls = out[0], np.empty(min(CHUNK, rise.size))
    seeded = 0
    while seeded < rise.size and np.isnan(up[0]):  # until sma has n values: the seed
        up[0], down[0] = mean_rise[seeded], mean_fall[seeded]
        share[seeded] = _share(up[0], down[0])
        seeded += 1
    for start in range(seeded, rise.size, CHUNK):
        shares = share[start : start + CHUNK]
        _decay(up, rise[start : start + CHUNK], 1.0 / n, shares)
        _decay(down, fall[start : start + CHUNK], 1.0 / n, falls)
        for i in range(shares.size):
            shares[i] = _share(shares[i], falls[i])
    return np.concatenate((up, down)), out


@indicator(reads=lambda n: (tr(),), memory=lambda n: UNSEEDED, lag=lambda n: n - 1, settles=lambda n: forgets(1 / n))
@jit
def atr(memory: Floats, true_range: Floats, n: int = 14) -> tuple[Floats, Floats]:
    """Average True Range: how far the price moves in a bar, of late. In KRW.

        ATR = ATR[1] + (TR - ATR[1]) / n

    Starts as the plain mean of the first `n` known true ranges. An unknown one gives unknown and is passed over.
    Source: Wilder, New Concepts in Technical Trading Systems (1978).
    """
    out = np.empty((1, true_range.size))
    return _smooth(memory, true_range, n, 1.0 / n, out[0]), out


@indicator(
    reads=lambda fast, slow, signal: (ema(fast), ema(slow)),
    writes=("line", "signal", "histogram"),
    memory=lambda fast, slow, signal: UNSEEDED,
    lag=lambda fast, slow, signal: (0, signal - 1, signal - 1),
    settles=lambda fast, slow, signal: forgets(2 / (signal + 1)),
    check=lambda fast, slow, signal: None if fast < slow else f"fast must be less than slow, got {fast} and {slow}: swap or part them",
)
@jit
def macd(memory: Floats, mean_fast: Floats, mean_slow: Floats, fast: int = 12, slow: int = 26, signal: int = 9) -> tuple[Floats, Floats]:
    """Moving Average Convergence Divergence: how far a fast mean of `close` is ahead of a slow one. In KRW.

        line = EMA(fast) - EMA(slow);  signal = EMA(line, signal);  histogram = line - signal

    Each ema starts by itself; the signal as the plain mean of its first known lines. Source: Appel, Technical Analysis (2005).
    """
    out = np.empty((3, mean_fast.size))
    line, smoothed, histogram = out[0], out[1], out[2]
    for i in range(line.size):
        line[i] = mean_fast[i] - mean_slow[i]
    memory = _smooth(memory, line, signal, 2.0 / (signal + 1), smoothed)
    for i in range(line.size):
        histogram[i] = line[i] - smoothed[i]
    return memory, out


@indicator(
    reads=lambda n, k: ("close", sma(n), stddev(n)),
    writes=("middle", "upper", "lower", "percent_b", "bandwidth"),
)
@jit
def bollinger(memory: Floats, close: Floats, mean: Floats, deviation: Floats, n: int = 20, k: float = 2.0) -> tuple[Floats, Floats]:
    """Bollinger Bands: `k` standard deviations about the mean of the last `n` closes. In KRW; percent_b and bandwidth are ratios.

        middle = SMA(n);  upper, lower = middle +/- k SD(n)
        percent_b = (close - lower) / (upper - lower);  bandwidth = (upper - lower) / middle

    percent_b is 0 at the lower band and 1 at the upper. Bands without width: unknown.
    Source: Bollinger, Bollinger on Bollinger Bands (2001).
    """
    out = np.empty((5, close.size))
    middle, upper, lower, percent_b, bandwidth = out[0], out[1], out[2], out[3], out[4]
    for i in range(close.size):
        middle[i] = mean[i]
        upper[i] = mean[i] + k * deviation[i]
        lower[i] = mean[i] - k * deviation[i]
        width = upper[i] - lower[i]
        percent_b[i] = (close[i] - lower[i]) / width if width > 0 and abs(close[i]) < inf else nan
        bandwidth[i] = width / mean[i] if mean[i] != 0 else nan
    return memory.copy(), out


@indicator(
    reads=lambda n, a, b: ("close", highest(n), lowest(n)),
    writes=("raw", "k", "d"),
    memory=lambda n, a, b: _window(a) + _window(b),
    lag=lambda n, a, b: (0, a - 1, a + b - 2),
    version=2,
)
@jit
def stoch(memory: Floats, close: Floats, top: Floats, bottom: Floats, n: int = 14, a: int = 3, b: int = 3) -> tuple[Floats, Floats]:
    """Stochastic oscillator: where the close stands between the lowest low and the highest high of `n` bars, 0 to 100.

        raw = 100 (close - LOWEST(low, n)) / (HIGHEST(high, n) - LOWEST(low, n));  k = SMA(raw, a);  d = SMA(k, b)

    A window whose highest is its lowest has no between: unknown, and so are k and d until it has left their windows.
    Source: Lane, Stocks & Commodities 2:3 (1984).
    """
    out = np.empty((3, close.size))
    raw = out[0]
    for i in range(close.size):
        height = top[i] - bottom[i]
        raw[i] = 100 * (close[i] - bottom[i]) / height if height > 0 and abs(close[i]) < inf else nan
    past_raw, past_k = memory[: a - 1], memory[a - 1 :]
    _means(past_raw, raw, a, out[1])
    _means(past_k, out[1], b, out[2])
    return np.concatenate((_next_past(past_raw, raw), _next_past(past_k, out[1]))), out
