"""The indicators: each a declaration and one pure kernel over the bars of one (symbol, timeframe).

The split law: `kernel(whole)` equals `kernel(head)` then `kernel(tail)` with the memory carried over, bit for bit, for every
split. So one kernel serves ten years, one day and one live bar. Memory goes in, new memory comes out; nothing is written to.

Unknown values are NaN, and an infinite one counts as unknown: it is no price. Two families treat them in two ways:
- windowed (sma stddev highest lowest tr stoch): unknown while an unknown value is in the window. Their memory is the window
  before the next bar, NaN before the first bar, and a value depends on its window alone: no running sum that could drift.
- recursive (ema atr rsi macd): unknown at an unknown value, and the memory stays; a seed counts known values only.

How they are fast without fastmath: windows of 4 s are four windows of s side by side, so a window of n takes log4(n) passes
that the processor does 8 values at a time, where a running sum is one long chain of additions; CHUNK bars at a time keep the
passes in the first-level cache. A recursive mean is such a chain too; it is shortened to one link per GROUP bars (`_smooth`).
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

CHUNK = 1024  # bars; the passes of a window then work on some 32 kB
GROUP = 4  # bars between two links of a recursive mean: 0.9 ns per bar against 1.7 of the plain recursion (benchmarks/kernels.py)


def jit(function: Function) -> Function:
    """Compile at the first call and keep the result on disk; run without the interpreter lock. No fastmath: the bits are as written."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


# ---------------------------------------------------------------------------------------------- what the kernels share


@jit
def _with_past(past: Floats, x: Floats, start: int, stop: int) -> Floats:
    """x[start:stop] and the past.size values before it, which are `past` if start is 0; a later start lies beyond past.size."""
    if start > 0:
        return x[start - past.size : stop]
    values = np.empty(past.size + min(stop, x.size))
    for i in range(past.size):
        values[i] = past[i]
    for i in range(values.size - past.size):
        values[past.size + i] = x[i]
    return values


@jit
def _next_past(past: Floats, x: Floats) -> Floats:
    """The last past.size values of `past` and `x` together: the past of the bar after `x`."""
    values = np.empty(past.size)
    kept = max(past.size - x.size, 0)
    for i in range(past.size):
        values[i] = past[past.size - kept + i] if i < kept else x[x.size - past.size + i]
    return values


@jit
def movement(close: Floats, previous_close: float, sign: float) -> Floats:
    """How far each close rose (sign 1) or fell (sign -1) since the one before, else 0; unknown if either is."""
    out = np.empty(close.size)
    if close.size > 0:
        out[0] = sign * (close[0] - previous_close)
    later, changes = close[1:], out[1:]
    for i in range(changes.size):
        changes[i] = sign * (later[i] - close[i])
    for i in range(out.size):
        change = out[i] if out[i] > 0 else 0.0
        out[i] = change if abs(out[i]) < inf else nan
    return out


# A window starts at its index in `values`; those of `size` values are known in `sums`. One loop each, which vectorises.


@jit
def _sum_four(a: Floats, b: Floats, c: Floats, d: Floats, out: Floats) -> None:
    for i in range(out.size):
        out[i] = (a[i] + b[i]) + (c[i] + d[i])


@jit
def _add_windows(values: Floats, sums: Floats, size: int, count: int, excess: Floats) -> None:
    """To the excess of each window add that of `count` (0 to 3) windows side by side."""
    scale = float(size)
    if count == 1:
        for i in range(excess.size):
            excess[i] += sums[i] - scale * values[i]
    elif count == 2:
        second = sums[size:]
        for i in range(excess.size):
            base = scale * values[i]
            excess[i] += (sums[i] - base) + (second[i] - base)
    elif count == 3:
        second, third = sums[size:], sums[2 * size :]
        for i in range(excess.size):
            base = scale * values[i]
            excess[i] += ((sums[i] - base) + (second[i] - base)) + (third[i] - base)


@jit
def _finish_means(values: Floats, excess: Floats, n: int, out: Floats) -> None:
    share = 1.0 / n
    for i in range(out.size):
        mean = values[i] + share * excess[i]
        out[i] = mean if abs(mean) < inf else nan


