"""What a rule is made of: frozen data, and its text in normal form.

A *value* is a number at every bar, a *condition* is true, false or unknown at every bar. In normal form a negative number is
one `Number`, shifts are merged (`x[1][2]` is `x[3]`, `x[0]` is `x`), `and` within `and` is one `Logic`, and an indicator's
usual source is left out (`sma(close, 20)` is `sma(20)`); so equal rules have equal text, and `parse(str(rule)) == rule`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Number:
    value: float

    def __str__(self) -> str:
        return text(self)


@dataclass(frozen=True)
class Series:
    """A candle column: `close`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Given:
    """A plain name that only some users of rules know, such as a backtest's `entry_price`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Call:
    """One column of one indicator: `macd(12, 26, 9).signal`."""

    name: str
    source: str | None  # the candle column, None where it is the indicator's usual one or there is no choice
    params: tuple[float, ...]
    output: str | None  # None where the indicator has only one

    def __str__(self) -> str:
        return text(self)


@dataclass(frozen=True)
class Shift:
    """`of` as it was `bars` (>= 1) bars earlier."""

    of: Value
    bars: int


@dataclass(frozen=True)
class Negative:
    of: Value


@dataclass(frozen=True)
class Arithmetic:
    operator: str  # + - * /
    left: Value
    right: Value


@dataclass(frozen=True)
class Function:
    name: str  # abs min max
    arguments: tuple[Value, ...]


@dataclass(frozen=True)
class Comparison:
    """`a < b <= c`: every neighbouring pair must hold; len(operands) == len(operators) + 1."""

    operators: tuple[str, ...]  # < <= > >= == !=
    operands: tuple[Value, ...]


@dataclass(frozen=True)
class Cross:
    """`above`: a[1] <= b[1] and a > b; `below`: a[1] >= b[1] and a < b."""

    direction: str  # above below
    a: Value
    b: Value


@dataclass(frozen=True)
class Not:
    of: Condition


@dataclass(frozen=True)
class Logic:
    """Two or more conditions joined by one word; none of `parts` is a Logic of the same word."""

    word: str  # and or
    parts: tuple[Condition, ...]


Leaf = Series | Given | Call
Value = Number | Leaf | Shift | Negative | Arithmetic | Function
Condition = Comparison | Cross | Not | Logic
Node = Value | Condition
Key = Call | str  # what a leaf is asked for by: an indicator's call, or a plain name


@dataclass(frozen=True)
class Expression:
    """What a rule and a value have in common: what they read, how far back, their text."""

    root: Node

    @cached_property
    def reads(self) -> Mapping[Leaf, int]:
        """Everything read, with the bars that its deepest reading lies back; in order of appearance."""
        return reach(self.root)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The distinct indicator columns read."""
        return tuple(leaf for leaf in self.reads if isinstance(leaf, Call))

    @property
    def columns(self) -> tuple[str, ...]:
        """The distinct candle columns read as such (an indicator's source is the indicator's own affair)."""
        return tuple(leaf.name for leaf in self.reads if isinstance(leaf, Series))

    @property
    def given(self) -> tuple[str, ...]:
        """The distinct further names read, such as `entry_price`."""
        return tuple(leaf.name for leaf in self.reads if isinstance(leaf, Given))

    @property
    def lookback(self) -> int:
        """How many bars back the deepest `[k]` or cross reaches: evaluation needs that many bars before the first answer."""
        return max(self.reads.values(), default=0)

    def __str__(self) -> str:
        return text(self.root)


@dataclass(frozen=True)
class Rule(Expression):
    """A condition: true, false or unknown at every bar."""

    root: Condition


@dataclass(frozen=True)
class Formula(Expression):
    """A value: a number, or unknown, at every bar."""

    root: Value


def key(leaf: Leaf) -> Key:
    """What `leaf` is asked for by."""
    return leaf if isinstance(leaf, Call) else leaf.name


def parts(node: Node) -> tuple[Node, ...]:
    """The nodes directly inside `node`, in the order of its text."""
    match node:
        case Shift(of) | Negative(of) | Not(of):
            return (of,)
        case Arithmetic(_, a, b) | Cross(_, a, b):
            return (a, b)
        case Function(_, inside) | Comparison(_, inside):
            return inside
        case Logic(_, conditions):
            return conditions
        case _:
            return ()


