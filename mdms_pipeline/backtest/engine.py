"""The engine: one pass over the slots, one pot of cash over all symbols. Plain arrays in, fills and equity out.

Arrays are (slots, symbols) on the complete slot grid, NaN where a market had no candle. At every slot, in this order:

1. the open    waiting sell orders fill, then waiting buy orders by falling rank; what waited longer than WAIT slots lapses
2. the bar     stop, trailing stop and target of every open position; both sides inside one bar: the stop
3. the close   a delisted market is closed at its last close; trailing levels move; equity is marked
4. decisions   rules true at this close become orders, sized from this equity; no order before the next candle can fill

`Fill` and `Notice` name the columns of what comes out. Nothing here knows rules, indicators, the store or Dagster.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from numpy import inf, nan

from mdms_pipeline.market import TICKS, Floats

Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

WAIT = 3  # slots that an order waits for its market's next candle
BOUNDS = np.array([bound for bound, _ in TICKS])  # KRW, falling
PER_TICK = np.array([1 / tick if tick >= 1 else round(1 / tick) for _, tick in TICKS])  # ticks in 1 KRW: whole where a tick is less


class Side(IntEnum):
    NONE, BUY, SELL = 0, 1, -1


class Reason(IntEnum):
    """Why a position was opened or closed."""

    ENTRY, EXIT, STOP, TRAILING, TARGET, DELISTED, OPEN = range(7)  # OPEN: still held when the data ended


class Trouble(IntEnum):
    """What became of an order that did not fill as it was wanted."""

    LAPSED, CLIPPED, REJECTED = range(3)


class Cause(IntEnum):
    NO_CANDLE, ENDED, CASH, PARTICIPATION, MINIMUM, FULL, UNKNOWN_SIZE, LEVEL = range(8)


class Size(IntEnum):
    """What `Terms.size` counts."""

    UNITS, FRACTION, KRW, RISK = range(4)


class Fill(IntEnum):
    """Columns of `fills`. `BASE` is the price before slippage, `ENTRY` the row of the fill that opened the position."""

    SLOT, SYMBOL, SIDE, REASON, BASE, PRICE, UNITS, FEE, DECIDED, ENTRY = range(10)


class Notice(IntEnum):
    """Columns of `notices`; amounts in KRW."""

    SLOT, SYMBOL, SIDE, TROUBLE, CAUSE, WANTED, FILLED, DECIDED = range(8)


class Market(NamedTuple):
    """Candles on the grid. `gone`: per symbol the slot of its last candle if it was delisted, else -1."""

    open: Floats
    high: Floats
    low: Floats
    close: Floats
    value: Floats
    gone: Whole


class Decisions(NamedTuple):
    """What the rules say at every close. An array that is not used has the shape (0, 0).

    `leave` is the exit rule; one that reads the position is `program` instead, run over `leaves` (leaf, slot, symbol). `stop`, `target`,
    `trail` and `risk` are distances in KRW. NaN is unknown.
    """

    enter: Bools
    leave: Bools
    program: Whole
    leaves: Floats
    rank: Floats
    stop: Floats
    target: Floats
    trail: Floats
    risk: Floats


class Terms(NamedTuple):
    """The numbers of a run. Fractions of the entry price are 0 where the distance is an array, or there is none."""

    fee: float  # fraction of the amount
    slippage: float  # ticks against us; below 0: no tick table at all
    participation: float  # fraction of the bar's value
    minimum: float  # KRW
    lot: float  # units are whole multiples of it; 0: any
    places: int  # most positions at once
    by: int  # a Size
    size: float
    stop: float
    target: float
    trail: float


class Outcome(NamedTuple):
    fills: Floats
    notices: Floats
    equity: Floats  # at each slot's close, as are the next two
    cash: Floats
    held: Whole  # open positions


class Op(IntEnum):
    """One step of an exit rule that reads the position; conditions are 1 true, 0 unknown, -1 false."""

    LEAF, PRICE, BARS, ADD, SUB, MUL, DIV, NEG, ABS, MAX, MIN, LT, LE, GT, GE, EQ, NE, NOT, AND, OR = range(20)


def _number(each: int) -> int:
    return cast(int, np.int64(each))


# Numbers of numpy's own type: numba compiles a function once more for every plain number that it is called with, and takes an
# enumeration's members for objects.
BUY, SELL = _number(Side.BUY), _number(Side.SELL)
ENTRY, EXIT, STOP, TRAILING, TARGET, DELISTED = map(_number, range(6))
LAPSED, CLIPPED, REJECTED = map(_number, Trouble)
NO_CANDLE, ENDED, CASH, PARTICIPATION, MINIMUM, FULL, UNKNOWN_SIZE, LEVEL = map(_number, Cause)
UNITS, KRW, RISK = int(Size.UNITS), int(Size.KRW), int(Size.RISK)
LEAF, PRICE, BARS, ADD, SUB, MUL, DIV, NEG, ABS, MAX, MIN, LT, LE, GT, GE, EQ, NE, NOT, AND, OR = (int(each) for each in Op)
FILL_WIDTH, NOTICE_WIDTH = len(Fill), len(Notice)

# Of each symbol: what is held and what is ordered. Columns of `book`.
HELD, PAID, BORN, AGE, AT_STOP, AT_TARGET, AT_TRAIL, WATER, LAST, ORDER, SINCE, AMOUNT, WIDTH = range(13)


def jit(function: Function) -> Function:
    """Compile at the first call and keep the result on disk; no fastmath, so that a run can be made again to the bit."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def inner(function: Function) -> Function:
    """As `jit`, for what only compiled code calls: without the way in from Python, which takes a third of the time to compile."""
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}  # numba takes them, its types do not tell
    return cast(Function, numba.njit(nogil=True, error_model="numpy", **options)(function))


