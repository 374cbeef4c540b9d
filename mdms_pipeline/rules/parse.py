"""Text to rule.

Python's own parser only splits the text and nests it; a closed list of its nodes is then translated into ours and everything
else is refused. Nothing of a rule is ever run as code.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping

from mdms_pipeline.rules.errors import RuleError, did_you_mean
from mdms_pipeline.rules.nodes import (
    Arithmetic,
    Call,
    Comparison,
    Condition,
    Cross,
    Formula,
    Function,
    Given,
    Logic,
    Negative,
    Node,
    Not,
    Number,
    Rule,
    Series,
    Value,
    earlier,
    reach,
)
from mdms_pipeline.rules.vocabulary import CROSSES, FUNCTIONS, Signature, Vocabulary

MAX_LENGTH = 2_000  # characters
MAX_DEPTH = 50  # nested expressions; Python's own recursion limit is far beyond
MAX_LOOKBACK = 1_000  # bars

ARITHMETIC: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip

# What people write out of habit from elsewhere, longest first where one begins another, and what to write here.
FOREIGN: tuple[tuple[str, str], ...] = (
    (r"&&?", "write `and`"),
    (r"\|\|?", "write `or`"),
    (r"=>", "write >="),
    (r"=<", "write <="),
    (r"<>", "write !="),
    (r"(?<![<>=!])=(?!=)", "write == to compare; an indicator takes plain numbers in order, as in rsi(14)"),
    (r"~|!(?!=)", "write `not`"),
    (r"\*\*|\^", "powers are not part of rules: write x * x"),
    (r"//|%", "write /"),
    (r"['\"]", "a rule holds names and numbers, no quoted text: leave the quotes out"),
    (r"≥|≧", "write >="),
    (r"≤|≦", "write <="),
    (r"≠", "write !="),
    (r"\b(?:AND|OR|NOT)\b", "write it in small letters"),
    (r"[^\sA-Za-z0-9_.,()\[\]<>=!+\-*/]", "a rule is written in letters, digits and the signs _ . , ( ) [ ] < > = ! + - * /"),
)
NUMERAL = re.compile(r"(?<![\w.])\.?\d(?:[eE][+-]?|[\w.])*")
NUMBER = re.compile(r"(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?", re.ASCII)
COMMENT = re.compile(r"#[^\n]*")


def parse(text: str, vocabulary: Vocabulary, params: Mapping[str, float] | None = None) -> Rule:
    """The condition that `text` says, with the named numbers of `params` filled in. RuleError shows what is wrong and where."""
    reader = _Reader(text, vocabulary, params or {})
    tree = reader.tree()
    root = reader.condition(tree)
    reader.check_reads(tree, root)
    return Rule(root)


def parse_value(text: str, vocabulary: Vocabulary, params: Mapping[str, float] | None = None) -> Formula:
    """The value that `text` says, such as what a screen ranks by; otherwise as `parse`."""
    reader = _Reader(text, vocabulary, params or {})
    tree = reader.tree()
    root = reader.value(tree)
    reader.check_reads(tree, root)
    return Formula(root)


class _Reader:
    """Translates one text. `self.flat` is the text on one line with comments blanked, so that offsets are the text's own."""

    def __init__(self, text: str, vocabulary: Vocabulary, params: Mapping[str, float]) -> None:
        for name in params:
            if name in vocabulary.names:
                raise ValueError(f"parameter {name!r} has the name of something that rules know already: rename it")
        self.text = text
        self.vocabulary = vocabulary
        self.params = params
        self.names = (*vocabulary.names, *params)
        self.depth = 0
        self.flat = re.sub(r"\s", " ", COMMENT.sub(lambda comment: " " * len(comment.group()), text))
        self.indent = len(self.flat) - len(self.flat.lstrip(" "))

    def tree(self) -> ast.expr:
        """Python's tree of the text; RuleError where it has none."""
        if len(self.text) > MAX_LENGTH:
            raise self.wrong_at(
                MAX_LENGTH, MAX_LENGTH + 1, f"a rule of {len(self.text)} characters is too long", f"stay within {MAX_LENGTH}"
            )
        self.refuse_foreign()
        try:
            return ast.parse(self.flat.strip(" "), mode="eval").body
        except SyntaxError as error:
            raise self.unreadable(error) from None
        except (ValueError, MemoryError, RecursionError):
            raise self.wrong_at(0, 1, "the rule is too deep or holds a number that is too long", "split it into several") from None

    def refuse_foreign(self) -> None:
        """Refuse what Python's parser would take for something else, or explain badly."""
        if not self.flat.strip():
            raise self.wrong_at(0, 1, "the rule is empty", "write a condition such as close > sma(20)")
        found = [(match, remedy) for sign, remedy in FOREIGN for match in re.finditer(sign, self.flat)]
        if found:
            match, remedy = min(found, key=lambda pair: pair[0].start())
            raise self.wrong_at(match.start(), match.end(), f"{match.group()!r} is not part of the rule language", remedy)
        for numeral in NUMERAL.finditer(self.flat):
            if not NUMBER.fullmatch(numeral.group()):
                raise self.wrong_at(numeral.start(), numeral.end(), f"{numeral.group()!r} is not a number", "write it like 14, 0.5 or 1e9")

    def unreadable(self, error: SyntaxError) -> RuleError:
        """Python's complaint in our words. At the end of the text it names offset 0, or a line that is not there."""
        ended = not error.offset or error.lineno != 1
        start = len(self.flat.rstrip()) if ended else self.indent + (error.offset or 1) - 1
        end = max(start + 1, self.indent + (error.end_offset or 0) - 1)
        unclosed = "was never closed" in error.msg or "unmatched" in error.msg or "does not match" in error.msg
        remedy = "check the parentheses" if unclosed else "look for a missing operator, number or parenthesis here or just before"
        return self.wrong_at(start, end, "the rule cannot be read" + (f": {error.msg}" if unclosed else ""), remedy)

    def wrong_at(self, start: int, end: int, problem: str, remedy: str) -> RuleError:
        return RuleError(self.text, start, end, problem, remedy)

    def wrong(self, node: ast.expr, problem: str, remedy: str) -> RuleError:
        return self.wrong_at(node.col_offset + self.indent, (node.end_col_offset or node.col_offset + 1) + self.indent, problem, remedy)

    def wrong_output(self, tree: ast.Attribute, problem: str, remedy: str) -> RuleError:
        end = (tree.end_col_offset or 0) + self.indent
        return self.wrong_at(end - len(tree.attr), end, problem, remedy)

    def written(self, node: ast.expr) -> str:
        return self.flat[node.col_offset + self.indent : (node.end_col_offset or 0) + self.indent]

    def check_reads(self, tree: ast.expr, root: Node) -> None:
        """Refuse what says the same at every bar."""
        if not reach(root):
            raise self.wrong(tree, "this reads no series: it says the same at every bar", "name a series or an indicator, such as close")

    def condition(self, tree: ast.expr) -> Condition:
        node = self.node(tree)
        if isinstance(node, Condition):
            return node
        raise self.wrong(tree, "this is a number where a condition is wanted", f"compare it, as in {self.written(tree)[:40]} > 0")

    def value(self, tree: ast.expr) -> Value:
        node = self.node(tree)
        if isinstance(node, Value):
            return node
        raise self.wrong(
            tree, "this is a condition where a number is wanted", "join conditions by `and`, `or`, `not`; compute with numbers only"
        )

    def node(self, tree: ast.expr) -> Node:
        """`tree` translated, unless it is nested too deep."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.wrong(tree, f"the rule is nested more than {MAX_DEPTH} deep", "split it into several")
        node = self.translated(tree)
        self.depth -= 1
        return node

    def translated(self, tree: ast.expr) -> Node:
        """The closed list: what is not in it is refused."""
        match tree:
            case ast.Constant():
                return self.number(tree)
            case ast.Name():
                return self.name(tree)
            case ast.Call():
                return self.call(tree)
            case ast.Attribute():
                return self.attribute(tree)
            case ast.Subscript():
                return self.subscript(tree)
            case ast.UnaryOp(ast.Not()):
                return Not(self.condition(tree.operand))
            case ast.UnaryOp(ast.USub()):
                return self.negative(tree)
            case ast.UnaryOp(ast.UAdd()):
                return self.value(tree.operand)
            case ast.BinOp() if type(tree.op) in ARITHMETIC:
                return Arithmetic(ARITHMETIC[type(tree.op)], self.value(tree.left), self.value(tree.right))
            case ast.Compare():
                return self.comparison(tree)
            case ast.BoolOp():
                return self.logic(tree)
        raise self.wrong(
            tree, "this is not part of the rule language", "use series, indicators, numbers, + - * /, comparisons, and, or, not"
        )

    def number(self, tree: ast.Constant) -> Number:
        if type(tree.value) not in (int, float):
            raise self.wrong(tree, f"{self.written(tree)} is not a number", "use series, indicators and numbers")
        return Number(self.finite(tree, tree.value))

    def finite(self, tree: ast.expr, number: object) -> float:
        try:
            value = float(number)  # type: ignore[arg-type]  # a whole number of Python's may be beyond a float
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.wrong(tree, "the number is too large", "stay below 1e308")
        return value + 0.0  # -0.0 becomes 0.0

    def name(self, tree: ast.Name) -> Value:
        name = tree.id
        if name in self.vocabulary.series:
            return Series(name)
        if name in self.vocabulary.given:
            return Given(name)
        if name in self.params:
            return Number(self.finite(tree, self.params[name]))
        if signature := self.vocabulary.signature(name):
            raise self.wrong(tree, f"{name} is an indicator and must be called", f"write it like {signature.example}")
        if name in (*FUNCTIONS, *CROSSES):
            raise self.wrong(tree, f"{name} needs something to work on", f"write it like {name}(close, open)")
        raise self.wrong(tree, f"unknown name {name!r}", self.suggestion(name))

    def suggestion(self, name: str) -> str:
        """The nearest known name; `rsi_14`, as a column is called in a table, is led back to `rsi(14)`."""
        kind, _, _ = name.partition("_")
        if signature := self.vocabulary.signature(kind):
            return f"did you mean {signature.example}?"
        return did_you_mean(name, self.names)

    def call(self, tree: ast.Call) -> Node:
        if not isinstance(tree.func, ast.Name):
            raise self.wrong(tree.func, "this cannot be called", "only indicators and functions take parentheses, as in rsi(14)")
        if tree.keywords:
            raise self.wrong(tree.keywords[0].value, "arguments have no names here", "write plain numbers in order, as in rsi(14)")
        name = tree.func.id
        if name in CROSSES:
            a, b = self.values(tree, 2, 2)
            return Cross(name.removeprefix("crosses_"), a, b)
        if name in FUNCTIONS:
            return Function(name, self.values(tree, *((1, 1) if name == "abs" else (2, None))))
        return self.single(tree, tree.func)

    def values(self, tree: ast.Call, least: int, most: int | None) -> tuple[Value, ...]:
        count = len(tree.args)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if most == least else f"{least} or more"
            raise self.wrong(tree, f"{self.written(tree.func)} takes {wanted} values, got {count}", "separate values by commas")
        return tuple(self.value(argument) for argument in tree.args)

    def indicator(self, tree: ast.Call, function: ast.Name) -> tuple[Signature, Call]:
        """The call with no output named yet."""
        signature = self.vocabulary.signature(function.id)
        if signature is None:
            if function.id in self.names:
                raise self.wrong(tree, f"{function.id} takes no arguments", f"write {function.id}; one bar earlier is close[1]")
            kinds = [kind.name for kind in self.vocabulary.indicators]
            raise self.wrong(function, f"unknown indicator {function.id!r}", did_you_mean(function.id, (*kinds, *FUNCTIONS, *CROSSES)))
        arguments = list(tree.args)
        source = self.source(signature, arguments)
        if len(arguments) != len(signature.params):
            names = ", ".join(name for name, _ in signature.params) or "nothing"
            problem = f"{signature.name} takes {names}: {len(signature.params)} in number, got {len(arguments)}"
            raise self.wrong(tree, problem, f"write it like {signature.example}")
        params = tuple(self.param(signature, *pair) for pair in zip(signature.params, arguments, strict=True))
        if complaint := signature.check(*params):
            raise self.wrong(tree, f"{signature.name}: {complaint}", f"write it like {signature.example}")
        return signature, Call(signature.name, source, params, None)

    def source(self, signature: Signature, arguments: list[ast.expr]) -> str | None:
        """Take a leading source column off `arguments`."""
        tree = arguments[0] if arguments else None
        if isinstance(tree, ast.Call | ast.Attribute | ast.Subscript):
            raise self.wrong(tree, f"{signature.name} reads candle columns only", f"use one of {', '.join(self.vocabulary.series)}")
        if not isinstance(tree, ast.Name) or tree.id in self.params:
            return None
        if tree.id not in self.vocabulary.series:
            raise self.wrong(tree, f"{tree.id!r} is not a series", did_you_mean(tree.id, (*self.vocabulary.series, *self.params)))
        if signature.source is None:
            raise self.wrong(tree, f"{signature.name} always reads the same series", f"write it like {signature.example}")
        del arguments[0]
        return None if tree.id == signature.source else tree.id

    def param(self, signature: Signature, param: tuple[str, float], tree: ast.expr) -> float:
        name, usual = param
        node = self.node(tree)
        if not isinstance(node, Number):
            raise self.wrong(tree, f"{name} of {signature.name} must be a plain number", f"write it like {signature.example}")
        if node.value <= 0:
            raise self.wrong(tree, f"{name} of {signature.name} must be above 0, got {node}", f"write it like {signature.example}")
        if isinstance(usual, int) and not node.value.is_integer():
            raise self.wrong(tree, f"{name} of {signature.name} is a count of bars, got {node}", "write a whole number")
        return node.value

    def attribute(self, tree: ast.Attribute) -> Call:
        """A call with the output that it names."""
        if not isinstance(tree.value, ast.Call) or not isinstance(tree.value.func, ast.Name):
            remedy = "only an indicator's output is named so, before any [k]: macd(12, 26, 9).signal"
            raise self.wrong_output(tree, f"nothing here has a .{tree.attr}", remedy)
        name = tree.value.func.id
        if name in (*FUNCTIONS, *CROSSES):
            raise self.wrong_output(tree, f"{name} has no outputs", f"leave .{tree.attr} out")
        signature, call = self.indicator(tree.value, tree.value.func)
        if not signature.several:
            raise self.wrong_output(tree, f"{name} has only one value", f"write {call}")
        if tree.attr not in signature.outputs:
            raise self.wrong_output(tree, f"{name} has no {tree.attr!r}", did_you_mean(tree.attr, signature.outputs))
        return Call(call.name, call.source, call.params, tree.attr)

    def single(self, tree: ast.Call, function: ast.Name) -> Call:
        """A call that names no output, which only an indicator with one value allows."""
        signature, call = self.indicator(tree, function)
        if signature.several:
            choices = " or ".join(f"{call}.{name}" for name in signature.outputs)
            raise self.wrong(tree, f"{call.name} has several values: {', '.join(signature.outputs)}", f"name one: {choices}")
        return call

    def subscript(self, tree: ast.Subscript) -> Value:
        of = self.value(tree.value)
        if isinstance(of, Number):
            raise self.wrong(tree, "a number is the same at every bar", "leave [ ] out")
        bars = self.bars(tree.slice)
        value = earlier(of, bars)
        self.check_lookback(tree, value)
        return value

    def bars(self, tree: ast.expr) -> int:
        if isinstance(tree, ast.UnaryOp):
            raise self.wrong(tree, "[k] looks back k bars: a negative one would look into the future", "write 0 or more")
        bars = self.node(tree) if isinstance(tree, ast.Constant | ast.Name) else None
        if not isinstance(bars, Number) or not bars.value.is_integer() or bars.value < 0:
            raise self.wrong(tree, "[k] takes one whole number of bars, 0 or more", "write it like close[1]")
        return int(min(bars.value, MAX_LOOKBACK + 1))

    def check_lookback(self, tree: ast.expr, node: Node) -> None:
        if max(reach(node).values(), default=0) > MAX_LOOKBACK:
            raise self.wrong(tree, f"this looks back more than {MAX_LOOKBACK} bars", "use a longer timeframe")

    def negative(self, tree: ast.UnaryOp) -> Value:
        of = self.value(tree.operand)
        return Number(0.0 - of.value) if isinstance(of, Number) else Negative(of)

    def comparison(self, tree: ast.Compare) -> Comparison:
        for operator, operand in zip(tree.ops, tree.comparators, strict=True):
            if type(operator) not in COMPARISONS:
                raise self.wrong(operand, "`in` and `is` are not part of the rule language", "compare by < <= > >= == !=")
        operands = tuple(self.value(operand) for operand in (tree.left, *tree.comparators))
        return Comparison(tuple(COMPARISONS[type(operator)] for operator in tree.ops), operands)

    def logic(self, tree: ast.BoolOp) -> Logic:
        word = "and" if isinstance(tree.op, ast.And) else "or"
        parts: list[Condition] = []
        for part in map(self.condition, tree.values):
            parts.extend(part.parts if isinstance(part, Logic) and part.word == word else (part,))
        return Logic(word, tuple(parts))
