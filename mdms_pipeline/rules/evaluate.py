"""Rule to answers, over whole arrays.

A value is a float64 array, NaN where unknown. A condition is an int8 array of TRUE, UNKNOWN, FALSE, in Kleene's logic: as
FALSE < UNKNOWN < TRUE, `and` is the least, `or` the greatest, `not` the negative. (Booleans cannot do it: in numpy
`~(NaN > 70)` is true.) Axis 0 is time, oldest first; a second axis, if any, is symbols.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import overload

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
        inputs[leaf] = _finite(np.asarray(series[key(leaf)], np.float64))
    shapes = {array.shape for array in inputs.values() if array.ndim}
    if len(shapes) > 1:
        raise ValueError(f"{expression}: the series have the shapes {sorted(shapes)}: hand in one shape")
    return inputs


def value(node: Value, inputs: Inputs) -> Floats:
    """`node` at every bar. Arithmetic without a finite answer, such as x / 0, is unknown."""
    match node:
        case Number(number):
            return np.float64(number)  # type: ignore[return-value]  # broadcasts
        case Series() | Given() | Call():
            return inputs[node]
        case Shift(of, bars):
            return shift(value(of, inputs), bars)
        case Negative(of):
            return -value(of, inputs)
        case Arithmetic(sign, left, right):
            return _finite(ARITHMETIC[sign](value(left, inputs), value(right, inputs)))
        case Function("abs", (of,)):
            return np.abs(value(of, inputs))
        case Function(name, arguments):
            return reduce(FUNCTION[name], (value(argument, inputs) for argument in arguments))


def verdict(node: Condition, inputs: Inputs) -> Verdicts:
    """`node` at every bar."""
    match node:
        case Comparison(signs, operands):
            values = [value(operand, inputs) for operand in operands]
            return reduce(np.minimum, map(_compare, signs, values, values[1:]))
        case Cross():
            before, now = comparisons(node)
            return np.minimum(verdict(before, inputs), verdict(now, inputs))
        case Not(of):
            return -verdict(of, inputs)
        case Logic(word, conditions):
            return reduce(np.minimum if word == "and" else np.maximum, (verdict(condition, inputs) for condition in conditions))


def shift(values: Floats, bars: int) -> Floats:
    """`values` as they were `bars` earlier along axis 0, unknown where that is before the first bar; a plain number stays."""
    if np.ndim(values) == 0:
        return values
    shifted = np.full_like(values, np.nan)
    shifted[bars:] = values[: max(len(values) - bars, 0)]
    return shifted


def _compare(sign: str, left: Floats, right: Floats) -> Verdicts:
    holds, fails = COMPARE[sign]  # TRUE is 1 - 0, FALSE 0 - 1, and UNKNOWN, where neither is so, 0
    return np.subtract(holds(left, right).view(np.int8), fails(left, right).view(np.int8))


def _finite(values: Floats) -> Floats:
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, np.nan)
