"""Rule to answers, over whole arrays.

A value is a float64 array, NaN where unknown. A condition is an int8 array of TRUE, UNKNOWN, FALSE, in Kleene's logic: as
FALSE < UNKNOWN < TRUE, `and` is the least, `or` the greatest, `not` the negative. (Booleans cannot do it: in numpy
`~(NaN > 70)` is true.) Axis 0 is time, oldest first; a second axis, if any, is symbols.

All of it works bar by bar, so an earlier bar (`[1]`, a cross) is only another reading of a leaf. `prepared` makes a function of a node and
of how its readings are known: over whole arrays they are shifted (`verdict`, `value`), live takes them where they stand in its last bars.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from functools import partial, reduce
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mdms_pipeline.market import Floats
from mdms_pipeline.rules.errors import MissingSeriesError
from mdms_pipeline.rules.nodes import (
    Arithmetic,
    Call,
    Comparison,
    Condition,
    Cross,
    Expression,
    Formula,
    Function,
    Given,
    Key,
    Leaf,
    Logic,
    Negative,
    Node,
    Not,
    Number,
    Rule,
    Series,
    Shift,
    Value,
    comparisons,
    key,
)

Verdicts = npt.NDArray[np.int8]
Inputs = Mapping[Leaf, Floats]
Place = Callable[[Leaf, int], Hashable]  # what a leaf, so many bars back, is known by
Read = Callable[[Any], Floats]  # what stands there
Answer = Callable[[Read], Any]  # Floats of a value, Verdicts of a condition

TRUE, UNKNOWN, FALSE = 1, 0, -1

ARITHMETIC: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": np.divide,
}
Relation = Callable[[Floats, Floats], npt.NDArray[np.bool_]]


def _unequal(left: Floats, right: Floats) -> npt.NDArray[np.bool_]:
    return np.less(left, right) | np.greater(left, right)


COMPARE: Mapping[str, tuple[Relation, Relation]] = {  # where it holds, and where it does not; with NaN neither is true
    "<": (np.less, np.greater_equal),
    "<=": (np.less_equal, np.greater),
    ">": (np.greater, np.less_equal),
    ">=": (np.greater_equal, np.less),
    "==": (np.equal, _unequal),
    "!=": (_unequal, np.equal),
}
FUNCTION: Mapping[str, Callable[..., Floats]] = {"abs": np.abs, "max": np.maximum, "min": np.minimum}  # NaN in, NaN out


@overload
def evaluate(expression: Rule, series: Mapping[Key, Floats]) -> Verdicts: ...
@overload
def evaluate(expression: Formula, series: Mapping[Key, Floats]) -> Floats: ...


def evaluate(expression: Rule | Formula, series: Mapping[Key, Floats]) -> Verdicts | Floats:
    """The answer at every bar: int8 TRUE, UNKNOWN, FALSE for a rule, float64 with NaN for a formula.

    `series` has, by call and by plain name, arrays of one shape, (bars,) or (bars, symbols), or plain numbers that hold at
    every bar. What is not finite is unknown. MissingSeriesError if one is not there, ValueError if the shapes differ.
    """
    inputs = collect(expression, series)
    with np.errstate(all="ignore"):
        if isinstance(expression, Rule):
            return np.asarray(verdict(expression.root, inputs))
        return np.asarray(value(expression.root, inputs))


def passes(verdicts: Verdicts) -> npt.NDArray[np.bool_]:
    """Where a condition is true. Unknown never passes."""
    return np.equal(verdicts, TRUE)


def known(verdict: int) -> bool | None:
    """One verdict in Python's words, None for unknown."""
    return None if verdict == UNKNOWN else verdict == TRUE


