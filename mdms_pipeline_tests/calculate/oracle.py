"""The indicators again: slow, naive, over whole lists of plain numbers. Shares no code and no idea with the kernels.

None is unknown. Windows are sliced anew at each bar and summed exactly (math.fsum).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

Column = Sequence[float | None]


def over_windows(x: Column, n: int, value: Callable[[list[float]], float]) -> list[float | None]:
    result: list[float | None] = []
    for i in range(len(x)):
        window = x[i - n + 1 : i + 1] if i >= n - 1 else []
        known = [item for item in window if item is not None]
        result.append(value(known) if len(known) == n else None)
    return result


def mean(values: list[float]) -> float:
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)


def deviation(values: list[float]) -> float:
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / len(values))


def sma(x: Column, n: int) -> list[float | None]:
    return over_windows(x, n, mean)


def stddev(x: Column, n: int) -> list[float | None]:
    return over_windows(x, n, deviation)


def highest(x: Column, n: int) -> list[float | None]:
    return over_windows(x, n, max)


def lowest(x: Column, n: int) -> list[float | None]:
    return over_windows(x, n, min)


def moving(x: Column, n: int, rate: float) -> list[float | None]:
    """e += rate (x - e), from the mean of the first n known values."""
    result: list[float | None] = []
    seed: list[float] = []
    e = math.nan
    for value in x:
        if value is None:
            result.append(None)
        elif len(seed) < n:
            seed.append(value)
            e = mean(seed)
            result.append(e if len(seed) == n else None)
        else:
            e += rate * (value - e)
            result.append(e)
    return result


def ema(x: Column, n: int) -> list[float | None]:
    return moving(x, n, 2 / (n + 1))


def tr(high: Column, low: Column, close: Column) -> list[float | None]:
    result: list[float | None] = []
    for i, (top, bottom) in enumerate(zip(high, low, strict=True)):
        if top is None or bottom is None:
            result.append(None)
        elif i == 0:
            result.append(top - bottom)
        else:
            c = close[i - 1]
            result.append(None if c is None else max(top - bottom, abs(top - c), abs(bottom - c)))
    return result


def atr(high: Column, low: Column, close: Column, n: int) -> list[float | None]:
    return moving(tr(high, low, close), n, 1 / n)


def changes(close: Column, sign: int) -> list[float | None]:
    result: list[float | None] = [None]
    for before, after in pairwise(close):
        result.append(None if before is None or after is None else max(sign * (after - before), 0.0))
    return result[: len(close)]


def rsi(close: Column, n: int) -> list[float | None]:
    """Wilder means that start at the first bar whose last n changes are all known."""
    rises, falls = changes(close, 1), changes(close, -1)
    result: list[float | None] = []
    up = down = None
    for i, (rise, fall) in enumerate(zip(rises, falls, strict=True)):
        if rise is None or fall is None:
            result.append(None)
            continue
        if up is None or down is None:
            up, down = sma(rises[: i + 1], n)[-1], sma(falls[: i + 1], n)[-1]
        else:
            up, down = up + (rise - up) / n, down + (fall - down) / n
        result.append(None if up is None or down is None or up + down == 0 else 100 * up / (up + down))
    return result


def each(operation: Callable[..., float | None], *columns: Column) -> list[float | None]:
    """`operation` where all are known."""
    return [None if None in row else operation(*row) for row in zip(*columns, strict=True)]


def macd(close: Column, fast: int, slow: int, signal: int) -> dict[str, list[float | None]]:
    line = each(lambda a, b: a - b, ema(close, fast), ema(close, slow))
    smoothed = ema(line, signal)
    return {"line": line, "signal": smoothed, "histogram": each(lambda a, b: a - b, line, smoothed)}


def bollinger(close: Column, n: int, k: float) -> dict[str, list[float | None]]:
    middle, width = sma(close, n), stddev(close, n)
    upper, lower = each(lambda m, s: m + k * s, middle, width), each(lambda m, s: m - k * s, middle, width)
    return {
        "middle": middle,
        "upper": upper,
        "lower": lower,
        "percent_b": each(lambda c, up, low: (c - low) / (up - low) if up > low else None, close, upper, lower),
        "bandwidth": each(lambda up, low, mid: (up - low) / mid, upper, lower, middle),
    }


def stoch(high: Column, low: Column, close: Column, n: int, a: int, b: int) -> dict[str, list[float | None]]:
    raw = each(
        lambda c, top, bottom: 100 * (c - bottom) / (top - bottom) if top > bottom else None, close, highest(high, n), lowest(low, n)
    )
    k = sma(raw, a)
    return {"raw": raw, "k": k, "d": sma(k, b)}
