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
from math import isnan
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
NOTHING = _number(-1)  # no cause
LAPSED, CLIPPED, REJECTED = map(_number, Trouble)
NO_CANDLE, ENDED, CASH, PARTICIPATION, MINIMUM, FULL, UNKNOWN_SIZE, LEVEL = map(_number, Cause)
UNITS, KRW, RISK = int(Size.UNITS), int(Size.KRW), int(Size.RISK)
LEAF, PRICE, BARS, ADD, SUB, MUL, DIV, NEG, ABS, MAX, MIN, LT, LE, GT, GE, EQ, NE, NOT, AND, OR = (int(each) for each in Op)
FILL_WIDTH, NOTICE_WIDTH = len(Fill), len(Notice)
HOLDS = np.array([[1, -1, -1], [1, 1, -1], [-1, -1, 1], [-1, 1, 1], [-1, 1, -1], [1, -1, 1]])  # LT .. NE, where a is less, equal, more

# Of each symbol: what is held and what is ordered. Columns of `book`.
HELD, PAID, BORN, AGE, AT_STOP, AT_TARGET, AT_TRAIL, WATER, LAST, ORDER, SINCE, AMOUNT, WIDTH = range(13)
FILLS, NOTICES, SLOTS, ORDERS, PLACES = range(5)  # how many there are, in `count`: rows, slots traded, orders that wait, positions
EQUITY, LEFT, OPEN = range(3)  # rows of `course`; LEFT is the cash


# Ways into compiled code that nobody takes cost a third of the time to compile. numba takes these, its types do not tell.
_NOT_FROM_C: dict[str, Any] = {"no_cfunc_wrapper": True}
_NOT_FROM_PYTHON: dict[str, Any] = {"no_cpython_wrapper": True}


def jit(function: Function) -> Function:
    """Compile at the first call and keep the result on disk; no fastmath, so that a run can be made again to the bit."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy", **_NOT_FROM_C)(function))


def inner(function: Function) -> Function:
    """As `jit`, for what only compiled code calls."""
    return cast(Function, numba.njit(nogil=True, error_model="numpy", **_NOT_FROM_C, **_NOT_FROM_PYTHON)(function))


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
        if op == NEG or op == NOT or op == ABS:  # noqa: SIM109  # `in` takes numba longer to compile
            stack[top] = abs(b) if op == ABS else -b
            continue
        top -= 1
        a = stack[top]
        compares = LT <= op <= NE
        answer = a / b
        if compares:
            answer = 0.0 if isnan(a) or isnan(b) else HOLDS[op - LT, int(a > b) - int(a < b) + 1]
        elif op == ADD:
            answer = a + b
        elif op == SUB:
            answer = a - b
        elif op == MUL:
            answer = a * b
        elif op != DIV:  # max, min, and, or: conditions are numbers
            larger = a > b
            answer = nan if isnan(a) or isnan(b) else a if larger == (op == MAX or op == OR) else b  # noqa: SIM109
        stack[top] = answer if abs(answer) < inf else nan
    return bool(stack[0] > 0)


@inner
def note(
    notices: Floats, count: Whole, slot: int, symbol: int, side: int, trouble: int, cause: int, wanted: float, filled: float, decided: int
) -> None:
    row = notices[count[NOTICES]]
    row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7] = slot, symbol, side, trouble, cause, wanted, filled, decided
    count[NOTICES] += 1


@inner
def keep(
    fills: Floats, count: Whole, slot: int, symbol: int, side: int, reason: int, base: float, price: float, units: float, fee: float,
    decided: int, entry: float,
) -> None:  # fmt: skip
    row = fills[count[FILLS]]
    row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7] = slot, symbol, side, reason, base, price, units, fee
    row[8], row[9] = decided, entry
    count[FILLS] += 1


@inner
def buy(
    terms: Terms, stop: Floats, target: Floats, trail: Floats, state: Floats, cash: float, slot: int, symbol: int, base: float,
    value: float, fills: Floats, notices: Floats, count: Whole,
) -> float:  # fmt: skip
    """Fill the buy order of `symbol` at this open, as far as cash and the bar's value reach; the cash that is left."""
    since = int(state[SINCE])
    price = slipped(base, BUY, terms.slippage)
    wanted = terms.size if terms.by == UNITS else state[AMOUNT] / price
    units, cause = wanted, NOTHING
    affordable = cash / (1 + terms.fee) / price
    if units > affordable:
        units, cause = affordable, CASH
    available = terms.participation * value / price
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
    born = count[FILLS]
    state[HELD], state[PAID], state[BORN], state[AGE], state[WATER] = units, price, born, 0.0, price
    state[AT_STOP] = price - distance(terms.stop, stop, since, symbol, price)
    state[AT_TARGET] = price + distance(terms.target, target, since, symbol, price)
    state[AT_TRAIL] = price - distance(terms.trail, trail, since, symbol, price)
    keep(fills, count, slot, symbol, BUY, ENTRY, base, price, units, fee, since, float(born))
    left = cash - amount - fee
    return left if left > 0 else 0.0