@jit
def _means(past: Floats, x: Floats, n: int, out: Floats) -> None:
    """Mean of the last `n` values at each of `x`, into `out`; `past` is the n - 1 values before `x`.

    A window is its base-4 digits: 20 = 1 * 16 + 1 * 4. `excess` is by how much it is above n times its first value: exactly 0
    over a constant, as a constant's sum is exact when its size is a power of 2.
    """
    chunk = max(CHUNK, 4 * n)
    narrow, wide, room = np.empty(chunk + n), np.empty(chunk + n), np.empty(min(chunk, x.size))
    for start in range(0, x.size, chunk):
        means = out[start : start + chunk]
        values = _with_past(past, x, start, start + chunk)
        excess = room[: means.size]
        excess.fill(0.0)
        sums, size, offset, rest = values, 1, 0, n
        while True:
            _add_windows(values, sums[offset:], size, rest % 4, excess)
            offset += rest % 4 * size
            rest //= 4
            if rest == 0:
                break
            _sum_four(sums, sums[size:], sums[2 * size :], sums[3 * size :], narrow[: values.size - 4 * size + 1])
            sums = narrow
            narrow, wide = wide, narrow
            size *= 4
        _finish_means(values, excess, n, means)


@jit
def _signed(values: Floats, sign: float, out: Floats) -> None:
    """An unknown value becomes the largest of all, so that it wins every comparison."""
    for i in range(out.size):
        out[i] = sign * values[i] if abs(values[i]) < inf else inf


@jit
def _max_four(a: Floats, b: Floats, c: Floats, d: Floats, out: Floats) -> None:
    for i in range(out.size):
        first, second, third, fourth = a[i], b[i], c[i], d[i]
        left = first if first > second else second
        right = third if third > fourth else fourth
        out[i] = left if left > right else right


@jit
def _unsigned(values: Floats, sign: float) -> None:
    for i in range(values.size):
        values[i] = sign * values[i] if values[i] < inf else nan


@jit
def _maxima(past: Floats, x: Floats, n: int, sign: float, out: Floats) -> None:
    """Maximum (sign 1) or minimum (sign -1) of the last `n` values at each of `x`, into `out`; `past` is the n - 1 values before `x`."""
    chunk = max(CHUNK, 4 * n)
    best, wider = np.empty(chunk + n), np.empty(chunk + n)
    for start in range(0, x.size, chunk):
        maxima = out[start : start + chunk]
        values = _with_past(past, x, start, start + chunk)
        _signed(values, sign, best[: values.size])
        size = 1
        while 4 * size <= n:
            _max_four(best, best[size:], best[2 * size :], best[3 * size :], wider[: values.size - 4 * size + 1])
            best, wider = wider, best
            size *= 4
        last = n - size  # the four may overlap, which a maximum does not mind
        _max_four(best, best[min(size, last) :], best[min(2 * size, last) :], best[last:], maxima)
        _unsigned(maxima, sign)


@jit
def _double(values: Floats, sums: Floats, squares: Floats, size: int, wider_sums: Floats, wider_squares: Floats) -> None:
    """Two windows of `size` side by side: sums of distances from the first value, sums of squares of those from the mean."""
    beside, sums_beside, squares_beside = values[size:], sums[size:], squares[size:]
    scale, share, weight = float(size), 1.0 / size, 0.5 * size
    for i in range(wider_sums.size):
        step = beside[i] - values[i]
        between = step + share * (sums_beside[i] - sums[i])  # of the means
        wider_sums[i] = sums[i] + sums_beside[i] + scale * step
        wider_squares[i] = squares[i] + squares_beside[i] + weight * (between * between)


@jit
def _append(values: Floats, size: int, sums: Floats, squares: Floats) -> None:
    """One more value in each window of `size`."""
    end = values[size:]
    share, weight = 1.0 / size, size / (size + 1.0)
    for i in range(sums.size):
        step = end[i] - values[i]
        between = step - share * sums[i]
        sums[i] += step
        squares[i] += weight * (between * between)