def collect(expression: Expression, series: Mapping[Key, Floats]) -> dict[Leaf, Floats]:
    """What `expression` reads, taken from `series`, as float64 with NaN for all that is not finite."""
    inputs = {}
    for leaf in expression.reads:
        if key(leaf) not in series:
            raise MissingSeriesError(f"{expression} reads {leaf}, which was not handed in: add it to the series")
        inputs[leaf] = finite(np.asarray(series[key(leaf)], np.float64))
    shapes = {array.shape for array in inputs.values() if array.ndim}
    if len(shapes) > 1:
        raise ValueError(f"{expression}: the series have the shapes {sorted(shapes)}: hand in one shape")
    return inputs


def value(node: Value, inputs: Inputs) -> Floats:
    """`node` at every bar. Arithmetic without a finite answer, such as x / 0, is unknown."""
    found: Floats = prepared(node, _place)(partial(_shifted, inputs))
    return found


def verdict(node: Condition, inputs: Inputs) -> Verdicts:
    """`node` at every bar."""
    said: Verdicts = prepared(node, _place)(partial(_shifted, inputs))
    return said


def prepared(node: Node, place: Place, back: int = 0) -> Answer:
    """`node`, as it was `back` bars earlier, as a function: it is handed what gives the numbers, all of one shape, by their place.
    The tree is walked here, once."""
    match node:
        case Number(number):
            constant = np.float64(number)  # broadcasts
            return lambda read: constant
        case Series() | Given() | Call():
            at = place(node, back)
            return lambda read: read(at)
        case Shift(of, bars):
            return prepared(of, place, back + bars)
        case Negative(of) | Not(of):
            inside = prepared(of, place, back)
            return lambda read: -inside(read)
        case Arithmetic(sign, left, right):
            return _arithmetic(ARITHMETIC[sign], prepared(left, place, back), prepared(right, place, back))
        case Function("abs", (of,)):
            inside = prepared(of, place, back)
            return lambda read: np.abs(inside(read))
        case Function(name, arguments):
            return _all(FUNCTION[name], [prepared(argument, place, back) for argument in arguments])
        case Comparison(signs, operands):
            sides = [prepared(operand, place, back) for operand in operands]
            return _compared([COMPARE[sign] for sign in signs], sides)
        case Cross():
            return _all(np.minimum, [prepared(comparison, place, back) for comparison in comparisons(node)])
        case Logic(word, conditions):
            return _all(np.minimum if word == "and" else np.maximum, [prepared(condition, place, back) for condition in conditions])


def _all(together: Callable[[Any, Any], Any], answers: list[Answer]) -> Answer:
    if len(answers) == 1:
        return answers[0]
    first, *others = answers

    def every(read: Read) -> Any:
        found = first(read)
        for answer in others:
            found = together(found, answer(read))
        return found

    return every


def _arithmetic(operate: Callable[[Floats, Floats], Floats], left: Answer, right: Answer) -> Answer:
    return lambda read: finite(operate(left(read), right(read)))


def _compared(relations: list[tuple[Relation, Relation]], sides: list[Answer]) -> Answer:
    def compare(read: Read) -> Verdicts:
        values = [side(read) for side in sides]
        said = [  # TRUE is 1 - 0, FALSE 0 - 1, and UNKNOWN, where neither is so, 0
            np.subtract(holds(a, b).view(np.int8), fails(a, b).view(np.int8))
            for (holds, fails), a, b in zip(relations, values, values[1:], strict=False)
        ]
        return reduce(np.minimum, said)

    return compare


def _place(leaf: Leaf, back: int) -> tuple[Leaf, int]:
    return leaf, back


def _shifted(inputs: Inputs, place: tuple[Leaf, int]) -> Floats:
    leaf, back = place
    return shift(inputs[leaf], back) if back else inputs[leaf]


def shift(values: Floats, bars: int) -> Floats:
    """`values` as they were `bars` earlier along axis 0, unknown where that is before the first bar; a plain number stays."""
    if np.ndim(values) == 0:
        return values
    shifted = np.full_like(values, np.nan)
    shifted[bars:] = values[: max(len(values) - bars, 0)]
    return shifted


def finite(values: Floats) -> Floats:
    """`values` with NaN, which is unknown, for all that is not finite."""
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, np.nan)
