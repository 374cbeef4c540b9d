"""Rules over a history to decisions: what the engine may do at every close, and nothing that it could not know then.

A decision that reads an indicator before `stable_after` is refused: its seed still shows. Sums of trailing turnover, ranks and distances
all end at the bar they stand at; `check.py` proves it by cutting history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from mdms_pipeline.backtest.engine import Bools, Decisions, Op, Size, Terms, Whole
from mdms_pipeline.backtest.history import History, members
from mdms_pipeline.backtest.strategy import Level, Strategy
from mdms_pipeline.market import Floats
from mdms_pipeline.rules import Expression, Formula, Key, Rule, evaluate, passes
from mdms_pipeline.rules.nodes import (
    Arithmetic,
    Call,
    Comparison,
    Condition,
    Function,
    Given,
    Leaf,
    Logic,
    Negative,
    Node,
    Not,
    Value,
    parts,
)
from mdms_pipeline.vocabulary import column_of, indicator_of

NEAR = 1e-6  # relative: closer to its threshold than this, a decision may turn with where history starts
ABSENT, NO_LEAVES, NO_PROGRAM = np.empty((0, 0)), np.empty((0, 0, 0)), np.empty((0, 2), np.int64)


@dataclass(frozen=True)
class Decided:
    """The decisions, and what was refused."""

    decisions: Decisions
    refused: int  # entries that a rule asked for on indicators that were not stable yet
    first: int  # the first slot at which any symbol has stable indicators
    notes: tuple[str, ...]


@dataclass
class Columns:
    """Indicator columns of one history, read from the warehouse or calculated once, however many strategies ask."""

    history: History
    known: dict[tuple[str, str], Floats] = field(default_factory=dict)

    def series(self, symbol: str, calls: Iterable[Call], names: Iterable[str]) -> dict[Key, Floats]:
        """What these calls and candle columns are at each candle of `symbol`."""
        past = self.history.past[symbol]
        read: dict[Key, Floats] = {name: getattr(past.candles, name) for name in names}
        for call in calls:
            name = column_of(call)
            if (symbol, name) not in self.known:
                self._know(symbol, call, name)
            read[call] = self.known[symbol, name]
        return read

    def _know(self, symbol: str, call: Call, name: str) -> None:
        stored = self.history.past[symbol].stored
        if name in stored:
            self.known[symbol, name] = stored[name]
        else:
            found = self.history.calculated(indicator_of(call), symbol)
            self.known.update({(symbol, column): values for column, values in found.items()})


def stable_from(expression: Expression) -> int:
    """The index of a symbol's first candle at which all that is read has forgotten its seed."""
    return max(
        (bars + (indicator_of(leaf).stable_after if isinstance(leaf, Call) else 0) for leaf, bars in expression.reads.items()), default=0
    )


def decide(
    strategy: Strategy, history: History, columns: Columns | None = None, universe: tuple[Bools, tuple[str, ...]] | None = None
) -> Decided:
    """What `strategy` decides at every close of `history`. `columns` and `universe` may be shared between strategies."""
    columns = columns or Columns(history)
    inside, notes = universe or members(strategy, history)
    read = {symbol: columns.series(symbol, strategy.calls, strategy.series) for symbol in history.past}
    place = _Grid(history, read)
    entries = (strategy.entry, *strategy.screen)
    stable = max(map(stable_from, strategy.expressions))
    enter = inside.copy()
    for rule in entries:
        enter &= place.holds(rule, 0)
    early = enter.copy()
    place.blank(early, stable)
    leave, program, leaves = _exit(strategy.exit, place, stable)
    decisions = Decisions(
        early, leave, program, leaves,
        rank=_signed(place.values(strategy.rank, stable), strategy.descending), stop=_level(place, strategy.stop, stable),
        target=_level(place, strategy.target, stable), trail=_level(place, strategy.trailing, stable),
        risk=place.values(strategy.size.per, stable),
    )  # fmt: skip
    first = min((int(rows[stable]) for rows in history.rows.values() if len(rows) > stable), default=history.slots)
    return Decided(decisions, int((enter & ~early).sum()), first, notes)