@inner
def per_krw(price: float) -> float:
    """Ticks in 1 KRW at `price`."""
    for i in range(BOUNDS.size):
        if price >= BOUNDS[i]:
            return float(PER_TICK[i])
    return float(PER_TICK[-1])


@jit
def on_tick(price: float, up: bool) -> float:
    """`price` on the tick table, rounded up or down; never below the smallest tick."""
    per = per_krw(price)
    ticks = price * per
    near = np.floor(ticks + 0.5)
    if abs(ticks - near) > 1e-6:  # the price is between two ticks, not one of them with a rounding error
        near = np.ceil(ticks) if up else np.floor(ticks)
    return float(max(near, 1.0) / per)


@jit
def slipped(price: float, side: int, slippage: float) -> float:
    """The price that is paid or got when the market's price is `price`."""
    if slippage < 0:
        return price
    return on_tick(max(price + side * slippage / per_krw(price), 0.0), side > 0)


@inner
def distance(fraction: float, distances: Floats, slot: int, symbol: int, price: float) -> float:
    """How far a level is from `price`, KRW: infinite where there is none, NaN where it is not known."""
    if fraction > 0:
        return fraction * price
    return distances[slot, symbol] if distances.size else inf


@inner
def truth(program: Whole, leaves: Floats, slot: int, symbol: int, price: float, bars: float, stack: Floats) -> bool:
    """Whether the exit rule that reads the position is true here; unknown is not."""
    top = -1
    for step in range(program.shape[0]):
        op, place = program[step, 0], program[step, 1]
        if op <= BARS:
            top += 1
            stack[top] = leaves[place, slot, symbol] if op == LEAF else price if op == PRICE else bars
            continue
        b = stack[top]
        if op in (NEG, NOT):
            stack[top] = -b
            continue
        if op == ABS:
            stack[top] = abs(b)
            continue
        top -= 1
        a = stack[top]
        if op in (AND, OR):
            stack[top] = min(a, b) if op == AND else max(a, b)
        elif op >= LT:
            holds = (
                a < b if op == LT else a <= b if op == LE else a > b if op == GT else a >= b if op == GE else a == b if op == EQ else a != b
            )
            stack[top] = 0.0 if np.isnan(a) or np.isnan(b) else 1.0 if holds else -1.0
        else:
            answer = a + b if op == ADD else a - b if op == SUB else a * b if op == MUL else a / b
            if op in (MAX, MIN):
                answer = nan if np.isnan(a) or np.isnan(b) else max(a, b) if op == MAX else min(a, b)
            stack[top] = answer if np.isfinite(answer) else nan
    return bool(stack[0] > 0)