@inner
def sell(
    terms: Terms, state: Floats, cash: float, slot: int, symbol: int, base: float, value: float, reason: int, decided: int,
    fills: Floats, notices: Floats, count: Whole,
) -> float:  # fmt: skip
    """Sell what is held of `symbol`, as far as the bar's value reaches; the cash there is then. A delisted market takes all."""
    last = reason == DELISTED
    price = base if last else slipped(base, SELL, terms.slippage)
    held = state[HELD]
    available = terms.participation * value / price
    units = held if last or held < available else available
    if units < held and terms.lot > 0:
        units = np.floor(units / terms.lot) * terms.lot
    amount = units * price
    if not last and not (units > 0 and amount >= terms.minimum):
        note(notices, count, slot, symbol, SELL, REJECTED, PARTICIPATION if units < held else MINIMUM, held * price, 0.0, decided)
        return cash
    if units < held:
        note(notices, count, slot, symbol, SELL, CLIPPED, PARTICIPATION, held * price, amount, decided)
    fee = terms.fee * amount
    keep(fills, count, slot, symbol, SELL, reason, base, price, units, fee, decided, state[BORN])
    state[HELD] = held - units
    return cash + amount - fee


@inner
def next_buyer(book: Floats, rank: Floats, waiting: Bools) -> int:
    """Of the symbols that wait to buy, the one of the highest rank as it was decided; an unknown rank comes last, ties by symbol."""
    best, highest = -1, -inf
    for symbol in range(waiting.size):
        if waiting[symbol]:
            own = rank[int(book[symbol, SINCE]), symbol] if rank.size else 0.0
            if best < 0 or own > highest:
                best, highest = symbol, -inf if isnan(own) else own
    return best


@inner
def order_of(
    terms: Terms, stop: Floats, target: Floats, trail: Floats, risk: Floats, equity: float, slot: int, symbol: int, close: float
) -> tuple[float, int]:
    """The KRW of a buy order decided at this close (0 where it counts units), and why it cannot be given, or NOTHING."""
    to_stop = distance(terms.stop, stop, slot, symbol, close)
    to_target = distance(terms.target, target, slot, symbol, close)
    to_trail = distance(terms.trail, trail, slot, symbol, close)
    if not (to_stop > 0 and to_target > 0 and to_trail > 0) or inf > to_stop >= close or inf > to_trail >= close:
        return 0.0, LEVEL
    if terms.by == UNITS:
        return 0.0, NOTHING
    amount = terms.size * (1.0 if terms.by == KRW else equity)
    if terms.by == RISK:
        amount *= close / risk[slot, symbol]
    return (amount, NOTHING) if 0 < amount < inf else (0.0, UNKNOWN_SIZE)


def trade(market: Market, decided: Decisions, terms: Terms, first: int, end: int, start: float) -> Outcome:
    """Trade the slots first .. end - 1 with `start` KRW of cash; decisions before `first` are not carried out."""
    symbols = market.open.shape[1]
    book, waiting = np.zeros((symbols, WIDTH)), np.zeros(symbols, np.bool_)
    stack = np.empty(len(decided.program) + 1)
    fills, notices = np.empty((64 + 4 * symbols, FILL_WIDTH)), np.empty((64 + 6 * symbols, NOTICE_WIDTH))
    count, course = np.zeros(5, np.int64), np.empty((3, end - first))
    program = decided.program if len(decided.program) else None
    arrays: tuple[Any, ...] = (*market, *decided._replace(program=cast(Any, program)))
    cash = float(start)
    numbers = Terms(*(cast(Any, float(number)) for number in terms))  # of one type: numba compiles once more for every other
    while first + count[SLOTS] < end:  # until the end, or until there is no room for what a slot may bring
        fills, notices = _longer(fills, count[FILLS], 4 * symbols), _longer(notices, count[NOTICES], 6 * symbols)
        cash = _trade(numbers, first, end, cash, book, waiting, stack, fills, notices, count, course, *arrays)
    lapsed = _lapsed(book, end)
    return Outcome(
        fills[: count[FILLS]].copy(),
        np.concatenate((notices[: count[NOTICES]], lapsed)),
        course[EQUITY],
        course[LEFT],
        course[OPEN].astype(np.int64),
    )


def _longer(rows: Floats, used: int, room: int) -> Floats:
    """`rows` with space for `room` more than are used."""
    if used + room <= len(rows):
        return rows
    return np.concatenate((rows[:used], np.empty((2 * len(rows) + room - used, rows.shape[1]))))


def _lapsed(book: Floats, end: int) -> Floats:
    """Notices of the orders that wait when the data ends."""
    rows = []
    for symbol in np.nonzero(book[:, ORDER])[0]:
        side, since, amount = book[symbol, ORDER], book[symbol, SINCE], book[symbol, AMOUNT]
        cause = Cause.NO_CANDLE if end - 1 - since >= WAIT else Cause.ENDED
        rows.append((min(since + WAIT, end - 1), symbol, side, Trouble.LAPSED, cause, amount, 0.0, since))
    return np.array(rows, dtype=np.float64).reshape(-1, NOTICE_WIDTH)


