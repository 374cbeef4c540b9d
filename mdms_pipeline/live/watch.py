"""A rule that is watched, and what it says at each bar of a symbol. Pure: columns in, answers out.

Here is said what the answer of a signal is: of all bars at once by `verdicts`, which the comparison with what is stored (`parity.py`) and a
restart ask; of one bar of many symbols by `panel.py`, of the same parts. docs/live.md says it in words.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mdms_pipeline.live.signal import Signal
from mdms_pipeline.market import Floats, Instants
from mdms_pipeline.rules import FALSE, TRUE, UNKNOWN, Call, Key, Rule, Verdicts, known
from mdms_pipeline.rules.evaluate import finite, verdict
from mdms_pipeline.rules.nodes import Condition, Leaf, Logic, earlier, key, readings, text
from mdms_pipeline.vocabulary import column_of, indicator_of

WORDS = {said: known(said) for said in (TRUE, UNKNOWN, FALSE)}
Name = tuple[str, str, str]  # source, name, rule: what a watch is known by


@dataclass(frozen=True)
class Watch:
    """One rule on every symbol of a timeframe."""

    source: str  # STRATEGY or SCREEN
    name: str  # of it
    rule: str  # ENTRY, EXIT or WHERE
    timeframe: str
    rules: tuple[Rule, ...]  # all must hold
    stable: int = 0  # index of a symbol's first bar that is answered: before, a strategy decides nothing
    symbols: frozenset[str] | None = None  # None: every one that is collected
    trades: bool = False  # decides on candles alone, as strategies do; else on whatever indicators see (`flat`: slots without a trade too)
    max_age: int | None = None  # slots since the last trade from which nothing is known (`flat` alone has such bars)

    @property
    def known_by(self) -> Name:
        return self.source, self.name, self.rule

    @cached_property
    def root(self) -> Condition:
        """All rules together."""
        roots = tuple(rule.root for rule in self.rules)
        return Logic("and", roots) if len(roots) > 1 else roots[0]

    @cached_property
    def lookback(self) -> int:
        """How many bars back the deepest reading lies."""
        return max(rule.lookback for rule in self.rules)

    @cached_property
    def calls(self) -> tuple[Call, ...]:
        return tuple(dict.fromkeys(call for rule in self.rules for call in rule.calls))

    @cached_property
    def columns(self) -> dict[Key, str]:
        """What the rules read, with the column's name: in the candles or in an indicator's table."""
        series = dict.fromkeys(name for rule in self.rules for name in rule.columns)
        return {**{name: name for name in series}, **{call: column_of(call) for call in self.calls}}

    @cached_property
    def leaves(self) -> dict[Leaf, str]:
        """Every leaf of the rules, with its column."""
        return {leaf: self.columns[key(leaf)] for rule in self.rules for leaf in rule.reads}

    @cached_property
    def readings(self) -> dict[str, tuple[str, int]]:
        """The text of every leaf, as far back as it is read -> (column, bars back): `close`, `sma(10)[1]`."""
        found = dict.fromkeys(reading for rule in self.rules for reading in readings(rule.root))
        return {text(earlier(leaf, back)): (self.columns[key(leaf)], back) for leaf, back in found}

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever the same bars may give other answers."""
        said = [*map(str, self.rules), self.stable, self.trades, self.max_age, [indicator_of(call).fingerprint for call in self.calls]]
        return hashlib.blake2b(json.dumps([self.timeframe, *said]).encode(), digest_size=16).hexdigest()

    @property
    def key(self) -> str:
        """What the journal and the table know it by: the same for the same rule, another one is another watch."""
        return f"{self.source}:{self.name}:{self.rule}:{self.fingerprint[:12]}"

    def takes(self, symbol: str) -> bool:
        return self.symbols is None or symbol in self.symbols


def verdicts(watch: Watch, columns: Mapping[str, Floats], index: Instants, age: Instants | int = 0) -> Verdicts:
    """What `watch` says at every bar: TRUE, UNKNOWN, FALSE.

    `columns` by name, (bars,) or (bars, symbols); `index` counts bars from the symbol's first, `age` slots since its last trade.
    """
    inputs = {leaf: finite(columns[column]) for leaf, column in watch.leaves.items()}
    with np.errstate(all="ignore"):
        said = verdict(watch.root, inputs)
    return np.where(silent(watch.stable, _longest(watch), index, np.asarray(age)), np.int8(UNKNOWN), said)