def terms_of(strategy: Strategy) -> Terms:
    """The numbers of the strategy as the engine takes them."""
    by = {"fraction": Size.FRACTION, "krw": Size.KRW, "risk": Size.RISK}[strategy.size.by]
    stop, target, trail = (level.fraction if level else 0.0 for level in (strategy.stop, strategy.target, strategy.trailing))
    costs = strategy.costs
    return Terms(
        costs.fee,
        costs.slippage,
        costs.participation,
        costs.minimum,
        0.0,
        strategy.places,
        int(by),
        strategy.size.amount,
        stop,
        target,
        trail,
    )


class _Grid:
    """Rules over every symbol's own candles, laid out on the slot grid."""

    def __init__(self, history: History, read: Mapping[str, Mapping[Key, Floats]]) -> None:
        self.history, self.read = history, read
        self.whole = len(history.past) == 1 and all(len(rows) == history.slots for rows in history.rows.values())

    def holds(self, rule: Rule, stable: int) -> Bools:
        """Where `rule` is true; never where there is no candle."""
        return self._spread({symbol: passes(evaluate(rule, read)) for symbol, read in self.read.items()}, np.zeros, np.bool_, stable, False)

    def values(self, formula: Formula | None, stable: int) -> Floats:
        """What `formula` says; NaN where there is no candle."""
        if formula is None:
            return ABSENT
        lengths = {symbol: len(rows) for symbol, rows in self.history.rows.items()}
        found = {symbol: np.array(np.broadcast_to(evaluate(formula, read), lengths[symbol])) for symbol, read in self.read.items()}
        return self._spread(found, lambda shape, dtype: np.full(shape, np.nan, dtype), np.float64, stable, np.nan)

    def blank(self, grid: np.ndarray, stable: int) -> None:
        """Clear what lies before each symbol's candle number `stable`."""
        for i, rows in enumerate(self.history.rows.values()):
            grid[: rows[stable] if len(rows) > stable else len(grid), i] = False

    def _spread(self, found: Mapping[str, np.ndarray], empty: object, dtype: type, stable: int, nothing: object) -> np.ndarray:
        for values in found.values():
            values[:stable] = nothing
        if self.whole:
            return next(iter(found.values())).reshape(-1, 1)
        grid: np.ndarray = empty((self.history.slots, len(found)), dtype)  # type: ignore[operator]
        for i, (symbol, values) in enumerate(found.items()):
            grid[self.history.rows[symbol], i] = values
        return grid


def _signed(rank: Floats, descending: bool) -> Floats:
    return rank if descending else -rank


def _level(place: _Grid, level: Level | None, stable: int) -> Floats:
    return ABSENT if level is None else place.values(level.formula, stable)


# ---- an exit rule that reads the position: what does not is evaluated beforehand, the rest becomes a small program


def _exit(rule: Rule | None, place: _Grid, stable: int) -> tuple[Bools, Whole, Floats]:
    shape = (place.history.slots, len(place.history.past))
    if rule is None:
        return np.zeros(shape, np.bool_), NO_PROGRAM, NO_LEAVES
    if not rule.given:
        return place.holds(rule, stable), NO_PROGRAM, NO_LEAVES
    leaves: list[Node] = []
    program = np.array(list(_compiled(rule.root, leaves)), dtype=np.int64)
    return np.zeros((0, 0), np.bool_), program, np.stack([_leaf(leaf, place, stable) for leaf in leaves]) if leaves else NO_LEAVES


def _leaf(node: Node, place: _Grid, stable: int) -> Floats:
    """A part of the rule that reads nothing of the position, at every bar: 1, 0, -1 for a condition."""
    if not isinstance(node, Condition):
        return place.values(Formula(node), stable)
    found = {symbol: evaluate(Rule(node), read).astype(np.float64) for symbol, read in place.read.items()}
    return place._spread(found, np.zeros, np.float64, stable, 0.0)