@inner
def note(
    notices: Floats, count: Whole, slot: int, symbol: int, side: int, trouble: int, cause: int, wanted: float, filled: float, decided: int
) -> None:
    row = notices[count[1]]
    row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7] = slot, symbol, side, trouble, cause, wanted, filled, decided
    count[1] += 1


@inner
def keep(
    fills: Floats, count: Whole, slot: int, symbol: int, side: int, reason: int, base: float, price: float, units: float, fee: float
) -> None:
    """Note a fill; its last two columns are the caller's."""
    row = fills[count[0]]
    row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7] = slot, symbol, side, reason, base, price, units, fee
    count[0] += 1


@inner
def buy(
    market: Market,
    decided: Decisions,
    terms: Terms,
    book: Floats,
    cash: float,
    slot: int,
    symbol: int,
    fills: Floats,
    notices: Floats,
    count: Whole,
) -> float:
    """Fill the buy order of `symbol` at this open, as far as cash and the bar's value reach; the cash that is left."""
    state = book[symbol]
    since, base = int(state[SINCE]), market.open[slot, symbol]
    price = slipped(base, BUY, terms.slippage)
    wanted = terms.size if terms.by == UNITS else state[AMOUNT] / price
    units, cause = wanted, -1
    affordable = cash / (1 + terms.fee) / price
    if units > affordable:
        units, cause = affordable, CASH
    available = terms.participation * market.value[slot, symbol] / price
    if units > available:
        units, cause = available, PARTICIPATION
    if terms.lot > 0:
        units = np.floor(units / terms.lot) * terms.lot
    amount = units * price
    if not (units > 0 and amount >= terms.minimum):
        note(notices, count, slot, symbol, BUY, REJECTED, MINIMUM if cause < 0 else cause, wanted * price, 0.0, since)
        return cash
    if cause >= 0:
        note(notices, count, slot, symbol, BUY, CLIPPED, cause, wanted * price, amount, since)
    fee = terms.fee * amount
    state[HELD], state[PAID], state[BORN], state[AGE], state[WATER] = units, price, count[0], 0.0, price
    state[AT_STOP] = price - distance(terms.stop, decided.stop, since, symbol, price)
    state[AT_TARGET] = price + distance(terms.target, decided.target, since, symbol, price)
    state[AT_TRAIL] = price - distance(terms.trail, decided.trail, since, symbol, price)
    row = fills[count[0]]
    row[8], row[9] = since, count[0]
    keep(fills, count, slot, symbol, BUY, ENTRY, base, price, units, fee)
    return max(cash - amount - fee, 0.0)


@inner
def sell(
    market: Market, terms: Terms, book: Floats, cash: float, slot: int, symbol: int, base: float, reason: int, decided: int,
    fills: Floats, notices: Floats, count: Whole,
) -> float:  # fmt: skip
    """Sell what is held of `symbol`, as far as the bar's value reaches; the cash there is then. A delisted market takes all."""
    state = book[symbol]
    last = reason == DELISTED
    price = base if last else slipped(base, SELL, terms.slippage)
    held = state[HELD]
    units = held if last else min(held, terms.participation * market.value[slot, symbol] / price)
    if units < held and terms.lot > 0:
        units = np.floor(units / terms.lot) * terms.lot
    amount = units * price
    if not last and not (units > 0 and amount >= terms.minimum):
        note(notices, count, slot, symbol, SELL, REJECTED, PARTICIPATION if units < held else MINIMUM, held * price, 0.0, decided)
        return cash
    if units < held:
        note(notices, count, slot, symbol, SELL, CLIPPED, PARTICIPATION, held * price, amount, decided)
    fee = terms.fee * amount
    row = fills[count[0]]
    row[8], row[9] = decided, state[BORN]
    keep(fills, count, slot, symbol, SELL, reason, base, price, units, fee)
    state[HELD] = held - units
    return float(cash + amount - fee)