def readings(node: Node, back: int = 0) -> Iterator[tuple[Leaf, int]]:
    """Every leaf under `node`, as it was `back` bars earlier, with the bars that it is read back; in order of appearance, repeats too."""
    match node:
        case Series() | Given() | Call():
            yield node, back
        case Shift(of, bars):
            yield from readings(of, back + bars)
        case Cross():
            for comparison in comparisons(node):
                yield from readings(comparison, back)
        case _:
            for part in parts(node):
                yield from readings(part, back)


def reach(node: Node) -> dict[Leaf, int]:
    """Every leaf under `node` with the bars that its deepest reading lies back."""
    deepest: dict[Leaf, int] = {}
    for leaf, bars in readings(node):
        deepest[leaf] = max(deepest.get(leaf, 0), bars)
    return deepest


def earlier(value: Value, bars: int) -> Value:
    """`value` as it was `bars` bars earlier, in normal form; a number is the same at every bar."""
    if isinstance(value, Number) or bars == 0:
        return value
    return Shift(value.of, value.bars + bars) if isinstance(value, Shift) else Shift(value, bars)


def comparisons(cross: Cross) -> tuple[Comparison, Comparison]:
    """The two comparisons that a cross stands for: before, now."""
    before, now = ("<=", ">") if cross.direction == "above" else (">=", "<")
    return Comparison((before,), (earlier(cross.a, 1), earlier(cross.b, 1))), Comparison((now,), (cross.a, cross.b))


def operands(node: Condition) -> Iterator[Value]:
    """The values that decide a condition: both sides of every comparison under it, what is the same at every bar left out."""
    match node:
        case Comparison(_, values):
            yield from (value for value in values if reach(value))
        case Cross():
            for comparison in comparisons(node):
                yield from operands(comparison)
        case Not(of):
            yield from operands(of)
        case Logic(_, conditions):
            for condition in conditions:
                yield from operands(condition)


# How tightly each kind of node binds, as in Python; what binds less than its place asks for is put in parentheses.
OR, AND, NOT, COMPARED, SUM, PRODUCT, SIGN, ATOM = range(8)


def text(node: Node) -> str:
    """`node` in normal form."""
    match node:
        case Number(value):
            return number_text(value)
        case Series(name) | Given(name):
            return name
        case Call(name, source, params, output):
            arguments = ", ".join((*filter(None, (source,)), *map(number_text, params)))
            return f"{name}({arguments})" + (f".{output}" if output else "")
        case Shift(of, bars):
            return f"{_within(of, ATOM)}[{bars}]"
        case Negative(of):
            return f"-{_within(of, SIGN)}"
        case Arithmetic(operator, left, right):
            level = _binds(node)
            return f"{_within(left, level)} {operator} {_within(right, level + 1)}"
        case Function(name, inside):
            return f"{name}({', '.join(map(text, inside))})"
        case Comparison(operators, values):
            first, *rest = (_within(value, SUM) for value in values)
            return " ".join((first, *(f"{operator} {value}" for operator, value in zip(operators, rest, strict=True))))
        case Cross(direction, a, b):
            return f"crosses_{direction}({text(a)}, {text(b)})"
        case Not(condition):
            return f"not {_within(condition, NOT)}"
        case Logic(word, conditions):
            return f" {word} ".join(_within(condition, _binds(node) + 1) for condition in conditions)


def number_text(value: float) -> str:
    """The shortest text that reads back to the same bits; whole numbers without a point."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _within(node: Node, level: int) -> str:
    return text(node) if _binds(node) >= level else f"({text(node)})"


def _binds(node: Node) -> int:
    match node:
        case Logic(word, _):
            return OR if word == "or" else AND
        case Not():
            return NOT
        case Comparison():
            return COMPARED
        case Arithmetic(operator, _, _):
            return SUM if operator in "+-" else PRODUCT
        case Negative():
            return SIGN
        case Number(value):
            return SIGN if value < 0 else ATOM
        case _:
            return ATOM