OPS = {"+": Op.ADD, "-": Op.SUB, "*": Op.MUL, "/": Op.DIV, "<": Op.LT, "<=": Op.LE, ">": Op.GT, ">=": Op.GE, "==": Op.EQ, "!=": Op.NE,
       "max": Op.MAX, "min": Op.MIN, "and": Op.AND, "or": Op.OR}  # fmt: skip


def _compiled(node: Node, leaves: list[Node]) -> Iterator[tuple[int, int]]:
    """`node` as steps for `engine.truth`, operands first."""
    if not _reads_position(node):
        leaves.append(node)
        yield int(Op.LEAF), len(leaves) - 1
        return
    match node:
        case Given(name):
            yield int(Op.PRICE if name == "entry_price" else Op.BARS), 0
        case Negative(of) | Not(of):
            yield from _compiled(of, leaves)
            yield int(Op.NEG if isinstance(node, Negative) else Op.NOT), 0
        case Function("abs", (of,)):
            yield from _compiled(of, leaves)
            yield int(Op.ABS), 0
        case Arithmetic(sign, left, right):
            yield from _joined((left, right), sign, leaves)
        case Function(word, inside):
            yield from _joined(inside, word, leaves)
        case Logic(word, conditions):
            yield from _joined(conditions, word, leaves)
        case Comparison(signs, values) if len(signs) == 1:
            yield from _joined(values, signs[0], leaves)
        case Comparison(signs, values):
            pairs = tuple(Comparison((sign,), pair) for sign, pair in zip(signs, pairwise(values), strict=True))
            yield from _joined(pairs, "and", leaves)


def _joined(nodes: tuple[Node, ...], sign: str, leaves: list[Node]) -> Iterator[tuple[int, int]]:
    for i, node in enumerate(nodes):
        yield from _compiled(node, leaves)
        if i:
            yield int(OPS[sign]), 0


def _reads_position(node: Node) -> bool:
    return isinstance(node, Given) or any(map(_reads_position, parts(node)))


# ---- decisions that are close to turning


def near(strategy: Strategy, history: History, columns: Columns) -> list[tuple[int, str, str]]:
    """(slot, symbol, rule) wherever a comparison with an indicator is within NEAR of turning."""
    rules = [rule for rule in (strategy.entry, *strategy.screen, strategy.exit) if rule is not None and rule.calls]
    pairs = [(rule, pair) for rule in rules for pair in _pairs(rule.root) if any(isinstance(leaf, Call) for leaf in _leaves(pair))]
    stable = max(map(stable_from, strategy.expressions))
    found = []
    for symbol, rows in history.rows.items():
        series = columns.series(symbol, strategy.calls, strategy.series)
        for rule, (left, right) in pairs:
            a, b = evaluate(Formula(left), series), evaluate(Formula(right), series)
            with np.errstate(invalid="ignore"):
                close = np.broadcast_to(np.abs(a - b) <= NEAR * np.maximum(np.abs(a), np.abs(b)), rows.shape)
            found += [(int(rows[bar]), symbol, str(rule)) for bar in np.nonzero(close)[0] if bar >= stable]
    return sorted(found)


def _pairs(node: Node) -> Iterator[tuple[Value, Value]]:
    """Both sides of every comparison under `node` that reads nothing of the position; a cross is looked at where it happens."""
    if isinstance(node, Comparison):
        yield from ((a, b) for a, b in pairwise(node.operands) if not (_reads_position(a) or _reads_position(b)))
    elif isinstance(node, Condition):
        inside = parts(node)
        if inside and not isinstance(inside[0], Condition):
            yield inside[0], inside[1]  # type: ignore[misc]  # a cross
        else:
            for part in inside:
                yield from _pairs(part)


def _leaves(pair: tuple[Value, Value]) -> Iterator[Leaf]:
    for value in pair:
        yield from Formula(value).reads