@inner
def same(rows: Floats, used: int, length: int) -> Floats:
    """The first `used` rows in a new array of `length` rows. (A plain loop: a slice assignment takes 4 s to compile.)"""
    copy = np.empty((length, rows.shape[1]))
    for i in range(used):
        for j in range(rows.shape[1]):
            copy[i, j] = rows[i, j]
    return copy


@inner
def longer(rows: Floats, used: int, room: int) -> Floats:
    """`rows` with space for `room` more than are used."""
    if used + room <= rows.shape[0]:
        return rows
    return same(rows, used, 2 * rows.shape[0] + room)


@inner
def next_buyer(book: Floats, rank: Floats, waiting: Bools) -> int:
    """Of the symbols that wait to buy, the one of the highest rank as it was decided; an unknown rank comes last, ties by symbol."""
    best, highest = -1, -inf
    for symbol in range(waiting.size):
        if waiting[symbol]:
            own = rank[int(book[symbol, SINCE]), symbol] if rank.size else 0.0
            if best < 0 or own > highest:
                best, highest = symbol, -inf if np.isnan(own) else own
    return best


@inner
def order_of(market: Market, decided: Decisions, terms: Terms, equity: float, slot: int, symbol: int) -> tuple[float, int]:
    """The KRW of a buy order decided at this close (0 where it counts units), and why it cannot be given, or -1."""
    close = market.close[slot, symbol]
    stop = distance(terms.stop, decided.stop, slot, symbol, close)
    target = distance(terms.target, decided.target, slot, symbol, close)
    trail = distance(terms.trail, decided.trail, slot, symbol, close)
    if not (stop > 0 and target > 0 and trail > 0) or inf > stop >= close or inf > trail >= close:
        return 0.0, LEVEL
    if terms.by == UNITS:
        return 0.0, -1
    amount = terms.size * (1.0 if terms.by == KRW else equity)
    if terms.by == RISK:
        amount *= close / decided.risk[slot, symbol]
    return (amount, -1) if 0 < amount < inf else (0.0, UNKNOWN_SIZE)


