"""Why a rule says what it says at one bar: every sub-expression with its value, as a tree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mdms_pipeline.market import Floats
from mdms_pipeline.rules.evaluate import Inputs, collect, known, value, verdict
from mdms_pipeline.rules.nodes import Condition, Cross, Formula, Key, Node, Number, Rule, Shift, comparisons, earlier, parts, text


@dataclass(frozen=True)
class Explanation:
    """One sub-expression at one bar. `answer` is a bool for a condition, a float for a value, None where unknown."""

    text: str
    answer: bool | float | None
    children: tuple[Explanation, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"text": self.text, "answer": self.answer, "children": [child.as_dict() for child in self.children]}

    def lines(self, indent: int = 0) -> Iterator[str]:
        yield f"{'  ' * indent}{self.text}: {answer_text(self.answer)}"
        for child in self.children:
            yield from child.lines(indent + 1)

    def __str__(self) -> str:
        return "\n".join(self.lines())


def explain(expression: Rule | Formula, series: Mapping[Key, Floats], at: int = -1) -> Explanation:
    """The tree of `expression` at bar `at` of one symbol's `series` (1-D arrays, as for `evaluate`; IndexError outside of them)."""
    inputs = collect(expression, series)
    bars = next((len(array) for array in inputs.values() if array.ndim), 1)
    if not -bars <= at < bars:
        raise IndexError(f"bar {at} is outside of {bars} bars")
    end = at % bars + 1
    window = {leaf: array[max(0, end - 1 - expression.lookback) : end] if array.ndim else array for leaf, array in inputs.items()}
    with np.errstate(all="ignore"):
        return _explain(expression.root, window)


def _explain(node: Node, window: Inputs) -> Explanation:
    """`node` at the last bar of `window`."""
    return Explanation(text(node), _answer(node, window), tuple(_explain(child, window) for child in _inside(node)))


def _answer(node: Node, window: Inputs) -> bool | float | None:
    if isinstance(node, Condition):
        return known(int(np.atleast_1d(verdict(node, window))[-1]))
    number = float(np.atleast_1d(value(node, window))[-1])
    return None if math.isnan(number) else number


def _inside(node: Node) -> tuple[Node, ...]:
    """What to show below `node`: the two halves of a cross; inside `(a - b)[1]` the values of that earlier bar; no plain numbers."""
    match node:
        case Cross():
            return comparisons(node)
        case Shift(of, bars):
            return tuple(earlier(part, bars) for part in parts(of) if not isinstance(part, Condition | Number))
        case _:
            return tuple(part for part in parts(node) if not isinstance(part, Number))


def answer_text(answer: bool | float | None) -> str:
    """`true`, `false`, `unknown`, or the number to ten digits."""
    if answer is None:
        return "unknown"
    if isinstance(answer, bool):
        return "true" if answer else "false"
    return f"{answer:.0f}" if 1e10 <= abs(answer) < 1e15 else f"{answer:.10g}"