@jit
def _trade(
    terms: Terms, first: int, end: int, cash: float, book: Floats, waiting: Bools, stack: Floats, fills: Floats, notices: Floats,
    count: Whole, course: Floats, opens: Floats, high: Floats, low: Floats, close: Floats, value: Floats, gone: Whole, enter: Bools,
    leave: Bools, program: Whole | None, leaves: Floats, rank: Floats, stop: Floats, target: Floats, trail: Floats, risk: Floats,
) -> float:  # fmt: skip
    """Trade slot after slot from first + count[SLOTS] on, while there is room for its rows; the cash that is left."""
    symbols = opens.shape[1]
    orders, places = count[ORDERS], count[PLACES]
    for slot in range(first + count[SLOTS], end):
        if count[FILLS] + 4 * symbols > fills.shape[0] or count[NOTICES] + 6 * symbols > notices.shape[0]:
            break
        if orders:  # 1. the open
            buyers = 0
            for symbol in range(symbols):
                state, base = book[symbol], opens[slot, symbol]
                if state[ORDER] == 0 or isnan(base):
                    continue
                side, since = int(state[ORDER]), int(state[SINCE])
                state[ORDER] = 0.0
                orders -= 1
                if slot - since > WAIT:
                    note(notices, count, since + WAIT, symbol, side, LAPSED, NO_CANDLE, state[AMOUNT], 0.0, since)
                elif side == SELL:
                    cash = sell(terms, state, cash, slot, symbol, base, value[slot, symbol], EXIT, since, fills, notices, count)
                    places -= state[HELD] == 0
                else:
                    waiting[symbol] = True
                    buyers += 1
            while buyers and places < terms.places:
                symbol = next_buyer(book, rank, waiting)
                waiting[symbol] = False
                buyers -= 1
                state = book[symbol]
                cash = buy(
                    terms, stop, target, trail, state, cash, slot, symbol, opens[slot, symbol], value[slot, symbol], fills, notices, count
                )  # fmt: skip
                places += state[HELD] > 0
            for symbol in range(symbols if buyers else 0):
                if waiting[symbol]:
                    waiting[symbol] = False
                    note(
                        notices, count, slot, symbol, BUY, REJECTED, FULL, book[symbol, AMOUNT], 0.0, int(book[symbol, SINCE])
                    )  # fmt: skip
        worth = 0.0
        if places:  # 2. the bar, and 3. the close
            for symbol in range(symbols):
                state = book[symbol]
                if state[HELD] == 0:
                    continue
                opened, last, top = opens[slot, symbol], close[slot, symbol], high[slot, symbol]
                if isnan(opened):
                    worth += state[HELD] * state[LAST]
                    continue
                level, base, reason = state[AT_STOP], nan, STOP
                if state[AT_TRAIL] > level:
                    level, reason = state[AT_TRAIL], TRAILING
                if low[slot, symbol] <= level:
                    base = min(level, opened)
                elif top >= state[AT_TARGET]:
                    base, reason = max(state[AT_TARGET], opened), TARGET
                if not isnan(base):
                    cash = sell(terms, state, cash, slot, symbol, base, value[slot, symbol], reason, slot, fills, notices, count)
                if gone[symbol] == slot and state[HELD] > 0:
                    cash = sell(terms, state, cash, slot, symbol, last, value[slot, symbol], DELISTED, slot, fills, notices, count)
                places -= state[HELD] == 0
                state[LAST] = last
                state[AGE] += 1
                state[WATER] = max(state[WATER], top)
                level = state[WATER] - distance(terms.trail, trail, slot, symbol, state[WATER])
                if level > state[AT_TRAIL]:
                    state[AT_TRAIL] = level
                worth += state[HELD] * last
        at = slot - first
        course[EQUITY, at], course[LEFT, at], course[OPEN, at] = cash + worth, cash, places
        for symbol in range(symbols):  # 4. decisions
            state = book[symbol]
            order, amount = 0.0, 0.0
            if state[HELD] > 0:
                if isnan(opens[slot, symbol]):
                    continue
                if program is not None:  # noqa: SIM108  # numba leaves `truth` out where it is, in one plain condition
                    out = truth(program, leaves, slot, symbol, state[PAID], state[AGE], stack)
                else:
                    out = leave[slot, symbol]
                if out:
                    order, amount = -1.0, state[HELD] * close[slot, symbol]
            elif enter[slot, symbol] and gone[symbol] != slot:
                amount, cause = order_of(terms, stop, target, trail, risk, cash + worth, slot, symbol, close[slot, symbol])
                if cause >= 0:
                    note(notices, count, slot, symbol, BUY, REJECTED, cause, nan, 0.0, slot)
                else:
                    order = 1.0
            if order != 0:
                state[ORDER], state[SINCE], state[AMOUNT] = order, slot, amount
                orders += 1
        count[SLOTS] += 1
    count[ORDERS], count[PLACES] = orders, places
    return cash