@jit
def trade(market: Market, decided: Decisions, terms: Terms, first: int, end: int, start: float) -> Outcome:
    """Trade the slots first .. end - 1 with `start` KRW of cash; decisions before `first` are not carried out."""
    opens, high, low, close, gone = market.open, market.high, market.low, market.close, market.gone
    enter, leave, program, leaves = decided.enter, decided.leave, decided.program, decided.leaves
    fraction, trails = terms.trail, decided.trail
    symbols = opens.shape[1]
    book = np.zeros((symbols, WIDTH))
    waiting = np.zeros(symbols, np.bool_)
    stack = np.empty(program.shape[0] + 1)
    fills, notices = np.empty((64 + 4 * symbols, FILL_WIDTH)), np.empty((64 + 6 * symbols, NOTICE_WIDTH))
    count = np.zeros(2, np.int64)  # fills, notices
    equity, cashes, held = np.empty(end - first), np.empty(end - first), np.zeros(end - first, np.int64)
    cash, orders, places = start, 0, 0
    for slot in range(first, end):
        fills, notices = longer(fills, count[0], 4 * symbols), longer(notices, count[1], 6 * symbols)
        if orders:  # 1. the open
            buyers = 0
            for symbol in range(symbols):
                side, since = int(book[symbol, ORDER]), int(book[symbol, SINCE])
                if side == 0 or np.isnan(opens[slot, symbol]):
                    continue
                book[symbol, ORDER] = 0.0
                orders -= 1
                if slot - since > WAIT:
                    note(notices, count, since + WAIT, symbol, side, LAPSED, NO_CANDLE, book[symbol, AMOUNT], 0.0, since)
                elif side == SELL:
                    cash = sell(market, terms, book, cash, slot, symbol, opens[slot, symbol], EXIT, since, fills, notices, count)
                    places -= book[symbol, HELD] == 0
                else:
                    waiting[symbol] = True
                    buyers += 1
            while buyers and places < terms.places:
                symbol = next_buyer(book, decided.rank, waiting)
                waiting[symbol] = False
                buyers -= 1
                cash = buy(market, decided, terms, book, cash, slot, symbol, fills, notices, count)
                places += book[symbol, HELD] > 0
            for symbol in range(symbols if buyers else 0):
                if waiting[symbol]:
                    waiting[symbol] = False
                    since = int(book[symbol, SINCE])
                    note(notices, count, slot, symbol, BUY, REJECTED, FULL, book[symbol, AMOUNT], 0.0, since)
        worth = 0.0
        if places:  # 2. the bar, and 3. the close
            for symbol in range(symbols):
                if book[symbol, HELD] == 0:
                    continue
                if np.isnan(opens[slot, symbol]):
                    worth += book[symbol, HELD] * book[symbol, LAST]
                    continue
                level = max(book[symbol, AT_STOP], book[symbol, AT_TRAIL])
                base, reason = nan, STOP if book[symbol, AT_STOP] >= book[symbol, AT_TRAIL] else TRAILING
                if low[slot, symbol] <= level:
                    base = min(level, opens[slot, symbol])
                elif high[slot, symbol] >= book[symbol, AT_TARGET]:
                    base, reason = max(book[symbol, AT_TARGET], opens[slot, symbol]), TARGET
                if not np.isnan(base):
                    cash = sell(market, terms, book, cash, slot, symbol, base, reason, slot, fills, notices, count)
                last = close[slot, symbol]
                if gone[symbol] == slot and book[symbol, HELD] > 0:
                    cash = sell(market, terms, book, cash, slot, symbol, last, DELISTED, slot, fills, notices, count)
                places -= book[symbol, HELD] == 0
                book[symbol, LAST] = last
                book[symbol, AGE] += 1
                book[symbol, WATER] = max(book[symbol, WATER], high[slot, symbol])
                trail = book[symbol, WATER] - distance(fraction, trails, slot, symbol, book[symbol, WATER])
                if trail > book[symbol, AT_TRAIL]:
                    book[symbol, AT_TRAIL] = trail
                worth += book[symbol, HELD] * last
        at = slot - first
        equity[at], cashes[at], held[at] = cash + worth, cash, places
        for symbol in range(symbols):  # 4. decisions
            if book[symbol, HELD] > 0:
                if np.isnan(opens[slot, symbol]):
                    continue
                if program.shape[0]:
                    out = truth(program, leaves, slot, symbol, book[symbol, PAID], book[symbol, AGE], stack)
                else:
                    out = leave[slot, symbol]
                if out:
                    book[symbol, ORDER], book[symbol, SINCE], book[symbol, AMOUNT] = SELL, slot, book[symbol, HELD] * close[slot, symbol]
                    orders += 1
            elif enter[slot, symbol] and gone[symbol] != slot:
                amount, cause = order_of(market, decided, terms, equity[at], slot, symbol)
                if cause >= 0:
                    note(notices, count, slot, symbol, BUY, REJECTED, cause, nan, 0.0, slot)
                else:
                    book[symbol, ORDER], book[symbol, SINCE], book[symbol, AMOUNT] = BUY, slot, amount
                    orders += 1
    notices = longer(notices, count[1], symbols)
    for symbol in range(symbols):
        side, since = int(book[symbol, ORDER]), int(book[symbol, SINCE])
        if side:
            note(
                notices, count, min(since + WAIT, end - 1), symbol, side, LAPSED, NO_CANDLE if end - 1 - since >= WAIT else ENDED,
                book[symbol, AMOUNT], 0.0, since,
            )  # fmt: skip
    return Outcome(same(fills, count[0], count[0]), same(notices, count[1], count[1]), equity, cashes, held)