def silent(stable: Instants | int, max_age: Floats | float, index: Instants, age: Instants) -> npt.NDArray[np.bool_]:
    """Where nothing is decided: before the first bar that is answered, and too long after the last trade."""
    return (index < stable) | (age > max_age)


def silence(watches: Sequence[Watch]) -> tuple[Instants, Floats]:
    """What `silent` is to know of these watches, (watches, 1) each: they can be asked all at once then."""
    return np.array([[watch.stable] for watch in watches], dtype=np.int64), np.array([[_longest(watch)] for watch in watches])


def _longest(watch: Watch) -> float:
    return math.inf if watch.max_age is None else watch.max_age


def changes(said: Verdicts) -> Instants:
    """The bars, of one symbol, whose answer is not that of the bar before; before the first bar nothing is known."""
    return np.flatnonzero(np.diff(said, prepend=np.int8(UNKNOWN)))


def values(watch: Watch, columns: Mapping[str, Floats], bar: int) -> dict[str, float | None]:
    """Every leaf of the rules with its value at one bar of one symbol; None where unknown."""
    return {said: _number(columns[column], bar - back) for said, (column, back) in watch.readings.items()}


@dataclass(frozen=True)
class Bars:
    """All bars of one symbol, oldest first, with the columns that rules read."""

    symbol: str
    opened_at: Instants
    columns: Mapping[str, Floats]
    age: Instants | int = 0  # slots since the last trade
    first: int = 0  # how many bars the symbol has before these: those that the rules reach back to are among these


def signals(watch: Watch, bars: Bars, received_at: float = math.nan) -> Iterator[Signal]:
    """Every change of `watch` over the bars of one symbol, as a signal; of later bars only those after the first that can be answered."""
    said = verdicts(watch, bars.columns, bars.first + np.arange(len(bars.opened_at)), bars.age)
    blind = watch.lookback + 1 if bars.first else 0  # bars whose answer, or the answer before, reads beyond the first of these
    for bar in changes(said).tolist():
        if bar >= blind:
            before = said[bar - 1] if bar else UNKNOWN
            decided = values(watch, bars.columns, bar)
            yield signal(watch, bars.symbol, int(bars.opened_at[bar]), int(said[bar]), int(before), decided, received_at, received_at)


def signal(
    watch: Watch,
    symbol: str,
    opened_at: int,
    now: int,
    before: int,
    decided: Mapping[str, float | None],
    received_at: float,
    emitted_at: float,
    provisional: bool = False,
    revision: int = 0,
) -> Signal:
    """What `watch` said (verdicts `before`, then `now`) as a signal."""
    found = object.__new__(Signal)  # its own __init__ calls once for each field of what is frozen, and takes twice as long
    object.__setattr__(found, "__dict__", {
        "source": watch.source, "name": watch.name, "rule": watch.rule, "symbol": symbol, "timeframe": watch.timeframe,
        "opened_at": opened_at, "answer": WORDS[now], "before": WORDS[before], "values": decided, "provisional": provisional,
        "received_at": received_at, "emitted_at": emitted_at, "revision": revision,
    })  # fmt: skip
    return found


def columns_of(watches: Iterable[Watch]) -> tuple[str, ...]:
    """All columns that these read."""
    return tuple(dict.fromkeys(column for watch in watches for column in watch.columns.values()))


def calls_of(watches: Iterable[Watch]) -> tuple[Call, ...]:
    return tuple(dict.fromkeys(call for watch in watches for call in watch.calls))


def _number(column: Floats, bar: int) -> float | None:
    """The value at a bar; None where there is none, or it is not finite."""
    number = float(column[bar]) if bar >= 0 else math.nan
    return number if math.isfinite(number) else None


def grouped(watches: Sequence[Watch]) -> dict[str, tuple[Watch, ...]]:
    """Timeframe -> its watches."""
    frames = dict.fromkeys(watch.timeframe for watch in watches)
    return {frame: tuple(watch for watch in watches if watch.timeframe == frame) for frame in frames}