@jit
def _deviations(past: Floats, x: Floats, n: int, out: Floats) -> None:
    """Population deviation of the last `n` values at each of `x`, into `out`; `past` is the n - 1 values before `x`.

    Reads `n` in binary from its highest digit: 20 = 10100 is 1, doubled 2, doubled and one more 5, doubled 10, doubled 20.
    """
    chunk = max(CHUNK, 4 * n)
    first_bit = 1
    while 2 * first_bit <= n:
        first_bit *= 2
    sums, wider_sums = np.empty(chunk + n), np.empty(chunk + n)
    squares, wider_squares = np.empty(chunk + n), np.empty(chunk + n)
    for start in range(0, x.size, chunk):
        deviations = out[start : start + chunk]
        values = _with_past(past, x, start, start + chunk)
        sums.fill(0.0)
        squares.fill(0.0)
        size, bit = 1, first_bit // 2
        while bit > 0:
            windows = values.size - 2 * size + 1
            _double(values, sums, squares, size, wider_sums[:windows], wider_squares[:windows])
            size *= 2
            if n & bit:
                _append(values, size, wider_sums[: windows - 1], wider_squares[: windows - 1])
                size += 1
            sums, wider_sums = wider_sums, sums
            squares, wider_squares = wider_squares, squares
            bit //= 2
        share = 1.0 / n
        for i in range(deviations.size):
            deviation = np.sqrt(share * squares[i]) + 0.0 * values[i]  # unknown if a window of one is
            deviations[i] = deviation if deviation < inf else nan


@jit
def _smooth(memory: Floats, x: Floats, n: int, rate: float, out: Floats) -> Floats:
    """A mean that moves by `rate` towards each value, seeded by the plain mean of the first `n` known ones, into `out`.

    mean = keep mean[1] + rate x, in groups of GROUP known values: `part` is what those of the group so far contribute, `start`
    the mean before it, `power` what it still weighs. Only `start` waits for the group before, so the processor works on
    several groups at once.
    """
    start, part, power, step, count = memory[0], memory[1], memory[2], int(memory[3]), memory[4]
    keep = 1.0 - rate
    for i in range(x.size):
        value = x[i]
        if not abs(value) < inf:
            out[i] = nan
        elif count < n:
            count += 1
            start += (value - start) / count
            out[i] = start if count == n else nan
        else:
            part = keep * part + rate * value
            power *= keep
            mean = power * start + part
            out[i] = mean
            step += 1
            if step == GROUP:
                start, part, power, step = mean, 0.0, 1.0, 0
    return np.array([start, part, power, float(step), count])


UNSEEDED = (0.0, 0.0, 1.0, 0.0, 0.0)  # the memory of `_smooth`: start, part, power, values in the group, known values in the seed


def _window(n: int) -> list[float]:
    """The memory of a window before the first bar."""
    return [nan] * (n - 1)


# ------------------------------------------------------------------------------------------------------- the indicators


@jit
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
    return np.array([close[-1], 1.0]), out


@indicator(source="close", reads=lambda source, n: (source,), memory=_window, lag=lambda n: n - 1)
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


@indicator(source="close", reads=lambda source, n: (source,), memory=_window, lag=lambda n: n - 1)
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


@indicator(
    reads=lambda n: ("rise", "fall", sma("rise", n), sma("fall", n)),
    memory=lambda n: (nan, nan, 0.0, 0.0, 1.0, 0.0),  # start, part and power as in _smooth
    settles=lambda n: forgets(1 / n),
)
@jit
def rsi(memory: Floats, rise: Floats, fall: Floats, mean_rise: Floats, mean_fall: Floats, n: int = 14) -> tuple[Floats, Floats]:
    """Relative Strength Index: how much of the recent movement was upward, 0 to 100.

        RSI = 100 U / (U + D)

    U and D are Wilder means over `n` bars of the rises and falls of `close`; each starts as their plain mean (sma).
    A market that has not moved has no direction: unknown. Source: Wilder, New Concepts in Technical Trading Systems (1978).
    """
    up, down, up_part, down_part, power, step = memory[0], memory[1], memory[2], memory[3], memory[4], int(memory[5])
    rate, keep = 1.0 / n, 1.0 - 1.0 / n
    out = np.empty((1, rise.size))
    share = out[0]
    for i in range(rise.size):
        if not abs(rise[i]) + abs(fall[i]) < inf:
            share[i] = nan
        elif np.isnan(up):  # until sma has n values: the seed
            up, down = mean_rise[i], mean_fall[i]
            share[i] = 100 * up / (up + down) if up + down > 0 else nan
        else:  # in groups, as in _smooth
            up_part = keep * up_part + rate * rise[i]
            down_part = keep * down_part + rate * fall[i]
            power *= keep
            u, d = power * up + up_part, power * down + down_part
            share[i] = 100 * u / (u + d) if u + d > 0 else nan
            step += 1
            if step == GROUP:
                up, down, up_part, down_part, power, step = u, d, 0.0, 0.0, 1.0, 0
    return np.array([up, down, up_part, down_part, power, float(step)]), out


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
