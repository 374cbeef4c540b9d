"""The one rule language of screens, live signals and backtests: `close > sma(200) and rsi(14) < 30`.

1. `vocabulary.py`  the caller says which series, indicators and further names there are
2. `parse.py`       text -> `Rule` (a condition) or `Formula` (a number); a closed list of syntax, everything else is refused
3. `nodes.py`       what a rule is made of, what it reads (`calls`, `columns`, `lookback`), its text in normal form
4. `evaluate.py`    rule + arrays -> true, unknown or false at every bar; or a number, NaN where unknown
5. `explain.py`     the same at one bar, with the value of every sub-expression
6. `errors.py`      what can go wrong: the rule with a caret under the place, the nearest known names, the remedy

Rules know no indicator, no store and no Dagster: names come in as a `Vocabulary`, numbers as arrays by name.
"""

from mdms_pipeline.rules.errors import MissingSeriesError, RuleError, did_you_mean
from mdms_pipeline.rules.evaluate import FALSE, TRUE, UNKNOWN, Verdicts, evaluate, known, passes
from mdms_pipeline.rules.explain import Explanation, answer_text, explain
from mdms_pipeline.rules.nodes import Call, Expression, Formula, Key, Rule, operands
from mdms_pipeline.rules.parse import parse, parse_value
from mdms_pipeline.rules.vocabulary import Signature, Vocabulary

__all__ = [
    "FALSE",
    "TRUE",
    "UNKNOWN",
    "Call",
    "Explanation",
    "Expression",
    "Formula",
    "Key",
    "MissingSeriesError",
    "Rule",
    "RuleError",
    "Signature",
    "Verdicts",
    "Vocabulary",
    "answer_text",
    "did_you_mean",
    "evaluate",
    "explain",
    "known",
    "operands",
    "parse",
    "parse_value",
    "passes",
]
