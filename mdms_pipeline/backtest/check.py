"""Is a backtest honest? Two checks that take decisions again from less history, and must get the same.

- look-ahead: history is cut at random slots, half of them right after a signal. All that was decided up to there, and every indicator it
  read, must be the same to the bit: what differs has seen a candle that was not there yet. Stored columns are compared with ones calculated
  from the cut candles.
- warm-up: history starts later, at random slots. After `stable_after` the decisions must be the same; those within 1e-6 of a threshold may
  turn and are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from mdms_pipeline.backtest.decide import NEAR, Columns, Decided, decide, near, stable_from
from mdms_pipeline.backtest.history import History, members
from mdms_pipeline.backtest.strategy import Strategy
from mdms_pipeline.market import iso

MOST_SHOWN = 10


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
        told = f"{name} of {symbol} at {at} is {float(now[bar])!r}, but {float(then[bar])!r} from the candles known then"
        yield f"{told} (if mdms was renewed since it was calculated, `mdms calculate` first)"


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
    """(slot, symbol, what) wherever the two decide otherwise at a stable bar; values may differ by NEAR."""
    for name, one, other in zip(whole.decisions._fields, whole.decisions, again.decisions, strict=True):
        if name == "program" or not one.size:
            continue
        for i, symbol in enumerate(history.symbols):
            slots = stable[symbol]
            a, b = (each[..., slots, i] for each in (one, other))
            differs = ~np.isclose(a, b, rtol=NEAR, atol=0, equal_nan=True) if a.dtype == np.float64 else a != b
            for place in np.nonzero(differs)[-1][:MOST_SHOWN]:
                yield int(slots[place]), i, name
