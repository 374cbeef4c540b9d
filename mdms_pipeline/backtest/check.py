"""Is a backtest honest? Two checks that take decisions again from less history, and must get the same.

- look-ahead: history is cut at random slots, half of them right after a signal. All that was decided up to there, and every indicator it
  read, must be the same to the bit: what differs has seen a candle that was not there yet. Stored columns are compared with ones calculated
  from the cut candles.
- warm-up: history starts later, at random slots. After `stable_after` the decisions must be the same: who may be entered and left, in which
  order, and stops and targets as far as a seed that weighs 1e-6 moves them. Those within 1e-6 of a threshold may turn and are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mdms_pipeline.backtest.decide import NEAR, Columns, Decided, decide, near, stable_from
from mdms_pipeline.backtest.history import History, members
from mdms_pipeline.backtest.strategy import Strategy
from mdms_pipeline.market import Floats, iso

MOST_SHOWN = 10
SEED = 2 * NEAR  # relative to the largest that a value comes to: the seeds of a mean of movements and of what it is compared with


@dataclass(frozen=True)
class Finding:
    """What a check found. It passes if nothing differs, and something was compared."""

    compared: int  # cuts
    differences: tuple[str, ...]
    listed: tuple[str, ...] = ()  # decisions within 1e-6 of a threshold that turned

    @property
    def passed(self) -> bool:
        return self.compared > 0 and not self.differences


def look_ahead(strategy: Strategy, history: History, cuts: int = 8, seed: int = 0) -> Finding:
    """Decisions from data cut at random slots against those of the whole."""
    columns = Columns(history)
    whole = decide(strategy, history, columns)
    if history.slots - whole.first < 2:
        return Finding(0, ("no market has enough candles: nothing could be compared",))
    ends = _ends(whole, history, cuts, np.random.default_rng(seed))
    differences = [said for end in ends for said in _against_cut(strategy, history, columns, whole, end)]
    return Finding(len(ends), tuple(differences[:MOST_SHOWN]))


def _ends(whole: Decided, history: History, cuts: int, random: np.random.Generator) -> list[int]:
    """Slots to cut at: half of them anywhere, half right after a signal, where one that knew the next bar would be missing."""
    each = (whole.decisions.enter, whole.decisions.leave)
    after = np.unique(np.concatenate([np.nonzero(signals[:-1])[0] + 1 for signals in each if signals.size]))
    after = after[after > whole.first]
    near_signals = random.choice(after, min(cuts // 2, len(after)), replace=False) if len(after) else np.empty(0, np.int64)
    anywhere = random.integers(whole.first + 1, history.slots, cuts - len(near_signals))
    return sorted({*near_signals.tolist(), *anywhere.tolist()})


def _against_cut(strategy: Strategy, history: History, columns: Columns, whole: Decided, end: int) -> Iterator[str]:
    past = history.until(end).unstored
    then = Columns(past)
    cut = decide(strategy, past, then)
    for (symbol, name), values in then.known.items():
        yield from _column_differs(symbol, name, values, columns, history)
    for name, now, before in zip(whole.decisions._fields, whole.decisions, cut.decisions, strict=True):
        if name == "program" or not now.size:
            continue
        known = now[:, :end] if name == "leaves" else now[:end]
        same = (known == before) | ((known != known) & (before != before))
        if not same.all():
            slot, place = (int(i[0]) for i in np.nonzero(~same)[-2:])
            at = iso(int(history.opened_at[slot]))
            yield f"{name} of {history.symbols[place]} at {at} is not what was known when history ended at slot {end}"


def _column_differs(symbol: str, name: str, then: np.ndarray, columns: Columns, history: History) -> Iterator[str]:
    now = columns.known[symbol, name][: len(then)]
    differs = ~((now == then) | (np.isnan(now) & np.isnan(then)))
    if differs.any():
        bar = int(np.argmax(differs))
        at = iso(int(history.past[symbol].candles.opened_at[bar]))
        yield f"{name} of {symbol} at {at} is {float(now[bar])!r}, but {float(then[bar])!r} from the candles known then"


def warm_up(strategy: Strategy, history: History, starts: int = 4, seed: int = 0) -> Finding:
    """Decisions from history that starts later against those of the whole, after `stable_after`."""
    inside = members(strategy, history)
    columns = Columns(history)
    whole = decide(strategy, history, columns, inside)
    stable = max(map(stable_from, strategy.expressions))
    room = max((len(rows) for rows in history.rows.values()), default=0) - stable - 1
    if room < 2:
        return Finding(0, ("no market has enough candles: nothing could be compared",))
    turning = {(slot, symbol) for slot, symbol, _ in near(strategy, history, columns)}
    random = np.random.default_rng(seed)
    begins = sorted(set(random.integers(1, max(2, min(room, history.slots - 1)), starts).tolist()))
    differences, listed = list[str](), list[str]()
    for begin in begins:
        later = history.since(begin)
        again = decide(strategy, later, Columns(later), inside)
        for slot, i, name in _turned(whole, again, {s: rows[stable:] for s, rows in later.rows.items()}, history):
            symbol = history.symbols[i]
            said = (
                f"{name} of {symbol} at {iso(int(history.opened_at[slot]))} turns if history starts at {iso(int(history.opened_at[begin]))}"
            )
            (listed if (slot, symbol) in turning else differences).append(said)
    return Finding(len(begins), tuple(differences[:MOST_SHOWN]), tuple(listed[:MOST_SHOWN]))


def _turned(whole: Decided, again: Decided, stable: Mapping[str, np.ndarray], history: History) -> Iterator[tuple[int, int, str]]:
    """(slot, symbol, what) wherever the two decide otherwise at a stable bar. Of ranks the order counts, levels may differ by SEED."""
    for name, one, other in zip(whole.decisions._fields, whole.decisions, again.decisions, strict=True):
        if name in ("program", "rank") or not one.size:
            continue
        now, then = one.astype(np.float64), other.astype(np.float64)  # true is 1, false 0
        room = _room(now)
        for i, symbol in enumerate(history.symbols):
            slots = stable[symbol]
            a, b = now[..., slots, i], then[..., slots, i]
            differs = (np.abs(a - b) > room[..., None, i]) | (np.isnan(a) != np.isnan(b))
            for place in np.nonzero(differs)[-1][:MOST_SHOWN]:
                yield int(slots[place]), i, name
    for slot, i in _reordered(whole, again, _grid(stable, history)):
        yield slot, i, "rank"


def _room(values: Floats) -> Floats:
    """By how much values (..., slots, symbols) of each symbol may differ for seeds that are forgotten.

    A seed weighs less than NEAR by then; what it is off by is at most as large as the values come to.
    """
    return np.asarray(SEED * np.fmax.reduce(np.abs(values), axis=-2, initial=0.0))


def _grid(stable: Mapping[str, np.ndarray], history: History) -> np.ndarray:
    """(slots, symbols): where a symbol has a stable bar."""
    grid = np.zeros((history.slots, len(history.past)), np.bool_)
    for i, symbol in enumerate(history.symbols):
        grid[stable[symbol], i] = True
    return grid


def _reordered(whole: Decided, again: Decided, stable: np.ndarray) -> Iterator[tuple[int, int]]:
    """(slot, symbol) where markets that may be entered at one close stand in another order: the one that comes too early."""
    rank, other = whole.decisions.rank, again.decisions.rank
    if not rank.size:
        return
    entering, room = whole.decisions.enter & again.decisions.enter & stable, _room(rank)
    for slot in np.flatnonzero(entering.sum(axis=1) > 1).tolist():
        some = np.flatnonzero(entering[slot])
        some = some[np.argsort(-rank[slot, some], kind="stable")]  # unknown ones last
        a, b = rank[slot, some], other[slot, some]
        wrong = np.isnan(a) != np.isnan(b)
        wrong[1:] |= np.diff(b) > np.maximum(room[some[1:]], room[some[:-1]])
        for place in some[wrong][:MOST_SHOWN].tolist():
            yield slot, place
