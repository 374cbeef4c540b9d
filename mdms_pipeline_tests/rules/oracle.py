"""The slow, naive meaning of a rule: one bar at a time, None for unknown, no numpy. Shares no code with `evaluate`."""

from __future__ import annotations

import math

from mdms_pipeline.rules import nodes


def number(node, series, bar):
    """The value of `node` at `bar`, None where unknown."""
    if isinstance(node, nodes.Number):
        return node.value
    if isinstance(node, nodes.Series | nodes.Given):
        return _cell(series[node.name], bar)
    if isinstance(node, nodes.Call):
        return _cell(series[node], bar)
    if isinstance(node, nodes.Shift):
        return number(node.of, series, bar - node.bars) if _constant(node.of) or bar >= node.bars else None
    if isinstance(node, nodes.Negative):
        of = number(node.of, series, bar)
        return None if of is None else -of
    if isinstance(node, nodes.Function):
        arguments = [number(argument, series, bar) for argument in node.arguments]
        return None if None in arguments else {"abs": lambda x: abs(x), "min": min, "max": max}[node.name](*arguments)
    left, right = number(node.left, series, bar), number(node.right, series, bar)
    if left is None or right is None or (node.operator == "/" and right == 0):
        return None
    try:
        answer = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else 0.0}[node.operator]
    except OverflowError:
        return None
    return answer if math.isfinite(answer) else None


def condition(node, series, bar):
    """True, False or None."""
    if isinstance(node, nodes.Comparison):
        answers = []
        for i, sign in enumerate(node.operators):
            left, right = number(node.operands[i], series, bar), number(node.operands[i + 1], series, bar)
            answers.append(None if left is None or right is None else _compared(left, sign, right))
        return _all(answers)
    if isinstance(node, nodes.Cross):
        a, b = number(node.a, series, bar), number(node.b, series, bar)
        a1 = number(nodes.earlier(node.a, 1), series, bar)
        b1 = number(nodes.earlier(node.b, 1), series, bar)
        if node.direction == "below":
            a, b, a1, b1 = b, a, b1, a1
        return _all([None if a1 is None or b1 is None else a1 <= b1, None if a is None or b is None else a > b])
    if isinstance(node, nodes.Not):
        of = condition(node.of, series, bar)
        return None if of is None else not of
    answers = [condition(part, series, bar) for part in node.parts]
    if node.word == "and":
        return _all(answers)
    return True if True in answers else None if None in answers else False


def _all(answers):
    return False if False in answers else None if None in answers else True


def _compared(left, sign, right):
    if sign in ("==", "!="):
        return (left == right) is (sign == "==")
    if sign in ("<", "<="):
        return left < right or (sign == "<=" and left == right)
    return left > right or (sign == ">=" and left == right)


def _cell(array, bar):
    value = float(array[bar])
    return value if math.isfinite(value) else None


def _constant(node):
    return not nodes.reach(node)
