"""Random rules in normal form, and random series with gaps, for property tests."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from mdms_pipeline.rules.nodes import (
    Arithmetic,
    Call,
    Comparison,
    Cross,
    Function,
    Given,
    Logic,
    Negative,
    Not,
    Number,
    Rule,
    Series,
    earlier,
    key,
    reach,
)

LEAVES = (
    Series("close"),
    Series("volume"),
    Given("entry_price"),
    Call("sma", None, (20.0,), None),
    Call("sma", "volume", (20.0,), None),
    Call("bollinger", None, (20.0, 2.5), "upper"),
)

leaves = st.sampled_from(LEAVES)
finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
numbers = st.builds(lambda value: Number(value + 0.0), st.one_of(st.integers(-3, 3).map(float), finite))


def _not_number(node):
    return not isinstance(node, Number)


def _larger(values):
    return st.one_of(
        st.builds(earlier, values.filter(_not_number), st.integers(1, 3)),
        st.builds(Negative, values.filter(_not_number)),
        st.builds(Arithmetic, st.sampled_from("+-*/"), values, values),
        st.builds(lambda value: Function("abs", (value,)), values),
        st.builds(Function, st.sampled_from(("min", "max")), st.lists(values, min_size=2, max_size=3).map(tuple)),
    )


values = st.recursive(st.one_of(leaves, leaves, numbers), _larger, max_leaves=5)


@st.composite
def comparisons(draw):
    operands = draw(st.lists(values, min_size=2, max_size=3))
    operators = [draw(st.sampled_from(("<", "<=", ">", ">=", "==", "!="))) for _ in operands[1:]]
    return Comparison(tuple(operators), tuple(operands))


def _joined(word, parts):
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, Logic) and part.word == word else (part,))]
    return Logic(word, tuple(flat))


conditions = st.recursive(
    st.one_of(comparisons(), st.builds(Cross, st.sampled_from(("above", "below")), values, values)),
    lambda inner: st.one_of(
        st.builds(Not, inner), st.builds(_joined, st.sampled_from(("and", "or")), st.lists(inner, min_size=2, max_size=3))
    ),
    max_leaves=4,
)
rules = conditions.filter(reach).map(Rule)

# Few distinct values, so that equality, zero and crossings are met often; nothing known, and what a table cannot hold.
cells = st.sampled_from((0.0, 0.0, 1.0, 1.0, 2.0, -1.0, 1.5, 1e-300, 1e300, math.nan, math.nan, math.inf))
LENGTHS = st.integers(1, 8)  # bars


@st.composite
def tables(draw, bars=LENGTHS):
    """Series for every leaf, all of one length."""
    length = draw(bars)
    return {key(leaf): np.array(draw(st.lists(cells, min_size=length, max_size=length))) for leaf in LEAVES}
